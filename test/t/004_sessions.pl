# Many sessions: who waits for whom, and who learns what when.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# A deadlock is to be found before it gets resolved by chance.
my $node = start_node('sessions', "deadlock_timeout = '10ms'",
	'max_prepared_transactions = 2');

$node->safe_psql(
	'postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');

	-- a body for an account, as two numbers tell it from others
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

# Every batch has an event of its own for each of 16 accounts, one that all
# sessions bring, and one for each of 4 accounts that are new, to all sessions
# alike.
my $nsessions = 4;
my $nbatches = 60;
my @orders = ('account', 'account DESC', 'md5(account::text || a)',
	'md5(a::text || account)');
my @scripts = map {
	my $session = $_;

	join '', map { qq{
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
is(join('', @$err), '', 'sessions do not get into each other\'s way');

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
	'of what all sessions bring, one is the first');
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
		'postgres', 'SELECT count(*), sum(deliveries) FROM gigs.gig_delivery'),
	join('|', $own + $common, $own + $common * $nsessions),
	'no delivery is, either');
is( $node->safe_psql(
		'postgres', q{
		SELECT count(*), count(*) FILTER (WHERE early)
		FROM (
			SELECT received_at < lag(received_at) OVER (PARTITION BY account_id ORDER BY event_id) AS early
			FROM gigs.gig_event_log
		) AS l}),
	$own + $common . '|0',
	'the log is in the order of application');

my $rows = 'SELECT a::text FROM gigs.gig_account_sync AS a ORDER BY account_id';
my $before = $node->safe_psql('postgres', $rows);
is($node->safe_psql('postgres', 'SELECT * FROM gigs.rebuild_gig_sync()'),
	"$accounts|0", 'every account is rebuilt');
is($node->safe_psql('postgres', $rows), $before, '... and is what it was');

# ---------------------------------------------------------------------------
# Secrets come and go
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

sub everybody
{
	my ($expected, $secret, $title) = @_;

	is(ingest($sessions{$_}, $secret), $expected, "$title: $_")
	  for @session_names;
	return;
}

sub change { return $node->safe_psql('postgres', "SET search_path = gigs; $_[0]") }

change("SELECT create_gig_subscription('$name', 'https://example.com/', 'first')");

# Sessions that know the secret; the redelivery leaves the account's row to be
# updated by the others, which REPEATABLE READ would refuse: so it is brought
# to each session as another account's.
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
	'28000', '... but not to the one who retires it');
ask($sessions{'the same'}, 'COMMIT');
ask_everybody('28000', 'first', 'a secret is retired, for all');
ask_everybody('duplicate', 'second', '... and the other is not');
is( ask($sessions{'repeatable read'},
		"SELECT count(*) FROM gigs.gig_subscription_secret WHERE retired_at IS NOT NULL"
	),
	'0',
	'... whatever a snapshot still shows');

change("SELECT retire_gig_secret('$name', 'second', now() + '1 day')");
ask_everybody('duplicate', 'second', 'a secret is good until it is to retire');
change("UPDATE gig_subscription_secret SET retired_at = now() WHERE secret = 'second'");
ask_everybody('28000', 'second', 'a secret can be retired by hand');
ask_everybody('28000', undef, 'without a secret nothing goes without signature');
change("DELETE FROM gig_subscription_secret");
ask_everybody('28000', undef, '... even when all of them are gone');
change("UPDATE gig_subscription SET signed = false");
ask_everybody('duplicate', undef, '... unless it is declared to be unsigned');
change("SELECT drop_gig_subscription('$name')");
ask_everybody('28000', undef, 'a subscription is dropped, for all');
change("SELECT create_gig_subscription('$name', 'https://example.com/', 'third')");
ask_everybody('duplicate', 'third', '... and created, for all');
# TRUNCATE waits for whoever has read the table.
ask($sessions{'repeatable read'}, 'COMMIT');
ask($sessions{'repeatable read'}, 'BEGIN ISOLATION LEVEL REPEATABLE READ');
change('TRUNCATE gig_subscription_secret');
ask_everybody('28000', 'third', 'secrets are truncated, for all');
change("SELECT add_gig_secret('$name', 'third')");
ask_everybody('duplicate', 'third', '... and added, for all');
change("UPDATE gig_subscription SET name = 'another' WHERE name = '$name'");
ask_everybody('28000', 'third', 'a subscription is renamed, for all');
change("DELETE FROM gig_subscription; SELECT create_gig_subscription('$name', 'https://example.com/', 'third')");
ask($sessions{'repeatable read'}, 'COMMIT');

# What is rolled back has never been.
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

# A function that is declared to be what it isn't ingests nothing in a parallel
# query, and leaves the session none the worse, which has read no secret before.
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
# The extension comes and goes
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

# A schema is renamed under sessions that know it.
$node->safe_psql('postgres', 'ALTER SCHEMA gigs RENAME TO "Other gigs"');
is( ask($session,
		    'SELECT "Other gigs".ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal(sign($body, 'third'))
		  . ')'),
	'duplicate',
	'events go on in a schema that was renamed');
is( ask($session, 'SELECT * FROM "Other gigs".rebuild_gig_sync()'),
	'1|0', '... and so does rebuilding');
$node->safe_psql('postgres', 'ALTER SCHEMA "Other gigs" RENAME TO gigs');
is(ingest($session, 'third'), 'duplicate', '... and when it is renamed back');

# A table is altered under sessions that know it.
change('ALTER TABLE gig_account_sync ADD COLUMN note text');
is(ingest($session, 'third'), 'duplicate', 'a table has got a column');
change('ALTER TABLE gig_account_sync OWNER TO CURRENT_USER; ANALYZE');
is(ingest($session, 'third'), 'duplicate', '... and statistics');

$_->quit for values %sessions;
$node->stop;

done_testing();
