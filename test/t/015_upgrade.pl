# pg_upgrade carries over all that the extension stores, and the new server
# continues with it.
#
# The old server is the one in GIGS_OLD_SERVER, a directory with bin/ and lib/,
# where lib/ also has the libraries that this system lacks; the extension in it
# was built for it.  scripts/check-versions makes such directories.  Without it a
# cluster is upgraded to its own version, which pg_upgrade does in the same way.

use strict;
use warnings;

use Cwd qw(getcwd);
use Digest::SHA qw(sha256_hex);
use File::Basename qw(basename);
use File::Find qw(find);
use FindBin;
use Test::More;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $old_server = $ENV{GIGS_OLD_SERVER};
my ($new_bindir) = grep { -x "$_/postgres" } split /:/, $ENV{PATH};
my $old_bindir = defined $old_server ? "$old_server/bin" : $new_bindir;

# pg_upgrade runs the programs of both servers in one environment.
$ENV{LD_LIBRARY_PATH} = "$old_server/lib" if defined $old_server;

my ($from, $to) = map { basename(`$_/postgres --version`) } $old_bindir, $new_bindir;
s/^.*?(\d\S*).*$/$1/s for $from, $to;
note "from PostgreSQL $from to $to";

# ---------------------------------------------------------------------------
# Servers and sessions
# ---------------------------------------------------------------------------

sub new_node
{
	my ($name, @params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, @params);

	# Since PostgreSQL 18 checksums are the default, and both must agree.
	$node->init(extra => [ '--encoding=UTF8', '--locale=C', '--data-checksums' ]);
	$node->append_conf('postgresql.conf', join("\n",
			'log_statement = none', 'log_min_messages = warning',
			'log_min_error_statement = panic', 'autovacuum = off', ''));
	return $node;
}

sub query
{
	my ($node, $query) = @_;

	return $node->safe_psql('postgres',
		"SET search_path = gigs, public; SET TimeZone = 'UTC'; $query");
}

# ---------------------------------------------------------------------------
# Events
# ---------------------------------------------------------------------------

sub account { return sprintf '00000000-0000-4000-8000-%012d', $_[0] }
sub gig { return sprintf '"00000000-0000-4000-a000-%012d"', $_[0] }

sub body
{
	my ($name, $event, $account, $n, $more) = @_;

	return sprintf '{"event":"gigs.%s","name":"%s","data":{"account":"%s",'
	  . '"user":"00000000-0000-4000-9000-%012d","available_from":"2016-04-16T05:32:41Z",'
	  . '"available_count":%d%s}}',
	  $event, $name, account($account), $account % 7, $n, $more;
}

sub changed
{
	my ($kind, @gigs) = @_;

	return sprintf ',"%s_count":%d,"%s_gigs":[%s]', $kind, scalar @gigs, $kind,
	  join(',', map { gig($_) } @gigs);
}

sub call
{
	my ($body, $secret) = @_;

	return bytea_literal($body) . ', '
	  . (defined $secret ? text_literal(sign($body, $secret)) : 'NULL');
}

# The outcome, and the event_id or the SQLSTATE.
sub ingest
{
	my ($node, $body, $secret, $role) = @_;

	return query($node,
		    ($role ? "SET ROLE $role; " : '')
		  . 'SELECT outcome, event_id, sqlstate FROM try_ingest_gig_event('
		  . call($body, $secret)
		  . ')');
}

