# What hangs on OpenSSL, shown with an OpenSSL that behaves otherwise: a library
# that is loaded before it answers in its place.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $directory = PostgreSQL::Test::Utils::tempdir;
my $includes = "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <stddef.h>\n";

# Returns the path of a library made of these definitions, or nothing.
sub library
{
	my ($name, $source) = @_;
	my $path = "$directory/$name.so";

	return IPC::Run::run(
		[ 'cc', '-shared', '-fPIC', '-o', $path, '-x', 'c', '-', '-ldl' ],
		'<', \($includes . $source)) ? $path : undef;
}

# Starts a server that goes by such a library.
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

# OpenSSL 3.0.0 to 3.0.2 say that they have reset a context for HMAC, and have
# not: a second body would be taken for a part of the first.
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

# Time tells nothing of how much of a signature is right, because CRYPTO_memcmp
# alone tells whether it is: what that says holds, whatever the signature.
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
