# Ingests a random stream of webhooks through every function that ingests, and
# compares the results and the tables with an independent implementation of the
# rules (GigRules).
#
# Sessions with different settings alternate.  Transactions are committed, rolled
# back, or rolled back to a savepoint.
#
# A failure prints the seed.  GIGS_SEED repeats a run, GIGS_EVENTS makes it
# longer.

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
my $deliveries_wanted = $ENV{GIGS_EVENTS} || 3000;
my $events = GigEvents->new(seed => $seed);
my $rules = GigRules->new;
my $stream = GigStream->new($events, $rules);

note "GIGS_SEED=$seed";

# ---------------------------------------------------------------------------
# Ingesting
# ---------------------------------------------------------------------------

my $columns = 'outcome, event_id, event, account_id, sqlstate';

# Returns a result as psql prints it.  The event_id of an event that was rolled
# back is not known.
sub result_line
{
	my ($result) = @_;
	my $event = $result->{event} || {};

	return join '|', $result->{outcome},
	  defined $result->{event_id} ? $result->{event_id} : $result->{event} ? '*' : '',
	  map { defined $_ ? $_ : '' } $event->{event}, $event->{account},
	  $result->{sqlstate};
}

# Returns the outcome of an inbox row as psql prints it.
sub inbox_line
{
	my ($result) = @_;

	return "$result->{outcome}|" . ($result->{sqlstate} || '');
}

sub body_and_signature
{
	my ($taken, $is_text) = @_;
	my ($body, $signature) = literals($taken->{delivery});

	return $is_text ? "convert_from($body, 'UTF8'), $signature" : "$body, $signature";
}

sub rejection
{
	my (@taken) = @_;
	my ($rejected) = grep { $_->{delivery}{verdict} eq 'rejected' } @taken;

	return $rejected ? $rejected->{delivery}{sqlstate} : '00000';
}

my $batches = 0;

# Each function adds a call and returns the SQLSTATE that it must end with.
my %ways = (
	ingest => sub {
		my $is_text = chance(0.3);
		my ($taken) = $stream->take(1, $is_text);
		my $sqlstate = rejection($taken);

		$stream->call(
			$is_text ? 'ingest_gig_event(text)' : 'ingest_gig_event(bytea)',
			'SELECT gigs.ingest_gig_event('
			  . body_and_signature($taken, $is_text)
			  . ");\n\\echo :SQLSTATE\n",
			[$taken],
			sub { return $sqlstate eq '00000' ? $_[0]{outcome} : () },
			$sqlstate);
		return $sqlstate;
	},
	try => sub {
		my $is_text = chance(0.3);

		try_delivery($stream->take(1, $is_text), $is_text);
		return '00000';
	},
	batch => sub {
		my @taken = $stream->take(chance(0.05) ? between(1, 200) : between(1, 12));
		my @literals = map { [ literals($_->{delivery}) ] } @taken;
		my $ord = 0;

		$stream->call(
			'ingest_gig_events',
			"SELECT ord, $columns FROM gigs.ingest_gig_events(ARRAY["
			  . join(',', map { $_->[0] } @literals)
			  . '], ARRAY['
			  . join(',', map { $_->[1] } @literals)
			  . "]);\n",
			\@taken,
			sub { return ++$ord . '|' . result_line(@_) });
		return '00000';
	},
	insert => sub {
		my $is_text = chance(0.3);
		my @taken = $stream->take(between(1, 8), $is_text);

		$stream->call(
			'gig_inbox_ingest, INSERT',
			'INSERT INTO ' . ($is_text ? 'text_inbox' : 'inbox')
			  . ' (body, signature) VALUES '
			  . join(', ', map { '(' . body_and_signature($_, $is_text) . ')' } @taken)
			  . " RETURNING outcome, left(error, 5);\n",
			\@taken,
			\&inbox_line);
		return '00000';
	},
	reconcile => sub {
		my @accounts = (shuffled(@{ $events->{accounts} }))[ 0 .. between(0, 4) ];

		push @accounts, GigEvents::random_uuid() if chance(0.1);
		$stream->reconcile([ map { $events->account_object($_) } @accounts ],
			chance(0.1) ? 1_600_000_000_000_000 + int rand 1e14 : undef, chance(0.2));
		return '00000';
	},
	copy => sub {
		my @taken = $stream->take(between(1, 15));
		my $batch = ++$batches;

		$stream->call(
			'gig_inbox_ingest, COPY',
			"COPY inbox (batch, body, signature) FROM stdin;\n"
			  . join('', map { "$batch\t" . copy_columns(@{ $_->{delivery} }{qw(body signature)}) . "\n" } @taken)
			  . "\\.\nSELECT outcome, left(error, 5) FROM inbox WHERE batch = $batch ORDER BY id;\n",
			\@taken,
			\&inbox_line);
		return '00000';
	},
	# without a column for the outcome, a rejection is an error
	strict => sub {
		my $rollback = $stream->savepoint;
		my @taken = $stream->take(between(1, 6));
		my $sqlstate = rejection(@taken);

		$stream->call(
			'gig_inbox_ingest, no outcome',
			'INSERT INTO strict_inbox VALUES '
			  . join(', ', map { '(' . body_and_signature($_) . ')' } @taken)
			  . ";\n\\echo :SQLSTATE\n",
			\@taken,
			undef,
			$sqlstate);
		$rollback->() if $sqlstate ne '00000';
		return $sqlstate;
	});
