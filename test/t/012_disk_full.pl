# Out of disk space, where the tables are and where the WAL is: what has been
# acknowledged is there once, nothing is there by half, and with some room it
# goes on.
#
# The disks are small ones in memory, which it takes a namespace of one's own to
# mount; they go with the last process in there.  So this runs itself again in
# such a namespace, if the kernel lets it.

use strict;
use warnings;

my ($disks, $why_not);

BEGIN
{
	# before PostgreSQL::Test takes over the output
	$disks = $ENV{GIGS_SMALL_DISKS};
	if (!defined $disks)
	{
		my $parent = $ENV{TESTDATADIR} || '.';
		my ($uid, $gid) = ($>, (split / /, $))[0]);

		# As root of the namespace it mounts, and then is what it was, for
		# PostgreSQL doesn't run as root.
		my @enter = (
			'unshare', '--user', '--map-root-user', '--mount', 'sh', '-euc',
			'for disk in data wal; do mount -t tmpfs -o size=24m "$disk" "$GIGS_SMALL_DISKS/$disk"; done; '
			  . "exec unshare --user --map-user=$uid --map-group=$gid -- \"\$@\"", 'sh');

		$ENV{GIGS_SMALL_DISKS} = "$parent/small_disks_$$";
		for ($parent, $ENV{GIGS_SMALL_DISKS}, map { "$ENV{GIGS_SMALL_DISKS}/$_" } 'data', 'wal')
		{
			mkdir $_;
		}
		if ($uid == 0)
		{
			$why_not = 'root may not run PostgreSQL';
		}
		elsif (`@{[ join ' ', map { my $s = $_; $s =~ s/'/'\\''/g; "'$s'" } @enter, 'id', '-u' ]} 2>&1` =~ /^$uid$/)
		{
			exec @enter, $^X, (map { "-I$_" } @INC), $0 or die "could not run unshare: $!";
		}
		else
		{
			$why_not = 'the kernel does not let users mount in namespaces of their own';
		}
	}
}

use FindBin;
use IPC::Run ();
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

plan skip_all => $why_not if defined $why_not;

# Room that is made when it is needed.
sub ballast
{
	my ($disk, $megabytes) = @_;
	my $path = "$disks/$disk/ballast";

	open my $file, '>', $path or die "could not create $path: $!";
	for (1 .. $megabytes)
	{
		print $file "\0" x (1024 * 1024) or die "could not write $path: $!";
	}
	close $file or die "could not write $path: $!";
	return $path;
}

# What clients do until nothing goes any more, and for some time after that:
# large webhooks singly, in batches, and directly or by SQL.  They say what has
# been acknowledged.
my $nhooks = $ENV{GIGS_LONG} ? 2_000 : 200;

sub client_script
{
	my ($client, $size) = @_;
	my $direct = $client % 2 ? 'on' : 'off';
	my $script = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;\n";

	for my $i (1 .. $nhooks)
	{
		my $n = 10_000 * $client + $i;

		$script .= $i % 4
		  ? "SELECT concat_ws(' ', $client, $n, outcome) FROM hook($client, $n, $size) AS b, gigs.try_ingest_gig_event(b, sig(b));\n"
		  : "SELECT concat_ws(' ', $client, $n + 1000 * ord, outcome) FROM (SELECT array_agg(b) AS bs, array_agg(sig(b)) AS ss FROM generate_series(1, 3) AS o, hook($client, $n + 1000 * o, $size) AS b) AS a, gigs.ingest_gig_events(bs, ss);\n";
	}
	return $script;
}

sub fill
{
	my ($node, $size) = @_;
	my @clients = map { start_client($node, 'postgres', client_script($_, $size), '-v', 'VERBOSITY=verbose') } 1 .. 4;
	my (@acknowledged, %errors);

	for (@clients)
	{
		my ($out, $err) = finish_client($_);

		push @acknowledged, map { [ split / / ] } grep { /^\d+ \d+ \w+$/ } split /\n/, $out;
		$errors{$_}++ for $err =~ /(?:ERROR|FATAL|PANIC):  (\w{5}): /g;
		$errors{lost}++ if $err =~ /connection to server was lost|server closed the connection/;
	}
	note explain \%errors;
	note scalar(@acknowledged) . ' webhooks were acknowledged';
	cmp_ok(scalar @acknowledged, '>', 0, 'some webhooks were acknowledged');
	return (\%errors, \@acknowledged);
}

