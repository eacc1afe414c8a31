# A client of PostgreSQL's protocol.  It knows of every statement whether the
# server has acknowledged it, survives a crash of the server, and can disconnect
# after the rows of a COPY without waiting for the answer, unlike DBD::Pg.

package GigWire;

use strict;
use warnings;

use Errno qw(EINTR);
use IO::Socket::INET;
use IO::Socket::UNIX;

# Connects to a node's database "postgres".  The options are those of
# postgres' command line.  Dies if there is no connection.
sub connect
{
	my ($class, $node, $options) = @_;
	my ($host, $port) = ($node->host, $node->port);
	my $socket =
	  $host =~ m{^/}
	  ? IO::Socket::UNIX->new(Peer => "$host/.s.PGSQL.$port")
	  : IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port);

	die "could not connect to $host, port $port: $!" if !$socket;
	my $self = bless { socket => $socket, in => '' }, $class;
	my $startup = pack 'N (Z*)* x', 196608,
	  user => scalar getpwuid($>),
	  database => 'postgres',
	  client_encoding => 'UTF8',
	  options => defined $options ? $options : '';

	$self->send(pack('N', 4 + length $startup) . $startup);
	my $greeting = $self->answer;
	die 'could not connect: '
	  . ($greeting ? $greeting->{message} : 'the connection was closed')
	  if !$greeting || defined $greeting->{sqlstate};
	return $self;
}

# Runs a statement, with the rows of a COPY where it asks for them, and returns
# the server's answer, once that is complete:
#
#   rows      references to arrays
#   tag       of the last command that has succeeded
#   sqlstate  of an error, and its message
#
# Notices are passed to the function on_notice.  Returns nothing
# if the connection was lost before, so that the result is unknown.
sub query
{
	my ($self, $sql, %more) = @_;

	$self->message('Q', "$sql\0") or return;
	return $self->answer(%more);
}

# Runs a statement and returns its rows; dies after an error.
sub rows
{
	my ($self, $sql) = @_;
	my $answer = $self->query($sql);

	die "the connection was lost in: $sql" if !$answer;
	die "$answer->{sqlstate}: $answer->{message}, in: $sql"
	  if defined $answer->{sqlstate};
	return @{ $answer->{rows} };
}

# Returns the first column of the first row.
sub value
{
	my ($self, $sql) = @_;
	my ($row) = $self->rows($sql);

	return $row ? $row->[0] : undef;
}

sub answer
{
	my ($self, %more) = @_;
	my %answer = (rows => [], tag => '');

	while (my ($type, $payload) = $self->receive)
	{
		if ($type eq 'D')
		{
			push @{ $answer{rows} }, [ columns($payload) ];
		}
		elsif ($type eq 'C')
		{
			$answer{tag} = unpack 'Z*', $payload;
		}
		elsif ($type eq 'E')
		{
			my %fields = fields($payload);

			@answer{qw(sqlstate message)} = @fields{qw(C M)};
		}
		elsif ($type eq 'N' && $more{on_notice})
		{
			my %fields = fields($payload);

			$more{on_notice}->($fields{M});
		}
		elsif ($type eq 'G')
		{
			$self->message('d', $more{copy}) && $self->message('c', '')
			  or return;
		}
		elsif ($type eq 'R' && unpack('N', $payload) != 0)
		{
			die 'the server wants a password';
		}
		elsif ($type eq 'Z')
		{
			return \%answer;
		}
	}
	return;
}

sub columns
{
	my ($payload) = @_;
	my $n = unpack 'n', $payload;
	my $at = 2;
	my @columns;

	for (1 .. $n)
	{
		my $length = unpack 'l>', substr $payload, $at, 4;

		$at += 4;
		push @columns, $length < 0 ? undef : substr $payload, $at, $length;
		$at += $length if $length > 0;
	}
	return @columns;
}

sub fields
{
	my ($payload) = @_;

	return map { substr($_, 0, 1) => substr($_, 1) } split /\0/, $payload;
}

sub message
{
	my ($self, $type, $payload) = @_;

	return $self->send(pack('a N', $type, 4 + length $payload) . $payload);
}

# Returns false if the connection was lost.
sub send
{
	my ($self, $bytes) = @_;
	my $sent = 0;

	local $SIG{PIPE} = 'IGNORE';
	while ($sent < length $bytes)
	{
		my $n = syswrite $self->{socket}, $bytes, length($bytes) - $sent, $sent;

		next if !defined $n && $!{EINTR};
		return 0 if !defined $n;
		$sent += $n;
	}
	return 1;
}

# Returns the type and the content of the next message, or nothing.
sub receive
{
	my ($self) = @_;

	$self->fill(5) or return;
	my ($type, $length) = unpack 'a N', $self->{in};
	$self->fill(1 + $length) or return;
	return ($type, substr substr($self->{in}, 0, 1 + $length, ''), 5);
}

# Reads until the buffer has so many bytes.
sub fill
{
	my ($self, $wanted) = @_;

	while (length $self->{in} < $wanted)
	{
		my $n = sysread $self->{socket}, $self->{in}, 65536,
		  length $self->{in};

		next if !defined $n && $!{EINTR};
		return 0 if !$n;
	}
	return 1;
}

1;
