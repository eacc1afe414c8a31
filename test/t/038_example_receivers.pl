# gigs_receiver and the receivers of examples/receivers all keep the same contract:
# what they answer, and that the bytes of a body reach the tables as they were sent.
#
# A receiver is skipped if its language or a package is missing.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FindBin;
use IPC::Run ();
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;
use GigTest;
use GigWebServers;

my $tree = "$FindBin::RealBin/../..";
my $path = '/webhooks/argyle';
my $limit = 8 * 1024 * 1024;
my $name = 'name-for-the-webhook-subscription';
my $secret = 'the secret of the contract';

# ---------------------------------------------------------------------------
# The receivers
# ---------------------------------------------------------------------------

sub runs
{
	my (@command) = @_;
	my $output;

	return eval { IPC::Run::run(\@command, '<', \undef, '>&', \$output) };
}

my $python = python(qw(psycopg psycopg_pool starlette uvicorn));
my $gopath = '/usr/share/gocode';

# Of each: what it needs and whether that is there; the directory that is copied,
# and the command that builds the copy, in it; the command that starts it there.
# A build that cannot reach its registry counts as something missing.
my @receivers = (
	{
		name => 'gigs_receiver',
		needs => 'nothing',
		found => sub { 1 },
		start => sub { 'gigs_receiver', '--listen', "127.0.0.1:$_[0]" },
		is_program => 1,
	},
	{
		name => 'node',
		needs => 'node and npm',
		found => sub { runs('node', '--version') && runs('npm', '--version') },
		from => 'examples/receivers/node',
		build => [qw(npm ci --no-audit --no-fund --fetch-retries=1 --loglevel=error)],
		start => sub { 'node', 'receiver.js' },
	},
	{
		name => 'python',
		needs => 'Python with starlette, uvicorn, psycopg 3 and psycopg_pool',
		found => sub { defined $python },
		from => 'examples/receivers/python',
		start => sub { $python, '-m', 'uvicorn', '--port', $_[0], 'receiver:app' },
	},
	{
		name => 'go',
		needs => 'Go and pgx',
		found => sub { runs('go', 'version') && -d "$gopath/src/github.com/jackc/pgx/v4" },
		from => 'examples/receivers/go',
		build => [ 'go', 'build', '-o', 'receiver', 'receiver.go' ],
		env => { GO111MODULE => 'off', GOPATH => $gopath, GOFLAGS => '' },
		start => sub { './receiver', '-listen', "127.0.0.1:$_[0]" },
	},
	{
		name => 'ruby',
		needs => 'Ruby with sinatra, puma and pg',
		found => sub { runs('ruby', '-e', 'require "pg"; require "puma"; require "sinatra/base"; require "rackup" if Sinatra::VERSION.to_i > 3') },
		from => 'examples/receivers/ruby',
		start => sub { 'ruby', 'receiver.rb' },
	},
	{
		name => 'php',
		needs => 'PHP with PDO for PostgreSQL',
		found => sub { runs('php', '-r', 'exit(extension_loaded("pdo_pgsql") ? 0 : 1);') },
		from => 'examples/receivers/php',
		env => { PHP_CLI_SERVER_WORKERS => 4 },
		start => sub { 'php', '-S', "127.0.0.1:$_[0]", 'receiver.php' },
	});

# Starts building a receiver in a copy of its directory.
sub begin_build
{
	my ($receiver) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir($receiver->{name}) . '/build';

	return if !$receiver->{found}->();
	$receiver->{dir} = '.';
	return if !$receiver->{from};
	PostgreSQL::Test::RecursiveCopy::copypath("$tree/$receiver->{from}", $dir,
		filterfn => sub { $_[0] ne 'node_modules' });
	$receiver->{dir} = $dir;
	return if !$receiver->{build};
	local %ENV = (%ENV, GOCACHE => "$dir/.cache", %{ $receiver->{env} || {} });
	$receiver->{output} = '';
	$receiver->{run} = IPC::Run::start($receiver->{build}, '<', \undef, '>&', \$receiver->{output}, init => sub { chdir $dir });
	return;
}

# Returns what is missing, once the receiver is built.
sub end_build
{
	my ($receiver) = @_;
	my $run = delete $receiver->{run};

	return $receiver->{needs} if !$receiver->{dir};
	return '' if !$run || $run->finish;
	return "the registry of $receiver->{build}[0]" if $receiver->{output} =~ /ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|CERT/;
	die "could not build $receiver->{name}: $receiver->{output}";
}

# Only the receivers' own limit on bodies is tested.
my $node = start_node('receivers', "gigs_webhooks.max_body_size = '16MB'");

