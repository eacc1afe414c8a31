# A full disk, of the tables and of the WAL: what was acknowledged is stored once,
# nothing is stored by half, and with free space everything works again.
#
# The disks are small tmpfs, which can be mounted in a mount namespace only.  They
# vanish with the last process in it.  So the test executes itself again in such a
# namespace, if the kernel allows that.

use strict;
use warnings;

my ($disks, $why_not);

BEGIN
{
	# before PostgreSQL::Test redirects the output
	$disks = $ENV{GIGS_SMALL_DISKS};
	if (!defined $disks)
	{
		my $parent = $ENV{TESTDATADIR} || '.';
		my ($uid, $gid) = ($>, (split / /, $))[0]);

		# Mounting takes root in the namespace, and PostgreSQL refuses to run as
		# root.
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

# Occupies space, which is freed by deleting the file.
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

# Makes large webhooks: take_one() ingests one, take_three() a batch, and
# take_unknown() one of an event that goes to the quarantine.  They return what
# was acknowledged.
my $size = 40_000;

sub create_webhooks
{
	my ($node) = @_;

	create_gigs($node, 'postgres');
	$node->safe_psql(
		'postgres', sprintf q{
		CREATE FUNCTION big(client int, n int) RETURNS bytea LANGUAGE sql AS $$ SELECT hook(client, n, %1$d) $$;
		CREATE FUNCTION take_one(client int, n int) RETURNS SETOF text LANGUAGE sql AS $$
			SELECT concat_ws(' ', client, n, outcome) FROM big(client, n) AS b, gigs.try_ingest_gig_event(b, sig(b))
		$$;
		CREATE FUNCTION take_three(client int, n int) RETURNS SETOF text LANGUAGE sql AS $$
			SELECT concat_ws(' ', client, n + 1000 * ord, outcome)
			FROM (
				SELECT array_agg(b) AS bodies, array_agg(sig(b)) AS sigs
				FROM generate_series(1, 3) AS o, big(client, n + 1000 * o) AS b
			) AS a, gigs.ingest_gig_events(bodies, sigs)
		$$;
		CREATE FUNCTION unknown(client int, n int) RETURNS bytea LANGUAGE sql AS $$
			SELECT convert_to(replace(convert_from(big(client, n), 'UTF8'), '"event":"gigs.', '"event":"gigs.un'), 'UTF8')
		$$;
		CREATE FUNCTION take_unknown(client int, n int) RETURNS SETOF text LANGUAGE sql AS $$
			SELECT concat_ws(' ', client, n, outcome) FROM unknown(client, n) AS b, gigs.try_ingest_gig_event(b, sig(b))
		$$;
	}, $size);
	return;
}

# Ingests webhooks from several clients, more than there is space for.  Returns
# the number of each error, and what was acknowledged: lists of client, number and
# outcome.
my $nhooks = $ENV{GIGS_LONG} ? 2_000 : 140;

sub fill
{
	my ($node) = @_;
	my (@acknowledged, %errors);
	my @clients = map {
		my $client = $_;

		start_client($node, 'postgres',
			"LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = "
			  . ($client % 2 ? 'on' : 'off') . ";\n"
			  . join('', map {
				sprintf "SELECT %s(%d, %d);\n",
				  (qw(take_three take_one take_unknown take_one))[ $_ % 4 ],
				  $client, 10_000 * $client + $_
			} 1 .. $nhooks),
			'-v', 'VERBOSITY=verbose')
	} 1 .. 4;

	for (@clients)
	{
		my ($out, $err) = finish_client($_);

		push @acknowledged, map { [ split / / ] } grep { /^\d+ \d+ \w+$/ } split /\n/, $out;
		$errors{$_}++ for $err =~ /(?:ERROR|FATAL|PANIC):  (\w{5}): /g;
		$errors{lost}++ if $err =~ /connection to server was lost|server closed the connection/;
	}
	note explain \%errors;
	note scalar(@acknowledged) . ' webhooks were acknowledged';
	for my $outcome ('applied', 'quarantined')
	{
		cmp_ok(scalar(grep { $_->[2] eq $outcome } @acknowledged), '>', 0, "some webhooks were $outcome");
	}
	return (\%errors, \@acknowledged);
}

sub arrays
{
	my (@acknowledged) = @_;

	return map { my $i = $_; "'{" . join(',', map { $_->[$i] } @acknowledged) . "}'::int[]" } 0, 1;
}

# Counts, in the log and in the quarantine: what was acknowledged and is missing,
# what is stored and was not acknowledged, and what is stored twice.
sub missing_more_twice
{
	my ($node, $acknowledged) = @_;

	return $node->safe_psql(
		'postgres', join ';', map {
			my ($table, $body, @rows) = @$_;

			sprintf q{
			SELECT count(*) FILTER (WHERE s.digest IS NULL), count(*) FILTER (WHERE a.digest IS NULL),
				count(s.digest) - count(DISTINCT s.digest)
			FROM (SELECT sha256(%s(a, n)) AS digest FROM unnest(%s, %s) AS u (a, n)) AS a
			FULL JOIN (SELECT sha256(body) AS digest FROM gigs.%s WHERE body IS NOT NULL) AS s USING (digest)},
			  $body, arrays(@rows), $table;
		} (
			[ 'gig_event_log', 'big', grep { $_->[2] ne 'quarantined' } @$acknowledged ],
			[ 'gig_quarantine', 'unknown', grep { $_->[2] eq 'quarantined' } @$acknowledged ]));
}

# Ingests again what was applied.
sub ingest_again
{
	my ($node, $acknowledged) = @_;

	return $node->safe_psql('postgres', sprintf 'SELECT take_all(%s, %s)',
		arrays(grep { $_->[2] ne 'quarantined' } @$acknowledged));
}

sub works_again
{
	my ($node, $acknowledged) = @_;
	my $applied = grep { $_->[2] ne 'quarantined' } @$acknowledged;

	is(ingest_again($node, $acknowledged), "duplicate $applied", '... with free space, redeliveries are duplicates');
	is($node->safe_psql('postgres', 'SELECT take_one(9, 7); SELECT take_unknown(9, 8)'), "9 7 applied\n9 8 quarantined", '... and new webhooks are ingested');
	is(troubles($node, 'postgres'), '', '... log and accounts agree');
	return [ @$acknowledged, [ 9, 7, 'applied' ], [ 9, 8, 'quarantined' ] ];
}

# ---------------------------------------------------------------------------
# The tables' disk is full
# ---------------------------------------------------------------------------

my $node = start_node('data');
my $ballast = ballast('data', 8);

create_webhooks($node);
mkdir "$disks/data/tables";
$node->safe_psql(
	'postgres', q{
	SELECT gigs.create_gig_consumer('fetch', parts => 2);
	CREATE TABLE done (batch bigint, events int, gigs text);
	-- processes a batch, and stores what stands for large gigs; returns the number of accounts
	CREATE FUNCTION consume() RETURNS bigint LANGUAGE plpgsql AS $$
	DECLARE
		read record;
	BEGIN
		WITH work AS (
			INSERT INTO done
			SELECT w.batch, w.events, g.gigs
			FROM gigs.read_gig_work('fetch', 20) AS w,
				(SELECT string_agg(md5(i::text), '') AS gigs FROM generate_series(1, 4000) AS i) AS g
			RETURNING batch
		)
		SELECT count(*) AS accounts, gigs.finish_gig_work(max(batch)) INTO read FROM work HAVING count(*) > 0;
		RETURN coalesce(read.accounts, 0);
	END
	$$;
});
$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$disks/data/tables'");
$node->safe_psql('postgres', "ALTER TABLE $_ SET TABLESPACE small")
  for map({ "gigs.$_" } qw(gig_event_log gig_account_sync gig_quarantine gig_consumer gig_consumer_retry)), 'done';

my ($errors, $acknowledged) = fill($node);
is(join(' ', sort keys %$errors), '53100', 'without space for the tables webhooks are refused for that reason');
is(missing_more_twice($node, $acknowledged), "0|0|0\n0|0|0", '... what was acknowledged is stored once, and nothing else');


# The consumer stores its results on the same disk.
like(answer($node, 'postgres', 'SELECT consume()'), qr/^53100 /, 'without space a consumer fails');
is($node->safe_psql('postgres', 'SELECT count(*) FROM done'), '0', '... and leaves nothing');

unlink $ballast;
$acknowledged = works_again($node, $acknowledged);
1 while $node->safe_psql('postgres', 'SELECT consume()') > 0;
is($node->safe_psql('postgres', 'SELECT sum(events) - (SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> \'stale\') FROM done'),
	'0', '... and the consumer has processed each event once');
$node->restart;
is(missing_more_twice($node, $acknowledged), "0|0|0\n0|0|0", '... all of which is stored after a restart');
$node->stop;

# ---------------------------------------------------------------------------
# The WAL's disk is full, and the server goes down
# ---------------------------------------------------------------------------

mkdir "$disks/wal/pg_wal";
$node = start_node(
	'wal',
	{ extra => [ "--waldir=$disks/wal/pg_wal", '--wal-segsize=1' ] },
	# no checkpoint removes WAL
	'max_wal_size = 1GB', "checkpoint_timeout = '1h'", 'min_wal_size = 2MB');
create_webhooks($node);
$node->safe_psql('postgres', 'CHECKPOINT');
$ballast = ballast('wal', 8);

($errors, $acknowledged) = fill($node);
ok($errors->{lost}, 'without space for WAL the server goes down');
like(slurp_file($node->logfile), qr/PANIC:.*No space left on device/, '... for that reason');
for (1 .. 600)
{
	last if !-e $node->data_dir . '/postmaster.pid';
	select undef, undef, undef, 0.1;
}
$node->_update_pid(0);
unlink $ballast;
$node->start;

# The answer to each client may have been lost, and a batch has three events.
my ($missing, $more, $twice) = (0, 0, 0);
for (split /\n/, missing_more_twice($node, $acknowledged))
{
	my @counts = split /\|/;

	$missing += $counts[0];
	$more += $counts[1];
	$twice += $counts[2];
}
is($missing, 0, '... with free space it recovers, with what was acknowledged');
cmp_ok($more, '<=', 3 * 4, '... and with no more than what it could not acknowledge any more');
is($twice, 0, '... nothing is stored twice');
works_again($node, $acknowledged);
$node->stop;

done_testing();
