# Owners alter and replace the extension's tables while clients ingest: every event
# is applied, and once.
#
# GIGS_LONG alters each table in all ways, many times.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigTables;
use GigTest;

my $node = start_node('alter');

create_template($node);
$node->safe_psql('postgres', 'CREATE ROLE one');

# ---------------------------------------------------------------------------
# A table is replaced while sessions wait for it, and under those that have used
# it earlier in their transactions.  The old one is kept renamed: what was written
# to it would be lost.
# ---------------------------------------------------------------------------

my $db = built($node, 'SELECT take(1, 1)');
my @sessions = start_sessions($node, $db);
my $n = 10;

sub another { $n++; $n++ if $n % 5 == 0; return $n }

for my $table (@hot_tables)
{
	for my $step ([ 2, 'waits' ], [ 0, 'goes on' ], [ 2, 'goes on' ], [ 0, 'waits' ])
	{
		my ($partitions, $what) = @$step;
		my $title = "a transaction $what when $table is replaced by " . ($partitions ? 'partitions' : 'an ordinary table');
		my $altering = $node->background_psql($db, on_error_stop => 0);
		my $replace = replace_table($table, $partitions);

		$replace =~ s/DROP TABLE gigs.old_table;\s+COMMIT;\s*$//
		  or die 'unexpected end of replace_table()';
		ask($_->[1], 'BEGIN; SELECT 1') for @sessions;
		ask($altering, $replace);
		if ($what eq 'waits')
		{
			# accounts of their own, because one commits after the other
			begin_asking($sessions[$_][1], "SELECT take($_, " . another() . ')') for 0, 1;
			wait_for_locks($node, $db, 2);
		}
		ask($altering, 'COMMIT');
		for my $i (0, 1)
		{
			my ($direct, $session) = @{ $sessions[$i] };

			is($what eq 'waits' ? end_asking($session) : ask($session, "SELECT take($i, " . another() . ')'),
				'applied', "$direct: $title");
			ask($session, 'COMMIT');
		}
		is($node->safe_psql($db, "SELECT relkind FROM pg_class WHERE oid = 'gigs.$table'::regclass"), $partitions ? 'p' : 'r', '... which it is');
		is(troubles($node, $db), '', '... log and accounts agree');
		ask($altering, 'DROP TABLE gigs.old_table');
		$altering->quit;
	}
}
is($node->safe_psql($db, 'SELECT count(*) FROM gigs.gig_event_log'), 1 + @hot_tables * 4 * 2, '... no event is lost');
$_->[1]->quit for @sessions;

# ---------------------------------------------------------------------------
# Tables are altered again and again while clients ingest
# ---------------------------------------------------------------------------

