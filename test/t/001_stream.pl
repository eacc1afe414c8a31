# A random stream of webhooks, through all doors, against an independent
# telling of the rules.
#
# Everything is drawn from one seed, which a failure prints.  GIGS_SEED repeats
# a run, GIGS_EVENTS makes it longer.

use strict;
use warnings;

use Digest::SHA qw(sha256_hex);
use Encode qw(encode);
use FindBin;
use POSIX qw(strftime);
use Storable qw(dclone);
use Test::More;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
my $deliveries_wanted = $ENV{GIGS_EVENTS} || 5000;

srand($seed);
note "GIGS_SEED=$seed";

sub random_uuid
{
	my $hex = join '', map { sprintf '%02x', int rand 256 } 1 .. 16;

	return join '-', unpack 'A8 A4 A4 A4 A12', $hex;
}

# ---------------------------------------------------------------------------
# What there is
# ---------------------------------------------------------------------------

my @accounts = map { random_uuid() } 1 .. 40;
my @users = map { random_uuid() } 1 .. 15;
my @gigs = map { random_uuid() } 1 .. 60;

# Names and secrets are text; Perl has them as characters.
my %subscriptions = (
	'payroll' => { valid => ['s3cret'], retired => [] },
	'in rotation' => { valid => [ 'new key', 'old key' ], retired => [] },
	'rotated' => { valid => ['today'], retired => ['yesterday'] },
	"caf\x{e9} \"\x{65e5}\x{672c}\" \\ \x{1f600}" =>
	  { valid => ["cl\x{e9}\x{1f511}"], retired => [] },
	'unsigned' => { valid => [], retired => [] },
	'once signed' => { valid => [], retired => ['gone'] },
);
my @names = sort keys %subscriptions;
my @good_names = grep { $_ ne 'once signed' } @names;

my @kinds = map { "gigs.$_" } qw(added updated removed partially_synced
  fully_synced);

# ---------------------------------------------------------------------------
# JSON, written in every way that means the same
# ---------------------------------------------------------------------------

my $style;

sub space
{
	my ($depth) = @_;

	return '' if $style eq 'compact';
	return "\n" . '  ' x $depth if $style eq 'pretty';
	return join '', map { pick(' ', "\t", "\n", "\r\n") } 1 .. between(0, 3);
}

sub escape_char
{
	my ($c) = @_;
	my $n = ord $c;

	if ($n > 0xffff)
	{
		$n -= 0x10000;
		return sprintf '\\u%04x\\u%04X', 0xd800 | $n >> 10, 0xdc00 | $n & 0x3ff;
	}
	return sprintf pick('\\u%04x', '\\u%04X'), $n;
}

