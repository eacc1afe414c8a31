# Webhooks in subtransactions: what is rolled back leaves nothing, and what is
# committed counts once.

use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::RealBin;
use GigTest;

my $node = start_node('subtransactions', "deadlock_timeout = '100ms'");
my $db = 'postgres';

create_gigs($node, $db);
$node->safe_psql(
	$db, q{
	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY, body bytea, signature text, outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
	-- ingests webhooks in blocks whose exceptions roll some of them back
	CREATE FUNCTION caught(first int, last int, OUT good int, OUT bad int, OUT rolled_back int) LANGUAGE plpgsql AS $$
	DECLARE
		body bytea;
	BEGIN
		good := 0; bad := 0; rolled_back := 0;
		FOR i IN first .. last LOOP
			BEGIN
				body := CASE WHEN i % 3 = 0 THEN 'junk' ELSE hook(i % 10, i) END;
				PERFORM gigs.ingest_gig_event(body, sig(body));
				IF i % 3 = 1 THEN
					RAISE division_by_zero;
				END IF;
				good := good + 1;
			EXCEPTION
				WHEN division_by_zero THEN rolled_back := rolled_back + 1;
				WHEN invalid_json_text THEN bad := bad + 1;
			END;
		END LOOP;
	END
	$$;
});

# Returns numbers of webhooks that are no partial syncs, and so never stale.
my $n = 10;

sub another { $n++; $n++ if $n % 5 == 0; return $n }

sub adds_up
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	is(troubles($node, $db), '', '... log and accounts agree');
	return;
}

my %entries = (
	'ingest_gig_event' => 'SELECT gigs.ingest_gig_event(b, sig(b)) FROM hook(1, %d) AS b',
	'try_ingest_gig_event' => 'SELECT outcome FROM hook(1, %d) AS b, gigs.try_ingest_gig_event(b, sig(b))',
	'ingest_gig_events' => 'SELECT outcome FROM hook(1, %d) AS b, gigs.ingest_gig_events(ARRAY[b], ARRAY[sig(b)])',
	'an inbox' => 'INSERT INTO inbox (body, signature) SELECT b, sig(b) FROM hook(1, %d) AS b RETURNING outcome');

# ---------------------------------------------------------------------------
# Savepoints and exception blocks
# ---------------------------------------------------------------------------

my @sessions = start_sessions($node, $db);

for (@sessions)
{
	my ($title, $session) = @$_;

	for my $entry (sort keys %entries)
	{
		my $take = sprintf $entries{$entry}, another();
		my $rows = rows_of($node, $db);

		is(ask($session, "BEGIN; SAVEPOINT s; $take; $take; ROLLBACK TO s; ROLLBACK"),
			"applied\nduplicate", "$title: $entry in a savepoint");
		is(rows_of($node, $db), $rows, '... which is rolled back, leaves nothing');
		is(ask($session, "BEGIN; SAVEPOINT s; $take; ROLLBACK TO s; $take; RELEASE s; $take; SAVEPOINT t; $take; ROLLBACK TO t; COMMIT"),
			"applied\napplied\nduplicate\nduplicate", '... and the webhook is then new');
		is(ask($session, $take), 'duplicate', '... once');
	}
	is(ask($session, 'SELECT * FROM caught(' . (another() + 1000) . ', ' . ($n + 1299) . ')'),
		'100|100|100', "$title: exception blocks catch rejected webhooks, and roll back others");
	$n += 1300;
}
adds_up();
is($node->safe_psql($db, 'SELECT count(DISTINCT xmin::text) > 100 FROM gigs.gig_event_log'), 't', '... which many subtransactions have written');

# ---------------------------------------------------------------------------
# More subtransactions than a snapshot lists
# ---------------------------------------------------------------------------

# Half of the time the accounts exist before.
for my $i (0, 1)
{
	my ($title, $session) = @{ $sessions[$i] };
	my (undef, $many) = @{ $sessions[ 1 - $i ] };
	my ($alone) = map { $_->[1] } grep { $_->[0] =~ /off/ } my @more = start_sessions($node, $db);

	$n += 510;
	$n++ while $n % 5 == 0;
	ask($session, "SELECT count(take(a, $n + 10)) FROM generate_series(1, 200) AS a") if $i;
	ask($many, "BEGIN;\n" . join '', map { "SAVEPOINT s; SELECT take($_, $n);\nRELEASE s;\n" } 1 .. 200);
	begin_asking($session, "SELECT take(1, $n); SELECT take(150, $n); SELECT take_all(array_agg(a), array_agg($n)) FROM generate_series(1, 200) AS a");
	wait_for_locks($node, $db, 1);
	begin_asking($alone, "SELECT take(180, $n); SELECT take(180, $n + 5)");
	wait_for_locks($node, $db, 2);
	ask($many, 'COMMIT');
	is(end_asking($session), "duplicate\nduplicate\nduplicate 200", "$title: sessions that wait for 200 subtransactions see what they have ingested");
	is(end_asking($alone), "duplicate\napplied", '... by statements as well');
	$_->[1]->quit for @more;
}
adds_up();

$_->[1]->quit for @sessions;
$node->stop;
done_testing();
