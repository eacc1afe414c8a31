# A pooler in transaction mode: many clients share few sessions, so that a session
# keeps its caches, prepared statements and settings from one client to the next.
#
# GIGS_LONG raises the number of rounds.

use strict;
use warnings;

use FindBin;
use IPC::Run ();
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my ($pgbouncer) =
  grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';

plan skip_all => 'PgBouncer is not installed' if !$pgbouncer;
plan skip_all => 'PgBouncer does not run as root' if $> == 0;

my $nclients = 8;
my $nrounds = $ENV{GIGS_LONG} ? 2_000 : 55;
my $node = start_node('pooler');
my $dir = PostgreSQL::Test::Utils::tempdir_short;
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $user = $node->safe_psql('postgres', 'SELECT current_user');
my $pooler;

create_gigs($node, 'postgres');

# ---------------------------------------------------------------------------
# The pooler
# ---------------------------------------------------------------------------

append_to_file("$dir/users", "\"$user\" \"\"\n");
append_to_file(
	"$dir/ini", join "\n",
	'[databases]',
	'pool = host=' . $node->host . ' port=' . $node->port . " dbname=postgres user=$user pool_size=2",
	'[pgbouncer]',
	"listen_port = $port",
	"unix_socket_dir = $dir",
	'auth_type = any',
	"auth_file = $dir/users",
	"admin_users = $user",
	'pool_mode = transaction',
	'server_reset_query = DISCARD ALL',
	'server_reset_query_always = 1',
	'max_client_conn = 50',
	"logfile = $dir/log",
	'');

# The pooler in place of a node, for start_client(), which needs a connstr only.
sub Pooled::connstr
{
	my ($self, $dbname) = @_;

	return "host=$dir port=$port user=$user dbname=$dbname";
}
my $pooled = bless {}, 'Pooled';

# Runs a script through the pooler.  Returns what it printed, errors included.
sub through
{
	my ($dbname, $script) = @_;
	my ($out, $err) = finish_client(start_client($pooled, $dbname, $script));

	chomp $out;
	return $out . $err;
}

$pooler = IPC::Run::start([ $pgbouncer, '-q', "$dir/ini" ], '<', \undef, '>',
	"$dir/out", '2>', "$dir/err");

END
{
	local $?;
	$pooler->kill_kill if $pooler;
}

my $answer = '';
for (1 .. 600)
{
	$answer = through('pool', 'SELECT 1');
	last if $answer eq '1';
	select undef, undef, undef, 0.1;
}
is($answer, '1', 'there is a pooler') or BAIL_OUT('the pooler does not start: ' . slurp_file("$dir/err"));

# ---------------------------------------------------------------------------
# Eight clients on two sessions
# ---------------------------------------------------------------------------

# Each ingests webhooks of its own, some that all ingest, and forged ones; singly,
# in batches and in transactions.  Settings and statements stay in the session.
sub client_script
{
	my ($client, $phase, $first) = @_;
	my $script = "SELECT 'pid ' || pg_backend_pid();\n";

	for my $i ($first .. $first + $nrounds - 1)
	{
		my $n = $client * 100_000 + 5 * $i;

		$script .= sprintf q{
			SELECT 'own ' || public.take(%d, %d);
			SELECT 'common ' || public.take_all('{1,2,3}', '{%d,%d,%d}');
			SELECT 'bad ' || count(*) FROM gigs.try_ingest_gig_event(public.hook(1, 1), 'forged') WHERE sqlstate = '28000';
		}, $client, $n + 1, $i, $i, $i;
		$script .= sprintf q{
			BEGIN;
			SET LOCAL search_path = '';
			SELECT 'own ' || public.take(%d, %d);
			SAVEPOINT s;
			SELECT 'undone ' || public.take(%d, %d);
			ROLLBACK TO s;
			COMMIT;
		}, $client, $n + 2, $client, $n + 3 if $i % 5 == 0;
		$script .= sprintf q{
			BEGIN;
			PREPARE q AS SELECT 'own ' || public.take($1, $2);
			EXECUTE q(%d, %d);
			EXECUTE q(%d, %d);
			DEALLOCATE q;
			COMMIT;
			SELECT 'pid ' || pg_backend_pid();
		}, $client, $n + 4, $client, $n + 4 if $i % 11 == 0;

		# the session's next client has these
		$script .= "SET DateStyle = German;\nSET TimeZone = 'Asia/Kolkata';\nSET search_path = pg_temp;\nSET enable_indexscan = off;\n" if $i % 7 == 0;
		$script .= 'SET gigs_webhooks.direct_writes = ' . ($client % 2 ? 'on' : 'off') . ";\n" if $i % 7 == 3;
		$script .= "PREPARE p AS SELECT public.take(\$1, \$2);\n" if $i % 7 == 0 && $phase eq 'reset';
	}
	return $script;
}

