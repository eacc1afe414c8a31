# Who updates has what a new installation has.
#
# test/upgrade/ holds the installation script of the version before, as it was.

use strict;
use warnings;

use File::Copy qw(copy);
use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $old_version = '1.0.0';
my $script = "gigs_webhooks--$old_version.sql";
my $node = start_node('update');
my $directory = $node->safe_psql('postgres',
	"SELECT setting || '/extension' FROM pg_config WHERE name = 'SHAREDIR'");

plan skip_all => "$directory is not to be written to"
  if !copy("$FindBin::RealBin/../upgrade/$script", "$directory/$script");
END { unlink "$directory/$script" if defined $directory }

# All that makes up the extension, as statements.  The numbers of objects are
# another database's.
sub definition
{
	my ($dbname) = @_;
	my ($dump) = run_command(
		[
			'pg_dump', '--schema-only', '--binary-upgrade', '-d',
			$node->connstr($dbname)
		]);

	# the default of a column that was added, for the rows that were there
	$dump =~ s/^-- set missing value\..*\n//mg;
	$dump =~ s/^SELECT pg_catalog\.binary_upgrade_set.*\n//mg;
	$dump =~ s/^-- For binary upgrade, must preserve.*\n//mg;
	$dump =~ s/^(SELECT pg_catalog\.binary_upgrade_create_empty_extension\(.*)$/
	  (my $line = $1) =~ s{\b\d{5,}\b}{N}g; $line/meg;
	$dump =~ s/^WHERE oid = '\d+';$/WHERE oid = N;/mg;
	# frozen transaction IDs
	$dump =~ s/^SET relfrozenxid = .*$/SET relfrozenxid/mg;
	# PostgreSQL makes up a key for psql anew each time
	$dump =~ s/^\\(un)?restrict .*$//mg;
	return [ grep { $_ ne '' } split /\n/, $dump ];
}

sub query
{
	my ($query) = @_;

	return $node->safe_psql('updated', "SET search_path = gigs; $query");
}

# Who is given everything that is made is not given what is the owner's alone.
$node->safe_psql('postgres', 'CREATE ROLE nosy');
for my $dbname ('updated', 'fresh')
{
	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->safe_psql($dbname, 'ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO nosy');
}
$node->safe_psql('fresh', 'CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs');
$node->safe_psql('updated',
	"CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs VERSION '$old_version'");

isnt(first_difference(definition('updated'), definition('fresh')),
	'', 'the versions differ');

query(q{
	SELECT create_gig_subscription('unsigned', 'https://example.com/');
	SELECT create_gig_subscription('signed', 'https://example.com/', 'secret');
	SELECT create_gig_subscription('once signed', 'https://example.com/', 'gone');
	SELECT retire_gig_secret('once signed', 'gone')});

# A session with the new library, which it has loaded before the update
my $session = $node->background_psql('updated', on_error_stop => 0);
my $n = 0;

sub ingest
{
	my ($name, $secret) = @_;
	my $body = payload('gigs.added');

	$n++;
	$body =~ s/name-for-the-webhook-subscription/$name/;
	$body =~ s/2385/$n/;
	return ask($session,
		    'SELECT concat_ws(\' \', outcome, sqlstate) FROM gigs.try_ingest_gig_event('
		  . bytea_literal($body) . ', '
		  . text_literal(defined $secret ? sign($body, $secret) : undef)
		  . ')');
}

like(ingest('unsigned'), qr/^42804$/, 'before the update, nothing is accepted');
$node->psql('updated',
	"SELECT gigs.ingest_gig_event('{\"name\":\"unsigned\"}', NULL)",
	stderr => \my $stderr);
like($stderr, qr/HINT:.*ALTER EXTENSION gigs_webhooks UPDATE/, '... and it says why');

# Who may create objects in the extension's schema has none of them called.
query(q{
	CREATE ROLE attacker;
	GRANT USAGE, CREATE ON SCHEMA gigs TO attacker;
	SET ROLE attacker;
	CREATE FUNCTION trap(oid, regprocedure) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
	CREATE FUNCTION trap(oid, integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
	CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = regprocedure, FUNCTION = trap);
	CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = integer, FUNCTION = trap);
	CREATE OPERATOR <> (LEFTARG = oid, RIGHTARG = integer, FUNCTION = trap)});

# Nor has a trigger of the tables' owner run as who updates.
query(q{
	CREATE ROLE tables_owner;
	GRANT USAGE, CREATE ON SCHEMA gigs TO tables_owner;
	CREATE TABLE ran (as_user name);
	GRANT INSERT ON ran TO tables_owner;
	CREATE FUNCTION ran() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO gigs.ran VALUES (current_user); RETURN new; END';
	CREATE TRIGGER ran BEFORE UPDATE ON gig_subscription FOR EACH ROW EXECUTE FUNCTION ran()});

sub give_tables
{
	my ($owner) = @_;

	query("ALTER TABLE $_ OWNER TO $owner")
	  for qw(gig_subscription gig_subscription_secret gig_event_log gig_delivery gig_account_sync gig_change);
	return;
}

give_tables('tables_owner');
query('ALTER EXTENSION gigs_webhooks UPDATE; DROP OWNED BY attacker');
give_tables('CURRENT_USER');
is(query('SELECT DISTINCT as_user FROM ran'), 'tables_owner', 'triggers have run as the tables\' owner');
query('DROP TRIGGER ran ON gig_subscription; DROP FUNCTION ran(); DROP TABLE ran; DROP OWNED BY tables_owner');

is(first_difference(definition('updated'), definition('fresh')),
	'', 'an updated extension is what a new one is');
is( query('SELECT name, signed FROM gig_subscription ORDER BY name'),
	"once signed|t\nsigned|t\nunsigned|f",
	'subscriptions that had a secret are signed');
is(ingest('unsigned'), 'applied', 'an unsigned one is still open');
is(ingest('unsigned', 'secret'), 'rejected 28000', '... to what is not signed');
is(ingest('signed', 'secret'), 'applied', 'a signed one knows its secret');
is(ingest('signed'), 'rejected 28000', '... and needs it');
is(ingest('once signed'), 'rejected 28000', 'one whose secret is retired stays closed');
is(ingest('once signed', 'gone'), 'rejected 28000', '... to all');

$session->quit;
$node->stop;
done_testing();
