# The extension and its library are replaced under sessions that use them: dropped
# and created again, given to other owners, or installed anew.

use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('life', "deadlock_timeout = '100ms'");
my $db = 'postgres';

create_gigs($node, $db);

sub sql { my ($query) = @_; return $node->safe_psql($db, $query) }

sub adds_up
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(troubles($node, $db), '', '... log and accounts agree');
	return;
}

# Ingests a webhook that is signed with a secret, from any schema.
sub take_with
{
	my ($session, $secret, $n, $schema) = @_;

	$schema ||= 'gigs';
	return ask($session,
		"SELECT coalesce(sqlstate, outcome::text) FROM hook(1, $n) AS b, $schema.try_ingest_gig_event(b, $schema.sign_gig_event(b, '$secret'::text))");
}

# Uses all that a session caches: plans, OIDs, secrets.
sub use_all
{
	my ($session, $n) = @_;

	return ask($session, "SELECT take($n, 1); SELECT take_all('{1,2,3}', '{$n,$n,$n}'); SELECT take($n, 1); SELECT gigs.rebuild_gig_sync()");
}

my $all_used = qr/^applied\napplied 3\nduplicate\n\(\d+,0\)$/;

# Returns numbers of webhooks that are no partial syncs, and so never stale.
my $n = 10;

sub another { $n++; $n++ if $n % 5 == 0; return $n }

# ---------------------------------------------------------------------------
# Dropped and created again
# ---------------------------------------------------------------------------

my @sessions = start_sessions($node, $db);
my $new_secret = "SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'fresh')";

