# Logical replication: the tables' rows go to another server that has the
# extension, whose sessions notice that secrets change, and which takes over once
# its sequences are set.  Decoding the log yields every event.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

sub outcome { my ($node, $query) = @_; return answer($node, 'postgres', $query) }

my @conf = ('max_connections = 30', "wal_retrieve_retry_interval = '100ms'");
my $publisher = start_node('publisher', { allows_streaming => 'logical' }, @conf);
my $replica = start_node('replica', { allows_streaming => 'logical' }, @conf);
my @tables = qw(gig_subscription gig_event_log gig_account_sync gig_quarantine
  gig_consumer gig_consumer_retry);
my @some = qw(gig_account_sync gig_event_log);

create_gigs($publisher, 'postgres');
$publisher->safe_psql('postgres', q{
	SELECT gigs.add_gig_secret('payroll', 'coming');
	SELECT gigs.create_gig_consumer('fetcher');
	SELECT take_all(array_agg(n % 30), array_agg(n)) FROM generate_series(1, 100) AS n;
	SELECT gigs.ingest_gig_event(b, sig(b)) FROM (VALUES ('{"event":"gigs.moved","name":"payroll","data":{}}'::bytea)) AS v (b);
	SELECT gigs.retry_gig_work(batch, account_id, 'HTTP 500', '1 day') FROM gigs.read_gig_work('fetcher', 5);
	SELECT gigs.finish_gig_work((SELECT max(batch) FROM gigs.gig_consumer))});

sub publish
{
	my ($name, @published) = @_;

	$publisher->safe_psql('postgres',
		"CREATE PUBLICATION $name FOR TABLE " . join ', ', map { "gigs.$_" } @published);
	return;
}

sub subscribe
{
	my ($name, $dbname) = @_;

	$replica->safe_psql($dbname,
		"CREATE SUBSCRIPTION $name CONNECTION '" . $publisher->connstr . " dbname=postgres' PUBLICATION $name");
	$replica->poll_query_until($dbname,
		"SELECT count(*) > 0 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel")
	  or die 'the replica gets no rows';
	return;
}

$replica->safe_psql('postgres', 'CREATE DATABASE extract');
for my $dbname ('postgres', 'extract')
{
	create_gigs($replica, $dbname);
	$replica->safe_psql($dbname, "SELECT gigs.drop_gig_subscription('payroll')");
}
publish('gigs_all', @tables);
publish('gigs_some', @some);

my $session;

# An authentic webhook of another family is ignored, and draws no event_id.
sub knows
{
	my ($secret) = @_;

	return ask($session, "SELECT coalesce(sqlstate, outcome::text) FROM (VALUES ('{\"event\":\"users.updated\",\"name\":\"payroll\"}'::bytea)) AS v (b), gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text))");
}

# A session of the replica that has cached no secret
$session = $replica->background_psql('postgres', on_error_stop => 0);
is(knows('coming'), '28000', 'a replica does not know the secret at first');
subscribe('gigs_all', 'postgres');
subscribe('gigs_some', 'extract');
$publisher->wait_for_catchup($_) for 'gigs_all', 'gigs_some';
is(rows_of($replica, 'postgres'), rows_of($publisher, 'postgres'), 'a replica has all rows');
is(rows_of($replica, 'extract', @some), rows_of($publisher, 'postgres', @some),
	'... one that takes some tables has theirs');
for my $direct ('on', 'off')
{
	my $n = $direct eq 'on' ? 500_000 : 600_000;

	# single ones, batches, redeliveries, and large ones
	$publisher->safe_psql(
		'postgres', qq{
		LOAD 'gigs_webhooks';
		SET gigs_webhooks.direct_writes = $direct;
		SELECT count(take(n % 30, $n + n)) FROM generate_series(1, 20) AS n;
		SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 700) AS n;
		SELECT gigs.ingest_gig_event(b, sig(b)) FROM generate_series(1, 5) AS n, hook(n, $n + 10000 + n, 5000 * n) AS b;
		DELETE FROM gigs.gig_event_log WHERE event_id % 7 = 0;
		SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 100) AS n;
	});
	$publisher->wait_for_catchup($_) for 'gigs_all', 'gigs_some';
	is(rows_of($replica, 'postgres'), rows_of($publisher, 'postgres'),
		"direct_writes $direct: what is ingested goes to the replica");
	is(rows_of($replica, 'extract', @some), rows_of($publisher, 'postgres', @some),
		'... as far as it takes it');
}
is($replica->safe_psql('extract', 'SELECT sum(accounts) FROM gigs.gig_sync_summary'),
	$publisher->safe_psql('postgres', 'SELECT sum(accounts) FROM gigs.gig_sync_summary'),
	'reports work over some tables');

# Sessions of the replica drop their caches.
is(knows('coming'), 'ignored', 'a session has got a secret by replication');
is(knows('next'), '28000', '... and no other');
$publisher->safe_psql('postgres', "SELECT gigs.add_gig_secret('payroll', 'next')");
$publisher->wait_for_catchup('gigs_all');
is(knows('next'), 'ignored', '... and gets another');
$publisher->safe_psql('postgres', "SELECT gigs.retire_gig_secret('payroll', 'coming')");
$publisher->wait_for_catchup('gigs_all');
is(knows('coming'), '28000', '... and loses one that is retired');
$publisher->safe_psql('postgres', "TRUNCATE gigs.gig_subscription");
$publisher->wait_for_catchup('gigs_all');
is(knows('next'), '28000', '... and all when the table is truncated');
$publisher->safe_psql('postgres', "SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'secret')");
$publisher->wait_for_catchup('gigs_all');
is(knows('secret'), 'ignored', '... and gets one again');