# How often what has been acknowledged is there, and what else is.
sub missing_and_more
{
	my ($node, $size, $acknowledged) = @_;

	return $node->safe_psql(
		'postgres', sprintf q{
		CREATE TEMP TABLE acknowledged AS
		SELECT account(a) AS account_id, substr(sha256(hook(a, n, %d)), 1, 16) AS digest
		FROM unnest('{%s}'::int[], '{%s}'::int[]) AS u (a, n);
		SELECT count(*) FILTER (WHERE l.event_id IS NULL), count(*) FILTER (WHERE a.digest IS NULL), count(l.event_id) - count(DISTINCT digest)
		FROM acknowledged AS a
		FULL JOIN (SELECT *, substr(sha256(body), 1, 16) AS digest FROM gigs.gig_event_log) AS l USING (account_id, digest)},
		$size, join(',', map { $_->[0] } @$acknowledged), join(',', map { $_->[1] } @$acknowledged));
}

# All again: what has been acknowledged is a duplicate, the others are new.
sub bring_again
{
	my ($node, $size, $acknowledged) = @_;

	return $node->safe_psql(
		'postgres', sprintf q{
		SELECT string_agg(format('%%s %%s', outcome, n), ', ' ORDER BY outcome)
		FROM (
			SELECT outcome, count(*) AS n
			FROM (
				SELECT array_agg(b) AS bs, array_agg(sig(b)) AS ss
				FROM unnest('{%s}'::int[], '{%s}'::int[]) AS u (a, n), hook(a, n, %d) AS b
			) AS a, gigs.ingest_gig_events(bs, ss)
			GROUP BY 1
		) AS c},
		join(',', map { $_->[0] } @$acknowledged), join(',', map { $_->[1] } @$acknowledged), $size);
}

# ---------------------------------------------------------------------------
# The tables' disk is full
# ---------------------------------------------------------------------------

my $node = start_node('data');
my $size = 40_000;
my $ballast = ballast('data', 8);

create_gigs($node, 'postgres');
mkdir "$disks/data/tables";
$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disks/data/tables'");
$node->safe_psql('postgres', "ALTER TABLE gigs.$_ SET TABLESPACE small")
  for qw(gig_event_log gig_account_sync gig_delivery gig_change);

my ($errors, $acknowledged) = fill($node, $size);
is(join(' ', sort keys %$errors), '53100', 'without room for the tables webhooks are refused for that reason');
is(missing_and_more($node, $size, $acknowledged), '0|0|0', '... what was acknowledged is there once, and nothing else');
unlink $ballast;
is(bring_again($node, $size, $acknowledged), 'duplicate ' . @$acknowledged, '... with some room, what comes again is known');
is($node->safe_psql('postgres', "SELECT outcome FROM hook(9, 7, $size) AS b, gigs.try_ingest_gig_event(b, sig(b))"), 'applied', '... and what is new is applied');
is(troubles($node, 'postgres'), '', '... all of which adds up');
$node->restart;
is(missing_and_more($node, $size, [ @$acknowledged, [ 9, 7 ] ]), '0|0|0', '... after a restart as well');
$node->stop;

# ---------------------------------------------------------------------------
# The WAL's disk is full, and the server goes down
# ---------------------------------------------------------------------------

mkdir "$disks/wal/pg_wal";
$node = start_node(
	'wal',
	{ extra => [ "--waldir=$disks/wal/pg_wal", '--wal-segsize=1' ] },
	# nothing is made room for by itself
	'max_wal_size = 1GB', "checkpoint_timeout = '1h'", 'min_wal_size = 2MB');
create_gigs($node, 'postgres');
$node->safe_psql('postgres', 'CHECKPOINT');
$ballast = ballast('wal', 8);

($errors, $acknowledged) = fill($node, $size);
ok($errors->{lost}, 'without room for WAL the server goes down');
like(slurp_file($node->logfile), qr/PANIC:.*No space left on device/, '... for that reason');
for (1 .. 600)
{
	last if !-e $node->data_dir . '/postmaster.pid';
	select undef, undef, undef, 0.1;
}
# it is gone already
$node->_update_pid(0);
unlink $ballast;
$node->start;
my ($missing, $more, $twice) = split /\|/, missing_and_more($node, $size, $acknowledged);
is($missing, '0', '... with some room it comes back, with what was acknowledged');
# a batch has three events, and the answer to each client may have been lost
cmp_ok($more, '<=', 3 * 4, '... and with no more than what it could not acknowledge any more');
is($twice, '0', '... nothing is there twice');
is(bring_again($node, $size, $acknowledged), 'duplicate ' . @$acknowledged, '... what comes again is known');
is($node->safe_psql('postgres', "SELECT outcome FROM hook(9, 7, $size) AS b, gigs.try_ingest_gig_event(b, sig(b))"), 'applied', '... and what is new is applied');
is(troubles($node, 'postgres'), '', '... all of which adds up');
$node->stop;

done_testing();
