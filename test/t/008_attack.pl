# Attacks that take a server of one's own to show: on its log, its settings,
# its memory, and on what reaches it from elsewhere.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# Everything is logged that could be, but for the statements themselves, which
# hold no secrets here.
my $node = start_node(
	'attack',
	"log_error_verbosity = verbose",
	"log_min_error_statement = error",
	"log_parameter_max_length_on_error = 0",
	"log_line_prefix = '%m [%p] '");
my $body = payload('gigs.fully_synced');
my $name = 'name-for-the-webhook-subscription';

# None of these may be found anywhere.
my %secrets = map { $_ => "$_-3f9c1b7e" } qw(first second third wrong);

sub query
{
	my ($query, %options) = @_;

	return $node->safe_psql('postgres', "SET search_path = gigs; $query",
		%options);
}

sub installed
{
	my ($extension) = @_;

	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_available_extensions WHERE name = '$extension'");
}

$node->safe_psql('postgres', qq{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	CREATE ROLE receiver LOGIN;
	GRANT USAGE ON SCHEMA gigs TO receiver;
	GRANT EXECUTE ON FUNCTION gigs.ingest_gig_event(bytea, text), gigs.try_ingest_gig_event(bytea, text) TO receiver;
});

# ---------------------------------------------------------------------------
# Settings that somebody brings along
# ---------------------------------------------------------------------------

my $duplicate = bytea_literal(
	'{"event":"gigs.added","name":"unsigned","data":{"account":"00000000-0000-4000-8000-000000000001",'
	  . '"user":"00000000-0000-4000-9000-000000000001","available_count":1,"added_count":1}}'
);
my $ingest = "SELECT outcome FROM gigs.try_ingest_gig_event($duplicate, NULL)";

is($node->safe_psql('postgres', $ingest), 'applied', 'an event comes');

sub as_receiver
{
	my ($sql, %options) = @_;
	my ($stdout, $stderr);

	local $ENV{PGOPTIONS} = $options{pgoptions} || '';
	$node->psql(
		'postgres', $sql,
		stdout => \$stdout,
		stderr => \$stderr,
		extra_params => [ '-U', 'receiver' ],
		on_error_stop => 0);
	return ($stdout, $stderr);
}

my $settings = "SELECT current_setting('gigs_webhooks.dedupe_window'), current_setting('gigs_webhooks.max_body_size'), current_setting('gigs_webhooks.direct_writes')";
my @default = split /\|/, (as_receiver("$ingest; $settings"))[0] =~ s/.*\n//r;

is(join('|', @default), '3d|1MB|on', 'these are the settings');
my $own = '-c gigs_webhooks.dedupe_window=0 -c gigs_webhooks.max_body_size=1kB -c gigs_webhooks.direct_writes=off';
my $set = 'SET gigs_webhooks.dedupe_window = 0; SET gigs_webhooks.max_body_size = 1024; SET gigs_webhooks.direct_writes = off;';
for my $way (
	[ 'PGOPTIONS', '', $own ],
	[ 'SET before the module is loaded', $set, '' ],
	[ 'set_config', "SELECT FROM set_config('gigs_webhooks.dedupe_window', '0', false);", '' ],
	[ 'SET LOCAL', "BEGIN; SET LOCAL gigs_webhooks.dedupe_window = 0;", '' ],
	[ 'SET and a savepoint', "BEGIN; SAVEPOINT s; SET gigs_webhooks.dedupe_window = 0; RELEASE s;", '' ],
	[ 'both', $set, $own ])
{
	my ($title, $sql, $pgoptions) = @$way;
	my ($stdout) = as_receiver("$sql $ingest; $settings", pgoptions => $pgoptions);

	is($stdout, join("\n", 'duplicate', join '|', @default),
		"$title: nothing is set by who is no superuser");
}

