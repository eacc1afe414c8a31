# Secrets appear nowhere but in gig_subscription: not in the server's log, not in
# messages to clients, not in statistics of statements, not in dumps of roles that
# may not read the table.
#
# Statements and parameters of statements that hold a secret are logged as
# log_min_error_statement, log_statement and auto_explain say; so these tests take
# the secrets from a table.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node(
	'secrets',
	'log_error_verbosity = verbose',
	'log_min_error_statement = error',
	'log_parameter_max_length_on_error = 0');
my $body = bytea_literal(payload('gigs.fully_synced'));
my $name = 'name-for-the-webhook-subscription';
my %secrets = map { $_ => "$_-3f9c1b7e" } qw(first second third wrong);

sub query
{
	my ($query) = @_;

	return $node->safe_psql('postgres', "SET search_path = gigs; $query");
}

sub installed
{
	my ($extension) = @_;

	return query("SELECT count(*) FROM pg_available_extensions WHERE name = '$extension'");
}

# All that clients were told.
my $told = '';

sub attempt
{
	my ($sql) = @_;
	my ($stdout, $stderr);

	$node->psql('postgres', "SET search_path = gigs; $sql",
		stdout => \$stdout, stderr => \$stderr, on_error_stop => 0);
	$told .= "$stdout\n$stderr\n";
	return $stderr;
}

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	CREATE ROLE receiver LOGIN;
	SELECT gigs.grant_gig_receiver('receiver');
	CREATE TABLE public.input (label text, secret text)});
query('SET log_min_error_statement = panic; INSERT INTO public.input VALUES '
	  . join(', ', map { "('$_', '$secrets{$_}')" } sort keys %secrets));
my $secret = sub { "(SELECT secret FROM public.input WHERE label = '$_[0]')" };
my $first = $secret->('first');
my $wrong = $secret->('wrong');

# ---------------------------------------------------------------------------
# Logs and messages
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "log_min_messages = debug5\nclient_min_messages = debug5\n");
$node->reload;
my $log_start = -s $node->logfile;

attempt("SELECT create_gig_subscription('$name', 'https://example.com/', $first)");
attempt("SELECT add_gig_secret('$name', " . $secret->('second') . ')');
for my $call (
	"create_gig_subscription('$name', 'u', $wrong)",
	"create_gig_subscription('', 'u', $wrong)",
	"create_gig_subscription(NULL, 'u', $wrong)",
	"create_gig_subscription('x', NULL, $wrong)",
	"create_gig_subscription('x', 'u', $wrong, '{}')",
	"create_gig_subscription('x', 'u', $wrong, NULL)",
	"create_gig_subscription(repeat('x', 2000), 'u', $wrong)",
	"create_gig_subscription('x', 'u', $wrong, ARRAY['*'], '[1]')",
	"add_gig_secret('$name', $first)",
	"add_gig_secret('nobody', $wrong)",
	"add_gig_secret(NULL, $wrong)",
	"retire_gig_secret('$name', $wrong)",
	"retire_gig_secret('nobody', $wrong)",
	"retire_gig_secret('$name', $first, NULL)",
	"ingest_gig_event('{', sign_gig_event('{', $first))",
	"ingest_gig_event($body, sign_gig_event($body, $wrong))",
	"ingest_gig_event($body, $first)")
{
	like(attempt("SELECT $call"), qr/ERROR:/, substr("$call: is an error", 0, 70));
}
for my $call (
	"try_ingest_gig_event($body, $wrong)",
	"ingest_gig_events(ARRAY[$body], ARRAY[$wrong])",
	"verify_gig_signature($body, $wrong, $first)",
	"ingest_gig_event($body, sign_gig_event($body, $first))",
	"add_gig_secret('$name', ' ' || $wrong)",
	"retire_gig_secret('$name', ' ' || $wrong)")
{
	unlike(attempt("SELECT $call"), qr/ERROR:/, substr("$call: is none", 0, 70));
}

# The table is not as the functions expect it.  (A constraint that the owner adds
# to it reports the failing row, with its secrets.)
for my $change (
	[ 'CREATE UNIQUE INDEX i ON gig_subscription ((1))', 'DROP INDEX i' ],
	[ 'ALTER TABLE gig_subscription RENAME TO gone', 'ALTER TABLE gone RENAME TO gig_subscription' ],
	[ 'ALTER TABLE gig_subscription RENAME secrets TO gone', 'ALTER TABLE gig_subscription RENAME gone TO secrets' ])
{
	attempt($change->[0]);
	attempt("SELECT add_gig_secret('$name', $wrong)");
	attempt("SELECT retire_gig_secret('$name', $first)");
	attempt("SELECT create_gig_subscription('x', 'u', $wrong)");
	attempt($change->[1]);
	attempt("DELETE FROM gig_subscription WHERE name = 'x'; UPDATE gig_subscription SET secrets[1].retired_at = NULL");
}