for (@sessions)
{
	my ($title, $session) = @$_;

	like(use_all($session, another()), $all_used, "$title: a session works");
}
sql('CREATE TABLE inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE VIEW mine AS SELECT account_id FROM gigs.gig_account_sync;
	CREATE TABLE noted (account_id uuid REFERENCES gigs.gig_account_sync, outcome gigs.gig_ingest_outcome)');
like(answer($node, $db, 'DROP EXTENSION gigs_webhooks'),
	qr/^2BP01 /, 'the extension is not dropped while other objects depend on it');
is(take_with($sessions[0][1], 'secret', 20), 'applied', '... and still works');
like(answer($node, $db, 'ALTER EXTENSION gigs_webhooks SET SCHEMA public'),
	qr/^0A000 /, 'it cannot be moved to another schema');

for (@sessions)
{
	my ($title, $session) = @$_;

	ask($session, 'BEGIN; SELECT take(1, 100)');
	like(answer($node, $db, "SET lock_timeout = '20ms'; DROP EXTENSION gigs_webhooks CASCADE"),
		qr/^55P03 /, "$title: the extension is not dropped under a transaction");
	my $client = start_client($node, $db,
		"SET client_min_messages = warning; BEGIN; DROP EXTENSION gigs_webhooks CASCADE; CREATE EXTENSION gigs_webhooks SCHEMA gigs; $new_secret; COMMIT;");
	wait_for_locks($node, $db, 1);
	is(ask($session, 'SELECT take(1, 101); COMMIT'), 'applied', '... which goes on');
	is((finish_client($client))[1], '', '... and then it is, and created again');
	for (@sessions)
	{
		my ($title, $session) = @$_;

		is(take_with($session, 'secret', 100), '28000', "$title: the secret of the dropped one is not valid");
		is(take_with($session, 'fresh', another()), 'applied', '... the new one is');
		is(take_with($session, 'fresh', $n), 'duplicate', '... redeliveries are duplicates');
	}
	is(sql("SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> 'duplicate'"), 2, '... and nothing else is left');
	adds_up();
	sql("SELECT gigs.add_gig_secret('payroll', 'secret')");
	like(use_all($session, another()), $all_used, '... all functions work');
}

for (@sessions)
{
	my ($title, $session) = @$_;
	my $owner = $node->background_psql($db, on_error_stop => 0);

	ask($owner, 'BEGIN; DROP EXTENSION gigs_webhooks');
	begin_asking($session, 'SELECT outcome FROM hook(1, 1) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, \'secret\'::text))');
	wait_for_locks($node, $db, 1);
	ask($owner, "CREATE EXTENSION gigs_webhooks SCHEMA gigs; $new_secret; COMMIT");
	# PostgreSQL does not lock functions: their results may not be described any more
	like(end_asking($session), qr/^(42883|42P01|XX000)$/, "$title: a call that waits while the extension is dropped fails");
	is(take_with($session, 'fresh', another()), 'applied', '... and the next call uses the new one');
	$owner->quit;
}

# a schema whose name must be quoted
sql('DROP EXTENSION gigs_webhooks; CREATE SCHEMA "Other s"; CREATE EXTENSION gigs_webhooks SCHEMA "Other s"; SELECT "Other s".create_gig_subscription(\'payroll\', \'https://example.com/\', \'elsewhere\')');
for (@sessions)
{
	my ($title, $session) = @$_;

	like(take_with($session, 'fresh', 1), qr/^42883$|^3F000$/, "$title: nothing is left in the old schema");
	is(take_with($session, 'elsewhere', another(), '"Other s"'), 'applied', '... in another schema it works');
	is(take_with($session, 'elsewhere', $n, '"Other s"'), 'duplicate', '... again');
}
sql("DROP EXTENSION gigs_webhooks; CREATE EXTENSION gigs_webhooks SCHEMA gigs; SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'secret')");

# ---------------------------------------------------------------------------
# Owners
# ---------------------------------------------------------------------------

sql('CREATE ROLE one; CREATE ROLE two; CREATE ROLE receiver; GRANT USAGE, CREATE ON SCHEMA gigs TO one, two;
	SELECT gigs.grant_gig_receiver(\'receiver\')');
ask($_->[1], 'SET ROLE receiver') for @sessions;

# Everything goes to an owner at once.
sub give_all
{
	my ($owner) = @_;

	return sql(
		"SELECT format('ALTER %s %s OWNER TO $owner;',
			CASE WHEN o.type IN ('function', 'procedure') THEN 'ROUTINE' ELSE upper(o.type) END, o.identity)
		FROM pg_depend AS d
		JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
		CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS o
		WHERE e.extname = 'gigs_webhooks' AND o.type IN ('table', 'view', 'function', 'procedure')
		ORDER BY o.type <> 'table', o.identity");
}
for my $owner ('one', 'two', 'postgres')
{
	my $altering = $node->background_psql($db, on_error_stop => 0);

	ask($altering, 'BEGIN; ' . give_all($owner));
	begin_asking($_->[1], 'SELECT take(1, ' . another() . ')') for @sessions;
	wait_for_locks($node, $db, 2);
	ask($altering, 'COMMIT');
	for (@sessions)
	{
		my ($title, $session) = @$_;

		# the call may have switched to the old owner before it waits
		like(end_asking($session), qr/^(applied|42501)$/, "$title: a webhook that waits while all goes to $owner is applied or refused");
		is(ask($session, 'SELECT take(1, ' . another() . "); SELECT take_all('{1,2}', '{$n,$n}')"),
			"applied\napplied 1, duplicate 1", '... and so are the next ones');
	}
	is(sql("SELECT tableowner FROM pg_tables WHERE tablename = 'gig_event_log'"), $owner, '... which is so');
	$altering->quit;
}
adds_up();
ask($_->[1], 'RESET ROLE') for @sessions;

# ---------------------------------------------------------------------------
# Sessions that are reset, as poolers do
# ---------------------------------------------------------------------------

for (@sessions)
{
	my ($title, $session) = @$_;
	my $direct = ask($session, 'SHOW gigs_webhooks.direct_writes');

	for my $reset ('DISCARD PLANS', 'DISCARD SEQUENCES', 'DISCARD TEMP',
		'DEALLOCATE ALL', 'DISCARD ALL', 'RESET ALL')
	{
		my $prepare = 'PREPARE p (int, int) AS SELECT take($1, $2)';

		another();
		is(ask($session, "$prepare; EXECUTE p(5, $n); EXECUTE p(5, $n)"), "applied\nduplicate", "$title: before $reset");
		ask($session, "$reset; SET gigs_webhooks.direct_writes = $direct");
		ask($session, $prepare) if $reset =~ /ALL/ && $reset !~ /RESET/;
		is(ask($session, "EXECUTE p(5, $n); EXECUTE p(6, $n); SELECT take_all('{5,6,7}', '{$n,$n,$n}'); DEALLOCATE p"),
			"duplicate\napplied\napplied 1, duplicate 2", '... and after it');
	}
}
adds_up();

# ---------------------------------------------------------------------------
# The library
# ---------------------------------------------------------------------------

my $library = sql("SELECT setting || '/gigs_webhooks.so' FROM pg_config WHERE name = 'PKGLIBDIR'");

SKIP:
{
	skip "$library cannot be replaced", 8 if !copy($library, "$library.new");
	rename "$library.new", $library or die "could not rename $library.new: $!";
	my @newer = start_sessions($node, $db);

	for (@sessions, @newer)
	{
		my ($title, $session) = @$_;

		like(use_all($session, another()), $all_used, "$title: sessions work after the library was replaced");
	}

	# between two packages the library may be missing
	rename $library, "$library.old" or die "could not rename $library: $!";
	is(ask($sessions[0][1], 'SELECT take(1, ' . another() . ')'), 'applied', 'without the library, sessions that have loaded it go on');
	like(answer($node, $db, 'SELECT take(1, 1)'), qr/^58P01 /, '... and others get an error');
	rename "$library.old", $library or die "could not rename $library.old: $!";
	is(answer($node, $db, 'SELECT take(1, ' . another() . ')'), 'applied', '... until it is back');
	adds_up();
	$_->[1]->quit for @newer;
}
$_->[1]->quit for @sessions;

# ---------------------------------------------------------------------------
# Tables that are new in a transaction: with wal_level=minimal their changes need
# not be in the WAL, and must survive a crash all the same
# ---------------------------------------------------------------------------

is(sql('SHOW wal_level'), 'minimal', 'wal_level is minimal');
for my $direct ('on', 'off')
{
	for my $threshold ('0', '2GB')
	{
		is(answer($node, $db, qq{
				SET client_min_messages = warning;
				LOAD 'gigs_webhooks';
				SET gigs_webhooks.direct_writes = $direct;
				SET wal_skip_threshold = '$threshold';
				BEGIN;
				DROP EXTENSION gigs_webhooks;
				CREATE EXTENSION gigs_webhooks SCHEMA gigs;
				SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'secret') \\g /dev/null
				SELECT take_all(array_agg(n % 20), array_agg(5 * n + 1)) FROM generate_series(1, 1000) AS n;
				SAVEPOINT s;
				SELECT take(1, 2);
				ROLLBACK TO s;
				COMMIT;
				SELECT take(1, 3);
			}), "applied 1000\napplied\napplied", "direct_writes=$direct, wal_skip_threshold=$threshold: a new extension is used at once");
		my $rows = rows_of($node, $db);

		$node->stop('immediate');
		$node->start;
		is(rows_of($node, $db), $rows, '... and everything is there after a crash');
		adds_up();
	}
}

$node->stop;
done_testing();
