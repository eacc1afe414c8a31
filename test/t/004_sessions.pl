# Many sessions: batches that bring the same accounts, and sessions that have
# cached subscriptions, statements and the extension's objects.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# A short deadlock_timeout, so that no deadlock is resolved by chance.
my $node = start_node('sessions', "deadlock_timeout = '10ms'",
	'max_prepared_transactions = 2');

$node->safe_psql(
	'postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');

	-- a body of an account, which two numbers tell from others
	CREATE FUNCTION body(account int, a int, b int) RETURNS bytea LANGUAGE sql AS $$
		SELECT convert_to(format('{"event":"gigs.updated","name":"unsigned","data":{'
			'"account":"%s","user":"00000000-0000-4000-9000-000000000000",'
			'"available_count":%s,"updated_count":%s,"updated_gigs":["%s"]}}',
			md5(account::text)::uuid, a, b, md5((account + b)::text)::uuid), 'UTF8')
	$$;
});

# ---------------------------------------------------------------------------
# Batches in opposite order
# ---------------------------------------------------------------------------

# Every batch has, for each of 16 accounts, one event of its own and one that all
# sessions bring; and one for each of 4 accounts that no session has seen before.
my $nsessions = 4;
my $nbatches = 60;
my @orders = ('account', 'account DESC', 'md5(account::text || a)',
	'md5(a::text || account)');
my @scripts = map {
	my $session = $_;

	# half of them read and write through the executor
	join '', ($session % 2 ? '' : "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = off;\n"), map { qq{
		SELECT r.outcome, count(*)
		FROM (
			SELECT array_agg(body ORDER BY $orders[$session - 1]) AS bodies
			FROM (
				SELECT n, $session, public.body(n, 1000 * $session + $_, 1) FROM generate_series(1, 16) AS n
				UNION ALL
				SELECT n, 9, public.body(n, $_, 2) FROM generate_series(1, 16) AS n
				UNION ALL
				SELECT n, 9, public.body(n, $session, 3) FROM generate_series(100 * $_, 100 * $_ + 3) AS n
			) AS e (account, a, body)
		) AS b, gigs.ingest_gig_events(b.bodies, NULL) AS r
		GROUP BY 1;
	} } 1 .. $nbatches;
} 1 .. $nsessions;

my ($out, $err) = run_together($node, 'postgres', @scripts);
is(join('', @$err), '', 'sessions do not fail');

my %sum;
for my $line (map { split /\n/ } @$out)
{
	my ($outcome, $n) = split /\|/, $line;

	$sum{$outcome} += $n;
}
my $own = 20 * $nbatches * $nsessions;
my $common = 16 * $nbatches;
my $accounts = 16 + 4 * $nbatches;

is_deeply(
	\%sum,
	{
		applied => $own + $common,
		duplicate => $common * ($nsessions - 1)
	},
	'of what all sessions bring, one is applied');
is( $node->safe_psql(
		'postgres',
		'SELECT count(*), sum(events), sum(duplicates), sum(updated_total) FROM gigs.gig_account_sync'
	),
	join('|',
		$accounts, $own + $common,
		$common * ($nsessions - 1),
		16 * $nbatches * $nsessions + 2 * $common + 3 * 4 * $nbatches * $nsessions),
	'no event is counted twice or lost');
is( $node->safe_psql(
		'postgres', q{SELECT count(*), count(body) FROM gigs.gig_event_log}),
	join('|', $own + $common * $nsessions, $own + $common),
	'every delivery is logged');
is( $node->safe_psql(
		'postgres', q{
		SELECT count(*), count(*) FILTER (WHERE early)
		FROM (
			SELECT received_at < lag(received_at) OVER (PARTITION BY account_id ORDER BY event_id) AS early
			FROM gigs.gig_event_log
		) AS l}),
	$own + $common * $nsessions . '|0',
	'the log is in the order of application');

is(troubles($node, 'postgres'), '', 'log and accounts agree');

# ---------------------------------------------------------------------------
# Secrets are added and retired
# ---------------------------------------------------------------------------

my @session_names = ('read committed', 'repeatable read', 'the same');
my %sessions = map {
	$_ => $node->background_psql('postgres', on_error_stop => 0)
} @session_names;
my $body = payload('gigs.added');
my $name = 'name-for-the-webhook-subscription';

# The outcome, or the SQLSTATE of a refusal.
sub ingest
{
	my ($session, $secret) = @_;

	return ask($session,
		    'SELECT coalesce(sqlstate, outcome::text) FROM gigs.try_ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal(defined $secret ? sign($body, $secret) : undef)
		  . ')');
}

sub change { return $node->safe_psql('postgres', "SET search_path = gigs; $_[0]") }

