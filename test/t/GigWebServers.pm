# Programs that listen on a port of 127.0.0.1, and requests to them.

package GigWebServers;

use strict;
use warnings;

use Exporter qw(import);
use FindBin;
use HTTP::Tiny;
use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(sleep);

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;

our @EXPORT = qw(start_web_server request begin_request end_request);

my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# Starts a command with variables added to the environment, and does not wait for it.
sub start_web_server
{
	my ($port, $env, @command) = @_;

	return { %{ start_program(command => \@command, env => $env) }, port => $port };
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
	die "$server->{name} does not listen: " . output_of($server);
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
