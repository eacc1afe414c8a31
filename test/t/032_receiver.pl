# The receiver: its answers, batches, options, admin address, logs, and its end.

use strict;
use warnings;

use FindBin;
use IO::Select;
use IO::Socket::UNIX;
use IPC::Run ();
use JSON::PP ();
use POSIX ();
use Socket qw(SOCK_DGRAM);
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigReceiver;
use GigTest qw(:DEFAULT :dice);

my $node = start_node('receiver');
my $database = $node->connstr('postgres');
my $name = 'name-for-the-webhook-subscription';
my $uuid = '0187c66e-e7e5-811c-b006-2232f00f426a';

create_gigs($node, 'postgres');
$node->safe_psql('postgres', qq{
	SELECT gigs.create_gig_subscription('$name', 'https://example.com/', 'secret');
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/', NULL);
	CREATE ROLE receiver LOGIN;
	SELECT gigs.grant_gig_receiver('receiver')});

# ---------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------

my $receiver = GigReceiver->new("$database user=receiver", '--notify', 'gigs');
$receiver->wait_ready;

for my $kind (qw(partially_synced fully_synced added updated removed))
{
	my $body = payload("gigs.$kind");

	is($receiver->post($body, sign($body, 'secret')), '200 applied', "gigs.$kind is applied");
	is($node->safe_psql('postgres',
			'SELECT body = ' . bytea_literal($body) . ' FROM gigs.gig_event_log ORDER BY event_id DESC LIMIT 1'),
		't', '... and logged as it came');
}

my $late = payload('gigs.partially_synced') =~ s/60/30/r;
my $other = '{"event": "users.fully_synced", "name": "payroll", "data": {}}';
my $odd = hook(1, 1) =~ s/"added_count": 1/"added_count": "one"/r;
my $unsigned = $odd =~ s/payroll/unsigned/r;
my $unicode = hook(1, 2) =~ s/"data"/"note": "J\xc3\xbcrgen \\u00fc \\\\ \\"", "data"/r;
my $added = payload('gigs.added');
my @answers = (
	[ 'a duplicate', $added, sign($added, 'secret'), '200 duplicate' ],
	[ 'a late partial sync', $late, sign($late, 'secret'), '200 stale' ],
	[ 'an event of another family', $other, sign($other, 'secret'), '200 ignored' ],
	[ 'an event that is not understood', $odd, sign($odd, 'secret'), '200 quarantined' ],
	[ 'an event that is not ASCII', $unicode, sign($unicode, 'secret'), '200 applied' ],
	[ 'a body of 1 MB', hook(1, 3) . ' ' x 1_000_000, sign(hook(1, 3) . ' ' x 1_000_000, 'secret'), '200 applied' ],
	[ 'a forged signature', $added, sign($added, 'a guess'), 401 ],
	[ 'no signature', $added, undef, 401 ],
	[ 'a signature that is no text', $added, "\xff\xfe", 401 ],
	[ 'a signature that is too long', $added, 'a' x 1000, 401 ],
	[ 'a serialised body', $added =~ s/": /":/gr, sign($added, 'secret'), 401 ],
	[ 'a body that is no JSON', 'nonsense', sign('nonsense', 'secret'), 400 ],
	[ 'a body with a NUL', "\0", sign("\0", 'secret'), 400 ],
	[ 'a body that is not UTF-8', "{\"name\": \"\xff\"}", 'a' x 128, 400 ],
	[ 'a body that is nested too deeply', '[' x 200_000, 'a' x 128, 413 ],
	[ 'an empty body', '', sign('', 'secret'), 400 ],
	[ 'an unsigned event that is not understood', $unsigned, undef, 400 ]);
is($receiver->post($_->[1], $_->[2]), $_->[3], "$_->[0]: $_->[3]") for @answers;
is($node->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE position('\303\274rgen'::bytea IN body) > 0}),
	1, 'a body is logged byte for byte');

my $socket = $receiver->connect;
print $socket request('');
like((read_answer($socket))[2], qr/"sqlstate": "22032"/, 'an empty body is not a null one');
print $socket request('nonsense');
my ($status, $header, $content) = read_answer($socket);
is_deeply(JSON::PP::decode_json($content),
	{ outcome => 'rejected', sqlstate => '22032', message => 'malformed JSON at byte 0: Token "nonsense" is invalid' },
	'a rejection says why') or diag $content;
like($header, qr{^Content-Type: application/json\r$}m, '... as JSON');

# ---------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------

my $locker = $node->background_psql('postgres');

my @mixed = map {
	my $body = hook(10 + $_ % 3, $_);

	(
		[ signed_request($body), '200 applied' ],
		[ request($body, 'X-Argyle-Signature: ' . sign($body, 'a guess')), 401 ],
		[ signed_request($other), '200 ignored' ],
		[ request('nonsense'), 400 ])
} 1 .. 20;
my $nbatches = $receiver->metric('gigs_receiver_batch_events_count');