# Clients ingest until they are told to stop, and return the number of events.
# Each event comes twice, and batches of a client cross those of others.
$db = built(
	$node, q{
	GRANT USAGE ON SCHEMA gigs TO one;
	CREATE TABLE stop ();
	CREATE PROCEDURE ingest(client int, INOUT n_events bigint DEFAULT 0) LANGUAGE plpgsql AS $$
	DECLARE
		n int := client * 1000000;
		outcomes text;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
			outcomes := public.take(n % 30, n) || ' ' || public.take(n % 30, n);
			IF outcomes !~ '^(applied|stale) duplicate$' THEN
				RAISE 'outcomes are %', outcomes;
			END IF;
			COMMIT;
			PERFORM public.take_all(array_agg((n + client * i) % 30), array_agg(n + i))
			FROM generate_series(1, 10) AS i;
			COMMIT;
			n := n + 11;
			n_events := n_events + 11;
		END LOOP;
	END
	$$;
	SELECT take_all(array_agg(n), array_agg(1)) FROM generate_series(0, 29) AS n;
});
$node->safe_psql('postgres', "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET autovacuum_naptime = '1s'; ALTER SYSTEM SET autovacuum_vacuum_threshold = 1;
	ALTER SYSTEM SET autovacuum_vacuum_scale_factor = 0; ALTER SYSTEM SET autovacuum_analyze_threshold = 1; ALTER SYSTEM SET autovacuum_analyze_scale_factor = 0; SELECT pg_reload_conf()");
mkdir $node->basedir . '/elsewhere';
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '" . $node->basedir . "/elsewhere'");

my @tables = map { "gigs.$_" } @hot_tables, qw(gig_subscription gig_quarantine);
my @upkeep = map { "$_ gigs.<>;" } 'VACUUM', 'VACUUM FULL', 'VACUUM (FREEZE)', 'ANALYZE', 'REINDEX TABLE', 'REINDEX TABLE CONCURRENTLY';
my @changes = (
	'CLUSTER gigs.<> USING <>_pkey;',
	"CREATE INDEX CONCURRENTLY another ON gigs.<> (account_id);\nDROP INDEX CONCURRENTLY gigs.another;",
	"CREATE INDEX another ON gigs.<> (account_id);\nDROP INDEX gigs.another;",
	"ALTER TABLE gigs.<> ADD COLUMN note text;\nALTER TABLE gigs.<> ALTER COLUMN note SET DEFAULT 'x';\nALTER TABLE gigs.<> ALTER COLUMN note TYPE varchar;\nALTER TABLE gigs.<> DROP COLUMN note;",
	"ALTER TABLE gigs.<> ADD CONSTRAINT c CHECK (account_id IS NOT NULL) NOT VALID;\nALTER TABLE gigs.<> VALIDATE CONSTRAINT c;\nALTER TABLE gigs.<> DROP CONSTRAINT c;",
	"CREATE TRIGGER pass BEFORE INSERT ON gigs.<> FOR EACH ROW EXECUTE FUNCTION pass();\nALTER TABLE gigs.<> DISABLE TRIGGER pass;\nDROP TRIGGER pass ON gigs.<>;",
	"ALTER TABLE gigs.<> SET UNLOGGED;\nALTER TABLE gigs.<> SET LOGGED;",
	"ALTER TABLE gigs.<> ENABLE ROW LEVEL SECURITY;\nALTER TABLE gigs.<> DISABLE ROW LEVEL SECURITY;",
	"ALTER TABLE gigs.<> REPLICA IDENTITY FULL;\nALTER TABLE gigs.<> REPLICA IDENTITY DEFAULT;",
	"CREATE TABLE child () INHERITS (gigs.<>);\nDROP TABLE child;",
	"CREATE TABLE mine (account_id uuid REFERENCES gigs.gig_account_sync);\nDROP TABLE mine;",
	"ALTER TABLE gigs.<> SET (fillfactor = 50);\nALTER TABLE gigs.<> RESET (fillfactor);",
	"ALTER TABLE gigs.<> ALTER COLUMN account_id SET STATISTICS 10;\nALTER TABLE gigs.<> ALTER COLUMN account_id SET STORAGE PLAIN;",
	# All at once, because an owner may not write another's table.  No order of them
	# avoids deadlocks with transactions that ingest several times, so that the lock
	# timeout, which is shorter than the deadlock timeout, has to.
	(join "\n", map {
			my $owner = $_;

			"SET lock_timeout = '100ms';\nDO \$\$\nBEGIN\nLOOP\nBEGIN\n" . join("\n", map { "ALTER TABLE $_ OWNER TO $owner;" } @tables)
			  . "\nEXIT;\nEXCEPTION WHEN lock_not_available THEN\nEND;\nEND LOOP;\nEND\n\$\$;\nRESET lock_timeout;"
		} 'one', 'postgres'),
	"ALTER TABLE gigs.<> SET TABLESPACE elsewhere;\nALTER TABLE gigs.<> SET TABLESPACE pg_default;");
my $script = q{
	SET client_min_messages = warning;
	CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
};
for my $round (1 .. ($ENV{GIGS_LONG} ? 20 : 1))
{
	for my $t (0 .. $#hot_tables)
	{
		my $table = $hot_tables[$t];
		# half of the changes for each table in a short run
		my @statements = (@upkeep, map { $changes[$_] } grep { $ENV{GIGS_LONG} || $_ % 2 == $t } 0 .. $#changes);

		$script .= join "\n", (map { s/<>/$table/gr } @statements), replace_table($table, 2), replace_table($table, 0), '';
	}
}

my @clients = map {
	start_client($node, $db, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = " . ($_ % 2 ? 'on' : 'off') . "; CALL ingest($_)")
} 1 .. 4;
my ($out, $error) = finish_client(start_client($node, $db, $script, '-v', 'ON_ERROR_STOP=1'));
my $events = $node->safe_psql($db, 'SELECT count(*) FROM gigs.gig_event_log');

is($error, '', 'tables can be altered while clients ingest');
# unless all of them have failed
$node->poll_query_until($db, "SELECT (SELECT count(*) > $events + 50 FROM gigs.gig_event_log)
	OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'CALL ingest%')")
  or die 'clients do not go on';
$node->safe_psql($db, 'INSERT INTO stop DEFAULT VALUES');

my ($ingested, $errors) = (0, '');

for (@clients)
{
	my ($out, $err) = finish_client($_);

	$errors .= $err;
	$ingested += $1 if $out =~ /^(\d+)$/m;
}
is($errors, '', '... who get no error');
is($node->safe_psql($db, 'SELECT count(*) FILTER (WHERE body IS NOT NULL), count(*) FILTER (WHERE body IS NULL) FROM gigs.gig_event_log'),
	30 + $ingested . '|' . $ingested / 11, '... every event is there once, and every redelivery');
is(troubles($node, $db), '', '... log and accounts agree');
note "$ingested events were ingested meanwhile";

# ---------------------------------------------------------------------------
# The primary key is rebuilt while rows move: ON CONFLICT (account_id) would not
# see them in the new index
# ---------------------------------------------------------------------------

$node->safe_psql($db, q{
	TRUNCATE stop;
	CREATE INDEX moves_rows ON gigs.gig_account_sync (last_event_at);
	CREATE PROCEDURE ingest_batches(client int) LANGUAGE plpgsql AS $$
	DECLARE
		n int := client * 1000000;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM public.stop) LOOP
			PERFORM public.take_all(array_agg((n + client * i) % 30), array_agg(n + i))
			FROM generate_series(1, 10) AS i;
			COMMIT;
			n := n + 11;
		END LOOP;
	END
	$$;
});
@clients = map {
	start_client($node, $db, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = off; SET gigs_webhooks.dedupe_window = '1s'; CALL ingest_batches($_)")
} 1 .. 4;
$events = $node->safe_psql($db, 'SELECT max(event_id) FROM gigs.gig_event_log');
$node->poll_query_until($db, "SELECT count(DISTINCT account_id) = 30 FROM gigs.gig_event_log WHERE event_id > $events")
  or die 'clients do not begin';
$node->safe_psql($db, 'REINDEX INDEX CONCURRENTLY gigs.gig_account_sync_pkey') for 1 .. ($ENV{GIGS_LONG} ? 200 : 10);
$node->safe_psql($db, 'INSERT INTO stop DEFAULT VALUES');
is(join('', map { (finish_client($_))[1] } @clients), '', 'the primary key can be rebuilt while clients ingest');

$node->stop;
done_testing();
