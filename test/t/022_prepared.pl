# Prepared transactions, with webhooks, secrets and finished batches: they take
# effect when they are committed, after a crash as well, and consumers do not pass
# what they may still add.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigCrash;
use GigTest;

my $test = GigCrash->new(name => 'prepared', kills => 1, prepares => 0.8, pause => 0.2);
my $server = $test->server;
my $node = $server->node;
my @kinds = ('on', 'off');
my %sessions;

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

sub connect_sessions
{
	%sessions = map { ($_->[0] =~ /(\w+)$/, $_->[1]) } start_sessions($node, 'postgres');
	return;
}

# The outcome of a webhook that is signed with a secret.
sub signed_with
{
	my ($direct, $secret, $n) = @_;

	return ask($sessions{$direct},
		"SELECT coalesce(sqlstate, outcome::text) FROM hook(1, $n) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text))");
}

sub each_kind
{
	my ($expected, $title, $of) = @_;

	is($of->($_), $expected, "$title: direct_writes=$_") for @kinds;
	return;
}

# Returns the events that a consumer processes, as "account events".
sub consume
{
	return sql(
		q{WITH work AS (
			SELECT w.batch, w.events, a.n FROM gigs.read_gig_work('fetch') AS w
			LEFT JOIN generate_series(1, 10) AS a (n) ON account(a.n) = w.account_id
		), finished AS (
			SELECT gigs.finish_gig_work(max(batch)) FROM work HAVING count(*) > 0
		)
		SELECT coalesce(string_agg(n || ' ' || events, ', ' ORDER BY n), 'nothing')
		FROM work LEFT JOIN finished ON true});
}

# ---------------------------------------------------------------------------
# Webhooks
# ---------------------------------------------------------------------------

# Each has accounts of its own, because a prepared transaction keeps its locks.
connect_sessions();
sql('DROP TABLE done; SELECT gigs.drop_gig_consumer(\'fetch\'); SELECT gigs.create_gig_consumer(\'fetch\')');
my %account = (on => 2, off => 4);
for my $direct (@kinds)
{
	my $n = $account{$direct};

	ask($sessions{$direct},
		"BEGIN; SELECT take($n, 1); SELECT take_all('{$n,$n}', '{2,3}'); PREPARE TRANSACTION 'kept $direct'");
	ask($sessions{$direct}, "BEGIN; SELECT take($n + 1, 1); PREPARE TRANSACTION 'lost $direct'");
	is(answer($node, 'postgres', "SET lock_timeout = '20ms'; SELECT take($n, 1)"),
		'55P03 canceling statement due to lock timeout',
		"direct_writes=$direct: a prepared transaction keeps its accounts locked");
}
is(sql('SELECT count(*) FROM gigs.gig_event_log'), 0, 'prepared webhooks are not visible');
is(sql('SELECT take(6, 1)'), 'applied', '... other accounts go on');
is(consume(), 'nothing', '... and a consumer waits for earlier ones');

$_->quit for values %sessions;
$node->stop('immediate');
$node->start;
connect_sessions();
is(sql('SELECT take(7, 1)'), 'applied', 'after a crash other accounts go on');
is(consume(), 'nothing', '... and a consumer waits for earlier ones');
sql("COMMIT PREPARED 'kept on'; ROLLBACK PREPARED 'lost on'");
is(consume(), 'nothing', '... until all of them have ended');
sql("COMMIT PREPARED 'kept off'; ROLLBACK PREPARED 'lost off'");
is(consume(), '2 3, 4 3, 6 1, 7 1', '... and then processes all events');
is(consume(), 'nothing', '... once');
is(troubles($node, 'postgres'), '', 'log and accounts agree');

# ---------------------------------------------------------------------------
# A finished batch
# ---------------------------------------------------------------------------

sql('CREATE TABLE done (account_id uuid)');
my $finish = q{WITH work AS (INSERT INTO done SELECT account_id FROM gigs.read_gig_work('fetch', lease => '1 hour') RETURNING *)
	SELECT count(*) FROM work; SELECT gigs.finish_gig_work(max(batch)) FROM gigs.gig_consumer};
sql('SELECT take(8, 1)');
ask($sessions{on}, "BEGIN; $finish; PREPARE TRANSACTION 'finished'");
is(consume(), 'nothing', 'a batch that is finished in a prepared transaction is not handed out');
$_->quit for values %sessions;
$node->stop('immediate');
$node->start;
connect_sessions();
is(consume(), 'nothing', '... nor after a crash');
sql("ROLLBACK PREPARED 'finished'");
is(sql('SELECT count(*) FROM done'), 0, '... its results vanish when that is rolled back');
is(consume(), '8 1', '... and then it is handed out again');

# ---------------------------------------------------------------------------
# Secrets
# ---------------------------------------------------------------------------

each_kind('applied', 'a session knows the secrets', sub { signed_with($_[0], 'secret', $_[0] eq 'on' ? 2 : 7) });
sql("BEGIN; SELECT gigs.add_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'add'");
each_kind('28000', 'a secret is not valid while its addition is prepared', sub { signed_with($_[0], 'added', 2) });
$_->quit for values %sessions;
$node->restart;
connect_sessions();
each_kind('28000', '... nor after a restart', sub { signed_with($_[0], 'added', 2) });
sql("COMMIT PREPARED 'add'");
each_kind('duplicate', '... and is valid once another session has committed it', sub { signed_with($_[0], 'added', 2) });

sql("BEGIN; SELECT gigs.retire_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'retire'");
each_kind('duplicate', 'a secret stays valid while its retirement is prepared', sub { signed_with($_[0], 'added', 2) });
sql("ROLLBACK PREPARED 'retire'");
each_kind('duplicate', '... or rolled back', sub { signed_with($_[0], 'added', 2) });
sql("BEGIN; SELECT gigs.retire_gig_secret('payroll', 'added'); PREPARE TRANSACTION 'retire'");
sql("COMMIT PREPARED 'retire'");
each_kind('28000', '... and not when it is committed', sub { signed_with($_[0], 'added', 2) });
$_->quit for values %sessions;

# ---------------------------------------------------------------------------
# Crashes under load
# ---------------------------------------------------------------------------

sql('DROP TABLE done; CREATE TABLE done (batch bigint, account_id uuid, events int, PRIMARY KEY (batch, account_id))');
$server->connect;
$test->clients->forget;
my @killed = ([ sub { $server->kill_all }, sub { $server->stop_wal_writer } ]);
$test->run('killed' => @killed, 'one killed' => [ sub { $server->kill_one } ]);
# A crash may come while none is prepared.
for (1 .. 10)
{
	last if $test->figure('prepared') > 0;
	$test->run('killed again' => @killed);
}
ok($test->figure('prepared') > 0, 'crashes have left prepared transactions');
$test->end;
done_testing();
