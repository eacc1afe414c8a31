# A session that ingests events all day, or reads them as a consumer, does not grow:
# neither in PostgreSQL's memory contexts nor in memory that libraries allocate,
# whatever the outcomes are.
#
# One session ingests 100,000 bad events; with GIGS_LONG a million, and ten times as
# many of all others.

use strict;
use warnings;

use FindBin;
use POSIX ();
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $times = $ENV{GIGS_LONG} ? 10 : 1;

# Sanitizers and Valgrind keep freed memory, and take long.
my $watched = $ENV{CHECK_UNDER};
$times = 0.05 if $watched;

# With few shared buffers a session has soon touched them all.
my $node = start_node('memory', 'log_min_messages = fatal',
	'shared_buffers = 4MB', 'max_wal_size = 1GB');

# Only Linux has /proc.
my $has_proc = -r '/proc/self/statm' && !$watched;
my $page_size = POSIX::sysconf(POSIX::_SC_PAGESIZE());

$node->safe_psql('postgres', <<'SQL');
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'secret');
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_consumer('fetch');
	SELECT gigs.create_gig_subscription('rotated', 'https://example.com/', 'secret 0');
	SELECT count(gigs.add_gig_secret('rotated', 'secret ' || i)) FROM generate_series(1, 19) AS i;

	-- Bodies that are rejected: not authentic, no JSON, no object, no UTF-8, too
	-- deep, too large, of wrong types, and null.
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

	-- Different events of all kinds, for a thousand accounts.
	CREATE FUNCTION good(n bigint, name text DEFAULT 'unsigned', accounts int DEFAULT 1000) RETURNS text LANGUAGE sql AS $$
		SELECT format('{"event":"gigs.%s","name":"%s","data":{"account":"%s","user":"%s","available_count":%s,%s}}',
			e[1], name, lpad((n % accounts)::text, 32, '0')::uuid, lpad((n % 10)::text, 32, 'a')::uuid, n, e[2])
		FROM (SELECT CASE n % 5
			WHEN 0 THEN ARRAY['added', '"added_count":1,"added_from":"2023-03-02T00:00:00Z","added_to":null']
			WHEN 1 THEN ARRAY['updated', '"updated_count":1,"updated_gigs":["' || lpad((n % 1000)::text, 32, 'b')::uuid || '"]']
			WHEN 2 THEN ARRAY['removed', '"removed_count":1,"removed_gigs":["' || lpad((n % 1000)::text, 32, 'b')::uuid || '"]']
			WHEN 3 THEN ARRAY['partially_synced', '"days_synced":30']
			ELSE ARRAY['fully_synced', '"days_synced":365'] END) AS v (e)
	$$;

	-- Authentic webhooks that are not understood, and become the above by mending.
	CREATE FUNCTION unknown(n bigint) RETURNS bytea LANGUAGE sql AS $$
		SELECT convert_to(replace(good(n, 'signed'), w[1], w[2]), 'UTF8')
		FROM (SELECT CASE n % 2
			WHEN 0 THEN ARRAY['"gigs.', '"gigs.un']
			ELSE ARRAY['"available_count":', '"available_count":-'] END) AS v (w)
	$$;
	CREATE FUNCTION mended(body bytea) RETURNS bytea LANGUAGE sql AS $$
		SELECT convert_to(replace(replace(convert_from(body, 'UTF8'), '"gigs.un', '"gigs.'), ':-', ':'), 'UTF8')
	$$;
	CREATE SEQUENCE body_number;

	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY, body bytea, signature text,
		outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
SQL

