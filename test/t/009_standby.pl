# Physical standbys: what they refuse and report, and that no event is lost or
# counted twice when one is promoted under load.
#
# GIGS_LONG raises the load.

use strict;
use warnings;

use FindBin;
use IPC::Run ();
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $nclients = 3;
my $nhooks = $ENV{GIGS_LONG} ? 20_000 : 1_500;
# An account remembers a thousand events.  Not a multiple of seven: see client_script().
my $naccounts = int($nhooks / 74);

# Returns what a client has printed of each event: account, number, event_id and
# outcome.
sub acknowledged
{
	my ($output) = @_;

	return map { [ split / / ] } grep { /^\d+ \d+ \d+ \w+$/ } split /\n/, $output;
}

# A client ingests single webhooks and some batches, and prints of each what is
# acknowledged.  It pauses while a standby refuses everything.
sub client_script
{
	my ($client, $first, $n) = @_;
	my $script = "SET client_min_messages = warning;\n";

	$script .= "LOAD 'gigs_webhooks';\nSET gigs_webhooks.direct_writes = off;\n" if $client == 1;
	for (my $i = $first; $i < $first + $n;)
	{
		my $account = $i % $naccounts;

		if ($i % 7 == 0)
		{
			$script .= sprintf q{
				SELECT concat_ws(' ', %d, o.n, r.event_id, r.outcome)
				FROM (
					SELECT array_agg(b ORDER BY n) AS bodies, array_agg(sig(b) ORDER BY n) AS sigs, array_agg(n ORDER BY n) AS ns
					FROM generate_series(%d, %d) AS n, hook(%d, n) AS b
				) AS a, gigs.ingest_gig_events(a.bodies, a.sigs) AS r, unnest(a.ns) WITH ORDINALITY AS o (n, ord)
				WHERE o.ord = r.ord;
				SELECT pg_sleep(0.05) WHERE pg_is_in_recovery();
			}, $account, $client * 1_000_000 + $i, $client * 1_000_000 + $i + 9, $account;
			$i += 10;
		}
		else
		{
			$script .= sprintf "SELECT concat_ws(' ', %d, %d, r.event_id, r.outcome) FROM hook(%d, %d) AS b, gigs.try_ingest_gig_event(b, sig(b)) AS r;\n",
			  $account, $client * 1_000_000 + $i, $account, $client * 1_000_000 + $i;
			$i++;
		}
	}
	return $script;
}

# Stops the server immediately while clients ingest.  Returns what was
# acknowledged.
sub kill_under_load
{
	my ($node, $first) = @_;
	my ($before) = $node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log');
	my $n = 4 * $nhooks;
	my @clients = map { start_client($node, 'postgres', client_script($_, $first, $n)) } 1 .. $nclients;
	my $goal = $before + $nclients * $nhooks / 3;
	$node->poll_query_until('postgres', "SELECT count(*) > $goal FROM gigs.gig_event_log")
	  or die 'clients do not ingest';
	$node->stop('immediate');
	my @acknowledged = map { acknowledged((finish_client($_))[0]) } @clients;
	note scalar(@acknowledged) . ' events were acknowledged';
	cmp_ok(scalar @acknowledged, '<', $nclients * $n, 'the server was stopped in the middle');
	return @acknowledged;
}

# Delivers all that was acknowledged again.  Returns the number of each outcome.
sub deliver_again
{
	my ($node, @acknowledged) = @_;

	return $node->safe_psql('postgres',
		sprintf q{SELECT take_all('{%s}', '{%s}')},
		join(',', map { $_->[0] } @acknowledged),
		join(',', map { $_->[1] } @acknowledged));
}

sub start_standby
{
	my ($name, $primary, $start) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup("for_$name");
	$standby->init_from_backup($primary, "for_$name", has_streaming => 1);
	$standby->start;
	return $standby;
}

# Waits until all is replayed that was received of a primary that is gone.
sub wait_for_replay
{
	my ($node) = @_;

	$node->poll_query_until('postgres',
		'SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = \'streaming\')'
		  . ' AND pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()')
	  or die 'the standby does not come to rest';
	return;
}

sub outcome { my ($node, $query) = @_; return answer($node, 'postgres', $query) }

# ---------------------------------------------------------------------------
# A standby
# ---------------------------------------------------------------------------