# What is sent before the upgrade, with its outcomes
my @deliveries = (
	# an account that nothing is synced of
	[ 'applied', body('signed', 'added', 1, 3, ',"added_count":3'), 'current' ],
	# one that is partially synced, further by every event
	[ 'applied', body('signed', 'partially_synced', 2, 30, ',"days_synced":30'), 'current' ],
	[ 'applied', body('signed', 'partially_synced', 2, 60, ',"days_synced":60'), 'coming' ],
	# one that is fully synced
	[ 'applied', body('signed', 'partially_synced', 3, 30, ',"days_synced":30'), 'leaving' ],
	[ 'applied', body('signed', 'fully_synced', 3, 999, ''), 'current' ],
	[ 'stale', body('signed', 'partially_synced', 3, 90, ',"days_synced":90'), 'current' ],
	[ 'applied', body('signed', 'updated', 3, 999, changed('updated', 1 .. 9)), 'current' ],
	[ 'applied', body('signed', 'removed', 3, 997, changed('removed', 1, 2)), 'current' ],
	[ 'duplicate', body('signed', 'removed', 3, 997, changed('removed', 1, 2)), 'coming' ],
	# one of an unsigned subscription; the log stores such a body out of line
	[ 'applied', body('unsigned', 'updated', 4, 5000, changed('updated', 1001 .. 1400)) ],
	# another one that is partially synced
	[ 'applied', body('signed', 'partially_synced', 5, 40, ',"days_synced":10'), 'current' ],
	[ 'applied', body('signed', 'updated', 5, 41, changed('updated', 21, 22)), 'current' ],
	[ 'applied', body('signed', 'added', 5, 44, ',"added_count":3'), 'current' ],
);

# Many more, at once.
my @batch = map {
	my $n = $_;

	map { body('unsigned', 'updated', 100 + $_, $n, changed('updated', $n, $n + 1)) } 1 .. 150
} 1 .. 4;

# ---------------------------------------------------------------------------
# The old cluster
# ---------------------------------------------------------------------------

my $old = new_node('old', defined $old_server ? (install_path => $old_server) : ());
$old->start;
query($old, q{
	CREATE ROLE gigs_owner;
	CREATE ROLE receiver;
	CREATE ROLE worker;
	CREATE ROLE nobody_special;
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	GRANT USAGE ON SCHEMA gigs TO gigs_owner, nobody_special;
	SELECT grant_gig_receiver('receiver');
	SELECT grant_gig_consumer('worker');
	ALTER DATABASE postgres SET gigs_webhooks.dedupe_window = '20d';

	SELECT create_gig_subscription('signed', 'https://example.com/?a=''b''', 'current',
		ARRAY['*'], '{"days_synced": [30, 60]}');
	SELECT add_gig_secret('signed', s) FROM unnest(ARRAY['coming', 'leaving', 'gone']) AS s;
	SELECT retire_gig_secret('signed', 'gone');
	SELECT retire_gig_secret('signed', 'leaving', now() + interval '1 year');
	SELECT create_gig_subscription('unsigned', 'https://example.com/');
	SELECT create_gig_subscription('dropped', 'https://example.com/', 'any');
	SELECT drop_gig_subscription('dropped');
	SELECT create_gig_consumer('fetcher', parts => 2);
	SELECT create_gig_consumer('updates', ARRAY['gigs.updated']::gig_event_kind[]);

	CREATE TABLE inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
	CREATE TABLE backlog (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		body bytea, signature text, outcome text, error text);
	CREATE TABLE kept (event gig_event, kind gig_event_kind, state gig_sync_state);
	CREATE INDEX ON kept (kind);
	CREATE VIEW fully_synced AS
		SELECT account_id, user_id FROM gig_account_sync WHERE state = 'fully_synced';
});

for my $delivery (@deliveries)
{
	my ($outcome, $body, $secret) = @$delivery;

	like(ingest($old, $body, $secret),
		qr/^$outcome\|/, "before: $outcome " . substr($body, 0, 26));
}
is( query($old,
		'SELECT outcome, count(*) FROM ingest_gig_events(ARRAY['
		  . join(', ', map { bytea_literal($_) } @batch)
		  . '], NULL) GROUP BY 1'),
	'applied|' . @batch,
	'before: a batch');

# One by each of the other ways, and what is no webhook
my $by_inbox = body('signed', 'added', 1, 4, ',"added_count":1');
my $in_backlog = body('signed', 'added', 1, 5, ',"added_count":1');
query($old, 'INSERT INTO inbox (body, signature) VALUES ('
	  . call($by_inbox, 'current')
	  . "), ('junk', NULL); "
	  . 'INSERT INTO backlog (body, signature) VALUES ('
	  . call($in_backlog, 'current')
	  . "), ('junk', NULL); "
	  . 'INSERT INTO kept SELECT parse_gig_event(body), event, '
	  . "'partially_synced' FROM gig_event_log WHERE event_id <= 20 AND body IS NOT NULL");

