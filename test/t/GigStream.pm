# A stream of statements that ingest random webhooks, with the output that they
# must have.
#
#   my $stream = GigStream->new($events, $rules);
#   my @taken = $stream->take(3);
#   $stream->call('a name', 'SELECT ...', \@taken, sub { ... });
#   $stream->flush_to($session);
#   $stream->check($node, 'postgres');
#
# check() applies the rules after all statements, when the log has the event_id and
# the time of each event.  One session at a time must send statements, so that the
# log is in their order.  Rows of the log that GigRules has already are skipped.

package GigStream;

use strict;
use warnings;

use Encode qw(decode);
use FindBin;
use List::Util qw(min);
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::RealBin;
use GigRules;
use GigTest qw(:DEFAULT :dice);

sub new
{
	my ($class, $events, $rules) = @_;

	return bless {
		events => $events,
		rules => $rules,
		actions => [],    # functions for check() to call
		calls => [],
		undoable => [], # deliveries since savepoints were made
		sql => '',      # not sent yet
		ndeliveries => 0,
		began => 1_000_000 * time,
		outcomes => {}
	}, $class;
}

# Returns the next deliveries, perhaps only those that can be passed as text.
sub take
{
	my ($self, $n, $is_text) = @_;
	my @taken;

	while (@taken < $n)
	{
		my $delivery = $self->{events}->next_delivery;

		push @taken, $self->taken($delivery)
		  if !$is_text || can_be_text($delivery->{body});
	}
	return @taken;
}

# Adds a delivery to the stream, with the time that the caller passes to the
# server, if any.
sub taken
{
	my ($self, $delivery, $received_at) = @_;
	my $taken = { delivery => $delivery, received_at => $received_at };

	$self->{ndeliveries}++;
	push @{ $self->{undoable} }, $taken;
	return $taken;
}

sub can_be_text
{
	my ($body) = @_;

	return 1 if !defined $body;
	return $body !~ /\0/ && eval { decode('UTF-8', "$body", Encode::FB_CROAK); 1 };
}

# Adds statements that ingest deliveries.  They must print a line for each result,
# as the function formats it, and then the other lines.
sub call
{
	my ($self, $title, $statements, $taken, $line, @more) = @_;
	my $call = $self->add_call($title, $statements);

	$self->then(
		sub {
			for my $taken (@$taken)
			{
				my $result = $self->apply($taken);

				$self->{outcomes}{ $result->{sqlstate} || $result->{outcome} }++;
				push @{ $call->{lines} }, $line->($result) if $line;
			}
			push @{ $call->{lines} }, @more;
		});
	return;
}

sub add_call
{
	my ($self, $title, $statements) = @_;
	my $call = { title => $title, sql => $statements, lines => [], got => ['(nothing)'] };
	my $n = push @{ $self->{calls} }, $call;

	$self->{sql} .= "\\echo \@\@ $n\n$statements";
	return $call;
}

# Adds a reconciliation of accounts, which are of GigEvents.  The time at which
# they were fetched is undefined for the current time.
sub reconcile
{
	my ($self, $objects, $fetched_at, $everything) = @_;
	my @bodies = map { $_->{body} } @$objects;
	my $list = join ', ', @bodies;
	my $taken = {};
	my $time = defined $fetched_at
	  ? sprintf("('epoch'::timestamptz + %d * interval '1 microsecond')", $fetched_at)
	  : pick('clock_timestamp()', "'2100-01-01'");

	# PostgreSQL does not search objects that have such escapes
	if ($list =~ /\\u(0000|d[89ab])/i) { $list = "[$list]"; }
	elsif (@bodies > 1 || chance(0.5))
	{
		$list = pick("[$list]", "{\"next\": null, \"previous\": null, \"results\": [$list]}");
	}
	my $call = $self->add_call(
		'reconcile_gig_accounts',
		'SELECT reason, event_id, account_id FROM gigs.reconcile_gig_accounts(convert_from('
		  . bytea_literal($list) . ", 'UTF8')::json, $time, "
		  . ($everything ? 'true' : 'false')
		  . ");\n");

	$self->{ndeliveries} += @$objects;
	push @{ $self->{undoable} }, $taken;
	$self->then(
		sub {
			for my $object (sort { $a->{account} cmp $b->{account} } @$objects)
			{
				my ($event_id, $received_at) = (undef, $self->{last_at});
				my $reason = $self->{rules}->reason($object, $fetched_at, $everything);

				$self->{outcomes}{ $reason || 'not reconciled' }++;
				next if !$reason;
				($event_id, $received_at) = @{ shift @{ $self->{logged} } || [ 0, 0 ] }
				  if !$taken->{is_undone};
				$received_at = $fetched_at if defined $fetched_at;
				$self->{last_at} = $received_at if !defined $fetched_at;
				$self->{rules}->apply(
					{
						verdict => 'accepted',
						event => $object,
						name => '',
						body => $object->{body}
					},
					$event_id,
					$received_at);
				push @{ $call->{lines} }, join '|', $reason,
				  defined $event_id ? $event_id : '*', $object->{account};
			}
		});
	return;
}

