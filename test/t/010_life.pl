# The life of a server: what owners, users and administrators do to the
# extension and its sessions, day in, day out.
#
# GIGS_LONG makes batches larger and the rough part longer, and takes settings one
# by one.

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
# in the order in which they are locked, and those last that are not for long
my @tables = qw(gig_event_log gig_account_sync gig_delivery gig_change
  gig_subscription gig_subscription_secret);
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
	my $offset = $direct eq 'on' ? 3 : 1_000_003;
	my $batch = $large =~ s/5 \* n \+ 1/5 * n + $offset/r;
	my @bad;
	my $cancelled = 0;

	for my $timeout (1, 2, 5, 10, 20, 40, 60, 80, 100, 150)
	{
		my $got = ask($session, "SET statement_timeout = $timeout; BEGIN; $batch; ROLLBACK; RESET statement_timeout; SELECT 'on'");

		push @bad, "$timeout: $got" if $got !~ /^(applied $size\n)?on$/;
		$cancelled++ if $got eq 'on';
	}
	is("@bad", '', "direct_writes $direct: a batch may be cancelled at any time");
	cmp_ok($cancelled, '>', 0, '... and is');
	is(rows_of($node, $db), $rows, '... nothing is left');
	is(ask($session, $batch), "applied $size", '... and then it is applied');
	is(ask($session, $batch), "duplicate $size", '... once');
	$session->quit;
}
adds_up($db, '... all of which adds up');

# ... and while it is read: of what is refused a line in the log is the first
# that is to be seen, and it comes to none.
{
	my $log_before = -s $node->logfile;

	sql($db, q{
		CREATE TABLE unsigned (bodies bytea[]);
		ALTER TABLE unsigned ALTER bodies SET STORAGE EXTERNAL;
		INSERT INTO unsigned SELECT array_fill(hook(1, 1), ARRAY[100000])});
	like(answer($node, $db, "SET statement_timeout = '60ms'; SELECT count(*) FROM unsigned, gigs.ingest_gig_events(bodies, NULL)"),
		qr/^57014 /, 'a batch is cancelled while it is read');
	unlike(substr(slurp_file($node->logfile), $log_before),
		qr/could not authenticate/, '... and not only after that');
}

# A backlog is not read again for every batch that is drained of it.
sql($db, q{
	CREATE TABLE backlog (id int PRIMARY KEY, body bytea, signature text, outcome text, error text);
	CREATE INDEX ON backlog (id) WHERE outcome IS NULL;
	INSERT INTO backlog SELECT n, 'no JSON' FROM generate_series(1, 20000) AS n});
sql($db, 'VACUUM ANALYZE backlog');
sql($db, q{SELECT pg_stat_reset()});
sql($db, q{CALL gigs.drain_gig_inbox('backlog', 1000)});
$node->poll_query_until($db, q{SELECT n_tup_upd = 20000 FROM pg_stat_user_tables WHERE relname = 'backlog'})
  or die 'the backlog was not drained';
is(sql($db, q{SELECT seq_scan, outcome, count(*) FROM backlog, pg_stat_user_tables WHERE relname = 'backlog' GROUP BY 1, 2}),
	'0|rejected|20000', 'a backlog is drained by where its rows lie');

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

# ---------------------------------------------------------------------------
# Subtransactions
# ---------------------------------------------------------------------------

$db = fresh('subtransactions');
sql($db, q{
	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY, body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	-- ingests what an exception block then takes back, or keeps
	CREATE FUNCTION caught(first int, last int, OUT good int, OUT bad int, OUT taken_back int) LANGUAGE plpgsql AS $$
	DECLARE
		body bytea;
	BEGIN
		good := 0; bad := 0; taken_back := 0;
		FOR i IN first .. last LOOP
			BEGIN
				body := CASE WHEN i % 3 = 0 THEN 'junk' ELSE hook(i % 10, i) END;
				PERFORM gigs.ingest_gig_event(body, sig(body));
				IF i % 3 = 1 THEN
					RAISE division_by_zero;
				END IF;
				good := good + 1;
			EXCEPTION
				WHEN division_by_zero THEN taken_back := taken_back + 1;
				WHEN invalid_json_text THEN bad := bad + 1;
			END;
		END LOOP;
	END
	$$;
});
my %doors = (
	'ingest_gig_event' => 'SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, %d) AS b',
	'try_ingest_gig_event' => 'SELECT outcome FROM hook(1, %d) AS b, gigs.try_ingest_gig_event(b, sig(b))',
	'ingest_gig_events' => 'SELECT outcome FROM hook(1, %d) AS b, gigs.ingest_gig_events(ARRAY[b], ARRAY[sig(b)])',
	'an inbox' => 'INSERT INTO inbox (body, signature) SELECT b, sig(b) FROM hook(1, %d) AS b RETURNING outcome');
