# Standbys and replicas: what they refuse, what they know, and that nothing is
# lost or counted twice when they take over.
#
# GIGS_LONG puts them under more load.

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
my $naccounts = 20;

# What a client has printed: account, number, event_id and outcome of each event.
sub acknowledged
{
	my ($output) = @_;

	return map { [ split / / ] } grep { /^\d+ \d+ \d+ \w+$/ } split /\n/, $output;
}

# What a client does: webhooks one by one, and now and then a batch.  It says
# what has been acknowledged: account, number, event_id and outcome.  While a
# standby refuses all of it, it takes its time.
sub client_script
{
	my ($client, $first, $n) = @_;
	my $script = "SET client_min_messages = warning;\n";

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

# Has clients ingest until the server is killed under them, long before they
# have done; returns what was acknowledged.
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

# Delivers again all that was acknowledged, as Argyle would if the answer had
# been lost; returns how many of each outcome.
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

# What the server has received of a primary that is gone is also applied.
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
	# the standby is asked for again at once
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
});
my $standby = start_standby('standby', $primary);

$primary->safe_psql('postgres', 'SELECT take_all(array_agg(n % 20), array_agg(n)) FROM generate_series(1, 200) AS n');
$primary->wait_for_catchup($standby);
is(rows_of($standby, 'postgres'), rows_of($primary, 'postgres'), 'a standby has all rows');
for my $direct ('on', 'off')
{
	my $set = "SET gigs_webhooks.direct_writes = $direct;";
	my $cannot = '25006 cannot execute INSERT in a read-only transaction';

	is(outcome($standby, "LOAD 'gigs_webhooks'; $set SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, 999) AS b"),
		$cannot, "direct_writes $direct: a standby refuses to ingest");
	is(outcome($standby, "LOAD 'gigs_webhooks'; $set SELECT outcome FROM hook(1, 999) AS b, gigs.try_ingest_gig_event(b, sig(b))"),
		$cannot, '... trying to is no exception');
	is(outcome($standby, "LOAD 'gigs_webhooks'; $set SELECT take_all('{1}', '{6}')"),
		$cannot, '... nor is a redelivery, or a batch');
}
like(outcome($standby, "INSERT INTO triggered (body, signature) SELECT b, sig(b) FROM hook(1, 999) AS b"),
	qr/^25006 /, '... and so is an inbox');
like(outcome($standby, "CALL gigs.drain_gig_inbox('inbox')"), qr/^25006 /, '... draining one');
like(outcome($standby, 'SELECT gigs.rebuild_gig_sync()'), qr/^25006 /, '... rebuilding');
like(outcome($standby, 'SELECT gigs.rebuild_gig_sync(account(1))'), qr/^25006 /, '... of an account as well');
like(outcome($standby, "SELECT gigs.prune_gig_events('1 day')"), qr/^25006 /, '... pruning');
like(outcome($standby, "SELECT gigs.add_gig_secret('payroll', 'another')"), qr/^25006 /, '... and another secret');
is(outcome($standby, "SELECT outcome, sqlstate FROM gigs.try_ingest_gig_event('{}'::bytea, NULL)"),
	'rejected|22023', 'what is no webhook can be told by a standby');
is($standby->safe_psql('postgres', 'SELECT sum(accounts), sum(gigs) FROM gigs.gig_sync_summary'),
	$primary->safe_psql('postgres', 'SELECT sum(accounts), sum(gigs) FROM gigs.gig_sync_summary'),
	'reports work on a standby');
is($standby->safe_psql('postgres', 'SELECT count(*), count(user_id) FROM gigs.gig_event_history'),
	'200|200', '... the parsed log too');
is($standby->safe_psql('postgres', q{SELECT sum(events) FROM gigs.gig_event_counts('1 hour', now() - interval '1 day', now() + interval '1 day')}),
	'200', '... and counts');

# A session on the standby hears of secrets as those on the primary do.
my $session = $standby->background_psql('postgres', on_error_stop => 0);

sub try_with
{
	my ($secret) = @_;

	return ask($session,
		"SELECT coalesce(sqlstate, outcome::text) FROM hook(1, 999) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text))");
}
is(try_with('gone'), '28000', 'a retired secret is not good on a standby');
is(try_with('going'), '25006', '... a valid one would be');
is(try_with('coming'), '28000', '... and one to come is not yet');
$primary->safe_psql('postgres', "SELECT gigs.retire_gig_secret('payroll', 'going'); SELECT gigs.add_gig_secret('payroll', 'coming')");
$primary->wait_for_catchup($standby);
is(try_with('going'), '28000', 'a session on a standby hears of a secret that retires');
is(try_with('coming'), '25006', '... and of another');
$session->quit;