# Calls that are cancelled
my $holder = $node->background_psql('postgres', on_error_stop => 0);
ask($holder, 'BEGIN; LOCK TABLE gigs.gig_subscription');
for my $setting ('lock_timeout', 'statement_timeout')
{
	like(attempt("SET $setting = '50ms'; SELECT add_gig_secret('$name', $wrong)"),
		qr/canceling statement due to/, "$setting cancels add_gig_secret");
	like(attempt("SET $setting = '50ms'; SELECT retire_gig_secret('$name', $first)"),
		qr/canceling statement due to/, "$setting cancels retire_gig_secret");
}
$holder->quit;
$node->append_conf('postgresql.conf', "log_min_messages = warning\nclient_min_messages = notice\n");
$node->reload;

my $log = substr slurp_file($node->logfile), $log_start;
like($log, qr/DEBUG:/, 'all is logged');
like($log, qr/duplicate key value violates/, '... also how the table refuses rows');
for my $label (sort keys %secrets)
{
	my $hex = unpack 'H*', $secrets{$label};

	unlike($log, qr/\Q$secrets{$label}\E|$hex/, "the $label secret is not in the log");
	unlike($told, qr/\Q$secrets{$label}\E|$hex/, "... nor in a message to a client");
}

# ---------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------

# Any role may have the plans of its statements sent to itself, with the values of
# parameters as constants.
query(q{CREATE ROLE keeper LOGIN;
	GRANT USAGE ON SCHEMA gigs TO keeper;
	GRANT EXECUTE ON FUNCTION add_gig_secret, retire_gig_secret TO keeper});
query("SELECT add_gig_secret('$name', " . $secret->('third') . ')');
for my $call (
	"add_gig_secret('$name', 'guess-of-the-keeper')",
	"retire_gig_secret('$name', 'guess-of-the-keeper')",
	"retire_gig_secret('$name', 'wrong-guess')")
{
	my (undef, $plans) = run_command([ 'psql', '-XAt', '-U', 'keeper', '-d', $node->connstr('postgres'),
			'-c', 'SET client_min_messages = log', '-c', 'SET debug_print_plan = on', '-c', 'SET debug_pretty_print = off',
			'-c', 'SET plan_cache_mode = force_custom_plan', '-c', "SELECT gigs.$call" ]);
	my @constants = map { join '', map { chr($_ & 255) } split } $plans =~ /:constvalue\s+\d+\s+\[\s*([-\d\s]+)\]/g;

	ok(scalar(grep { /guess/ } @constants), "$call: plans show what the caller knows");
	ok(!grep({ /3f9c1b7e/ } @constants), '... and no secret of the subscription');
}
query("SELECT retire_gig_secret('$name', " . $secret->('third') . ')');

# ---------------------------------------------------------------------------
# Statistics of statements
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'pg_stat_statements is not installed', 2 if !installed('pg_stat_statements');
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = all\n");
	$node->restart;
	query('CREATE EXTENSION pg_stat_statements SCHEMA public');
	query("SELECT add_gig_secret('$name', '$secrets{third}')");
	query("SELECT retire_gig_secret('$name', '$secrets{third}')");
	query("SELECT gig_subscription_request('$name')");
	query("SELECT ingest_gig_event($body, sign_gig_event($body, '$secrets{second}'::text))");
	cmp_ok(query("SELECT count(*) FROM public.pg_stat_statements WHERE query LIKE '%gig_subscription%'"),
		'>=', 3, 'statements on secrets are in pg_stat_statements');
	unlike(query('SELECT query FROM public.pg_stat_statements'), qr/3f9c1b7e/, '... without the secrets');
}

# ---------------------------------------------------------------------------
# Dumps, views and catalogs
# ---------------------------------------------------------------------------

command_fails_like(
	[ 'pg_dump', '-U', 'receiver', '-d', $node->connstr('postgres') ],
	qr/permission denied for table/, 'a receiver cannot dump the database');
command_fails_like(
	[ 'pg_dump', '-U', 'receiver', '--data-only', '-t', 'gigs.gig_subscription', '-d', $node->connstr('postgres') ],
	qr/permission denied for table/, '... nor the table');
my ($schema_only) = run_command([ 'pg_dump', '--schema-only', '-d', $node->connstr('postgres') ]);
like($schema_only, qr/CREATE EXTENSION IF NOT EXISTS gigs_webhooks/, 'the schema can be dumped');
unlike($schema_only, qr/3f9c1b7e/, '... without secrets');

# Every role may read pg_stats of columns that it may select; statistics of others
# are hidden.
query('ANALYZE gig_subscription');
my ($seen) = run_command([ 'psql', '-XAt', '-U', 'receiver', '-d', $node->connstr('postgres'),
		'-c', "SELECT s::text FROM pg_stats AS s WHERE tablename = 'gig_subscription'" ]);
is($seen, '', 'statistics of the table are hidden from a receiver');

$node->stop;
done_testing();