change("SELECT create_gig_subscription('$name', 'https://example.com/', 'first')");

# Every session gets an account of its own: a session in REPEATABLE READ may not
# update a row that another one has updated since.
sub own_body
{
	my ($n) = @_;
	my $id = sprintf '%012d', $n;

	$body = payload('gigs.added');
	$body =~ s/2232f00f426a/$id/;
	return;
}

sub ask_everybody
{
	my ($expected, $secret, $title) = @_;
	my $n = 0;

	for my $session (@session_names)
	{
		own_body(++$n);
		is(ingest($sessions{$session}, $secret), $expected,
			"$title: $session");
	}
	return;
}

ask_everybody('applied', 'first', 'a secret is good');
ask($sessions{'repeatable read'}, 'BEGIN ISOLATION LEVEL REPEATABLE READ');
ask_everybody('duplicate', 'first', 'a secret stays good');

change("SELECT add_gig_secret('$name', 'second')");
ask_everybody('duplicate', 'second', 'another secret is good at once');
ask_everybody('duplicate', 'first', '... beside the first');

ask($sessions{'the same'}, "BEGIN; SELECT gigs.retire_gig_secret('$name', 'first')");
own_body(1);
is(ingest($sessions{'read committed'}, 'first'),
	'duplicate', 'a secret is good until its retirement is committed');
own_body(3);
is(ingest($sessions{'the same'}, 'first'),
	'28000', '... but not in the session that retires it');
ask($sessions{'the same'}, 'COMMIT');
ask_everybody('28000', 'first', 'a secret is retired, for all');
ask_everybody('duplicate', 'second', '... and the other is not');
is( ask($sessions{'repeatable read'},
		'SELECT count(*) FROM gigs.gig_subscription, unnest(secrets) WHERE retired_at IS NOT NULL'),
	'0',
	'... whatever a snapshot still shows');

change("SELECT retire_gig_secret('$name', 'second', now() + '1 day')");
ask_everybody('duplicate', 'second', 'a secret is good until it is to retire');
change("UPDATE gig_subscription SET secrets[2].retired_at = now()");
ask_everybody('28000', 'second', 'a secret can be retired by hand');
ask_everybody('28000', undef, 'without a valid secret no unsigned webhook is accepted');
change("UPDATE gig_subscription SET secrets = '{}'");
ask_everybody('28000', undef, '... nor without any');
change("UPDATE gig_subscription SET secrets = NULL");
ask_everybody('duplicate', undef, '... but by a subscription that is unsigned');
ask_everybody('28000', 'second', '... which accepts no signature');
change("SELECT drop_gig_subscription('$name')");
ask_everybody('28000', undef, 'a subscription is dropped, for all');
change("SELECT create_gig_subscription('$name', 'https://example.com/', 'third')");
ask_everybody('duplicate', 'third', '... and created, for all');
# TRUNCATE waits for transactions that have read the table.
ask($sessions{'repeatable read'}, 'COMMIT');
ask($sessions{'repeatable read'}, 'BEGIN ISOLATION LEVEL REPEATABLE READ');
change('TRUNCATE gig_subscription');
ask_everybody('28000', 'third', 'subscriptions are truncated, for all');
change("SELECT create_gig_subscription('$name', 'https://example.com/', 'third')");
ask_everybody('duplicate', 'third', '... and created again, for all');
change("UPDATE gig_subscription SET name = 'another' WHERE name = '$name'");
ask_everybody('28000', 'third', 'a subscription is renamed, for all');
change("DELETE FROM gig_subscription; SELECT create_gig_subscription('$name', 'https://example.com/', 'third')");
ask($sessions{'repeatable read'}, 'COMMIT');

# What is rolled back has no effect.
my $session = $sessions{'the same'};
own_body(3);
is(ingest($session, 'third'), 'duplicate', 'the secret is good again');
for my $undo (
	[ 'a transaction', 'BEGIN', 'ROLLBACK', '' ],
	[ 'a savepoint', 'BEGIN; SAVEPOINT s', 'ROLLBACK TO s', 'COMMIT' ],
	[ 'two savepoints', 'BEGIN; SAVEPOINT s; SAVEPOINT t', 'RELEASE t; ROLLBACK TO s', 'COMMIT' ],
	[ 'an error', 'BEGIN', 'SELECT 1/0; ROLLBACK', '' ],
	[ 'a prepared transaction', 'BEGIN', "PREPARE TRANSACTION 'p'", "ROLLBACK PREPARED 'p'" ])
{
	my ($title, $begin, $end, $after) = @$undo;

	# in a prepared transaction the account's row would stay locked
	my $prepared = $title =~ /prepared/;

	ask($session, $begin);
	ask($session, "SELECT gigs.add_gig_secret('$name', 'rolled back')");
	if ($prepared)
	{
		ask($session,
			"SELECT outcome FROM gigs.try_ingest_gig_event('{}'::bytea, NULL)");
	}
	else
	{
		is(ingest($session, 'rolled back'),
			'duplicate', "within $title a new secret is good");
	}
	ask($session, $end);
	is(ingest($session, 'rolled back'), '28000', "... and not after it was undone");
	is(ingest($session, 'third'), 'duplicate', '... while the old one is');
	ask($session, $after);

	ask($session, $begin);
	ask($session, "SELECT gigs.retire_gig_secret('$name', 'third')");
	is(ingest($session, 'third'), '28000', "within $title a retired secret is none")
	  if !$prepared;
	ask($session, $end);
	is(ingest($session, 'third'), 'duplicate', '... but it is after that was undone');
	ask($session, $after);
	is(ingest($session, 'third'), 'duplicate', '... and stays so');
}

