# OpenSSL as it is elsewhere: libraries that are loaded before it replace some of
# its functions by what other versions and providers do.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $directory = PostgreSQL::Test::Utils::tempdir;
my $includes = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stddef.h>\n";

# Compiles a library of these definitions.  Returns its path, or nothing.
sub library
{
	my ($name, $source) = @_;
	my $path = "$directory/$name.so";

	return IPC::Run::run(
		[ 'cc', '-shared', '-fPIC', '-o', $path, '-x', 'c', '-', '-ldl' ],
		'<', \($includes . $source)) ? $path : undef;
}

# Starts a server with such a library.
sub start_with
{
	my ($name, $library) = @_;

	local $ENV{LD_PRELOAD} = join ':', $library, $ENV{LD_PRELOAD} || ();
	my $node = start_node($name);

	$node->safe_psql(
		'postgres', q{
		CREATE SCHEMA gigs;
		CREATE EXTENSION gigs_webhooks SCHEMA gigs;
		SELECT gigs.create_gig_subscription('name-for-the-webhook-subscription', 'https://example.com/', 'secret');
	});
	return $node;
}

my @kinds = map { "gigs.$_" } qw(partially_synced fully_synced added updated removed);
my @bodies = map { payload($_) } @kinds;

# ---------------------------------------------------------------------------
# OpenSSL 3.0.0 to 3.0.2 claim to have reset a context for HMAC without having
# done so: the second body would be hashed as a part of the first
# ---------------------------------------------------------------------------

my $no_reset = library('no_reset', <<'C');
	int EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params);

	int
	EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params)
	{
		int (*init)(void *, const unsigned char *, size_t, const void *) = dlsym(RTLD_NEXT, "EVP_MAC_init");

		return key == NULL && params == NULL ? 1 : init(context, key, length, params);
	}
C

plan skip_all => 'there is no C compiler' if !$no_reset;

my $node = start_with('no_reset', $no_reset);

is( $node->safe_psql(
		'postgres',
		'SELECT outcome FROM gigs.ingest_gig_events(ARRAY['
		  . join(', ', map { bytea_literal($_) } @bodies, $bodies[0])
		  . '], ARRAY['
		  . join(', ', map { text_literal(sign($_, 'secret')) } @bodies, $bodies[0])
		  . ']) ORDER BY ord'),
	join("\n", ('applied') x @bodies, 'duplicate'),
	'every body is authentic, not only the first');
is( $node->safe_psql(
		'postgres',
		"SELECT sqlstate FROM generate_series(1, 3), gigs.try_ingest_gig_event("
		  . bytea_literal($bodies[1]) . ', '
		  . text_literal(sign($bodies[2], 'secret'))
		  . ')'),
	join("\n", ('28000') x 3),
	'... and nothing else is');
$node->stop;

# ---------------------------------------------------------------------------
# A FIPS provider refuses keys of less than 112 bits
# ---------------------------------------------------------------------------

my $fips = library('fips', <<'C');
	int EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params);

	int
	EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params)
	{
		int (*init)(void *, const unsigned char *, size_t, const void *) = dlsym(RTLD_NEXT, "EVP_MAC_init");

		return key != NULL && length < 14 ? 0 : init(context, key, length, params);
	}
C

# The secrets: "tiny" and "x" are too short for it.
my %secrets = (short => ['tiny-3f9c1'], long => ['long-3f9c1-long'],
	both => [ 'tiny-3f9c1', 'long-3f9c1-long' ], exact => ['exactly-14-3f9']);

