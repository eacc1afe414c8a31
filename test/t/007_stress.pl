# Sixteen concurrent sessions ingest events of a few accounts, as single webhooks,
# batches, through inboxes and drains, while others consume, report, rebuild,
# prune, retry and change secrets.  No event may be lost or counted twice, nothing
# may deadlock, and the log must be in the order of application.
#
# Account and available_count identify an event.  Each is delivered many times, by
# several subscriptions and with different bytes.
#
# GIGS_STRESS_SECONDS makes it longer, GIGS_LONG three minutes.  A failure prints
# the seed; GIGS_SEED repeats the webhooks, though not the order of the sessions.

use strict;
use warnings;

use Digest::MD5 qw(md5 md5_hex);
use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::RealBin;
use GigRules;
use GigTest qw(:DEFAULT :dice);
use GigWorkers;

my $seed = int(defined $ENV{GIGS_SEED} ? $ENV{GIGS_SEED} : time ^ $$ << 8);
my $seconds = $ENV{GIGS_STRESS_SECONDS} || ($ENV{GIGS_LONG} ? 180 : 8);

note "GIGS_SEED=$seed";

# ---------------------------------------------------------------------------
# Webhooks
# ---------------------------------------------------------------------------

sub uuid { return join '-', unpack 'A8 A4 A4 A4 A12', md5_hex(join '/', $seed, @_) }

# Half of the accounts differ in their last bytes only.
my @accounts = map {
	my $id = uuid('account', $_);

	substr $id, 0, 18, 'aaaaaaaa-bbbb-4ccc' if $_ % 2;
	$id;
} 1 .. 8;

# Accounts whose events are so old that they are pruned.
my @old_accounts = map { uuid('old', $_) } 1 .. 100;

# Events up to this number were received before the dedupe window as well.
my $nold = 50;

my @kinds = (('updated') x 8, ('removed') x 5, ('added') x 3,
	('partially_synced') x 4, 'fully_synced');

# Returns a delivery of an account's event n.
sub delivery
{
	my ($account, $n, %as) = @_;
	my @r = unpack 'N4', md5("$seed/$account/$n");
	my $kind = $kinds[ $r[0] % @kinds ];
	my $name = $as{name} || pick('unsigned', 'signed', 'rotated');
	my @data = (
		"\"account\":\"$account\"",
		'"user":"' . uuid($account, 'user') . '"',
		"\"available_count\":$n",
		'"available_to":' . ($r[2] % 3 ? '"2024-01-01T00:00:00Z"' : 'null'));

	push @data, '"days_synced":' . $r[3] % 400 if $kind eq 'partially_synced';
	push @data, "\"${kind}_count\":" . (1 + $r[3] % 5)
	  if $kind =~ /^(added|updated|removed)$/;
	push @data,
	  "\"${kind}_gigs\":["
	  . join(',', map { '"' . uuid($account, 'gig', int($n / 4) + $_) . '"' } 0 .. $r[1] % 3)
	  . ']'
	  if $kind =~ /^(updated|removed)$/;
	push @data, '"item_id":' . int rand 1000 if chance(0.5);
	push @data, '"available_count":-1' if $as{is_odd};

	my $body = "{\"event\":\"gigs.$kind\",\"name\":\"$name\",\"data\":{"
	  . join(pick(',', ', '), $as{is_odd} ? @data : shuffled(@data)) . '}}';
	my $signature = $name eq 'unsigned' ? undef : sign($body, $as{secret} || 'always');

	return {
		account => $account,
		n => $n,
		body => $body,
		signature => $signature,
		arguments => bytea_literal($body) . ', ' . text_literal($signature)
	};
}

# The numbers that a worker sends are near this one.  It grows about as fast in all
# workers, so that they send the same events.
my $place = 0;

sub next_delivery
{
	$place += 0.05;
	return delivery(uuid('new', int($place) - between(0, 3)), between(0, 2))
	  if chance(0.05);
	return delivery(pick(@accounts), between(1, $nold)) if chance(0.1);
	return delivery(pick(@accounts), $nold + 1 + int($place) + between(0, 9));
}

sub several_deliveries
{
	my @deliveries = map { next_delivery() } 1 .. pick(2, 3, 4, 6, 20);

	push @deliveries, pick(@deliveries) if chance(0.5);
	return @deliveries;
}

