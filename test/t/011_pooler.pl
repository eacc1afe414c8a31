# A pooler in transaction mode: clients take turns on sessions that aren't
# theirs.
#
# GIGS_LONG makes them take more turns.

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

# What goes through the pooler; start_client() only asks for a connstr.
sub Pooled::connstr
{
	my ($self, $dbname) = @_;

	return "host=$dir port=$port user=$user dbname=$dbname";
}
my $pooled = bless {}, 'Pooled';

# What a client prints, to standard output and to standard error.
sub through
{
	my ($dbname, $script) = @_;
	my ($out, $err) = finish_client(start_client($pooled, $dbname, $script));

	chomp $out;
	return $out . $err;
}

$pooler = IPC::Run::start([ $pgbouncer, '-q', "$dir/ini" ], '<', \undef, '>',
	"$dir/out", '2>', "$dir/err");

# it doesn't stay, whatever happens
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

# Each brings webhooks of its own, some that all bring, and bad ones, singly, in
# batches and in transactions, and leaves settings and statements behind.
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

		# what is left behind is for whoever comes next
		$script .= "SET DateStyle = German;\nSET TimeZone = 'Asia/Kolkata';\nSET search_path = pg_temp;\nSET enable_indexscan = off;\n" if $i % 7 == 0;
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
	is_deeply($sum{own}, { applied => $nclients * $own, duplicate => $nclients * $elevens }, '... what each brings is applied');
	is_deeply($sum{undone}, { applied => $nclients * $fives }, '... or not, if it is rolled back');
	is(($sum{common}{applied} || 0) + ($sum{common}{stale} || 0), 3 * $nrounds, '... what all bring is applied once');
	is($sum{common}{duplicate}, 3 * $nrounds * ($nclients - 1), '... and otherwise a duplicate');
	is_deeply($sum{bad}, { n => $nclients * $nrounds }, '... and what is bad is rejected');
	$first += $nrounds;
	$applied += $nclients * $own + 3 * $nrounds;
	is($node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'), $applied, '... all of it is there, once');
	is(troubles($node, 'postgres'), '', '... and adds up');
}

# ---------------------------------------------------------------------------
# Secrets come and go
# ---------------------------------------------------------------------------

# The sessions know the secrets by now; whichever comes next knows better.
sub with_secret
{
	my ($secret) = @_;
	my $script = "SELECT coalesce(sqlstate, outcome::text) FROM public.hook(1, 1) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text));\n";
	my @outs = map { (finish_client($_))[0] } map { start_client($pooled, 'pool', $script x 5) } 1 .. 6;
	my %outcomes = map { $_ => 1 } map { split /\n/ } @outs;

	return join ' ', sort keys %outcomes;
}

through('pool', "SELECT public.take(1, 1)");
is(with_secret('another'), '28000', 'a secret is not good yet');
through('pool', "SELECT gigs.add_gig_secret('payroll', 'another')");
is(with_secret('another'), 'duplicate', '... and is, in all sessions, once somebody has added it through the pool');
through('pool', "SELECT gigs.retire_gig_secret('payroll', 'another')");
is(with_secret('another'), '28000', '... and is not, in all sessions, once somebody has retired it');
$node->safe_psql('postgres', "SELECT gigs.add_gig_secret('payroll', 'a third'); SELECT gigs.retire_gig_secret('payroll', 'secret')");
is(with_secret('a third'), 'duplicate', '... past the pool as well');
is(with_secret('secret'), '28000', '... to retire one likewise');
is(through('pool', "BEGIN; SELECT gigs.add_gig_secret('payroll', 'never'); ROLLBACK;"), '', 'a secret is added, and not committed');
is(with_secret('never'), '28000', '... and is not good');

# The server is restarted under the pool.
$node->restart;
$answer = '';
for (1 .. 600)
{
	$answer = with_secret('a third');
	last if $answer eq 'duplicate';
	select undef, undef, undef, 0.1;
}
is($answer, 'duplicate', 'after a restart of the server the pool goes on');
is(troubles($node, 'postgres'), '', '... and all adds up');

$pooler->kill_kill;
$pooler = undef;
$node->stop;
done_testing();
