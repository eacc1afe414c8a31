# The stand-in for Argyle and the consumers of examples/: whatever changes, and
# whatever fails, the consumers' table has the gigs of the stand-in in the end.
#
# Webhooks are handed out by the stand-in and ingested by SQL, so that the test
# decides when, and which ones.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use FindBin;
use IO::Socket::INET;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;
use GigTest;

plan skip_all => 'there is no Python 3.10 in /usr/bin' if !python();

my $node = start_node('example_consumers');
my $dumps = PostgreSQL::Test::Utils::tempdir;
my $json = JSON::PP->new->utf8->canonical;

# ---------------------------------------------------------------------------
# The stand-in
# ---------------------------------------------------------------------------

create_gigs($node, 'postgres');

sub page_of
{
	my ($argyle, $account, %query) = @_;

	return request_gigs($argyle, "/v2/gigs?account=$account" . join '', map { "&$_=$query{$_}" } keys %query);
}

# Returns the ids of the gigs on the pages from one on.
sub follow
{
	my ($argyle, $page, $link, $between) = @_;
	my @ids;

	while (1)
	{
		my @on_page = map { $_->{id} } @{ $page->{results} };

		@ids = $link eq 'next' ? (@ids, @on_page) : (@on_page, @ids);
		last if !defined $page->{$link};
		$between->() if $between;
		(undef, $page) = request_gigs($argyle, $page->{$link});
	}
	return @ids;
}

sub all_gigs { my ($argyle) = @_; return map { $json->decode($_) } split /\n/, ask_argyle($argyle, 'gigs') }

