# The life of a server: what owners, users and administrators do to the
# extension and its sessions, day in, day out.
#
# GIGS_LONG makes the rough part longer.

use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('life', 'max_prepared_transactions = 10',
	"deadlock_timeout = '100ms'", 'track_commit_timestamp = on');

create_gigs($node, 'template1');
$node->safe_psql('template1', 'CREATE EXTENSION amcheck');

# A database of its own for each part, with the extension.
sub fresh
{
	my ($dbname) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname TEMPLATE template1");
	return $dbname;
}

sub sql { my ($dbname, $query) = @_; return $node->safe_psql($dbname, $query) }

# A session, and one that works on the tables by SQL.
sub session
{
	my ($dbname, $direct) = @_;
	my $session = $node->background_psql($dbname, on_error_stop => 0);

	ask($session, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = "
		  . ($direct || 'on'));
	return $session;
}

sub both_sessions
{
	my ($dbname) = @_;

	return map { [ "direct_writes $_", session($dbname, $_) ] } 'on', 'off';
}

sub wait_for_locks
{
	my ($dbname, $n) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = $n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '$dbname'")
	  or die "there are no $n sessions waiting for locks";
	return;
}

sub adds_up
{
	my ($dbname, $title) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(troubles($node, $dbname), '', $title);
	return;
}

sub count_events { my ($dbname) = @_; return sql($dbname, 'SELECT count(*) FROM gigs.gig_event_log') }

# ---------------------------------------------------------------------------
# The extension goes and comes back, under sessions that know it
# ---------------------------------------------------------------------------

my $db = fresh('recreated');
my @sessions = both_sessions($db);
my $new_secret = "SELECT gigs.create_gig_subscription('payroll', 'https://example.com/', 'fresh')";

# What the sessions have cached: plans, OIDs, secrets.
sub take_with
{
	my ($session, $secret, $n, $schema) = @_;

	$schema ||= 'gigs';
	return ask($session,
		"SELECT coalesce(sqlstate, outcome::text) FROM hook(1, $n) AS b, $schema.try_ingest_gig_event(b, $schema.sign_gig_event(b, '$secret'::text))");
}

sub everything_applied
{
	my ($session, $n) = @_;

	return ask($session, "SELECT take($n, 1); SELECT take_all('{1,2,3}', '{$n,$n,$n}'); SELECT take($n, 1); SELECT gigs.rebuild_gig_sync()");
}

# Numbers of webhooks that are no partial syncs, and so never stale.
my $n = 10;

sub another { $n++; $n++ if $n % 5 == 0; return $n }

