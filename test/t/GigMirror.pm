# Everything from Argyle to the table of gigs: the stand-in, which posts webhooks to
# a receiver, a server, and two consumers, which fetch the gigs from the stand-in.
#
#   my $mirror = GigMirror->new($node, accounts => 200, ...);	# settings of the stand-in
#   $mirror->disturb;			# something dies, and is started again
#   $mirror->settle;			# nothing changes, all is answered and worked on
#   is($mirror->differences, 0);
#
# All programs use the database "mirror", with the extension in the schema gigs.

package GigMirror;

use strict;
use warnings;

use FindBin;
use IPC::Run ();
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;
use GigReceiver;
use GigTest qw(:DEFAULT :dice);

my $dbname = 'mirror';
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# What may happen, and how often it has.
my @disturbances = qw(kill_receiver stop_receiver kill_consumer stop_consumer
  kill_backend kill_server restart_server);

# Returns the commands of the consumers that can be run here.
my @commands;

sub commands
{
	return @commands if @commands;
	my $directory = example('consumers');
	my $python = python('psycopg');

	push @commands, [ $python, "$directory/consumer.py" ] if $python;
	push @commands, [ 'node', "$directory/consumer.js" ]
	  if npm_ci($directory);
	return @commands;
}

# Starts everything.  The settings are those of the stand-in.
sub new
{
	my ($class, $node, %settings) = @_;
	my $self = bless {
		node => $node,
		files => PostgreSQL::Test::Utils::tempdir,
		happened => { map { $_ => 0 } @disturbances },
	}, $class;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	create_gigs($node, $dbname);
	$node->safe_psql($dbname, slurp_file(example('consumers/gig.sql')));
	$node->safe_psql(
		$dbname, q{
		SELECT gigs.create_gig_consumer('mirror', parts => 4);
		CREATE ROLE receiver LOGIN;
		SELECT gigs.grant_gig_receiver('receiver');
		CREATE ROLE worker LOGIN;
		SELECT gigs.grant_gig_consumer('worker');
		GRANT SELECT, INSERT, UPDATE, DELETE ON gig TO worker});
	$self->{receiver} =
	  GigReceiver->new($node->connstr($dbname) . ' user=receiver', '--notify', 'mirror', '--answer-timeout', '5s');
	$self->{receiver}->wait_ready;
	$self->{argyle} = start_argyle('--webhook-url', "http://127.0.0.1:$self->{receiver}{port}/webhooks/argyle",
		map { ("--$_" =~ tr/_/-/r, $settings{$_}) } sort keys %settings);
	$self->{consumers} = [ map { $self->start_consumer((commands())[$_] || (commands())[0]) } 0, 1 ];
	return $self;
}

sub start_consumer
{
	my ($self, $command) = @_;

	my $consumer = start_program(
		command => $command,
		env => {
			$self->environment, PGUSER => 'worker',
			GIG_CONSUMER => 'mirror', GIG_WORKERS => 2, GIG_LEASE => '10 seconds', GIG_CHANNEL => 'mirror', GIG_POLL => 1
		});

	$consumer->{command} = $command;
	return $consumer;
}

# The variables of programs that connect to the database and to the stand-in.
sub environment
{
	my ($self) = @_;

	return (
		PGHOST => $self->{node}->host, PGPORT => $self->{node}->port, PGDATABASE => $dbname,
		PGOPTIONS => '-c search_path=gigs,public',
		ARGYLE_URL => $self->{argyle}{ready}, ARGYLE_ID => 'id', ARGYLE_SECRET => 'secret');
}

# Has something die, or end in order, and starts it again.  Nothing happens twice
# before everything has happened once.
sub disturb
{
	my ($self) = @_;

	$self->{next} = [ shuffled(@disturbances) ] if !$self->{next} || !@{ $self->{next} };
	my $what = pop @{ $self->{next} };

	$self->$what;
	$self->{happened}{$what}++;
	return;
}

sub happened { my ($self) = @_; return $self->{happened} }

sub kill_receiver { my ($self) = @_; return $self->restart_receiver('KILL') }

sub stop_receiver
{
	my ($self) = @_;
	my $code = $self->restart_receiver('TERM');

	die "the receiver has exited with $code" if $code != 0;
	return;
}

sub restart_receiver
{
	my ($self, $signal) = @_;
	my $receiver = $self->{receiver};
	my $code = $signal eq 'KILL' ? $receiver->kill_hard : $receiver->stop;

	sleep rand 0.5;
	$receiver->start;
	return $code;
}

sub kill_consumer { my ($self) = @_; return $self->restart_consumer('KILL') }

sub stop_consumer { my ($self) = @_; return $self->restart_consumer('TERM') }

sub restart_consumer
{
	my ($self, $signal) = @_;
	my $i = int rand 2;
	my $consumer = $self->{consumers}[$i];
	my $code = stop_program($consumer, $signal);

	# It may have been started so late that it did not handle the signal yet.
	die "a consumer has exited with $code: " . output_of($consumer)
	  if $signal eq 'TERM' && $code != 0 && $code != -POSIX::SIGTERM();
	sleep rand 0.5;
	$self->{consumers}[$i] = $self->start_consumer($consumer->{command});
	return;
}

