# Ingests webhooks that were received at earlier times, through
# ingest_gig_events() and drain_gig_inbox(), in any order and mixed with webhooks
# that are received now.  Compares results and tables with GigRules.
#
# Redeliveries are just within and just outside of the dedupe window, before and
# after the first delivery.  One account has more deliveries within a window than
# it can remember.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigEvents;
use GigRules;
use GigStream;
use GigTest qw(:DEFAULT :dice);

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
my $deliveries_wanted = $ENV{GIGS_EVENTS} || 1500;
my $hour = 3_600_000_000;
my $day = 24 * $hour;
my $window = 3 * $day;
my $now = 1_000_000 * time;

note "GIGS_SEED=$seed";

my $events = GigEvents->new(seed => $seed, accounts => 6, users => 3, gigs => 10);
my $rules = GigRules->new(window => $window);
my $stream = GigStream->new($events, $rules);

# ---------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------

# The time of the archive, which advances with every delivery.
my $clock = $now - 30 * $day;

# Intervals from a delivery to a redelivery.
my @gaps = (
	0, 1, $hour, 2 * $day,
	$window - 1, $window, $window + 1,
	1 - $window, -$window, -$window - 1,
	-$hour, 5 * $day);

# Returns a delivery and its time, which is undefined for the current time.
my @archived;

sub archived_event
{
	my ($delivery, $received_at);

	$clock += int rand $hour / 2;
	if (@archived && chance(0.4))
	{
		my $earlier = $archived[ -between(1, @archived > 80 ? 80 : scalar @archived) ];

		$delivery = $events->redeliver($earlier->[0]);
		$received_at = $earlier->[1] + pick(@gaps);
	}
	else
	{
		$delivery = $events->next_delivery;
		$received_at = chance(0.8) ? $clock : $clock - int rand 4 * $day;
	}
	return ($delivery, undef) if chance(0.1);
	# a time in the future counts as now
	return ($delivery, $now + pick($hour, 10 * $day)) if chance(0.03);
	push @archived, [ $delivery, $received_at ] if $delivery->{event};
	return ($delivery, $received_at);
}

sub time_literal
{
	my ($micros) = @_;

	return 'NULL::timestamptz' if !defined $micros;
	return sprintf "('epoch'::timestamptz + %d * interval '1 microsecond')", $micros;
}

# ---------------------------------------------------------------------------
# Ingesting
# ---------------------------------------------------------------------------

# Returns a result as psql prints it.
sub result_line
{
	my ($result) = @_;

	return join '|', map { defined $_ ? $_ : '' }
	  @$result{qw(outcome event_id sqlstate)};
}

sub inbox_line
{
	my ($result) = @_;

	return "$result->{outcome}|" . ($result->{sqlstate} || '');
}

sub ingest_batch
{
	my (@taken) = @_;
	my @literals = map { [ literals($_->{delivery}) ] } @taken;

	$stream->call(
		'ingest_gig_events',
		'SELECT outcome, event_id, sqlstate FROM gigs.ingest_gig_events(ARRAY['
		  . join(',', map { $_->[0] } @literals)
		  . '], ARRAY['
		  . join(',', map { $_->[1] } @literals)
		  . '], ARRAY['
		  . join(',', map { time_literal($_->{received_at}) } @taken)
		  . "]);\n",
		\@taken,
		\&result_line);
	return;
}

my $batches = 0;

# Drains rows with their times, or with the current time.
sub drain
{
	my ($has_times, @taken) = @_;
	my $batch = ++$batches;

	$stream->call(
		$has_times ? 'drain_gig_inbox, received_at' : 'drain_gig_inbox',
		'INSERT INTO backlog (batch, body, signature, "at that time") VALUES '
		  . join(
			', ',
			map {
				join ', ', "($batch", literals($_->{delivery}),
				  time_literal($has_times ? $_->{received_at} : $now - $day) . ')'
			} @taken)
		  . ";\nCALL gigs.drain_gig_inbox('backlog', batch => "
		  . between(1, 20)
		  . ($has_times ? ", received_at => 'at that time'" : '')
		  . ") \\g /dev/null\n"
		  . "SELECT outcome, left(error, 5) FROM backlog WHERE batch = $batch ORDER BY id;\n",
		\@taken,
		\&inbox_line);
	return;
}

