# Requests that are malformed, ambiguous, slow or too many: each gets its answer, and
# the receiver goes on.
#
# GIGS_LONG raises the number of connections.

use strict;
use warnings;

use Errno;
use FindBin;
use IO::Select;
use Socket qw(SOL_SOCKET SO_RCVBUF inet_aton pack_sockaddr_in);
use Test::More;
use Time::HiRes qw(sleep);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigReceiver;
use GigTest;

my $node = start_node('requests');
my $database = $node->connstr('postgres');

create_gigs($node, 'postgres');

my $receiver = GigReceiver->new($database, '--request-timeout', '2s', '--max-connections', '100');
$receiver->wait_ready;

my $n = 0;

# Returns a request with a body and a signature that are good, but for what is
# replaced: the request line, the header of the body's length, and the body.
sub variant
{
	my ($headers, %replaced) = @_;
	my $body = hook(1, ++$n);
	my $content = $replaced{content} ? $replaced{content}->($body) : $body;
	my $line = $replaced{line} || 'POST /webhooks/argyle HTTP/1.1';
	my $length = sprintf '%d', length $body;

	return join "\r\n", $line, 'Host: localhost', 'X-Argyle-Signature: ' . sign($body, 'secret'),
	  (map { s/LENGTH/$length/gr } @$headers), '', $content;
}

sub chunked { my ($body) = @_; return sprintf "%x\r\n%s\r\n0\r\n\r\n", length $body, $body; }

# Returns the processor time that a receiver has used, in hundredths of a second.
sub cpu_time
{
	my ($self) = @_;
	my $file = "/proc/$self->{program}{pid}/stat";

	return if !-r $file;
	my @fields = split / /, slurp_file($file) =~ s/.*\) //sr;
	return $fields[11] + $fields[12];
}

my $length = 'Content-Length: LENGTH';
my $chunked = 'Transfer-Encoding: chunked';