# ---------------------------------------------------------------------------
# Statements of the sessions
# ---------------------------------------------------------------------------

sub try_statement
{
	return "SELECT outcome, event_id FROM gigs.try_ingest_gig_event($_[0]{arguments})";
}

sub batch_statement
{
	return 'SELECT outcome, event_id, sqlstate FROM gigs.ingest_gig_events(ARRAY['
	  . join(',', map { bytea_literal($_->{body}) } @_)
	  . '], ARRAY['
	  . join(',', map { text_literal($_->{signature}) . '::text' } @_)
	  . ']) ORDER BY ord';
}

sub insert_statement
{
	my ($inbox, @deliveries) = @_;

	return "INSERT INTO $inbox (account_id, n, body, signature) VALUES " . join ', ',
	  map { "('$_->{account}', $_->{n}, $_->{arguments})" } @deliveries;
}

sub copy_statement
{
	return [
		'COPY inbox (account_id, n, body, signature) FROM stdin',
		join '',
		map {
			join("\t", @$_{qw(account n)}, copy_columns(@$_{qw(body signature)})) . "\n"
		} @_
	];
}

# A trigger ingests row by row, so that rows must be in the order of accounts, and
# these must exist, or statements would deadlock.
sub deliveries_in_order
{
	my %exists = map { $_ => 1 } @accounts;

	return sort { $a->{account} cmp $b->{account} }
	  grep { $exists{ $_->{account} } } delivery(pick(@accounts), 1), several_deliveries();
}

# Notes the results of deliveries, if the statement has succeeded.
sub acknowledge_all
{
	my ($rows, @deliveries) = @_;

	return if !$rows;
	acknowledge(@{ $deliveries[$_] }{qw(account n)}, @{ $rows->[$_] }[ 0, 1 ])
	  for 0 .. $#deliveries;
	return;
}

my $newcomers = 0;
my $digest = "SELECT md5(string_agg(a::text, ',' ORDER BY account_id)) FROM gigs.gig_account_sync AS a";