# A function that is wrongly declared PARALLEL SAFE ingests nothing in a parallel
# query, and does not spoil the caches of a session that had none.
$node->safe_psql('postgres', q{
	CREATE TABLE many AS SELECT generate_series(1, 10000) AS n;
	CREATE FUNCTION try_ingest(body bytea, sig text) RETURNS text LANGUAGE sql PARALLEL SAFE
	AS 'SELECT coalesce(sqlstate, outcome::text) FROM gigs.try_ingest_gig_event(body, sig)'});
my $fresh = $node->background_psql('postgres', on_error_stop => 0);
ask($fresh, 'SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0');
is( ask($fresh,
		    'SELECT count(*) FROM many WHERE try_ingest('
		  . bytea_literal($body) . ', '
		  . text_literal(sign($body, 'third'))
		  . ") <> 'duplicate' OR n IS NULL"),
	'25000',
	'nothing is ingested in a parallel query');
is(ingest($fresh, 'third'), 'duplicate', '... but after it');
$fresh->quit;

# ---------------------------------------------------------------------------
# The extension's objects change
# ---------------------------------------------------------------------------

my $create =
  "SELECT gigs.create_gig_subscription('$name', 'https://example.com/', 'third')";

is(ingest($session, 'third'), 'duplicate', 'plans are prepared');
$node->safe_psql('postgres',
	"DROP EXTENSION gigs_webhooks; CREATE EXTENSION gigs_webhooks SCHEMA gigs; $create"
);
is(ingest($session, 'third'), 'applied', 'the extension was created again');
is( ask($session, 'SELECT * FROM gigs.rebuild_gig_sync()'),
	'1|0', '... and can rebuild');

# Tables are altered under sessions that have prepared statements for them.
for my $alter (
	[ 'a table has another column', 'ALTER TABLE gig_account_sync ADD COLUMN note text' ],
	[ '... with a default', "ALTER TABLE gig_event_log ADD COLUMN source text NOT NULL DEFAULT 'x'" ],
	[ '... and one less', 'ALTER TABLE gig_account_sync DROP COLUMN note' ],
	[ '... and is rewritten', 'ALTER TABLE gig_account_sync SET UNLOGGED; ALTER TABLE gig_account_sync SET LOGGED; VACUUM FULL gig_event_log' ],
	[ '... and is analyzed', 'ANALYZE' ],
	[ '... and belongs to another role', 'CREATE ROLE another SUPERUSER; ALTER TABLE gig_account_sync OWNER TO another' ],
	[ '... and is replaced', 'ALTER TABLE gig_event_log RENAME TO replaced; CREATE TABLE gig_event_log (LIKE replaced INCLUDING ALL); ' .
		'ALTER SEQUENCE gig_event_log_event_id_seq RENAME TO replaced_seq; ALTER SEQUENCE gig_event_log_event_id_seq1 RENAME TO gig_event_log_event_id_seq; ' .
		"SELECT setval('gig_event_log_event_id_seq', 1000)" ])
{
	my ($title, $statements) = @$alter;

	change($statements);
	for my $direct ('on', 'off')
	{
		ask($session, "SET gigs_webhooks.direct_writes = $direct");
		is(ingest($session, 'third'), 'duplicate', "$title: direct_writes $direct: a single webhook");
		is( ask($session,
				    'SELECT DISTINCT outcome FROM gigs.ingest_gig_events(ARRAY['
				  . bytea_literal($body) . ', ' . bytea_literal($body) . '], ARRAY['
				  . join(', ', (text_literal(sign($body, 'third'))) x 2) . '])'),
			'duplicate', '... and a batch');
	}
}
is(change('SELECT count(*) FROM gig_event_log WHERE event_id > 1000'), '6', 'the table that was put in its place has the last ones');

$_->quit for values %sessions;
$node->stop;

done_testing();
