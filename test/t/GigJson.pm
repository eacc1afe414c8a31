# JSON with random white space, escapes, unknown keys, and keys that a later key of
# the same name replaces.
#
# A JSON value is a string of characters.  An object is a list of members, which
# are references to arrays of a key and the JSON of its value.

package GigJson;

use strict;
use warnings;

use Exporter qw(import);
use FindBin;

use lib $FindBin::RealBin;
use GigTest qw(:dice);

our @EXPORT = qw(choose_style space json_string json_array json_object junk
  with_noise);

my $style = 'compact';

# Chooses the white space of the JSON to be made.
sub choose_style
{
	$style = pick('compact', 'pretty', 'random');
	return;
}

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

sub json_object
{
	my ($depth, @members) = @_;

	return '{' . space(0) . '}' if !@members;
	return '{' . join(
		',',
		map {
			    space($depth + 1)
			  . json_string($_->[0])
			  . ($style eq 'pretty' ? ': ' : space(0) . ':' . space(0))
			  . $_->[1]
			  . ($style eq 'pretty' ? '' : space(0))
		} @members) . space($depth) . '}';
}

# Returns a value for a key that is not read.  It may look like a webhook.
sub junk
{
	my ($depth, $uuid) = @_;

	return pick(
		'null', 'true', 'false', '-0.5e+300', '1e999', '""', '{}', '[]',
		'"\\u0000"', '"\\ud800"', '"\\\\\\""', '"gigs.added"',
		'"' . "\x{e9}\x{20ac}\x{1f4a9}" . '"', '-1', '"not-a-uuid"',
		json_array($depth, '1', '[[]]', "\"$uuid\""),
		json_object(
			$depth,
			[ 'event', '"gigs.removed"' ],
			[
				'data',
				json_object(
					$depth + 1,
					[ 'account', "\"$uuid\"" ],
					[ 'updated_gigs', '[1]' ])
			],
			[ 'account', '7' ],
			[ 'updated_gigs', "[\"$uuid\"]" ]));
}

# Returns the members and some more, which must not change the result: unknown
# keys, and known keys before those that replace them.  Argyle sends "item_id" and
# "resource", although they are not documented.
sub with_noise
{
	my ($depth, $uuid, @members) = @_;
	my @noise;

	push @noise, [ 'item_id', "\"$uuid\"" ] if chance(0.2);
	push @noise,
	  [
		'resource',
		json_object(
			$depth + 1,
			[ 'id', "\"$uuid\"" ],
			[ 'account', junk($depth + 2, $uuid) ],
			[ 'gigs', json_array($depth + 2, map { junk($depth + 3, $uuid) } 1 .. 3) ])
	  ]
	  if chance(0.2);
	if (chance(0.3))
	{
		push @noise,
		  map { [ $_, junk($depth + 1, $uuid) ] }
		  map {
			pick('Account', 'events', '', "cl\x{e9}", 'added_gigs',
				'updated_gigs_', 'datas', 'names')
		  } 1 .. between(1, 3);
	}
	for my $member (@noise)
	{
		splice @members, between(0, scalar @members), 0, $member;
	}
	if (@members && chance(0.15))
	{
		for (1 .. between(1, 3))
		{
			my $at = between(0, $#members);

			splice @members, between(0, $at), 0,
			  [ $members[$at][0], junk($depth + 1, $uuid) ];
		}
	}
	return @members;
}

1;
