# Starts gigs_receiver, posts webhooks to it, and ends it.
#
#   my $receiver = GigReceiver->new($node->connstr('postgres'), '--sessions=1');
#   $receiver->wait_ready;
#   my $answer = $receiver->post($body, sign($body, 'secret'));	# "200 applied"
#
# An answer is written as its status and its outcome, or its status alone.  Where a
# test needs the bytes of requests, it opens a connection of its own:
#
#   my $socket = $receiver->connect;
#   print $socket request($body);
#   my ($status, $headers, $content) = read_answer($socket);
#
# The receivers need a database that create_gigs() has prepared.

package GigReceiver;

use strict;
use warnings;

use Digest::MD5 qw(md5_hex);
use Exporter qw(import);
use FindBin;
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;
use GigTest;

our @EXPORT = qw(hook signed_request request read_answer answer_of is_closed);

my $path = '/webhooks/argyle';
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

# ---------------------------------------------------------------------------
# The program
# ---------------------------------------------------------------------------

# Starts a receiver for a database.  Further arguments are options.
sub new
{
	my ($class, $connstr, @options) = @_;
	my $self = bless {
		port => free_port(),
		admin_port => free_port(),
		connstr => $connstr,
		options => \@options,
	}, $class;

	$self->start;
	return $self;
}

sub start
{
	my ($self) = @_;

	$self->{program} = start_program(
		command => [
			'gigs_receiver', '--database', $self->{connstr},
			'--listen', "127.0.0.1:$self->{port}",
			'--admin', "127.0.0.1:$self->{admin_port}",
			@{ $self->{options} }
		],
		# of servers, nothing can be said
		env => { $ENV{ASAN_OPTIONS} ? (ASAN_OPTIONS => "$ENV{ASAN_OPTIONS}:detect_leaks=1") : () });
	$self->wait_for('to live', sub { $self->admin('/live') =~ /^200/ });
	return;
}

# Waits for a condition.
sub wait_for
{
	my ($self, $what, $condition) = @_;
	my $end = time + $timeout;

	until ($condition->())
	{
		die "waited in vain for the receiver $what: " . $self->log_text if time > $end;
		sleep 0.02;
	}
	return;
}

sub wait_ready
{
	my ($self) = @_;

	$self->wait_for('to be ready', sub { $self->admin('/ready') =~ /^200/ });
	return;
}

# Waits until so many webhooks wait for an answer of the database.
sub wait_for_waiting
{
	my ($self, $n) = @_;

	$self->wait_for("to have $n webhooks waiting", sub { $self->metric('gigs_receiver_waiting_events') == $n });
	return;
}

# Asks a receiver to end.  finish() waits for that, and returns the exit code.
sub terminate { my ($self) = @_; kill 'TERM', $self->{program}{pid}; return }

sub finish { my ($self) = @_; return end_of($self->{program}) }

sub stop { my ($self) = @_; return stop_program($self->{program}) }

sub kill_hard { my ($self) = @_; return stop_program($self->{program}, 'KILL') }

sub log_text { my ($self) = @_; return output_of($self->{program}) }

# Asks the admin address.  Returns the status and the content.
sub admin
{
	my ($self, $url) = @_;
	my $answer = HTTP::Tiny->new(timeout => $timeout)->get("http://127.0.0.1:$self->{admin_port}$url");

	return "$answer->{status} $answer->{content}";
}

# Returns a metric by its name and labels, as they are printed.
sub metric
{
	my ($self, $name) = @_;

	return $self->admin('/metrics') =~ /^\Q$name\E (\S+)$/m ? $1 : undef;
}

# ---------------------------------------------------------------------------
# Webhooks
# ---------------------------------------------------------------------------

