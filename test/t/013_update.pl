# ALTER EXTENSION ... UPDATE while sessions ingest: they continue, with the
# statements and subscriptions that they have cached.
#
# The next version is made up.  Its script changes what a script may change while
# the module stays the same.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('update');
my $directory = $node->safe_psql('postgres',
	"SELECT setting || '/extension' FROM pg_config WHERE name = 'SHAREDIR'");
my $path = "$directory/gigs_webhooks--1.0.0--1.0.0next.sql";

plan skip_all => "$directory is not writable" if !-w $directory;
END { unlink $path if defined $path }

# Tables are altered in the order in which sessions lock them.
append_to_file(
	$path, q{
	ALTER TABLE @extschema@.gig_subscription ADD COLUMN note text, ALTER COLUMN url DROP NOT NULL;
	ALTER TABLE @extschema@.gig_event_log ADD COLUMN note text NOT NULL DEFAULT 'x';
	ALTER TABLE @extschema@.gig_account_sync ADD COLUMN note text, ALTER COLUMN days_synced SET STATISTICS 10;
	CREATE INDEX gig_account_sync_next_idx ON @extschema@.gig_account_sync (first_event_at);
	ALTER TYPE @extschema@.gig_ingest_outcome ADD VALUE 'postponed' BEFORE 'ignored';
	ALTER TYPE @extschema@.gig_event_kind ADD VALUE 'gigs.moved' BEFORE 'gigs.added';
	CREATE OR REPLACE FUNCTION @extschema@.gig_subscription_changed() RETURNS trigger
	AS 'MODULE_PATHNAME', 'gig_subscription_changed' LANGUAGE C VOLATILE PARALLEL UNSAFE;
	CREATE TABLE @extschema@.gig_next (id int);
});

create_gigs($node, 'postgres');

my $nclients = 3;
my $files = PostgreSQL::Test::Utils::tempdir;

# What a client repeats until there is a file "stop": singles, a batch, and
# redeliveries of both, of 12 events.  At the end it prints the next n.
my $round = <<"END";
\\if `test -e '$files/stop' && echo on || echo off`
\\echo :n
\\q
\\endif
SELECT take(0, :n);
SELECT take(1, :n + 1);
SELECT take(0, :n);
SELECT take_all(array_agg(i % 7), array_agg(:n + i)) FROM generate_series(1, 11) AS i;
SELECT :n + 12 AS n \\gset
END

sub first_of { my ($client) = @_; return 10_000_000 * $client }

sub start_ingesting
{
	my ($client) = @_;
	# one of them writes through the executor
	my $options = $client == 1 ? " options='-c gigs_webhooks.direct_writes=off'" : '';

	return IPC::Run::start(
		[ 'yes', $round ], '2>', '/dev/null', '|',
		[ 'psql', '-XAtq', '-v', 'n=' . first_of($client), '-d', $node->connstr('postgres') . $options ],
		'>', "$files/out.$client", '2>', "$files/err.$client",
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
}

sub wait_for_events
{
	my ($n) = @_;

	$node->poll_query_until('postgres', "SELECT count(*) > $n FROM gigs.gig_event_log")
	  or die 'clients do not ingest';
	return;
}

# A session that has statements and subscriptions cached, and prepared.
my $session = $node->background_psql('postgres', on_error_stop => 0);
ask($session, 'PREPARE p(bytea) AS SELECT gigs.ingest_gig_event($1, sig($1))');
is(ask($session, 'EXECUTE p(hook(100, 1))'), 'applied', 'a session ingests');
is(ask($session, q{SELECT take_all('{100,101}', '{2,3}')}), 'applied 2', '... a batch as well');

my @clients = map { start_ingesting($_) } 1 .. $nclients;
wait_for_events(100);

# The update waits for a transaction that has ingested, and all clients wait for
# the update.  That transaction has the subscription cached, as the clients have:
# otherwise the update would wait for a table that clients do not read.
my $ingesting = $node->background_psql('postgres', on_error_stop => 0);
my $updating = $node->background_psql('postgres', on_error_stop => 0);
is(ask($ingesting, 'SELECT take(200, 1); BEGIN; SELECT take(200, 2)'), "applied\napplied", 'a transaction ingests');
begin_asking($updating, q{ALTER EXTENSION gigs_webhooks UPDATE TO '1.0.0next'});
wait_for_locks($node, 'postgres', 1 + $nclients);
ask($ingesting, 'COMMIT');
is(end_asking($updating), '', 'the extension is updated');
my $at_update = $node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log');
wait_for_events($at_update + 100);
append_to_file("$files/stop", '');
$_->finish for @clients;
$_->quit for $ingesting, $updating;
my $errors = join '', map { slurp_file("$files/err.$_") } 1 .. $nclients;
my $nevents = 0;
$nevents += (slurp_file("$files/out.$_") =~ /(\d+)\n\z/)[0] - first_of($_) for 1 .. $nclients;

is($errors, '', 'sessions ingest without an error while the extension is updated');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM gigs.gig_event_log'),
	'>', $at_update, '... before it and after it');
is( $node->safe_psql('postgres', q{SELECT count(*) FROM gigs.gig_event_log WHERE outcome <> 'duplicate'}),
	5 + $nevents, '... every event once');
is(troubles($node, 'postgres'), '', '... and all agrees');

is(ask($session, 'EXECUTE p(hook(100, 1))'), 'duplicate', 'the first session continues');
is(ask($session, 'EXECUTE p(hook(100, 4))'), 'applied', '... with new events');
is(ask($session, q{SELECT take_all('{100,101,102}', '{2,5,6}')}), 'applied 2, duplicate 1', '... with batches');
is( ask($session, q{SELECT event FROM gigs.gig_event_log WHERE account_id = account(100) AND outcome = 'applied' ORDER BY event_id}),
	join("\n", 'gigs.added', 'gigs.updated', 'gigs.fully_synced'), '... with the right kinds');
is(ask($session, 'SELECT accounts_skipped FROM gigs.rebuild_gig_sync()'), '0', '... and rebuilds');
$node->safe_psql('postgres', q{SELECT gigs.retire_gig_secret('payroll', 'secret')});
is(ask($session, 'EXECUTE p(hook(100, 7))'), '28000', '... and notices that a secret retires');
is( $node->safe_psql('postgres', q{SELECT extversion FROM pg_extension WHERE extname = 'gigs_webhooks'}),
	'1.0.0next', 'the extension has the next version');

$session->quit;
$node->stop;
done_testing();
