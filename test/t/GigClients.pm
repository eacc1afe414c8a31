# Clients that ingest through all entry points, and workers of a consumer, until
# their server crashes.
#
# Each is a process and writes notes of what it asks for and what is acknowledged.
# A note is a line of columns between tabs:
#
#   C UNIT ITEM...     will ingest items in one transaction
#   U UNIT ITEM...     will do so and roll back
#   D UNIT TABLE       will drain a backlog
#   N UNIT NUMBER BAD  so many of its rows have been drained, so many were rejected
#   P UNIT             the transaction is prepared
#   L UNIT             has sent the last statement and left, without an answer
#   A UNIT OUTCOME...  the transaction is committed
#   R UNIT SQLSTATE    the transaction is rolled back
#   W BATCH ACCOUNTS   a batch of so many accounts is finished
#   X MESSAGE          something is wrong
#
# An item is a letter for the entry point (f for a function, x for the inbox with
# the trigger, b for a backlog), a mark (+ for an event that is sent for the first
# time, ! for a forgery, : for others), and the event's id.  An outcome is followed
# by the event_id, if the function returns it.

package GigClients;

use strict;
use warnings;

use Digest::MD5 qw(md5 md5_hex);
use FindBin;
use IO::Handle;
use POSIX ();

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigEvents;
use GigJson;
use GigTest qw(:DEFAULT :dice);
use GigWire;
use GigWork;

my $timeout = $PostgreSQL::Test::Utils::timeout_default;
# How long no client may acknowledge anything.
my $patience = $timeout / 4;

my $name = 'payroll';
my $secret = 'secret';

# Options: server, a GigServer; seed; prepares, the share of transactions that are
# prepared; and pause, for how many seconds they may be left so.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		prepares => 0.2,
		pause => 0.01,
		%options,
		clients => [ 'a' .. 'd' ],
		workers => [ 'v', 'w' ],
		notes => PostgreSQL::Test::Utils::tempdir,
		events => GigEvents->new,
		round => 0,
		children => {}
	}, $class;

	$self->{backlogs} = [ 'backlog', map { "backlog_$_" } @{ $self->{clients} } ];
	$self->create_tables;
	$self->forget;
	return $self;
}

sub create_tables
{
	my ($self) = @_;
	my $columns = 'id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, unit text, place int,'
	  . ' body bytea, signature text, received_at timestamptz, outcome text, error text';

	create_gigs($self->{server}->node, 'postgres');
	$self->{server}->admin->rows($_) for (
		"CREATE TABLE inbox ($columns)",
		'CREATE TRIGGER ingest BEFORE INSERT ON inbox
			FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest()',
		(map { ("CREATE TABLE $_ ($columns)", "CREATE INDEX ON $_ (id) WHERE outcome IS NULL") }
			@{ $self->{backlogs} }),
		'CREATE TABLE done (batch bigint, account_id uuid, events int, PRIMARY KEY (batch, account_id))',
		"SELECT gigs.create_gig_consumer('fetch', parts => 3)",
		# what an owner does when the extension understands an event at last
		q{CREATE FUNCTION mend() RETURNS text LANGUAGE sql AS $$
			UPDATE gigs.gig_quarantine
			SET body = convert_to(replace(convert_from(body, 'UTF8'), '"event":"gigs.un', '"event":"gigs.'), 'UTF8');
			SELECT r::text FROM gigs.retry_gig_quarantine() AS r
		$$});
	return;
}

# Starts anew with empty tables.
sub forget
{
	my ($self) = @_;

	$self->{sent} = { map { $_ => [] } @{ $self->{clients} } };
	$self->{server}->admin->rows($_) for (
		'TRUNCATE gigs.gig_event_log, gigs.gig_account_sync, gigs.gig_quarantine, inbox, done, '
		  . join(', ', @{ $self->{backlogs} }),
		"SELECT gigs.drop_gig_consumer('fetch')",
		"SELECT gigs.create_gig_consumer('fetch', parts => 3)");
	return;
}

sub notes_of
{
	my ($self, $who) = @_;

	return "$self->{notes}/$who.$self->{round}";
}

# ---------------------------------------------------------------------------
# Events
# ---------------------------------------------------------------------------

sub uuid { return join '-', unpack 'A8 A4 A4 A4 A12', md5_hex("@_") }