# What is kept in the catalog needs the right to set it.
$node->safe_psql('postgres', 'CREATE ROLE tenant LOGIN CREATEDB; CREATE DATABASE tenant OWNER tenant;');
for my $statement ('ALTER ROLE receiver SET gigs_webhooks.dedupe_window = 0',
	'ALTER DATABASE tenant SET gigs_webhooks.dedupe_window = 0')
{
	my $role = $statement =~ /ROLE (\w+)/ ? $1 : 'tenant';
	my $stderr;

	$node->psql('postgres', $statement, stderr => \$stderr,
		extra_params => [ '-U', $role ]);
	like($stderr, qr/permission denied to set parameter|unrecognized/,
		"$statement: is refused");
}
is((as_receiver("$ingest; $settings"))[0],
	join("\n", 'duplicate', join '|', @default), '... and has no effect');

# Who is really somebody else can't become anybody.
for my $statement ('SET ROLE postgres', 'SET SESSION AUTHORIZATION postgres',
	'SET SESSION AUTHORIZATION tenant', 'SET ROLE tenant',
	'ALTER ROLE receiver SUPERUSER',
	'SELECT secret FROM gigs.gig_subscription_secret',
	'COPY gigs.gig_subscription_secret TO STDOUT')
{
	my (undef, $stderr) = as_receiver($statement);

	like($stderr, qr/permission denied|must be superuser|must be member/,
		"$statement: is refused");
}

# ---------------------------------------------------------------------------
# Secrets in logs, statistics and dumps
# ---------------------------------------------------------------------------

# The statements take them from a table, and so hold none themselves.
query('CREATE TABLE public.input (label text, secret text)');
query("SET log_min_error_statement = panic; INSERT INTO public.input VALUES "
	  . join(', ', map { "('$_', '$secrets{$_}')" } sort keys %secrets));
$node->append_conf('postgresql.conf', "log_min_messages = debug5\nclient_min_messages = debug5\n");
$node->reload;
my $secret = sub { "(SELECT secret FROM public.input WHERE label = '$_[0]')" };
my $first = $secret->('first');
my $wrong = $secret->('wrong');
my $log_start = -s $node->logfile;
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

attempt("SELECT create_gig_subscription('$name', 'https://example.com/', $first)");
attempt("SELECT add_gig_secret('$name', " . $secret->('second') . ')');
my $refused = 0;
for my $call (
	"create_gig_subscription('$name', 'u', $wrong)",
	"create_gig_subscription('', 'u', $wrong)",
	"create_gig_subscription(NULL, 'u', $wrong)",
	"create_gig_subscription('x', NULL, $wrong)",
	"create_gig_subscription('x', 'u', $wrong, '{}')",
	"create_gig_subscription('x', 'u', $wrong, NULL, '1')",
	"create_gig_subscription(repeat('x', 2000), 'u', $wrong)",
	"create_gig_subscription('x', 'u', $wrong, NULL, '[1]')",
	"add_gig_secret('$name', $first)",
	"add_gig_secret('nobody', $wrong)",
	"add_gig_secret(NULL, $wrong)",
	"retire_gig_secret('$name', $wrong)",
	"retire_gig_secret('nobody', $wrong)",
	"retire_gig_secret('$name', $first, NULL)",
	"gig_subscription_request('nobody')",
	"drop_gig_subscription('nobody')",
	"sign_gig_event(NULL::text, $wrong) || 1 / 0",
	"ingest_gig_event('{', sign_gig_event('{', $first))",
	"ingest_gig_event(" . bytea_literal($body) . ", sign_gig_event(" . bytea_literal($body) . ", $wrong))",
	"ingest_gig_event(" . bytea_literal($body) . ", $first)",
	"try_ingest_gig_event(" . bytea_literal($body) . ", $wrong)",
	"try_ingest_gig_event(" . bytea_literal($body) . ", NULL)",
	"ingest_gig_events(ARRAY[" . bytea_literal($body) . "], ARRAY[$wrong])",
	"ingest_gig_event(" . bytea_literal($body) . ", sign_gig_event(" . bytea_literal($body) . ", $first))")
{
	$refused++ if attempt("SELECT $call") =~ /ERROR:/;
}
is($refused, 20, 'what is wrong is an error, with a secret at hand');

