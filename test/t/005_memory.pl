# A session that is fed bad events all day keeps nothing of them.
#
# 200,000 of them here; a million with GIGS_LONG set.

use strict;
use warnings;

use FindBin;
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $events = $ENV{GIGS_LONG} ? 1_000_000 : 200_000;
my $node = start_node('memory', "log_min_messages = fatal");

plan skip_all => 'PostgreSQL 13 does not show its memory contexts'
  if $node->safe_psql('postgres', 'SHOW server_version_num') < 140000;

# Bad in every way, and of every size: not authentic, no JSON, no object, no
# UTF-8, too deep, too large, of wrong types, and null.
$node->safe_psql('postgres', <<'SQL');
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'secret');
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	CREATE TABLE bad AS
	SELECT row_number() OVER () - 1 AS n, convert_to(body, 'UTF8') AS body, sig FROM (VALUES
		('{"event":"gigs.added","name":"signed","data":{}}', NULL),
		('{"event":"gigs.added","name":"signed","data":{}}', repeat('0', 128)),
		('{"event":"gigs.added","name":"nobody","data":{}}', 'x'),
		('{"event":"gigs.added","name":"unsigned","data":{}}', NULL),
		('{"event":"gigs.updated","name":"unsigned","data":{"updated_gigs":[' || repeat('"x",', 500) || '1]}}', NULL),
		('{"event":"gigs.exploded\u00e9","name":"unsigned"}', NULL),
		('{"event":"gigs.added","name":"unsigned","resource":' || repeat('[', 300), NULL),
		('{"event":', NULL),
		('[{}]', NULL),
		(repeat(' ', 4000), NULL),
		(NULL, NULL)
	) AS v (body, sig)
	UNION ALL SELECT 11, '\xff'::bytea, NULL;
SQL

my $feed = q{
	DO $$
	DECLARE
		kinds int := (SELECT count(*) FROM bad);
		hook bad;
		result text;
	BEGIN
		FOR i IN 1 .. %d / 2 LOOP
			SELECT * INTO hook FROM bad WHERE n = i %% kinds;
			SELECT outcome INTO result FROM gigs.try_ingest_gig_event(hook.body, hook.sig);
			IF result <> 'rejected' THEN
				RAISE 'event %% was %%', hook.n, result;
			END IF;
		END LOOP;
	END
	$$;
	SELECT count(*) FILTER (WHERE r.outcome <> 'rejected')
	FROM generate_series(1, %d / 2 / 1000) AS i,
		(SELECT array_agg(body) AS bodies, array_agg(sig) AS sigs FROM bad, generate_series(1, 1000 / 12 + 1)) AS b,
		gigs.ingest_gig_events(b.bodies, b.sigs) AS r;
};
my $measure = q{SELECT sum(total_bytes) FROM pg_backend_memory_contexts;};
my ($ok, $before, $ok_again, $after) = split /\n/,
  $node->safe_psql(
	'postgres',
	"SET gigs_webhooks.max_body_size = 2048;"
	  . sprintf($feed, 20_000, 20_000) . $measure
	  . sprintf($feed, $events, $events) . $measure);

is("$ok $ok_again", '0 0', 'bad events are rejected');
cmp_ok($after - $before, '<', 65536,
	"$events bad events leave nothing behind");
note "$before bytes before, $after after $events events";

$node->stop;
done_testing();
