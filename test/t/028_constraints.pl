# What constraints, triggers, rules and policies that users add to the tables refuse
# is refused as a whole, with their error.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigTables;
use GigTest;

my $node = start_node('constraints');
my $raise = q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;};
my $known = 'CREATE TABLE known (id uuid PRIMARY KEY); INSERT INTO known SELECT account(n) FROM generate_series(0, 5) AS n;';
my $drop = q{CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';};
my $nested = q{CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM gigs.ingest_gig_event('{}', NULL); RETURN NEW; END $$;};
my @hidden = map { "gigs.$_" } @hot_tables, qw(gig_quarantine gig_subscription gig_consumer gig_consumer_retry);
my @refusals = (
	[ 'a constraint of accounts', 'ALTER TABLE gigs.gig_account_sync ADD CHECK (available_count < 5)', '23514' ],
	[ 'a constraint of the log', q{ALTER TABLE gigs.gig_event_log ADD CHECK (event <> 'gigs.removed')}, '23514' ],
	[ 'a unique index of accounts', 'CREATE UNIQUE INDEX ON gigs.gig_account_sync (user_id)', '23505' ],
	[ 'a unique index of the log', 'CREATE UNIQUE INDEX ON gigs.gig_event_log (event)', '23505' ],
	[ 'an index of an expression', 'CREATE INDEX ON gigs.gig_account_sync ((1 / (available_count - 8)))', '22012' ],
	[ 'an exclusion constraint', 'ALTER TABLE gigs.gig_account_sync ADD EXCLUDE USING btree (user_id WITH =)', '23P01' ],
	[ 'a column without a default', 'ALTER TABLE gigs.gig_event_log ADD COLUMN note text NOT NULL', '23502' ],
	[ 'a foreign key of accounts', "$known ALTER TABLE gigs.gig_account_sync ADD FOREIGN KEY (account_id) REFERENCES known", '23503' ],
	[ 'a deferred foreign key', "$known ALTER TABLE gigs.gig_event_log ADD FOREIGN KEY (account_id) REFERENCES known DEFERRABLE INITIALLY DEFERRED", '23503' ],
	[ 'a trigger', "$raise CREATE TRIGGER refuse AFTER INSERT ON gigs.gig_event_log FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION refuse()", 'P0001' ],
	[ 'a deferred trigger', "$raise CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON gigs.gig_event_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION refuse()", 'P0001' ],
	[ 'a trigger that ingests', "$nested CREATE TRIGGER nested AFTER INSERT ON gigs.gig_event_log FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION nested()", '27000' ],
	[ 'a trigger that drops events', "$drop CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_event_log FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION drop_row()", '27000' ],
	[ 'a trigger that drops accounts', "$drop CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_account_sync FOR EACH ROW WHEN (NEW.user_id = md5('user 2')::uuid) EXECUTE FUNCTION drop_row()", '40001' ],
	[ 'a rule of the log', 'CREATE RULE forget AS ON INSERT TO gigs.gig_event_log DO INSTEAD NOTHING', '27000' ],
	[ 'a policy', 'CREATE ROLE bound; GRANT USAGE ON SCHEMA gigs TO bound; ' . (join ' ', map { "ALTER TABLE $_ OWNER TO bound;" } @hidden)
		. q{ALTER TABLE gigs.gig_event_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON gigs.gig_event_log WITH CHECK (event <> 'gigs.removed')}, '42501' ]);

create_template($node);
for my $refusal (@refusals)
{
	my ($what, $sql, $sqlstate) = @$refusal;
	my $dbname = built($node, $sql);

	# accounts 6, 7 and 8 have the same user; number 8 is a removal
	like(answer($node, $dbname, "SELECT take_all('{5,6,7,8,9}', '{1,2,3,8,4}')"),
		qr/^$sqlstate /, "$what refuses a batch");
	is(rows_of($node, $dbname, @hot_tables), '', '... of which nothing is left');
	my $take = join ' ', map { "SELECT outcome FROM hook($_->[0], $_->[1]) AS b, gigs.try_ingest_gig_event(b, sig(b));" } [ 6, 2 ], [ 7, 7 ], [ 8, 8 ];
	like(answer($node, $dbname, "BEGIN; $take COMMIT"), qr/^$sqlstate /, '... or a single webhook');
	is(rows_of($node, $dbname, @hot_tables), '', '... of which nothing is left');
	is(answer($node, $dbname, 'SELECT take(5, 1)'), 'applied', '... others are applied') if $what !~ /without a default|rule/;
}

$node->stop;
done_testing();
