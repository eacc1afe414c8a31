# Concurrent processes, each with a session, that record which webhooks have been
# acknowledged.
#
#   my $sum = run_workers('a title', $node, 8, $seed, sub { ... }, sub { ... });
#
# A worker calls its function repeatedly until the time has passed.  The function
# uses insist() and acknowledge(), and may count in %tally, which is summed up.

package GigWorkers;

use strict;
use warnings;

use Exporter qw(import);
use FindBin;
use POSIX ();
use Storable qw(store retrieve);
use Test::More;
use Time::HiRes qw(time);

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigWire;

our @EXPORT = qw(run_workers insist set_isolation set_may_deadlock acknowledge
  acknowledgements unexpected %tally);

my $max_attempts = 1000;
my $patience = $PostgreSQL::Test::Utils::timeout_default;

# In a worker.
our %tally;
my ($wire, $acks, $number);
my $isolation = 'read committed';

my $may_deadlock = 0;
my $directory;

# ---------------------------------------------------------------------------
# For the workers
# ---------------------------------------------------------------------------

# Executes statements in a transaction.  Retries it after serialization failures,
# if the isolation level is not READ COMMITTED, and after deadlocks, if they are
# allowed.  A statement may be an array, with the rows of a COPY.  Returns the rows
# of all statements; after any other error, records that and returns nothing.
sub insist
{
	my @statements = map { ref $_ ? $_ : [$_] } @_;
	my @transaction =
	  @statements == 1 ? @statements : (['BEGIN'], @statements, ['COMMIT']);

  ATTEMPT:
	for (1 .. $max_attempts)
	{
		my @rows;

		for my $statement (@transaction)
		{
			my $answer = run(@$statement);
			my $sqlstate = $answer->{sqlstate};

			push @rows, @{ $answer->{rows} };
			next if !defined $sqlstate;
			run('ROLLBACK') if @statements > 1;
			if (   $sqlstate eq '40001' && $isolation ne 'read committed'
				|| $sqlstate eq '40P01' && $may_deadlock)
			{
				$tally{"retries after $sqlstate"}++;
				next ATTEMPT;
			}
			unexpected("$isolation: $sqlstate $answer->{message}", $statement->[0]);
			return;
		}
		return \@rows;
	}
	unexpected("$isolation: $max_attempts attempts", $statements[0][0]);
	return;
}

sub run
{
	my ($statement, $copy) = @_;

	local $SIG{ALRM} = sub { die "no answer in $patience s, at: $statement\n" };
	alarm $patience;
	my $answer = $wire->query($statement, copy => $copy);
	alarm 0;
	die "the connection was lost, at: $statement\n" if !$answer;
	$tally{statements}++;
	return $answer;
}

# Sets the isolation level of the following transactions.
sub set_isolation
{
	($isolation) = @_;
	insist("SET default_transaction_isolation = '$isolation'");
	return;
}

# Records a failure.
sub unexpected
{
	my ($message, $statement) = @_;

	push @{ $tally{unexpected} }, "worker $number: $message, at: " . substr $statement, 0, 400;
	return;
}

# Records an acknowledged webhook, as a row in COPY's format.
sub acknowledge
{
	print {$acks} join("\t", map { defined $_ ? $_ : '\\N' } @_) . "\n";
	return;
}

# ---------------------------------------------------------------------------
# For the test
# ---------------------------------------------------------------------------

sub set_may_deadlock { ($may_deadlock) = @_; return }

# Returns the files with the acknowledged webhooks.
sub acknowledgements { return glob "$directory/acks.*" }

# Runs a worker for each function, for some seconds.  Tests that none has recorded
# a failure.  Returns the sums of what they have counted.
sub run_workers
{
	my ($title, $node, $seconds, $seed, @functions) = @_;
	my $until = time + $seconds;
	my %numbers;
	my (%sum, @unexpected);

	$directory ||= PostgreSQL::Test::Utils::tempdir();
	for my $i (0 .. $#functions)
	{
		my $pid = fork;
		die "could not fork: $!" if !defined $pid;
		if ($pid == 0)
		{
			# without the parent's END blocks
			$number = $i;
			srand($seed + $i);
			my $is_good = eval { work($node, $until, $functions[$i]); 1 };
			print STDERR "worker $i: $@" if !$is_good;
			POSIX::_exit($is_good ? 0 : 1);
		}
		$numbers{$pid} = $i;
	}
	for my $pid (keys %numbers)
	{
		waitpid $pid, 0;
		if ($? != 0)
		{
			push @unexpected, "worker $numbers{$pid} has failed";
			next;
		}
		my $tally = retrieve("$directory/tally.$numbers{$pid}");

		push @unexpected, @{ delete $tally->{unexpected} };
		$sum{$_} += $tally->{$_} for keys %$tally;
	}
	is(scalar @unexpected, 0, "$title: nothing fails")
	  or diag join "\n", @unexpected[ 0 .. ($#unexpected > 4 ? 4 : $#unexpected) ];
	note "$title: " . join ', ', map { "$_: $sum{$_}" } sort keys %sum;
	return \%sum;
}

sub work
{
	my ($node, $until, $function) = @_;

	%tally = (unexpected => []);
	open $acks, '>>', "$directory/acks.$number" or die $!;
	$wire = GigWire->connect($node);
	insist('SET client_min_messages = warning');
	$function->() while time < $until;
	close $acks or die $!;
	store(\%tally, "$directory/tally.$number") or die $!;
	return;
}

1;