my ($first, $applied) = (0, 0);
for my $phase ('reset', 'left as they are')
{
	through('pgbouncer', 'SET server_reset_query_always = 0') if $phase ne 'reset';

	my @clients = map { start_client($pooled, 'pool', client_script($_, $phase, $first)) } 1 .. $nclients;
	my %sum = map { $_ => {} } qw(own common bad undone pid);
	my $errors = '';

	for (@clients)
	{
		my ($out, $err) = finish_client($_);

		$errors .= $err;
		for my $line (split /\n/, $out)
		{
			my ($which, $what) = split / /, $line, 2;

			if ($which eq 'pid') { $sum{pid}{$what} = 1; next; }
			$sum{$which}{$1 || 'n'} += defined $2 ? $2 : 1 while $what =~ /([a-z]+)(?: (\d+))?|\d+/g;
		}
	}
	my $fives = grep { $_ % 5 == 0 } $first .. $first + $nrounds - 1;
	my $elevens = grep { $_ % 11 == 0 } $first .. $first + $nrounds - 1;
	my $own = $nrounds + $fives + $elevens;

	is($errors, '', "sessions that are $phase: clients get no error");
	is(scalar keys %{ $sum{pid} }, 2, '... and share two sessions');
	is_deeply($sum{own}, { applied => $nclients * $own, duplicate => $nclients * $elevens }, '... what each ingests is applied');
	is_deeply($sum{undone}, { applied => $nclients * $fives }, '... what is rolled back was applied, too');
	is(($sum{common}{applied} || 0) + ($sum{common}{stale} || 0), 3 * $nrounds, '... what all ingest is applied once');
	is($sum{common}{duplicate}, 3 * $nrounds * ($nclients - 1), '... and is a duplicate otherwise');
	is_deeply($sum{bad}, { n => $nclients * $nrounds }, '... and forged webhooks are rejected');
	$first += $nrounds;
	$applied += $nclients * $own + 3 * $nrounds;
	is($node->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> 'duplicate'}), $applied, '... all events are logged once');
	is(troubles($node, 'postgres'), '', '... and log and accounts agree');
}

# ---------------------------------------------------------------------------
# Consumers through the pooler
# ---------------------------------------------------------------------------

# A batch belongs to no session: it is read in one, and finished in another.  All
# workers together store every event once.
$node->safe_psql('postgres', q{
	SELECT gigs.create_gig_consumer('fetcher', parts => 3);
	CREATE TABLE public.fetched (batch bigint, account_id uuid, events int, last_event_id bigint);
	CREATE TABLE public.pids (pid int, what text)});

