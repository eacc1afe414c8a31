# Webhooks that are not ingested: events that cannot be parsed, events of other
# families, malformed bodies, and forgeries.
#
# Each function takes a GigEvents and returns a delivery as described there.

package GigFaults;

use strict;
use warnings;

use Encode qw(encode);
use Exporter qw(import);
use FindBin;

use lib $FindBin::RealBin;
use GigJson;
use GigSubscriptions;
use GigTest qw(:DEFAULT :dice);

our @EXPORT = qw(odd_delivery ignored_delivery broken_delivery forged_delivery);

# Returns invalid values for fields of each type, with their SQLSTATEs.  An
# undefined value stands for a missing key.
sub odd_values
{
	my ($events) = @_;
	my $account = pick(@{ $events->{accounts} });
	my $gig = '"' . pick(@{ $events->{gigs} }) . '"';

	return (
		required => [ map { [ $_, '22023' ] } undef, 'null' ],
		uuid => [
			[ '17', '22023' ],
			[ "{\"account\":\"$account\"}", '22023' ],
			[ '""', '22P02' ],
			[ "\"{$account}\"", '22P02' ],
			[ "\"$account \"", '22P02' ],
			[ '"' . substr($account, 0, 35) . 'g"', '22P02' ],
			[ '"\\u0000' . substr($account, 1) . '"', '22P05' ]
		],
		count => [
			(map { [ $_, '22023' ] } '"5"', 'true', '[5]'),
			(map { [ $_, '22003' ] } '-1', '2147483648', '4294967297',
				'18446744073709551617'),
			(map { [ $_, '22P02' ] } '1.5', '1e3')
		],
		time => [
			(map { [ $_, '22023' ] } '1675000000', '["2023-01-01T00:00:00Z"]'),
			(map { [ "\"2023-$_:00:00Z\"", '22008' ] } '13-01T00', '02-30T00',
				'01-01T25'),
			(map { [ "\"$_\"", '22007' ] } '', 'now', 'today', 'infinity',
				'-infinity', 'epoch', '2023-01-01', '2023-01-01T',
				'01/02/2023 00:00:00', '2023-01-01T00:00:00 EST',
				'2023-01-01T00:00:00Zulu', 'Jan 1 2023 00:00:00')
		],
		gigs => [
			(map { [ $_, '22023' ] } $gig, '{}', "[$gig,null]", "[$gig,[$gig]]",
				"[{\"id\":$gig}]"),
			[ "[$gig,\"\"]", '22P02' ]
		]);
}

# Returns the name of an event, data of which one field is missing or invalid, and
# the SQLSTATE of the error.
sub odd_field
{
	my ($events) = @_;
	my %values = odd_values($events);
	my $what = $events->draw('odd', sort keys %values);
	my ($json, $sqlstate) = @{ $events->draw($what, @{ $values{$what} }) };
	my $event = $events->event(
		$what eq 'gigs' ? (event => pick('gigs.updated', 'gigs.removed')) : ());
	my ($own) = $event->{event} =~ /^gigs\.(added|updated|removed)$/;
	my %keys = (
		uuid => [ 'account', 'user' ],
		count => [ 'available_count', $own ? "${own}_count" : () ],
		time => [
			'available_from', 'available_to', $own ? ("${own}_from", "${own}_to") : ()
		]);

	push @{ $keys{count} }, 'days_synced' if $event->{days} ne '';
	$keys{gigs} = ["${own}_gigs"] if $own;
	$keys{required} = [ @{ $keys{uuid} }, @{ $keys{count} } ];

	my $key = pick(@{ $keys{$what} });
	my @members = grep { $_->[0] ne $key } GigEvents::data_members($event);

	push @members, [ $key, $json ] if defined $json;
	return ($event->{event}, $events->data_object(@members), $sqlstate);
}