# The receivers find functions in the schema "failing" first.  These have a commit
# fail as often, and with such an SQLSTATE, as a row of "failing.plan" says.  A
# trigger on a table of the extension could not be deferred.  Its message stands for
# one that quotes a body.
$node->safe_psql(
	'template1', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	CREATE ROLE receiver LOGIN;
	ALTER ROLE receiver SET search_path = failing, gigs;
	SELECT gigs.grant_gig_receiver('receiver');

	CREATE SCHEMA failing;
	CREATE TABLE failing.plan (sqlstate text, times int);
	CREATE SEQUENCE failing.commits;
	CREATE FUNCTION failing.fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
		DECLARE
			p record;
		BEGIN
			FOR p IN SELECT * FROM failing.plan LOOP
				IF nextval('failing.commits') <= p.times THEN
					RAISE 'not committed: gigs.added' USING ERRCODE = p.sqlstate;
				END IF;
			END LOOP;
			RETURN NULL;
		END $$;
	CREATE TABLE failing.call ();
	CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON failing.call
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION failing.fail();
	CREATE FUNCTION failing.try_ingest_gig_event(body bytea, sig text)
	RETURNS TABLE (outcome gigs.gig_ingest_outcome, event_id bigint, sqlstate text, message text)
	LANGUAGE sql AS $$
		INSERT INTO failing.call DEFAULT VALUES;
		SELECT outcome, event_id, sqlstate, message FROM gigs.try_ingest_gig_event(body, sig);
	$$;
	CREATE FUNCTION failing.ingest_gig_events(bodies bytea[], sigs text[])
	RETURNS TABLE (ord integer, outcome gigs.gig_ingest_outcome, event_id bigint, sqlstate text, message text)
	LANGUAGE sql AS $$
		INSERT INTO failing.call DEFAULT VALUES;
		SELECT ord, outcome, event_id, sqlstate, message FROM gigs.ingest_gig_events(bodies, sigs);
	$$;
	GRANT USAGE ON SCHEMA failing TO receiver;
	GRANT INSERT ON failing.call TO receiver;
}
	  . 'SELECT gigs.create_gig_subscription('
	  . text_literal($name)
	  . ", 'https://example.com/', "
	  . text_literal($secret)
	  . "), gigs.create_gig_subscription('unsigned', 'https://example.com/', NULL);");

sub start
{
	my ($receiver) = @_;
	my $port = free_port();
	my $cwd = POSIX::getcwd();

	$node->safe_psql('postgres', "CREATE DATABASE $receiver->{name}");
	chdir $receiver->{dir} or die "could not enter $receiver->{dir}: $!";
	$receiver->{server} = start_web_server(
		$port,
		{
			%{ $receiver->{env} || {} },
			PGHOST => $node->host,
			PGPORT => $node->port,
			PGUSER => 'receiver',
			PGDATABASE => $receiver->{name},
			PORT => $port
		},
		$receiver->{start}->($port));
	chdir $cwd;
	return;
}

my @running;
begin_build($_) for @receivers;
for my $receiver (@receivers)
{
	my $missing = end_build($receiver);

	if ($missing eq '') { start($receiver); push @running, $receiver; next; }
  SKIP:
	{
		diag("$receiver->{name} is skipped, missing: $missing");
		skip("missing: $missing", 1);
	}
}

# ---------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------

my $json = JSON::PP->new->utf8;

# Returns an event's body.  The bytes of the note are part of it as they are.
sub event
{
	my ($account, $note) = @_;

	return sprintf '{"event": "gigs.added", "name": "%s", "data": {"account": "%s", "user": "%s", '
	  . '"available_from": null, "available_to": null, "available_count": 1, "added_count": 1, '
	  . '"added_from": null, "added_to": null, "note": "%s"}}', $name, account($account), account(0), $note;
}

sub account { return sprintf 'a0000000-0000-4000-8000-%012d', $_[0] }

sub headers
{
	my ($signature) = @_;

	return { 'Content-Type' => 'application/json',
		defined $signature ? ('X-Argyle-Signature' => $signature) : () };
}

# Posts a body.  Returns the status, the decoded answer and the headers.
sub post
{
	my ($receiver, $body, $headers) = @_;
	my $response = request($receiver->{server}, 'POST', $path, $headers, $body);

	return ($response->{status}, eval { $json->decode($response->{content}) } || {}, $response->{headers});
}

