# A server that is killed, or whose processes are, and that recovers.
#
# Its settings make it write WAL and pages late or all the time, so that a crash
# loses as much as it may.  fsync stays off, as in all tests: only a crash of the
# machine loses what is not synced.

package GigServer;

use strict;
use warnings;

use FindBin;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);
use GigWire;

my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# Initializes and starts a server.  WAL segments are small, so that crashes hit
# checkpoints.
sub new
{
	my ($class, $name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $self = bless { node => $node }, $class;

	$node->init(extra =>
		  [ '--encoding=UTF8', '--locale=C', '--data-checksums', '--wal-segsize=1' ]);
	$node->append_conf(
		'postgresql.conf', join "\n",
		'max_prepared_transactions = 20',
		'restart_after_crash = on',
		'full_page_writes = on',
		'min_wal_size = 2MB',
		'max_wal_size = 3MB',
		'checkpoint_timeout = 30s',
		'wal_buffers = 1MB',
		'wal_writer_delay = 10s',
		'bgwriter_delay = 10ms',
		'autovacuum = on',
		'autovacuum_naptime = 1s',
		'autovacuum_vacuum_cost_delay = 0',
		"deadlock_timeout = '10ms'",
		'log_statement = none',
		'log_min_messages = fatal',
		'');
	$self->start;
	$self->connect;
	return $self;
}

sub node { return $_[0]{node} }
sub admin { return $_[0]{admin} }

# With a small cache pages are written all the time, and WAL before them.  With a
# large one only commits and checkpoints write, so that there is more to be lost
# or replayed.
sub start
{
	my ($self) = @_;

	$self->{node}->append_conf(
		'postgresql.conf', join "\n",
		pick("shared_buffers = 1MB\nbgwriter_lru_maxpages = 100",
			"shared_buffers = 32MB\nbgwriter_lru_maxpages = 0"),
		'wal_level = ' . pick('minimal', 'replica', 'logical'),
		'wal_compression = ' . pick('on', 'off'),
		'');
	$self->{node}->start;
	return;
}

# Connects as a superuser, once the server has recovered.
sub connect
{
	my ($self) = @_;

	$self->{node}->poll_query_until('postgres', 'SELECT true')
	  or die 'the server is not up';
	$self->{admin} = GigWire->connect($self->{node});
	return;
}

# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------

sub postmaster_pid
{
	my ($self) = @_;
	my ($pid) = split /\n/, slurp_file($self->{node}->data_dir . '/postmaster.pid');

	return $pid;
}

# Returns the parent of each living process.
sub parents
{
	my %parent_of;

	if (-d '/proc/self')
	{
		for my $path (glob '/proc/[0-9]*/stat')
		{
			# the process may have ended
			open my $file, '<', $path or next;
			my ($pid, $state, $parent) = (<$file> || '') =~ /^(\d+) \(.*\) (\S) (\d+) /s or next;

			$parent_of{$pid} = $parent if $state ne 'Z' && $state ne 'X';
		}
		return %parent_of;
	}
	for (`ps -A -o pid= -o ppid= -o state=`)
	{
		my ($pid, $parent, $state) = split;

		$parent_of{$pid} = $parent if $state !~ /^Z/;
	}
	return %parent_of;
}

sub wait_for
{
	my ($what, $condition) = @_;

	for (1 .. $timeout * 200)
	{
		return if $condition->();
		select undef, undef, undef, 0.005;
	}
	die "timed out waiting for $what";
}

# Tells whether SIGSTOP has stopped a process.
sub is_stopped
{
	my ($pid) = @_;

	open my $file, '<', "/proc/$pid/stat" or return `ps -o state= -p $pid` =~ /^T/;
	return (<$file> || '') =~ /^\d+ \(.*\) T /s;
}

# Stops the WAL writer, which would soon write what a commit has not.
#
# An ordinary shutdown would wait for it.  It must be idle, because at work it
# holds a lock that every commit needs.
sub stop_wal_writer
{
	my ($self) = @_;
	my $admin = $self->{admin};
	my $pid = $admin->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");

	wait_for(
		'the WAL writer to be idle',
		sub {
			my $freed = 0;

			kill 'STOP', $pid or die 'there is no WAL writer';
			wait_for('the WAL writer to stop', sub { is_stopped($pid) });
			# even this query may need the lock
			local $SIG{ALRM} = sub { $freed = kill 'CONT', $pid };
			alarm 1;
			my $idle = $admin->value(
				"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND wait_event = 'WalWriterMain'");
			alarm 0;
			return 1 if $idle && !$freed;
			kill 'CONT', $pid;
			return 0;
		});
	return;
}

# ---------------------------------------------------------------------------
# Crashes
# ---------------------------------------------------------------------------

# Kills all processes of the server, and starts it again.  The postmaster is
# stopped first, so that it starts no process meanwhile.
sub kill_all
{
	my ($self) = @_;
	my $node = $self->{node};
	my $postmaster = $self->postmaster_pid;

	kill 'STOP', $postmaster;
	wait_for('the postmaster to stop', sub { is_stopped($postmaster) });
	my %parent_of = parents();
	my @children = shuffled(grep { $parent_of{$_} == $postmaster } sort keys %parent_of);
	if (chance(0.5))
	{
		$node->kill9;
		kill 'KILL', @children;
	}
	else
	{
		kill 'KILL', @children;
		$node->kill9;
	}
	wait_for(
		'the server\'s processes to end',
		sub {
			%parent_of = parents();
			return !grep { $parent_of{$_} } $postmaster, @children;
		});
	# In a container a killed postmaster may stay a zombie, which would be taken
	# for a running server.
	unlink $node->data_dir . '/postmaster.pid',
	  $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	$self->start;
	return;
}

# Kills one process, a client's session in most cases.  Returns when the
# postmaster has noticed it and ends all sessions.
sub kill_one
{
	my ($self) = @_;
	my $kind = chance(0.75) ? "= 'client backend'" : "<> 'client backend'";
	my @pids = map { $_->[0] } $self->{admin}->rows(
		"SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type $kind");

	# some may have ended meanwhile
	for my $pid (shuffled(@pids))
	{
		next if !kill 'KILL', $pid;
		for (1 .. 1000)
		{
			return if !$self->{admin}->query('SELECT 1');
			select undef, undef, undef, 0.002;
		}
	}
	die 'the postmaster does not notice';
}

# Kills one process, and all others during the recovery.
sub kill_one_then_all
{
	my ($self) = @_;

	$self->kill_one;
	select undef, undef, undef, rand 0.15;
	$self->kill_all;
	return;
}

sub stop_immediately
{
	my ($self) = @_;

	$self->{node}->stop('immediate');
	$self->start;
	return;
}

1;
