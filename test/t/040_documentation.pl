# Runs the examples of the documentation as a reader pastes them into psql, and
# compares what they print with what the pages show.
#
# Each page has a database of its own, in which the blocks "```sql" of README.md run
# first and then those of the page, in one session.  A block "```text" right after
# such a block is its output.  Blocks "```sql no-run" are not run.
#
# Where an example prints what changes from run to run, the page must say so by
# comparing it with something.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $root = "$FindBin::RealBin/../..";
my $citus_section = 'Distribute the tables with Citus';

# ---------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------

# Returns the examples of a page, each with its section, line, SQL and output, which
# is undefined if the page shows none.
sub examples
{
	my ($page) = @_;
	my ($section, $number, @examples) = ('', 0);
	my ($block, $last);

	for my $line (split /\n/, slurp_file("$root/$page"))
	{
		$number++;
		if ($block)
		{
			if ($line =~ /^\s*```$/)
			{
				push @examples, $block if $block->{language} eq 'sql';
				$last->{output} = $block->{body} if $last && $block->{language} eq 'text';
				$last = $block->{language} eq 'sql' ? $block : undef;
				undef $block;
				next;
			}
			$block->{body} .= $line =~ s/^$block->{indent}//r . "\n";
		}
		elsif ($line =~ /^(\s*)```(.*)$/)
		{
			$block = {
				section => $section,
				line => $number,
				indent => $1,
				language => $2,
				body => ''
			};
		}
		elsif ($line =~ /^## (.*)/)
		{
			$section = $1;
		}
		# text between them says that the output is of something else
		undef $last if !$block && $line =~ /\S/;
	}
	die "$page:$block->{line}: a block does not end" if $block;
	return @examples;
}

sub trimmed
{
	my ($text) = @_;

	$text =~ s/[ \t]+$//mg;
	$text =~ s/\A\n+|\n+\z//g;
	return $text;
}

# Runs examples in a new database.  Returns what each printed.
sub run_examples
{
	my ($node, @examples) = @_;
	my $script = '';
	my @roles = split /\n/, $node->safe_psql('postgres', 'SELECT rolname FROM pg_roles');
	my $directory = PostgreSQL::Test::Utils::tempdir;
	my @outputs;

	$script .= "\\echo \@\@ $_\n$examples[$_]{body}\n" for 0 .. $#examples;
	append_to_file("$directory/script", $script);
	$node->safe_psql('postgres', 'CREATE DATABASE page');
	{
		local $ENV{PGTZ} = 'UTC';

		IPC::Run::run([ 'psql', '-X', '-q', '-d', $node->connstr('page') ],
			'<', "$directory/script", '>&', "$directory/output");
	}
	$node->safe_psql('postgres', 'DROP DATABASE page');
	$node->safe_psql('postgres', "DROP ROLE \"$_\"")
	  for split /\n/,
	  $node->safe_psql('postgres',
		'SELECT rolname FROM pg_roles WHERE rolname <> ALL (' . "ARRAY['" . join("','", @roles) . "'])");

	for my $part (split /^@@ (?=\d+$)/m, slurp_file("$directory/output"))
	{
		$outputs[$1] = $part if $part =~ s/\A(\d+)\n//;
	}
	return map { defined $_ ? trimmed($_) : '(nothing)' } @outputs[ 0 .. $#examples ];
}

# Compares the outputs of those examples that a filter selects.  Without an output
# on the page, there must be no error.
sub check_page
{
	my ($node, $page, $is_selected) = @_;
	my @before = grep { $page ne 'README.md' } examples('README.md');
	my @examples = grep { $is_selected->() } examples($page);
	my @outputs = run_examples($node, @before, @examples);

	splice @outputs, 0, scalar @before;
	for my $i (0 .. $#examples)
	{
		my $place = "$page:$examples[$i]{line}";

		if (defined $examples[$i]{output})
		{
			is($outputs[$i], trimmed($examples[$i]{output}), "$place prints what it shows");
		}
		else
		{
			unlike($outputs[$i], qr/^(ERROR|FATAL|WARNING):|^invalid |^\(nothing\)/m, "$place runs");
		}
	}
	return scalar @examples;
}

# ---------------------------------------------------------------------------
# All pages
# ---------------------------------------------------------------------------

my @pages = ('README.md', map { 'doc/' . (split '/')[-1] } sort glob "$root/doc/*.md");
my $node = start_node('documentation');
my $n = 0;

$n += check_page($node, $_, sub { $_->{section} ne $citus_section }) for @pages;
cmp_ok($n, '>', 50, 'there were examples');
# Files that a page shows.
my %files = ('doc/receive.md' => 'postgrest/argyle_webhook.sql', 'doc/reconcile.md' => 'reconcile/reconcile.sh');
ok(index(slurp_file("$root/$_"), slurp_file("$root/examples/$files{$_}")) >= 0, "$_ shows examples/$files{$_}")
  for sort keys %files;

$node->stop;

SKIP:
{
	my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
	my ($libraries, $extensions) =
	  map { chomp(my $path = `"$pg_config" $_`); $path } '--pkglibdir', '--sharedir';

	skip 'Citus is not installed', 1
	  if !-e "$libraries/citus.so" || !-e "$extensions/extension/citus.control";

	my $citus = start_node('citus');

	# it connects to itself by its socket, as a node of that name
	$citus->append_conf('postgresql.conf', join "\n",
		"shared_preload_libraries = 'citus'",
		"citus.local_hostname = '" . $citus->host . "'",
		"citus.node_conninfo = 'sslmode=prefer'",
		'citus.enable_metadata_sync = off',
		'citus.enable_statistics_collection = off', '');
	$citus->restart;
	cmp_ok(check_page($citus, 'doc/scaling.md', sub { $_->{section} eq $citus_section }),
		'>', 1, 'there were examples for Citus');
	$citus->stop;
}

done_testing();