# Returns what has been stored since the last call: for each row the table, the
# outcome, the event's id and the body's digest.
sub stored
{
	my ($receiver) = @_;
	my @rows = split /\n/, ask($receiver->{session}, qq{
		WITH c AS (SELECT coalesce(max(event_id), 0) AS log FROM seen.log),
			new AS (
				INSERT INTO seen.log SELECT event_id FROM gigs.gig_event_log
				WHERE event_id > (SELECT log FROM c) RETURNING event_id),
			quarantined AS (
				INSERT INTO seen.quarantine SELECT quarantine_id FROM gigs.gig_quarantine
				WHERE quarantine_id NOT IN (SELECT quarantine_id FROM seen.quarantine) RETURNING quarantine_id)
		SELECT format('%s %s %s', outcome, event_id, coalesce(encode(sha256(body), 'hex'), 'no body'))
		FROM gigs.gig_event_log JOIN new USING (event_id)
		UNION ALL
		SELECT format('quarantined %s', encode(sha256(body), 'hex'))
		FROM gigs.gig_quarantine JOIN quarantined USING (quarantine_id)});

	return join ', ', @rows;
}

# Posts a body, and tests the answer and what is stored.
sub accepts
{
	my ($receiver, $title, $outcome, $body, $headers) = @_;
	my ($status, $answer) = post($receiver, $body, $headers || headers(sign($body, $secret)));
	my $id = defined $answer->{event_id} ? $answer->{event_id} : $receiver->{is_program} ? qr/\d+/ : '';

	is("$status " . ($answer->{outcome} || ''), "200 $outcome", $title);
	my $stored =
	    $outcome eq 'ignored' ? ''
	  : $outcome eq 'quarantined' ? 'quarantined ' . sha256_hex($body)
	  : "$outcome $id " . ($outcome eq 'duplicate' ? 'no body' : sha256_hex($body));
	like(stored($receiver), qr/^$stored$/, '... and is stored as it was sent');
	return;
}

sub rejects
{
	my ($receiver, $title, $expected, $body, $headers) = @_;
	my ($status, $answer) = post($receiver, $body, $headers || headers(sign($body, $secret)));

	is($status, $expected, $title);
	like($answer->{message}, qr/./, '... with a message');
	is(stored($receiver), '', '... and nothing is stored');
	return;
}

# ---------------------------------------------------------------------------
# The contract
# ---------------------------------------------------------------------------

sub check_outcomes
{
	my ($receiver) = @_;
	my $added = payload('gigs.added');

	for my $kind (qw(partially_synced fully_synced added updated removed))
	{
		accepts($receiver, "a genuine gigs.$kind is applied", 'applied', payload("gigs.$kind"));
	}
	accepts($receiver, 'a second one is a duplicate', 'duplicate', $added);
	accepts($receiver, 'a late gigs.partially_synced is stale', 'stale',
		payload('gigs.partially_synced') =~ s/"days_synced": \K\d+/1/r);
	accepts($receiver, 'another family is ignored', 'ignored', qq({"event": "paystubs.added", "name": "$name"}));
	accepts($receiver, 'an unknown gigs event is quarantined', 'quarantined', qq({"event": "gigs.sold", "name": "$name"}));
	accepts($receiver, 'an odd value is quarantined', 'quarantined', event(1, '') =~ s/"available_count": \K1/"many"/r);

	my $body = event(2, '');
	my $signature = sign($body, $secret);
	rejects($receiver, 'a forged webhook is refused', 401, $body, headers(sign($body, 'a guess')));
	rejects($receiver, '... and one without a signature', 401, $body, headers(undef));
	accepts($receiver, '... unless its subscription has no secret', 'applied', event(3, '') =~ s/$name/unsigned/r, headers(undef));
	rejects($receiver, '... and one with an empty signature', 401, $body, headers(''));
	is(end_request(begin_request($receiver->{server}, 'POST', $path, headers("\xff\xfe"), $body)), 401, '... and one whose signature is no text');
	rejects($receiver, '... and one that was serialised again', 401, $json->canonical->encode($json->decode($body)), headers($signature));
	rejects($receiver, '... and one with another end', 401, "$body\n", headers($signature));
	accepts($receiver, 'the genuine one is applied', 'applied', $body, headers($signature));
	return;
}