# ---------------------------------------------------------------------------
# The primary dies under load, and the standby takes over
# ---------------------------------------------------------------------------

# Promotes a standby while clients try to ingest there; returns what has been
# acknowledged to them.
sub promote_under_load
{
	my ($standby) = @_;
	my @clients = map { start_client($standby, 'postgres', client_script($_, 200_000, $nhooks)) } 1 .. $nclients;
	my $refused = qr/cannot execute INSERT in a read-only transaction/;

	for my $client (@clients)
	{
		# it goes on with the next webhook
		for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
		{
			last if slurp_file("$client->{files}/err") =~ $refused;
			select undef, undef, undef, 0.1;
		}
	}
	$standby->promote;

	my @answers = map { [ finish_client($_) ] } @clients;
	my @acknowledged = map { acknowledged($_->[0]) } @answers;
	my @errors = grep { !/$refused/ && !/^(SQL statement|PL|CONTEXT)|^\s/ } map { split /\n/, $_->[1] } @answers;

	is(scalar(grep { $_->[1] =~ $refused } @answers), $nclients, 'clients are refused before a standby is promoted');
	is(join("\n", @errors), '', '... for no other reason');
	cmp_ok(scalar @acknowledged, '>', $nclients * $nhooks / 10, '... and go on when it has been');
	note scalar(@acknowledged) . ' events were acknowledged by the promoted server';
	return @acknowledged;
}

# Promotes the standby of a server that was killed under load, and looks
# whether all is there; what has been acknowledged may only be missing where the
# standby doesn't have it.
sub take_over
{
	my ($standby, $synchronous, @acknowledged) = @_;
	my $log = q{SELECT event_id, account_id, encode(substr(sha256(body), 1, 16), 'hex') FROM gigs.gig_event_log ORDER BY event_id};
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
	is(troubles($standby, 'postgres'), '', '... and adds up');

	my ($last) = $standby->safe_psql('postgres', 'SELECT max(event_id) FROM gigs.gig_event_log');
	my ($deliveries) = $standby->safe_psql('postgres', 'SELECT sum(deliveries) FROM gigs.gig_delivery');

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
	# What is new may be stale by now: it comes in another order than it did.
	my %outcomes = (applied => 0, stale => 0, duplicate => 0,
		map { split / / } split /, /, deliver_again($standby, @acknowledged));
	is_deeply([ $outcomes{applied} + $outcomes{stale}, $outcomes{duplicate} ], [ $lost, $there ],
		'... delivered again, an event is new if the standby did not have it, or else a duplicate');
	is(deliver_again($standby, @acknowledged), 'duplicate ' . @acknowledged, '... and then a duplicate');
	is($standby->safe_psql('postgres', 'SELECT sum(deliveries) FROM gigs.gig_delivery'),
		$deliveries + 2 * @acknowledged, '... each is counted');
	is($standby->safe_psql('postgres', "SELECT count(*) FROM gigs.gig_event_log WHERE event_id <= $last"),
		scalar(keys %ids), '... ids go on behind those that were given');
	is(troubles($standby, 'postgres'), '', '... and all adds up');
	is($standby->safe_psql('postgres',
			"SELECT string_agg(coalesce(sqlstate, outcome::text), ' ' ORDER BY s) FROM hook(6, 6) AS b, unnest('{coming,going,gone}'::text[]) AS s, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, s))"),
		'duplicate 28000 28000', '... retired secrets stay retired');
	return;
}

my @acknowledged = kill_under_load($primary, 1);
take_over($standby, 0, @acknowledged);

# The same once more, of the server that has taken over; its standby is one that
# it waits for.
my $second = start_standby('second', $standby);
$standby->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
$standby->reload;
$standby->poll_query_until('postgres', "SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication")
  or die 'the standby is not synchronous';
@acknowledged = kill_under_load($standby, 100_000);
take_over($second, 1, @acknowledged);

# ---------------------------------------------------------------------------
# A replica: the tables' rows go to another server, which has the extension
# ---------------------------------------------------------------------------

