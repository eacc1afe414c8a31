# Random webhooks: valid and invalid ones, and redeliveries.
#
#   $node->safe_psql('postgres', create_subscriptions());
#   my $events = GigEvents->new(seed => 17, accounts => 40);
#   my $delivery = $events->next_delivery;
#   my ($body, $signature) = literals($delivery);
#
# A delivery of a given event, of which some fields may be fixed:
#
#   my $event = $events->event(event => 'gigs.fully_synced');
#   my $delivery = $events->deliver($event, 'payroll');
#
# The same seed and the same calls produce the same webhooks.  A delivery is a hash:
#
#   body, signature   bytes and a text; either may be undefined, for null
#   name              of the subscription, if the body has one
#   verdict           accepted, ignored, quarantined or rejected
#   sqlstate          if it is quarantined or rejected
#   event             if it is accepted: see event()

package GigEvents;

use strict;
use warnings;

use Encode qw(encode);
use Exporter qw(import);
use FindBin;
use List::Util qw(first);
use POSIX qw(strftime);

use lib $FindBin::RealBin;
use GigFaults;
use GigJson;
use GigSubscriptions;
use GigTest qw(:DEFAULT :dice);

our @EXPORT = qw(literals create_subscriptions);

my @kinds = map { "gigs.$_" } qw(added updated removed partially_synced
  fully_synced);

# Options: seed, and the numbers of accounts, users and gigs.
sub new
{
	my ($class, %options) = @_;

	srand $options{seed} if defined $options{seed};
	return bless {
		sent => [],
		decks => {},
		map { $_->[0] => [ map { random_uuid() } 1 .. $options{ $_->[0] } || $_->[1] ] }
		  [ 'accounts', 40 ], [ 'users', 15 ], [ 'gigs', 60 ]
	}, $class;
}

sub random_uuid
{
	my $hex = join '', map { sprintf '%02x', int rand 256 } 1 .. 16;

	return join '-', unpack 'A8 A4 A4 A4 A12', $hex;
}