my $primary = start_node(
	'primary',
	{ allows_streaming => 'logical' },
	'max_connections = 30', 'shared_buffers = 16MB', 'wal_keep_size = 128MB',
	# the standby tries to connect again at once
	"wal_retrieve_retry_interval = '100ms'");

create_gigs($primary, 'postgres');
$primary->safe_psql(
	'postgres', q{
	CREATE EXTENSION amcheck;
	SELECT gigs.add_gig_secret('payroll', 'gone');
	SELECT gigs.retire_gig_secret('payroll', 'gone');
	SELECT gigs.add_gig_secret('payroll', 'going');
	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY, body bytea, signature text, outcome text, error text);
	INSERT INTO inbox (body, signature) SELECT b, sig(b) FROM hook(1, 1) AS b;
	CREATE TABLE triggered (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	SELECT gigs.create_gig_consumer('fetcher', parts => 3);
	SELECT gigs.ingest_gig_event(b, sig(b)) FROM (VALUES ('{"event":"gigs.moved","name":"payroll","data":{}}'::bytea)) AS v (b);
});
my $standby = start_standby('standby', $primary);

$primary->safe_psql('postgres', 'SELECT take_all(array_agg(n % 20), array_agg(n)) FROM generate_series(1, 200) AS n');
$primary->wait_for_catchup($standby);
is(rows_of($standby, 'postgres'), rows_of($primary, 'postgres'), 'a standby has all rows');
for my $direct ('on', 'off')
{
	my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;";

	for my $statement (
		'SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, 999) AS b',
		'SELECT outcome FROM hook(1, 999) AS b, gigs.try_ingest_gig_event(b, sig(b))',
		"SELECT take_all('{1}', '{6}')", "SELECT take_all('{1,2}', '{998,999}')")
	{
		like(outcome($standby, "$set $statement"), qr/^25006 /, "direct_writes $direct: a standby refuses: $statement");
	}
}
for my $statement (
	'INSERT INTO triggered (body, signature) SELECT b, sig(b) FROM hook(1, 999) AS b',
	"CALL gigs.drain_gig_inbox('inbox')",
	'SELECT gigs.rebuild_gig_sync()',
	'SELECT gigs.rebuild_gig_sync(account(1))',
	"SELECT gigs.prune_gig_events('1 day')",
	"SELECT gigs.add_gig_secret('payroll', 'another')",
	'SELECT gigs.retry_gig_quarantine()',
	"SELECT gigs.read_gig_work('fetcher')",
	'SELECT gigs.finish_gig_work(1)',
	"SELECT gigs.seek_gig_consumer('fetcher', 0)")
{
	like(outcome($standby, $statement), qr/^25006 /, "a standby refuses: $statement");
}
is(outcome($standby, "SELECT outcome, sqlstate FROM gigs.try_ingest_gig_event('{}'::bytea, NULL)"),
	'rejected|22023', 'what is no webhook is rejected on a standby, too');
is($standby->safe_psql('postgres', 'SELECT sum(accounts), sum(gigs) FROM gigs.gig_sync_summary'),
	$primary->safe_psql('postgres', 'SELECT sum(accounts), sum(gigs) FROM gigs.gig_sync_summary'),
	'reports work on a standby');
is($standby->safe_psql('postgres', 'SELECT count(*), count(user_id) FROM gigs.gig_event_history'),
	'200|200', '... and the parsed log');
# The WAL has a sequence up to 32 values ahead.
is($standby->safe_psql('postgres', q{SELECT parts, events_behind BETWEEN 200 AND 232 FROM gigs.gig_consumer_status}),
	'3|t', '... and consumers');
is($standby->safe_psql('postgres', q{SELECT gigs.gig_account_fetched('fetcher', account(1))}),
	'f', '... and what they have fetched');
is($standby->safe_psql('postgres', q{SELECT sum(events) FROM gigs.gig_event_counts('1 hour', now() - interval '1 day', now() + interval '1 day')}),
	'200', '... and counts');

# Sessions of the standby drop their caches when secrets change on the primary.
my $session = $standby->background_psql('postgres', on_error_stop => 0);