# Constraints, triggers and rights that somebody has put on the table
for my $change (
	[ 'ALTER TABLE gig_subscription_secret ADD CONSTRAINT c CHECK (length(secret) > 1000) NOT VALID', 'ALTER TABLE gig_subscription_secret DROP CONSTRAINT c' ],
	[ 'ALTER TABLE gig_subscription_secret ADD note text; ALTER TABLE gig_subscription_secret ADD CONSTRAINT c CHECK (note IS NOT NULL) NOT VALID', 'ALTER TABLE gig_subscription_secret DROP note' ],
	[ 'CREATE UNIQUE INDEX i ON gig_subscription_secret ((1))', 'DROP INDEX i' ],
	[ 'CREATE INDEX i ON gig_subscription_secret ((1 / (length(secret) - length(secret)))) WHERE retired_at IS NULL AND created_at > now()', 'DROP INDEX i' ],
	[ 'ALTER TABLE gig_subscription_secret RENAME TO gone', 'ALTER TABLE gone RENAME TO gig_subscription_secret' ])
{
	attempt($change->[0]);
	attempt("SELECT add_gig_secret('$name', $wrong)");
	attempt("SELECT retire_gig_secret('$name', $first)");
	attempt("SELECT create_gig_subscription('x', 'u', $wrong)");
	attempt($change->[1]);
	attempt("DELETE FROM gig_subscription_secret WHERE secret = $wrong; DELETE FROM gig_subscription WHERE name = 'x'; UPDATE gig_subscription_secret SET retired_at = NULL");
}

# An end in the midst of it
my $holder = $node->background_psql('postgres', on_error_stop => 0);
ask($holder, "BEGIN; LOCK TABLE gigs.gig_subscription_secret");
for my $setting ('lock_timeout', 'statement_timeout')
{
	like(
		attempt("SET $setting = '50ms'; SELECT add_gig_secret('$name', $wrong)"),
		qr/canceling statement due to/,
		"$setting ends add_gig_secret");
	like(
		attempt("SET $setting = '50ms'; SELECT retire_gig_secret('$name', $first)"),
		qr/canceling statement due to/,
		"$setting ends retire_gig_secret");
}
$holder->quit;

# Log lines of a stranger's making: what he sends is quoted, without what would
# begin a line, ring a bell or turn the page over.
for my $odd ('x\\nLOG:  00000: forged', 'x\\r\\nFATAL: forged', '\\u001b[2J\\u0007', 'x\\u0000y', ('x' x 5000), 'forged %s %n')
{
	attempt("SELECT try_ingest_gig_event('{\"event\":\"gigs.added\",\"name\":\"$odd\"}', NULL)");
	attempt("SELECT ingest_gig_event('{\"event\":\"gigs.$odd\",\"name\":\"unsigned\"}', NULL)");
}
$node->append_conf('postgresql.conf', "log_min_messages = warning\nclient_min_messages = notice\n");
$node->reload;

my $log = substr slurp_file($node->logfile), $log_start;

cmp_ok(scalar(() = $log =~ /28000: could not authenticate webhook/g),
	'>=', 5, 'the log tells of refusals');
like($log, qr/DEBUG:/, '... and of everything else');
like($log, qr/DETAIL:  The signature was made with none of/, '... with their reasons');
for my $label (sort keys %secrets)
{
	my $hex = unpack 'H*', $secrets{$label};

	unlike($log, qr/\Q$secrets{$label}\E|$hex/, "the $label secret is not in the log");
	unlike($told, qr/\Q$secrets{$label}\E|$hex/, "... nor told to a client");
}
unlike($told, qr/No subscription is named|The subscription has no secret|The signature (is|was) /,
	'no client is told why a webhook is not authentic');