sub check_api
{
	my $argyle = start_argyle(qw(--accounts 3 --gigs 250 --seed 1));
	my $account = (all_gigs($argyle))[0]{account};
	my @gigs = sort { $a->{start_datetime} cmp $b->{start_datetime} || $a->{id} cmp $b->{id} }
	  grep { $_->{account} eq $account } all_gigs($argyle);
	my ($status, $page, $headers);

	is(scalar(@gigs), 250, 'an account has its gigs');
	is((request_gigs($argyle, "/v2/gigs?account=$account", $_))[0], 401, "credentials \"$_\" are refused")
	  for '', 'id:secreT', 'other:secret';
	for (0, 201, 'ten')
	{
		is((page_of($argyle, $account, limit => $_))[0], 400, "limit $_ is refused");
	}
	is((page_of($argyle, $account, from_start_datetime => 'today'))[0], 400, 'so is a malformed time');
	(undef, $page) = page_of($argyle, $account);
	is(scalar @{ $page->{results} }, 10, 'a page has 10 gigs');
	is($page->{previous}, undef, '... and none before the first');
	(undef, $page) = page_of($argyle, $account, limit => 200);
	is(scalar @{ $page->{results} }, 200, '... or 200 at most');
	is_deeply($page->{results}[0], $gigs[0], 'a gig is shown as in the dump');
	like($gigs[0]{income}{total}, qr/^\d+\.\d\d$/, '... with amounts of two decimals');
	is_deeply((request_gigs($argyle, "/v2/gigs/$gigs[0]{id}"))[1], $gigs[0], '... and by itself');
	(undef, $page) = page_of($argyle, $account, limit => 7);
	is(join(' ', follow($argyle, $page, 'next')), join(' ', map { $_->{id} } @gigs),
		'pages have all gigs in the order of their starts');
	($status, $page) = request_gigs($argyle, $page->{next}) for 1 .. 20;
	is(join(' ', follow($argyle, $page, 'previous')), join(' ', map { $_->{id} } @gigs[ 0 .. 20 * 7 + 6 ]),
		'... and so have the pages back');

	my ($from, $to) = grep { $gigs[$_]{start_datetime} =~ /\.\d{6}Z/ } 1 .. 249;
	my @times = map { $_->{start_datetime} } @gigs[ $from, $to ];
	my $count = sub {
		my (undef, $found) = page_of($argyle, $account, limit => 200,
			from_start_datetime => $_[0], to_start_datetime => $_[1]);
		return scalar @{ $found->{results} };
	};

	is($count->(@times), $to - $from + 1, 'a window includes both ends');
	is($count->(map { s/(\d+)Z$/sprintf '%06dZ', $1 + 1/er } @times), $to - $from, '... to the microsecond');
	is($count->(map { s/Z$/%2B00:00/r } @times), $to - $from + 1, '... with an offset');
	is($count->(@times[ 1, 0 ]), 0, 'a window with its ends exchanged is empty');

	# Gigs that do not change are on one page each.
	my %changed;
	(undef, $page) = page_of($argyle, $account, limit => 20);
	my %seen;
	$seen{$_}++ for follow(
		$argyle, $page, 'next',
		sub {
			for my $kind (qw(added removed moved))
			{
				my $change = ask_argyle($argyle, 'change', { kind => $kind, account => $account });
				@changed{ @{ $change->{gigs} } } = ();
			}
		});
	is(join(' ', grep { !exists $changed{$_} && ($seen{$_} || 0) != 1 } map { $_->{id} } @gigs), '',
		'gigs that do not change are on one page each, though others do');

	# accounts
	my @accounts;
	for (my $url = '/v2/accounts?limit=2'; defined $url; $url = $page->{next})
	{
		(undef, $page) = request_gigs($argyle, $url);
		push @accounts, @{ $page->{results} };
	}
	my ($shown) = grep { $_->{id} eq $account } @accounts;
	my @starts = sort map { $_->{start_datetime} } grep { $_->{account} eq $account } all_gigs($argyle);

	is(scalar(@accounts), 3, 'the accounts are on two pages');
	is($shown->{availability}{gigs}{available_count}, scalar(@starts), '... with their numbers of gigs');
	is($shown->{availability}{gigs}{available_from}, $starts[0], '... and the first');
	is($shown->{availability}{gigs}{available_to}, $starts[-1], '... and the last');
	is($shown->{availability}{gigs}{status}, 'synced', '... and their states');
	my $empty = ask_argyle($argyle, 'change', { kind => 'connected', gigs => 0 });
	is((request_gigs($argyle, "/v2/accounts/$empty->{account}"))[1]{availability}{gigs}, undef,
		'an account without gigs shows none');

	my $gone = ask_argyle($argyle, 'change', { kind => 'gone', account => $account });
	is((page_of($argyle, $account))[0], 404, 'an account that is gone is not found');
	is((request_gigs($argyle, "/v2/gigs/$gone->{gigs}[0]"))[0], 404, '... and neither are its gigs');

	ask_argyle($argyle, 'settings', { limited => 1, retry_after => 7 });
	($status, undef, $headers) = request_gigs($argyle, '/v2/accounts');
	is("$status $headers->{'retry-after'}", '429 7', 'requests are limited');
	ask_argyle($argyle, 'settings', { limited => 0, broken => 1 });
	is((request_gigs($argyle, '/v2/accounts'))[0], 500, '... or broken');

	# webhooks
	my @webhooks = @{ ask_argyle($argyle, 'take', {}) };
	my $literals = join ', ', map { '(' . bytea_literal($_->{body}) . ", '$_->{signature}')" } @webhooks;
	is($node->safe_psql('postgres',
			"SELECT count(*), bool_and(gigs.verify_gig_signature(body, signature, 'secret')) FROM (VALUES $literals) AS w (body, signature)"),
		scalar(@webhooks) . '|t', 'webhooks are signed');
	is(join(' ', map { $json->decode($_->{body})->{event} } @webhooks[ 0, 1 ]),
		'gigs.partially_synced gigs.fully_synced', '... and begin with the first sync');
	is_deeply(
		[ map { $_->{sha256} } @{ ask_argyle($argyle, 'delivered?after=2') } ],
		[ map { sha256_hex($_->{body}) } @webhooks[ 2 .. $#webhooks ] ],
		'... and are recorded');
	is(stop_program($argyle), 0, 'SIGTERM ends the stand-in');
	return;
}

# A receiver that answers every third webhook 503, and loses every fifth
# connection.  Prints a line for each that it answers 200.
sub receive
{
	my ($listener) = @_;
	my $received = 0;

	while (my $client = $listener->accept)
	{
		while (1)
		{
			my ($head, $body) = ('', '');

			while ($head !~ /\r\n\r\n\z/)
			{
				last if !read $client, $head, 1, length $head;
			}
			my ($length) = $head =~ /^Content-Length: (\d+)/m or last;
			read $client, $body, $length;
			last if ++$received % 5 == 0;
			my $status = $received % 3 == 0 ? 503 : 200;
			print sha256_hex($body), "\n" if $status == 200;
			print {$client} "HTTP/1.1 $status -\r\nContent-Length: 0\r\n\r\n";
			$client->flush;
		}
		close $client;
	}
	return;
}

sub check_posting
{
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) or die "cannot listen: $!";
	my $url = 'http://127.0.0.1:' . $listener->sockport . '/webhooks';
	my $received = "$dumps/received";
	my $pid = fork;

	if ($pid == 0)
	{
		open STDOUT, '>', $received or die "could not open $received: $!";
		STDOUT->autoflush(1);
		receive($listener);
		POSIX::_exit(0);
	}
	my $argyle = start_argyle(qw(--accounts 5 --gigs 20 --subscription a:30 --subscription b:60
		--rate 200 --connections 1 --pause 0.01 --max-pause 0.02
		--lost 0.1 --doubled 0.1 --late 0.2 --late-by 0.2 --seed 2 --webhook-url), $url);
	my $settled;

	sleep 0.05 until ask_argyle($argyle, 'settled')->{made} > 200;
	ask_argyle($argyle, 'stop', {});
	do { $settled = ask_argyle($argyle, 'settled') } while (!$settled->{settled} && sleep 0.05);
	kill 'KILL', $pid;
	waitpid $pid, 0;
	my @acknowledged = split /\n/, slurp_file($received);

	note join ', ', map { "$_ $settled->{$_}" } qw(made lost doubled late redelivered delivered);
	cmp_ok($settled->{$_}, '>', 0, "webhooks were $_") for qw(lost doubled late redelivered);
	is($settled->{made} + $settled->{doubled} - $settled->{lost}, $settled->{delivered}, 'others were acknowledged');
	is(first_difference([ map { $_->{sha256} } @{ ask_argyle($argyle, 'delivered') } ], \@acknowledged),
		'', '... and recorded in that order');
	stop_program($argyle);
	return;
}

# ---------------------------------------------------------------------------
# The consumers
# ---------------------------------------------------------------------------

# Ingests the bodies in their order.
sub ingest
{
	my ($dbname, @bodies) = @_;
	my $array = 'ARRAY[' . (join ', ', map { bytea_literal($_) } @bodies) . ']::bytea[]';

	return if !@bodies;
	my $others = $node->safe_psql($dbname, "SELECT DISTINCT outcome
			FROM (SELECT $array AS b) AS a, gigs.ingest_gig_events(b, ARRAY(SELECT sig(body) FROM unnest(b) AS body))
			WHERE outcome NOT IN ('applied', 'duplicate', 'stale')");

	die "webhooks were $others" if $others ne '';
	return;
}

sub ingest_all
{
	my ($dbname, $argyle) = @_;

	ingest($dbname, map { $_->{body} } @{ ask_argyle($argyle, 'take', {}) });
	return;
}

sub change
{
	my ($argyle, $kind, %arguments) = @_;

	return ask_argyle($argyle, 'change', { kind => $kind, %arguments });
}

sub start_consumer
{
	my ($dbname, $argyle, $command, %env) = @_;

	return start_program(
		command => $command,
		env => {
			PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => $dbname, PGUSER => 'worker',
			PGOPTIONS => '-c search_path=gigs,public',
			ARGYLE_URL => $argyle->{ready}, ARGYLE_ID => 'id', ARGYLE_SECRET => 'secret',
			GIG_CONSUMER => 'mirror', GIG_WORKERS => 2, GIG_POLL => 0.1, %env
		});
}

sub wait_until
{
	my ($dbname, $condition) = @_;

	return $node->poll_query_until($dbname, "SELECT $condition") || die "not within time: $condition";
}

# Tests that the table has the gigs of the stand-in, once all events are worked on.
sub check_mirror
{
	my ($dbname, $argyle, $title) = @_;

	wait_until($dbname, '(events_behind, retries, dead, working) = (0, 0, 0, 0) FROM gigs.gig_consumer_status');
	is((compare_gigs($node, $dbname, $argyle))[1], 0, "$dbname: $title");
	return;
}

# Has a worker fetch a batch, and keeps it from storing that.  Returns the session
# that does.  The changes are of one account, so that no other worker has a batch.
sub block_worker
{
	my ($dbname, $argyle) = @_;
	my $session = $node->background_psql($dbname, on_error_stop => 0);

	ask($session, 'BEGIN; LOCK TABLE gig IN EXCLUSIVE MODE');
	my $account = change($argyle, 'moved', gigs => 3)->{account};
	change($argyle, 'removed', account => $account, gigs => 3);
	ingest_all($dbname, $argyle);
	$node->poll_query_until('postgres',
		"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '$dbname'")
	  or die 'no worker stores its batch';
	return $session;
}

# Returns the body of a webhook with other data.
sub with
{
	my ($webhook, %data) = @_;
	my $body = $json->decode($webhook->{body});

	$body->{data} = { %{ $body->{data} }, %data };
	return $json->encode($body);
}

sub check_consumer
{
	my ($dbname, @command) = @_;
	my $argyle = start_argyle(qw(--accounts 5 --gigs 300 --seed 3 --subscription payroll:30));
	my ($consumer, $change, $account, $blocker);

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	create_gigs($node, $dbname);
	$node->safe_psql($dbname, slurp_file(example('consumers/gig.sql')));
	$node->safe_psql(
		$dbname, q{
		SELECT gigs.create_gig_consumer('mirror', parts => 2);
		SELECT gigs.grant_gig_consumer('worker');
		GRANT SELECT, INSERT, UPDATE, DELETE ON gig TO worker;
	});

	ingest_all($dbname, $argyle);
	$consumer = start_consumer($dbname, $argyle, \@command);
	check_mirror($dbname, $argyle, 'the first sync is fetched');

	for my $kind (qw(added updated moved removed))
	{
		change($argyle, $kind, gigs => 5) for 1 .. 3;
		ingest_all($dbname, $argyle);
		check_mirror($dbname, $argyle, "gigs are $kind");
	}
	change($argyle, undef) for 1 .. 50;
	ingest_all($dbname, $argyle);
	check_mirror($dbname, $argyle, 'many changes are fetched');

	# Windows that are open at one end or both, of gigs that are not named
	for my $open ([qw(from)], [qw(to)], [qw(from to)])
	{
		$change = change($argyle, 'removed', gigs => 40);
		ask_argyle($argyle, 'take', {});
		ingest($dbname, with($change->{webhooks}[0], removed_gigs => undef, map { ("removed_$_" => undef) } @$open));
		check_mirror($dbname, $argyle, "a window without @$open is fetched");
	}

	# A gig that is named, and lies elsewhere in the table
	$account = $change->{account};
	$change = change($argyle, 'removed', account => $account, gigs => 1);
	ask_argyle($argyle, 'take', {});
	ingest($dbname, with($change->{webhooks}[0], removed_from => '2001-01-01T00:00:00Z', removed_to => '2001-01-01T00:00:00Z'));
	check_mirror($dbname, $argyle, 'gigs that are named as removed are deleted');

	# Both ends are gigs, one page is full
	change($argyle, 'added', account => $account, gigs => 200);
	ingest_all($dbname, $argyle);
	check_mirror($dbname, $argyle, 'pages are followed');

	change($argyle, 'gone', account => $account);
	ingest_all($dbname, $argyle);
	check_mirror($dbname, $argyle, 'the gigs of an account that is gone are deleted');
	is($node->safe_psql($dbname, "SELECT count(*) FROM gig WHERE account_id = '$account'"), 0, '... all of them');

	# Answers that are retried
	ask_argyle($argyle, 'settings', { limited => 1, retry_after => 3600 });
	$change = change($argyle, 'updated');
	ingest_all($dbname, $argyle);
	ok(wait_until($dbname, "true FROM gigs.gig_consumer_retry WHERE error LIKE '%429%' AND due_at BETWEEN now() + '50 minutes' AND now() + '60 minutes'"),
		'a request that is limited is tried again when the API says');
	ask_argyle($argyle, 'settings', { limited => 0, broken => 1 });
	ingest($dbname, $change->{webhooks}[0]{body});
	$node->safe_psql($dbname, 'UPDATE gigs.gig_consumer_retry SET due_at = now()');
	ok(wait_until($dbname, "true FROM gigs.gig_consumer_retry WHERE error LIKE '%500%' AND attempts > 1 AND due_at < now() + interval '5 seconds' * 2 ^ (attempts - 1)"),
		'one that fails is tried again after a pause');
	ask_argyle($argyle, 'settings', { broken => 0 });
	$node->safe_psql($dbname, 'UPDATE gigs.gig_consumer_retry SET due_at = now()');
	check_mirror($dbname, $argyle, 'what failed is fetched later');

	# Changes while pages are read, of which some fail
	ask_argyle($argyle, 'settings',
		{ rate => 200, limited => 0.1, retry_after => 0, slow => 0.2, slow_by => 0.1, late => 0.2, late_by => 0.5 });
	for (1 .. 10)
	{
		sleep 0.2;
		change($argyle, $_ % 3 ? 'connected' : 'gone');
		ingest_all($dbname, $argyle);
	}
	ask_argyle($argyle, 'stop', {});
	ask_argyle($argyle, 'settings', { limited => 0, slow => 0, late => 0 });
	ingest_all($dbname, $argyle) while !ask_argyle($argyle, 'settled')->{settled} && sleep 0.05;
	check_mirror($dbname, $argyle, 'changes while pages are read are fetched');

	# A batch that the worker has no more when it wants to finish it
	$blocker = block_worker($dbname, $argyle);
	$node->safe_psql($dbname, "SELECT gigs.seek_gig_consumer('mirror', position) FROM gigs.gig_consumer_status");
	$blocker->quit;
	check_mirror($dbname, $argyle, 'a batch that is no longer leased is repeated');
	ok(wait_for_output($consumer, qr/(batch \d+ is no longer leased)/), '... and not stored');

	# A server that is restarted
	$blocker = block_worker($dbname, $argyle);
	$node->restart;
	$node->safe_psql($dbname, 'UPDATE gigs.gig_consumer SET leased_until = now()');
	check_mirror($dbname, $argyle, 'a lost connection is made anew');

	# SIGTERM while a batch is worked on
	$blocker = block_worker($dbname, $argyle);
	kill 'TERM', $consumer->{pid} for 1 .. 3;
	$blocker->quit;
	is(end_of($consumer), 0, 'SIGTERM ends a consumer, even if it comes more than once');
	check_mirror($dbname, $argyle, '... after the batch at hand');

	# Workers that are killed, whose lease runs out
	$consumer = start_consumer($dbname, $argyle, \@command, GIG_LEASE => '2 seconds');
	$blocker = block_worker($dbname, $argyle);
	is(stop_program($consumer, 'KILL'), -9, 'a consumer is killed');
	$node->safe_psql($dbname, "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'worker'");
	$blocker->quit;
	is($node->safe_psql($dbname, 'SELECT events_behind > 0 FROM gigs.gig_consumer_status'), 't', '... before its batch is finished');
	$consumer = start_consumer($dbname, $argyle, \@command, GIG_CHANNEL => 'Gig news', GIG_POLL => 1);
	check_mirror($dbname, $argyle, '... and another one takes over');
	stop_program($consumer);

	# Without polling
	$consumer = start_consumer($dbname, $argyle, \@command, GIG_CHANNEL => 'Gig news', GIG_POLL => 3600, GIG_WORKERS => 1);
	wait_until($dbname, "count(*) > 0 FROM pg_stat_activity WHERE usename = 'worker' AND state = 'idle' AND query LIKE '%read_gig_work%'");
	change($argyle, 'removed', gigs => 3);
	ingest_all($dbname, $argyle);
	$node->safe_psql($dbname, q{NOTIFY "Gig news"});
	check_mirror($dbname, $argyle, 'a notification wakes a worker');
	is(stop_program($consumer), 0, 'SIGTERM ends a consumer that waits');
	stop_program($argyle);
	return;
}

check_api();
check_posting();
$node->safe_psql('postgres', 'CREATE ROLE worker LOGIN');

SKIP:
{
	my $python = python('psycopg') or skip 'python3-psycopg is not installed', 1;

	check_consumer('python', $python, example('consumers/consumer.py'));
}

SKIP:
{
	my $directory = example('consumers');

	skip 'node 18 is not installed', 1
	  if system("node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' 2>/dev/null") != 0;
	skip 'npm could not install the packages of examples/consumers', 1
	  if !npm_ci($directory);
	check_consumer('node', 'node', "$directory/consumer.js");
}

$node->stop;
done_testing();