sub check_bytes
{
	my ($receiver) = @_;
	my $account = 10;
	my %note = (
		'UTF-8' => "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x9a\x95",
		'characters as \u escapes' => '\u00e4 \u20ac \ud83d\ude95 \u0041',
		'backslashes' => '\\\\ \\\\\\\\ \\/ \\"',
		'what looks like escapes of bytea' => '\\\\x41 \\\\101 \\\\000 \\\\\\\\x \\\\134',
		'\u0000' => '\u0000',
		'percent signs, ampersands and pluses' => '%00 %zz &a[]=1;+=%',
		'placeholders' => '$1 :name ::text ? %s %(a)s {0} \'\'',
		'a megabyte' => '0123456789abcdef' x 65536);

	for my $what (sort keys %note)
	{
		accepts($receiver, "a body with $what is applied", 'applied', event($account++, $note{$what}));
	}
	my $body = event($account++, 'form=%zz&a=1');
	accepts($receiver, 'a body that says it is a form is applied', 'applied', $body,
		{ %{ headers(sign($body, $secret)) }, 'Content-Type' => 'application/x-www-form-urlencoded' });
	accepts($receiver, 'a body of 8 MB is applied', 'applied',
		event($account, 'x' x ($limit - length event($account, ''))));
	is(end_request(begin_request($receiver->{server}, 'POST', $path, headers(undef), 'x' x ($limit + 1))), 413, 'a larger body is refused');

	rejects($receiver, 'an empty body is refused', 400, '');
	rejects($receiver, '... and one that is not JSON', 400, '[');
	rejects($receiver, '... and one that is not UTF-8', 400, event(40, "\xff\xc3"));
	rejects($receiver, '... and one that is Latin-1', 400, event(40, "\xe4"));
	rejects($receiver, '... and one with a zero byte', 400, event(40, "a\0b"));
	rejects($receiver, '... and one that is a bytea literal', 400, '\x' . unpack 'H*', event(40, ''));
	return;
}

sub check_routes
{
	my ($receiver) = @_;
	my $body = event(50, '');
	my $headers = headers(sign($body, $secret));

	is(request($receiver->{server}, 'POST', '/webhooks', $headers, $body)->{status}, 404, 'another path is not found');
	is(request($receiver->{server}, 'GET', '/')->{status}, 404, '... neither is the root');
	is(request($receiver->{server}, 'GET', $path)->{status}, 405, 'GET is not allowed');
	is(request($receiver->{server}, 'PUT', $path, $headers, $body)->{status}, 405, '... neither is PUT');
	is(stored($receiver), '', '... and nothing is stored');
	return;
}

# Commits fail after the row of the result has been sent.
sub check_commits
{
	my ($receiver) = @_;
	my $body = event(60, '');

	ask($receiver->{session}, q{INSERT INTO failing.plan VALUES ('P0001', 1000)});
	my ($status, undef, $headers) = post($receiver, $body, headers(sign($body, $secret)));
	is($status, 503, 'a commit that fails is not acknowledged');
	like($headers->{'retry-after'}, qr/^\d+$/, '... but asked for again');
	is(stored($receiver), '', '... and nothing is stored');
	for my $sqlstate ('40001', '40P01')
	{
		ask($receiver->{session},
			qq{UPDATE failing.plan SET sqlstate = '$sqlstate', times = 2;
			SELECT setval('failing.commits', 1, false)});
		accepts($receiver, "a commit that fails twice with $sqlstate is repeated", 'applied', $body =~ s/00060/$sqlstate eq '40001' ? '00061' : '00062'/er);
	}
	ask($receiver->{session}, 'DELETE FROM failing.plan');
	accepts($receiver, 'the first one is applied when it comes again', 'applied', $body);
	return;
}

# One account is locked; others need not wait for it.
sub check_pool
{
	my ($receiver) = @_;
	my $session = $node->background_psql($receiver->{name}, on_error_stop => 0);
	my ($locked, $other) = (event(71, '') =~ s/_count": 1/_count": 2/r, event(70, ''));

	accepts($receiver, 'an account is created', 'applied', event(71, ''));
	ask($session, "BEGIN; SELECT FROM gigs.gig_account_sync WHERE account_id = '" . account(71) . "' FOR UPDATE");
	my $waiting = begin_request($receiver->{server}, 'POST', $path, headers(sign($locked, $secret)), $locked);
	wait_for_locks($node, $receiver->{name}, 1);
	accepts($receiver, 'a webhook does not wait for that of a locked account', 'applied', $other);
	ask($session, 'COMMIT');
	is(end_request($waiting), 200, '... which is answered later');
	stored($receiver);
	$session->quit;
	return;
}

