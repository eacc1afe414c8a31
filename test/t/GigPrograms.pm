# Programs that run beside a test, such as receivers and consumers, and the
# stand-in for Argyle, examples/argyle/argyle.py.  Whatever a test has not stopped
# is killed when the test ends.

package GigPrograms;

use strict;
use warnings;

use Exporter qw(import);
use FindBin;
use HTTP::Tiny;
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_program stop_program end_of wait_for_output output_of free_port
  start_argyle ask_argyle request_gigs compare_gigs python npm_ci example);

my $python = '/usr/bin/python3';
my $json = JSON::PP->new->utf8;
my $api = HTTP::Tiny->new(timeout => 60, max_redirect => 0);
# HTTP::Tiny sends the header and the body apart: over a connection that is kept,
# the body would wait for a delayed acknowledgement.
my $control = HTTP::Tiny->new(timeout => 60, keep_alive => 0);
my $started = 0;
my %running;

# Returns the path of a file of the examples.
sub example { my ($name) = @_; return "$FindBin::RealBin/../../examples/$name" }

# Returns a Python that has the modules, or nothing.  A python3 that comes first
# in PATH need not be Debian's, which has the packages that were installed.
sub python
{
	my (@modules) = @_;
	my $imports = join ', ', 'sys', @modules;

	return if !-x $python;
	return if system("$python -c 'import $imports; sys.exit(sys.version_info < (3, 10))' 2>/dev/null") != 0;
	return $python;
}

# Installs the packages that a directory names.  Returns whether that is done: npm
# may be missing, or not reach its registry.
sub npm_ci
{
	my ($directory) = @_;

	return system("cd '$directory' && npm ci --silent --no-audit --no-fund --fetch-retries=1 >/dev/null 2>&1") == 0;
}

sub free_port { return PostgreSQL::Test::Cluster::get_free_port() }

# A signal ends the test by way of END.
my %signal_numbers = (HUP => POSIX::SIGHUP(), INT => POSIX::SIGINT(), TERM => POSIX::SIGTERM());
$SIG{$_} = sub { die "ended by a signal\n" } for keys %signal_numbers;

# Starts a program, and waits for a line of its output if there is to be one.  It
# gets a process group, so that what it starts ends with it.
# Takes command, env (a hash) and ready (a pattern).  Standard output and error go
# to one file, which output_of() returns.
sub start_program
{
	my (%options) = @_;
	my $output =
	  PostgreSQL::Test::Utils::tempdir('program') . '/output.' . ++$started;
	# Before it is another program, the child must not end as this test does.
	my $signals = POSIX::SigSet->new(values %signal_numbers);
	POSIX::sigprocmask(POSIX::SIG_BLOCK(), $signals);
	my $pid = fork;

	die "cannot fork: $!" if !defined $pid;
	if ($pid == 0)
	{
		$SIG{$_} = 'DEFAULT' for keys %signal_numbers;
		POSIX::sigprocmask(POSIX::SIG_UNBLOCK(), $signals);
		POSIX::setpgid(0, 0);
		@ENV{ keys %{ $options{env} } } = values %{ $options{env} };
		open STDIN, '<', '/dev/null' or POSIX::_exit(126);
		open STDOUT, '>', $output or POSIX::_exit(126);
		open STDERR, '>&', \*STDOUT or POSIX::_exit(126);
		exec { $options{command}[0] } @{ $options{command} } or POSIX::_exit(127);
	}
	POSIX::sigprocmask(POSIX::SIG_UNBLOCK(), $signals);
	# The child does so, too; whichever comes first.
	POSIX::setpgid($pid, $pid);
	my $program = { pid => $pid, output => $output, name => join ' ', @{ $options{command} } };

	$running{$pid} = $program;
	$program->{ready} = wait_for_output($program, $options{ready}) if $options{ready};
	return $program;
}

sub output_of { my ($program) = @_; return -e $program->{output} ? slurp_file($program->{output}) : '' }

# Waits until a program has printed what a pattern matches.  Returns what the
# pattern's group matched.
sub wait_for_output
{
	my ($program, $pattern) = @_;
	my $until = time + $PostgreSQL::Test::Utils::timeout_default;

	while (1)
	{
		my $has_ended = waitpid($program->{pid}, POSIX::WNOHANG()) != 0;
		my $output = output_of($program);

		return $1 if $output =~ $pattern;
		delete $running{ $program->{pid} } if $has_ended;
		die "$program->{name} has ended:\n$output" if $has_ended;
		die "$program->{name} did not print $pattern:\n$output" if time > $until;
		sleep 0.02;
	}
}

# Sends a signal to a program and what it has started, SIGTERM by default, and waits for its end.  Returns
# its exit code, or minus the number of the signal that ended it.
sub stop_program
{
	my ($program, $signal) = @_;

	kill $signal || 'TERM', -$program->{pid};
	return end_of($program);
}

sub end_of
{
	my ($program) = @_;

	waitpid $program->{pid}, 0;
	my $status = $?;

	delete $running{ $program->{pid} };
	kill 'KILL', -$program->{pid};
	return $status & 127 ? -($status & 127) : $status >> 8;
}

# ---------------------------------------------------------------------------
# The stand-in for Argyle
# ---------------------------------------------------------------------------

# Starts the stand-in with options.  $argyle->{ready} is its address.
sub start_argyle
{
	my (@options) = @_;

	return start_program(
		command => [ $python, example('argyle/argyle.py'), @options ],
		ready => qr{^listening on (http://\S+)$}m);
}

# Asks a control endpoint, by POST if there are arguments.
sub ask_argyle
{
	my ($argyle, $what, $arguments) = @_;
	my $answer =
	  $arguments
	  ? $control->post("$argyle->{ready}/control/$what", { content => $json->encode($arguments) })
	  : $control->get("$argyle->{ready}/control/$what");

	die "/control/$what: $answer->{status} $answer->{content}" if $answer->{status} != 200;
	return $what eq 'gigs' ? $answer->{content} : $json->decode($answer->{content});
}

# Sends a request to the API.  Returns the status, the decoded body and the headers.
sub request_gigs
{
	my ($argyle, $url, $credentials) = @_;

	$url = "$argyle->{ready}$url" if $url =~ m{^/};
	$credentials = 'id:secret' if !defined $credentials;
	$url =~ s{//}{//$credentials\@} if $credentials ne '';
	my $answer = $api->get($url);

	return ($answer->{status}, eval { $json->decode($answer->{content}) }, $answer->{headers});
}

# Returns the number of gigs of the stand-in, and how many differ between it and the
# table of the consumers.
sub compare_gigs
{
	my ($node, $dbname, $argyle) = @_;
	my $path = PostgreSQL::Test::Utils::tempdir('gigs') . '/gigs';

	append_to_file($path, ask_argyle($argyle, 'gigs'));
	return split /\|/, $node->safe_psql(
		$dbname, "
		SELECT count(w.gig), count(*) FILTER (WHERE
			(g.gig_id, g.account_id, g.start_datetime, g.gig) IS DISTINCT FROM
			((w.gig->>'id')::uuid, (w.gig->>'account')::uuid, (w.gig->>'start_datetime')::timestamptz, w.gig))
		FROM gig AS g
		FULL JOIN (
			SELECT line::jsonb AS gig FROM regexp_split_to_table(pg_read_file('$path'), '\n') AS line WHERE line <> ''
		) AS w ON g.gig_id = (w.gig->>'id')::uuid");
}

END
{
	my $status = $?;

	for my $pid (keys %running)
	{
		kill 'KILL', -$pid;
		waitpid $pid, 0;
	}
	$? = $status;
}

1;