# A webhook that is not understood, and one that no longer is unknown
my $unknown = body('signed', 'moved', 6, 1, '');
my $known_now = body('signed', 'added', 6, 2, ',"added_count":1');
is(ingest($old, $unknown, 'current'), 'quarantined||0A000', 'before: a webhook is quarantined');
query($old,
	    'INSERT INTO gig_quarantine (received_at, name, sqlstate, message, body) VALUES '
	  . "(now() - interval '1 hour', 'signed', '0A000', 'unsupported event', " . bytea_literal($known_now) . ')');

# One consumer has retries and a leased batch, the other one has finished.
query($old, q{
	SELECT retry_gig_work(batch, account_id, 'HTTP 500', '1 day') FROM read_gig_work('fetcher', 3);
	SELECT finish_gig_work(max(batch)) FROM gig_consumer;
	SELECT FROM read_gig_work('fetcher', 200, '1 day');
	SELECT finish_gig_work((SELECT max(batch) FROM read_gig_work('updates', 100000)))});

# Everything belongs to a role of its own.
give_extension($old, 'postgres', 'gigs_owner');

# The last ids are not in the log, as after a rollback.
query($old, q{
	BEGIN;
	SELECT nextval('gig_event_log_event_id_seq') FROM generate_series(1, 10);
	ROLLBACK});

# ---------------------------------------------------------------------------
# What is to be carried over
# ---------------------------------------------------------------------------

my @tables = split /\n/, query($old, q{
	SELECT c.oid::regclass
	FROM pg_class AS c
	WHERE c.relkind IN ('r', 'p')
		AND c.relnamespace IN ('gigs'::regnamespace, 'public'::regnamespace)
	ORDER BY c.relname});
my %state_queries = (
	(map { $_ => "SELECT t::text FROM $_ AS t" } @tables),
	'the history' => 'SELECT t::text FROM gig_event_history AS t',
	'a view of the user\'s' => 'SELECT t::text FROM fully_synced AS t',
	'the sequences' => q{
		SELECT schemaname, sequencename, last_value
		FROM pg_sequences},
	'the extension' => q{
		SELECT extversion, extconfig::regclass[], extcondition, extnamespace::regnamespace
		FROM pg_extension WHERE extname = 'gigs_webhooks'},
	# Only newer versions count what comes by itself: row types and array types.
	'its members' => q{
		SELECT pg_describe_object(classid, objid, 0) FROM pg_depend
		WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
			AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks')
			AND NOT (classid = 'pg_type'::regclass AND EXISTS (
				SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
				WHERE t.oid = objid AND (t.typelem <> 0 OR c.relkind <> 'c')))},
	'the triggers' => q{
		SELECT tgrelid::regclass, tgname, tgenabled, tgfoid::regprocedure
		FROM pg_trigger WHERE NOT tgisinternal},
	'the owners' => q{
		SELECT oid::regclass::text, relowner::regrole FROM pg_class
		WHERE relnamespace = 'gigs'::regnamespace
		UNION ALL
		SELECT oid::regprocedure::text, proowner::regrole FROM pg_proc
		WHERE pronamespace = 'gigs'::regnamespace},
	'privileges on tables' => q{
		SELECT r, c.oid::regclass, p, has_table_privilege(r, c.oid, p)
		FROM unnest(ARRAY['gigs_owner', 'receiver', 'worker', 'nobody_special']) AS r,
			pg_class AS c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p
		WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 'v')},
	'privileges on functions' => q{
		SELECT r, p.oid::regprocedure, has_function_privilege(r, p.oid, 'EXECUTE')
		FROM unnest(ARRAY['gigs_owner', 'receiver', 'worker', 'nobody_special']) AS r,
			pg_proc AS p
		WHERE p.pronamespace = 'gigs'::regnamespace},
	'the setting' => 'SHOW gigs_webhooks.dedupe_window',
);