my %work = (
	single => sub {
		my $delivery = next_delivery();
		acknowledge_all(insist("SELECT gigs.ingest_gig_event($delivery->{arguments})"), $delivery);
	},
	try => sub {
		my $delivery = next_delivery();
		acknowledge_all(insist(try_statement($delivery)), $delivery);
	},
	forged => sub {
		my $forged = delivery(pick(@accounts), 1, name => 'rotated', secret => 'guessed');
		my $rows = insist(batch_statement($forged)) or return;

		unexpected('forged webhook accepted', $forged->{body})
		  if ($rows->[0][2] || '') ne '28000';
	},
	odd => sub {
		my $rows = insist(
			try_statement(delivery(pick(@accounts), 1, name => 'signed', is_odd => 1)))
		  or return;

		$tally{ $rows->[0][0] }++;
	},
	batch => sub {
		my @deliveries = several_deliveries();

		acknowledge_all(insist(batch_statement(@deliveries)), @deliveries);
	},
	# accounts that many sessions create at the same time
	newcomers => sub {
		my @deliveries = shuffled(
			map { delivery(uuid('new', $newcomers, $_), between(1, 2)) } 1 .. 30);

		acknowledge_all(insist(batch_statement(@deliveries)), @deliveries);
	},
	inbox => sub { insist(insert_statement('inbox', next_delivery())) },
	inbox_rows => sub { insist(insert_statement('inbox', deliveries_in_order())) },
	copy => sub { insist(copy_statement(deliveries_in_order())) },
	backlog => sub { insist(insert_statement('backlog', several_deliveries())) },

	# several calls in a transaction, in any order
	disorder => sub {
		my @deliveries = map { next_delivery() } 1 .. between(2, 4);

		acknowledge_all(insist(map { try_statement($_) } @deliveries), @deliveries);
	},

	drain => sub {
		insist("CALL gigs.drain_gig_inbox('backlog', batch => " . between(5, 100) . ')');
	},
	consume => sub {
		my $abandons = chance(0.1);
		my $work = insist('SELECT batch, account_id, events FROM gigs.read_gig_work('
			  . "'fetcher', " . between(1, 300) . ', '
			  . ($abandons ? "'0.1 s'" : "'1 hour'") . ')')
		  or return;

		return if $abandons || !@$work;
		insist(
			'INSERT INTO fetched VALUES '
			  . join(', ', map { "('$_->[1]', $_->[2])" } @$work),
			"SELECT gigs.finish_gig_work($work->[0][0])");
		$tally{fetched} += $_->[2] for @$work;
	},
	report => sub {
		insist('SELECT * FROM gigs.'
			  . pick(qw(gig_sync_status gig_sync_summary gig_user_sync gig_consumer_status)));
		insist('SELECT * FROM gigs.gig_event_history ORDER BY event_id DESC LIMIT 10');
	},
	# no event is applied while the table is locked
	rebuild_all => sub {
		my $rows = insist('LOCK TABLE gigs.gig_account_sync IN EXCLUSIVE MODE',
			$digest, 'SELECT * FROM gigs.rebuild_gig_sync()', $digest)
		  or return;

		unexpected('rebuilt rows differ', "@{ $rows->[1] }") if $rows->[0][0] ne $rows->[2][0];
		$tally{rebuilds}++;
	},
	rebuild_one => sub {
		my $account = pick(@accounts);
		my $row = "SELECT a FROM gigs.gig_account_sync AS a WHERE account_id = '$account'";
		my $rows = insist("$row FOR UPDATE", "SELECT * FROM gigs.rebuild_gig_sync('$account')", $row)
		  or return;

		unexpected("rebuilt row differs: $rows->[2][0]", $rows->[0][0])
		  if "@{ $rows->[1] }" ne '1 0' || $rows->[0][0] ne $rows->[2][0];
		$tally{rebuilds}++;
	},
	# while events are applied
	rebuild => sub {
		my $rows = insist('SELECT accounts_skipped FROM gigs.rebuild_gig_sync('
			  . (chance(0.3) ? '' : "'" . pick(@accounts, uuid('new', int $place)) . "'") . ')')
		  or return;

		unexpected("$rows->[0][0] accounts are skipped", 'rebuild_gig_sync')
		  if $rows->[0][0] > @old_accounts;
	},
	prune => sub {
		my $rows = insist("SELECT events_pruned FROM gigs.prune_gig_events('30 days', " . between(1, 10) . ')')
		  or return;

		$tally{pruned} += $rows->[0][0];
	},
	# a valid body simulates a later version, which can parse the webhook
	retry => sub {
		my $delivery = delivery(pick(@accounts), between(1, $nold), name => 'retried');
		my $rows = insist(
			'UPDATE gigs.gig_quarantine SET received_at = now(), body = ' . bytea_literal($delivery->{body})
			  . ' WHERE quarantine_id = (SELECT min(quarantine_id) FROM gigs.gig_quarantine)',
			'SELECT ingested FROM gigs.retry_gig_quarantine()')
		  or return;

		acknowledge(@$delivery{qw(account n)}, undef, undef) if $rows->[0][0];
	},
	rotate => sub {
		my $key = "key $place-" . $tally{rotations}++;

		insist("SELECT gigs.add_gig_secret('rotated', '$key')");
		sleep rand 0.05;
		insist("SELECT gigs.retire_gig_secret('rotated', '$key')");
	},
	wait => sub { sleep rand 0.1 });

# Returns a worker that executes some of these at random.
sub worker
{
	my (@names) = @_;

	return sub { $work{ pick(@names) }->() };
}

# Returns a worker that sends webhooks, and changes its settings.
sub sender
{
	my (@names) = @_;

	return sub {
		insist('SET gigs_webhooks.direct_writes = ' . pick('on', 'off')) if chance(0.1);
		set_isolation(pick(('read committed') x 3, 'repeatable read', 'serializable'))
		  if chance(0.1);
		if ($newcomers != int(5 * time))
		{
			$newcomers = int(5 * time);
			$work{newcomers}->();
		}
		$work{ pick(@names) }->();
	};
}

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

# A short timeout detects every deadlock.
my $node = start_node('stress', "deadlock_timeout = '10ms'", 'max_connections = 40');

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'always');
	SELECT gigs.create_gig_subscription('rotated', 'https://example.com/', 'always');
	SELECT gigs.create_gig_consumer('fetcher', parts => 2);

	CREATE TABLE inbox (
		id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		account_id uuid,
		n int,
		body bytea,
		signature text,
		outcome text,
		error text
	);
	CREATE TABLE backlog (LIKE inbox INCLUDING ALL);
	CREATE INDEX ON backlog (id) WHERE outcome IS NULL;
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	CREATE TABLE acks (account_id uuid, n int, outcome text, event_id bigint);
	CREATE TABLE fetched (account_id uuid, events int);
});

