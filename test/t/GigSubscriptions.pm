# Subscriptions with secrets of every state, and signatures for their webhooks.

package GigSubscriptions;

use strict;
use warnings;

use Encode qw(encode);
use Exporter qw(import);
use FindBin;

use lib $FindBin::RealBin;
use GigTest qw(:DEFAULT :dice);

our @EXPORT = qw(@good_names create_subscriptions sign_for forge);

# Names and secrets are text, as characters.
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
our @good_names = grep { $_ ne 'once signed' } @names;

# Returns the SQL, in UTF-8, that creates the subscriptions.
sub create_subscriptions
{
	my $sql = '';

	for my $name (@names)
	{
		my $literal = text_literal($name);
		my @retired = @{ $subscriptions{$name}{retired} };

		$sql .= "SELECT gigs.create_gig_subscription($literal, 'https://example.com/');\n";
		$sql .= "SELECT gigs.add_gig_secret($literal, " . text_literal($_) . ");\n"
		  for @{ $subscriptions{$name}{valid} }, @retired;
		$sql .= "SELECT gigs.retire_gig_secret($literal, " . text_literal($_) . ");\n"
		  for @retired;
	}
	return encode('UTF-8', $sql);
}

# Returns a signature that is not valid.
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
		substr($signature, 0, 127) . ($signature =~ /0$/ ? '1' : '0'),
		sign("$body ", $valid[0]),
		sign($body, "$valid[0] "),
		(map { sign($body, $_) } @{ $subscription->{retired} }),
		map { sign($body, $subscriptions{$_}{valid}[0]) }
		  grep { $_ ne $name && @{ $subscriptions{$_}{valid} } } @names);
}

# Returns a valid signature, or none for an unsigned subscription.
sub sign_for
{
	my ($name, $body) = @_;
	my @secrets = @{ $subscriptions{$name}{valid} };

	return undef if !@secrets;
	my $signature = sign($body, pick(@secrets));
	return chance(0.1) ? uc $signature : $signature;
}

1;