my @clients = ($receiver->hold_up($node, $locker, 9), $receiver->start_posts( map { $_->[0] } @mixed));
$receiver->wait_for_waiting(scalar @clients);
ok(!IO::Select->new(@clients)->can_read(0.3), 'nothing is answered before it is committed');
ask($locker, 'COMMIT');
is_deeply([ map { answer_of($_) } @clients ], [ ('200 applied') x 2, map { $_->[1] } @mixed ], '... and each gets its own answer then');
cmp_ok($receiver->metric('gigs_receiver_batch_events_count') - $nbatches, '<', @mixed / 4,
	'what arrives while calls are under way is ingested together');
is($receiver->metric('gigs_receiver_waiting_events'), 0, '... and no longer waits');
is($receiver->metric('gigs_receiver_waiting_bytes'), 0, '... nor takes memory');

# Requests that a client sends without waiting for answers.
@clients = ($receiver->connect);
print { $clients[0] } map { signed_request(hook(20, $_)) } 1 .. 5;
is_deeply([ map { answer_of($clients[0]) } 1 .. 5 ], [ ('200 applied') x 5 ], 'pipelined posts are answered in turn');

# ---------------------------------------------------------------------------
# Notifications
# ---------------------------------------------------------------------------

my $listener = $node->background_psql('postgres');
ask($listener, 'LISTEN gigs');
$receiver->wait_for('to have a connection that notifies',
	sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'receiver'}) == 3 });
$receiver->post_hook(30, 1);
my $heard = '';
$receiver->wait_for('to notify', sub { $heard = ask($listener, 'SELECT'); $heard =~ /notification/ });
like($heard, qr/Asynchronous notification "gigs" received/, 'consumers are notified');
$listener->quit;

# ---------------------------------------------------------------------------
# The admin address
# ---------------------------------------------------------------------------

is($receiver->admin('/live'), "200 live\n", '/live');
is($receiver->admin('/ready'), "200 ready\n", '/ready');
like($receiver->admin('/other'), qr/^404/, 'another path');
my $metrics = $receiver->admin('/metrics');
my @wanted = (
	qr/gigs_receiver_requests_total\{code="200"\} \d\d/,
	qr/gigs_receiver_requests_total\{code="401"\} \d\d/,
	qr/gigs_receiver_events_total\{outcome="quarantined"\} 1/,
	qr/gigs_receiver_rejections_total\{sqlstate="28000"\} \d\d/,
	qr/gigs_receiver_rejections_total\{sqlstate="22032"\} \d\d/,
	qr/gigs_receiver_request_seconds_bucket\{le="\+Inf"\} \d\d+/,
	qr/gigs_receiver_batch_seconds_count \d\d/,
	qr/gigs_receiver_shed_total 0/,
	qr/gigs_receiver_database_connects_total 3/,
	qr/gigs_receiver_database_lost_total 0/,
	qr/gigs_receiver_retries_total 0/,
	qr/gigs_receiver_database_up 1/,
	qr/gigs_receiver_last_commit_timestamp_seconds 1[0-9]{9}/,
	qr/gigs_receiver_build_info\{version="\d\S*",libmicrohttpd="\S+",libpq="\d+"\} 1/);