# Returns the event of an id, which is SENDER.ROUND.NUMBER, as a delivery of
# GigEvents: the id determines all of it, and stands in the body.  Some accounts
# have events of all senders and rounds, others of one round, many a single one.
#
# "sent" is the body as it is sent.  It differs from the body for events that are
# not understood and that mend() mends.
sub delivery_of
{
	my ($self, $id) = @_;
	my ($sender, $round) = split /\./, $id;
	my $seed = $self->{seed};
	my @bytes = unpack 'C*', md5("$seed event $id");
	my $account =
	    $bytes[0] < 140 ? 'permanent ' . $bytes[1] % 6
	  : $bytes[0] < 200 ? "round $round " . $bytes[1] % 12
	  : $id;
	my $next = int rand 2**32;

	srand unpack 'L', md5("$seed text $id");
	choose_style();
	my $event = $self->{events}->event(
		account => uuid($seed, $account),
		# an account seldom changes its user
		user => uuid($seed, 'user', $account, $bytes[3] < 8 ? $bytes[4] % 3 : ''),
		# no two events say the same
		count => unpack('L', md5("$seed count $id")) & 0x7fffffff);
	my $data = join ',', map { qq("$_->[0]":$_->[1]) } GigEvents::data_members($event);

	srand $next;
	# some are stored out of line
	$data .= ',"padding":"' . join('', map { md5_hex("$id $_") } 1 .. 150) . '"'
	  if $bytes[15] < 6;
	my $body = qq({"event":"$event->{event}","name":"$name","id":"$id","data":{$data}});
	my $is_unknown = $bytes[14] < 10;
	return {
		event => $event,
		name => $name,
		verdict => 'accepted',
		body => $body,
		is_unknown => $is_unknown,
		sent => $is_unknown ? $body =~ s/^\{"event":"gigs\./{"event":"gigs.un/r : $body
	};
}

sub signature_of
{
	my ($item, $body) = @_;

	return sign($body, $item->{mark} eq '!' ? 'a guess' : $secret);
}

# Returns the body and the signature of an item as SQL literals.
sub item_literals
{
	my ($self, $item) = @_;
	my $body = $self->delivery_of($item->{id})->{sent};

	return (bytea_literal($body), text_literal(signature_of($item, $body)) . '::text');
}

# ---------------------------------------------------------------------------
# A round
# ---------------------------------------------------------------------------

# Runs all clients until so many events have been acknowledged, and calls a
# function that crashes the server.  Returns what failed once all have ended and
# the server has recovered.
sub run
{
	my ($self, $wanted, $options, $crash) = @_;
	my $seen = 0;

	pipe my $reader, my $writer or die "could not make a pipe: $!";
	STDOUT->flush;
	$self->{round}++;
	$self->start_child($_, $writer, $options, \&GigWork::ingest) for @{ $self->{clients} };
	$self->start_child($_, $writer, $options, \&GigWork::consume) for @{ $self->{workers} };
	$self->start_child('z', $writer, $options, \&GigWork::maintain);
	close $writer;

	while ($seen < $wanted)
	{
		my $ready = '';

		vec($ready, fileno $reader, 1) = 1;
		# a client that has failed may have left locks
		last if select($ready, undef, undef, $patience) <= 0;
		my $n = sysread $reader, my $bytes, 4096;
		last if !$n;
		$seen += $n;
	}
	# not always right after an acknowledgement
	select undef, undef, undef, rand 0.005;
	$crash->();
	close $reader;
	my @failed = $self->wait_for_children;
	$self->{server}->connect;
	push @failed, "$seen events were acknowledged" if $seen < $wanted;
	return @failed;
}

sub start_child
{
	my ($self, $who, $writer, $options, $work) = @_;
	my $pid = fork;

	die "could not fork: $!" if !defined $pid;
	if ($pid)
	{
		$self->{children}{$pid} = $who;
		return;
	}

	# The child must not run the parent's END blocks.
	local $SIG{__DIE__} = 'DEFAULT';
	my $done = eval {
		srand unpack 'L', md5("$self->{seed} $who $self->{round}");
		@$self{qw(who progress number wire_options parent)} =
		  ($who, $writer, 0, $options, getppid);
		open $self->{file}, '>>', $self->notes_of($who)
		  or die "could not write notes: $!";
		# the crash may come first
		$self->{wire} = eval { GigWire->connect($self->{server}->node, $options) };
		$work->($self) if $self->{wire};
		1;
	};
	$self->note_down('X', $@) if !$done && $self->{file};
	POSIX::_exit($done ? 0 : 1);
}

sub wait_for_children
{
	my ($self) = @_;
	my @failed;

	local $SIG{ALRM} = sub { die 'timed out waiting for the clients to end' };
	alarm $timeout;
	while (%{ $self->{children} })
	{
		my $pid = waitpid -1, 0;

		last if $pid < 0;
		my $who = delete $self->{children}{$pid} or next;
		push @failed, "$who: $?" if $?;
	}
	alarm 0;
	return @failed;
}

sub DESTROY
{
	my ($self) = @_;

	kill 'KILL', keys %{ $self->{children} } if !$self->{who};
	return;
}

# ---------------------------------------------------------------------------
# A client's process
# ---------------------------------------------------------------------------

sub note_down
{
	my ($self, @columns) = @_;
	my $line = join "\t", @columns;

	$line =~ s/\n/ /g;
	$line .= "\n";
	syswrite($self->{file}, $line) == length $line
	  or die "could not write notes: $!";
	return;
}

# Tells the parent how many events have been acknowledged.
sub acknowledged
{
	my ($self, $n) = @_;

	syswrite $self->{progress}, '.' x $n if $n > 0;
	return;
}

# Returns the server's answer.  A client ends when its server does.
sub query
{
	my ($self, @query) = @_;
	my $answer = $self->{wire}->query(@query);

	POSIX::_exit(0) if !$answer || getppid != $self->{parent};
	return $answer;
}

# Sends a statement, and closes the connection before there is an answer.
sub send_and_leave
{
	my ($self, $sql, $copy) = @_;
	my $wire = $self->{wire};

	$self->note_down('L', $self->{unit});
	$wire->message('Q', "$sql\0")
	  && (!defined $copy || $wire->message('d', $copy) && $wire->message('c', ''))
	  or POSIX::_exit(0);
	$self->{wire} = eval { GigWire->connect($self->{server}->node, $self->{wire_options}) };
	POSIX::_exit(0) if !$self->{wire};
	return;
}

1;
