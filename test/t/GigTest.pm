# What the tests share: a server with the extension's module at hand, bodies,
# signatures that are not the extension's own, and SQL literals.

package GigTest;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha512_hex);
use Encode qw(encode);
use Exporter qw(import);
use File::Basename qw(dirname);
use IPC::Run ();

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(start_node sign payload bytea_literal text_literal
  ask first_difference run_together);

# A server of its own, quiet enough that logging isn't what a test spends its
# time with: PostgreSQL::Test::Cluster logs every statement.
sub start_node
{
	my ($name, @conf) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf', join("\n",
			'log_statement = none', 'log_min_messages = warning',
			'log_min_error_statement = panic', 'autovacuum = off',
			@conf, ''));
	$node->start;
	return $node;
}

# The signature of a body's bytes; the secret is text.
sub sign
{
	my ($body, $secret) = @_;

	return hmac_sha512_hex($body, encode('UTF-8', $secret));
}

# A body of test/payloads, byte for byte.
sub payload
{
	my ($name) = @_;
	my $path = dirname(__FILE__) . "/../payloads/$name.json";

	open my $file, '<:raw', $path or die "could not open $path: $!";
	local $/;
	my $body = <$file>;
	close $file;
	return $body;
}

# Without the cast the literal would be taken for text, which the functions
# that take bodies accept as well.
sub bytea_literal
{
	my ($bytes) = @_;

	return 'NULL::bytea' if !defined $bytes;
	return "'\\x" . unpack('H*', $bytes) . "'::bytea";
}

sub text_literal
{
	my ($text) = @_;

	return 'NULL' if !defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

# Asks a session that psql keeps open in the background.  Returns what it
# printed, with the SQLSTATE of the last statement where that failed.
my $asked = 0;

sub ask
{
	my ($session, $query) = @_;
	my $end = 'asked ' . ++$asked;
	my $output = $session->query_until(qr/^$end$/m,
		"$query\n;\n\\if :ERROR\n\\echo :SQLSTATE\n\\endif\n\\echo $end\n");

	$output =~ s/\n?^$end\n?//m;
	return $output;
}

# Where two lists of lines differ first, for a failure's diagnosis; an empty
# string where they don't.  is_deeply would print as much, but not shortly.
sub first_difference
{
	my ($got, $expected) = @_;
	my $n = @$got > @$expected ? @$got : @$expected;

	for my $i (0 .. $n - 1)
	{
		my $g = $i < @$got ? $got->[$i] : '(nothing)';
		my $e = $i < @$expected ? $expected->[$i] : '(nothing)';

		return "at $i: got \"$g\", expected \"$e\"" if $g ne $e;
	}
	return '';
}

# Runs several psql scripts at the same time.  Returns what each printed to
# standard output and to standard error.
sub run_together
{
	my ($node, $dbname, @scripts) = @_;
	my @out = map { '' } @scripts;
	my @err = map { '' } @scripts;
	my @runs;

	for my $i (0 .. $#scripts)
	{
		push @runs,
		  IPC::Run::start(
			[
				'psql', '-XAtq', '-d', $node->connstr($dbname),
				'-f', '-'
			],
			'<',
			\$scripts[$i],
			'>',
			\$out[$i],
			'2>',
			\$err[$i],
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	}
	$_->finish for @runs;
	return (\@out, \@err);
}

1;