# Logical decoding sees rows that are written page by page, those that are
# updated, and those that are too large for their page.
my $publisher = $second;
my $replica = start_node('replica', { allows_streaming => 'logical' },
	'max_connections = 30', "wal_retrieve_retry_interval = '100ms'");
my @tables = qw(gig_subscription gig_subscription_secret gig_event_log
  gig_delivery gig_account_sync gig_change);
my @some = qw(gig_account_sync gig_change);

sub publish
{
	my ($name, @published) = @_;

	$publisher->safe_psql('postgres',
		"CREATE PUBLICATION $name FOR TABLE " . join ', ', map { "gigs.$_" } @published);
	return;
}

sub subscribe
{
	my ($name, $dbname) = @_;

	$replica->safe_psql($dbname,
		"CREATE SUBSCRIPTION $name CONNECTION '" . $publisher->connstr . " dbname=postgres' PUBLICATION $name");
	$replica->poll_query_until($dbname,
		"SELECT count(*) > 0 AND bool_and(srsubstate IN ('r', 's')) FROM pg_subscription_rel")
	  or die 'the replica gets no rows';
	return;
}

$replica->safe_psql('postgres', 'CREATE DATABASE extract');
for my $dbname ('postgres', 'extract')
{
	create_gigs($replica, $dbname);
	$replica->safe_psql($dbname, "SELECT gigs.drop_gig_subscription('payroll')");
}
publish('gigs_all', @tables);
publish('gigs_some', @some);

# A session that has looked for secrets, and found none.
$session = $replica->background_psql('postgres', on_error_stop => 0);
is(try_with('coming'), '28000', 'a replica does not know the secret at first');
subscribe('gigs_all', 'postgres');
subscribe('gigs_some', 'extract');
$publisher->wait_for_catchup($_) for 'gigs_all', 'gigs_some';
is(rows_of($replica, 'postgres'), rows_of($publisher, 'postgres'), 'a replica has all rows');
is(rows_of($replica, 'extract', @some), rows_of($publisher, 'postgres', @some),
	'... one that takes some tables has theirs');
for my $direct ('on', 'off')
{
	my $n = $direct eq 'on' ? 500_000 : 600_000;

	# one by one, many at once, again, and large ones
	$publisher->safe_psql(
		'postgres', qq{
		LOAD 'gigs_webhooks';
		SET gigs_webhooks.direct_writes = $direct;
		SELECT count(take(n % 30, $n + n)) FROM generate_series(1, 20) AS n;
		SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 700) AS n;
		SELECT gigs.ingest_gig_event(b, sig(b)) FROM generate_series(1, 5) AS n, hook(n, $n + 10000 + n, 5000 * n) AS b;
		DELETE FROM gigs.gig_change WHERE gig_id IN (SELECT md5('3 ' || $n + n)::uuid FROM generate_series(1, 100) AS n);
		SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 100) AS n;
	});
	$publisher->wait_for_catchup($_) for 'gigs_all', 'gigs_some';
	is(rows_of($replica, 'postgres'), rows_of($publisher, 'postgres'),
		"direct_writes $direct: what is ingested goes to the replica");
	is(rows_of($replica, 'extract', @some), rows_of($publisher, 'postgres', @some),
		'... as far as it takes it');
}
is($replica->safe_psql('extract', 'SELECT sum(accounts) FROM gigs.gig_sync_summary'),
	$publisher->safe_psql('postgres', 'SELECT sum(accounts) FROM gigs.gig_sync_summary'),
	'reports work over some tables');

# Sessions of the replica hear of secrets.
sub knows
{
	my ($secret) = @_;

	return ask($session, "BEGIN; SELECT coalesce(sqlstate, outcome::text) FROM hook(3, 500033) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, '$secret'::text)); ROLLBACK");
}
is(knows('coming'), 'duplicate', 'the session has learned of a secret by replication');
is(knows('next'), '28000', '... of those that there are');
$publisher->safe_psql('postgres', "SELECT gigs.add_gig_secret('payroll', 'next')");
$publisher->wait_for_catchup('gigs_all');
is(knows('next'), 'duplicate', '... and learns of another');
$publisher->safe_psql('postgres', "SELECT gigs.retire_gig_secret('payroll', 'coming')");
$publisher->wait_for_catchup('gigs_all');
is(knows('coming'), '28000', '... and that one has been retired');
$publisher->safe_psql('postgres', "SELECT gigs.create_gig_subscription('other', 'https://example.com/', 'x'); TRUNCATE gigs.gig_subscription_secret");
$publisher->wait_for_catchup('gigs_all');
is(knows('next'), '28000', '... and that all are gone');
$publisher->safe_psql('postgres', "SELECT gigs.add_gig_secret('payroll', 'secret')");
$publisher->wait_for_catchup('gigs_all');
is(knows('secret'), 'duplicate', '... and that there is one again');
$publisher->safe_psql('postgres', "SELECT gigs.drop_gig_subscription('other')");
$publisher->wait_for_catchup('gigs_all');

