# An independent implementation of the rules of applying events, with which tests
# compare the tables.
#
#   my $rules = GigRules->new;
#   my $result = $rules->apply($delivery, $event_id, $received_at);
#   $rules->check_tables($node, 'postgres', 'after the stream');
#
# A delivery is one of GigEvents.  The server assigns event_id and received_at;
# logged() reads them from the log, which has a row for every accepted delivery.
# Times are in microseconds since 1970.

package GigRules;

use strict;
use warnings;

use Encode qw(decode encode);
use FindBin;
use List::Util qw(first min);
use Test::More;

use lib $FindBin::RealBin;
use GigTest;

# Options: window (in microseconds), and memory (the number of deliveries that an
# account remembers).
sub new
{
	my ($class, %options) = @_;

	return bless {
		window => 3 * 86_400_000_000,
		memory => 1000,
		accounts => {},
		log => [],
		quarantine => [],
		%options
	}, $class;
}

# ---------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------

# Applies a delivery.  Returns its outcome, sqlstate, event_id and event, and
# duplicate_of.
#
# An account's hash is never changed, so that snapshot() need not copy it.
sub apply
{
	my ($self, $delivery, $event_id, $received_at) = @_;
	my %result = map { $_ => $delivery->{$_} } qw(sqlstate event);

	if ($delivery->{verdict} ne 'accepted')
	{
		push @{ $self->{quarantine} },
		  { %$delivery, received_at => $received_at }
		  if $delivery->{verdict} eq 'quarantined';
		return { %result, outcome => $delivery->{verdict} };
	}

	my $event = $delivery->{event};
	my %account = %{ $self->{accounts}{ $event->{account} } || new_account() };
	my $says = what_it_says($event);
	my $original = $self->original(\%account, $says, $received_at);

	$result{event_id} = $account{last_event_id} = $event_id;
	if ($original)
	{
		$account{duplicates}++;
		$result{outcome} = 'duplicate';
		$result{duplicate_of} = $original->{event_id};
	}
	else
	{
		$result{outcome} = apply_event(\%account, $event, $received_at);
	}

	# writing the row forgets deliveries whose window has passed
	my $forgets =
	  @{ $account{recent} } > 0 && $received_at - $account{oldest} >= $self->{window};
	if ($forgets || !$original)
	{
		my @recent = grep { $received_at - $_->{received_at} < $self->{window} }
		  @{ $account{recent} };

		# a reconciliation is not remembered
		if (!$original && $event->{event} ne 'reconciled')
		{
			forget_oldest(\@recent) if @recent == $self->{memory};
			push @recent,
			  { says => $says, event_id => $event_id, received_at => $received_at };
		}
		$account{recent} = \@recent;
		$account{oldest} = min(map { $_->{received_at} } @recent);
	}

	$self->{accounts}{ $event->{account} } = \%account;
	push @{ $self->{log} },
	  { %$delivery, %result, received_at => $received_at };
	return \%result;
}

# Returns why an account of Argyle's API is reconciled, or nothing if it is not.
# The time at which it was fetched is undefined if it was fetched just now.
sub reason
{
	my ($self, $object, $fetched_at, $everything) = @_;
	my $account = $self->{accounts}{ $object->{account} };

	return 'new' if !$account;
	return if defined $fetched_at && $account->{last_event_at} >= $fetched_at;
	return 'state'
	  if $object->{status} eq 'synced' && $account->{state} ne 'fully_synced';
	return 'snapshot'
	  if grep { $object->{$_} ne $account->{$_} } qw(user from to count);
	return 'updated_at'
	  if $object->{updated_at} ne '' && $object->{updated_at} > $account->{last_event_at};
	return $everything ? 'everything' : undef;
}

# Retries the row at a place of the quarantine.  If the test has replaced its body,
# "retried" is the delivery that it has become.
sub retry
{
	my ($self, $i, $event_id) = @_;
	my $row = $self->{quarantine}[$i];
	my $retried = $row->{retried} || $row;

	if ($retried->{verdict} =~ /^(quarantined|rejected)$/)
	{
		$self->{quarantine}[$i] =
		  { %$row, sqlstate => $retried->{sqlstate} };
		return { outcome => 'kept' };
	}
	splice @{ $self->{quarantine} }, $i, 1;
	return $self->apply($retried, $event_id, $row->{received_at});
}

sub new_account
{
	return {
		state => 'unknown',
		recent => [],
		(map { $_ => 0 } qw(added updated removed events duplicates)),
		map { $_ => '' }
		  qw(days first_event_at partially_synced_at fully_synced_at refreshed_at)
	};
}

# Returns all fields of an event, but not the subscription's name.
sub what_it_says
{
	my ($event) = @_;

	return join '|', @$event{
		qw(event account user from to count own changed_from changed_to gigs days)
	};
}