sub try_with
{
	my ($secret) = @_;

	return ask($session,
		"SELECT coalesce(sqlstate, outcome::text) FROM hook(1, 999) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text))");
}
is(try_with('gone'), '28000', 'a retired secret is refused on a standby');
is(try_with('going'), '25006', '... a valid one is not');
is(try_with('coming'), '28000', '... and one that does not exist yet is');
$primary->safe_psql('postgres', "SELECT gigs.retire_gig_secret('payroll', 'going'); SELECT gigs.add_gig_secret('payroll', 'coming')");
$primary->wait_for_catchup($standby);
is(try_with('going'), '28000', 'a session on a standby notices that a secret retires');
is(try_with('coming'), '25006', '... and that one is added');
$session->quit;

# ---------------------------------------------------------------------------
# Consumers
# ---------------------------------------------------------------------------

# Reads and finishes all batches, or leaves the first one leased.  Returns the
# number of their events.
sub work_off
{
	my ($node, $leave) = @_;
	my $events = 0;

	$node->safe_psql('postgres', q{
		CREATE TABLE IF NOT EXISTS work (server text, batch bigint, account_id uuid, events int, last_event_id bigint, finished boolean);});
	for (1 .. 1000)
	{
		my ($n) = $node->safe_psql('postgres', q{
			WITH read AS (
				INSERT INTO work SELECT } . "'" . $node->name . "'" . q{, batch, account_id, events, last_event_id, false
				FROM gigs.read_gig_work('fetcher', } . int($nhooks / 30) . q{) RETURNING *
			)
			SELECT sum(events) FROM read;});
		last if $n eq '';
		$events += $n;
		return $events if $leave;
		$node->safe_psql('postgres', q{
			SELECT gigs.finish_gig_work(batch) FROM (SELECT max(batch) AS batch FROM work) AS w;
			UPDATE work SET finished = true WHERE batch = (SELECT max(batch) FROM work)});
	}
	return $events;
}

is(work_off($primary), $primary->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> 'stale'}),
	'a consumer reads all events that are not stale');

# ---------------------------------------------------------------------------
# The primary fails under load, and the standby takes over
# ---------------------------------------------------------------------------

# Promotes a standby while clients try to ingest there.  Returns what was
# acknowledged to them.
sub promote_under_load
{
	my ($standby) = @_;
	my @clients = map { start_client($standby, 'postgres', client_script($_, 200_000, $nhooks)) } 1 .. $nclients;
	my $refused = qr/cannot execute .* in a read-only transaction|cannot acquire lock mode .* while recovery is in progress/;

	for my $client (@clients)
	{
		# it continues with the next webhook
		for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			last if slurp_file("$client->{files}/err") =~ $refused;
			select undef, undef, undef, 0.1;
		}
	}
	$standby->promote;

	my @answers = map { [ finish_client($_) ] } @clients;
	my @acknowledged = map { acknowledged($_->[0]) } @answers;
	my @errors = grep { !/$refused/ && !/^(SQL statement|PL|CONTEXT|HINT)|^\s/ } map { split /\n/, $_->[1] } @answers;

	is(scalar(grep { $_->[1] =~ $refused } @answers), $nclients, 'clients are refused before a standby is promoted');
	is(join("\n", @errors), '', '... for no other reason');
	cmp_ok(scalar @acknowledged, '>', $nclients * $nhooks / 10, '... and go on when it has been');
	note scalar(@acknowledged) . ' events were acknowledged by the promoted server';
	return @acknowledged;
}

