# Calls that are cancelled, time out or lose their session leave nothing, and the
# session goes on: batches that wait for a lock or work, drains, rebuilds, and
# transactions that are left open.
#
# GIGS_LONG makes the batches larger.

use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('cancel', "deadlock_timeout = '100ms'");
my $db = 'postgres';
my $size = $ENV{GIGS_LONG} ? 10_000 : 1_000;
my @direct = ('on', 'off');

create_gigs($node, $db);

sub sql { my ($query) = @_; return $node->safe_psql($db, $query) }

sub session
{
	my ($direct) = @_;
	my $session = $node->background_psql($db, on_error_stop => 0);

	ask($session, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct");
	return $session;
}

# A batch for 500 accounts; another offset makes other events.
sub batch
{
	my ($offset) = @_;

	return "SELECT take_all(array_agg(n % 500), array_agg(5 * n + $offset)) FROM generate_series(1, $size) AS n";
}

sub adds_up
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(troubles($node, $db), '', '... log and accounts agree');
	return;
}

# ---------------------------------------------------------------------------
# A batch waits for a lock: of the account that comes last, with all others locked
# ---------------------------------------------------------------------------

my $blocker = session('on');
my $lock_last = 'BEGIN; SELECT FROM gigs.gig_account_sync WHERE account_id ='
  . ' (SELECT max(account(n)::text)::uuid FROM generate_series(0, 499) AS n) FOR UPDATE';