@sessions = both_sessions($db);
for (@sessions)
{
	my ($title, $session) = @$_;

	for my $door (sort keys %doors)
	{
		my $take = sprintf $doors{$door}, another();
		my $rows = rows_of($node, $db);

		is(ask($session, "BEGIN; SAVEPOINT s; $take; $take; ROLLBACK TO s; ROLLBACK"),
			"applied\nduplicate", "$title: $door in a savepoint");
		is(rows_of($node, $db), $rows, '... which is rolled back, leaves nothing');
		is(ask($session, "BEGIN; SAVEPOINT s; $take; ROLLBACK TO s; $take; RELEASE s; $take; SAVEPOINT t; $take; ROLLBACK TO t; COMMIT"),
			"applied\napplied\nduplicate\nduplicate", '... and the webhook is then new');
		is(ask($session, $take), 'duplicate', '... once');
	}
	is(ask($session, 'SELECT * FROM caught(' . (another() + 1000) . ', ' . ($n + 1299) . ')'),
		'100|100|100', "$title: exception blocks catch bad webhooks and take back good ones");
	$n += 1300;
}
adds_up($db, '... all of which adds up');
is(sql($db, 'SELECT count(DISTINCT xmin::text) > 100 FROM gigs.gig_event_log'), 't', '... by many subtransactions');

# A transaction with more subtransactions than a snapshot has room for; others
# wait for it, and then know what it has brought.
for (@sessions)
{
	my ($title, $session) = @$_;
	my $many = session($db, $title =~ /off/ ? 'on' : 'off');
	my $first = another() + 10;

	$n += 500;
	ask($session, 'SELECT count(take(a, ' . $first . ')) FROM generate_series(1, 200) AS a') if $title =~ /off/;
	ask($many, "BEGIN;\n" . join '', map { "SAVEPOINT s; SELECT take($_, $n);\nRELEASE s;\n" } 1 .. 200);
	begin_asking($session, "SELECT take(1, $n); SELECT take(150, $n); SELECT take_all(array_agg(a), array_agg($n)) FROM generate_series(1, 200) AS a");
	wait_for_locks($db, 1);
	my $alone = session($db, 'off');
	begin_asking($alone, "SELECT take(180, $n); SELECT take(180, $n + 5)");
	wait_for_locks($db, 2);
	ask($many, 'COMMIT');
	is(end_asking($session), "duplicate\nduplicate\nduplicate 200", "$title: what 200 subtransactions have brought is known to who waited for them");
	is(end_asking($alone), "duplicate\napplied", '... by SQL as well');
	$_->quit for $many, $alone;
}
adds_up($db, '... all of which adds up');
$_->[1]->quit for @sessions;

# ---------------------------------------------------------------------------
# Whatever a session is set to, the outcomes are the same
#
# Several settings at a time, or with GIGS_LONG each by itself.
# ---------------------------------------------------------------------------