unlike($log, qr/^\s*(?:LOG|FATAL):.*forged/m, 'a body makes no log line');
unlike($log, qr/[\x00-\x08\x0b-\x1f\x7f]/, '... and puts no control character there');
is((sort { $b <=> $a } map { length } grep { /No subscription is named|unsupported event/ && !/STATEMENT/ } split /\n/, $log)[0] < 300,
	1, '... or page after page');

# Statistics of statements: constants are replaced, also in our own
SKIP:
{
	skip 'pg_stat_statements is not there', 8 if !installed('pg_stat_statements');
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = all\n");
	$node->restart;
	query('CREATE EXTENSION pg_stat_statements SCHEMA public');
	query("SELECT add_gig_secret('$name', '$secrets{third}')");
	query("SELECT retire_gig_secret('$name', '$secrets{third}')");
	query("SELECT gig_subscription_request('$name')");
	cmp_ok(query("SELECT count(*) FROM public.pg_stat_statements WHERE query LIKE '%gig_subscription_secret%'"),
		'>=', 3, 'statements on secrets are in pg_stat_statements');
	unlike(query('SELECT query FROM public.pg_stat_statements'),
		qr/3f9c1b7e/, '... without the secrets');

	# Whoever manages subscriptions may have plans printed to himself.
	query("CREATE TABLE public.given AS SELECT '$name'::text AS name, '$secrets{third}'::text AS secret");
	query(q{
		CREATE TABLE public.audit (secret text);
		CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO public.audit SELECT s FROM unnest(ARRAY[CASE WHEN TG_OP = 'DELETE' THEN old.secret ELSE new.secret END]) AS s;
			RETURN NULL;
		END $$;
		CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON gig_subscription_secret FOR EACH ROW EXECUTE FUNCTION public.audit()});
	my $bytes = join ' ', map { ord } split //, $secrets{third};
	my $printed = attempt(q{
		SET plan_cache_mode = force_custom_plan;
		SET debug_print_parse = on;
		SET debug_print_rewritten = on;
		SET debug_print_plan = on;
		SET client_min_messages = log;
		BEGIN;
		SELECT add_gig_secret(name, secret) FROM public.given;
		SELECT gig_subscription_request(name) IS NOT NULL FROM public.given;
		SELECT retire_gig_secret(name, secret) FROM public.given;
		SELECT drop_gig_subscription(name) FROM public.given;
		ROLLBACK});
	like($printed, qr/PLANNEDSTMT/, 'plans are printed');
	unlike($printed, qr/\Q$bytes\E|3f9c1b7e/, '... without the secrets');

	# Plans of statements within functions are logged with their constants, and
	# since PostgreSQL 16 with their parameters.
	skip 'auto_explain is not there', 4
	  if $node->psql('postgres', q{LOAD 'auto_explain'}) != 0;
	my $from = -s $node->logfile;
	query(q{
		LOAD 'auto_explain';
		SET auto_explain.log_min_duration = 0;
		SET auto_explain.log_nested_statements = on;
		SET auto_explain.log_analyze = on;
		SET auto_explain.log_verbose = on;
		SELECT add_gig_secret(name, secret) FROM public.given;
		SELECT gig_subscription_request(name) FROM public.given;
		SELECT retire_gig_secret(name, secret) FROM public.given});
	my $explained = substr slurp_file($node->logfile), $from;
	is(query('SELECT count(*) FROM public.audit'), 2, 'a trigger has seen secrets');
	like($explained, qr/UPDATE gigs.gig_subscription SET/, 'plans are logged');
	unlike($explained, qr/3f9c1b7e/, '... without the secrets');
	query('DROP TRIGGER audit ON gig_subscription_secret; DROP FUNCTION public.audit(); DROP TABLE public.audit, public.given');
}

# A dump is for who may read the tables.
command_fails_like(
	[ 'pg_dump', '-U', 'receiver', '-d', $node->connstr('postgres') ],
	qr/permission denied for table/,
	'a receiver gets no dump');