# What sessions do: a title, how many events, how many of them in a transaction,
# and a statement for so many, which returns how many had a wrong outcome.
my @feeds = (
	[
		'bad events one by one', 100_000, 1000, q{
		SELECT count(*) FILTER (WHERE r.outcome IS DISTINCT FROM 'rejected')
		FROM generate_series(1, %d) AS i
		JOIN bad ON bad.n = i %% 12,
		LATERAL gigs.try_ingest_gig_event(bad.body, bad.sig) AS r;}
	],
	[
		'bad events in batches', 30_000, 500, q{
		SELECT count(*) FILTER (WHERE r.outcome IS DISTINCT FROM 'rejected')
		FROM (SELECT array_agg(body) AS bodies, array_agg(sig) AS sigs
			FROM generate_series(1, %d) AS i JOIN bad ON bad.n = i %% 12) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, b.sigs) AS r;}
	],
	[
		'events that raise', 6_000, 100, q{
		DO $$
		DECLARE
			hook bad;
			i int;
		BEGIN
			FOR i IN 1 .. %d LOOP
				SELECT * INTO hook FROM bad WHERE n = i %% 12;
				BEGIN
					PERFORM gigs.ingest_gig_event(hook.body, hook.sig);
					RAISE 'event %% was not refused', hook.n USING ERRCODE = 'assert_failure';
				EXCEPTION WHEN OTHERS THEN
				END;
			END LOOP;
		END
		$$;
		SELECT 0;}
	],
	[
		'good events one by one', 5_000, 100, q{
		SELECT count(*) FILTER (WHERE o NOT IN ('applied', 'stale'))
		FROM (SELECT gigs.ingest_gig_event(good(nextval('body_number')), NULL) AS o
			FROM generate_series(1, %d)) AS v;}
	],
	[
		'good events in batches', 8_000, 200, q{
		SELECT count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'stale'))
		FROM (SELECT array_agg(convert_to(good(nextval('body_number'), 'signed'), 'UTF8')) AS bodies
			FROM generate_series(1, %d)) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies,
			(SELECT array_agg(gigs.sign_gig_event(body, 'secret')) FROM unnest(b.bodies) AS body)) AS r;}
	],
	[
		'events of one account', 5_000, 50, q{
		SELECT count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'stale'))
		FROM (SELECT array_agg(convert_to(good(nextval('body_number'), 'unsigned', 1), 'UTF8')) AS bodies
			FROM generate_series(1, %d)) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, NULL) AS r;}
	],
	[
		'events of an archive', 4_000, 50, q{
		SELECT count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'stale'))
		FROM (SELECT array_agg(convert_to(good(nextval('body_number'), 'unsigned', 1), 'UTF8')) AS bodies,
				array_agg(now() - interval '10 days' * random()) AS times
			FROM generate_series(1, %d)) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, NULL, b.times) AS r;}
	],
	[
		'events of other families', 10_000, 500, q{
		SELECT count(*) FILTER (WHERE o <> 'ignored')
		FROM (SELECT gigs.ingest_gig_event(replace(good(i), '"gigs.', '"shifts.'), NULL) AS o FROM generate_series(1, %d) AS i) AS v;}
	],
	[
		'quarantined webhooks', 6_000, 100, q{
		SELECT count(*) FILTER (WHERE r.outcome <> 'quarantined')
		FROM generate_series(1, %d) AS i, unknown(i) AS body,
		LATERAL gigs.try_ingest_gig_event(body, gigs.sign_gig_event(body, 'secret')) AS r;}
	],
	[
		'quarantined webhooks in batches', 6_000, 200, q{
		SELECT count(*) FILTER (WHERE r.outcome <> 'quarantined')
		FROM (SELECT array_agg(body) AS bodies, array_agg(gigs.sign_gig_event(body, 'secret')) AS sigs
			FROM generate_series(1, %d) AS i, unknown(i) AS body) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, b.sigs) AS r;}
	],
	[
		'quarantined webhooks retried', 4_000, 100, q{
		TRUNCATE gigs.gig_quarantine;
		INSERT INTO gigs.gig_quarantine (received_at, name, sqlstate, message, body)
		SELECT now(), 'signed', '', '', CASE i %% 2 WHEN 0 THEN u ELSE mended(u) END
		FROM generate_series(1, %d) AS i, unknown(nextval('body_number')) AS u;
		SELECT abs(ingested - kept) FROM gigs.retry_gig_quarantine();
		TRUNCATE gigs.gig_quarantine;}
	],
	[
		'duplicates one by one', 6_000, 100, q{
		SELECT count(*) FILTER (WHERE o <> 'duplicate')
		FROM (SELECT gigs.ingest_gig_event(good(i), NULL) AS o FROM generate_series(1, %d) AS i) AS v;}
	],
	[
		'duplicates in batches', 10_000, 200, q{
		SELECT count(*) FILTER (WHERE r.outcome <> 'duplicate')
		FROM (SELECT array_agg(convert_to(good(i), 'UTF8')) AS bodies FROM generate_series(1, %d) AS i) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, NULL) AS r;}
	],
	[
		'rows of an inbox', 6_000, 100, q{
		TRUNCATE inbox;
		INSERT INTO inbox (body) SELECT CASE i %% 2 WHEN 0 THEN '\xff'::bytea
			ELSE convert_to(good(nextval('body_number')), 'UTF8') END FROM generate_series(1, %d) AS i;
		SELECT count(*) FILTER (WHERE (outcome = 'rejected') <> (body = '\xff')) FROM inbox;}
	],
	[
		'bodies parsed, signed and verified', 10_000, 500, q{
		SELECT count(*) FILTER (WHERE (gigs.parse_gig_event(body)).name <> 'unsigned'
			OR NOT gigs.verify_gig_signature(body, gigs.sign_gig_event(body, 'key ' || i), 'key ' || i)
			OR gigs.verify_gig_signature(body, repeat('0', 128), 'key'))
		FROM (SELECT i, good(i) AS body FROM generate_series(1, %d) AS i) AS v;}
	],
	[
		'batches of a consumer', 5_000, 100, q{
		SELECT count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'stale'))
		FROM (SELECT array_agg(convert_to(good(nextval('body_number')), 'UTF8')) AS bodies
			FROM generate_series(1, %d)) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, NULL) AS r;
		DO $$
		DECLARE
			work record;
		BEGIN
			SELECT max(batch) AS batch, min(account_id::text)::uuid AS account_id, count(*) AS accounts INTO work
			FROM gigs.read_gig_work('fetch', 100);
			IF work.accounts > 0 THEN
				PERFORM gigs.retry_gig_work(work.batch, work.account_id, 'cannot fetch', '0');
				PERFORM gigs.finish_gig_work(work.batch);
			END IF;
		END
		$$;}
	],
	[
		'the secrets read again', 1000, 1, q{
		UPDATE gigs.gig_subscription SET url = url WHERE name = 'signed';
		SELECT count(*) FILTER (WHERE r.outcome <> 'rejected')
		FROM generate_series(1, %d), bad, LATERAL gigs.try_ingest_gig_event(bad.body, bad.sig) AS r;}
	]);