# Returns one of a list at random, but none again before all have been returned.
sub draw
{
	my ($self, $deck, @cards) = @_;

	$self->{decks}{$deck} = [ shuffled(0 .. $#cards) ]
	  if !@{ $self->{decks}{$deck} || [] };
	return $cards[ pop @{ $self->{decks}{$deck} } ];
}

# ---------------------------------------------------------------------------
# Events
# ---------------------------------------------------------------------------

# Returns the fields of a random event: event, account, user, count, from, to;
# own, changed_from, changed_to and gigs (of gigs added, updated or removed); days.
# Times are in microseconds since 1970, gigs are an array as PostgreSQL prints it.
# Fields that are null, or that the event does not have, are empty.
sub event
{
	my ($self, %fixed) = @_;
	my $kind = $fixed{event} || pick(@kinds);
	my %event = (
		event => $kind,
		account => pick(@{ $self->{accounts} }),
		user => pick(@{ $self->{users} }),
		count => pick(0, 1, between(2, 5000), 2147483647),
		from => random_instant(),
		to => random_instant(),
		map { $_ => '' } qw(own changed_from changed_to gigs days));

	if ($kind eq 'gigs.partially_synced')
	{
		$event{days} = pick(0, 7, 30, 30, 60, 90, between(1, 365));
	}
	elsif ($kind ne 'gigs.fully_synced')
	{
		$event{own} = pick(0, between(1, 40), between(1, 40));
		$event{changed_from} = random_instant();
		$event{changed_to} = random_instant();
		$event{gigs} =
		  '{' . join(',', map { pick(@{ $self->{gigs} }) } 1 .. between(0, 5)) . '}'
		  if $kind ne 'gigs.added' && chance(0.85);
	}
	return { %event, %fixed };
}

# Returns an event that differs from another in one field only.
sub variant
{
	my ($self, $event) = @_;
	my $field = pick(
		(grep { $_ ne 'event' && $_ ne 'account' } sort keys %$event),
		('gigs') x ($event->{event} =~ /updated|removed/ ? 6 : 0));
	my $other = $self->event(event => $event->{event}, account => $event->{account});
	my $value = $other->{$field};
	my @gigs = $event->{gigs} =~ /[^{},]+/g;

	if ($field eq 'gigs' && $event->{event} =~ /updated|removed/)
	{
		$value = pick('', '{}',
			map { '{' . join(',', @$_) . '}' } [ reverse @gigs ],
			[ @gigs[ 1 .. $#gigs ] ],
			map { [ $_, @gigs[ 1 .. $#gigs ] ] } @{ $self->{gigs} }[ 0 .. 3 ]);
	}
	return { %$event, $field => $value };
}

sub random_instant
{
	my $seconds = between(1_262_304_000, 1_893_456_000);

	return '' if chance(0.2);
	return ($seconds - $seconds % 86400) * 1_000_000 if chance(0.1);
	return $seconds * 1_000_000 + (chance(0.3) ? int rand 10**between(1, 6) : 0);
}

# ---------------------------------------------------------------------------
# Bodies
# ---------------------------------------------------------------------------

sub instant_text
{
	my ($micros) = @_;
	my $fraction = $micros % 1_000_000;
	my $seconds = ($micros - $fraction) / 1_000_000;
	my $zone = pick('Z', 'Z', 'Z', '', 'offset');
	my $shift = 0;

	# the form in Argyle's own example
	return strftime('%Y-%m-%dT0:000:00Z', gmtime $seconds)
	  if $micros % 86_400_000_000 == 0 && chance(0.5);

	$fraction = sprintf '.%06d', $fraction;
	$fraction =~ s/0{1,6}$// if chance(0.7);
	$fraction = '' if $fraction eq '.';
	if ($zone eq 'offset')
	{
		my $minutes = pick(0, 30, 45);
		my $hours = between(0, 11);
		my $sign = pick('+', '-');

		$shift = ($hours * 60 + $minutes) * ($sign eq '+' ? 60 : -60);
		$zone = $sign . sprintf pick('%02d:%02d', '%02d%02d'), $hours, $minutes;
	}
	return strftime('%Y-%m-%d' . pick('T', 'T', 'T', ' ') . '%H:%M:%S',
		gmtime($seconds + $shift))
	  . $fraction
	  . $zone;
}

sub instant_member
{
	my ($micros, $key) = @_;

	return [ $key, json_string(instant_text($micros)) ] if $micros ne '';
	return chance(0.5) ? [ $key, 'null' ] : ();
}

sub json_uuid
{
	my ($uuid) = @_;

	return json_string(chance(0.1) ? uc $uuid : $uuid);
}

# Returns the members of "data".
sub data_members
{
	my ($event) = @_;
	my @members = (
		[ 'account', json_uuid($event->{account}) ],
		[ 'user', json_uuid($event->{user}) ],
		[ 'available_count', $event->{count} ],
		instant_member($event->{from}, 'available_from'),
		instant_member($event->{to}, 'available_to'));

	push @members, [ 'days_synced', $event->{days} ] if $event->{days} ne '';
	if ($event->{event} =~ /^gigs\.(added|updated|removed)$/)
	{
		push @members, [ "$1_count", $event->{own} ],
		  instant_member($event->{changed_from}, "$1_from"),
		  instant_member($event->{changed_to}, "$1_to");
		if ($event->{gigs} ne '')
		{
			push @members,
			  [
				"$1_gigs",
				json_array(2, map { json_uuid($_) } $event->{gigs} =~ /[^{},]+/g)
			  ];
		}
		elsif ($1 ne 'added' && chance(0.5))
		{
			push @members, [ "$1_gigs", 'null' ];
		}
	}
	return @members;
}

# Returns members of other events, which are unknown keys to this one.
sub foreign_members
{
	my ($self, $kind) = @_;

	return
	  map { [ $_, junk(2, pick(@{ $self->{gigs} })) ] }
	    $kind eq 'gigs.added' ? ('updated_gigs', 'days_synced')
	  : $kind eq 'gigs.updated' ? ('removed_gigs', 'added_count')
	  : ('updated_gigs', 'added_count');
}

# Returns a body in UTF-8.  The envelope is event, name and data as JSON, each
# may be undefined.
sub envelope
{
	my ($self, $event, $name, $data) = @_;
	my @members = grep { defined $_->[1] }
	  ([ 'event', $event ], [ 'name', $name ], [ 'data', $data ]);

	return encode('UTF-8',
		    space(0)
		  . json_object(0, with_noise(0, pick(@{ $self->{gigs} }), shuffled(@members)))
		  . space(0));
}

sub data_object
{
	my ($self, @members) = @_;

	return json_object(1, with_noise(1, pick(@{ $self->{gigs} }), shuffled(@members)));
}

# Returns a delivery of an event, with a valid signature.
sub deliver
{
	my ($self, $event, $name) = @_;

	$name = pick(@good_names) if !defined $name;
	choose_style();
	my @data = data_members($event);
	push @data, $self->foreign_members($event->{event}) if chance(0.1);
	my $body = $self->envelope(json_string($event->{event}), json_string($name),
		$self->data_object(@data));
	return {
		body => $body,
		signature => sign_for($name, $body),
		name => $name,
		verdict => 'accepted',
		event => $event
	};
}

# Returns an account as Argyle's API shows it: the fields of an event "reconciled",
# status and updated_at, and the body.  Most say what a recent webhook of the
# account said.
sub account_object
{
	my ($self, $account) = @_;
	my $recent =
	  first { $_->{event} && $_->{event}{account} eq $account } reverse @{ $self->{sent} };
	my $like = $recent && chance(0.8) ? $recent->{event} : $self->event(account => $account);
	my $gig = pick(@{ $self->{gigs} });
	my %object = (
		(map { $_ => $like->{$_} } qw(account user from to count)),
		event => 'reconciled',
		status => pick('synced', 'synced', 'synced', 'in_progress', 'sync_failed', 'paused'),
		updated_at => random_instant(),
		map { $_ => '' } qw(own changed_from changed_to gigs days));
	my $nested = sub {
		my ($depth, @members) = @_;

		return json_object($depth, with_noise($depth, $gig, shuffled(@members)));
	};

	choose_style();
	$object{body} = encode(
		'UTF-8',
		$nested->(
			0,
			[ 'id', json_uuid($object{account}) ],
			[ 'user', json_uuid($object{user}) ],
			[ 'connection', junk(1, $gig) ],
			[
				'availability',
				$nested->(
					1,
					[ 'paystubs', junk(2, $gig) ],
					[
						'gigs',
						$nested->(
							2,
							[ 'status', json_string($object{status}) ],
							[ 'available_count', $object{count} ],
							instant_member($object{from}, 'available_from'),
							instant_member($object{to}, 'available_to'),
							instant_member($object{updated_at}, 'updated_at'))
					])
			]));
	return \%object;
}

# Returns a redelivery: the same bytes, perhaps with another valid signature, or a
# different body for the same event, perhaps of another subscription.
sub redeliver
{
	my ($self, $delivery) = @_;
	my $how = rand();

	return $delivery if $delivery->{verdict} ne 'accepted' || $how < 0.3;
	return {
		%$delivery,
		signature => sign_for($delivery->{name}, $delivery->{body})
	  }
	  if $how < 0.5;
	return $self->deliver($delivery->{event},
		$how < 0.75 ? $delivery->{name} : undef);
}

# ---------------------------------------------------------------------------
# A stream of deliveries
# ---------------------------------------------------------------------------

# Returns the next delivery.  A quarter of them are redeliveries, soon after the
# first delivery or much later; some differ from another event in one field.
sub next_delivery
{
	my ($self) = @_;
	my $sent = $self->{sent};
	my $how = rand();

	if (@$sent && chance(0.25))
	{
		my $back = between(1, chance(0.7) ? 60 : scalar @$sent);

		return $self->redeliver($sent->[ $back > @$sent ? 0 : -$back ]);
	}
	if (@$sent && chance(0.1))
	{
		my $other = $sent->[ -between(1, @$sent > 20 ? 20 : scalar @$sent) ];

		push @$sent, $self->deliver($self->variant($other->{event}))
		  if $other->{event};
		return $sent->[-1];
	}
	push @$sent,
	    $how < 0.08 ? odd_delivery($self)
	  : $how < 0.12 ? ignored_delivery($self)
	  : $how < 0.15 ? broken_delivery($self)
	  : $how < 0.21 ? forged_delivery($self)
	  : $self->deliver($self->event);
	return $sent->[-1];
}

# Returns the next delivery of an event.
sub next_event
{
	my ($self) = @_;
	my $delivery;

	do { $delivery = $self->next_delivery; } until $delivery->{event};
	return $delivery;
}

# Returns the SQL literals of body and signature.
sub literals
{
	my ($delivery) = @_;

	return (
		bytea_literal($delivery->{body}),
		text_literal($delivery->{signature}) . '::text');
}

1;