# Work of consumers, too.
$publisher->safe_psql('postgres', 'SELECT gigs.finish_gig_work(max(batch)) FROM gigs.read_gig_work(\'fetcher\', 20)');
$publisher->wait_for_catchup('gigs_all');
is(rows_of($replica, 'postgres'), rows_of($publisher, 'postgres'), 'all rows are the same again');

# The replica takes over.  Sequences are not replicated: until they are set, new
# events have the event_id of others, and are refused as a whole.
my $rows = rows_of($publisher, 'postgres');
my @given = split / /, $publisher->safe_psql('postgres', "SELECT max(event_id) || ' ' || count(*) FROM gigs.gig_event_log");
$publisher->stop;
$replica->safe_psql($_->[0], "ALTER SUBSCRIPTION $_->[1] DISABLE; ALTER SUBSCRIPTION $_->[1] SET (slot_name = NONE); DROP SUBSCRIPTION $_->[1]")
  for [ 'postgres', 'gigs_all' ], [ 'extract', 'gigs_some' ];
for my $direct ('on', 'off')
{
	my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;";

	$replica->safe_psql('postgres', q{SELECT setval('gigs.gig_event_log_event_id_seq', min(event_id), false)
		FROM gigs.gig_event_log WHERE account_id = account(3)});
	is(outcome($replica, "$set SELECT take(3, 700006)"),
		'23505 duplicate key value violates unique constraint "gig_event_log_pkey"',
		"direct_writes $direct: a new event has the id of another");
	$replica->safe_psql('postgres', q{SELECT setval('gigs.gig_event_log_event_id_seq', min(event_id), false)
		FROM gigs.gig_event_log WHERE account_id = account(1)});
	is(outcome($replica, "$set SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"),
		'23505 duplicate key value violates unique constraint "gig_event_log_pkey"',
		'... a batch as well');
}
is(rows_of($replica, 'postgres'), $rows, '... and nothing has changed');

# The log may be pruned: a consumer would not see an event with an id that it has
# passed.
$replica->safe_psql(
	'postgres', q{
	SELECT setval('gigs.gig_event_log_event_id_seq', greatest(
		(SELECT max(event_id) FROM gigs.gig_event_log),
		(SELECT max(last_event_id) FROM gigs.gig_account_sync),
		(SELECT max(greatest(position, settled_id, pending_id)) FROM gigs.gig_consumer)));
	SELECT setval('gigs.gig_quarantine_quarantine_id_seq', max(quarantine_id)) FROM gigs.gig_quarantine;
	SELECT setval('gigs.gig_consumer_batch_seq', extract(epoch FROM now())::bigint)});
is(outcome($replica, 'BEGIN; SELECT take(3, 33); ROLLBACK'), 'duplicate', 'what was delivered to the publisher is a duplicate');
is(outcome($replica, 'SELECT take(3, 700006)'), 'applied', 'with its sequences set the replica takes over');
is(outcome($replica, "SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"), 'applied 4', '... batches as well');
is(outcome($replica, "SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"), 'duplicate 4', '... once');
is($replica->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'), $given[1] + 9, '... with new ids');
is(outcome($replica, q{SELECT count(*) FROM gigs.ingest_gig_events('{}', '{}')}), '0', '... and nothing of it fails');

# Its consumer has retries, and all that came after its last batch.
is( outcome($replica, q{
		UPDATE gigs.gig_consumer_retry SET due_at = now();
		SELECT sum(events) = (
			SELECT count(*) FROM gigs.gig_event_log
			WHERE outcome <> 'stale' AND event_id > (SELECT position FROM gigs.gig_consumer)
		) + (SELECT sum(events) FROM gigs.gig_consumer_retry)
		FROM gigs.read_gig_work('fetcher', 100000)}),
	't', 'consumers continue on the replica');
is(outcome($replica, 'SELECT gigs.finish_gig_work(max(batch)) FROM gigs.gig_consumer; SELECT events_behind FROM gigs.gig_consumer_status'),
	"\n0", '... to the end');
$session->quit;

# ---------------------------------------------------------------------------
# Logical decoding of the log yields each event once
# ---------------------------------------------------------------------------

SKIP:
{
	my $libdir = $replica->safe_psql('postgres', "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'");

	skip 'there is no test_decoding', 4 if !-e "$libdir/test_decoding.so";
	for my $direct ('on', 'off')
	{
		my $n = $direct eq 'on' ? 800_000 : 900_000;

		$replica->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('log', 'test_decoding')");
		$replica->safe_psql(
			'postgres', qq{
			LOAD 'gigs_webhooks';
			SET gigs_webhooks.direct_writes = $direct;
			SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 450) AS n;
			SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, $n + 1000, 8000) AS b;
		});
		my @decoded = grep { /^table gigs\.gig_event_log: INSERT: / } split /\n/,
		  $replica->safe_psql('postgres', "SET bytea_output = hex; SET TimeZone = 'UTC'; SELECT data FROM pg_logical_slot_get_changes('log', NULL, NULL)");
		my @got = map { /event_id\[bigint\]:(\d+) .* body\[bytea\]:'(.*)' duplicate_of\[bigint\]:null$/ ? "$1 $2" : $_ } @decoded;
		my @logged = split /\n/,
		  $replica->safe_psql('postgres', "SELECT event_id || ' ' || body FROM gigs.gig_event_log ORDER BY event_id DESC LIMIT 451");
		is(scalar @got, 451, "direct_writes $direct: every event of the log is decoded");
		is(first_difference(\@got, [ reverse @logged ]), '', '... in the order of the log, byte for byte');
		$replica->safe_psql('postgres', "SELECT pg_drop_replication_slot('log')");
	}
}

$replica->stop;
done_testing();
