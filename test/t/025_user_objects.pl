# What users add to the extension's tables, or make of them: partitions, triggers,
# constraints, columns, indexes.  Webhooks have the same outcomes with them.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigMix;
use GigTables;
use GigTest;

my $node = start_node('objects', "deadlock_timeout = '100ms'");

create_template($node);

# Returns statements for each table, which <> stands for.
sub of_each { my ($statements) = @_; return join ' ', map { $statements =~ s/<>/$_/gr } @hot_tables }

my %objects = (
	'partitioned tables' => join('', map { replace_table($_, 3) } @hot_tables),
	'tables that were partitioned' => join('', map { replace_table($_, 2) . replace_table($_, 0) } @hot_tables),
	'a partitioned log' => replace_table('gig_event_log', 2),
	'partitioned accounts' => replace_table('gig_account_sync', 2),
	'unlogged tables' => of_each('ALTER TABLE gigs.<> SET UNLOGGED;'),
	'a full replica identity' => of_each('ALTER TABLE gigs.<> REPLICA IDENTITY FULL;'),
	'other columns' => of_each("ALTER TABLE gigs.<> ADD COLUMN note text DEFAULT 'x', ADD COLUMN twice text GENERATED ALWAYS AS (account_id::text || account_id::text) STORED;"),
	'dropped columns' => of_each('ALTER TABLE gigs.<> ADD COLUMN note text; ALTER TABLE gigs.<> DROP COLUMN note;'),
	'other indexes' => of_each('CREATE INDEX ON gigs.<> (account_id, (account_id::text)); CREATE INDEX ON gigs.<> USING hash (account_id);'),
	'constraints' => of_each('ALTER TABLE gigs.<> ADD CHECK (account_id IS NOT NULL);'),
	'row security' => of_each('ALTER TABLE gigs.<> ENABLE ROW LEVEL SECURITY;'),
	'child tables' => of_each('CREATE TABLE <>_child () INHERITS (gigs.<>);'),
	'foreign keys to the tables' => 'CREATE TABLE mine (account_id uuid PRIMARY KEY REFERENCES gigs.gig_account_sync ON DELETE CASCADE);
		CREATE TABLE noted (event_id bigint, account_id uuid, FOREIGN KEY (event_id, account_id) REFERENCES gigs.gig_event_log ON DELETE CASCADE);',
	'a foreign key of the log' => 'ALTER TABLE gigs.gig_event_log ADD FOREIGN KEY (account_id) REFERENCES gigs.gig_account_sync, ADD FOREIGN KEY (account_id) REFERENCES gigs.gig_account_sync DEFERRABLE INITIALLY DEFERRED;',
	'a deferrable key' => 'ALTER TABLE gigs.gig_event_log ADD UNIQUE (event_id) DEFERRABLE INITIALLY DEFERRED;',
	'row triggers' => q{CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';}
	  . of_each('CREATE TRIGGER pass BEFORE INSERT OR UPDATE ON gigs.<> FOR EACH ROW EXECUTE FUNCTION pass(); CREATE TRIGGER pass2 AFTER INSERT OR UPDATE ON gigs.<> FOR EACH ROW EXECUTE FUNCTION pass();'),
	'statement triggers' => q{CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM count(*) FROM new; RETURN NULL; END';}
	  . of_each('CREATE TRIGGER pass AFTER INSERT ON gigs.<> REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION pass(); CREATE TRIGGER pass2 AFTER UPDATE ON gigs.<> REFERENCING NEW TABLE AS new OLD TABLE AS old FOR EACH STATEMENT EXECUTE FUNCTION pass();'),
);

my $expected = answer($node, 'template', "BEGIN; $mix; ROLLBACK");

like($expected, qr/applied .*duplicate .*stale .*rejected .*quarantined .*ignored/s, 'webhooks have all outcomes');
for my $what (sort keys %objects)
{
	my $dbname = built($node, $objects{$what});

	is( first_difference(
			[ split /[;\n]/, answer($node, $dbname, "BEGIN; $mix; ROLLBACK") ],
			[ split /[;\n]/, $expected ]),
		'', "the outcomes are the same with $what");
	is(answer($node, $dbname, q{
			SELECT take_all(array_agg(n % 20), array_agg(5 * n + 1)) FROM generate_series(1, 100) AS n;
			VACUUM FREEZE;
			SELECT take(1, 6); SELECT take(1, 7);
			SELECT sum(accounts) FROM gigs.gig_sync_summary;
			SELECT count(user_id) FROM gigs.gig_event_history}),
		"applied 100\nduplicate\napplied\n20\n102", '... also of batches, and reports see the events');
	is(troubles($node, $dbname), '', '... log and accounts agree');
	is(answer($node, $dbname, q{
			SELECT sum(events) FROM gigs.read_gig_work('mix');
			SELECT count(gigs.finish_gig_work(batch)) FROM gigs.gig_consumer;
			SET gigs_webhooks.dedupe_window = 0;
			SELECT * FROM gigs.prune_gig_events('0')}),
		"102\n1\n102|", '... a consumer processes them, and they can be pruned');
}

# Rows that refer to an account lock its key only.
my $db = built($node, $objects{'foreign keys to the tables'} . 'SELECT take(1, 2)');

for (start_sessions($node, $db))
{
	my ($title, $session) = @$_;
	my $referring = $node->background_psql($db, on_error_stop => 0);
	my $n = $title =~ /on/ ? 12 : 13;

	ask($referring, 'BEGIN; INSERT INTO mine VALUES (account(1)); INSERT INTO noted SELECT event_id, account_id FROM gigs.gig_event_log');
	is(ask($session, "SET lock_timeout = '1s'; SELECT take(1, $n); SELECT take(1, 2)"),
		"applied\nduplicate", "$title: rows that refer to an account do not block its webhooks");
	ask($referring, 'ROLLBACK');
	$_->quit for $referring, $session;
}
is(troubles($node, $db), '', '... log and accounts agree');

$node->stop;
done_testing();