# Promotes the standby of a server that was stopped under load, and checks that
# all is there.  Of what was acknowledged, an asynchronous standby may lack the
# last events.
sub take_over
{
	my ($standby, $synchronous, @acknowledged) = @_;
	my $log = q{SELECT event_id, account_id, encode(substr(sha256(body), 1, 16), 'hex') FROM gigs.gig_event_log WHERE outcome <> 'duplicate' ORDER BY event_id};
	my $title = $synchronous ? 'synchronous' : 'asynchronous';

	wait_for_replay($standby);
	my $rows = rows_of($standby, 'postgres');
	my @logged = split /\n/, $standby->safe_psql('postgres', $log);

	if ($synchronous)
	{
		push @acknowledged, promote_under_load($standby);
		my %there = map { $_ => 1 } split /\n/, $standby->safe_psql('postgres', $log);

		is(join("\n", grep { !$there{$_} } @logged), '', "$title: what a standby has in its log stays when it is promoted under load");
	}
	else
	{
		$standby->promote;
		is(rows_of($standby, 'postgres'), $rows, "$title: what a standby has stays when it is promoted");
	}
	is(troubles($standby, 'postgres'), '', '... and log and accounts agree');

	my ($last) = $standby->safe_psql('postgres', 'SELECT max(event_id) FROM gigs.gig_event_log');
	my ($deliveries) = $standby->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log');
	my ($leased) = $standby->safe_psql('postgres', q{SELECT coalesce(max(batch), 0) FROM gigs.gig_consumer});

	my %ids = map { my ($id, $body) = split /\|/, $_, 2; ($body => $id) } split /\n/, $standby->safe_psql('postgres', $log);
	my %expected = map { split /\|/ } split /\n/, $standby->safe_psql('postgres', sprintf q{
		SELECT format('%%s %%s', a, n), format('%%s,%%s', account(a), encode(substr(sha256(hook(a, n)), 1, 16), 'hex'))
		FROM unnest('{%s}'::int[], '{%s}'::int[]) AS u (a, n)},
		join(',', map { $_->[0] } @acknowledged), join(',', map { $_->[1] } @acknowledged));
	my ($there, $lost, $other) = (0, 0, 0);
	for my $event (@acknowledged)
	{
		my $body = $expected{"$event->[0] $event->[1]"};

		$body =~ s/,/|/;
		if (!exists $ids{$body}) { $lost++ }
		elsif ($ids{$body} == $event->[2]) { $there++ }
		else { $other++ }
	}
	is($other, 0, '... events have the ids that were acknowledged');
	is($lost, 0, '... nothing that was acknowledged is lost') if $synchronous;
	note "$lost acknowledged events did not reach the standby";
	# Events that the standby lacks may be stale now, after later ones.
	my %outcomes = (applied => 0, stale => 0, duplicate => 0,
		map { split / / } split /, /, deliver_again($standby, @acknowledged));
	is_deeply([ $outcomes{applied} + $outcomes{stale}, $outcomes{duplicate} ], [ $lost, $there ],
		'... delivered again, an event is new if the standby did not have it, or else a duplicate');
	is(deliver_again($standby, @acknowledged), 'duplicate ' . @acknowledged, '... and then a duplicate');
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'),
		$deliveries + 2 * @acknowledged, '... each is logged');
	is($standby->safe_psql('postgres', "SELECT count(*) FROM gigs.gig_event_log WHERE event_id <= $last"),
		$deliveries, '... ids continue after those that were given');

	# Consumers
	my ($behind) = $standby->safe_psql('postgres', q{
		SELECT count(*)
		FROM gigs.gig_event_log AS l
		JOIN gigs.gig_consumer AS c ON c.part = gigs.gig_consumer_part(l.account_id, c.parts)
		WHERE l.event_id > c.position AND l.outcome <> 'stale'});
	$standby->safe_psql('postgres', 'UPDATE gigs.gig_consumer SET leased_until = now() WHERE batch IS NOT NULL');
	is(work_off($standby), $behind, "... a consumer continues where it was, with $behind events");
	is($standby->safe_psql('postgres', q{SELECT events_behind FROM gigs.gig_consumer_status}), '0', '... up to the end of the log');
	like(outcome($standby, "SELECT gigs.finish_gig_work($leased)"), qr/^40001 /, '... and a batch of the server that failed is no longer leased')
	  if $leased;
	is(troubles($standby, 'postgres'), '', '... and log and accounts agree');
	is($standby->safe_psql('postgres',
			"SELECT string_agg(coalesce(sqlstate, outcome::text), ' ' ORDER BY s) FROM hook(6, 6) AS b, unnest('{coming,going,gone}'::text[]) AS s, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, s))"),
		'duplicate 28000 28000', '... retired secrets stay retired');
	return;
}

$primary->safe_psql('postgres', 'SELECT take_all(array_agg(n % 20), array_agg(n)) FROM generate_series(201, 260) AS n');
cmp_ok(work_off($primary, 1), '>', 0, 'a worker has a batch when the primary fails');
my @acknowledged = kill_under_load($primary, 1);
take_over($standby, 0, @acknowledged);

# The same with the server that has taken over, whose standby is synchronous.
my $second = start_standby('second', $standby);
$standby->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
$standby->reload;
$standby->poll_query_until('postgres', "SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication")
  or die 'the standby is not synchronous';
@acknowledged = kill_under_load($standby, 100_000);
take_over($second, 1, @acknowledged);

$second->stop;
done_testing();