command_fails_like(
	[ 'pg_dump', '-U', 'receiver', '--data-only', '-t', 'gigs.gig_subscription_secret', '-d', $node->connstr('postgres') ],
	qr/permission denied for table/,
	'... nor one of a table');
my ($schema_only) = run_command(
	[ 'pg_dump', '--schema-only', '-d', $node->connstr('postgres') ]);
like($schema_only, qr/CREATE EXTENSION IF NOT EXISTS gigs_webhooks/,
	'a dump of the schema can be had');
unlike($schema_only, qr/3f9c1b7e/, '... and has no secret');

# ---------------------------------------------------------------------------
# Inboxes that are elsewhere
# ---------------------------------------------------------------------------

sub unsigned
{
	my ($n) = @_;

	return qq({"event":"gigs.fully_synced","name":"unsigned","data":{"account":"00000000-0000-4000-8000-000000000002",)
	  . qq("user":"00000000-0000-4000-9000-000000000001","available_count":$n}});
}

sub account
{
	return query("SELECT available_count, events FROM gig_account_sync WHERE account_id = '00000000-0000-4000-8000-000000000002'");
}

SKIP:
{
	skip 'postgres_fdw is not there', 7 if !installed('postgres_fdw');
	$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
	$node->safe_psql('elsewhere', 'CREATE TABLE hook (body text, signature text, outcome text, error text, id int CHECK (id <> 3))');
	query(sprintf q{
		CREATE EXTENSION postgres_fdw SCHEMA public;
		CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'elsewhere');
		CREATE USER MAPPING FOR CURRENT_USER SERVER elsewhere;
		CREATE FOREIGN TABLE public.hook (body text, signature text, outcome text, error text, id int) SERVER elsewhere;
		CREATE TRIGGER ingest BEFORE INSERT ON public.hook FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
	}, $node->host, $node->port);
	query("INSERT INTO public.hook (id, body) VALUES (1, '" . unsigned(1) . "'), (2, '{}')");
	is($node->safe_psql('elsewhere', "SELECT id, outcome, left(error, 5) FROM hook ORDER BY id"),
		"1|applied|\n2|rejected|22023", 'rows of a foreign table are taken in');
	is(account(), '1|1', '... here');
	like(attempt("INSERT INTO public.hook (id, body) VALUES (3, '" . unsigned(3) . "')"),
		qr/violates check constraint/, 'a row is refused over there');
	is(account(), '1|1', '... and its event here');
	query("INSERT INTO public.hook (id, body) SELECT 10 + i, replace('" . unsigned(1) . "', 'count\":1', 'count\":' || i) FROM generate_series(4, 6) AS i");
	is(account(), '6|4', 'many rows are, too');

	# Over there a transaction is committed before it is here.
	$node->safe_psql('elsewhere', 'CREATE TABLE part (LIKE hook)');
	query('CREATE TABLE public.parts (body text, signature text, outcome text, error text, id int) PARTITION BY LIST (id);
		CREATE TABLE public.here PARTITION OF public.parts FOR VALUES IN (1);
		CREATE FOREIGN TABLE public.there PARTITION OF public.parts FOR VALUES IN (2) SERVER elsewhere OPTIONS (table_name \'part\')');
	query("INSERT INTO public.parts (id, body) SELECT i, replace('" . unsigned(1) . "', 'count\":1', 'count\":5' || i) FROM generate_series(1, 2) AS i");
	like(attempt("CALL drain_gig_inbox('public.parts', 1)"), qr/"there" is a foreign table/, 'a foreign partition is not drained');
	is(query('SELECT id, outcome FROM public.parts ORDER BY id') . account(), "1|applied\n2|51|5", '... but what is here is');
}

