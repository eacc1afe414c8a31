# Reads the notes of GigClients, which describes them.

package GigNotes;

use strict;
use warnings;

use Exporter qw(import);

use PostgreSQL::Test::Utils;

our @EXPORT = qw(read_notes);

# Reads and deletes the notes of a round.  Returns a hash:
#
#   units         transactions: name, fate, items; or the table that is drained
#   batches       of each finished batch, the number of accounts
#   drained       of each backlog, the number of rows that were drained
#   acknowledged  the number of those that were not rejected
#   errors        that must not be
sub read_notes
{
	my ($clients) = @_;
	my %notes = (units => [], batches => {}, drained => {}, acknowledged => 0, errors => []);

	for my $who (@{ $clients->{clients} }, @{ $clients->{workers} }, 'z')
	{
		my $path = $clients->notes_of($who);
		my %unit_named;

		next if !-e $path;
		for my $line (split /\n/, slurp_file($path))
		{
			push @{ $notes{errors} }, "$who: $line"
			  if $line =~ /^X/ || $line =~ /^R/ && $line !~ /^R\t\S+\t(40P01|40001|rolled back)\b/;
			my ($what, $key, @more) = split /\t/, $line, -1;

			if ($what eq 'W') { $notes{batches}{$key} = $more[0] }
			else { take_note($clients, $notes{units}, \%unit_named, $what, $key, @more) }
		}
		unlink $path;
	}
	for my $unit (grep { $_->{drained} } @{ $notes{units} })
	{
		$notes{drained}{ $unit->{table} } += $unit->{drained};
		$notes{acknowledged} += $unit->{drained} - $unit->{rejected};
	}
	return \%notes;
}

sub take_note
{
	my ($clients, $units, $unit_named, $what, $name, @more) = @_;
	my $unit = $unit_named->{$name};

	if ($what eq 'C' || $what eq 'U' || $what eq 'D')
	{
		my $place = 0;

		$unit = $unit_named->{$name} = { name => $name, items => [] };
		push @$units, $unit;
		if ($what eq 'D')
		{
			$unit->{table} = $more[0];
			return;
		}
		$unit->{fate} = $what eq 'C' ? 'in flight' : 'undone';
		for (@more)
		{
			my ($entry, $mark, $id) = /^(.)(.)(.*)$/;

			push @{ $unit->{items} },
			  { entry => $entry, mark => $mark, id => $id, place => $place++ };
			push @{ $clients->{sent}{ (split /\./, $id)[0] } }, $id if $mark eq '+';
		}
	}
	elsif ($what eq 'N')
	{
		@$unit{qw(drained rejected)} = @more;
	}
	elsif ($what eq 'P' || $what eq 'L')
	{
		$unit->{$what} = 1;
	}
	elsif ($what eq 'A')
	{
		$unit->{fate} = 'acknowledged';
		$unit->{items}[$_]{told} = $more[$_] for 0 .. $#more;
	}
	elsif ($what eq 'R' && $unit)
	{
		$unit->{fate} = 'undone';
	}
	return;
}

1;
