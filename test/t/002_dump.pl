# Dumps and restores: all rows of the extension's tables, its sequences and its
# privileges come along, and the restored database continues where the other one
# was.  pg_dump leaves out the tables of an extension that does not name them.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# pg_dump, the extension's script and the module have to quote this name.
my $schema = '"Odd; Schema %s - name"';

my $node = start_node('dump');
my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $name = 'name-for-the-webhook-subscription';
my @kinds = map { "gigs.$_" } qw(partially_synced fully_synced added updated removed);

sub query
{
	my ($dbname, $query) = @_;

	return $node->safe_psql($dbname, "SET search_path = $schema; SET TimeZone = 'UTC'; $query");
}

# Returns the outcome, and the event_id or the SQLSTATE.
sub ingest
{
	my ($dbname, $body, $secret, $role) = @_;

	return query($dbname,
		    ($role ? "SET ROLE $role; " : '')
		  . 'SELECT outcome, event_id, sqlstate FROM try_ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal(sign($body, $secret)) . ')');
}

# Returns the tables or the sequences of the extension.
sub members
{
	my ($kind) = @_;

	return split /\n/, query('source', qq{
		SELECT c.oid::regclass
		FROM pg_depend AS d
		JOIN pg_class AS c ON c.oid = d.objid
		WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
			AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks')
			AND c.relkind = '$kind'
		ORDER BY c.relname});
}

sub dump_database
{
	my ($dbname, $file, @options) = @_;

	$node->command_ok(
		[ 'pg_dump', @options, '-d', $node->connstr($dbname), '-f', "$tempdir/$file" ],
		"pg_dump @options of $dbname");
	return;
}

sub restore_database
{
	my ($dbname, $file, @command) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->command_ok([ @command, '-d', $node->connstr($dbname), ($command[0] eq 'psql' ? '-f' : ()), "$tempdir/$file" ],
		"$dbname: restored by $command[0]");
	return;
}

# ---------------------------------------------------------------------------
# Rows in all tables
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', q{
	CREATE DATABASE source;
	CREATE ROLE receiver;
	CREATE ROLE worker;
	CREATE ROLE nobody_special;
	CREATE ROLE gigs_owner});
$node->safe_psql('source', "CREATE SCHEMA $schema; CREATE EXTENSION gigs_webhooks SCHEMA $schema;");
query('source', qq{
	SELECT create_gig_subscription('$name', 'https://example.com/a?b=''c''', 'current',
		ARRAY['*'], '{"days_synced": [30, 60]}');
	SELECT add_gig_secret('$name', 'coming');
	SELECT add_gig_secret('$name', 'gone');
	SELECT retire_gig_secret('$name', 'gone');
	SELECT create_gig_subscription('unsigned', 'https://example.com/');
	SELECT create_gig_consumer('fetcher', parts => 2);
	SELECT create_gig_consumer('done');
	GRANT USAGE ON SCHEMA $schema TO nobody_special;
	SELECT grant_gig_receiver('receiver');
	SELECT grant_gig_consumer('worker');
	CREATE TABLE public.inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON public.inbox
		FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
});
ingest('source', payload($_), 'current') for @kinds[ 0 .. 3 ];
ingest('source', payload($kinds[1]), 'coming');
query('source',
	    'INSERT INTO public.inbox (body, signature) VALUES ('
	  . bytea_literal(payload('gigs.removed')) . ', '
	  . text_literal(sign(payload('gigs.removed'), 'current'))
	  . "), ('junk', NULL)");