# Events that were received 10 days ago, or 100 days ago if they are to be pruned.
for my $round ([ 10, $nold, @accounts ], [ 100, 3, @old_accounts ])
{
	my ($days, $n, @ids) = @$round;
	my @deliveries = map {
		my $i = $_;

		map { delivery($_, $i) } @ids;
	} 1 .. $n;

	$node->safe_psql('postgres', 'SELECT FROM gigs.ingest_gig_events(ARRAY['
		  . join(',', map { bytea_literal($_->{body}) } @deliveries)
		  . '], ARRAY['
		  . join(',', map { text_literal($_->{signature}) . '::text' } @deliveries)
		  . "], array_fill(now() - interval '$days days', ARRAY["
		  . @deliveries . ']))');
}
my $old = join ',', map { "'$_'" } @old_accounts;
my $old_before = $node->safe_psql('postgres', "$digest WHERE account_id IN ($old)");

$node->safe_psql('postgres',
	'CREATE TABLE before AS SELECT event_id, account_id, outcome FROM gigs.gig_event_log');

# ---------------------------------------------------------------------------
# The workers
# ---------------------------------------------------------------------------

my $log_before = -s $node->logfile;
my @others = (
	worker('drain', 'wait'), worker('drain', 'wait'),
	worker('consume', 'wait'), worker('consume', 'wait'),
	worker(qw(rebuild_all rebuild_one rebuild rebuild report wait wait)),
	worker(qw(prune prune retry rotate report wait)));

my $sum = run_workers('single calls', $node, $seconds * 0.8, $seed,
	(map { sender((qw(single try batch inbox inbox_rows copy backlog)) x 4, 'forged', 'odd') } 1 .. 10),
	@others);
ok(substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $log_before) !~ /deadlock detected/,
	'nothing deadlocks');

# Transactions of several calls lock accounts in any order, so that they and others
# may deadlock, and must be retried.
$place = 100_000;
set_may_deadlock(1);
my $more = run_workers('transactions of several calls', $node, $seconds * 0.2, $seed + 1000,
	(map { sender(qw(single batch disorder disorder inbox)) } 1 .. 10), @others);

# ---------------------------------------------------------------------------
# The results
# ---------------------------------------------------------------------------

# Consume the rest.  Unfinished batches are read again, without waiting for their
# leases; each call reads a part.
$node->safe_psql('postgres', q{
	CALL gigs.drain_gig_inbox('backlog');
	UPDATE gigs.gig_consumer SET batch = NULL;
});
$node->safe_psql('postgres', q{
	WITH work AS MATERIALIZED (SELECT * FROM gigs.read_gig_work('fetcher', 1000000)),
	kept AS (INSERT INTO fetched SELECT account_id, events FROM work)
	SELECT DISTINCT batch FROM work;
	SELECT gigs.finish_gig_work(batch) FROM gigs.gig_consumer WHERE batch IS NOT NULL;
}) for 1 .. 4;
$node->safe_psql('postgres',
	join('', map { "\\copy acks FROM '$_'\n" } acknowledgements()) . q{
	INSERT INTO acks SELECT account_id, n, outcome FROM inbox
	UNION ALL SELECT account_id, n, outcome FROM backlog;
	CREATE TABLE history AS
	SELECT h.*, h.available_count AS n, NOT EXISTS (
		SELECT FROM before AS b WHERE b.event_id = h.event_id) AS is_new
	FROM gigs.gig_event_history AS h;
	ANALYZE;
});

finds_none($node, 'postgres', 'acknowledged webhooks were accepted',
	"SELECT * FROM acks WHERE outcome NOT IN ('applied', 'stale', 'duplicate')");
finds_none($node, 'postgres', 'every delivery is in the log', q{
	SELECT * FROM (SELECT account_id, n, count(*) FROM acks GROUP BY 1, 2) AS a
	FULL JOIN (SELECT account_id, n, count(*) FROM history WHERE is_new GROUP BY 1, 2) AS h
		USING (account_id, n, count)
	WHERE a.* IS NULL OR h.* IS NULL});
