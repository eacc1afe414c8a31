# A session that is fed events all day keeps nothing of them: neither in
# PostgreSQL's memory contexts nor in memory that libraries allocate, whatever
# becomes of the events.
#
# 200,000 bad events in one session here; a million with GIGS_LONG set, and five
# times as much of all else.

use strict;
use warnings;

use FindBin;
use POSIX ();
use Test::More;

use PostgreSQL::Test::Utils;

use lib $FindBin::RealBin;
use GigTest;

my $times = $ENV{GIGS_LONG} ? 5 : 1;

# What watches a server keeps memory back for its own purposes, and takes long.
my $watched = $ENV{CHECK_UNDER};
$times = 0.05 if $watched;

# Few shared buffers, so that they have all been touched soon.
my $node = start_node('memory', 'log_min_messages = fatal',
	'shared_buffers = 4MB', 'max_wal_size = 1GB');

# PostgreSQL 13 does not show its memory contexts, and only Linux has /proc.
my $has_contexts =
  $node->safe_psql('postgres', 'SHOW server_version_num') >= 140000;
my $has_proc = -r '/proc/self/statm' && !$watched;
my $page_size = POSIX::sysconf(POSIX::_SC_PAGESIZE());

plan skip_all => 'neither memory contexts nor /proc are to be seen'
  if !$has_contexts && !$has_proc;

$node->safe_psql('postgres', <<'SQL');
	CREATE SCHEMA gigs;
	CREATE EXTENSION gigs_webhooks SCHEMA gigs;
	SELECT gigs.create_gig_subscription('signed', 'https://example.com/', 'secret');
	SELECT gigs.create_gig_subscription('unsigned', 'https://example.com/');
	SELECT gigs.create_gig_subscription('rotated', 'https://example.com/', 'secret 0');
	SELECT count(gigs.add_gig_secret('rotated', 'secret ' || i)) FROM generate_series(1, 19) AS i;

	-- Bad in every way, and of every size: not authentic, no JSON, no object, no
	-- UTF-8, too deep, too large, of wrong types, and null.
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

	-- Good ones: of all kinds, no two alike, for a hundred accounts.
	CREATE FUNCTION good(n bigint, name text DEFAULT 'unsigned') RETURNS text LANGUAGE sql AS $$
		SELECT format('{"event":"gigs.%s","name":"%s","data":{"account":"%s","user":"%s","available_count":%s,%s}}',
			e[1], name, lpad((n % 100)::text, 32, '0')::uuid, lpad((n % 10)::text, 32, 'a')::uuid, n, e[2])
		FROM (SELECT CASE n % 5
			WHEN 0 THEN ARRAY['added', '"added_count":1,"added_from":"2023-03-02T00:00:00Z","added_to":null']
			WHEN 1 THEN ARRAY['updated', '"updated_count":1,"updated_gigs":["' || lpad((n % 1000)::text, 32, 'b')::uuid || '"]']
			WHEN 2 THEN ARRAY['removed', '"removed_count":1,"removed_gigs":["' || lpad((n % 1000)::text, 32, 'b')::uuid || '"]']
			WHEN 3 THEN ARRAY['partially_synced', '"days_synced":30']
			ELSE ARRAY['fully_synced', '"days_synced":365'] END) AS v (e)
	$$;
	CREATE SEQUENCE body_number;

	CREATE TABLE inbox (id bigint GENERATED ALWAYS AS IDENTITY, body bytea, signature text,
		outcome text, error text);
	CREATE TRIGGER ingest BEFORE INSERT ON inbox
		FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
SQL