query('source', q{
	SELECT FROM reconcile_gig_accounts('{"id": "0187c66e-e7e5-811c-b006-2232f00f426a", "user": "018051aa-f7a9-a0db-2f38-6cfa325e9d69",
		"availability": {"gigs": {"status": "synced", "available_count": 2390}}}')});

# A webhook that this version does not know, and one that only an earlier version
# did not know.
my $unknown = qq({"event":"gigs.moved","name":"$name","data":{}});
my $known_now = payload('gigs.added');
$known_now =~ s/2385/7777/;
is(ingest('source', $unknown, 'current'), 'quarantined||0A000', 'a webhook is quarantined');
query('source',
	    'INSERT INTO gig_quarantine (received_at, name, sqlstate, message, body) VALUES '
	  . "(now() - interval '1 hour', '$name', '0A000', 'unsupported event', " . bytea_literal($known_now) . ')');

# One consumer has a batch and a retry, the other one has finished.
query('source', q{
	SELECT finish_gig_work((SELECT min(batch) FROM read_gig_work('done')));
	SELECT retry_gig_work(batch, account_id, 'HTTP 500', '0') FROM read_gig_work('fetcher', 2);
	SELECT finish_gig_work((SELECT max(batch) FROM gig_consumer));
	SELECT FROM read_gig_work('fetcher', lease => '1 day')});

# The last ids are not in the log, as after a rollback.
query('source', q{
	BEGIN;
	SELECT nextval('gig_event_log_event_id_seq') FROM generate_series(1, 10);
	SELECT nextval('gig_quarantine_quarantine_id_seq') FROM generate_series(1, 10);
	ROLLBACK});

my @tables = members('r');
my @sequences = members('S');
is(scalar @tables, 6, 'the extension has six tables');
is(scalar @sequences, 3, '... and three sequences');
is( query('source', "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = '$schema'::regnamespace"),
	'0', '... that pg_restore -j can fill in any order');
isnt(query('source', "SELECT count(*) FROM $_"), '0', "$_ has rows") for @tables;
my $batch = query('source', 'SELECT batch FROM gig_consumer WHERE batch IS NOT NULL');
like($batch, qr/^\d+$/, 'a batch is leased');

# Returns all that a dump has to bring along, a list of lines by its title.
sub contents
{
	my ($dbname) = @_;
	my %contents = map { $_ => query($dbname, "SELECT t::text FROM $_ AS t ORDER BY t::text COLLATE \"C\"") } @tables, 'public.inbox';

	$contents{$_} = query($dbname, "SELECT last_value, is_called FROM $_") for @sequences;
	$contents{privileges} = query($dbname, qq{
		SELECT r, p.oid::regprocedure::text FROM pg_proc AS p, unnest(ARRAY['receiver', 'worker', 'nobody_special']) AS r
		WHERE p.pronamespace = '$schema'::regnamespace AND has_function_privilege(r, p.oid, 'EXECUTE')
		UNION ALL
		SELECT r, c.oid::regclass::text FROM pg_class AS c, unnest(ARRAY['receiver', 'worker', 'nobody_special']) AS r
		WHERE c.relnamespace = '$schema'::regnamespace AND c.relkind IN ('r', 'v') AND has_table_privilege(r, c.oid, 'SELECT')
		ORDER BY 1, 2});
	return \%contents;
}

sub is_same
{
	my ($dbname, $expected) = @_;
	my $got = contents($dbname);

	is($got->{$_}, $expected->{$_}, "$dbname: $_: the same") for sort keys %$expected;
	return;
}

# Checks that a restored database continues.
sub continues
{
	my ($dbname) = @_;
	my $next = query($dbname, 'SELECT last_value FROM gig_event_log_event_id_seq') + 1;
	my $new = payload('gigs.added');

	$new =~ s/2385/2386/;
	is(query($dbname, "SELECT gig_subscription_request('$name')"),
		query('source', "SELECT gig_subscription_request('$name')"),
		"$dbname: the subscription can be requested again");
	for my $kind (@kinds)
	{
		is(ingest($dbname, payload($kind), 'coming'), "duplicate|$next|", "$dbname: $kind is a redelivery");
		is( query($dbname, "SELECT o.event FROM gig_event_log AS d JOIN gig_event_log AS o ON o.event_id = d.duplicate_of WHERE d.event_id = $next"),
			$kind, '... of the event in the dump');
		$next++;
	}
	is(ingest($dbname, $new, 'gone'), 'rejected||28000', "$dbname: a retired secret stays retired");
	is(ingest($dbname, $new, 'current', 'receiver'), "applied|$next|", "$dbname: the receiver ingests a new event");
	isnt(
		$node->psql($dbname, "SET ROLE nobody_special; SELECT $schema.ingest_gig_event('', NULL)", stderr => \my $stderr),
		0, "$dbname: another role may not");
	like($stderr, qr/permission denied for function/, '... by lack of the privilege');
	is(query($dbname, 'SELECT * FROM rebuild_gig_sync()'), '1|0', "$dbname: the account can be rebuilt");

	# Consumers
	is(query($dbname, "SET ROLE worker; SELECT finish_gig_work($batch)"), '', "$dbname: the leased batch can be finished");
	like(answer($node, $dbname, "SELECT $schema.finish_gig_work($batch)"), qr/^40001 /, '... once');
	is( query($dbname, "SET ROLE worker; SELECT batch > $batch, events, last_event_id = $next FROM read_gig_work('fetcher')"),
		't|6|t', '... and the next one has what has come since');
	is(query($dbname, 'SELECT gig_account_fetched(\'done\', account_id) FROM gig_account_sync'), 'f', '... as has the other consumer');
	is( query($dbname, "SELECT events FROM read_gig_work('done')"), '6', '... which reads it');

	# Quarantine
	is(query($dbname, 'SELECT * FROM retry_gig_quarantine()'), '1|1', "$dbname: quarantined webhooks are tried again");
	is( query($dbname, "SELECT count(*) FROM gig_event_log WHERE received_at < now() - interval '50 minutes' AND body = " . bytea_literal($known_now)),
		'1', '... with the time of receipt');
	ingest($dbname, $unknown, 'current');
	is( query($dbname, 'SELECT max(quarantine_id) FROM gig_quarantine'), '13', '... and new ones get new numbers');
	return;
}

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

my $source = contents('source');
like($source->{privileges}, qr/^receiver\|ingest_gig_event\(bytea,text\)$/m, 'the receiver has privileges');
like($source->{privileges}, qr/^worker\|read_gig_work\(/m, '... and the worker');
unlike($source->{privileges}, qr/^nobody_special\|.*ingest/m, '... and the third role has none on ingestion');

dump_database('source', 'plain.sql');
dump_database('source', 'custom', '-Fc');
dump_database('source', 'directory', '-Fd', '-j', '2');
restore_database('plain', 'plain.sql', 'psql', '-X', '-q', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1');
restore_database('custom', 'custom', 'pg_restore', '--exit-on-error');
restore_database('parallel', 'directory', 'pg_restore', '--exit-on-error', '-j', '2');
is_same($_, $source) for 'plain', 'custom', 'parallel';

# A dump of what was restored is the same again.
dump_database('custom', 'again', '-Fc');
restore_database('again', 'again', 'pg_restore', '--exit-on-error', '-j', '2');
is_same('again', $source);
continues($_) for 'plain', 'parallel', 'again';

# ---------------------------------------------------------------------------
# Given to another owner
# ---------------------------------------------------------------------------

# pg_dump does not save owners of an extension's members: they are those of the
# user who restores, until they are given away again.
sub owners
{
	my ($dbname) = @_;

	return query($dbname, qq{
		SELECT DISTINCT relowner::regrole FROM pg_class WHERE relnamespace = '$schema'::regnamespace AND relkind IN ('r', 'v', 'S')
		UNION
		SELECT DISTINCT proowner::regrole FROM pg_proc WHERE pronamespace = '$schema'::regnamespace});
}

query('source', "GRANT USAGE ON SCHEMA $schema TO gigs_owner");
give_extension($node, 'source', 'gigs_owner');
is(owners('source'), 'gigs_owner', 'the extension is given to a role');
is_same('source', $source);
dump_database('source', 'given', '-Fc');
restore_database('given', 'given', 'pg_restore', '--exit-on-error', '-j', '2');
is_same('given', $source);
restore_database('given_again', 'given', 'pg_restore', '--exit-on-error');
give_extension($node, 'given_again', 'gigs_owner');
is(owners('given_again'), 'gigs_owner', 'the restored extension is given to the role');
is_same('given_again', $source);
continues($_) for 'given', 'given_again';

$node->stop;
done_testing();