finds_none($node, 'postgres', 'one delivery of every event is not a duplicate', q{
	SELECT account_id, n FROM history WHERE is_new
	GROUP BY 1, 2 HAVING count(*) FILTER (WHERE outcome <> 'duplicate') <> 1});
finds_none($node, 'postgres', 'every outcome with an event_id is that of the log', q{
	SELECT * FROM acks AS a LEFT JOIN history AS h USING (event_id)
	WHERE a.event_id IS NOT NULL
		AND (h.account_id, h.n, h.outcome::text) IS DISTINCT FROM (a.account_id, a.n, a.outcome)});
finds_none($node, 'postgres', 'every outcome without an event_id is in the log', q{
	SELECT account_id, n, outcome FROM (
		SELECT account_id, n, outcome, count(*) AS told FROM acks WHERE outcome IS NOT NULL GROUP BY 1, 2, 3
	) AS a LEFT JOIN (
		SELECT account_id, n, outcome::text, count(*) AS logged FROM history WHERE is_new GROUP BY 1, 2, 3
	) AS h USING (account_id, n, outcome)
	WHERE logged IS NULL OR told > logged});
finds_none($node, 'postgres', "an account's times are in the order of application", q{
	SELECT * FROM (
		SELECT event_id, received_at, lag(received_at) OVER (PARTITION BY account_id ORDER BY event_id) AS before
		FROM history WHERE is_new AND name <> 'retried'
	) AS h WHERE received_at < before});
finds_none($node, 'postgres', 'consumers were handed out every event once', q{
	SELECT * FROM (SELECT account_id, sum(events) AS n FROM fetched GROUP BY 1) AS f
	FULL JOIN (
		SELECT account_id, count(*) AS n FROM (
			SELECT event_id, account_id, outcome FROM gigs.gig_event_log UNION SELECT * FROM before
		) AS l WHERE outcome <> 'stale' GROUP BY 1
	) AS l USING (account_id, n)
	WHERE f.* IS NULL OR l.* IS NULL});
is($node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_quarantine'),
	($sum->{quarantined} || 0) + ($more->{quarantined} || 0)
	  - $node->safe_psql('postgres', 'SELECT count(*) FROM acks WHERE outcome IS NULL'),
	'webhooks that cannot be parsed are in the quarantine');

my $before = $node->safe_psql('postgres', $digest);
is($node->safe_psql('postgres', "$digest WHERE account_id IN ($old)"),
	$old_before, 'pruning changes no account');
cmp_ok($node->safe_psql('postgres', 'SELECT accounts_skipped FROM gigs.rebuild_gig_sync()'),
	'<=', scalar @old_accounts, 'all accounts are rebuilt but those that were pruned');
is($node->safe_psql('postgres', $digest), $before, '... and are what they were');

# Apply the rules to the log.
{
	my $rules = GigRules->new;
	$node->safe_psql('postgres', "DELETE FROM gigs.gig_event_log WHERE account_id IN ($old);"
		  . "DELETE FROM gigs.gig_account_sync WHERE account_id IN ($old);"
		  . 'TRUNCATE gigs.gig_quarantine');
	$rules->apply(@$_) for GigRules::replay($node, 'postgres');
	$rules->check_tables($node, 'postgres', 'the rules');
}

$node->safe_psql('postgres', q{
	CREATE EXTENSION amcheck;
	SELECT bt_index_check('gigs.gig_event_log_pkey', true), bt_index_check('gigs.gig_account_sync_pkey', true);
});
finds_none($node, 'postgres', 'the tables are sound', q{
	SELECT v.* FROM unnest(ARRAY['gigs.gig_event_log', 'gigs.gig_account_sync']) AS t, verify_heapam(t) AS v});

# Fail if too little happened.
my $events = $node->safe_psql('postgres',
	"SELECT count(*) FROM history WHERE is_new AND outcome <> 'duplicate'");

cmp_ok($events, '>', 300, 'there were events');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM acks'),
	'>', 2 * $events, '... and more redeliveries');
cmp_ok($sum->{$_} || 0, '>', 0, "... and $_") for qw(pruned rebuilds fetched quarantined);

diag "GIGS_SEED=$seed" if !Test::More->builder->is_passing;
$node->stop;
done_testing();
