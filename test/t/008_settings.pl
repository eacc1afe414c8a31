# A role that may ingest brings no settings that change what is counted, and
# becomes no other role.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('settings');

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'secret');
	CREATE ROLE receiver LOGIN;
	SELECT gigs.grant_gig_receiver('receiver');
	CREATE ROLE tenant LOGIN CREATEDB;
	CREATE DATABASE tenant OWNER tenant;
});

sub as_receiver
{
	my ($sql, %options) = @_;
	my ($stdout, $stderr);

	local $ENV{PGOPTIONS} = $options{pgoptions} || '';
	$node->psql('postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-U', 'receiver' ],
		on_error_stop => 0);
	return ($stdout, $stderr);
}

my $event = bytea_literal(
	'{"event":"gigs.added","name":"unsigned","data":{"account":"00000000-0000-4000-8000-000000000001",'
	  . '"user":"00000000-0000-4000-9000-000000000001","available_count":1,"added_count":1}}');
my $ingest = "SELECT outcome FROM gigs.try_ingest_gig_event($event, NULL)";
my $settings = join ', ',
  map { "current_setting('gigs_webhooks.$_')" } qw(dedupe_window max_body_size direct_writes);
my $unchanged = "duplicate\n3d|8MB|on";

is((as_receiver("$ingest; SELECT $settings"))[0], "applied\n3d|8MB|on", 'an event is applied, with these settings');

# ---------------------------------------------------------------------------
# Settings that decide what is counted
# ---------------------------------------------------------------------------

my $options = '-c gigs_webhooks.dedupe_window=0 -c gigs_webhooks.max_body_size=1kB -c gigs_webhooks.direct_writes=off';
my $set = 'SET gigs_webhooks.dedupe_window = 0; SET gigs_webhooks.max_body_size = 1024; SET gigs_webhooks.direct_writes = off;';

# Without the module these are placeholders, which any role may set.
for my $way (
	[ 'PGOPTIONS', '', $options ],
	[ 'SET before the module is loaded', $set, '' ],
	[ 'set_config()', "SELECT FROM set_config('gigs_webhooks.dedupe_window', '0', false);", '' ],
	[ 'SET LOCAL', 'BEGIN; SET LOCAL gigs_webhooks.dedupe_window = 0;', '' ],
	[ 'SET in a savepoint', 'BEGIN; SAVEPOINT s; SET gigs_webhooks.dedupe_window = 0; RELEASE s;', '' ],
	[ 'PGOPTIONS and SET', $set, $options ],
	[ 'SET after the module is loaded', "SELECT FROM gigs.gig_dedupe_window(); $set", '' ])
{
	my ($title, $sql, $pgoptions) = @$way;
	my ($stdout) = as_receiver("$sql $ingest; SELECT $settings", pgoptions => $pgoptions);

	is($stdout =~ s/^\n//r, $unchanged, "$title: sets nothing");
}
is((as_receiver("SET gigs_webhooks.stalled_after = '1h'; SELECT gigs.gig_stalled_after()"))[0],
	'01:00:00', 'what only a report shows may be set by any role');

# A setting that is stored for a role or a database takes the same privilege.
for my $statement ('ALTER ROLE receiver SET gigs_webhooks.dedupe_window = 0',
	'ALTER DATABASE tenant SET gigs_webhooks.dedupe_window = 0')
{
	my $role = $statement =~ /ROLE (\w+)/ ? $1 : 'tenant';
	my $stderr;

	$node->psql('postgres', $statement, stderr => \$stderr, extra_params => [ '-U', $role ]);
	like($stderr, qr/permission denied to set parameter|unrecognized/, "$statement: is refused");
}
is((as_receiver("$ingest; SELECT $settings"))[0], $unchanged, '... and has no effect');

# A superuser may set it for a role.
$node->safe_psql('postgres', q{LOAD 'gigs_webhooks'; ALTER ROLE receiver SET gigs_webhooks.dedupe_window = 0});
is((as_receiver($ingest))[0], 'applied', 'a setting that a superuser has stored for the role takes effect');

# ---------------------------------------------------------------------------
# Other roles and their tables
# ---------------------------------------------------------------------------

for my $statement (
	'SET ROLE postgres', 'SET SESSION AUTHORIZATION postgres',
	'SET SESSION AUTHORIZATION tenant', 'SET ROLE tenant',
	'ALTER ROLE receiver SUPERUSER',
	'SELECT secrets FROM gigs.gig_subscription',
	'COPY gigs.gig_subscription TO STDOUT',
	'SELECT body FROM gigs.gig_event_log',
	'INSERT INTO gigs.gig_quarantine SELECT',
	'SELECT gigs.ingest_authentic_gig_event(\'{}\', now(), false)',
	'SELECT gigs.reconcile_gig_accounts(\'[]\')',
	"SELECT gigs.gig_subscription_request('signed')",
	"SELECT gigs.ingest_gig_events('{}', '{}', '{}')",
	'SELECT gigs.retry_gig_quarantine()',
	"SELECT gigs.read_gig_work('x')")
{
	like((as_receiver($statement))[1], qr/permission denied|must be superuser|must be member/, "$statement: is refused");
}

$node->stop;
done_testing();