my @way_names = sort keys %ways;

sub try_delivery
{
	my ($taken, $is_text) = @_;

	$stream->call(
		$is_text ? 'try_ingest_gig_event(text)' : 'try_ingest_gig_event(bytea)',
		"SELECT $columns FROM gigs.try_ingest_gig_event("
		  . body_and_signature($taken, $is_text) . ");\n",
		[$taken],
		\&result_line);
	return;
}

# Adds a drain, which cannot be in a transaction because it commits.
sub drain
{
	my @taken = $stream->take(between(1, 40));
	my $batch = ++$batches;

	$stream->call(
		'drain_gig_inbox',
		"COPY backlog (batch, body, signature) FROM stdin;\n"
		  . join('', map { "$batch\t" . copy_columns(@{ $_->{delivery} }{qw(body signature)}) . "\n" } @taken)
		  . "\\.\nCALL gigs.drain_gig_inbox('public.backlog', batch => "
		  . between(1, 20)
		  . ") \\g /dev/null\n"
		  . "SELECT outcome, left(error, 5) FROM backlog WHERE batch = $batch ORDER BY id;\n",
		\@taken,
		\&inbox_line);
	return;
}

# ---------------------------------------------------------------------------
# Transactions
# ---------------------------------------------------------------------------

my %transactions;

# Adds calls at random.  Stops at one that raises an error, and returns false.
sub some_calls
{
	my ($n) = @_;

	for (1 .. $n)
	{
		return 0 if $ways{ pick(@way_names) }->() ne '00000';
	}
	return 1;
}

sub transaction
{
	my $rollback = $stream->savepoint;
	my $good;

	$stream->add("BEGIN;\n");
	$good = some_calls(between(1, 4));
	if ($good && chance(0.3))
	{
		my $rollback_to = $stream->savepoint;

		$stream->add("SAVEPOINT s;\n");
		$good = some_calls(between(1, 3));
		if (!$good || chance(0.6))
		{
			$stream->add("ROLLBACK TO s;\n");
			$rollback_to->();
			$good = 1;
			$transactions{'rolled back to a savepoint'}++;
		}
		$good &&= some_calls(between(1, 2));
	}
	if (!$good || chance(0.3))
	{
		$stream->add("ROLLBACK;\n");
		$rollback->();
		$transactions{ $good ? 'rolled back' : 'failed' }++;
	}
	else
	{
		$stream->add("COMMIT;\n");
		$transactions{'committed'}++;
	}
	return;
}

# Ingests an event with a snapshot that is older than another session's commit.
# It must fail if the other session has updated or created the account.
sub old_snapshot
{
	my ($old, $other) = @_;

	$stream->add("BEGIN ISOLATION LEVEL REPEATABLE READ;\n"
		  . "SELECT FROM gigs.gig_account_sync LIMIT 1 \\g /dev/null\n");
	$stream->flush_to($old);
	my @accounts = map { $events->next_event->{event}{account} } 1 .. 2;
	my $delivery = $events->deliver($events->event(account => $accounts[0]));
	my $is_late = chance(0.3);
	my $late = $events->deliver(
		$events->event(account => $accounts[ $is_late ? 0 : 1 ]));

	$is_late ||= $accounts[0] eq $accounts[1];
	try_delivery($stream->taken($delivery));
	$stream->flush_to($other);

	my ($body, $signature) = literals($late);

	$stream->call(
		'REPEATABLE READ',
		"SELECT $columns FROM gigs.try_ingest_gig_event($body, $signature);\n"
		  . "\\echo :SQLSTATE\n",
		$is_late ? [] : [ $stream->taken($late) ],
		\&result_line,
		$is_late ? '40001' : '00000');
	$stream->add($is_late ? "ROLLBACK;\n" : "COMMIT;\n");
	$transactions{ $is_late ? 'too late' : 'repeatable read' }++;
	$stream->flush_to($old);
	return;
}