# Returns the first delivery of the same event, if that is within the window, or
# nothing.  The window has two sides, because an archive may be ingested later than
# the webhooks of now.
sub original
{
	my ($self, $account, $says, $received_at) = @_;

	return first {
		$_->{says} eq $says
		  && abs($received_at - $_->{received_at}) < $self->{window}
	}
	reverse @{ $account->{recent} };
}

# Applies an event that is no duplicate.  State and days only grow.  The snapshot
# is that of the event received last, unless that is a late partial sync.
sub apply_event
{
	my ($account, $event, $received_at) = @_;
	my ($own) = $event->{event} =~ /^gigs\.(added|updated|removed)$/;
	my $is_last = $account->{events} == 0
	  || $received_at >= $account->{last_event_at};
	my $is_late = 0;

	if ($event->{event} eq 'gigs.partially_synced')
	{
		$is_late = $account->{state} eq 'fully_synced'
		  || ($account->{days} ne '' && $event->{days} < $account->{days});
		$account->{days} = $event->{days}
		  if $account->{days} eq '' || $event->{days} > $account->{days};
		$account->{state} = 'partially_synced' if $account->{state} eq 'unknown';
		earliest(\$account->{partially_synced_at}, $received_at)
		  if $account->{state} eq 'partially_synced';
	}
	elsif ($event->{event} eq 'reconciled' && $event->{status} ne 'synced')
	{
		# its state says nothing
	}
	elsif ($event->{event} =~ /^(gigs.fully_synced|reconciled)$/)
	{
		$account->{state} = 'fully_synced';
		earliest(\$account->{fully_synced_at}, $received_at);
	}
	else
	{
		$account->{$own} += $event->{own};
		$account->{refreshed_at} = $received_at
		  if $account->{refreshed_at} eq '' || $received_at > $account->{refreshed_at};
	}
	@$account{qw(user from to count)} = @$event{qw(user from to count)}
	  if $is_last && !$is_late;
	@$account{qw(last_event last_event_at)} = ($event->{event}, $received_at)
	  if $is_last;
	earliest(\$account->{first_event_at}, $received_at);
	$account->{events}++;
	return $is_late ? 'stale' : 'applied';
}

sub earliest
{
	my ($time, $received_at) = @_;

	$$time = $received_at if $$time eq '' || $received_at < $$time;
	return;
}