# Returns the bytes and the number of the memory contexts, and the private memory
# of the process in bytes.  pg_read_file() takes the file for empty unless it is
# given a length.
my $measure =
    q{SELECT (SELECT sum(used_bytes) FROM pg_backend_memory_contexts),}
  . q{ (SELECT count(*) FROM pg_backend_memory_contexts), }
  . ($has_proc
	? "(SELECT (s[2]::bigint - s[3]::bigint) * $page_size"
	  . " FROM string_to_array(pg_read_file('/proc/self/statm', 0, 1000), ' ') AS s)"
	: '0')
  . ';';

# What may come at any time: a relation into the cache, and the memory that malloc()
# keeps.  There are far more transactions, and each event has some bytes.
my ($max_contexts, $max_own) = (5, 384 * 1024);

# Each has a session, which is measured after some repetitions.  Every second one
# writes the tables by statements.
my $direct = 'off';

for my $feed (@feeds)
{
	my ($name, $events, $at_a_time, $statement) = @$feed;

	$direct = $direct eq 'on' ? 'off' : 'on';
	my $once = sprintf($statement, $at_a_time);
	my $rounds = $events * $times / $at_a_time;
	# the first five executions of a plan are not generic
	my $warm_up = $rounds < 100 ? 10 : $rounds / 10;
	my @lines = split /\n/, $node->safe_psql('postgres',
		"LOAD 'gigs_webhooks'; SET gigs_webhooks.direct_writes = $direct;\n"
		  . "SET gigs_webhooks.max_body_size = 2048;\n"
		  . "$measure\n"
		  . "$once\n" x $warm_up
		  . "$measure\n"
		  . "$once\n" x $rounds
		  . "$measure\n");
	my @figures = map { [ split /\|/, $_ ] } grep { /\|/ } @lines;
	my @wrong = grep { $_ ne '0' } grep { !/\|/ } @lines;
	my ($bytes, $contexts, $own) =
	  map { $figures[2][$_] - $figures[1][$_] } 0 .. 2;

	is(scalar(@figures) . ' ' . @wrong, '3 0', "$name: as expected");
	cmp_ok($bytes, '<', 65536, "$name: nothing left in memory contexts");
	cmp_ok($contexts, '<', $max_contexts, "$name: no memory contexts left");
	cmp_ok($own, '<', $max_own, "$name: nothing left in memory of its own");
	note sprintf('%d events: contexts %d + %d bytes, %d + %d, memory %d + %d',
		$rounds * $at_a_time, $figures[1][0], $bytes, $figures[1][1],
		$contexts, $figures[1][2], $own);
}