# It takes over.  Sequences aren't replicated: until the log's is advanced, new
# events find their ids taken, and are refused as a whole.
my $rows = rows_of($publisher, 'postgres');
my @given = split / /, $publisher->safe_psql('postgres', "SELECT max(event_id) || ' ' || count(*) FROM gigs.gig_event_log");
$publisher->stop;
$replica->safe_psql($_->[0], "ALTER SUBSCRIPTION $_->[1] DISABLE; ALTER SUBSCRIPTION $_->[1] SET (slot_name = NONE); DROP SUBSCRIPTION $_->[1]")
  for [ 'postgres', 'gigs_all' ], [ 'extract', 'gigs_some' ];
for my $direct ('on', 'off')
{
	my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;";

	is(outcome($replica, "$set SELECT take(3, 700006)"),
		'23505 duplicate key value violates unique constraint "gig_event_log_pkey"',
		"direct_writes $direct: a new event finds its id taken");
	is(outcome($replica, "$set SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"),
		'23505 duplicate key value violates unique constraint "gig_event_log_pkey"',
		'... a batch as well');
}
is(rows_of($replica, 'postgres'), $rows, '... and nothing has changed');
is(outcome($replica, 'BEGIN; SELECT take(3, 500033); ROLLBACK'), 'duplicate', '... but what was delivered is known');
$replica->safe_psql('postgres', "SELECT setval('gigs.gig_event_log_event_id_seq', max(event_id)) FROM gigs.gig_event_log");
is(outcome($replica, 'SELECT take(3, 700006)'), 'applied', 'with the sequence advanced a replica takes over');
is(outcome($replica, "SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"), 'applied 4', '... batches as well');
is(outcome($replica, "SELECT take_all('{1,2,3,4}', '{700001,700002,700003,700004}')"), 'duplicate 4', '... once');
is($replica->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'), $given[1] + 5, '... with new ids');
is(troubles($replica, 'postgres'), '', '... and all adds up');
$session->quit;

# ---------------------------------------------------------------------------
# The log, decoded: whoever reads changes off the server gets each event
# ---------------------------------------------------------------------------

SKIP:
{
	my $libdir = $replica->safe_psql('postgres', "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'");

	skip 'there is no test_decoding', 4 if !-e "$libdir/test_decoding.so";
	for my $direct ('on', 'off')
	{
		my $n = $direct eq 'on' ? 800_000 : 900_000;

		$replica->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('log', 'test_decoding')");
		$replica->safe_psql(
			'postgres', qq{
			LOAD 'gigs_webhooks';
			SET gigs_webhooks.direct_writes = $direct;
			SELECT take_all(array_agg(n % 30), array_agg($n + n)) FROM generate_series(1, 450) AS n;
			SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, $n + 1000, 8000) AS b;
		});
		my @decoded = grep { /^table gigs\.gig_event_log: INSERT: / } split /\n/,
		  $replica->safe_psql('postgres', "SET bytea_output = hex; SET TimeZone = 'UTC'; SELECT data FROM pg_logical_slot_get_changes('log', NULL, NULL)");
		my @got = map { /event_id\[bigint\]:(\d+) .* body\[bytea\]:'(.*)'$/ ? "$1 $2" : $_ } @decoded;
		my @logged = split /\n/,
		  $replica->safe_psql('postgres', "SELECT event_id || ' ' || body FROM gigs.gig_event_log ORDER BY event_id DESC LIMIT 451");
		is(scalar @got, 451, "direct_writes $direct: every event of the log is decoded");
		is(first_difference(\@got, [ reverse @logged ]), '', '... in its order, as it was received');
		$replica->safe_psql('postgres', "SELECT pg_drop_replication_slot('log')");
	}
}

$replica->stop;
done_testing();