# ---------------------------------------------------------------------------
# Sessions
# ---------------------------------------------------------------------------

my $node = start_node('stream');
my @sessions;

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	CREATE TABLE inbox (
		id int GENERATED ALWAYS AS IDENTITY,
		batch int,
		body bytea,
		signature text,
		outcome gigs.gig_ingest_outcome,
		error text
	);
	CREATE TABLE backlog (LIKE inbox INCLUDING ALL);
	CREATE TABLE text_inbox (body text, signature text, outcome text, error text);
	CREATE TABLE strict_inbox (body bytea, signature text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE TRIGGER ingest BEFORE INSERT ON text_inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE TRIGGER ingest BEFORE INSERT ON strict_inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();

	CREATE ROLE receiver;
	SELECT gigs.grant_gig_receiver('receiver');
	GRANT EXECUTE ON PROCEDURE gigs.drain_gig_inbox TO receiver;
	GRANT EXECUTE ON FUNCTION gigs.reconcile_gig_accounts(json, timestamptz, boolean) TO receiver;
	GRANT INSERT, SELECT, UPDATE ON inbox, text_inbox, strict_inbox, backlog TO receiver;
	CREATE SCHEMA trap AUTHORIZATION receiver;
	CREATE TABLE trap.gig_account_sync ();
	CREATE FUNCTION trap.unnest(uuid[]) RETURNS SETOF uuid LANGUAGE sql
		AS 'SELECT NULL::uuid';
} . create_subscriptions());

for my $settings (
	'',
	"SET gigs_webhooks.direct_writes = off;",
	"SET default_transaction_isolation = 'repeatable read';",
	# date-times must not depend on the session's settings
	"SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'SQL, DMY'; SET bytea_output = 'escape';",
	'SET ROLE receiver; SET search_path = trap, pg_catalog, public;')
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	push @sessions, $session;
	ask($session,
		"SET client_encoding = 'UTF8'; SET client_min_messages = warning; $settings\n"
		  . '\set VERBOSITY sqlstate');
}

# What the random choices have not brought about yet.
sub missing_transactions
{
	return grep { !$transactions{$_} } 'committed', 'rolled back',
	  'rolled back to a savepoint', 'failed', 'repeatable read', 'too late';
}

sub missing_outcomes
{
	return grep { !$stream->{outcomes}{$_} } 'applied', 'stale',
	  'duplicate', 'ignored',
	  'new', 'state', 'snapshot', 'updated_at', 'everything', 'not reconciled',
	  '0A000', '22003', '22004', '22007', '22008', '22021', '22023', '22032',
	  '22P02', '22P05', '28000', '54000';
}

while ($stream->{ndeliveries} < $deliveries_wanted
	|| $stream->{ndeliveries} < 5 * $deliveries_wanted && (missing_transactions() || missing_outcomes()))
{
	my $which = between(0, $#sessions);

	if (chance(0.2))
	{
		old_snapshot($sessions[0], $sessions[ $which || 1 ]);
		next;
	}
	for (1 .. between(1, 12))
	{
		if (chance(0.25)) { transaction(); }
		elsif (chance(0.05)) { drain(); }
		else { some_calls(1); }
	}
	$stream->flush_to($sessions[$which]);
}
$_->quit for @sessions;

# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

$stream->check($node, 'postgres');

my $naccounts = keys %{ $rules->{accounts} };

is($node->safe_psql('postgres', 'SELECT * FROM gigs.rebuild_gig_sync()'),
	"$naccounts|0", 'all accounts are rebuilt');
$rules->check_tables($node, 'postgres', 'rebuilt');
$node->safe_psql('postgres', 'TRUNCATE gigs.gig_account_sync');
is($node->safe_psql('postgres', 'SELECT * FROM gigs.rebuild_gig_sync()'),
	"$naccounts|0", 'accounts that are gone are rebuilt');
$rules->check_tables($node, 'postgres', 'rebuilt from nothing');

# Fail if a case did not occur.
note "$_: $transactions{$_}" for sort keys %transactions;
note "$_: $stream->{outcomes}{$_}" for sort keys %{ $stream->{outcomes} };
is(join(', ', missing_transactions()), '', 'every kind of transaction occurred');
is(join(', ', missing_outcomes()), '', 'every outcome occurred');

diag "GIGS_SEED=$seed" if !Test::More->builder->is_passing;
$node->stop;
done_testing();
