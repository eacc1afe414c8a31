# Large bodies from strangers: until a signature is verified, a body of a megabyte
# takes no more memory than a few megabytes, whatever it contains.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

# Linux tells the largest size that a process had.
plan skip_all => 'there is no VmHWM in /proc'
  if !-r "/proc/$$/status" || slurp_file("/proc/$$/status") !~ /^VmHWM:/m;

my $node = start_node('large_bodies');

$node->safe_psql('postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'secret')});

my $ids = '"account":"00000000-0000-4000-8000-000000000003","user":"00000000-0000-4000-9000-000000000001"';
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
	'a number of a megabyte' => q[ '{"name":"unsigned","event":"gigs.added","data":{@IDS@,"available_count":' || repeat('1', 1000000) || '}}' ],
	'a date of a megabyte' => q[ '{"name":"unsigned","event":"gigs.added","data":{@IDS@,"available_count":1,"added_count":1,"available_from":"2023-01-01T00:00:' || repeat('0', 1000000) || 'Z"}}' ],
	'gigs, many' => q[ '{"name":"signed","event":"gigs.updated","data":{@IDS@,"available_count":1,"updated_count":1,"updated_gigs":["' || repeat('00000000-0000-4000-a000-000000000001","', 25000) || '00000000-0000-4000-a000-000000000002"]}}' ],
	'brackets' => q{repeat('[', 1000000)},
	'braces' => q[ repeat('{"a":', 200000) ]);

sub size
{
	my ($pid) = @_;
	my ($size) = slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;

	return $size;
}

for my $what (sort keys %large)
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = ask($session, 'SELECT pg_backend_pid()');
	my $body = $large{$what} =~ s/\@IDS\@/$ids/gr;

	# The module is loaded, and the body has been read, when measuring begins.
	ask($session, "CREATE TEMP TABLE large AS SELECT convert_to($body, 'UTF8') AS body; SELECT outcome FROM gigs.try_ingest_gig_event('{}'::bytea, NULL), large WHERE octet_length(body) > 0");
	my $before = size($pid);
	my $outcome = ask($session, 'SELECT outcome FROM large, gigs.try_ingest_gig_event(body, NULL)');
	my $grown = size($pid) - $before;

	is($outcome, 'rejected', "$what: refused");
	cmp_ok($grown, '<', 16384, '... with little memory') or diag("$grown kB");

	# Over and over again, nothing is left behind.
	$before = size($pid);
	is(ask($session, 'SELECT count(*) FROM generate_series(1, 20), large, gigs.try_ingest_gig_event(body, NULL)'), '20', '... 20 times');
	$grown = size($pid) - $before;
	cmp_ok($grown, '<', 8192, '... with no more memory') or diag("$grown kB");
	$session->quit;
}

# What is larger than gigs_webhooks.max_body_size is not even decompressed.
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = ask($session, 'SELECT pg_backend_pid()');
$node->safe_psql('postgres', q{CREATE TABLE huge AS SELECT convert_to(repeat(' ', 100000000), 'UTF8') AS body, repeat('f', 100000000) AS signature});
ask($session, q{SELECT outcome FROM gigs.try_ingest_gig_event('{}'::bytea, NULL)});
my $before = size($pid);
is(ask($session, 'SELECT outcome, sqlstate FROM huge, gigs.try_ingest_gig_event(body, NULL)'), 'rejected|54000', 'a body of 100 MB is refused');
is( ask($session, q{SELECT outcome, sqlstate FROM huge, gigs.try_ingest_gig_event('{"event":"gigs.added","name":"signed","data":{}}'::bytea, signature)}),
	'rejected|28000', '... and such a signature');
cmp_ok(size($pid) - $before, '<', 8192, '... without reading it');
$session->quit;

$node->stop;
done_testing();