# Returns the body of a webhook for the account of a number.  A second number tells
# it from all others.
sub hook
{
	my ($account, $n) = @_;
	my $uuid = md5_hex("account $account") =~ s/^(.{8})(.{4})(.{4})(.{4})/$1-$2-$3-$4-/r;

	return sprintf '{"event": "gigs.added", "name": "payroll", "data": {"account": "%s", "user": "%s",'
	  . ' "available_count": %d, "added_count": 1, "added_from": null, "added_to": null,'
	  . ' "available_from": null, "available_to": null}}', $uuid, $uuid, $n;
}

# Posts a body over a connection of its own.
sub post
{
	my ($self, $body, $signature) = @_;
	my $socket = $self->connect;

	print $socket request($body, defined $signature ? "X-Argyle-Signature: $signature" : ());
	return answer_of($socket);
}

# Posts a genuine webhook for the account of a number.
sub post_hook
{
	my ($self, $account, $n) = @_;

	return $self->post(hook($account, $n), sign(hook($account, $n), 'secret'));
}

# Sends requests at the same time.  Returns their connections.
sub start_posts
{
	my ($self, @requests) = @_;

	return map { my $socket = $self->connect; print $socket $_; $socket } @requests;
}

# Has each of two sessions wait for a lock that another session takes and holds.
# Returns the connections of their webhooks, which are of the account of a number.
sub hold_up
{
	my ($self, $node, $locker, $account) = @_;
	my @sockets;

	ask($locker, 'BEGIN; LOCK TABLE gigs.gig_event_log IN EXCLUSIVE MODE');
	for my $i (1, 2)
	{
		push @sockets, $self->start_posts(signed_request(hook($account, $i)));
		wait_for_locks($node, 'postgres', $i);
	}
	return @sockets;
}

# ---------------------------------------------------------------------------
# Requests and answers
# ---------------------------------------------------------------------------

sub connect
{
	my ($self) = @_;
	my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port})
	  or die "could not connect to the receiver: $!";

	binmode $socket;
	$socket->autoflush;
	return $socket;
}

# Returns the bytes of a request.  Headers are added to it.
sub request
{
	my ($body, @headers) = @_;

	return join "\r\n", "POST $path HTTP/1.1", 'Host: localhost', 'Content-Length: ' . length $body, @headers, '', $body;
}

sub signed_request
{
	my ($body, @headers) = @_;

	return request($body, 'X-Argyle-Signature: ' . sign($body, 'secret'), @headers);
}

# Reads an answer.  Returns its status, header and content, or nothing if the
# connection is closed before.
sub read_answer
{
	my ($socket) = @_;
	my $end = time + $timeout;
	my $answer = '';
	my $read = sub {
		my ($len) = @_;

		IO::Select->new($socket)->can_read($end - time) or die "waited in vain for an answer";
		return sysread $socket, $answer, $len, length $answer;
	};

	until ($answer =~ /\r\n\r\n/)
	{
		$read->(1) or return;
	}
	my $header = $answer;
	my ($status) = $header =~ m{^HTTP/1\.[01] (\d+)} or die "not an answer: $header";

	$answer = '';
	my $len = $header =~ /^Content-Length: (\d+)\r$/mi ? $1 : 0;
	while (length $answer < $len)
	{
		$read->($len - length $answer) or die "the content of an answer ends early";
	}
	return ($status, $header, $answer);
}

# Reads an answer.  Returns its status, and its outcome if it has one; or "closed".
sub answer_of
{
	my ($socket) = @_;
	my ($status, $header, $content) = read_answer($socket) or return 'closed';

	return $content =~ /^\{"outcome": "(\w+)"\}\n$/ ? "$status $1" : $status;
}

# Tells whether a connection is closed by the receiver, without another answer.
# libmicrohttpd 0.9 writes the header of its own answers twice, so that the end of
# such an answer is still to be read.
sub is_closed
{
	my ($socket) = @_;
	my $rest = '';

	while (IO::Select->new($socket)->can_read($timeout))
	{
		sysread $socket, $rest, 10_000, length $rest or return $rest !~ m{HTTP/1};
	}
	return 0;
}

1;
