# Programs that listen on a port of 127.0.0.1, each with its log, and requests to
# them.  All programs are ended with the test, however that ends.

package GigWebServers;

use strict;
use warnings;

use Exporter qw(import);
use HTTP::Tiny;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_web_server stop_web_server free_port request begin_request end_request);

my $timeout = $PostgreSQL::Test::Utils::timeout_default;
my @running;

# A signal ends the test by way of END.
$SIG{$_} = sub { die "ended by a signal\n" } for qw(HUP INT TERM);

END
{
	local $?;
	stop_web_server($running[0]) while @running;
}

sub free_port { return PostgreSQL::Test::Cluster::get_free_port() }

# Starts a command with variables added to the environment, and does not wait for
# it.  The program gets a process group, so that what it starts ends with it.
sub start_web_server
{
	my ($name, $port, $env, @command) = @_;
	my $log = PostgreSQL::Test::Utils::tempdir($name) . '/log';
	my $pid = fork;

	die "could not fork: $!" if !defined $pid;
	if ($pid == 0)
	{
		POSIX::setpgid(0, 0);
		@ENV{ keys %$env } = values %$env;
		open STDIN, '<', '/dev/null';
		open STDOUT, '>', $log;
		open STDERR, '>&', \*STDOUT;
		{ no warnings; exec @command; }
		print STDERR "could not run $command[0]: $!\n";
		POSIX::_exit(127);
	}
	# The child does so, too; whichever comes first.
	POSIX::setpgid($pid, $pid);
	my $server = { name => $name, port => $port, pid => $pid, log => $log };

	push @running, $server;
	return $server;
}

# Ends a program and all that it has started.
sub stop_web_server
{
	my ($server) = @_;

	@running = grep { $_ != $server } @running;
	kill 'TERM', -$server->{pid};
	for (1 .. 50)
	{
		waitpid $server->{pid}, POSIX::WNOHANG;
		return if !kill 0, -$server->{pid};
		sleep 0.1;
	}
	kill 'KILL', -$server->{pid};
	waitpid $server->{pid}, 0;
	return;
}

# Connects to a program.  Waits for one that has just been started.
sub connect_to
{
	my ($server) = @_;

	for (1 .. 10 * $timeout)
	{
		my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $server->{port});

		return $socket if $socket;
		last if waitpid($server->{pid}, POSIX::WNOHANG) == $server->{pid};
		sleep 0.1;
	}
	die "$server->{name} does not listen: " . slurp_file($server->{log});
}

# Sends a request whose body is bytes, and returns HTTP::Tiny's answer: status,
# headers, content.
sub request
{
	my ($server, $method, $path, $headers, $body) = @_;

	connect_to($server) if !$server->{http};
	$server->{http} ||= HTTP::Tiny->new(timeout => $timeout);
	return $server->{http}->request(
		$method,
		"http://127.0.0.1:$server->{port}$path",
		{ headers => $headers, defined $body ? (content => $body) : () });
}

# Sends a request and does not wait for the answer, of which end_request() returns
# the status.  A program may refuse the request before it has read all of it.
sub begin_request
{
	my ($server, $method, $path, $headers, $body) = @_;
	my $socket = connect_to($server);

	print $socket join "\r\n", "$method $path HTTP/1.1", 'Host: localhost', 'Connection: close',
	  'Content-Length: ' . length $body, (map { "$_: $headers->{$_}" } sort keys %$headers), '', $body;
	$socket->flush;
	return $socket;
}

sub end_request
{
	my ($socket) = @_;
	my $line = <$socket>;

	return defined $line && $line =~ m{^HTTP/1\.\d (\d+)} ? $1 : 'no answer';
}

1;
