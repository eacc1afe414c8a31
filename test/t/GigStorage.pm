# Checks of heaps and indexes, through a connection of GigWire.

package GigStorage;

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT = qw(check_storage check_brin);

# The tables, with those that large values are stored in.
my $tables = q{
	WITH ours AS (
		SELECT oid, reltoastrelid
		FROM pg_class
		WHERE relkind = 'r' AND relnamespace IN ('gigs'::regnamespace, 'public'::regnamespace)
	), tables AS (
		SELECT oid FROM ours
		UNION ALL
		SELECT reltoastrelid FROM ours WHERE reltoastrelid <> 0
	)
};

# Returns what amcheck finds in heaps and B-trees.
sub check_storage
{
	my ($admin) = @_;
	my @wrong;

	$admin->rows('SET client_min_messages = warning');
	$admin->rows('CREATE EXTENSION IF NOT EXISTS amcheck');
	my @indexes = $admin->rows(
		"$tables SELECT i.indexrelid, i.indexrelid::regclass
		FROM pg_index AS i
		JOIN tables AS t ON t.oid = i.indrelid
		JOIN pg_class AS c ON c.oid = i.indexrelid
		WHERE c.relam = (SELECT oid FROM pg_am WHERE amname = 'btree')");

	for my $index (@indexes)
	{
		my ($oid, $name) = @$index;
		my $answer = $admin->query("SELECT bt_index_parent_check('$oid'::regclass, true, true)");

		die "the connection was lost in the check of $name" if !$answer;
		push @wrong, "$name: $answer->{message}" if defined $answer->{sqlstate};
	}
	push @wrong, 'there are too few indexes' if @indexes < 10;
	push @wrong, map { join ' ', grep { defined } @$_ }
	  $admin->rows("$tables SELECT t.oid::regclass, h.*
		FROM tables AS t, verify_heapam(t.oid, check_toast => true) AS h");
	return @wrong;
}

# Compares what the BRIN index finds with the heap, because amcheck does not know
# BRIN.
sub check_brin
{
	my ($admin) = @_;
	my @wrong;

	for (1 .. 3)
	{
		my ($start, $end) = map {
			$admin->value(
				"SELECT min(received_at) + (max(received_at) - min(received_at)) * $_ FROM gigs.gig_event_log")
		} sort { $a <=> $b } rand, rand;
		my $query =
		  "SELECT count(*) FROM gigs.gig_event_log WHERE received_at BETWEEN '$start' AND '$end'";
		my @counts = map {
			$admin->rows("SET enable_$_ = off");
			my $count = $admin->value($query);
			$admin->rows("RESET enable_$_");
			$count;
		} ('seqscan', 'bitmapscan');

		push @wrong, "the index on received_at finds $counts[0] events of $counts[1]"
		  if $counts[0] != $counts[1];
	}
	return @wrong;
}

1;
