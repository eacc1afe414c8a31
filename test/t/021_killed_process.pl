# Single processes of the server are killed under load: the server recovers by
# itself, nothing that it has acknowledged is lost, and nothing is there by half.
#
# A session or another process is killed with SIGKILL, which ends all sessions; in
# half of the rounds all processes are killed while the server recovers.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigCrash;

my $test = GigCrash->new(name => 'killed', kills => 2);
my $server = $test->server;

$test->run(
	'one killed' => [ sub { $server->kill_one } ],
	'one killed, then all' => [ sub { $server->kill_one_then_all } ]);
$test->end;
done_testing();