sub state
{
	my ($node) = @_;
	my @names = keys %state_queries;
	my (undef, @parts) = split /^== \d+\n/m,
	  query($node, join '', map { "\n\\echo == $_\n$state_queries{$names[$_]};" } 0 .. $#names);

	return { map { $names[$_] => [ sort split /\n/, $parts[$_] ] } 0 .. $#names };
}

sub is_state
{
	my ($got, $expected, $title, @which) = @_;

	is(first_difference($got->{$_}, $expected->{$_}), '', "$title: $_")
	  for @which ? @which : sort keys %state_queries;
}

is(scalar @tables, 9, 'the extension\'s tables and those of the user');
my $before = state($old);
for my $what (sort keys %state_queries)
{
	isnt(scalar @{ $before->{$what} }, 0, "$what: there is something to carry over");
}
my ($last_id) = query($old, 'SELECT last_value FROM gig_event_log_event_id_seq');
my %event_ids = map { split /\|/ } split /\n/,
  query($old, q{SELECT encode(sha256(body), 'hex'), event_id FROM gig_event_log WHERE body IS NOT NULL});
my $batch = query($old, q{SELECT max(batch) FROM gig_consumer});
$old->stop;

# ---------------------------------------------------------------------------
# To the new version
# ---------------------------------------------------------------------------

# Shows errors of pg_upgrade, its servers and its dumps.
sub show_logs
{
	find(
		sub {
			return if !/^pg_upgrade.*\.log$/ || !-s;
			open my $file, '<:raw', $_ or die "could not open $File::Find::name: $!";
			my @lines = <$file>;
			close $file;
			return if !grep { /\b(error|fatal|panic)\b/i } @lines;
			splice @lines, 0, -20;
			print "--- the end of $_ ---\n", @lines;
		},
		@_);
	return;
}

sub upgrade
{
	my ($new, @mode) = @_;
	my $directory = PostgreSQL::Test::Utils::tempdir;
	my $back = getcwd;
	my @command = (
		"$new_bindir/pg_upgrade", '--no-sync', @mode,
		'-b', $old_bindir, '-B', $new_bindir,
		'-d', $old->data_dir, '-D', $new->data_dir,
		'-p', $old->port, '-P', $new->port,
		'-s', $new->host);

	@command = grep { $_ ne '--no-sync' } @command
	  if `$new_bindir/pg_upgrade --help` !~ /--no-sync/;

	# It leaves its files where it is started.
	chdir $directory or die "$directory: $!";
	my $result = PostgreSQL::Test::Utils::run_log(\@command);
	chdir $back or die "$back: $!";
	show_logs($directory, $new->data_dir) if !$result;
	return $result;
}

# Copies first: afterwards the files of the old cluster are as they were.
for my $mode ('copy', 'link')
{
	my $new = new_node("new_$mode");

	ok(upgrade($new, $mode eq 'link' ? '--link' : ()), "$mode: pg_upgrade")
	  or next;
	$new->start;

	my $after = state($new);
	is_state($after, $before, $mode);

	# The log, folded again, is what the accounts say.
	my $accounts = @{ $before->{gig_account_sync} };
	is(query($new, 'SELECT * FROM rebuild_gig_sync()'),
		"$accounts|0", "$mode: all accounts are rebuilt");
	is_state(state($new), $before, "$mode, rebuilt", @tables, 'the sequences');

	# All is delivered again, signed with secrets that are still valid.
	my $id = $last_id;
	for my $delivery (@deliveries)
	{
		my (undef, $body, $secret) = @$delivery;
		my $original = $event_ids{ sha256_hex($body) };

		$id++;
		is(ingest($new, $body, $secret), "duplicate|$id|", "$mode: again " . substr($body, 0, 26));
		is(query($new, "SELECT duplicate_of FROM gig_event_log WHERE event_id = $id"), $original, '... of the event before the upgrade');
	}
	is( query($new,
			'SELECT outcome, count(*), count(DISTINCT event_id), min(event_id) FROM ingest_gig_events(ARRAY['
			  . join(', ', map { bytea_literal($_) } reverse @batch)
			  . '], NULL) GROUP BY 1'),
		'duplicate|' . @batch . '|' . @batch . '|' . ($id + 1),
		"$mode: a batch again");
	$id += @batch;
	is( query($new, 'SELECT sum(duplicates) - '
			  . (grep { $_->[0] eq 'duplicate' } @deliveries)
			  . ' FROM gig_account_sync'),
		@deliveries + @batch,
		"$mode: the accounts count them");

	# The account that is partially synced continues, with the next id.
	my $next = body('signed', 'fully_synced', 5, 1234, '');
	is(ingest($new, $next, 'gone'), 'rejected||28000', "$mode: a retired secret stays retired");
	is(ingest($new, $next, 'never'), 'rejected||28000', "$mode: ... and a wrong one wrong");
	is(ingest($new, $next, undef), 'rejected||28000', "$mode: ... and none is not enough");
	is( ingest($new, $next, 'current', 'receiver'),
		'applied|' . ($id + 1) . '|',
		"$mode: a new event has the next id; the receiver may ingest it");
	is( query($new, 'SELECT state, days_synced, available_count, added_total, updated_total, events, '
			  . 'partially_synced_at < fully_synced_at, last_event '
			  . "FROM gig_account_sync WHERE account_id = '" . account(5) . "'"),
		'fully_synced|10|1234|3|2|4|t|gigs.fully_synced',
		"$mode: the account is fully synced now");
	is( ingest($new, body('signed', 'updated', 9, 1, changed('updated', 90)), 'coming'),
		'applied|' . ($id + 2) . '|', "$mode: a new account");
	query($new, "SELECT retire_gig_secret('signed', 'coming')");
	is(ingest($new, body('signed', 'added', 9, 2, ',"added_count":1'), 'coming'),
		'rejected||28000', "$mode: a secret that is retired now");

	# Tables of raw webhooks.
	my $more = body('signed', 'added', 1, 6, ',"added_count":1');
	is( query($new, 'INSERT INTO inbox (body, signature) VALUES ('
			  . call($by_inbox, 'current') . '), (' . call($more, 'leaving')
			  . "), ('junk', NULL) RETURNING outcome"),
		"duplicate\napplied\nrejected", "$mode: the inbox's trigger fires");
	is(query($new, "CALL drain_gig_inbox('backlog')"), '2|1', "$mode: the backlog is drained");
	is( query($new, 'SELECT outcome FROM backlog ORDER BY id'),
		"applied\nrejected", "$mode: ... with outcomes");
	is( query($new, 'SELECT max(event_id), count(*) FROM gig_event_log'),
		join('|', $id + 5, @{ $before->{gig_event_log} } + @deliveries + @batch + 5),
		"$mode: the log has all of it");

	# Roles.
	is(query($new, "SET ROLE worker; SELECT gigs.finish_gig_work($batch)"), '', "$mode: the leased batch is finished");
	like(answer($new, 'postgres', "SELECT gigs.finish_gig_work($batch)"), qr/^40001 /, "$mode: ... once");
	query($new, 'UPDATE gig_consumer_retry SET due_at = now()');
	is( query($new, "SET ROLE worker; SELECT sum(events) FROM gigs.read_gig_work('fetcher', 100000)"),
		query($new, q{
			SELECT count(*) + (SELECT sum(events) FROM gig_consumer_retry)
			FROM gig_event_log AS l
			JOIN gig_consumer AS c ON c.name = 'fetcher' AND c.part = gig_consumer_part(l.account_id, c.parts)
			WHERE l.outcome <> 'stale' AND l.event_id > c.position AND c.batch IS NOT NULL}),
		"$mode: ... and a worker reads on, with retries");
	is( query($new, q{SELECT sum(events) FROM read_gig_work('updates', 100000)}),
		query($new, q{SELECT count(*) FROM gig_event_log AS l, gig_consumer AS c WHERE c.name = 'updates' AND l.event = 'gigs.updated' AND l.event_id > c.position}),
		"$mode: ... as does the other consumer");
	is(query($new, 'SELECT * FROM retry_gig_quarantine()'), '1|1', "$mode: quarantined webhooks are tried again");
	isnt(
		$new->psql('postgres', "SET ROLE nobody_special; SELECT gigs.ingest_gig_event('', NULL)",
			stderr => \my $stderr),
		0, "$mode: another role may not ingest");
	like($stderr, qr/permission denied for function/, "$mode: ... by lack of the privilege");

	is(query($new, 'SELECT accounts_skipped FROM rebuild_gig_sync()'),
		'0', "$mode: the accounts can be rebuilt from old and new events");
	is(troubles($new, 'postgres'), '', "$mode: log, accounts and indexes agree");
	$new->stop;
}

done_testing();