for (@sessions)
{
	my ($title, $session) = @$_;

	like(everything_applied($session, another()), qr/^applied\napplied 3\nduplicate\n\(\d+,0\)$/, "$title: a session works");
}
sql($db, 'CREATE TABLE inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE VIEW mine AS SELECT account_id FROM gigs.gig_account_sync;
	CREATE TABLE noted (account_id uuid REFERENCES gigs.gig_account_sync, outcome gigs.gig_ingest_outcome)');
like(answer($node, $db, 'DROP EXTENSION gigs_webhooks'),
	qr/^2BP01 /, 'what users have built upon the extension keeps it from being dropped');
is(take_with($sessions[0][1], 'secret', 20), 'applied', '... and it works on');
like(answer($node, $db, 'ALTER EXTENSION gigs_webhooks SET SCHEMA public'),
	qr/^0A000 /, 'it cannot be moved to another schema');

for my $i (0, 1)
{
	my ($title, $session) = @{ $sessions[$i] };

	# one has it in use, which the dropping waits for
	ask($session, 'BEGIN; SELECT take(1, 100)');
	like(answer($node, $db, "SET lock_timeout = '20ms'; DROP EXTENSION gigs_webhooks CASCADE"),
		qr/^55P03 /, "$title: the extension is not dropped under a transaction");
	my $client = start_client($node, $db,
		"SET client_min_messages = warning; BEGIN; DROP EXTENSION gigs_webhooks CASCADE; CREATE EXTENSION gigs_webhooks SCHEMA gigs; $new_secret; COMMIT;");
	wait_for_locks($db, 1);
	is(ask($session, 'SELECT take(1, 101); COMMIT'), 'applied', '... which goes on');
	is((finish_client($client))[1], '', '... and then it is, and created again');
	for (@sessions)
	{
		my ($title, $session) = @$_;

		is(take_with($session, 'secret', 100), '28000', "$title: an old secret is none");
		is(take_with($session, 'fresh', another()), 'applied', '... the new one is good');
		is(take_with($session, 'fresh', $n), 'duplicate', '... for what has come since');
	}
	is(count_events($db), 2, '... and nothing else is left');
	adds_up($db, '... all of which adds up');
	sql($db, "SELECT gigs.add_gig_secret('payroll', 'secret')");
	like(everything_applied($session, another()), qr/^applied\napplied 3\nduplicate\n\(\d+,0\)$/, '... every door is open');
}

# Those who come too late are told so.
for (@sessions)
{
	my ($title, $session) = @$_;
	my $owner = session($db);

	ask($owner, 'BEGIN; DROP EXTENSION gigs_webhooks');
	begin_asking($session, 'SELECT outcome FROM hook(1, 1) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, \'secret\'::text))');
	wait_for_locks($db, 1);
	ask($owner, "CREATE EXTENSION gigs_webhooks SCHEMA gigs; $new_secret; COMMIT");
	is(end_asking($session), '42883', "$title: what waits while the extension goes, finds it gone");
	is(take_with($session, 'fresh', another()), 'applied', '... and then the new one');
	$owner->quit;
}

# Another schema, whose name has to be quoted.
sql($db, 'DROP EXTENSION gigs_webhooks; CREATE SCHEMA "Other s"; CREATE EXTENSION gigs_webhooks SCHEMA "Other s"; SELECT "Other s".create_gig_subscription(\'payroll\', \'https://example.com/\', \'elsewhere\')');
for (@sessions)
{
	my ($title, $session) = @$_;

	like(take_with($session, 'fresh', 1), qr/^42883$|^3F000$/, "$title: nothing is left where the extension was");
	is(take_with($session, 'elsewhere', another(), '"Other s"'), 'applied', '... it has come up in another schema');
	is(take_with($session, 'elsewhere', $n, '"Other s"'), 'duplicate', '... and works');
}

# A schema is renamed, within somebody's transaction and under another's.
for (@sessions)
{
	my ($title, $session) = @$_;

	ask($session, 'BEGIN');
	is(take_with($session, 'elsewhere', another(), '"Other s"'), 'applied', "$title: before its schema is renamed");
	sql($db, 'ALTER SCHEMA "Other s" RENAME TO renamed');
	is(take_with($session, 'elsewhere', $n, 'renamed'), 'duplicate', '... after it, in the same transaction');
	ask($session, 'COMMIT');
	is(take_with($session, 'elsewhere', $n, 'renamed'), 'duplicate', '... and in the next');
	sql($db, 'ALTER SCHEMA renamed RENAME TO "Other s"');
}
$_->[1]->quit for @sessions;

# ---------------------------------------------------------------------------
# Owners and sessions change
# ---------------------------------------------------------------------------

$db = fresh('owners');
sql($db, q{
	CREATE ROLE one;
	CREATE ROLE two;
	CREATE ROLE receiver;
	GRANT USAGE ON SCHEMA gigs TO one, two, receiver;
	GRANT EXECUTE ON FUNCTION gigs.ingest_gig_event(bytea, text), gigs.ingest_gig_events(bytea[], text[]) TO receiver;
});
@sessions = both_sessions($db);
ask($_->[1], 'SET ROLE receiver') for @sessions;
my @tables = qw(gig_subscription gig_subscription_secret gig_event_log
  gig_delivery gig_account_sync gig_change);
my $alter = sub { my ($owner) = @_; return join '; ', map { "ALTER TABLE gigs.$_ OWNER TO $owner" } @tables };

for my $owner ('one', 'two', 'one', 'postgres')
{
	my $altering = session($db);

	ask($altering, 'BEGIN; ' . $alter->($owner));
	begin_asking($_->[1], 'SELECT take(1, ' . another() . ')') for @sessions;
	wait_for_locks($db, 2);
	ask($altering, 'COMMIT');
	for (@sessions)
	{
		my ($title, $session) = @$_;

		is(end_asking($session), 'applied', "$title: what waits while the tables go to $owner is applied");
		is(ask($session, 'SELECT take(1, ' . another() . "); SELECT take_all('{1,2}', '{$n,$n}')"),
			"applied\napplied 1, duplicate 1", '... and so is what comes next');
	}
	$altering->quit;
}
adds_up($db, '... all of which adds up');
$_->[1]->quit for @sessions;

# Poolers reset sessions; statements prepared by clients outlive it, or not.
@sessions = both_sessions($db);
for (@sessions)
{
	my ($title, $session) = @$_;
	my $direct = ask($session, 'SHOW gigs_webhooks.direct_writes');

	for my $reset ('DISCARD PLANS', 'DISCARD SEQUENCES', 'DISCARD TEMP',
		'DEALLOCATE ALL', 'DISCARD ALL', 'RESET ALL', 'SELECT 1')
	{
		my $prepare = 'PREPARE p (int, int) AS SELECT take($1, $2)';

		another();
		is(ask($session, "$prepare; EXECUTE p(5, $n); EXECUTE p(5, $n)"), "applied\nduplicate", "$title: before $reset");
		ask($session, "$reset; SET gigs_webhooks.direct_writes = $direct");
		ask($session, $prepare) if $reset =~ /ALL/ && $reset !~ /RESET/;
		is(ask($session, "EXECUTE p(5, $n); EXECUTE p(6, $n); SELECT take_all('{5,6,7}', '{$n,$n,$n}'); DEALLOCATE p"),
			"duplicate\napplied\napplied 1, duplicate 2", '... and after it');
	}
	$session->quit;
}
adds_up($db, '... all of which adds up');
