# Quarantines webhooks that cannot be parsed, and retries them.
#
# A later version of the extension could parse some of them.  To simulate that,
# their bodies are replaced by ones that this version can parse.  The results and
# the tables are compared with GigRules; received_at stays that of the quarantine.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigEvents;
use GigFaults;
use GigRules;
use GigStream;
use GigTest qw(:DEFAULT :dice);

my $seed = defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8;
my $deliveries_wanted = $ENV{GIGS_EVENTS} || 400;
my $events = GigEvents->new(seed => $seed, accounts => 8, users => 3, gigs => 10);
my $rules = GigRules->new;
my $stream = GigStream->new($events, $rules);

note "GIGS_SEED=$seed";

my $node = start_node('quarantine');

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
} . create_subscriptions());

# ---------------------------------------------------------------------------
# Quarantining
# ---------------------------------------------------------------------------

my $session = $node->background_psql('postgres', on_error_stop => 0);

# A batch for each day.
for my $days (reverse 0 .. $deliveries_wanted / 40)
{
	my $received_at = 1_000_000 * (time - $days * 86400);
	my @taken = map {
		$stream->taken(
			chance(0.5) ? odd_delivery($events) : $events->next_delivery,
			$received_at + $_)
	} 1 .. 40;
	my @literals = map { [ literals($_->{delivery}) ] } @taken;

	$stream->call(
		'ingest_gig_events',
		'SELECT outcome, event_id, sqlstate FROM gigs.ingest_gig_events(ARRAY['
		  . join(',', map { $_->[0] } @literals)
		  . '], ARRAY['
		  . join(',', map { $_->[1] } @literals)
		  . '], ARRAY(SELECT '
		  . "'epoch'::timestamptz + ($received_at + i) * interval '1 microsecond'"
		  . " FROM generate_series(1, 40) AS i));\n",
		\@taken,
		sub {
			join '|', map { defined $_ ? $_ : '' }
			  @{ $_[0] }{qw(outcome event_id sqlstate)};
		});
}
$stream->flush_to($session);
$session->quit;
$stream->check($node, 'postgres');

my $nrows = @{ $rules->{quarantine} };

cmp_ok($nrows, '>', 50, 'there are webhooks in the quarantine');
is($node->safe_psql('postgres', 'SELECT * FROM gigs.retry_gig_quarantine()'),
	"0|$nrows", 'rows that still cannot be parsed are kept');
$rules->check_tables($node, 'postgres', 'kept');

# ---------------------------------------------------------------------------
# Retrying
# ---------------------------------------------------------------------------

# Replace half of the bodies: by new events, events that were ingested before,
# events of other families, and bodies that cannot be parsed for another reason.
my @ids = split /\n/, $node->safe_psql('postgres',
	'SELECT quarantine_id FROM gigs.gig_quarantine ORDER BY 1');
my $sql = '';

for my $i (grep { chance(0.5) } 0 .. $#ids)
{
	my $row = $rules->{quarantine}[$i];
	my $now = chance(0.15) ? odd_delivery($events)
	  : chance(0.1) ? ignored_delivery($events)
	  : chance(0.4) ? $events->redeliver(pick(@{ $rules->{log} }))
	  : $events->deliver($events->event);

	# retrying verifies no signature
	$now = { %$now, verdict => 'quarantined' } if $now->{verdict} eq 'rejected';
	$row->{retried} = { map { $_ => $now->{$_} } qw(body name verdict sqlstate event) };
	$row->{body} = $now->{body};
	$sql .= 'UPDATE gigs.gig_quarantine SET body = '
	  . bytea_literal($now->{body})
	  . " WHERE quarantine_id = $ids[$i];\n";
}
$node->safe_psql('postgres', $sql);

# Retries the rows at some places of the quarantine with a query.
sub retry
{
	my ($title, $query, @places) = @_;
	my $nlogged = @{ $rules->{log} };
	my ($ingested, $kept) = (0, 0);
	my $result = $node->safe_psql('postgres', $query);
	my @logged = GigRules::logged($node, 'postgres');
	my %outcomes;

	splice @logged, 0, $nlogged;
	for my $place (@places)
	{
		my $i = $place - $ingested;
		my $row = $rules->{quarantine}[$i];
		my $is_event = $row->{retried} && $row->{retried}{verdict} eq 'accepted';
		my $outcome =
		  $rules->retry($i, $is_event ? (shift @logged || [0])->[0] : undef)->{outcome};

		$outcomes{$outcome}++;
		if ($outcome eq 'kept') { $kept++; }
		else
		{
			splice @ids, $i, 1;
			$ingested++;
		}
	}
	is($result, "$ingested|$kept", $title);
	return %outcomes;
}

for my $place (map { between(0, $#ids - 20) } 1 .. 20)
{
	retry("webhook $ids[$place] is retried",
		'SET gigs_webhooks.direct_writes = ' . pick('on', 'off')
		  . "; SELECT * FROM gigs.retry_gig_quarantine($ids[$place])",
		$place);
}
$rules->check_tables($node, 'postgres', 'single ones');
is($node->safe_psql('postgres', 'SELECT * FROM gigs.retry_gig_quarantine(0)'),
	'0|0', 'no row has this id');

my %outcomes =
  retry('all are retried', 'SELECT * FROM gigs.retry_gig_quarantine()', 0 .. $#ids);

$rules->check_tables($node, 'postgres', 'all');
is( join(
		', ', grep { !$outcomes{$_} } qw(applied stale duplicate ignored kept)),
	'',
	'every outcome occurred');
is($node->safe_psql('postgres', 'SELECT accounts_skipped FROM gigs.rebuild_gig_sync()'),
	0, 'all accounts are rebuilt');
$rules->check_tables($node, 'postgres', 'rebuilt');

diag "GIGS_SEED=$seed" if !Test::More->builder->is_passing;
$node->stop;
done_testing();