# Whether a second post on the same connection is answered as well is told by "open".
# Of two answers, one is that of another version of libmicrohttpd.
my @requests = (
	[ 'a post', variant([$length]), '200 applied', 'open' ],
	[ 'a chunked body', variant([$chunked], content => \&chunked), '200 applied', 'open' ],
	[ 'two chunks', variant([$chunked], content => sub { "5\r\n" . substr($_[0], 0, 5) . "\r\n" . chunked(substr $_[0], 5) }), '200 applied', 'open' ],
	[ 'HTTP/1.0', variant([$length], line => 'POST /webhooks/argyle HTTP/1.0'), '200 applied', 'closed' ],
	[ 'a client that closes', variant([ $length, 'Connection: close' ]), '200 applied', 'closed' ],
	[ 'a form', variant([ $length, 'Content-Type: application/x-www-form-urlencoded' ]), '200 applied', 'open' ],
	[ 'a multipart form', variant([ $length, 'Content-Type: multipart/form-data; boundary=x' ]), '200 applied', 'open' ],
	[ 'a query', variant([$length], line => 'POST /webhooks/argyle?a=b HTTP/1.1'), '200 applied', 'open' ],
	[ 'a signature in lower case', variant([$length]) =~ s/X-Argyle-Signature/x-argyle-signature/r, '200 applied', 'open' ],

	[ 'two equal lengths', variant([ $length, $length ]), 400, 'closed' ],
	[ 'two lengths', variant([ $length, 'Content-Length: 5' ]), 400, 'closed' ],
	[ 'two lengths in one', variant(['Content-Length: LENGTH, LENGTH']), 400, 'closed' ],
	[ 'a length and chunks', variant([ $length, $chunked ], content => \&chunked), 400, 'closed' ],
	[ 'chunks and a length', variant([ $chunked, $length ], content => \&chunked), 400, 'closed' ],
	[ 'two codings', variant([ $chunked, $chunked ], content => \&chunked), 400, 'closed' ],
	[ 'gzip and chunks', variant(['Transfer-Encoding: gzip, chunked'], content => \&chunked), '400|501', 'closed' ],
	[ 'chunks that are misspelt', variant(['Transfer-Encoding: xchunked'], content => \&chunked), '400|501', 'closed' ],
	[ 'chunks in HTTP/1.0', variant([$chunked], content => \&chunked, line => 'POST /webhooks/argyle HTTP/1.0'), 400, 'closed' ],
	[ 'a folded header', variant([ 'X-Folded: a', ' b', $length ]), 400, 'closed' ],
	[ 'a header folded by a tab', variant([ 'X-Folded: abcdef', "\tb", $length ]), 400, 'closed' ],
	[ 'a folded length', variant([ 'Content-Length:', ' LENGTH' ]), 400, 'closed' ],
	[ 'a folded name', variant([ 'X-Folded: a', ' Content-Length: LENGTH', $length ]), 400, 'closed' ],
	[ 'space before the colon', variant(['Content-Length : LENGTH']), 400, 'closed' ],
	[ 'two signatures', variant([ $length, 'X-Argyle-Signature: ' . 'a' x 128 ]), 400, 'closed' ],
	[ 'a NUL in a header', variant([ "X-Odd: a\0b", $length ]), 400, 'closed' ],
	[ 'a NUL in the last header', variant([ $length, "X-Odd: a\0b" ]), 400, 'closed' ],
	[ 'a line that begins with a NUL', variant([ "\0X-Odd: a", $length ]), 400, 'closed' ],
	[ 'a line that begins with a colon', variant([ $length, ': Content-Length: 5' ]), 400, 'closed' ],
	[ 'a line of a colon', variant([ $length, ':' ]), 400, 'closed' ],
	[ 'a negative length', variant(['Content-Length: -1']), 400, 'closed' ],
	[ 'a length with a sign', variant(['Content-Length: +LENGTH']), 400, 'closed' ],
	[ 'a length with a unit', variant(['Content-Length: LENGTH bytes']), 400, 'closed' ],
	[ 'a length in hexadecimal', variant(['Content-Length: 0x10']), 400, 'closed' ],
	[ 'a length beyond all', variant([ 'Content-Length: ' . '9' x 30 ]), '400|413', 'closed' ],
	[ 'chunks that are none', variant([$chunked], content => sub { "zz\r\n$_[0]\r\n" }), 400, 'closed' ],
	[ 'no host', variant([$length]) =~ s/Host: localhost\r\n//r, 400, 'closed' ],
	[ 'no request', "nonsense\r\n\r\n", 'closed', 'closed' ],
	[ 'TLS', "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" . "\0" x 100 . "\r\n\r\n", 'closed', 'closed' ],
	[ 'HTTP/2', "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, 'closed' ],
	[ 'HTTP/0.9', "GET /webhooks/argyle\r\n\r\n", 400, 'closed' ],

	[ 'a body that is too large', variant(['Content-Length: 100000000']), 413, 'closed' ],
	[ 'a large header', variant([ $length, 'X-Large: ' . 'x' x 1500 ]), '200 applied', 'open' ],
	[ 'a header that is too large', variant([ $length, 'X-Large: ' . 'x' x 30_000 ]), 431, 'closed' ],
	[ 'too many headers', variant([ $length, map { "X-$_: 1" } 1 .. 200 ]), 431, 'closed' ],

	[ 'no length', variant([]) =~ s/(\r\n\r\n).*/$1/sr, 411, 'open' ],
	[ 'another path', variant([$length], line => 'POST /webhooks HTTP/1.1'), 404, 'open' ],
	[ 'a path in other words', variant([$length], line => 'POST /webhooks/../webhooks/argyle HTTP/1.1'), 404, 'open' ],
	[ 'GET', "GET /webhooks/argyle HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, 'open' ],
	[ 'PUT', variant([$length], line => 'PUT /webhooks/argyle HTTP/1.1'), 405, 'open' ],
	[ 'another method', variant([$length], line => 'NONSENSE /webhooks/argyle HTTP/1.1'), 405, 'open' ]);

for my $case (@requests)
{
	my ($title, $bytes, $expected, $then) = @$case;
	my $socket = $receiver->connect;

	print $socket $bytes;
	like(answer_of($socket), qr/^(?:$expected)$/, "$title: $expected");
	if ($then eq 'closed')
	{
		ok(is_closed($socket), '... and the connection is closed');
	}
	else
	{
		print $socket variant([$length]);
		is(answer_of($socket), '200 applied', '... and the connection goes on');
	}
}

my ($status, $header);
my $socket = $receiver->connect;
print $socket "GET /webhooks/argyle HTTP/1.1\r\nHost: localhost\r\n\r\n";
($status, $header) = read_answer($socket);
like($header, qr/^Allow: POST\r$/m, '405 says what is allowed');

# What is committed is answered, even if its header fills the memory of the connection.
my %answers;
my $nlogged = $node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log');
for (my $size = 3000; $size < 3700; $size += 5)
{
	$socket = $receiver->connect;
	print $socket variant([ $length, 'X-Large: ' . 'x' x $size ]);
	$answers{ eval { answer_of($socket) } || 'closed' }++;
}
cmp_ok($answers{'200 applied'}, '>', 0, 'a header that fits');
cmp_ok($answers{431}, '>', 0, '... and larger ones');
is($node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log') - $nlogged,
	$answers{'200 applied'}, '... and each that is logged is answered');

# A chunked body has no length that could be checked before.
$socket = $receiver->connect;
print $socket variant([$chunked], content => sub { chunked('x' x 9_000_000) });
is(answer_of($socket), 413, 'a chunked body that is too large is read and refused');
print $socket variant([$length]);
is(answer_of($socket), '200 applied', '... and the connection goes on');

# Expect: 100-continue
$socket = $receiver->connect;
my ($head, $body) = split /(?<=\r\n\r\n)/, variant([ $length, 'Expect: 100-continue' ]);
print $socket $head;
is((read_answer($socket))[0], 100, 'a client that asks first may go on');
print $socket $body;
is(answer_of($socket), '200 applied', '... and its post is ingested');
$socket = $receiver->connect;
print $socket variant([ 'Content-Length: 100000000', 'Expect: 100-continue' ], content => sub { '' });
is(answer_of($socket), 413, '... but not if the body is too large');

# A request that comes in pieces, and one that the client ends by closing its side.
$socket = $receiver->connect;
for my $piece (variant([$length]) =~ /(.{1,50})/sg)
{
	print $socket $piece;
	sleep 0.001;
}
is(answer_of($socket), '200 applied', 'a post in small pieces is ingested');
$socket = $receiver->connect;
print $socket variant([$length]);
shutdown $socket, 1;
is(answer_of($socket), '200 applied', 'a client that has closed its side is answered');
ok(is_closed($socket), '... and the connection is closed');
$socket = $receiver->connect;
print $socket substr(variant([$length]), 0, -1);
shutdown $socket, 1;
ok(is_closed($socket), 'a post that ends early is not answered');

# ---------------------------------------------------------------------------
# Slow and many clients
# ---------------------------------------------------------------------------

my %slow = (
	'no request' => '',
	'half a header' => substr(variant([$length]), 0, 60),
	'half a body' => substr(variant([$length]), 0, -60),
	'a chunk without end' => variant([$chunked], content => sub { "ff\r\nxx" }),
	'a chunk extension without end' => variant([$chunked], content => sub { '5;' . 'x' x 9_000 }),
	'half a request after one' => variant([$length]) . 'POST /webhooks');
my %clients = map { $_ => $receiver->connect } keys %slow;
print { $clients{$_} } $slow{$_} for sort keys %slow;
is(answer_of($clients{'half a request after one'}), '200 applied', 'a request before half a one is answered');
SKIP:
{
	my $used = cpu_time($receiver);

	skip 'there is no /proc', 1 if !defined $used;
	skip 'Valgrind is slow', 1 if $PostgreSQL::Test::Utils::timeout_default > 600;
	sleep 1;
	cmp_ok(cpu_time($receiver) - $used, '<', 30, '... and the others do not keep the receiver busy');
}
# Of this, newer versions of libmicrohttpd say what they think.
like(answer_of(delete $clients{'a chunk extension without end'}), qr/^(?:closed|4\d\d)$/, 'a chunk extension without end is refused');
ok(is_closed($clients{$_}), "$_: the connection is closed after a while") for sort keys %clients;

# One byte at a time does not count as progress.
$socket = $receiver->connect;
for my $byte (split //, variant([$length]))
{
	last if !print {$socket} $byte or IO::Select->new($socket)->can_read(0.05);
}
ok(is_closed($socket), 'a slow client is disconnected');

# Trailers, one of which ends where the memory of the connection does.
my @trailers = map { my $trailer = 'T: ' . 'x' x $_; variant([$chunked], content => sub { substr(chunked($_[0]), 0, -2) . "$trailer\r\n" }) } 3560 .. 3650;
is_closed($_) for $receiver->start_posts(@trailers);

# A client that sends requests, but does not read the answers.
$socket = IO::Socket::INET->new(Proto => 'tcp') or die "could not create a socket: $!";
setsockopt $socket, SOL_SOCKET, SO_RCVBUF, 1024;
connect $socket, pack_sockaddr_in($receiver->{port}, inet_aton('127.0.0.1')) or die "could not connect: $!";
$socket->blocking(0);
$SIG{PIPE} = 'IGNORE';
my $many = request('x' x 1_000) x 100;
my $end = time + $PostgreSQL::Test::Utils::timeout_default;
my ($sent, $written) = (0, 0);
while (IO::Select->new($socket)->can_write(5) && time < $end)
{
	$written = syswrite $socket, $many, length($many) - $sent, $sent;
	last if !defined $written && !$!{EAGAIN};
	$sent = ($sent + ($written || 0)) % length $many;
}
ok(!defined $written && ($!{ECONNRESET} || $!{EPIPE}), 'a client that does not read is disconnected') or diag $!;

# More clients than there may be have to wait, until some are gone.
my @idle = map { $receiver->connect } 1 .. 120;
is($receiver->post_hook(2, 1), '200 applied', 'clients that do nothing keep others out for a while only');
is($receiver->admin('/live'), "200 live\n", '... and not from the admin address');
@idle = ();

my $nconnections = $ENV{GIGS_LONG} ? 1_000_000 : 5_000;
my $answered = 0;
for my $i (1 .. $nconnections)
{
	my $client = $receiver->connect;

	# most say nothing, or leave before their answer
	next if $i % 10;
	print $client variant([$length]);
	next if $i % 50;
	$answered++ if answer_of($client) eq '200 applied';
}
is($answered, $nconnections / 50, "$nconnections connections, one after the other");

# What is not answered has been ingested all the same, or was not read.
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'), '<=', $n + 1, 'nothing is logged that was not posted');
is($receiver->metric('gigs_receiver_shed_total'), 0, 'nothing is refused for want of memory');
$receiver->wait_for('to have no requests', sub { $receiver->metric('gigs_receiver_waiting_bytes') == 0 });
is($receiver->metric('gigs_receiver_waiting_events'), 0, 'no memory is held in the end');
my $ended_at = time;
is($receiver->stop, 0, 'the receiver ends in order');
cmp_ok(time - $ended_at, '<', 15, '... and at once, since no connection is left');
is(troubles($node, 'postgres'), '', 'log and accounts agree');
$node->stop;

done_testing();
