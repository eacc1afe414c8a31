# From Argyle to the table of gigs: whatever dies, is late, doubled or lost on the
# way, the table has in the end what the stand-in for Argyle has.
#
# GIGS_LONG has gigs change for an hour, or for GIGS_SECONDS.

use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigMirror;
use GigTest qw(:DEFAULT :dice);

plan skip_all => 'no consumer can be run: neither Python with psycopg nor Node with npm is there'
  if !GigMirror::commands();
plan skip_all => 'curl or jq is missing' if system('(curl --version && jq --version) >/dev/null 2>&1') != 0;

my $seconds = $ENV{GIGS_SECONDS} || ($ENV{GIGS_LONG} ? 3600 : 45);
my $node = start_node('mirror', 'restart_after_crash = on', "log_min_messages = 'fatal'", 'max_connections = 60');
my $mirror = GigMirror->new($node,
	accounts => 300, gigs => 20, rate => 60, gone => 0.003, sync_seconds => 10,
	doubled => 0.1, late => 0.2, late_by => 3, broken => 0.02, limited => 0.02, slow => 0.01, slow_by => 1);

# ---------------------------------------------------------------------------
# Deaths
# ---------------------------------------------------------------------------

sub enough_happened
{
	my $happened = $mirror->happened;
	my $counts = $mirror->counts;

	return !(grep { $_ == 0 } values %$happened)
	  && !(grep { $counts->{$_} <= 50 } qw(doubled late redelivered))
	  && $counts->{changes} > 30 * $seconds;
}

# On a machine that is busy, this takes longer.
my $end = time + $seconds;
while (time < $end || !enough_happened())
{
	die 'too little has happened' if time > $end + $PostgreSQL::Test::Utils::timeout_default;
	$mirror->disturb;
	$mirror->connect if chance(0.3);
	sleep rand 1.5;
}
$mirror->settle;
my $counts = $mirror->counts;
my ($gigs, $differences) = $mirror->gigs_and_differences;
my ($acknowledged, $lost) = $mirror->acknowledged_and_lost;
my $happened = $mirror->happened;

# A long run is made for these figures.
my $tell = $ENV{GIGS_LONG} ? \&diag : \&note;
$tell->(join ', ', map { "$_ $happened->{$_}" } sort keys %$happened);
$tell->(join ', ', map { "$_ $counts->{$_}" } grep { !ref $counts->{$_} } sort keys %$counts);
$tell->("$gigs gigs, $acknowledged webhooks acknowledged");
cmp_ok($happened->{$_}, '>', 0, "$_ has happened") for sort keys %$happened;
cmp_ok($counts->{$_}, '>', 50, "webhooks were $_") for qw(doubled late redelivered);
cmp_ok($counts->{changes}, '>', 30 * $seconds, 'gigs have changed all the time');
cmp_ok($gigs, '>', 3000, 'there are thousands of gigs');
is($differences, 0, 'the table has all of them as they are');
is($acknowledged, $counts->{delivered}, 'webhooks have been acknowledged');
is($lost, 0, '... and are all in the log');
is(troubles($node, 'mirror'), '', 'log and accounts agree');

# ---------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------

$mirror->set(lost => 0.3, late_by => 1, gone => 0);
$mirror->change(500);
$mirror->settle;
(undef, $differences) = $mirror->gigs_and_differences;
cmp_ok($differences, '>', 10, 'with webhooks lost, the table differs');
cmp_ok($mirror->reconcile, '>', 100, '... until accounts are reconciled');
$mirror->wait_for_consumers;
is(($mirror->gigs_and_differences)[1], 0, '... once');
is(($mirror->acknowledged_and_lost)[1], 0, 'what was acknowledged is in the log still');
is(troubles($node, 'mirror'), '', 'log and accounts agree');
is(join(' ', $mirror->stop), '0 0 0 0', 'everything ends in order');
$node->stop;

done_testing();