sub json_string
{
	my ($text) = @_;
	my $escapes = chance(0.1) ? 0.3 : 0;
	my $json = '';

	for my $c (split //, $text)
	{
		if ($c eq '"' || $c eq '\\')
		{
			$json .= chance(0.5) ? "\\$c" : escape_char($c);
		}
		elsif ($c eq '/' && chance(0.5)) { $json .= '\\/'; }
		else { $json .= chance($escapes) ? escape_char($c) : $c; }
	}
	return "\"$json\"";
}

sub json_array
{
	my ($depth, @elements) = @_;

	return '[' . space(0) . ']' if !@elements;
	return '['
	  . join(',', map { space($depth + 1) . $_ . space(0) } @elements)
	  . space($depth) . ']';
}

# Members are pairs of a key and its value's JSON.
sub json_object
{
	my ($depth, @members) = @_;
	my $colon = $style eq 'pretty' ? ': ' : undef;

	return '{' . space(0) . '}' if !@members;
	return '{' . join(
		',',
		map {
			    space($depth + 1)
			  . json_string($_->[0])
			  . (defined $colon ? $colon : space(0) . ':' . space(0))
			  . $_->[1]
			  . ($style eq 'pretty' ? '' : space(0))
		} @members) . space($depth) . '}';
}

# Values that nobody reads may be anything that is JSON.
sub junk
{
	my ($depth) = @_;

	return pick(
		'null', 'true', 'false', '-0.5e+300', '1e999', '""', '{}', '[]',
		'"\\u0000"', '"\\ud800"', '"\\\\\\""', '"gigs.added"',
		'"' . "\x{e9}\x{20ac}\x{1f4a9}" . '"', '-1', '"not-a-uuid"',
		json_array($depth, '1', '[[]]', '"' . pick(@gigs) . '"'),
		json_object(
			$depth,
			[ 'event', '"gigs.removed"' ],
			[
				'data',
				json_object(
					$depth + 1,
					[ 'account', '"' . pick(@accounts) . '"' ],
					[ 'updated_gigs', '[1]' ])
			],
			[ 'account', '7' ],
			[ 'updated_gigs', '["' . pick(@gigs) . '"]' ]));
}

# Adds keys that don't count: unknown ones anywhere, and known ones before
# those that replace them.
sub with_noise
{
	my ($depth, @members) = @_;

	if (chance(0.3))
	{
		for my $key (map { pick('item_id', 'resource', 'Account', 'events', '',
				"cl\x{e9}", 'added_gigs', 'updated_gigs_', 'datas', 'names') }
			1 .. between(1, 3))
		{
			splice @members, between(0, scalar @members), 0,
			  [ $key, junk($depth + 1) ];
		}
	}
	if (chance(0.15))
	{
		for (1 .. between(1, 3))
		{
			my $at = between(0, $#members);

			splice @members, between(0, $at), 0,
			  [ $members[$at][0], junk($depth + 1) ];
		}
	}
	return @members;
}

# ---------------------------------------------------------------------------
# Webhooks
# ---------------------------------------------------------------------------

# An instant in microseconds, and a way to write it.
sub random_instant
{
	my $seconds = between(1_262_304_000, 1_893_456_000);
	my $micros = 0;
	my $fraction = '';
	my $zone = pick('Z', 'Z', 'Z', '', 'offset');
	my $shift = 0;

	if (chance(0.1))
	{
		$seconds -= $seconds % 86400;
		return ($seconds * 1_000_000,
			strftime('%Y-%m-%dT0:000:00Z', gmtime $seconds));
	}
	if (chance(0.3))
	{
		my $digits = between(1, 6);

		$micros = int rand 10**$digits;
		$fraction = sprintf ".%0${digits}d", $micros;
		$micros *= 10**(6 - $digits);
	}
	if ($zone eq 'offset')
	{
		my $minutes = pick(0, 30, 45);
		my $hours = between(0, 11);
		my $sign = pick('+', '-');

		$shift = ($hours * 60 + $minutes) * ($sign eq '+' ? 60 : -60);
		$zone = $sign . sprintf pick('%02d:%02d', '%02d%02d'), $hours, $minutes;
	}
	return (
		$seconds * 1_000_000 + $micros,
		strftime('%Y-%m-%d' . pick('T', 'T', 'T', ' ') . '%H:%M:%S',
			gmtime($seconds + $shift))
		  . $fraction
		  . $zone);
}

# Sets a date-time in an event and returns its member, or none.
sub date_time
{
	my ($event, $column, $key) = @_;
	my $how = rand();

	$event->{$column} = '';
	return () if $how < 0.1;
	return [ $key, 'null' ] if $how < 0.2;
	($event->{$column}, my $text) = random_instant();
	return [ $key, json_string($text) ];
}

sub json_uuid
{
	my ($uuid) = @_;

	return json_string(chance(0.1) ? uc $uuid : $uuid);
}

# What is wrong with a member of "data", and the SQLSTATE it is refused with.
sub spoil
{
	my ($kind, $members) = @_;
	my ($own) = $kind =~ /^gigs\.(added|updated|removed)$/;
	my @required = ('account', 'user', 'available_count');
	my @uuids = ('account', 'user');
	my @counts = ('available_count');
	my @times = ('available_from', 'available_to');
	my @arrays;
	my ($key, $json, $sqlstate);

	push @times, "${own}_from", "${own}_to" if $own;
	push @counts, "${own}_count" if $own;
	push @arrays, "${own}_gigs" if $own && $own ne 'added';
	push @counts, 'days_synced' if $kind eq 'gigs.partially_synced';
	@required = (@uuids, @counts, @arrays);

	my $how = between(1, 8);
	if ($how == 1)
	{
		($key, $json, $sqlstate) = (pick(@required), pick(undef, 'null'), '22023');
	}
	elsif ($how == 2)
	{
		$key = pick(@uuids);
		($json, $sqlstate) = @{
			pick(
				[ '17', '22023' ],
				[ '{"account":"' . pick(@accounts) . '"}', '22023' ],
				[ '""', '22P02' ],
				[ '"{' . pick(@accounts) . '}"', '22P02' ],
				[ '"' . pick(@accounts) . ' "', '22P02' ],
				[ '"' . substr(pick(@accounts), 0, 35) . 'g"', '22P02' ],
				[ '"\\u0000' . substr(pick(@accounts), 1) . '"', '22P05' ])
		};
	}
	elsif ($how == 3 || $how == 4)
	{
		$key = pick(@counts);
		($json, $sqlstate) = @{
			pick(
				[ '"5"', '22023' ],
				[ 'true', '22023' ],
				[ '[5]', '22023' ],
				[ '-1', '22003' ],
				[ '2147483648', '22003' ],
				[ '4294967297', '22003' ],
				[ '18446744073709551617', '22003' ],
				[ '1.5', '22P02' ],
				[ '1e3', '22P02' ])
		};
	}
	elsif ($how <= 6 || !@arrays)
	{
		$key = pick(@times);
		($json, $sqlstate) = @{
			pick(
				[ '1675000000', '22023' ],
				[ '["2023-01-01T00:00:00Z"]', '22023' ],
				[ '"2023-13-01T00:00:00Z"', '22008' ],
				[ '"2023-02-30T00:00:00Z"', '22008' ],
				[ '"2023-01-01T25:00:00Z"', '22008' ],
				(
					map { [ "\"$_\"", '22007' ] } '', 'now', 'today',
					'infinity', '-infinity', 'epoch', '2023-01-01',
					'2023-01-01T', '01/02/2023 00:00:00',
					'2023-01-01T00:00:00 EST', '2023-01-01T00:00:00Zulu',
					'Jan 1 2023 00:00:00'
				))
		};
	}
	else
	{
		$key = $arrays[0];
		my $good = '"' . pick(@gigs) . '"';
		($json, $sqlstate) = @{
			pick(
				[ $good, '22023' ],
				[ '{}', '22023' ],
				[ "[$good,null]", '22023' ],
				[ "[$good,[$good]]", '22023' ],
				[ "[{\"id\":$good}]", '22023' ],
				[ "[$good,\"\"]", '22P02' ])
		};
	}
	@$members = grep { $_->[0] ne $key } @$members;
	push @$members, [ $key, $json ] if defined $json;
	return $sqlstate;
}

sub sign_for
{
	my ($name, $body) = @_;
	my @secrets = @{ $subscriptions{$name}{valid} };

	return undef if !@secrets;
	my $signature = sign($body, pick(@secrets));
	return chance(0.1) ? uc $signature : $signature;
}

# Ways to be no authentic webhook; all look the same.
sub forge
{
	my ($name, $body) = @_;
	my $subscription = $subscriptions{$name};
	my @valid = @{ $subscription->{valid} };

	return pick('', '0' x 128, sign($body, '')) if $name eq 'unsigned';
	return pick(undef, '', sign($body, 'gone')) if !@valid;

	my $signature = sign($body, $valid[0]);
	return pick(
		undef,
		'',
		substr($signature, 0, 127),
		"${signature}0",
		"sha512=$signature",
		'g' . substr($signature, 1),
		'0' x 128,
		substr($signature, 0, 127)
		  . ($signature =~ /0$/ ? '1' : '0'),
		sign("$body ", $valid[0]),
		sign($body, "$valid[0] "),
		map { sign($body, $_) } @{ $subscription->{retired} },
		grep { defined } map { @{ $subscriptions{$_}{valid} } ? sign($body, $subscriptions{$_}{valid}[0]) : undef }
		  grep { $_ ne $name } @names);
}

# The bodies that are broken as a whole and have not been drawn yet.
my @broken_deck;

# A delivery: body, signature and what is to be thought of it, which is
# "event" with the event's fields, "ignored", or an SQLSTATE.
sub random_delivery
{
	my $name = pick(@good_names);
	my $kind = pick(@kinds);
	my %event = (
		event => $kind,
		name => $name,
		account => pick(@accounts),
		user => pick(@users),
		count => pick(0, 1, between(2, 5000), 2147483647),
		own => '',
		gigs => '',
		days => '',
		map { $_ => '' } qw(from to changed_from changed_to));
	my $verdict = 'event';

	$style = pick('compact', 'pretty', 'random');

	my @data = (
		[ 'account', json_uuid($event{account}) ],
		[ 'user', json_uuid($event{user}) ],
		date_time(\%event, 'from', 'available_from'),
		date_time(\%event, 'to', 'available_to'),
		[ 'available_count', $event{count} ]);

	if ($kind =~ /^gigs\.(added|updated|removed)$/)
	{
		my $own = $1;

		$event{own} = pick(0, between(1, 40), between(1, 40));
		push @data, [ "${own}_count", $event{own} ],
		  date_time(\%event, 'changed_from', "${own}_from"),
		  date_time(\%event, 'changed_to', "${own}_to");
		if ($own ne 'added')
		{
			my @named = map { pick(@gigs) } 1 .. between(0, 5);

			# reported like PostgreSQL prints an array
			$event{gigs} = '{' . join(',', @named) . '}';
			$event{named} = \@named;
			push @data,
			  [ "${own}_gigs", json_array(2, map { json_uuid($_) } @named) ];
		}
	}
	elsif ($kind eq 'gigs.partially_synced')
	{
		$event{days} = pick(0, 7, 30, 30, 60, 90, between(1, 365));
		push @data, [ 'days_synced', $event{days} ];
	}

	# Fields of other events are unknown keys to this one.
	if (chance(0.1))
	{
		my %known = map { $_->[0] => 1 } @data;

		push @data, map { [ $_, junk(2) ] }
		  grep { !$known{$_} && !/^available/ && !/^(added|updated|removed)_(from|to)$/ }
		  $kind eq 'gigs.added' ? ('updated_gigs', 'days_synced')
		  : $kind eq 'gigs.updated' ? ('removed_gigs', 'added_count')
		  : ('updated_gigs', 'added_count');
	}

	my $spoiled = chance(0.07) ? between(1, 4) : 0;
	$verdict = spoil($kind, \@data) if $spoiled == 1 || $spoiled == 2;

	my $data = json_object(1, with_noise(1, shuffled(@data)));
	my $event = json_string($kind);
	my $json_name = json_string($name);

	if ($spoiled == 3)
	{
		if (chance(0.5))
		{
			$data = pick('null', '[]', '"data"', '17', undef);
			$verdict = '22023';
		}
		else
		{
			($event, $verdict) = @{
				pick(
					[ undef, '22023' ],
					[ 'null', '22023' ],
					[ '["gigs.added"]', '22023' ],
					[ '"gigs.exploded"', '0A000' ],
					[ '"gigs."', '0A000' ],
					[ '"gigs.addedx"', '0A000' ],
					[ '"\\u0000"', '22P05' ])
			};
		}
	}
	elsif ($spoiled == 0 && chance(0.04))
	{
		$event = json_string(
			pick(
				'paystubs.partially_synced', 'accounts.connected', 'gigsx',
				'identities.added', 'shifts.removed', 'gigs', '',
				"us\x{e9}rs.added"));
		$verdict = 'ignored';
		$data = pick($data, '{}', 'null', '[]', undef);
	}

	my @members = grep { defined $_->[1] } (
		[ 'event', $event ],
		[ 'name', $json_name ],
		[ 'data', $data ]);
	my $body = encode('UTF-8',
		    space(0)
		  . json_object(0, with_noise(0, shuffled(@members)))
		  . space(0));
	my $signature = sign_for($name, $body);

	if ($spoiled == 4)
	{
		my @broken = (
			[ undef, '22004' ],
			[ '', '22032' ],
			[ "$body}", '22032' ],
			[ substr($body, 0, rindex($body, '}')), '22032' ],
			[ "{\"name\" \"payroll\"}", '22032' ],
			[ "{\"x\":\"\xff\",\"name\":\"payroll\"}", '22021' ],
			[ "{\"x\":\"\xed\xa0\x80\",\"name\":\"payroll\"}", '22021' ],
			[ substr($body, 0, -1) . "\0", '22021' ],
			[ "[$body]", '22023' ],
			[ '"payroll"', '22023' ],
			[ '{"event":"gigs.added"}', '22023' ],
			[ '{"name":null}', '22023' ],
			[ '{"name":"pay\\u0000roll"}', '22P05' ],
			[ '{"name":' . '[' x 300 . ']' x 300 . '}', '54000' ]);

		# in turn, so that each is met
		@broken_deck = shuffled(0 .. $#broken) if !@broken_deck;
		($body, $verdict) = @{ $broken[ pop @broken_deck ] };
		$signature = sign($body, 's3cret')
		  if defined $body && chance(0.5);
	}
	elsif (chance(0.05))
	{
		# before anything is thought of what it says
		$signature = forge($name, $body);
		$verdict = '28000';
	}
	elsif (chance(0.01))
	{
		$body = encode('UTF-8',
			    '{"name":'
			  . json_string(pick('nobody', '', 'Payroll', 'payroll ',
					"\x{65e5}")) . ',"event":"gigs.added","data":{}}');
		$signature = pick(undef, sign($body, 's3cret'), sign($body, ''));
		$verdict = '28000';
	}
	elsif (chance(0.01))
	{
		$body = '{"name":"once signed","event":"gigs.added","data":{}}';
		$signature = forge('once signed', $body);
		$verdict = '28000';
	}

	return {
		body => $body,
		signature => $signature,
		verdict => $verdict,
		event => $verdict eq 'event' ? \%event : undef
	};
}

my @sent;

# A new delivery, or one of those before: soon again, much later, or with
# another valid signature.
sub next_delivery
{
	if (@sent && chance(0.25))
	{
		my $back = between(1, chance(0.7) ? 60 : scalar @sent);
		my $again = $sent[ $back > @sent ? 0 : -$back ];

		if ($again->{event} && chance(0.5))
		{
			return {
				%$again,
				signature =>
				  sign_for($again->{event}{name}, $again->{body})
			};
		}
		return $again;
	}
	push @sent, random_delivery();
	return $sent[-1];
}

# ---------------------------------------------------------------------------
# The rules, told again
# ---------------------------------------------------------------------------

# Events are known by serial numbers of our own; which event_id each got is
# only seen in the end.
my %model = (accounts => {}, deliveries => {}, changes => {}, log => []);
my $serial = 0;
my %outcomes;

# Applies a delivery.  Returns outcome, serial of the event, and the event.
sub apply
{
	my $result = judge(@_);

	$outcomes{ $result->{sqlstate} || $result->{outcome} }++;
	return $result;
}

sub judge
{
	my ($delivery, $always_new) = @_;
	my $event = $delivery->{event};

	return { outcome => 'ignored' } if $delivery->{verdict} eq 'ignored';
	return { outcome => 'rejected', sqlstate => $delivery->{verdict} }
	  if !$event;

	my $account = $model{accounts}{ $event->{account} } ||= {
		state => 'unknown',
		days => '',
		map { $_ => 0 } qw(added updated removed events duplicates)
	};
	my $key = join ' ', $event->{account},
	  substr(sha256_hex($delivery->{body}), 0, 32);
	my $known = $model{deliveries}{$key};

	if ($known && !$always_new)
	{
		$known->{deliveries}++;
		$account->{duplicates}++;
		for my $gig (@{ $event->{named} || [] })
		{
			$model{changes}{"$event->{account} $gig"} ||=
			  { change => 'gigs.updated', serial => $known->{serial} };
		}
		return {
			outcome => 'duplicate',
			serial => $known->{serial},
			event => $event
		};
	}

	$serial++;
	push @{ $model{log} },
	  { serial => $serial, event => $event, body => $delivery->{body} };
	$model{deliveries}{$key} = { deliveries => 1, serial => $serial };
	for my $gig (@{ $event->{named} || [] })
	{
		$model{changes}{"$event->{account} $gig"} =
		  { change => $event->{event}, serial => $serial };
	}

	my $late = 0;
	if ($event->{event} eq 'gigs.partially_synced')
	{
		$late = $account->{state} eq 'fully_synced'
		  || ($account->{days} ne '' && $event->{days} < $account->{days});
		if ($account->{state} eq 'unknown')
		{
			$account->{state} = 'partially_synced';
			$account->{partially_synced_at} = $serial;
		}
		$account->{days} = $event->{days}
		  if $account->{days} eq '' || $event->{days} > $account->{days};
	}
	elsif ($event->{event} eq 'gigs.fully_synced')
	{
		$account->{state} = 'fully_synced';
		$account->{fully_synced_at} ||= $serial;
	}
	else
	{
		my ($own) = $event->{event} =~ /\.(.*)/;

		$account->{$own} += $event->{own};
		$account->{refreshed_at} = $serial;
	}
	@$account{qw(user from to count)} = @$event{qw(user from to count)}
	  if !$late;
	$account->{events}++;
	$account->{first_event_at} ||= $serial;
	$account->{last_event_at} = $serial;
	$account->{last_event} = $event->{event};
	return {
		outcome => $late ? 'stale' : 'applied',
		serial => $serial,
		event => $event
	};
}

sub remember
{
	return {
		%{ dclone({ map { $_ => $model{$_} } qw(accounts deliveries changes) }) },
		log => scalar @{ $model{log} }
	};
}

sub restore
{
	my ($memory) = @_;

	@model{qw(accounts deliveries changes)} =
	  @{ dclone($memory) }{qw(accounts deliveries changes)};
	$#{ $model{log} } = $memory->{log} - 1;
	return;
}

# ---------------------------------------------------------------------------
# The doors
# ---------------------------------------------------------------------------

# Every operation is some SQL, for a session, with the lines that it is to
# print; a function stands for what depends on event_ids.
my @operations;
my $sql;
my %through;
my $batches = 0;

sub expect
{
	my ($door, $statements, @lines) = @_;
	my $n = push @operations, { door => $door, sql => $statements, lines => \@lines };

	$sql .= "\\echo \@\@ $n\n$statements";
	$through{$door}++;
	return;
}

sub literals
{
	my ($delivery) = @_;

	return (
		bytea_literal($delivery->{body}),
		text_literal($delivery->{signature}) . '::text');
}

# The line that tells a result: a function of the event_ids by serial.
sub result_line
{
	my ($result, @before) = @_;

	return sub {
		my ($event_ids) = @_;
		my $event = $result->{event} || {};

		# an event that was rolled back has an id that nobody knows now
		my $id = !$result->{serial} ? '' : $event_ids->{ $result->{serial} };
		return join '|', @before, $result->{outcome}, defined $id ? $id : '*',
		  map { defined $_ ? $_ : '' } $event->{event}, $event->{account},
		  $result->{sqlstate};
	};
}

my $columns = 'outcome, event_id, event, account_id, sqlstate';

my %doors = (
	ingest => sub {
		my ($new) = @_;
		my $delivery = next_delivery();
		my $result = apply($delivery, $new);
		my ($body, $signature) = literals($delivery);
		my $rejected = $result->{outcome} eq 'rejected';

		expect(
			'ingest_gig_event',
			"SELECT gigs.ingest_gig_event($body, $signature);\n"
			  . "\\echo :SQLSTATE\n",
			$rejected
			? $result->{sqlstate}
			: ($result->{outcome}, '00000'));
		return !$rejected;
	},
	try => sub {
		my ($new) = @_;
		my $delivery = next_delivery();
		my $result = apply($delivery, $new);
		my ($body, $signature) = literals($delivery);

		expect('try_ingest_gig_event',
			"SELECT $columns FROM gigs.try_ingest_gig_event($body, $signature);\n",
			result_line($result));
		return 1;
	},
	try_text => sub {
		my ($new) = @_;
		my $delivery = next_delivery();
		my ($body, $signature) = literals($delivery);

		# only what is text can come as text
		return 1
		  if !defined $delivery->{body} || $delivery->{verdict} eq '22021';
		my $result = apply($delivery, $new);
		expect('try_ingest_gig_event(text)',
			"SELECT $columns FROM gigs.try_ingest_gig_event(convert_from($body, 'UTF8'), $signature);\n",
			result_line($result));
		return 1;
	},
	batch => sub {
		my ($new) = @_;
		my $n = chance(0.05) ? between(1, 200) : between(1, 12);
		my (@bodies, @signatures, @lines);

		for my $ord (1 .. $n)
		{
			my $delivery = next_delivery();
			my ($body, $signature) = literals($delivery);

			push @bodies, $body;
			push @signatures, $signature;
			push @lines, result_line(apply($delivery, $new), $ord);
		}
		expect(
			'ingest_gig_events',
			"SELECT ord, $columns FROM gigs.ingest_gig_events(ARRAY["
			  . join(',', @bodies)
			  . '], ARRAY['
			  . join(',', @signatures)
			  . "]);\n",
			@lines);
		return 1;
	},
	inbox => sub {
		my ($new) = @_;
		my (@rows, @lines);

		for (1 .. between(1, 8))
		{
			my $delivery = next_delivery();
			my $result = apply($delivery, $new);

			push @rows, '(' . join(', ', literals($delivery)) . ')';
			push @lines, join '|', $result->{outcome},
			  $result->{sqlstate} || '';
		}
		expect(
			'inbox, INSERT',
			'INSERT INTO inbox (body, signature) VALUES '
			  . join(', ', @rows)
			  . " RETURNING outcome, left(error, 5);\n",
			@lines);
		return 1;
	},
	copy => sub {
		my ($new) = @_;
		my (@rows, @lines);
		my $batch = ++$batches;

		for (1 .. between(1, 15))
		{
			my $delivery = next_delivery();
			my $result = apply($delivery, $new);

			push @rows, join "\t", $batch,
			  defined $delivery->{body}
			  ? '\\\\x' . unpack('H*', $delivery->{body})
			  : '\\N',
			  defined $delivery->{signature} ? $delivery->{signature} : '\\N';
			push @lines, join '|', $result->{outcome},
			  $result->{sqlstate} || '';
		}
		expect(
			'inbox, COPY',
			"COPY inbox (batch, body, signature) FROM stdin;\n"
			  . join('', map { "$_\n" } @rows)
			  . "\\.\nSELECT outcome, left(error, 5) FROM inbox WHERE batch = $batch ORDER BY id;\n",
			@lines);
		return 1;
	},
	strict_inbox => sub {
		my ($new) = @_;
		my $memory = remember();
		my @rows;
		my $sqlstate = '00000';

		for (1 .. between(1, 6))
		{
			my $delivery = next_delivery();
			my ($body, $signature) = literals($delivery);
			my $result = apply($delivery, $new);

			push @rows, "($body, $signature)";
			$sqlstate = $result->{sqlstate}
			  if $result->{outcome} eq 'rejected' && $sqlstate eq '00000';
		}
		restore($memory) if $sqlstate ne '00000';
		expect(
			'inbox without an outcome, INSERT',
			'INSERT INTO strict_inbox VALUES '
			  . join(', ', @rows)
			  . ";\n\\echo :SQLSTATE\n",
			$sqlstate);
		return $sqlstate eq '00000';
	},
	consume => sub {
		my @pending = sort keys %{ $model{changes} };

		return 1 if !@pending;
		my @taken = map { pick(@pending) } 1 .. between(1, 30);
		my %keys = map { $_ => 1 } @taken;

		delete $model{changes}{$_} for keys %keys;
		expect(
			'consumed',
			"WITH taken AS (DELETE FROM gigs.gig_change WHERE (account_id, gig_id) IN ("
			  . join(', ',
				map { my ($account, $gig) = split / /; "('$account', '$gig')" }
				sort keys %keys)
			  . ") RETURNING 1) SELECT count(*) FROM taken;\n",
			scalar keys %keys);
		return 1;
	});
my @door_names = sort keys %doors;

# ---------------------------------------------------------------------------
# Sessions
# ---------------------------------------------------------------------------

my $node = start_node('stream');
my @inputs = (
	"SET client_encoding = 'UTF8';\n\\set VERBOSITY sqlstate\n",
	"SET default_transaction_isolation = 'repeatable read';\n",
	# what a date-time means must not hang on the session
	"SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'SQL, DMY'; SET bytea_output = 'escape';\n",
	"SET ROLE receiver; SET search_path = trap, pg_catalog, public;\n");

$node->safe_psql(
	'postgres', encode('UTF-8', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	CREATE TABLE inbox (
		id int GENERATED ALWAYS AS IDENTITY,
		batch int,
		body bytea,
		signature text,
		outcome gigs.gig_ingest_outcome,
		error text
	);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE TABLE strict_inbox (body bytea, signature text);
	CREATE TRIGGER ingest BEFORE INSERT ON strict_inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();

	CREATE ROLE receiver;
	GRANT USAGE ON SCHEMA gigs TO receiver;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA gigs TO receiver;
	GRANT INSERT, SELECT ON inbox, strict_inbox TO receiver;
	GRANT SELECT, DELETE ON gigs.gig_change TO receiver;
	CREATE SCHEMA trap AUTHORIZATION receiver;
	CREATE TABLE trap.gig_account_sync ();
	CREATE FUNCTION trap.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE sql
		AS 'SELECT NULL::uuid';
} . join('', map {
	my $name = $_;
	my $literal = text_literal($name);

	"SELECT gigs.create_gig_subscription($literal, 'https://example.com/');\n"
	  . join('', map { "SELECT gigs.add_gig_secret($literal, " . text_literal($_) . ");\n" }
		@{ $subscriptions{$name}{valid} }, @{ $subscriptions{$name}{retired} })
	  . join('', map { "SELECT gigs.retire_gig_secret($literal, " . text_literal($_) . ");\n" }
		@{ $subscriptions{$name}{retired} })
} @names)));

my @sessions;
for my $input (@inputs)
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	push @sessions, $session;
	$session->query_until(qr/ready/,
		$inputs[0] . ($input eq $inputs[0] ? '' : $input) . "\\echo ready\n");
}

# Sends what has been collected, and gives each operation what it printed.
# (query() would note all of it in the test's output.)
sub flush_to
{
	my ($session) = @_;
	my $output;
	my $operation;

	return if $sql eq '';
	$output = $session->query_until(qr/^flushed$/m, "$sql\\echo flushed\n");
	for my $line (split /\n/, $output)
	{
		last if $line eq 'flushed';
		if ($line =~ /^\@\@ (\d+)$/)
		{
			$operation = $operations[ $1 - 1 ];
			$operation->{got} = [];
		}
		elsif ($operation)
		{
			push @{ $operation->{got} }, $line;
		}
	}
	$sql = '';
	return;
}

# ---------------------------------------------------------------------------
# The stream
# ---------------------------------------------------------------------------

my %transactions;

# One to many calls.  Returns false where the last one raised an error.
sub some_calls
{
	my ($n, $new) = @_;

	for (1 .. $n)
	{
		return 0 if !$doors{ pick(@door_names) }->($new);
	}
	return 1;
}

# Calls in a transaction that may come to nothing.
sub transaction
{
	my ($superuser) = @_;
	my $memory = remember();
	my $new = $superuser && chance(0.15);
	my $good;

	$sql .= "BEGIN;\n";
	if ($new)
	{
		$sql .= "SET LOCAL gigs_webhooks.dedupe_window = 0;\n";
		$transactions{'without a dedupe window'}++;
	}
	$good = some_calls(between(1, 4), $new);
	if ($good && chance(0.3))
	{
		my $savepoint = remember();

		$sql .= "SAVEPOINT s;\n";
		$good = some_calls(between(1, 3), $new);
		if (!$good || chance(0.6))
		{
			$sql .= "ROLLBACK TO s;\n";
			restore($savepoint);
			$good = 1;
			$transactions{'rolled back to a savepoint'}++;
		}
		$good &&= some_calls(between(1, 2), $new);
	}
	if (!$good || chance(0.3))
	{
		$sql .= "ROLLBACK;\n";
		restore($memory);
		$transactions{ $good ? 'rolled back' : 'failed' }++;
	}
	else
	{
		$sql .= "COMMIT;\n";
		$transactions{'committed'}++;
	}
	return;
}

sub account_touches
{
	my ($account) = @_;

	return $account ? $account->{events} + $account->{duplicates} : 0;
}

# A snapshot grows old while others commit.  An account that they touched can't
# be touched with it any more, and every other can.
sub old_snapshot
{
	my ($old, $other) = @_;
	my $memory = remember();

	$sql .= "BEGIN ISOLATION LEVEL REPEATABLE READ;\n"
	  . "SELECT 'snapshot' FROM gigs.gig_account_sync LIMIT 1;\n";
	flush_to($old);
	$doors{$_}->() for 'try', pick('batch', 'try'), 'consume';
	flush_to($other);

	my $delivery;
	do { $delivery = next_delivery(); } until ($delivery->{event});
	my ($body, $signature) = literals($delivery);
	my $account = $delivery->{event}{account};
	my $untouched = account_touches($memory->{accounts}{$account}) ==
	  account_touches($model{accounts}{$account});
	my $query =
	  "SELECT $columns FROM gigs.try_ingest_gig_event($body, $signature);\n\\echo :SQLSTATE\n";

	if ($untouched)
	{
		expect('REPEATABLE READ', "${query}COMMIT;\n",
			result_line(apply($delivery)), '00000');
	}
	else
	{
		expect('REPEATABLE READ', "${query}ROLLBACK;\n", '40001');
	}
	$transactions{ $untouched
		? 'repeatable read, alone'
		: 'repeatable read, too late' }++;
	flush_to($old);
	return;
}

$sql = '';
while (@sent < $deliveries_wanted)
{
	my $which = between(0, $#sessions);

	if (chance(0.2))
	{
		old_snapshot($sessions[0], $sessions[$which || 1]);
		next;
	}
	for (1 .. between(1, 12))
	{
		if (chance(0.25)) { transaction($which != 3); }
		else { some_calls(1); }
	}
	flush_to($sessions[$which]);
}

# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

# The columns of a query, line by line.
sub lines
{
	my ($query) = @_;

	return split /\n/, $node->safe_psql('postgres',
		"SET search_path = gigs; SET TimeZone = 'UTC'; $query");
}

# A failure is worth little without the seed.
sub same
{
	my ($got, $expected, $title) = @_;
	my $difference = first_difference($got, $expected);

	is($difference, '', $title) or diag("GIGS_SEED=$seed");
	return;
}

sub micros { return "round(extract(epoch FROM $_[0]) * 1000000)::bigint" }

my @log = map { [ split /\|/, $_, -1 ] } lines(
	'SELECT event_id, ' . micros('received_at') . ', event, account_id,'
	  . " encode(convert_to(name, 'UTF8'), 'hex'), encode(body, 'hex')"
	  . ' FROM gig_event_log ORDER BY event_id');
same(
	[ map { join '|', @$_[ 2 .. 5 ] } @log ],
	[
		map {
			join '|', $_->{event}{event}, $_->{event}{account},
			  unpack('H*', encode('UTF-8', $_->{event}{name})),
			  unpack('H*', $_->{body})
		} @{ $model{log} }
	],
	'the log holds what was applied, in this order, byte for byte');

my (%event_ids, %received_at);
for my $i (0 .. $#log)
{
	next if $i > $#{ $model{log} };
	$event_ids{ $model{log}[$i]{serial} } = $log[$i][0];
	$received_at{ $model{log}[$i]{serial} } = $log[$i][1];
}

# What each door said.
for my $door (sort keys %through)
{
	my (@got, @expected);
	my $culprit;

	for my $operation (grep { $_->{door} eq $door } @operations)
	{
		my @said = @{ $operation->{got} || ['(nothing)'] };
		my @due =
		  map { ref $_ ? $_->(\%event_ids) : $_ } @{ $operation->{lines} };

		for my $i (0 .. $#due)
		{
			$said[$i] =~ s/^((?:\d+\|)?\w+)\|\d+\|/$1|*|/
			  if $i < @said && $due[$i] =~ /\|\*\|/;
		}
		$culprit ||= $operation if first_difference(\@said, \@due) ne '';
		push @got, @said;
		push @expected, @due;
	}
	same(\@got, \@expected,
		"$door: $through{$door} calls with " . @expected . ' results');
	diag(substr $culprit->{sql}, 0, 3000) if $culprit;
}

my @account_times =
  qw(first_event_at partially_synced_at fully_synced_at refreshed_at last_event_at);

same(
	[
		lines(
			'SELECT account_id, user_id, state, days_synced, '
			  . micros('available_from') . ', '
			  . micros('available_to')
			  . ', available_count, added_total, updated_total, removed_total,'
			  . ' events, duplicates, last_event, '
			  . join(', ', map { micros($_) } @account_times)
			  . ' FROM gig_account_sync ORDER BY account_id')
	],
	[
		map {
			my $account = $model{accounts}{$_};

			join '|', $_,
			  @$account{
				qw(user state days from to count added updated removed events
				  duplicates last_event)
			  },
			  map { $account->{$_} ? $received_at{ $account->{$_} } : '' }
			  @account_times
		} sort keys %{ $model{accounts} }
	],
	'every account is as the rules make it');

same(
	[
		lines(
			"SELECT account_id, encode(body_digest, 'hex'), event_id, deliveries, "
			  . micros('first_at')
			  . ', CASE deliveries WHEN 1 THEN last_at = first_at ELSE last_at >= first_at END'
			  . ' FROM gig_delivery ORDER BY account_id, body_digest')
	],
	[
		map {
			my $delivery = $model{deliveries}{$_};

			join '|', split(/ /, $_), $event_ids{ $delivery->{serial} },
			  $delivery->{deliveries}, $received_at{ $delivery->{serial} }, 't';
		} sort keys %{ $model{deliveries} }
	],
	'every delivery is remembered');

same(
	[
		lines(
			'SELECT account_id, gig_id, change, event_id, changed_at >= received_at'
			  . ' FROM gig_change JOIN gig_event_log AS l USING (account_id, event_id)'
			  . ' ORDER BY account_id, gig_id')
	],
	[
		map {
			my $change = $model{changes}{$_};

			join '|', split(/ /, $_), $change->{change},
			  $event_ids{ $change->{serial} }, 't'
		} sort keys %{ $model{changes} }
	],
	'the consumer finds every change that is left to him');

same(
	[
		lines(
			"SELECT event, encode(convert_to(name, 'UTF8'), 'hex'), account_id, user_id, "
			  . micros('available_from') . ', '
			  . micros('available_to')
			  . ', available_count, changed_count, changed_gigs, '
			  . micros('changed_from') . ', '
			  . micros('changed_to')
			  . ', days_synced FROM gig_event_history ORDER BY event_id')
	],
	[
		map {
			my $event = $_->{event};

			join '|', $event->{event},
			  unpack('H*', encode('UTF-8', $event->{name})),
			  @$event{
				qw(account user from to count own gigs changed_from changed_to
				  days)
			  }
		} @{ $model{log} }
	],
	'the history reads every event as it was written');

# ---------------------------------------------------------------------------
# Rebuilding
# ---------------------------------------------------------------------------

my $naccounts = keys %{ $model{accounts} };
my $all = 'SELECT a::text FROM gig_account_sync AS a ORDER BY account_id';
my @before = lines($all);

is(join('', lines('SELECT * FROM rebuild_gig_sync()')),
	"$naccounts|0", 'all accounts are rebuilt');
same([ lines($all) ], \@before, 'rebuilding changes nothing');

lines(
	"UPDATE gig_account_sync SET user_id = '$users[0]', state = 'unknown',"
	  . ' days_synced = 999, available_from = NULL, available_to = now(),'
	  . ' available_count = -1, added_total = 0, updated_total = 7,'
	  . ' removed_total = 0, events = 0, first_event_at = NULL,'
	  . " partially_synced_at = 'infinity', fully_synced_at = NULL,"
	  . " refreshed_at = now(), last_event = 'gigs.added', last_event_at = NULL");
is( join('', lines("SELECT * FROM rebuild_gig_sync('$accounts[0]')")),
	'1|0',
	'one damaged account is rebuilt');
same(
	[ lines("SELECT a::text FROM gig_account_sync AS a WHERE account_id = '$accounts[0]'") ],
	[ grep { /\Q$accounts[0]\E/ } @before ],
	'... and is what it was');
is(join('', lines('SELECT * FROM rebuild_gig_sync()')),
	"$naccounts|0", 'all damaged accounts are rebuilt');
same([ lines($all) ], \@before, '... and are what they were');

# Only a row knows its redeliveries.
same(
	[
		lines(
			'CREATE TEMP TABLE kept AS SELECT account_id, duplicates FROM gig_account_sync;'
			  . ' DELETE FROM gig_account_sync;'
			  . ' SELECT * FROM rebuild_gig_sync();'
			  . ' UPDATE gig_account_sync AS a SET duplicates = kept.duplicates'
			  . ' FROM kept WHERE kept.account_id = a.account_id AND a.duplicates = 0;'
			  . $all)
	],
	[ "$naccounts|0", @before ],
	'accounts that are gone are rebuilt, but for their redeliveries');

# A test that never went somewhere has not tested it.
note "$_: $transactions{$_}" for sort keys %transactions;
note "$_: $outcomes{$_}" for sort keys %outcomes;
note @{ $model{log} } . ' events in the log';
is( join(
		', ',
		grep { !$transactions{$_} } 'committed',
		'rolled back',
		'rolled back to a savepoint',
		'failed',
		'without a dedupe window',
		'repeatable read, alone',
		'repeatable read, too late'),
	'',
	'every kind of transaction was made');
is( join(
		', ',
		grep { !$outcomes{$_} } 'applied', 'stale',
		'duplicate', 'ignored',
		'0A000', '22003', '22004', '22007', '22008', '22021', '22023', '22032',
		'22P02', '22P05', '28000', '54000'),
	'',
	'every outcome was met');

$_->quit for @sessions;
$node->stop;

done_testing();