SKIP:
{
	skip 'file_fdw is not there', 2 if !installed('file_fdw');
	query(q{
		CREATE EXTENSION file_fdw SCHEMA public;
		CREATE SERVER file FOREIGN DATA WRAPPER file_fdw;
		CREATE FOREIGN TABLE public.file (body text, signature text) SERVER file OPTIONS (filename '/dev/null');
		CREATE TRIGGER ingest BEFORE INSERT ON public.file FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
	});
	my $before = account();
	like(attempt("INSERT INTO public.file VALUES ('" . unsigned(99) . "')"),
		qr/cannot insert into foreign table/, 'a file takes no rows');
	is(account(), $before, '... and no events');
}

# ---------------------------------------------------------------------------
# Bodies that are more than they look
# ---------------------------------------------------------------------------

# A megabyte from a stranger takes no more memory than a few megabytes,
# whatever is in it.
SKIP:
{
	my %large = (
		'white space' => q{repeat(' ', 1000000)},
		'keys that mean nothing' => q[ '{' || repeat('"\u0000":1,', 90000) || '"x":1}' ],
		'halves of surrogates' => q[ '{' || repeat('"\ud800":1,', 90000) || '"x":1}' ],
		'bad gigs, over and over' => q[ '{"data":{' || repeat('"updated_gigs":[1],', 50000) || '"x":1}}' ],
		'bad UUIDs, over and over' => q[ '{"data":{' || repeat('"updated_gigs":["x"],', 45000) || '"x":1}}' ],
		'escaped UUIDs, over and over' => q[ '{"data":{' || repeat('"updated_gigs":["\u0030"],', 40000) || '"x":1}}' ],
		'names, over and over' => q[ '{' || repeat('"name":"\u0030",', 60000) || '"x":1}' ],
		'data, over and over' => q[ '{' || repeat('"data":{"account":"\u0030"},', 35000) || '"x":1}' ],
		'a key of a megabyte' => q[ '{"' || repeat('\n', 490000) || '":1}' ],
		'a name of a megabyte' => q[ '{"name":"' || repeat('\u00e9', 160000) || '"}' ],
		'quotes and backslashes' => q[ '{"' || repeat('\\\\\"', 240000) || '":1}' ],
		'a number of a megabyte' => q[ '{"name":"unsigned","event":"gigs.added","data":{"account":"00000000-0000-4000-8000-000000000003","user":"00000000-0000-4000-9000-000000000001","available_count":' || repeat('1', 1000000) || '}}' ],
		'a date of a megabyte' => q[ '{"name":"unsigned","event":"gigs.added","data":{"account":"00000000-0000-4000-8000-000000000003","user":"00000000-0000-4000-9000-000000000001","available_count":1,"added_count":1,"available_from":"2023-01-01T00:00:' || repeat('0', 1000000) || 'Z"}}' ],
		'brackets' => q{repeat('[', 1000000)},
		'braces' => q[ repeat('{"a":', 200000) ]);
	my $hwm = sub
	{
		my ($status) =
		  slurp_file("/proc/$_[0]/status") =~ /^VmHWM:\s+(\d+) kB/m;
		return $status;
	};

	skip 'there is no /proc that tells', 2 * keys %large
	  if !-r "/proc/$$/status" || slurp_file("/proc/$$/status") !~ /^VmHWM:/m;
	for my $what (sort keys %large)
	{
		my $session = $node->background_psql('postgres', on_error_stop => 0);
		my $pid = ask($session, 'SELECT pg_backend_pid()');

		ask($session, "CREATE TEMP TABLE large AS SELECT convert_to($large{$what}, 'UTF8') AS body; SELECT outcome FROM gigs.try_ingest_gig_event('{}'::bytea, NULL), large WHERE octet_length(body) > 0");
		my $before = $hwm->($pid);
		my $outcome = ask($session, "SELECT outcome FROM large, gigs.try_ingest_gig_event(body, NULL)");
		my $grown = $hwm->($pid) - $before;

		is($outcome, 'rejected', "$what: refused");
		cmp_ok($grown, '<', 16384, '... and takes little memory')
		  or diag("$grown kB");
		$session->quit;
	}
}

$node->stop;
done_testing();