$db = fresh('settings');
sql($db, q{
	-- webhooks of all kinds, good and bad, of all spellings; "n" tells accounts apart
	CREATE FUNCTION zoo(n int, OUT bodies bytea[], OUT sigs text[]) LANGUAGE sql AS $$
		SELECT array_agg(h.body ORDER BY h.ord), array_agg(h.sig ORDER BY h.ord)
		FROM (
			SELECT i AS ord, b AS body, sig(b) AS sig FROM generate_series(1, 12) AS i, hook(n, i) AS b
			UNION ALL
			SELECT 20 + i, b, sig(b) FROM generate_series(1, 3) AS i, hook(n, 1) AS b
			UNION ALL
			SELECT 30 + o, b, CASE WHEN o % 7 = 3 THEN NULL ELSE sig(b) END
			FROM unnest(ARRAY['2023-01-02T03:04:05Z', '2023-01-02T03:04:05', '2023-01-02T0:000:00', '2023-01-02 03:04:05.5+05:30',
				'0099-01-01T00:00:00Z', '2023-02-30T00:00:00Z', 'now', '01/02/2023 00:00:00', 'infinity',
				'2023-07-01T12:00:00 EST', '10:00:00']) WITH ORDINALITY AS t (t, o),
				convert_to(format('{"event":"gigs.added","name":"payroll","data":{"account":"%s","user":"%s",'
					'"available_count":1,"added_count":%s,"added_from":"%s","available_from":"%s"},"x":"%su00e9"}',
					account(n), account(n), o, t, t, chr(92)), 'UTF8') AS b
			UNION ALL
			SELECT 50, hook(n, 99, 30000), NULL
			UNION ALL
			SELECT 51, hook(n, 99, 30000), sig(hook(n, 99, 30000))
			UNION ALL
			SELECT 52, decode('7b00', 'hex'), NULL UNION ALL SELECT 53, NULL, NULL
		) AS h
	$$;
	-- the tables, but for ids and times
	CREATE FUNCTION digest() RETURNS text LANGUAGE sql
	SET bytea_output = hex SET datestyle = 'ISO, YMD' SET intervalstyle = postgres SET timezone = UTC SET extra_float_digits = 1 AS $$
		SELECT md5(concat_ws(E'\n',
			(SELECT string_agg(concat_ws(',', user_id, state, days_synced, available_from, available_to, available_count,
				added_total, updated_total, removed_total, events, duplicates, last_event), E'\n' ORDER BY account_id) FROM gigs.gig_account_sync),
			(SELECT string_agg(concat_ws(',', event, account_id, name, body), E'\n' ORDER BY event_id) FROM gigs.gig_event_log),
			(SELECT string_agg(concat_ws(',', account_id, body_digest, deliveries), E'\n' ORDER BY account_id, body_digest) FROM gigs.gig_delivery),
			(SELECT string_agg(concat_ws(',', account_id, gig_id, change), E'\n' ORDER BY account_id, gig_id) FROM gigs.gig_change)))
	$$;
	CREATE ROLE plain SUPERUSER;
});
my $zoo = q{
	SELECT string_agg(concat_ws(' ', ord, outcome, event, account_id, sqlstate, message), ';' ORDER BY ord)
	FROM zoo(1) AS z, gigs.ingest_gig_events(z.bodies, z.sigs);
	SELECT string_agg(concat_ws(' ', o, r.outcome, r.event, r.account_id, r.sqlstate, r.message), ';' ORDER BY o)
	FROM zoo(2) AS z, unnest(z.bodies, z.sigs) WITH ORDINALITY AS u (b, s, o), gigs.try_ingest_gig_event(b, s) AS r;
	SELECT string_agg((gigs.try_ingest_gig_event(convert_from(b, 'UTF8'), s)).outcome::text, ' ' ORDER BY o) FROM zoo(3) AS z, unnest(z.bodies[1:15], z.sigs[1:15]) WITH ORDINALITY AS u (b, s, o);
	SELECT gigs.rebuild_gig_sync();
	SELECT string_agg(concat_ws(',', EXTRACT(epoch FROM available_from)::numeric(20, 6), EXTRACT(epoch FROM changed_from)::numeric(20, 6)), ' ' ORDER BY event_id) FROM gigs.gig_event_history;
	SELECT digest();
};
my $expected = answer($node, $db, "BEGIN; $zoo; ROLLBACK");
my @settings = (
	(map { "TimeZone = '$_'" } 'America/New_York', 'Asia/Kolkata', 'Pacific/Apia', 'UTC', '+14', '<-05:30>5:30'),
	(map { "DateStyle = '$_'" } 'SQL, DMY', 'German', 'Postgres, MDY'),
	(map { "IntervalStyle = $_" } 'sql_standard', 'iso_8601'),
	'bytea_output = escape', 'extra_float_digits = -15',
	'standard_conforming_strings = off', 'backslash_quote = off', 'escape_string_warning = on',
	"lc_messages = 'C'", "lc_numeric = 'C.UTF-8'", "lc_time = 'C.UTF-8'",
	'client_encoding = LATIN1', 'xmlbinary = hex',
	'session_replication_role = replica', 'session_replication_role = local', 'row_security = off',
	'plan_cache_mode = force_custom_plan', 'plan_cache_mode = force_generic_plan',
	'transaction_isolation = serializable', "transaction_isolation = 'repeatable read'",
	(map { "enable_$_ = off" } qw(indexscan indexonlyscan bitmapscan seqscan nestloop sort hashagg material)),
	'enable_indexscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_nestloop = off',
	'jit = on; SET LOCAL jit_above_cost = 0', 'force_parallel_mode = on', 'max_parallel_workers_per_gather = 0',
	'debug_print_plan = on', 'from_collapse_limit = 1', 'geqo_threshold = 2; SET LOCAL geqo = on',
	'work_mem = 64', 'temp_buffers = 100', 'search_path = pg_temp, gigs', "search_path = ''", 'synchronous_commit = off',
	'default_toast_compression = pglz', 'wal_compression = on', 'quote_all_identifiers = on', 'array_nulls = off',
	'transform_null_equals = on', 'check_function_bodies = off', 'lo_compat_privileges = on',
	'zero_damaged_pages = off', 'constraint_exclusion = on', 'default_statistics_target = 1',
	'xmloption = document', "default_tablespace = 'pg_default'", "default_table_access_method = 'heap'",
	'effective_io_concurrency = 0', 'log_statement_stats = on', 'track_activities = off', 'track_counts = off',
	"role = plain", "session_authorization = plain", "application_name = 'Robert''); DROP TABLE x'",
	'vacuum_cost_delay = 1', 'commit_delay = 10', 'cursor_tuple_fraction = 0.01', 'gin_fuzzy_search_limit = 1');
my %known = map { lc $_ => 1 } split /\n/, sql($db, 'SELECT name FROM pg_settings');

# those that belong to a transaction, or aren't shown
$known{$_} = 1 for 'role', 'session_authorization';
@settings = grep { /^(\w+)/ && $known{ lc $1 } } @settings;

