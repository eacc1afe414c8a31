# The whole server crashes under load, again and again: nothing that it has
# acknowledged is lost, and nothing is there by half.
#
# Clients ingest through all entry points and workers process events as a consumer,
# and note what is acknowledged to them.  All processes of the server are killed
# with SIGKILL, or it is stopped immediately.  After its recovery everything that
# was acknowledged must be there; what was in flight must be there as a whole or
# not at all.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigCrash;
use GigTest qw(:DEFAULT :dice);

my $test = GigCrash->new(name => 'crash', kills => 2);
my $server = $test->server;

$test->run(
	'killed' => [ sub { $server->kill_all }, sub { $server->stop_wal_writer } ],
	'stopped immediately' => [ sub { $server->stop_immediately } ]);

# A commit that nothing else writes to disk, and that nothing follows.
my %entries = (
	ingest_gig_event => 'SELECT gigs.ingest_gig_event(%s, %s)',
	try_ingest_gig_event => 'SELECT outcome FROM gigs.try_ingest_gig_event(%s, %s)',
	ingest_gig_events => 'SELECT outcome FROM gigs.ingest_gig_events(ARRAY[%s], ARRAY[%s])',
	inbox => 'INSERT INTO inbox (body, signature) VALUES (%s, %s) RETURNING outcome',
	drain => "INSERT INTO backlog (body, signature) VALUES (%s, %s) RETURNING 'applied'");
my @cases = map { ([ $_, 'on' ], [ $_, 'off' ]) } sort keys %entries;

# only some of them, unless there is time
@cases = (shuffled(@cases))[ 0 .. 3 ] if !$ENV{GIGS_LONG};
for my $case (Test::More->builder->is_passing ? @cases : ())
{
	my ($entry, $direct) = @$case;
	my $id = "alone.0.$entry $direct";
	my $admin = $server->admin;

	$id .= '+' while $test->clients->delivery_of($id)->{is_unknown};
	$admin->rows("SET gigs_webhooks.direct_writes = $direct");
	$admin->rows('CHECKPOINT');
	$server->stop_wal_writer;
	my $told = $admin->value(
		sprintf $entries{$entry}, $test->clients->item_literals({ id => $id, mark => '+' }));
	$admin->rows(q{CALL gigs.drain_gig_inbox('backlog')}) if $entry eq 'drain';
	$server->kill_all;
	$server->connect;
	like(
		$told . ' ' . $server->admin->value(
			"SELECT count(*) FROM gigs.gig_event_log WHERE body LIKE '%\"$id\"%'"),
		qr/^(applied|stale) 1$/,
		"$entry, direct_writes=$direct: a single event is there");
}

$test->end;
done_testing();