# What a session is fed with: its name, how many events, how many of them in a
# transaction, and the statement for so many, which says how many went wrong.
my @feeds = (
	[
		'bad events one by one', 200_000, 1000, q{
		SELECT count(*) FILTER (WHERE r.outcome IS DISTINCT FROM 'rejected')
		FROM generate_series(1, %d) AS i
		JOIN bad ON bad.n = i %% 12,
		LATERAL gigs.try_ingest_gig_event(bad.body, bad.sig) AS r;}
	],
	[
		'bad events in batches', 100_000, 1000, q{
		SELECT count(*) FILTER (WHERE r.outcome IS DISTINCT FROM 'rejected')
		FROM (SELECT array_agg(body) AS bodies, array_agg(sig) AS sigs
			FROM generate_series(1, %d) AS i JOIN bad ON bad.n = i %% 12) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, b.sigs) AS r;}
	],
	[
		'events that raise', 10_000, 200, q{
		DO $$
		DECLARE
			hook bad;
			i int;
		BEGIN
			FOR i IN 1 .. %d LOOP
				SELECT * INTO hook FROM bad WHERE n = i %% 12;
				BEGIN
					PERFORM gigs.ingest_gig_event(hook.body, hook.sig);
					RAISE 'event %% was let pass', hook.n USING ERRCODE = 'assert_failure';
				EXCEPTION WHEN OTHERS THEN
				END;
			END LOOP;
		END
		$$;
		SELECT 0;}
	],
	[
		'good events one by one', 10_000, 100, q{
		SELECT count(*) FILTER (WHERE o NOT IN ('applied', 'stale'))
		FROM (SELECT gigs.ingest_gig_event(good(nextval('body_number')), NULL) AS o
			FROM generate_series(1, %d)) AS v;}
	],
	[
		'good events in batches', 20_000, 500, q{
		SELECT count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'stale'))
		FROM (SELECT array_agg(convert_to(good(nextval('body_number'), 'signed'), 'UTF8')) AS bodies
			FROM generate_series(1, %d)) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies,
			(SELECT array_agg(gigs.sign_gig_event(body, 'secret')) FROM unnest(b.bodies) AS body)) AS r;}
	],
	[
		'duplicates one by one', 10_000, 200, q{
		SELECT count(*) FILTER (WHERE o <> 'duplicate')
		FROM (SELECT gigs.ingest_gig_event(good(i), NULL) AS o FROM generate_series(1, %d) AS i) AS v;}
	],
	[
		'duplicates in batches', 20_000, 200, q{
		SELECT count(*) FILTER (WHERE r.outcome <> 'duplicate')
		FROM (SELECT array_agg(convert_to(good(i), 'UTF8')) AS bodies FROM generate_series(1, %d) AS i) AS b,
		LATERAL gigs.ingest_gig_events(b.bodies, NULL) AS r;}
	],
	[
		'rows of an inbox', 10_000, 200, q{
		TRUNCATE inbox;
		INSERT INTO inbox (body) SELECT CASE i %% 2 WHEN 0 THEN '\xff'::bytea
			ELSE convert_to(good(nextval('body_number')), 'UTF8') END FROM generate_series(1, %d) AS i;
		SELECT count(*) FILTER (WHERE (outcome = 'rejected') <> (body = '\xff')) FROM inbox;}
	],
	[
		'bodies parsed, signed and verified', 20_000, 1000, q{
		SELECT count(*) FILTER (WHERE (gigs.parse_gig_event(body)).name <> 'unsigned'
			OR NOT gigs.verify_gig_signature(body, gigs.sign_gig_event(body, 'key ' || i), 'key ' || i)
			OR gigs.verify_gig_signature(body, repeat('0', 128), 'key'))
		FROM (SELECT i, good(i) AS body FROM generate_series(1, %d) AS i) AS v;}
	],
	[
		'secrets read again', 1000, 1, q{
		UPDATE gigs.gig_subscription SET url = url WHERE name = 'signed';
		SELECT count(*) FILTER (WHERE r.outcome <> 'rejected')
		FROM generate_series(1, %d), bad, LATERAL gigs.try_ingest_gig_event(bad.body, bad.sig) AS r;}
	]);

# Bytes and number of the memory contexts, then what of the process's memory is
# its own, in bytes.  Without a length PostgreSQL 13 takes a file of /proc for
# empty.
my $measure = 'SELECT '
  . ($has_contexts
	? '(SELECT sum(total_bytes) FROM pg_backend_memory_contexts), (SELECT count(*) FROM pg_backend_memory_contexts)'
	: '0, 0')
  . ', '
  . ($has_proc
	? "(SELECT (s[2]::bigint - s[3]::bigint) * $page_size"
	  . " FROM string_to_array(pg_read_file('/proc/self/statm', 0, 1000), ' ') AS s)"
	: '0')
  . ';';

# A session each, which has done everything a few times before it is measured.
for my $feed (@feeds)
{
	my ($name, $events, $at_a_time, $statement) = @$feed;
	my $once = sprintf($statement, $at_a_time);
	my $rounds = $events * $times / $at_a_time;
	my $warm_up = $rounds < 50 ? 5 : $rounds / 10;
	my @lines = split /\n/, $node->safe_psql('postgres',
		"SET gigs_webhooks.max_body_size = 2048;\n"
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
	cmp_ok($contexts, '<=', 0, "$name: no memory contexts left");
	cmp_ok($own, '<', 131072, "$name: nothing left in memory of its own");
	note sprintf('%d events: contexts %d + %d bytes, %d + %d, memory %d + %d',
		$rounds * $at_a_time, $figures[1][0], $bytes, $figures[1][1],
		$contexts, $figures[1][2], $own);
}

# A drain, batch by batch: its last ones leave no more than its first.
my $thousands = $ENV{GIGS_LONG} ? 40 : 1;
(my $measured = $measure) =~ s/;$//;
$node->safe_psql(
	'postgres', qq{
	CREATE TABLE backlog (id int PRIMARY KEY, body text, signature text, outcome text, error text);
	CREATE TABLE batch (n bigint GENERATED ALWAYS AS IDENTITY, bytes bigint, contexts bigint, own bigint);
	CREATE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS \$\$
	BEGIN
		INSERT INTO batch (bytes, contexts, own) $measured;
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
cmp_ok($bytes, '<', 65536, 'a drain: nothing left in memory contexts');
cmp_ok($contexts, '<=', 0, 'a drain: no memory contexts left');
cmp_ok($own, '<', 131072, 'a drain: nothing left in memory of its own');

# Reasons that together are more than fits into a value.
if ($ENV{GIGS_LONG})
{
	$node->safe_psql('postgres', q{
		CREATE TABLE wide (id int, body text, signature text, outcome text, error char(150000));
		INSERT INTO wide SELECT n, 'junk' FROM generate_series(1, 8000) AS n});
	is($node->safe_psql('postgres', q{CALL gigs.drain_gig_inbox('wide')}), '8000|8000', 'many long reasons');
}

$node->stop;
done_testing();
