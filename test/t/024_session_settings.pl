# Whatever a session is set to, webhooks have the same outcomes.
#
# Several settings are tried at a time, or with GIGS_LONG each by itself.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigMix;
use GigTest;

my $node = start_node('settings');
my $db = 'postgres';

create_gigs($node, $db);
create_mix($node, $db);
$node->safe_psql($db, 'CREATE ROLE plain SUPERUSER');

my $expected = answer($node, $db, "BEGIN; $mix; ROLLBACK");

like($expected, qr/applied .*duplicate .*stale .*rejected .*28000.*quarantined .*0A000.*ignored/s,
	'webhooks have all outcomes');

my @settings = (
	(map { "TimeZone = '$_'" } 'America/New_York', 'Asia/Kolkata', 'Pacific/Apia', 'UTC', '+14', '<-05:30>5:30'),
	(map { "DateStyle = '$_'" } 'SQL, DMY', 'German', 'Postgres, MDY'),
	(map { "IntervalStyle = $_" } 'sql_standard', 'iso_8601'),
	'bytea_output = escape', 'extra_float_digits = -15',
	'standard_conforming_strings = off', 'backslash_quote = off', 'escape_string_warning = on',
	"lc_messages = 'C'", "lc_numeric = 'C.UTF-8'", "lc_time = 'C.UTF-8'",
	'client_encoding = LATIN1', 'xmlbinary = hex',
	'session_replication_role = replica', 'session_replication_role = local', 'row_security = off',
	'plan_cache_mode = force_custom_plan', 'plan_cache_mode = force_generic_plan',
	'transaction_isolation = serializable', "transaction_isolation = 'repeatable read'",
	(map { "enable_$_ = off" } qw(indexscan indexonlyscan bitmapscan seqscan nestloop sort hashagg material)),
	'enable_indexscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_nestloop = off',
	'jit = on; SET LOCAL jit_above_cost = 0', 'force_parallel_mode = on', 'debug_parallel_query = on', 'max_parallel_workers_per_gather = 0',
	'debug_print_plan = on', 'from_collapse_limit = 1', 'geqo_threshold = 2; SET LOCAL geqo = on',
	'work_mem = 64', 'temp_buffers = 100', 'search_path = pg_temp, gigs', "search_path = ''", 'synchronous_commit = off',
	'default_toast_compression = pglz', 'wal_compression = on', 'quote_all_identifiers = on', 'array_nulls = off',
	'transform_null_equals = on', 'check_function_bodies = off', 'lo_compat_privileges = on',
	'zero_damaged_pages = off', 'constraint_exclusion = on', 'default_statistics_target = 1',
	'xmloption = document', "default_tablespace = 'pg_default'", "default_table_access_method = 'heap'",
	'effective_io_concurrency = 0', 'log_statement_stats = on', 'track_activities = off', 'track_counts = off',
	"role = plain", "session_authorization = plain", "application_name = 'Robert''); DROP TABLE x'",
	'vacuum_cost_delay = 1', 'commit_delay = 10', 'cursor_tuple_fraction = 0.01', 'gin_fuzzy_search_limit = 1');
my %known = map { lc $_ => 1 } split /\n/, $node->safe_psql($db, 'SELECT name FROM pg_settings');

# pg_settings does not show these
$known{$_} = 1 for 'role', 'session_authorization';
@settings = grep { /^(\w+)/ && $known{ lc $1 } } @settings;

# Settings that exclude each other stand side by side, and so are in different sets.
my $nsets = $ENV{GIGS_LONG} ? @settings : 6;
my @sets = map { my $i = $_; join '; ', map { "SET LOCAL $settings[$_]" } grep { $_ % $nsets == $i } 0 .. $#settings } 0 .. $nsets - 1;

for my $direct ('on', 'off')
{
	for my $set (@sets)
	{
		my $answer = answer($node, $db, "SET client_min_messages = error; LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct; BEGIN; $set; SET LOCAL search_path = public; $mix; ROLLBACK");

		is(first_difference([ split /[;\n]/, $answer ], [ split /[;\n]/, $expected ]),
			'', "direct_writes=$direct: the outcomes are the same with $set");
	}
}

for my $direct ('on', 'off')
{
	my $set = "LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct";
	my $error = qr/^25006 cannot execute .* in a read-only transaction$/;

	like(answer($node, $db, "$set; BEGIN READ ONLY; SELECT take(1, 1)"),
		$error, "direct_writes=$direct: nothing is ingested in a read-only transaction");
	like(answer($node, $db, "$set; SET default_transaction_read_only = on; SELECT take_all('{1,2}', '{1,1}')"),
		$error, '... nor with default_transaction_read_only');
}
is($node->safe_psql($db, 'SELECT count(*) FROM gigs.gig_event_log'), 0, '... nothing is left');

$node->stop;
done_testing();