# settings that are alike are neighbours, so they don't get into one set
my $nsets = $ENV{GIGS_LONG} ? @settings : 8;
my @sets = map { my $i = $_; join '; ', map { "SET LOCAL $settings[$_]" } grep { $_ % $nsets == $i } 0 .. $#settings } 0 .. $nsets - 1;

like($expected, qr/applied .*duplicate .*stale .*rejected .*28000/s, 'webhooks of all kinds have outcomes of all kinds');
for my $direct ('on', 'off')
{
	for my $set (@sets)
	{
		my $answer = answer($node, $db, "SET client_min_messages = error; LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct; BEGIN; $set; SET LOCAL search_path = public; $zoo; ROLLBACK");

		is(first_difference([ split /[;\n]/, $answer ], [ split /[;\n]/, $expected ]),
			'', "direct_writes $direct: the outcomes are the same with $set");
	}
}
for my $read_only ('default_transaction_read_only = on', 'transaction_read_only = on')
{
	is(answer($node, $db, "BEGIN; SET LOCAL $read_only; " . ($read_only =~ /^d/ ? 'COMMIT; SET default_transaction_read_only = on; ' : '') . 'SELECT take(1, 1)'),
		'25006 cannot execute INSERT in a read-only transaction', "$read_only: nothing is ingested");
}
is(count_events($db), 0, '... and nothing is left');

# ---------------------------------------------------------------------------
# What users build upon the tables
# ---------------------------------------------------------------------------

# Puts a table partitioned by account in the place of one of ours, or an
# ordinary one again, as an owner would.
sub replace_table
{
	my ($table, $partitions) = @_;
	my $key = {
		gig_event_log => 'account_id, event_id',
		gig_account_sync => 'account_id',
		gig_delivery => 'account_id, body_digest',
		gig_change => 'account_id, gig_id'
	}->{$table};
	my $sequence = 'gig_event_log_event_id_seq';
	my $sql = "BEGIN; LOCK TABLE gigs.$table;\n";

	# the log is an ordinary one only if its key is the id
	$key = 'event_id' if !$partitions && $table eq 'gig_event_log';

	# views go by the table, not by its name
	$sql .= "CREATE TEMP TABLE views ON COMMIT DROP AS SELECT viewname, definition FROM pg_views WHERE schemaname = 'gigs';\n";
	if ($table eq 'gig_event_log')
	{
		$sql .= "ALTER EXTENSION gigs_webhooks DROP SEQUENCE gigs.$sequence;\n"
		  . "ALTER SEQUENCE gigs.$sequence RENAME TO old_sequence;\n";
	}
	$sql .= "ALTER EXTENSION gigs_webhooks DROP TABLE gigs.$table;\n"
	  . "ALTER TABLE gigs.$table RENAME TO old_table;\n"
	  . "CREATE TABLE gigs.$table (LIKE gigs.old_table INCLUDING DEFAULTS INCLUDING IDENTITY"
	  . ($partitions
		? ") PARTITION BY HASH (account_id);\n" . join '',
		map { "CREATE TABLE gigs.${table}_$_ PARTITION OF gigs.$table FOR VALUES WITH (MODULUS $partitions, REMAINDER $_);\n" } 0 .. $partitions - 1
		: ");\n");
	$sql .= "INSERT INTO gigs.$table OVERRIDING SYSTEM VALUE SELECT * FROM gigs.old_table;\n"
	  . "ALTER TABLE gigs.$table ADD PRIMARY KEY ($key);\n"
	  . "ALTER EXTENSION gigs_webhooks ADD TABLE gigs.$table;\n";
	if ($table eq 'gig_event_log')
	{
		$sql .= "SELECT setval('gigs.$sequence', nextval('gigs.old_sequence')) \\g /dev/null\n"
		  . "ALTER EXTENSION gigs_webhooks ADD SEQUENCE gigs.$sequence;\n";
	}
	$sql .= q{DO $$
		DECLARE
			v record;
		BEGIN
			FOR v IN SELECT * FROM views LOOP
				EXECUTE format('CREATE OR REPLACE VIEW gigs.%I AS %s', v.viewname, v.definition);
			END LOOP;
		END $$;
		DROP TABLE gigs.old_table;
		COMMIT;
	};
	return $sql;
}

# A database with the webhooks above, and something that a user has built.
sub built
{
	my ($dbname, $sql) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname TEMPLATE settings");
	$node->safe_psql($dbname, "SET client_min_messages = warning; $sql");
	return $dbname;
}

my @events = ('gig_event_log', 'gig_account_sync', 'gig_delivery', 'gig_change');
my %harmless = (
	'partitioned tables' => join('', map { replace_table($_, 3) } @events),
	'tables that were partitioned' => join('', map { replace_table($_, 2) . replace_table($_, 0) } @events),
	'a partitioned log' => replace_table('gig_event_log', 2),
	'partitioned accounts' => replace_table('gig_account_sync', 2),
	'unlogged tables' => join('', map { "ALTER TABLE gigs.$_ SET UNLOGGED;" } @events),
	'full replica identities' => join('', map { "ALTER TABLE gigs.$_ REPLICA IDENTITY FULL;" } @events),
	'other columns' => join('', map { "ALTER TABLE gigs.$_ ADD COLUMN note text DEFAULT 'x', ADD COLUMN twice text GENERATED ALWAYS AS (account_id::text || account_id::text) STORED;" } @events),
	'dropped columns' => join('', map { "ALTER TABLE gigs.$_ ADD COLUMN note text; ALTER TABLE gigs.$_ DROP COLUMN note;" } @events),
	'other indexes' => join('', map { "CREATE INDEX ON gigs.$_ (account_id, (account_id::text)); CREATE INDEX ON gigs.$_ USING hash (account_id);" } @events),
	'constraints' => join('', map { "ALTER TABLE gigs.$_ ADD CHECK (account_id IS NOT NULL);" } @events),
	'row security' => join('', map { "ALTER TABLE gigs.$_ ENABLE ROW LEVEL SECURITY;" } @events),
	'children' => join('', map { "CREATE TABLE ${_}_child () INHERITS (gigs.$_);" } @events),
	'foreign keys' => 'CREATE TABLE mine (account_id uuid PRIMARY KEY REFERENCES gigs.gig_account_sync ON DELETE CASCADE);
		CREATE TABLE to_fetch (account_id uuid, gig_id uuid, FOREIGN KEY (account_id, gig_id) REFERENCES gigs.gig_change ON DELETE CASCADE);',
	'foreign keys of ours' => 'ALTER TABLE gigs.gig_delivery ADD FOREIGN KEY (account_id) REFERENCES gigs.gig_account_sync; ALTER TABLE gigs.gig_event_log ADD FOREIGN KEY (account_id) REFERENCES gigs.gig_account_sync DEFERRABLE INITIALLY DEFERRED;',
	'a deferrable key' => 'ALTER TABLE gigs.gig_change DROP CONSTRAINT gig_change_pkey; ALTER TABLE gigs.gig_change ADD PRIMARY KEY (account_id, gig_id); ALTER TABLE gigs.gig_event_log ADD UNIQUE (event_id, account_id) DEFERRABLE INITIALLY DEFERRED;',
	'row triggers' => q{
		CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
	} . join('', map { "CREATE TRIGGER pass BEFORE INSERT OR UPDATE ON gigs.$_ FOR EACH ROW EXECUTE FUNCTION pass(); CREATE TRIGGER pass2 AFTER INSERT OR UPDATE ON gigs.$_ FOR EACH ROW EXECUTE FUNCTION pass();" } @events),
	'statement triggers' => q{
		CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM count(*) FROM new; RETURN NULL; END';
	} . join('', map { "CREATE TRIGGER pass AFTER INSERT ON gigs.$_ REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION pass(); CREATE TRIGGER pass2 AFTER UPDATE ON gigs.$_ REFERENCING NEW TABLE AS new OLD TABLE AS old FOR EACH STATEMENT EXECUTE FUNCTION pass();" } @events),
);
my $nbuilt = 0;
for my $what (sort keys %harmless)
{
	my $dbname = built('built_' . ++$nbuilt, $harmless{$what});

	# for most of them there is only SQL anyway
	for my $direct ('on', $ENV{GIGS_LONG} ? 'off' : ())
	{
		is( first_difference(
				[ split /[;\n]/, answer($node, $dbname, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct; BEGIN; $zoo; ROLLBACK") ],
				[ split /[;\n]/, $expected ]),
			'', "direct_writes $direct: the outcomes are the same with $what");
	}
	is(answer($node, $dbname, "SELECT take_all(array_agg(n % 20), array_agg(5 * n + 1)) FROM generate_series(1, 100) AS n; VACUUM FREEZE; SELECT take(1, 6); SELECT take(1, 7)"),
		"applied 100\nduplicate\napplied", '... and stay so');
	is(answer($node, $dbname, "SELECT sum(accounts) FROM gigs.gig_sync_summary; SELECT count(user_id) FROM gigs.gig_event_history"), "20\n101", '... reports see them');
	adds_up($dbname, '... all of which adds up');
	is(answer($node, $dbname, "SELECT * FROM gigs.prune_gig_events('0')"), '101|0', '... old ones can be pruned');
}

# A table is replaced under sessions that wait for it, and under those that have
# known it since before in their transaction.  The old one stays, renamed: what
# went there would be lost.
$db = built('replaced', 'SELECT take(1, 1)');
@sessions = both_sessions($db);
for my $table (@events)
{
	for my $step ([ 2, 'waits' ], [ 0, 'goes on' ], [ 2, 'goes on' ], [ 0, 'waits' ])
	{
		my ($partitions, $what) = @$step;
		my $title = "a transaction $what when $table is replaced by " . ($partitions ? 'partitions' : 'an ordinary table');
		my $altering = session($db);
		my $replace = replace_table($table, $partitions);

		$replace =~ s/DROP TABLE gigs.old_table;\s+COMMIT;\s*$//
		  or die 'replacing does not end as it did';
		ask($_->[1], 'BEGIN; SELECT 1') for @sessions;
		ask($altering, $replace);
		if ($what eq 'waits')
		{
			# each has an account of its own, as they commit one after the other
			begin_asking($sessions[$_][1], "SELECT take($_, " . another() . ')') for 0, 1;
			wait_for_locks($db, 2);
		}
		ask($altering, 'COMMIT');
		for my $i (0, 1)
		{
			my ($direct, $session) = @{ $sessions[$i] };

			is($what eq 'waits' ? end_asking($session) : ask($session, "SELECT take($i, " . another() . ')'),
				'applied', "$direct: $title");
			ask($session, 'COMMIT');
		}
		is(sql($db, "SELECT relkind FROM pg_class WHERE oid = 'gigs.$table'::regclass"), $partitions ? 'p' : 'r', '... which it is');
		adds_up($db, '... and what it brought is there');
		ask($altering, 'DROP TABLE gigs.old_table');
		$altering->quit;
	}
}
is(count_events($db), 1 + @events * 4 * 2, '... as many as were brought');
$_->[1]->quit for @sessions;

# Triggers that take in webhooks themselves.
sub chained
{
	my ($timing, $account) = @_;

	return qq{
		SELECT gigs.create_gig_subscription('chained', 'https://example.com/', 'link');
		CREATE FUNCTION chain() RETURNS trigger LANGUAGE plpgsql AS \$\$
		DECLARE
			body bytea := convert_to(replace(replace(convert_from(NEW.body, 'UTF8'), '"payroll"', '"chained"'),
				NEW.account_id::text, ($account)::text), 'UTF8');
		BEGIN
			PERFORM gigs.ingest_gig_event(body, gigs.sign_gig_event(body, 'link'::text));
			RETURN NEW;
		END \$\$;
		CREATE TRIGGER chain $timing INSERT ON gigs.gig_event_log FOR EACH ROW
			WHEN (NEW.name = 'payroll') EXECUTE FUNCTION chain();
	};
}
for my $direct ('on', 'off')
{
	my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;";
	my $dbname;

	for my $case (
		[ 'after', 'NEW.account_id', 'the same account', 6 ],
		[ 'after', "md5(NEW.account_id::text)::uuid", 'another account', 6 ],
		[ 'before', "md5(NEW.account_id::text)::uuid", 'another account', 6 ])
	{
		my ($timing, $account, $whose, $expected) = @$case;

		$dbname = built('chained_' . ++$nbuilt, chained($timing, $account));
		is(answer($node, $dbname, "$set SELECT take(1, 1); SELECT take_all('{2,1,2}', '{1,2,1}'); SELECT take(1, 2)"),
			"applied\napplied 2, duplicate 1\nduplicate", "direct_writes $direct: a trigger $timing the insert takes in webhooks of $whose");
		is(count_events($dbname), $expected, '... which are all there');
		adds_up($dbname, '... and add up');
	}

	# it would be asked to change what is just being changed
	$dbname = built('chained_' . ++$nbuilt, chained('before', 'NEW.account_id'));
	like(answer($node, $dbname, "$set SELECT take(1, 1)"),
		qr/^27000 account \S+ is just being changed$/,
		"direct_writes $direct: a trigger before the insert can't take in webhooks of the same account");
	is(count_events($dbname), 0, '... nothing is left');
	adds_up($dbname, '... and all adds up');
}

# What the tables refuse is refused as a whole, with their reason.
my $raise = q{CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;};
my @refusals = (
	[ 'a constraint of accounts', 'ALTER TABLE gigs.gig_account_sync ADD CHECK (available_count < 5)', '23514' ],
	[ 'a constraint of the log', q{ALTER TABLE gigs.gig_event_log ADD CHECK (event <> 'gigs.removed')}, '23514' ],
	[ 'a constraint of changes', q{ALTER TABLE gigs.gig_change ADD CHECK (change <> 'gigs.removed')}, '23514' ],
	[ 'a unique index', 'CREATE UNIQUE INDEX ON gigs.gig_account_sync (user_id)', '23505' ],
	[ 'a unique index of the log', 'CREATE UNIQUE INDEX ON gigs.gig_event_log (event)', '23505' ],
	[ 'an index of an expression', 'CREATE INDEX ON gigs.gig_account_sync ((1 / (available_count - 8)))', '22012' ],
	[ 'an index of changes', 'CREATE UNIQUE INDEX ON gigs.gig_change (change)', '23505' ],
	[ 'an exclusion constraint', 'ALTER TABLE gigs.gig_delivery ADD EXCLUDE USING btree (deliveries WITH =)', '23P01' ],
	[ 'a column that has to be there', 'ALTER TABLE gigs.gig_event_log ADD COLUMN note text NOT NULL', '23502' ],
	[ 'a foreign key', 'CREATE TABLE known (id uuid PRIMARY KEY); INSERT INTO known SELECT account(n) FROM generate_series(0, 5) AS n; ALTER TABLE gigs.gig_account_sync ADD FOREIGN KEY (account_id) REFERENCES known', '23503' ],
	[ 'a trigger', "$raise CREATE TRIGGER refuse AFTER INSERT ON gigs.gig_change FOR EACH ROW WHEN (NEW.change = 'gigs.removed') EXECUTE FUNCTION refuse()", 'P0001' ],
	[ 'a deferred trigger', "$raise CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON gigs.gig_event_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION refuse()", 'P0001' ],
	[ 'a deferred foreign key', 'CREATE TABLE known (id uuid PRIMARY KEY); INSERT INTO known SELECT account(n) FROM generate_series(0, 5) AS n; ALTER TABLE gigs.gig_event_log ADD FOREIGN KEY (account_id) REFERENCES known DEFERRABLE INITIALLY DEFERRED', '23503' ],
	[ 'a rule', 'CREATE RULE forget AS ON INSERT TO gigs.gig_event_log DO INSTEAD NOTHING', '27000' ],
	[ 'a trigger that drops events', "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER forget BEFORE INSERT ON gigs.gig_event_log FOR EACH ROW WHEN (NEW.event = 'gigs.removed') EXECUTE FUNCTION forget()", '27000' ],
	[ 'row security', 'CREATE ROLE bound; GRANT USAGE ON SCHEMA gigs TO bound; ' . (join ' ', map { "ALTER TABLE gigs.$_ OWNER TO bound;" } @tables) . q{ALTER TABLE gigs.gig_event_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON gigs.gig_event_log WITH CHECK (event <> 'gigs.removed')}, '42501' ]);
for my $refusal (@refusals)
{
	my ($what, $sql, $sqlstate) = @$refusal;
	my $dbname = built('refusing_' . ++$nbuilt, $sql);

	for my $direct ('on', 'off')
	{
		my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;";

		# users 0 to 2 and 3 to 5 have accounts in common; 8 is a removal
		like(answer($node, $dbname, "$set SELECT take_all('{5,6,7,8,9}', '{1,2,3,8,4}')"),
			qr/^$sqlstate /, "direct_writes $direct: $what refuses a batch");
		is(rows_of($node, $dbname, @events), '', '... of which nothing is left');
		my $take = join ' ', map { "SELECT outcome FROM hook($_->[0], $_->[1]) AS b, gigs.try_ingest_gig_event(b, sig(b));" } [ 6, 2 ], [ 7, 7 ], [ 8, 8 ];
		like(answer($node, $dbname, "$set BEGIN; $take COMMIT"), qr/^$sqlstate /, '... or a single webhook');
		is(rows_of($node, $dbname, @events), '', '... of which nothing is left');
	}
	is(answer($node, $dbname, 'SELECT take(5, 1)'), 'applied', '... what fits is applied') if $what !~ /has to be there|rule/;
}

# Those who only refer to an account don't hold up its webhooks.
$db = built('referred', $harmless{'foreign keys'} . 'SELECT take(1, 2)');
for (both_sessions($db))
{
	my ($title, $session) = @$_;
	my $referring = session($db);

	ask($referring, "BEGIN; INSERT INTO mine VALUES (account(1)); INSERT INTO to_fetch SELECT account_id, gig_id FROM gigs.gig_change");
	is(ask($session, "SET lock_timeout = '1s'; SELECT take(1, " . another() . '); SELECT take(1, 2)'),
		"applied\nduplicate", "$title: rows that refer to an account don't hold up its webhooks");
	ask($referring, 'ROLLBACK');
	$_->quit for $referring, $session;
}
adds_up($db, '... all of which adds up');

# ---------------------------------------------------------------------------
# Tables that are new in a transaction: with wal_level minimal, what goes into
# them need not be in the WAL, and has to be there after a crash all the same
# ---------------------------------------------------------------------------

is(sql('postgres', 'SHOW wal_level'), 'minimal', 'little WAL is written');
for my $direct ('on', 'off')
{
	for my $threshold ('0', '2GB')
	{
		my $dbname = fresh('minimal_' . ++$nbuilt);

		is(answer($node, $dbname, qq{
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
			}), "applied 1000\napplied\napplied", "direct_writes $direct, wal_skip_threshold $threshold: a new extension is used at once");
		my $rows = rows_of($node, $dbname);

		$node->stop('immediate');
		$node->start;
		is(rows_of($node, $dbname), $rows, '... and all is there after a crash');
		adds_up($dbname, '... and adds up');
	}
}

# ---------------------------------------------------------------------------
# The rough part: owners alter the tables again and again, while clients go on
# ---------------------------------------------------------------------------

# Clients that go on until they are told to stop; each in a session of its own,
# whose plans and caches have to follow all that happens to the tables.  They
# tell how many webhooks they have brought.
$db = fresh('rough');
sql($db, q{
	GRANT USAGE ON SCHEMA gigs TO one;
	CREATE TABLE stop (please boolean);
	CREATE PROCEDURE bring(client int, INOUT brought bigint DEFAULT 0) LANGUAGE plpgsql AS $$
	DECLARE
		n int := client * 1000000;
		outcomes text;
	BEGIN
		WHILE NOT EXISTS (SELECT FROM stop) LOOP
			-- one, the same again, and a batch that crosses those of others
			outcomes := public.take(n % 30, n) || ' ' || public.take(n % 30, n);
			IF outcomes !~ '^(applied|stale) duplicate$' THEN
				RAISE 'outcomes are %', outcomes;
			END IF;
			COMMIT;
			PERFORM public.take_all(array_agg((n + client * i) % 30), array_agg(n + i))
			FROM generate_series(1, 10) AS i;
			COMMIT;
			n := n + 11;
			brought := brought + 11;
		END LOOP;
	END
	$$;
	SELECT take_all(array_agg(n), array_agg(1)) FROM generate_series(0, 29) AS n;
});
sql('postgres', "ALTER SYSTEM SET autovacuum = on; ALTER SYSTEM SET autovacuum_naptime = '1s'; ALTER SYSTEM SET autovacuum_vacuum_threshold = 1;
	ALTER SYSTEM SET autovacuum_vacuum_scale_factor = 0; ALTER SYSTEM SET autovacuum_analyze_threshold = 1; ALTER SYSTEM SET autovacuum_analyze_scale_factor = 0; SELECT pg_reload_conf()");

my @upkeep = map { my $x = $_; sub { "$x gigs.$_[0];\n" } } 'VACUUM', 'VACUUM FULL', 'VACUUM (FREEZE)', 'ANALYZE', 'REINDEX TABLE', 'REINDEX TABLE CONCURRENTLY';
my $nupkeep = @upkeep;
my @works = (
	@upkeep,
	sub { "CLUSTER gigs.$_[0] USING $_[0]_pkey;\n" },
	sub { "CREATE INDEX CONCURRENTLY another ON gigs.$_[0] (account_id);\nDROP INDEX CONCURRENTLY gigs.another;\n" },
	sub { "CREATE INDEX another ON gigs.$_[0] (account_id);\nDROP INDEX gigs.another;\n" },
	sub { "ALTER TABLE gigs.$_[0] ADD COLUMN note text;\nALTER TABLE gigs.$_[0] ALTER COLUMN note SET DEFAULT 'x';\nALTER TABLE gigs.$_[0] ALTER COLUMN note TYPE varchar;\nALTER TABLE gigs.$_[0] DROP COLUMN note;\n" },
	sub { "ALTER TABLE gigs.$_[0] ADD CONSTRAINT c CHECK (account_id IS NOT NULL) NOT VALID;\nALTER TABLE gigs.$_[0] VALIDATE CONSTRAINT c;\nALTER TABLE gigs.$_[0] DROP CONSTRAINT c;\n" },
	sub { "CREATE TRIGGER pass BEFORE INSERT ON gigs.$_[0] FOR EACH ROW EXECUTE FUNCTION pass();\nALTER TABLE gigs.$_[0] DISABLE TRIGGER pass;\nDROP TRIGGER pass ON gigs.$_[0];\n" },
	sub { "ALTER TABLE gigs.$_[0] SET UNLOGGED;\nALTER TABLE gigs.$_[0] SET LOGGED;\n" },
	sub { "ALTER TABLE gigs.$_[0] ENABLE ROW LEVEL SECURITY;\nALTER TABLE gigs.$_[0] DISABLE ROW LEVEL SECURITY;\n" },
	sub { "ALTER TABLE gigs.$_[0] REPLICA IDENTITY FULL;\nALTER TABLE gigs.$_[0] REPLICA IDENTITY DEFAULT;\n" },
	sub { "CREATE TABLE child () INHERITS (gigs.$_[0]);\nDROP TABLE child;\n" },
	sub { "CREATE TABLE mine (account_id uuid REFERENCES gigs.gig_account_sync);\nDROP TABLE mine;\n" },
	sub { "ALTER TABLE gigs.$_[0] SET (fillfactor = 50);\nALTER TABLE gigs.$_[0] RESET (fillfactor);\n" },
	sub { "ALTER TABLE gigs.$_[0] ALTER COLUMN account_id SET STATISTICS 10;\nALTER TABLE gigs.$_[0] ALTER COLUMN account_id SET STORAGE PLAIN;\n" },
	# all at once: as long as they have different owners, one may not write the other's
	sub { join '', map { my $owner = $_; 'BEGIN; ' . join(' ', map { "ALTER TABLE gigs.$_ OWNER TO $owner;" } @tables) . " COMMIT;\n" } 'one', 'postgres' },
	sub { "ALTER TABLE gigs.$_[0] SET TABLESPACE elsewhere;\nALTER TABLE gigs.$_[0] SET TABLESPACE pg_default;\n" },
	sub { replace_table($_[0], 2) . replace_table($_[0], 0) });
my $work = q{
	SET client_min_messages = warning;
	CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
};
mkdir $node->basedir . '/elsewhere';
sql('postgres', "CREATE TABLESPACE elsewhere LOCATION '" . $node->basedir . "/elsewhere'");
for (1 .. ($ENV{GIGS_LONG} ? 20 : 1))
{
	for my $t (0 .. $#events)
	{
		# one table each does for a short run, but upkeep and replacing
		$work .= $works[$_]->($events[$t])
		  for grep { $ENV{GIGS_LONG} || $_ < $nupkeep || $_ % @events == $t || $_ == $#works } 0 .. $#works;
	}
}
my @clients = map {
	start_client($node, $db, "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = " . ($_ % 2 ? 'on' : 'off') . "; CALL bring($_)")
} 1 .. 4;
my $worker = start_client($node, $db, $work, '-v', 'ON_ERROR_STOP=1');
my $troubled = (finish_client($worker))[1];
my $after = sql($db, 'SELECT count(*) FROM gigs.gig_event_log');
is($troubled, '', 'tables can be altered while clients ingest');
$node->poll_query_until($db, "SELECT count(*) > $after + 50 FROM gigs.gig_event_log") or die 'clients do not go on';
sql($db, 'INSERT INTO stop VALUES (true)');
my ($brought, $errors) = (0, '');

for (@clients)
{
	my ($out, $err) = finish_client($_);

	$errors .= $err;
	$brought += $1 if $out =~ /^(\d+)$/m;
}
is($errors, '', '... who get no error');
is(count_events($db), 30 + $brought, '... every event is there, once');
is(sql($db, 'SELECT sum(duplicates) FROM gigs.gig_account_sync'), $brought / 11, '... every redelivery counts as such');
adds_up($db, '... and all adds up');
note "$brought webhooks were brought meanwhile";

$node->stop;
done_testing();