like($metrics, qr/^$_$/m, "/metrics has $_") for @wanted;
# Of Prometheus' text format: every sample belongs to a metric that is described.
my %described = map { $_ => 1 } $metrics =~ /^# TYPE (\w+) (?:counter|gauge|histogram)$/mg;
is_deeply([ grep { !/^(?:200 )?#/ && !(/^(\w+?)(?:_bucket|_sum|_count)?(?:\{[^{}]*\})? [0-9.e+-]+$/ && $described{$1}) } split /\n/, $metrics ],
	[], '... and is well-formed');

# ---------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------

my $idle = $receiver->connect;
@clients = ($receiver->hold_up($node, $locker, 39), $receiver->start_posts( map { signed_request(hook(40, $_)) } 1 .. 10));
$receiver->wait_for_waiting(12);
$receiver->terminate;
$receiver->wait_for('to stop accepting',
	sub { !IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $receiver->{port}) });
ask($locker, 'COMMIT');
is_deeply([ map { answer_of($_) } @clients ], [ ('200 applied') x 12 ], 'a receiver that ends answers what waits');
ok(is_closed($idle), '... closes idle connections');
is($receiver->finish, 0, '... and exits with 0');

# ---------------------------------------------------------------------------
# Logs
# ---------------------------------------------------------------------------

my $log = $receiver->log_text;
like($log, qr/gigs_receiver: info: version \d\S* receives \/webhooks\/argyle on 127\.0\.0\.1:\d+\n/, 'the log says what starts');
like($log, qr/gigs_receiver: warning: rejected a webhook: SQLSTATE /, '... what is rejected');
like($log, qr/gigs_receiver: info: shut down\n$/, '... and what ends');
unlike($log, qr/nonsense|secret|[0-9a-f]{16}/, '... but no bodies, signatures or secrets');

$receiver = GigReceiver->new("$database password=hidden", '--log-format', 'json');
$receiver->wait_ready;
$receiver->post('"\\"nonsense\\""');
$receiver->stop;
my @lines = map { eval { JSON::PP::decode_json($_) } || 0 } split /\n/, $receiver->log_text;
is(scalar(grep { !$_ || join(' ', sort keys %$_) ne 'level message time' } @lines), 0, 'it is a line of JSON a message, if wished');
unlike($receiver->log_text, qr/nonsense|hidden/, '... without bodies and passwords, either');

# ---------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------

# Runs the program.  Returns its exit code and what it prints.
sub run_program
{
	my ($output, $errors) = ('', '');

	eval {
		IPC::Run::run([ 'gigs_receiver', @_ ], '<', \undef, '>', \$output, '2>', \$errors,
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	};
	return ($? >> 8, $output, $errors);
}

my ($code, $help) = run_program('--help');
is($code, 0, '--help');
my @options = $help =~ /^  --([a-z-]+)/mg;
cmp_ok(@options, '>', 15, '... names options');
my $manual = slurp_file("$FindBin::RealBin/../../receiver/gigs_receiver.1");
is_deeply([ sort map { s/\\//gr } $manual =~ /^\.(?:BI|B) \\-\\-([a-z\\-]+)/mg ], [ sort @options ], '... as the man page does');
my $version = slurp_file("$FindBin::RealBin/../../gigs_webhooks.control") =~ /^default_version *= *'(.*)'/m ? $1 : '';
is_deeply([ run_program('--version') ], [ 0, "gigs_receiver $version\n", '' ], '--version');

my $config = PostgreSQL::Test::Utils::tempdir . '/receiver.conf';
my @refusals = (
	[ [ '--unknown' ], qr/unrecognized option '--unknown'\ngigs_receiver: try "gigs_receiver --help"/ ],
	[ [ 'argument' ], qr/unexpected argument "argument"/ ],
	[ [ '--sessions', '0' ], qr/value for "sessions" is out of range: "0"/ ],
	[ [ '--sessions', '2x' ], qr/invalid value for "sessions": "2x"/ ],
	[ [ '--sessions', '2s' ], qr/invalid value for "sessions": "2s"/ ],
	[ [ '--max-body-size', '999999999999999999999' ], qr/invalid value for "max-body-size"/ ],
	[ [ '--max-body-size', '1GB' ], qr/value for "max-body-size" is out of range: "1GB"/ ],
	[ [ '--answer-timeout', '-1' ], qr/invalid value for "answer-timeout"/ ],
	[ [ '--log-format', 'xml' ], qr/invalid value for "log-format": "xml"/ ],
	[ [ '--path', 'argyle' ], qr/"path" must begin with "\/"/ ],
	[ [ '--tls-key', 'key' ], qr/"tls-certificate" and "tls-key" belong together/ ],
	[ [ '--tls-key', '/', '--tls-certificate', '/' ], qr/could not read file "\/"/, 1 ],
	[ [ '--listen', 'nowhere' ], qr/invalid address for "listen": "nowhere": expected HOST:PORT/ ],
	[ [ '--listen', '127.0.0.1:http:80' ], qr/invalid address for "listen"/ ],
	[ [ '--listen', '127.0.0.1:' ], qr/invalid address for "listen": "127.0.0.1:"/ ],
	[ [ '--listen', '127.0.0.1:99999' ], qr/invalid address for "listen": "127.0.0.1:99999"/ ],
	[ [ '--database', 'password=not quoted' ], qr/^gigs_receiver: invalid value for "database": not a connection string or URI\n$/ ],
	[ [ '--listen', '192.0.2.1:1' ], qr/could not listen on "192.0.2.1:1"/, 1 ],
	[ [ '--config', "$config.none" ], qr/could not open configuration file/ ]);
for my $refusal (@refusals)
{
	my ($arguments, $message, $expected) = @$refusal;
	my ($exit_code, $output, $errors) = run_program('--listen', '127.0.0.1:0', @$arguments);

	like($errors, $message, "refused: @$arguments");
	is($exit_code, $expected || 2, '... with an exit code');
}

my @files = (
	[ "listen 127.0.0.1:80\n", qr/receiver.conf:1: expected "name = value"/ ],
	[ "# comment\n\nports = 1\n", qr/receiver.conf:3: unknown option "ports"/ ],
	[ "= 1\n", qr/receiver.conf:1: unknown option ""/ ],
	[ "sessions = two\n", qr/invalid value for "sessions": "two"/ ],
	[ 'path = /' . 'x' x 5000 . "\n", qr/receiver.conf:1: line is too long/ ]);
for my $file (@files)
{
	unlink $config;
	append_to_file($config, $file->[0]);
	my (undef, undef, $errors) = run_program('--config', $config);
	like($errors, $file->[1], 'refused in a file: ' . substr($file->[0], 0, 20) =~ s/\n/; /gr);
}

# Whatever a file has, the program reads it and goes on to the other options.
my %exit_codes;
for (1 .. 200)
{
	my @pieces = (@options, ' ', '=', "\n", '#', "\0", "\r", "\t", '1', '99999999999999999999', 'MB', 'min', '-', "\xff", 'x' x 5000);

	unlink $config;
	append_to_file($config, join '', map { pick(@pieces) } 1 .. pick(1 .. 30));
	$exit_codes{ (run_program('--config', $config, '--sessions', '0'))[0] }++;
}
is_deeply(\%exit_codes, { 2 => 200 }, 'files of any content are read');

# The command line goes before the environment, and that before the file.
unlink $config;
append_to_file($config, "# of the test\n path=/file \nmax-body-size = 1 kB\r\nsessions = 3\nlog-format = json");
{
	local $ENV{GIGS_RECEIVER_CONFIG} = $config;
	local $ENV{GIGS_RECEIVER_PATH} = '/environment';
	local $ENV{GIGS_RECEIVER_LOG_FORMAT} = 'lines';
	$receiver = GigReceiver->new($database, '--path', '/webhooks/argyle');
}
$receiver->wait_for('to open three sessions', sub { $receiver->metric('gigs_receiver_database_connects_total') == 3 });
is($receiver->post_hook(50, 1), '200 applied', 'options come from the command line,');
like($receiver->log_text, qr/gigs_receiver: info: version/, '... the environment,');
is($receiver->post('x' x 1025), 413, '... and a file');
is($receiver->post('x' x 1024), 400, '... with units');
is($receiver->stop, 0, '... and it ends');

# ---------------------------------------------------------------------------
# systemd
# ---------------------------------------------------------------------------

# Starts the program as systemd does, with sockets that are open already.
my $notify_path = PostgreSQL::Test::Utils::tempdir_short . '/notify';
my $notify = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => $notify_path) or die "could not create a socket: $!";
my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 10) or die "could not listen: $!";

sub notified
{
	IO::Select->new($notify)->can_read($PostgreSQL::Test::Utils::timeout_default) or return '';
	$notify->recv(my $message, 1000);
	return $message;
}

my $pid = fork // die "could not fork: $!";
if ($pid == 0)
{
	POSIX::dup2($listen->fileno, 3);
	open STDERR, '>', '/dev/null';
	exec 'env', "NOTIFY_SOCKET=$notify_path", 'LISTEN_FDS=1', "LISTEN_PID=$$", 'gigs_receiver', '--database', $database;
	die "could not run the receiver: $!";
}
is(notified(), 'READY=1', 'systemd is told when it is ready');
my $activated = bless { port => $listen->sockport }, 'GigReceiver';
my $answer = '503';
$activated->wait_for('to ingest', sub { ($answer = $activated->post_hook(60, 1)) ne '503' });
is($answer, '200 applied', '... and its sockets are used');
kill 'TERM', $pid;
is(notified(), 'STOPPING=1', '... and it is told of the end');
waitpid $pid, 0;
is($?, 0, '... which is in order');

# ---------------------------------------------------------------------------
# TLS
# ---------------------------------------------------------------------------

my $dir = PostgreSQL::Test::Utils::tempdir;
IPC::Run::run(
	[ qw(openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 1 -keyout), "$dir/key", '-out', "$dir/certificate" ],
	'<', \undef, '>&', \my $ignored) or die 'could not make a certificate';
$receiver = GigReceiver->new($database, '--tls-certificate', "$dir/certificate", '--tls-key', "$dir/key");
$receiver->wait_ready;
my ($output, $errors) = ('', '');
IPC::Run::run(
	[ qw(openssl s_client -quiet -verify_return_error -CAfile), "$dir/certificate", '-connect', "127.0.0.1:$receiver->{port}" ],
	'<', \signed_request(hook(70, 1), 'Connection: close'), '>', \$output, '2>', \$errors,
	IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
like($output, qr/^HTTP\/1\.1 200 OK\r\n.*"applied"/s, 'it speaks TLS') or diag $errors;
$socket = $receiver->connect;
print $socket signed_request(hook(70, 2));
is(eval { answer_of($socket) } || 'closed', 'closed', '... and nothing else then');
is($receiver->stop, 0, '... and ends');

is(troubles($node, 'postgres'), '', 'log and accounts agree');
$locker->quit;
$node->stop;

done_testing();
