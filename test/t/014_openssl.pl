# OpenSSL 3.0.0 to 3.0.2 say that they have reset a context for HMAC, and have
# not: a second body would be taken for a part of the first.
#
# A library that is loaded before OpenSSL's makes any version behave like that.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $directory = PostgreSQL::Test::Utils::tempdir;
my $library = "$directory/no_reset.so";
my $source = <<'C';
	#define _GNU_SOURCE
	#include <dlfcn.h>
	#include <stddef.h>

	int EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params);

	int
	EVP_MAC_init(void *context, const unsigned char *key, size_t length, const void *params)
	{
		int (*init)(void *, const unsigned char *, size_t, const void *) = dlsym(RTLD_NEXT, "EVP_MAC_init");

		return key == NULL && params == NULL ? 1 : init(context, key, length, params);
	}
C

plan skip_all => 'there is no C compiler'
  if !IPC::Run::run(
	[ 'cc', '-shared', '-fPIC', '-o', $library, '-x', 'c', '-', '-ldl' ],
	'<', \$source);

my $node;
{
	local $ENV{LD_PRELOAD} = join ':', $library, $ENV{LD_PRELOAD} || ();
	$node = start_node('openssl');
}

$node->safe_psql(
	'postgres', q{
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('name-for-the-webhook-subscription', 'https://example.com/', 'secret');
});

my @kinds = map { "gigs.$_" } qw(partially_synced fully_synced added updated removed);
my @bodies = map { payload($_) } @kinds;

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
done_testing();