for my $receiver (@running)
{
	subtest $receiver->{name} => sub {
		my $begun = time;

		$receiver->{session} = $node->background_psql($receiver->{name}, on_error_stop => 0);
		ask($receiver->{session}, 'CREATE SCHEMA seen; CREATE TABLE seen.log (event_id bigint); CREATE TABLE seen.quarantine (quarantine_id bigint)');
		check_outcomes($receiver);
		check_bytes($receiver);
		check_routes($receiver);
		# It does not look for functions in other schemas than that of the extension.
		check_commits($receiver) if !$receiver->{is_program};
		check_pool($receiver);
		$receiver->{session}->quit;
		note sprintf '%s: %.1f s', $receiver->{name}, time - $begun;
	};
}

# ---------------------------------------------------------------------------
# nginx as the documentation configures it, in front of a receiver
# ---------------------------------------------------------------------------

my $page = slurp_file("$tree/doc/receive.md");
my ($nginx) = grep { -x } map { "$_/nginx" } split(/:/, $ENV{PATH}), '/usr/sbin';

# Starts nginx with the page's servers.  Only addresses and TLS are replaced.
sub start_nginx
{
	my ($receiver) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir('nginx');
	my $port = free_port();
	my ($servers) = $page =~ /^```nginx\n(.*?)^```/ms or die 'the page has no configuration of nginx';

	$servers =~ s/listen 443 ssl;/listen 127.0.0.1:$port;/ or die 'the page does not listen';
	$servers =~ s/127\.0\.0\.1:8080/127.0.0.1:$receiver->{server}{port}/ or die 'the page names no receiver';
	$servers =~ s/^ *ssl_certificate.*\n//mg;
	append_to_file("$dir/conf", join "\n",
		'daemon off;', "pid $dir/pid;", 'error_log stderr;', 'events {}', 'http {', 'access_log off;',
		(map { "${_}_temp_path $dir/$_;" } qw(client_body proxy fastcgi uwsgi scgi)), $servers, '}', '');
	return start_web_server($port, {}, $nginx, '-e', 'stderr', '-p', $dir, '-c', "$dir/conf");
}

SKIP:
{
	skip('there is no nginx', 1) if !$nginx;
	skip('there is no receiver', 1) if !@running;
	subtest "nginx before $running[0]{name}" => sub {
		my $proxied = { %{ $running[0] }, server => start_nginx($running[0]) };
		my $body = event(90, '\\\\ \u00e4 ' . "\xc3\xa4");

		$proxied->{session} = $node->background_psql($proxied->{name}, on_error_stop => 0);
		accepts($proxied, 'a webhook is applied', 'applied', $body);
		accepts($proxied, '... and then a duplicate', 'duplicate', $body);
		rejects($proxied, 'a forged one is refused', 401, $body, headers(sign($body, 'a guess')));
		rejects($proxied, '... and one without a signature', 401, $body, headers(undef));
		accepts($proxied, 'a body of 8 MB is applied', 'applied', event(91, 'x' x ($limit - length event(91, ''))));
		is(end_request(begin_request($proxied->{server}, 'POST', $path, headers(undef), 'x' x ($limit + 1))), 413, 'a larger body is refused');
		is(request($proxied->{server}, 'POST', '/webhooks', {}, $body)->{status}, 404, 'another path is not found');
		$proxied->{session}->quit;
		stop_program($proxied->{server});
	};
}

# ---------------------------------------------------------------------------
# The database goes away, and comes back
# ---------------------------------------------------------------------------

my $body = event(80, '');
my $headers = headers(sign($body, $secret));

$node->stop;
for my $receiver (@running)
{
	my ($status, undef, $answered) = post($receiver, $body, $headers);

	is($status, 503, "$receiver->{name}: while the database is down, nothing is acknowledged");
	like($answered->{'retry-after'}, qr/^\d+$/, '... but asked for again');
}
$node->start;
for my $receiver (@running)
{
	my $status = 0;

	for (1 .. 100)
	{
		($status) = post($receiver, $body, $headers);
		last if $status == 200;
		sleep 0.1;
	}
	is($status, 200, "$receiver->{name}: when it is back, webhooks are ingested");
	is( $node->safe_psql(
			$receiver->{name},
			"SELECT outcome || encode(sha256(body), 'hex') FROM gigs.gig_event_log WHERE account_id = '" . account(80) . "'"),
		'applied' . sha256_hex($body),
		'... once');
}

for my $receiver (@running)
{
	stop_program($receiver->{server});
	my $log = output_of($receiver->{server});
	my $account = substr account(1), 0, 20;

	like($log, qr/cannot ingest webhook|closed the connection/, "$receiver->{name}: the log says what failed");
	unlike($log, qr/\Q$secret\E|$account|gigs\.added|\b[0-9a-f]{128}\b/, '... and has no secret, body or signature');
}
$node->stop;
done_testing();