# The server ends all other processes and recovers.
sub kill_backend
{
	my ($self) = @_;
	my $pid = $self->{node}->safe_psql('postgres', q{
		SELECT pid FROM pg_stat_activity WHERE usename IN ('receiver', 'worker') ORDER BY state = 'active' DESC, random() LIMIT 1});

	kill 'KILL', $pid if $pid;
	sleep 0.1;
	return $self->wait_for_server;
}

sub kill_server { my ($self) = @_; return $self->restart_node('immediate') }

sub restart_server { my ($self) = @_; return $self->restart_node('fast') }

sub restart_node
{
	my ($self, $mode) = @_;

	$self->{node}->stop($mode);
	sleep rand 0.5;
	$self->{node}->start;
	return;
}

sub wait_for_server
{
	my ($self) = @_;
	my $end = time + $timeout;

	# psql may end before it has read the query, which IPC::Run dies of.
	until (eval { $self->{node}->safe_psql('postgres', 'SELECT true') })
	{
		die 'the server does not recover' if time > $end;
		sleep 0.1;
	}
	return;
}

# Makes so many changes, even if the stand-in makes no more by itself.
sub change { my ($self, $n) = @_; ask_argyle($self->{argyle}, 'change', {}) for 1 .. $n; return }

# Connects an account, in place of those that go.
sub connect { my ($self) = @_; ask_argyle($self->{argyle}, 'change', { kind => 'connected' }); return }

# Changes settings of the stand-in.
sub set { my ($self, %settings) = @_; ask_argyle($self->{argyle}, 'settings', \%settings); return }

# Stops the changes, and waits until all webhooks are answered and all events are
# worked on.
sub settle
{
	my ($self) = @_;
	my $end = time + $timeout;

	ask_argyle($self->{argyle}, 'stop', {});
	$self->set(limited => 0, broken => 0, slow => 0);
	until (ask_argyle($self->{argyle}, 'settled')->{settled})
	{
		die 'webhooks are not answered' if time > $end;
		sleep 0.1;
	}
	return $self->wait_for_consumers;
}

# Retries that wait for long are due at once, because nothing fails any more.
sub wait_for_consumers
{
	my ($self) = @_;

	$self->{node}->safe_psql($dbname, q{UPDATE gigs.gig_consumer_retry SET due_at = now()});
	$self->{node}->poll_query_until($dbname,
		'SELECT (events_behind, retries, dead, working) = (0, 0, 0, 0) FROM gigs.gig_consumer_status')
	  or die 'not all events are worked on: '
	  . $self->{node}->safe_psql($dbname, 'SELECT s::text FROM gigs.gig_consumer_status AS s');
	return;
}

sub counts { my ($self) = @_; return ask_argyle($self->{argyle}, 'settled') }

# Returns the number of gigs, and how many of them differ between the stand-in and
# the table.
sub gigs_and_differences
{
	my ($self) = @_;

	return compare_gigs($self->{node}, $dbname, $self->{argyle});
}

# Returns the number of webhooks that have been answered with 200, and how many of
# them the log does not have.  Of a webhook that was answered twice, it has to have
# the duplicate as well.
sub acknowledged_and_lost
{
	my ($self) = @_;
	my %times;

	$times{ $_->{sha256} }++ for @{ ask_argyle($self->{argyle}, 'delivered') };
	my $path = $self->write_file('delivered', join '', map { "$_ $times{$_}\n" } sort keys %times);

	return split /\|/, $self->{node}->safe_psql(
		$dbname, "
		SELECT sum(d.times), coalesce(sum(d.times - least(d.times, l.times)), 0)
		FROM (
			SELECT split_part(line, ' ', 1) AS digest, split_part(line, ' ', 2)::int AS times
			FROM regexp_split_to_table(pg_read_file('$path'), '\n') AS line WHERE line <> ''
		) AS d
		LEFT JOIN (
			SELECT encode(sha256(f.body), 'hex') AS digest, count(*)::int AS times
			FROM gigs.gig_event_log AS l
			JOIN gigs.gig_event_log AS f ON f.event_id = coalesce(l.duplicate_of, l.event_id)
			GROUP BY 1
		) AS l USING (digest)");
}

# Reconciles all accounts with what the stand-in says of them, by the example's script.
# Returns how many have been.
sub reconcile
{
	my ($self) = @_;
	my ($output, $errors) = ('', '');
	local %ENV = (%ENV, $self->environment);

	IPC::Run::run([ example('reconcile/reconcile.sh'), 'everything' ], '<', \undef, '>', \$output, '2>', \$errors)
	  or die "accounts are not reconciled: $errors";
	return scalar(() = $output =~ /\| everything$/mg);
}

sub write_file
{
	my ($self, $name, $content) = @_;
	my $path = "$self->{files}/$name." . ++$self->{written};

	append_to_file($path, $content);
	return $path;
}

# Ends everything but the server.  Returns the exit codes.
sub stop
{
	my ($self) = @_;

	return ($self->{receiver}->stop, map { stop_program($_) } $self->{argyle}, @{ $self->{consumers} });
}

1;