sub body_of
{
	my ($name) = @_;

	return qq({"event":"gigs.fully_synced","name":"$name","data":{"account":"00000000-0000-4000-8000-000000000001",)
	  . '"user":"00000000-0000-4000-9000-000000000001","available_count":1}}';
}

sub outcome
{
	my ($name, $secret) = @_;
	my $body = body_of($name);

	return $node->safe_psql('postgres',
		'BEGIN; SELECT coalesce(sqlstate, outcome::text) FROM gigs.try_ingest_gig_event('
		  . bytea_literal($body) . ', ' . text_literal(defined $secret ? sign($body, $secret) : undef) . '); ROLLBACK');
}

$node = start_node('fips');
$node->safe_psql('postgres', 'CREATE SCHEMA gigs; CREATE EXTENSION gigs_webhooks SCHEMA gigs');
for my $name (sort keys %secrets)
{
	$node->safe_psql('postgres', "SELECT gigs.create_gig_subscription('$name', 'https://example.com/', '$secrets{$name}[0]')");
	$node->safe_psql('postgres', "SELECT gigs.add_gig_secret('$name', '$secrets{$name}[1]')") if $secrets{$name}[1];
	is(outcome($name, $_), 'applied', "$name: $_ is valid without FIPS") for @{ $secrets{$name} };
}
$node->stop;
my $before = -s $node->logfile;
{
	local $ENV{LD_PRELOAD} = join ':', $fips, $ENV{LD_PRELOAD} || ();
	$node->start;
}
is(outcome('long', 'long-3f9c1-long'), 'applied', 'a long secret is valid with FIPS');
is(outcome('exact', 'exactly-14-3f9'), 'applied', '... so is one of 14 bytes');
is(outcome('short', 'tiny-3f9c1'), '28000', '... a shorter one is not');
is(outcome('short', undef), '28000', '... and its subscription accepts nothing unsigned');
is(outcome('short', ''), '28000', '... nor what is signed with an empty secret');
is(outcome('both', 'long-3f9c1-long'), 'applied', 'a subscription with a longer secret accepts that');
is(outcome('both', 'tiny-3f9c1'), '28000', '... only');
is( $node->safe_psql('postgres', "SELECT gigs.gig_subscription_request('short')->>'secret'"),
	'tiny-3f9c1', 'the request still has the secret');

for my $call (
	"add_gig_secret('long', 'tiny-3f9c1')",
	"create_gig_subscription('new', 'https://example.com/', 'tiny-3f9c1')",
	"sign_gig_event('{}'::text, 'tiny-3f9c1'::text)")
{
	my ($name) = $call =~ /^(\w+)/;

	is(answer($node, 'postgres', "SELECT gigs.$call"),
		'38000 OpenSSL does not accept the secret as a key', "$name refuses a short secret");
}
is( $node->safe_psql('postgres', "SELECT gigs.verify_gig_signature(b, '" . sign('{}', 'tiny-3f9c1') . "', 'tiny-3f9c1'::text) FROM (VALUES ('{}'::text)) AS v (b)"),
	'f', 'verify_gig_signature verifies nothing with it');
is( $node->safe_psql('postgres', 'SELECT name, cardinality(secrets) FROM gigs.gig_subscription ORDER BY name'),
	"both|2\nexact|1\nlong|1\nshort|1", 'nothing of it is stored');
is($node->safe_psql('postgres', "SELECT gigs.retire_gig_secret('short', 'tiny-3f9c1'); SELECT gigs.add_gig_secret('short', 'long-3f9c1-long')"),
	"\n", 'the secret can be replaced');
is(outcome('short', 'long-3f9c1-long'), 'applied', '... which opens the subscription again');
$node->stop;

my $log = substr slurp_file($node->logfile), $before;
like($log, qr/LOG:  OpenSSL does not accept a secret of subscription "$_"/, "the log names subscription $_")
  for 'short', 'both';
unlike($log, qr/LOG:  OpenSSL does not accept a secret of subscription "(long|exact)"/, '... and no other');
unlike($log, qr/3f9c1|6339663363|exactly/, '... and shows no secret');

# ---------------------------------------------------------------------------
# CRYPTO_memcmp alone decides whether a signature is right, so that the time that
# a comparison takes does not depend on the signature
# ---------------------------------------------------------------------------

for ([ 'equal', 0, 'applied', 't' ], [ 'unequal', 1, 'rejected 28000', 'f' ])
{
	my ($name, $result, $outcome, $good) = @$_;
	my $signature = sign($bodies[0], 'secret');
	my @signatures = ($signature, '0' x 128, 'f' x 128);

	# wrong in one digit, the first or the last
	(my $first = $signature) =~ s/^(.)/$1 eq '0' ? '1' : '0'/e;
	(my $last = $signature) =~ s/(.)$/$1 eq '0' ? '1' : '0'/e;
	$node = start_with($name, library($name, <<"C"));
	int CRYPTO_memcmp(const void *a, const void *b, size_t length);

	int
	CRYPTO_memcmp(const void *a, const void *b, size_t length)
	{
		return $result;
	}
C
	for my $sig (@signatures, $first, $last)
	{
		is( $node->safe_psql(
				'postgres',
				"BEGIN; SELECT concat_ws(' ', outcome, sqlstate) FROM gigs.try_ingest_gig_event("
				  . bytea_literal($bodies[0]) . ', ' . text_literal($sig) . '); ROLLBACK; SELECT gigs.verify_gig_signature('
				  . bytea_literal($bodies[0]) . ', ' . text_literal($sig) . ", 'secret'::text)"),
			"$outcome\n$good",
			"told they are $name, signatures are: " . substr($sig, 0, 4) . '...' . substr($sig, -4));
	}
	$node->stop;
}

done_testing();
