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

# ---------------------------------------------------------------------------
# Transactions that end elsewhere, late, or not at all
# ---------------------------------------------------------------------------

# Two-phase commit: of webhooks, and of secrets.
$db = fresh('prepared');
@sessions = both_sessions($db);
for (@sessions)
{
	my ($title, $session) = @$_;
	my $gid = $title;

	# an account of its own for each, as the prepared ones keep theirs locked
	ask($session, 'BEGIN; SELECT take(' . another() . ", 1); SELECT take_all('{$n,$n}', '{2,3}'); PREPARE TRANSACTION '$gid'");
	is(answer($node, $db, "SET lock_timeout = '20ms'; SELECT take($n, 1)"),
		'55P03 canceling statement due to lock timeout', "$title: a prepared transaction keeps its accounts");
	ask($session, 'BEGIN; SELECT take(' . another() . ", 1); PREPARE TRANSACTION '$gid back'");
	is(count_events($db), 0, '... and shows nothing');
}
ask($sessions[0][1], "BEGIN; SELECT gigs.add_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'add'");
is(take_with($sessions[0][1], 'added', 1), '28000', 'a secret is not good before it is committed');
$_->[1]->quit for @sessions;
$node->restart;
@sessions = both_sessions($db);
for (@sessions)
{
	my ($title, $session) = @$_;

	is(take_with($session, 'added', 1), '28000', "$title: nor after a restart");
}
sql($db, "COMMIT PREPARED 'add'");
for (@sessions)
{
	my ($title, $session) = @$_;

	is(take_with($session, 'added', another()), 'applied', "$title: a secret is good once another session has committed it");
}
ask($sessions[1][1], "BEGIN; SELECT gigs.retire_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'retire'");
is(take_with($_->[1], 'added', $n), 'duplicate', "$_->[0]: ... and as long as its retirement is only prepared") for @sessions;
sql($db, "ROLLBACK PREPARED 'retire'");
is(take_with($_->[1], 'added', $n), 'duplicate', "$_->[0]: ... or was rolled back") for @sessions;
ask($sessions[1][1], "BEGIN; SELECT gigs.retire_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'retire'");
sql($db, "COMMIT PREPARED 'retire'");
is(take_with($_->[1], 'added', $n), '28000', "$_->[0]: ... and not when it was committed") for @sessions;

my $events = count_events($db);
sql($db, "COMMIT PREPARED '$_->[0]'; ROLLBACK PREPARED '$_->[0] back'") for @sessions;
is(count_events($db), $events + 6, 'prepared webhooks are there when they are committed');
adds_up($db, '... all of which adds up');
$_->[1]->quit for @sessions;

# In the middle of a large batch: where it waits for an account, with others
# locked already; or for a gig, with all but that written.  And anywhere.
$db = fresh('stopped');
my $size = $ENV{GIGS_LONG} ? 10_000 : 1_000;
my $large = "SELECT take_all(array_agg(n % 500), array_agg(5 * n + 1)) FROM generate_series(1, $size) AS n";
my ($batch_start, $blocker) = (0, session($db));
sql($db, "SELECT take_all(array_agg(n), array_agg(1)) FROM generate_series(0, 499) AS n");
sub blocked_by
{
	my ($where) = @_;

	# the account that comes last, or a gig of the batch that isn't there yet
	return $where eq 'an account'
	  ? 'SELECT FROM gigs.gig_account_sync WHERE account_id = (SELECT max(account(n)::text)::uuid FROM generate_series(0, 499) AS n) FOR UPDATE'
	  : "INSERT INTO gigs.gig_change SELECT account(7), md5('7 ' || 5 * 507 + 2)::uuid, 'gigs.updated', now(), 1";
}
for my $direct ('on', 'off')
{
	for my $where ('an account', 'a gig')
	{
		for my $how ('statement_timeout', 'lock_timeout', 'pg_cancel_backend', 'pg_terminate_backend', 'ROLLBACK')
		{
			my $title = "direct_writes $direct, $how while waiting for $where";
			my $session = session($db, $direct);
			my $pid = ask($session, 'SELECT pg_backend_pid()');
			my $rows = rows_of($node, $db);
			my ($batch) = $large =~ s/5 \* n \+ 1/5 * n + 2/r;
			my $expected = {
				statement_timeout => '57014',
				lock_timeout => '55P03',
				pg_cancel_backend => '57014',
				ROLLBACK => "applied $size\nROLLED BACK"
			}->{$how};

			ask($blocker, 'BEGIN; ' . blocked_by($where));
			begin_asking($session, ($how =~ /timeout/ ? "SET $how = '300ms'; " : '')
				. ($how eq 'ROLLBACK' ? "BEGIN; $batch; ROLLBACK; SELECT 'ROLLED BACK'" : $batch));
			wait_for_locks($db, 1) if $how !~ /timeout/;
			sql($db, "SELECT $how($pid)") if $how =~ /^pg_/;
			# others aren't held up
			is(answer($node, $db, 'BEGIN; SELECT take(1000000, ' . another() . '); ROLLBACK'), 'applied', "$title: others go on")
			  if $how eq 'pg_cancel_backend';
			ask($blocker, 'ROLLBACK') if $how eq 'ROLLBACK';
			if ($how eq 'pg_terminate_backend')
			{
				$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)")
				  or die 'the session is still there';
				$session->{run}->finish;
				$session = undef;
			}
			else
			{
				is(end_asking($session), $expected, $title);
			}
			ask($blocker, 'ROLLBACK');
			is(rows_of($node, $db), $rows, "$title: nothing is left");
			next if !$session;
			is(ask($session, "RESET statement_timeout; RESET lock_timeout; BEGIN; $batch; ROLLBACK"),
				"applied $size", '... and the session goes on');
			$session->quit;
		}
	}
}
for my $direct ('on', 'off')
{
	my $session = session($db, $direct);
	my $rows = rows_of($node, $db);
	my ($batch) = $large =~ s/5 \* n \+ 1/5 * n + 3/r;
	my @bad;

	for my $timeout (1, 2, 5, 10, 20, 40, 60, 80, 100, 150)
	{
		my $got = ask($session, "SET statement_timeout = $timeout; BEGIN; $batch; ROLLBACK; RESET statement_timeout; SELECT 'on'");

		push @bad, "$timeout: $got" if $got !~ /^(applied $size\n)?on$/;
	}
	is("@bad", '', "direct_writes $direct: a batch may be cancelled at any time");
	is(rows_of($node, $db), $rows, '... nothing is left');
	is(ask($session, $batch), "applied $size", '... and then it is applied');
	is(ask($session, $batch), "duplicate $size", '... once');
	$session->quit;
	last if $direct eq 'on' && !$ENV{GIGS_LONG};
}
adds_up($db, '... all of which adds up');

# A transaction that is left open is ended by the server, and others go on.
for (both_sessions($db))
{
	my ($title, $session) = @$_;
	my $idle = session($db);

	ask($idle, "SET idle_in_transaction_session_timeout = '100ms'");
	begin_asking($idle, 'BEGIN; SELECT take(1, ' . another() . ')');
	is(ask($session, "SELECT take(1, $n)"), 'applied', "$title: who waits for a session that is idle goes on when that is ended");
	$idle->{run}->finish;
	$session->quit;
}
adds_up($db, '... all of which adds up');
$blocker->quit;