# A drain, measured after each batch.
my $thousands = $ENV{GIGS_LONG} ? 40 : 1;
(my $measured = $measure) =~ s/;$//;
$node->safe_psql(
	'postgres', qq{
	CREATE TABLE backlog (id int PRIMARY KEY, body text, signature text, outcome text, error text);
	CREATE TABLE batch (n bigint GENERATED ALWAYS AS IDENTITY, bytes bigint, contexts bigint, own bigint);
	CREATE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS \$\$
	BEGIN
		INSERT INTO public.batch (bytes, contexts, own) $measured;
		RETURN NULL;
	END \$\$;
	CREATE TRIGGER measure AFTER UPDATE ON backlog EXECUTE FUNCTION measure();
	INSERT INTO backlog
	SELECT n, CASE WHEN n % 3 = 0 THEN 'bad' ELSE good(10000000 + n) END || repeat(' ', 20000)
	FROM generate_series(1, 1000 * $thousands) AS n;
});
is($node->safe_psql('postgres', "CALL gigs.drain_gig_inbox('backlog', 10)"),
	join('|', 1000 * $thousands, int(1000 * $thousands / 3)),
	'a drain: as expected');
my ($batches, $bytes, $contexts, $own) = split /\|/, $node->safe_psql(
	'postgres', q{
	SELECT count(*), max(bytes) FILTER (WHERE last) - max(bytes) FILTER (WHERE NOT last),
		max(contexts) FILTER (WHERE last) - max(contexts) FILTER (WHERE NOT last),
		max(own) FILTER (WHERE last) - max(own) FILTER (WHERE NOT last)
	FROM (SELECT *, n > max(n) OVER () * 0.8 AS last FROM batch) AS b
	WHERE last OR n BETWEEN 10 AND 20});
is($batches, 20 * $thousands + 11, '... in all its batches');
# PL/pgSQL keeps 24 bytes of each COMMIT.
cmp_ok($bytes, '<', 65536 + 32 * 100 * $thousands, 'a drain: nothing left in memory contexts');
cmp_ok($contexts, '<', $max_contexts, 'a drain: no memory contexts left');
cmp_ok($own, '<', $max_own, 'a drain: nothing left in memory of its own');

$node->stop;
done_testing();