sub forget_oldest
{
	my ($recent) = @_;
	my $oldest = 0;

	for my $i (1 .. $#$recent)
	{
		$oldest = $i
		  if $recent->[$i]{received_at} < $recent->[$oldest]{received_at};
	}
	splice @$recent, $oldest, 1;
	return;
}

# ---------------------------------------------------------------------------
# Transactions that are rolled back
# ---------------------------------------------------------------------------

sub snapshot
{
	my ($self) = @_;

	return {
		accounts => { %{ $self->{accounts} } },
		map { $_ => [ @{ $self->{$_} } ] } qw(log quarantine)
	};
}

sub restore
{
	my ($self, $snapshot) = @_;

	$self->{accounts} = { %{ $snapshot->{accounts} } };
	$self->{$_} = [ @{ $snapshot->{$_} } ] for qw(log quarantine);
	return;
}

# ---------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------

# Returns an expression for a timestamptz in microseconds.
sub micros { return "(extract(epoch FROM $_[0]) * 1000000)::bigint" }

# Returns an expression for a bytea in hex, so that a row is a line.
sub hex_of { return "encode($_[0], 'hex')" }

sub lines
{
	my ($node, $dbname, $query) = @_;

	return split /\n/, $node->safe_psql($dbname, "SET search_path = gigs; $query");
}

# Returns event_id and received_at of the log's rows, in their order.
sub logged
{
	my ($node, $dbname) = @_;

	return map { [ split /\|/ ] }
	  lines($node, $dbname,
		'SELECT event_id, ' . micros('received_at') . ' FROM gig_event_log ORDER BY 1');
}

# Returns received_at of the quarantine's rows, in their order.
sub quarantined
{
	my ($node, $dbname) = @_;

	return lines($node, $dbname,
		'SELECT ' . micros('received_at') . ' FROM gig_quarantine ORDER BY quarantine_id');
}

# Returns the arguments of apply() for each row of the log, as the log and the
# history have them.
sub replay
{
	my ($node, $dbname) = @_;
	my @fields = qw(event account user from to count own changed_from changed_to
	  gigs days);

	return map {
		my ($event_id, $received_at, $name, $body, @values) = split /\|/, $_, -1;
		my %event;

		@event{@fields} = @values;
		[
			{
				verdict => 'accepted',
				event => \%event,
				name => decode('UTF-8', pack 'H*', $name),
				body => pack('H*', $body)
			},
			$event_id,
			$received_at
		];
	  } lines($node, $dbname,
		'SELECT event_id, ' . micros('l.received_at') . ', '
		  . hex_of("convert_to(l.name, 'UTF8')") . ', ' . hex_of('l.body')
		  . ', h.event, account_id, user_id, '
		  . micros('available_from') . ', '
		  . micros('available_to')
		  . ', available_count, changed_count, '
		  . micros('changed_from') . ', '
		  . micros('changed_to')
		  . ', changed_gigs, days_synced'
		  . ' FROM gig_event_log AS l JOIN gig_event_history AS h USING (event_id, account_id)'
		  . ' ORDER BY event_id');
}

my @account_columns = qw(user state days from to count last_event last_event_at
  last_event_id added updated removed events duplicates first_event_at
  partially_synced_at fully_synced_at refreshed_at);

# Compares log, history, accounts, memory and quarantine with the rules.
sub check_tables
{
	my ($self, $node, $dbname, $title) = @_;
	my %accounts = %{ $self->{accounts} };
	my @log = @{ $self->{log} };
	my ($name, $body) = (hex_of("convert_to(name, 'UTF8')"), hex_of('body'));

	is( first_difference(
			[
				lines($node, $dbname,
					"SELECT event_id, outcome, event, account_id, $name, $body, duplicate_of, "
					  . micros('received_at')
					  . ' FROM gig_event_log ORDER BY event_id')
			],
			[
				map {
					join '|', $_->{event_id}, $_->{outcome}, $_->{event}{event},
					  $_->{event}{account}, unpack('H*', encode('UTF-8', $_->{name})),
					  $_->{outcome} eq 'duplicate' ? '' : unpack('H*', $_->{body}),
					  defined $_->{duplicate_of} ? $_->{duplicate_of} : '',
					  $_->{received_at}
				} @log
			]),
		'',
		"$title: the log");
	is( first_difference(
			[
				lines($node, $dbname,
					'SELECT event_id, event, account_id, user_id, '
					  . micros('available_from') . ', '
					  . micros('available_to')
					  . ', available_count, changed_count, '
					  . micros('changed_from') . ', '
					  . micros('changed_to')
					  . ', changed_gigs, days_synced FROM gig_event_history ORDER BY event_id')
			],
			[
				map {
					my $event = $_->{event};

					join '|', $_->{event_id}, @$event{
						qw(event account user from to count own changed_from
						  changed_to gigs days)
					}
				} @log
			]),
		'',
		"$title: the history");
	is( first_difference(
			[
				lines($node, $dbname,
					'SELECT account_id, user_id, state, days_synced, '
					  . micros('available_from') . ', '
					  . micros('available_to')
					  . ', available_count, last_event, '
					  . micros('last_event_at')
					  . ', last_event_id, added_total, updated_total, removed_total, events, duplicates, '
					  . join(', ', map { micros("${_}_at") }
						  qw(first_event partially_synced fully_synced refreshed))
					  . ' FROM gig_account_sync ORDER BY account_id')
			],
			[
				map { join '|', $_, @{ $accounts{$_} }{@account_columns} }
				sort keys %accounts
			]),
		'',
		"$title: the accounts");

	my @remembered = lines($node, $dbname,
		'SELECT account_id, event_id, ' . micros('received_at') . ', digest'
		  . ' FROM gig_recent_delivery');
	my @digests = map { s/\|([^|]*)$// ? $1 : '' } @remembered;
	my @recent = map {
		my $id = $_;

		map { { account => $id, %$_ } } @{ $accounts{$id}{recent} }
	} sort keys %accounts;
	my %memory;

	push @{ $memory{ substr $remembered[$_], 0, 36 } }, $_ for 0 .. $#remembered;
	my @order = map { @{ $memory{$_} } } sort keys %memory;
	my $difference = first_difference([ @remembered[@order] ],
		[ map { join '|', @$_{qw(account event_id received_at)} } @recent ]);

	is($difference, '', "$title: the memory");
	is(conflict([ @digests[@order] ], [ map { $_->{says} } @recent ]),
		'', "$title: the digests")
	  if $difference eq '';

	is( first_difference(
			[
				lines($node, $dbname,
					'SELECT ' . micros('received_at') . ", sqlstate, $name, $body"
					  . ' FROM gig_quarantine ORDER BY quarantine_id')
			],
			[
				map {
					join '|', $_->{received_at}, $_->{sqlstate},
					  unpack('H*', encode('UTF-8', $_->{name})),
					  unpack('H*', $_->{body})
				} @{ $self->{quarantine} }
			]),
		'',
		"$title: the quarantine");
	return;
}

# Returns the first case of equal events with different digests, or of different
# events with the same digest.
sub conflict
{
	my ($digests, $says) = @_;
	my (%by_says, %by_digest);

	for my $i (0 .. $#$says)
	{
		my ($digest, $text) = ($digests->[$i], $says->[$i]);

		$by_says{$text} = $digest if !exists $by_says{$text};
		$by_digest{$digest} = $text if !exists $by_digest{$digest};
		return "\"$text\" has digests $digest and $by_says{$text}"
		  if $by_says{$text} ne $digest;
		return "digest $digest of \"$text\" and \"$by_digest{$digest}\""
		  if $by_digest{$digest} ne $text;
	}
	return '';
}

1;