# Returns a gigs event that cannot be parsed.
sub odd_delivery
{
	my ($events) = @_;
	my $name = pick(@good_names);
	my $where = $events->draw('where', ('field') x 7, 'data', 'event');
	my $event = $events->event;
	my ($kind, $data, $sqlstate) = ($event->{event});

	choose_style();
	$data = $events->data_object(GigEvents::data_members($event));
	if ($where eq 'field')
	{
		($kind, $data, $sqlstate) = odd_field($events);
	}
	$kind = json_string($kind);
	if ($where eq 'data')
	{
		($data, $sqlstate) =
		  ($events->draw('data', 'null', '[]', '"data"', '17', undef), '22023');
	}
	elsif ($where eq 'event')
	{
		($kind, $sqlstate) = @{
			$events->draw(
				'event',
				[ undef, '22023' ],
				[ 'null', '22023' ],
				[ '["gigs.added"]', '22023' ],
				[ '"gigs.exploded"', '0A000' ],
				[ '"gigs."', '0A000' ],
				[ '"gigs.addedx"', '0A000' ],
				[ '"\\u0000"', '22P05' ])
		};
	}
	my $body = $events->envelope($kind, json_string($name), $data);

	return {
		body => $body,
		signature => sign_for($name, $body),
		name => $name,
		verdict => $name eq 'unsigned' ? 'rejected' : 'quarantined',
		sqlstate => $sqlstate
	};
}

# Returns an event of another family.
sub ignored_delivery
{
	my ($events) = @_;
	my $name = pick(@good_names);

	choose_style();
	my $body = $events->envelope(
		json_string(
			$events->draw(
				'family', 'paystubs.partially_synced', 'accounts.connected',
				'gigsx', 'identities.added', 'shifts.removed', 'gigs', '',
				"us\x{e9}rs.added")),
		json_string($name),
		pick($events->data_object(GigEvents::data_members($events->event)),
			'{}', 'null', '[]', undef));

	return {
		body => $body,
		signature => sign_for($name, $body),
		name => $name,
		verdict => 'ignored'
	};
}

# Returns a body that is rejected before its signature can be verified.
sub broken_delivery
{
	my ($events) = @_;
	my $good = $events->deliver($events->event)->{body};
	my ($body, $sqlstate) = @{
		$events->draw(
			'broken',
			[ undef, '22004' ],
			[ '', '22032' ],
			[ "$good}", '22032' ],
			[ substr($good, 0, rindex($good, '}')), '22032' ],
			[ '{"name" "payroll"}', '22032' ],
			[ "\xef\xbb\xbf$good", '22032' ],
			[ "\x1f\x8b\x08\0$good", '22032' ],
			[ "{\"x\":\"\xff\",\"name\":\"payroll\"}", '22021' ],
			[ "{\"x\":\"\xed\xa0\x80\",\"name\":\"payroll\"}", '22021' ],
			[ "$good\0", '22021' ],
			[ "[$good]", '22023' ],
			[ '"payroll"', '22023' ],
			[ '{"event":"gigs.added"}', '22023' ],
			[ '{"name":null}', '22023' ],
			[ '{"name":"pay\\u0000roll"}', '22P05' ],
			[ '{"name":' . '[' x 300 . ']' x 300 . '}', '54000' ])
	};

	return {
		body => $body,
		signature => defined $body && chance(0.5) ? sign($body, 's3cret') : undef,
		verdict => 'rejected',
		sqlstate => $sqlstate
	};
}

# Returns a delivery that is not authentic.  Its body does not matter.
sub forged_delivery
{
	my ($events) = @_;
	my $how = rand();
	my ($body, $signature);

	if ($how < 0.2)
	{
		$body = encode('UTF-8',
			    '{"name":'
			  . json_string(pick('nobody', '', 'Payroll', 'payroll ', "\x{65e5}"))
			  . ',"event":"gigs.added","data":{}}');
		$signature = pick(undef, sign($body, 's3cret'), sign($body, ''));
	}
	elsif ($how < 0.35)
	{
		$body = '{"name":"once signed","event":"gigs.added","data":{}}';
		$signature = forge('once signed', $body);
	}
	else
	{
		my $delivery =
		  pick($events->deliver($events->event), odd_delivery($events),
			ignored_delivery($events));

		$body = $delivery->{body};
		$signature = forge($delivery->{name}, $body);
	}
	return {
		body => $body,
		signature => $signature,
		verdict => 'rejected',
		sqlstate => '28000'
	};
}

1;