my $worker = (q{
	SELECT coalesce(max(batch), 0) AS batch, count(*) > 0 AS has_work FROM gigs.read_gig_work('fetcher', 40) \gset
	\if :has_work
	INSERT INTO public.pids VALUES (pg_backend_pid(), 'read');
	BEGIN;
	INSERT INTO public.pids VALUES (pg_backend_pid(), 'finish');
	INSERT INTO public.fetched
	SELECT c.batch, l.account_id, count(*), max(l.event_id)
	FROM gigs.gig_consumer AS c, gigs.gig_event_log AS l
	WHERE c.batch = :batch AND l.event_id > c.position AND l.event_id <= c.batch_end AND l.outcome <> 'stale'
		AND gigs.gig_consumer_part(l.account_id, c.parts) = c.part
	GROUP BY 1, 2;
	SELECT gigs.finish_gig_work(:batch);
	COMMIT;
	\endif
}) x 60;
my @workers = map { start_client($pooled, 'pool', $worker) } 1 .. 4;
my $worker_errors = join '', map { (finish_client($_))[1] } @workers;
is($worker_errors, '', 'workers read and finish batches through the pooler');
# a script may have ended before the other workers' batches
for (1 .. 100)
{
	last if $node->safe_psql('postgres', 'SELECT events_behind FROM gigs.gig_consumer_status') eq '0';
	through('pool', $worker);
}
is($node->safe_psql('postgres', 'SELECT count(DISTINCT pid) FROM public.pids'), '2', '... in the two sessions');
is( $node->safe_psql('postgres', 'SELECT sum(events), count(*) = count(DISTINCT (account_id, last_event_id)) FROM public.fetched'),
	$node->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> 'stale'}) . '|t',
	'... every event once');
is($node->safe_psql('postgres', 'SELECT bool_and(gigs.gig_account_fetched(\'fetcher\', account_id)) FROM gigs.gig_account_sync'),
	't', '... and all accounts are fetched');

# A lease outlives the pooler's transactions, and ends by time.
is(through('pool', "SELECT public.take(1, 999999)"), 'applied', 'another event is ingested');
my ($batch) = through('pool', "SELECT batch FROM gigs.read_gig_work('fetcher')");
like($batch, qr/^\d+$/, '... and read');
is(through('pool', "SELECT batch FROM gigs.read_gig_work('fetcher')"), '', '... by one worker only');
$node->safe_psql('postgres', 'UPDATE gigs.gig_consumer SET leased_until = now() WHERE batch IS NOT NULL');
my ($again) = through('pool', "SELECT batch FROM gigs.read_gig_work('fetcher')");
cmp_ok($again, '>', $batch, '... until the lease has run out');
like(through('pool', "SELECT gigs.finish_gig_work($batch)"), qr/batch $batch is no longer leased/, '... when the first one is too late');
is(through('pool', "SELECT gigs.finish_gig_work($again)"), '', '... and the second one finishes');

# ---------------------------------------------------------------------------
# Secrets are added and retired
# ---------------------------------------------------------------------------

# All sessions have cached the secrets.  Other accounts may have forgotten their first
# events by now.
sub with_secret
{
	my ($secret) = @_;
	my $script = "SELECT coalesce(sqlstate, outcome::text) FROM public.hook(90, 1) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text));\n";
	my @outs = map { (finish_client($_))[0] } map { start_client($pooled, 'pool', $script x 5) } 1 .. 6;
	my %outcomes = map { $_ => 1 } map { split /\n/ } @outs;

	return join ' ', sort keys %outcomes;
}

through('pool', "SELECT public.take(90, 1)");
is(with_secret('another'), '28000', 'a secret is not valid yet');
through('pool', "SELECT gigs.add_gig_secret('payroll', 'another')");
is(with_secret('another'), 'duplicate', '... and is in all sessions, once it is added through the pooler');
through('pool', "SELECT gigs.retire_gig_secret('payroll', 'another')");
is(with_secret('another'), '28000', '... and is not in any, once it is retired');
$node->safe_psql('postgres', "SELECT gigs.add_gig_secret('payroll', 'a third'); SELECT gigs.retire_gig_secret('payroll', 'secret')");
is(with_secret('a third'), 'duplicate', 'a secret is added past the pooler');
is(with_secret('secret'), '28000', '... and another one retired');
is(through('pool', "BEGIN; SELECT gigs.add_gig_secret('payroll', 'never'); ROLLBACK;"), '', 'a secret is added, and not committed');
is(with_secret('never'), '28000', '... and is not valid');

# The server is restarted under the pooler.
$node->restart;
$answer = '';
for (1 .. 600)
{
	$answer = with_secret('a third');
	last if $answer eq 'duplicate';
	select undef, undef, undef, 0.1;
}
is($answer, 'duplicate', 'after a restart of the server the pooler continues');
is(troubles($node, 'postgres'), '', '... and log and accounts agree');

$pooler->kill_kill;
$pooler = undef;
$node->stop;
done_testing();