# Adds statements that print nothing.
sub add
{
	my ($self, $statements) = @_;

	$self->{sql} .= $statements;
	return;
}

# Adds a function for check() to call.
sub then
{
	my ($self, $action) = @_;

	push @{ $self->{actions} }, $action;
	return;
}

# Returns a function that rolls the stream back to here.
sub savepoint
{
	my ($self) = @_;
	my $from = @{ $self->{undoable} };
	my $snapshot;

	$self->then(sub { $snapshot = $self->{rules}->snapshot });
	return sub {
		$_->{is_undone} = 1 for splice @{ $self->{undoable} }, $from;
		$self->then(sub { $self->{rules}->restore($snapshot) });
	};
}

# Sends the statements to a session of background_psql().  query() would write all
# output to the test's log.
sub flush_to
{
	my ($self, $session) = @_;
	my $call;

	return if $self->{sql} eq '';
	for my $line (
		split /\n/,
		$session->query_until(qr/^flushed$/m, "$self->{sql}\\echo flushed\n"))
	{
		last if $line eq 'flushed';
		if ($line =~ /^\@\@ (\d+)$/)
		{
			$call = $self->{calls}[ $1 - 1 ];
			$call->{got} = [];
		}
		elsif ($call)
		{
			push @{ $call->{got} }, $line;
		}
	}
	$self->{sql} = '';
	return;
}

# Applies the rules to a delivery, with the event_id and the time of its row in the
# log.  A delivery that was rolled back takes the time of the delivery before it.
sub apply
{
	my ($self, $taken) = @_;
	my ($delivery, $is_undone) = @$taken{qw(delivery is_undone)};
	my ($event_id, $received_at) = (undef, $self->{last_at});

	if ($delivery->{verdict} eq 'accepted' && !$is_undone)
	{
		($event_id, $received_at) = @{ shift @{ $self->{logged} } || [ 0, 0 ] };
	}
	elsif ($delivery->{verdict} eq 'quarantined' && !$is_undone)
	{
		$received_at = shift @{ $self->{quarantined} } || 0;
	}
	if (!defined $taken->{received_at})
	{
		$self->{last_at} = $received_at;
	}
	elsif ($taken->{received_at} < $self->{ended}
		|| $received_at < $self->{began}
		|| $received_at > $self->{ended})
	{
		# only a time in the future counts as now
		$received_at = min($taken->{received_at}, $self->{ended});
	}
	return $self->{rules}->apply($delivery, $event_id, $received_at);
}

# Applies the rules, and compares the output of the calls, and the tables.
sub check
{
	my ($self, $node, $dbname) = @_;
	my %by_title;

	$self->{logged} = [ GigRules::logged($node, $dbname) ];
	$self->{quarantined} = [ GigRules::quarantined($node, $dbname) ];
	splice @{ $self->{logged} }, 0, scalar @{ $self->{rules}{log} };
	splice @{ $self->{quarantined} }, 0, scalar @{ $self->{rules}{quarantine} };
	$self->{last_at} = 0;
	$self->{ended} = 1_000_000 * time;
	$_->() for @{ $self->{actions} };
	is(@{ $self->{logged} } + @{ $self->{quarantined} },
		0, 'there are no more rows than were accepted');

	push @{ $by_title{ $_->{title} } }, $_ for @{ $self->{calls} };
	for my $title (sort keys %by_title)
	{
		my @calls = @{ $by_title{$title} };
		my (@got, @expected, $failed);

		for my $call (@calls)
		{
			my @printed = @{ $call->{got} };
			my @lines = @{ $call->{lines} };

			for my $i (0 .. $#lines)
			{
				# an event_id that was rolled back
				$printed[$i] =~ s/^((?:\d+\|)?\w+)\|\d+\|/$1|*|/
				  if $i < @printed && $lines[$i] =~ /\|\*\|/;
			}
			$failed ||= $call if first_difference(\@printed, \@lines) ne '';
			push @got, @printed;
			push @expected, @lines;
		}
		is(first_difference(\@got, \@expected),
			'', "$title: " . @calls . ' calls with ' . @expected . ' results')
		  or diag substr $failed->{sql}, 0, 3000;
	}
	$self->{rules}->check_tables($node, $dbname, 'tables');
	return;
}

1;
