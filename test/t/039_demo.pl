# The demonstration: it shows what it says, goes on when it is told so, and leaves
# nothing behind.

use strict;
use warnings;

use FindBin;
use IPC::Run ();
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigPrograms;

my $tree = "$FindBin::RealBin/../..";

plan skip_all => 'Python with psycopg, or curl, is missing'
  if !python('psycopg') || system('curl --version >/dev/null 2>&1') != 0;

# Runs the demonstration.  Returns its exit code and what it prints.
sub demo
{
	my ($output, $errors) = ('', '');

	IPC::Run::run([ "$tree/scripts/demo", @_ ], '<', \undef, '>', \$output, '2>', \$errors);
	return ($? >> 8, "$output$errors");
}

END
{
	local $?;
	demo('down') if -e "$tree/.demo";
}

my ($code, $output) = demo('up');
is($code, 0, 'the demonstration goes on') or diag $output;
cmp_ok(($output =~ tr/\n//), '<=', 30, '... after 30 lines');
like($output, qr/^  $_->[0] +$_->[1]$/m, "... which show $_->[0]")
  for [ 'an account is fully synced', qr/\{"outcome": "applied"\} \(200\)/ ],
  [ 'the same once more', qr/\{"outcome": "duplicate"\} \(200\)/ ],
  [ 'a forgery', qr/\{"outcome": "rejected", "sqlstate": "28000", .*\} \(401\)/ ];
is(scalar(() = $output =~ /^  \S{36} fully_synced +\d+ gigs/mg), 6, '... and six accounts');
like($output, qr/^  \d{3} gigs of 5 accounts/m, '... and the gigs of five');

my ($psql) = $output =~ /^  psql +(.*)$/m;
my ($scratch) = $output =~ m{^  logs +(.*)/\*\.log$}m;
my $state = `$psql -XAtc 'SELECT count(*) > 100 FROM gig'`;
is($state, "t\n", 'its psql works');
is((demo('up'))[0], 1, 'it is not started twice');
is((demo('down'))[0], 0, 'it ends');
ok(!-e $scratch, '... and leaves no files');
is(`ps -eo args | grep -F '$scratch/' | grep -v grep`, '', '... and no processes');
is((demo('down'))[0], 1, '... once');

done_testing();
