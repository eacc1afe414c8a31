# What pg_dump saves is all there is: the tables of an extension are left out
# of a dump unless the extension asks for them.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# pg_dump, the extension's script and the module's own statements all have to
# quote this.
my $schema = '"Odd; Schema %s - name"';

my $node = start_node('dump');
my $tempdir = PostgreSQL::Test::Utils::tempdir;
my $name = 'name-for-the-webhook-subscription';
my @kinds = map { "gigs.$_" } qw(partially_synced fully_synced added updated
  removed);

sub query
{
	my ($dbname, $query) = @_;

	return $node->safe_psql($dbname,
		"SET search_path = $schema; SET TimeZone = 'UTC'; $query");
}

# The outcome, and the event_id or the SQLSTATE.
sub ingest
{
	my ($dbname, $body, $secret, $role) = @_;

	return query($dbname,
		    ($role ? "SET ROLE $role; " : '')
		  . 'SELECT outcome, event_id, sqlstate FROM try_ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal(sign($body, $secret))
		  . ')');
}

sub tables
{
	my ($dbname) = @_;

	return split /\n/, query($dbname, q{
		SELECT c.oid::regclass
		FROM pg_depend AS d
		JOIN pg_class AS c ON c.oid = d.objid
		WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
			AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks')
			AND c.relkind IN ('r', 'p')
		ORDER BY c.relname});
}

# ---------------------------------------------------------------------------
# Something of everything
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE source; CREATE ROLE receiver; CREATE ROLE nobody_special;');
$node->safe_psql('source', "CREATE SCHEMA $schema; CREATE EXTENSION gigs_webhooks SCHEMA $schema;");
query('source', qq{
	SELECT create_gig_subscription('$name', 'https://example.com/a?b=''c''', 'current',
		ARRAY['*'], '{"days_synced": [30, 60]}');
	SELECT add_gig_secret('$name', 'coming');
	SELECT add_gig_secret('$name', 'gone');
	SELECT retire_gig_secret('$name', 'gone');
	SELECT create_gig_subscription('unsigned', 'https://example.com/');
	GRANT USAGE ON SCHEMA $schema TO receiver, nobody_special;
	GRANT EXECUTE ON FUNCTION try_ingest_gig_event(bytea, text) TO receiver;
	CREATE TABLE public.inbox (body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON public.inbox
		FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
});
ingest('source', payload($_), 'current') for @kinds[ 0 .. 3 ];
ingest('source', payload('gigs.fully_synced'), 'coming');
query('source',
	    'INSERT INTO public.inbox (body, signature) VALUES ('
	  . bytea_literal(payload('gigs.removed')) . ', '
	  . text_literal(sign(payload('gigs.removed'), 'current'))
	  . "), ('junk', NULL)");

# The last id is not in the log, as after a rollback: a restored sequence that
# only knew the log would give it out again.
query('source', q{
	BEGIN;
	SELECT nextval('gig_event_log_event_id_seq') FROM generate_series(1, 10);
	ROLLBACK});

my @tables = tables('source');
is(scalar @tables, 6, 'the extension has six tables');
is( query('source',
		"SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = '$schema'::regnamespace"),
	'0',
	'... of which pg_restore -j can fill any two at the same time');
for my $table (@tables)
{
	isnt(query('source', "SELECT count(*) FROM $table"),
		'0', "$table is worth dumping");
}

# ---------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------

$node->command_ok(
	[ 'pg_dump', '-d', $node->connstr('source'), '-f', "$tempdir/plain" ],
	'pg_dump');
$node->command_ok(
	[
		'pg_dump', '-Fc', '-d', $node->connstr('source'),
		'-f', "$tempdir/custom"
	],
	'pg_dump -Fc');
$node->safe_psql('postgres', "CREATE DATABASE $_")
  for 'plain', 'custom', 'parallel';
$node->command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
		$node->connstr('plain'),
		'-f', "$tempdir/plain"
	],
	'the dump is restored by psql');
$node->command_ok(
	[
		'pg_restore', '--exit-on-error', '-d', $node->connstr('custom'),
		"$tempdir/custom"
	],
	'... by pg_restore');
$node->command_ok(
	[
		'pg_restore', '--exit-on-error', '-j', '2', '-d',
		$node->connstr('parallel'), "$tempdir/custom"
	],
	'... and by pg_restore -j 2');

# Another event, that neither database knows.
my $new = payload('gigs.added');
$new =~ s/2385/2386/;
my ($highest) = query('source',
	'SELECT last_value FROM gig_event_log_event_id_seq');

for my $dbname ('plain', 'custom', 'parallel')
{
	for my $table (@tables, 'public.inbox')
	{
		my $rows = "SELECT t::text FROM $table AS t ORDER BY 1";

		is(query($dbname, $rows),
			query('source', $rows), "$dbname: $table is the same");
	}

	is(query($dbname, "SELECT gig_subscription_request('$name')"),
		query('source', "SELECT gig_subscription_request('$name')"),
		"$dbname: the subscription can be requested again");
	for my $kind (@kinds)
	{
		my $event_id =
		  query('source', "SELECT event_id FROM gig_event_log WHERE event = '$kind'");

		is(ingest($dbname, payload($kind), 'coming'),
			"duplicate|$event_id|", "$dbname: $kind is a redelivery");
	}
	is(ingest($dbname, $new, 'gone'),
		'rejected||28000', "$dbname: a retired secret stays retired");
	is( ingest($dbname, $new, 'current', 'receiver'),
		'applied|' . ($highest + 1) . '|',
		"$dbname: a new event has the next id; the receiver may bring it");
	isnt(
		$node->psql(
			$dbname,
			"SET ROLE nobody_special; SELECT $schema.ingest_gig_event('', NULL)",
			stderr => \my $stderr),
		0,
		"$dbname: nobody else may");
	like($stderr, qr/permission denied for function/, '... and is told so');
	is(query($dbname, 'SELECT * FROM rebuild_gig_sync()'),
		'1|0', "$dbname: the account can be rebuilt");
}

# A dump of what was restored is no poorer.
$node->command_ok(
	[ 'pg_dump', '-d', $node->connstr('plain'), '-f', "$tempdir/again" ],
	'pg_dump of the restored database');
$node->safe_psql('postgres', 'CREATE DATABASE again');
$node->command_ok(
	[
		'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d',
		$node->connstr('again'),
		'-f', "$tempdir/again"
	],
	'... is restored');
is( join("\n", map { query('again', "SELECT t::text FROM $_ AS t ORDER BY 1") } @tables),
	join("\n", map { query('plain', "SELECT t::text FROM $_ AS t ORDER BY 1") } @tables),
	'... and still the same');

$node->stop;

done_testing();