# ---------------------------------------------------------------------------
# The stream
# ---------------------------------------------------------------------------

my $node = start_node('received_at');

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	CREATE TABLE backlog (
		id int GENERATED ALWAYS AS IDENTITY,
		batch int,
		"at that time" timestamptz,
		body bytea,
		signature text,
		outcome text,
		error text
	);
} . create_subscriptions());

my $session = $node->background_psql('postgres', on_error_stop => 0);

ask($session, 'SET client_min_messages = warning');
while ($stream->{ndeliveries} < $deliveries_wanted)
{
	my $way = rand;
	my @taken;

	$stream->add('SET gigs_webhooks.direct_writes = ' . pick('on', 'off') . ";\n")
	  if chance(0.1);
	if ($way < 0.1)
	{
		drain(0, map { $stream->taken((archived_event())[0]) } 1 .. between(1, 20));
		next;
	}
	if ($way < 0.2)
	{
		my @accounts = (shuffled(@{ $events->{accounts} }))[ 0 .. between(0, 5) ];

		$stream->reconcile([ map { $events->account_object($_) } @accounts ],
			pick($clock, $clock, $clock + 1, $clock - int rand 4 * $day, undef), chance(0.2));
		next;
	}
	@taken = map { $stream->taken(archived_event()) } 1 .. between(1, 30);
	if ($way < 0.4) { drain(1, @taken); }
	else { ingest_batch(@taken); }
}
$stream->flush_to($session);

# An account remembers a thousand deliveries.  The same event as a forgotten one is
# a new event.
my $account = $events->event->{account};
my @many = map {
	[ $events->deliver($events->event(account => $account)), $now - int rand $day ]
} 1 .. 1300;
my @redelivered = map { pick(@many) } 1 .. 150;

for my $direct ('off', 'on')
{
	$stream->add("SET gigs_webhooks.direct_writes = $direct;\n");
	ingest_batch(map { $stream->taken(@$_) } splice @many, 0, 325) for 1 .. 2;
}
ingest_batch(map { $stream->taken($events->redeliver($_->[0]), $_->[1]) }
	  @redelivered);
$stream->flush_to($session);
$stream->check($node, 'postgres');

cmp_ok(scalar @{ $rules->{accounts}{$account}{recent} },
	'==', 1000, 'an account remembers a thousand deliveries');
cmp_ok($rules->{accounts}{$account}{events},
	'>', 1300, '... and takes forgotten ones for new events');
is($node->safe_psql('postgres', 'SELECT accounts_skipped FROM gigs.rebuild_gig_sync()'),
	0, 'all accounts are rebuilt');
$rules->check_tables($node, 'postgres', 'rebuilt');

# ---------------------------------------------------------------------------
# Other windows
# ---------------------------------------------------------------------------

# Rebuilding applies the current window to all events, so that it is not tested
# after a change of the window.
for my $seconds (3600, 0, 7 * 86400)
{
	$rules->{window} = $window = $seconds * 1_000_000;
	@gaps = (0, 1, $window - 1, $window, $window + 1, 1 - $window, -$window);
	$stream = GigStream->new($events, $rules);
	ask($session, "SET gigs_webhooks.dedupe_window = '${seconds}s'");
	ingest_batch(map { $stream->taken(archived_event()) } 1 .. 20) for 1 .. 10;
	$stream->flush_to($session);
	note "a window of $seconds seconds";
	$stream->check($node, 'postgres');
}
$session->quit;

diag "GIGS_SEED=$seed" if !Test::More->builder->is_passing;
$node->stop;
done_testing();