sql('SELECT take_all(array_agg(n), array_agg(1)) FROM generate_series(0, 499) AS n');
for my $direct (@direct)
{
	for my $how ('statement_timeout', 'lock_timeout', 'pg_cancel_backend', 'pg_terminate_backend', 'ROLLBACK')
	{
		my $title = "direct_writes=$direct, $how";
		my $session = session($direct);
		my $pid = ask($session, 'SELECT pg_backend_pid()');
		my $rows = rows_of($node, $db);
		my $batch = batch(2);
		my $expected = {
			statement_timeout => '57014',
			lock_timeout => '55P03',
			pg_cancel_backend => '57014',
			ROLLBACK => "applied $size\nROLLED BACK"
		}->{$how};

		ask($blocker, $lock_last);
		begin_asking($session, ($how =~ /timeout/ ? "SET $how = '300ms'; " : '')
			. ($how eq 'ROLLBACK' ? "BEGIN; $batch; ROLLBACK; SELECT 'ROLLED BACK'" : $batch));
		wait_for_locks($node, $db, 1) if $how !~ /timeout/;
		is(answer($node, $db, 'BEGIN; SELECT take(1000000, 7); ROLLBACK'), 'applied', "$title: others are not blocked")
		  if $how eq 'pg_cancel_backend';
		sql("SELECT $how($pid)") if $how =~ /^pg_/;
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

# ---------------------------------------------------------------------------
# A batch is cancelled at any time
# ---------------------------------------------------------------------------

for my $direct (@direct)
{
	my $session = session($direct);
	my $rows = rows_of($node, $db);
	my $batch = batch($direct eq 'on' ? 3 : 1_000_003);
	my $cancelled = 0;
	my @bad;

	for my $timeout (1, 2, 5, 10, 20, 40, 60, 80, 100, 150)
	{
		my $got = ask($session, "SET statement_timeout = $timeout; BEGIN; $batch; ROLLBACK; RESET statement_timeout; SELECT 'on'");

		push @bad, "$timeout: $got" if $got !~ /^(applied $size\n)?on$/;
		$cancelled++ if $got eq 'on';
	}
	is("@bad", '', "direct_writes=$direct: a batch may be cancelled at any time");
	cmp_ok($cancelled, '>', 0, '... and is');
	is(rows_of($node, $db), $rows, '... nothing is left');
	is(ask($session, $batch), "applied $size", '... and then it is applied');
	is(ask($session, $batch), "duplicate $size", '... once');
	$session->quit;
}
adds_up();

# Of a batch that is not authentic, the server log has the first trace, which a
# batch that is cancelled while it is verified does not come to.  To read the batch
# takes less than the timeout, and to verify it takes more.
{
	my $log_before = -s $node->logfile;

	sql(q{
		CREATE TABLE unsigned (bodies bytea[]);
		ALTER TABLE unsigned ALTER bodies SET STORAGE EXTERNAL;
		INSERT INTO unsigned SELECT array_fill(hook(1, 1), ARRAY[200000])});
	my $start = time;
	sql('SELECT cardinality(array_append(bodies, NULL)) FROM unsigned');
	my $timeout = int(1000 * (time - $start)) + 20;
	like(answer($node, $db, "SET statement_timeout = '${timeout}ms'; SELECT count(*) FROM unsigned, gigs.ingest_gig_events(bodies, NULL)"),
		qr/^57014 /, 'a batch is cancelled while it is verified');
	unlike(substr(slurp_file($node->logfile), $log_before),
		qr/could not authenticate/, '... and not only after that');
}

# ---------------------------------------------------------------------------
# A rebuild, and the work of a consumer
# ---------------------------------------------------------------------------

# Each call waits for what the blocker has locked.
sub is_cancelled
{
	my ($title, $lock, $call, $again) = @_;
	my $session = session('on');
	my $rows = rows_of($node, $db);

	ask($blocker, "BEGIN; $lock");
	is(ask($session, "SET statement_timeout = '100ms'; $call"), '57014', "$title is cancelled");
	ask($blocker, 'ROLLBACK');
	is(rows_of($node, $db), $rows, '... nothing is left');
	is(ask($session, "RESET statement_timeout; $call"), $again, '... and then it works');
	$session->quit;
	return;
}

is_cancelled('a rebuild',
	'SELECT FROM gigs.gig_account_sync WHERE account_id = account(1) FOR UPDATE',
	'SELECT accounts_skipped FROM gigs.rebuild_gig_sync()', 0);
sql("SELECT gigs.create_gig_consumer('fetch')");
is_cancelled('reading work', 'LOCK TABLE gigs.gig_consumer_retry IN EXCLUSIVE MODE',
	"SELECT sum(events) FROM gigs.read_gig_work('fetch', 100)", 100);
is_cancelled('finishing work', 'LOCK TABLE gigs.gig_consumer IN EXCLUSIVE MODE',
	'SELECT count(gigs.finish_gig_work(batch)) FROM gigs.gig_consumer', 1);
is_cancelled('retrying the quarantine', 'LOCK TABLE gigs.gig_quarantine IN ACCESS EXCLUSIVE MODE',
	'SELECT * FROM gigs.retry_gig_quarantine()', '0|0');

# ---------------------------------------------------------------------------
# Drains
# ---------------------------------------------------------------------------

sql(q{
	CREATE TABLE backlog (id int PRIMARY KEY, body bytea, signature text, outcome text, error text);
	CREATE INDEX ON backlog (id) WHERE outcome IS NULL;
	INSERT INTO backlog SELECT n, b, sig(b) FROM generate_series(1, 200) AS n, hook(n % 20, 5 * n + 4) AS b;
	-- a batch that waits
	CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock(1);
		RETURN new;
	END
	$$;
	CREATE TRIGGER wait BEFORE UPDATE ON backlog FOR EACH ROW WHEN (new.id = 150) EXECUTE FUNCTION wait()});
for my $how ('pg_cancel_backend', 'pg_terminate_backend')
{
	my $first = $how eq 'pg_cancel_backend';

	ask($blocker, 'SELECT pg_advisory_lock(1)');
	my $client = start_client($node, $db, q{CALL gigs.drain_gig_inbox('backlog', 20)}, '-v', 'VERBOSITY=verbose');
	wait_for_locks($node, $db, 1);
	sql("SELECT count($how(pid)) FROM pg_stat_activity WHERE query LIKE 'CALL %' AND pid <> pg_backend_pid()");
	like((finish_client($client))[1], $first ? qr/ERROR:  57014: / : qr/FATAL:  57P01: /, "$how: a drain ends");
	is(sql('SELECT count(outcome), count(DISTINCT outcome) FROM backlog'), '140|1', '... batches that are finished stay so');
	is(sql('SELECT count(*) FROM gigs.gig_event_log AS l JOIN backlog AS b ON b.body = l.body'), 140, '... and the last one is not ingested');
	ask($blocker, 'SELECT pg_advisory_unlock(1)');
}
is(sql(q{CALL gigs.drain_gig_inbox('backlog', 20)}), '60|0', '... the next drain ingests the others');
is(sql('SELECT count(*), count(DISTINCT l.account_id) FROM gigs.gig_event_log AS l JOIN backlog AS b ON b.body = l.body'), '200|20', '... once');
adds_up();

# Each batch finds its rows by the index and by their place, if it has few of them.
sql(q{
	DROP TRIGGER wait ON backlog;
	TRUNCATE backlog;
	INSERT INTO backlog SELECT n, 'no JSON' FROM generate_series(1, 20000) AS n});
sql('VACUUM ANALYZE backlog');
sql('SELECT pg_stat_reset()');
sql(q{CALL gigs.drain_gig_inbox('backlog', 100)});
$node->poll_query_until($db, q{SELECT n_tup_upd = 20000 FROM pg_stat_user_tables WHERE relname = 'backlog'})
  or die 'the backlog was not drained';
is(sql(q{SELECT seq_scan < 10, outcome, count(*) FROM backlog, pg_stat_user_tables WHERE relname = 'backlog' GROUP BY 1, 2}),
	't|rejected|20000', 'a drain does not scan the whole backlog for each batch');

# ---------------------------------------------------------------------------
# Transactions that are left open
# ---------------------------------------------------------------------------

my $number = 90;

for my $direct (@direct)
{
	my $session = session($direct);
	my $idle = session('on');

	$number++;
	ask($idle, "SET idle_in_transaction_session_timeout = '100ms'");
	begin_asking($idle, "BEGIN; SELECT take(1, $number)");
	is(ask($session, "SELECT take(1, $number)"), 'applied', "direct_writes=$direct: a webhook that waits for an idle transaction is applied when that is terminated");
	$idle->{run}->finish;
	$session->quit;
}
adds_up();

$blocker->quit;
$node->stop;
done_testing();
