--
-- Times of receipt: an archive is ingested as if its webhooks had come live
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET client_min_messages = warning;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, MDY';
\pset format unaligned

SELECT gigs.create_gig_subscription('n', 'https://example.com/hooks');
CREATE FUNCTION pg_temp.body(kind text, account int, available int, own int DEFAULT 1) RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(format(
		'{"event":"gigs.%s","name":"n","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s%s}}',
		kind, account, available,
		CASE kind WHEN 'partially_synced' THEN format(',"days_synced":%s', own) WHEN 'fully_synced' THEN '' ELSE format(',"%s_count":%s', kind, own) END), 'UTF8')
$$;

-- Without times, or where one is null, webhooks are received now
SELECT clock_timestamp() AS before \gset
SELECT ord, outcome FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 1)], NULL, NULL);
SELECT ord, outcome FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 2), pg_temp.body('added', 0, 3)], NULL, ARRAY[NULL, '2023-01-01 00:00Z']::timestamptz[]);
SELECT event_id, received_at BETWEEN :'before' AND clock_timestamp() AS now, CASE WHEN received_at < :'before' THEN received_at END AS earlier FROM gigs.gig_event_log ORDER BY event_id;

-- Infinite times are refused, and arrays that do not fit
\set VERBOSITY terse
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4)], NULL, ARRAY['infinity']::timestamptz[]);
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4)], NULL, ARRAY['-infinity']::timestamptz[]);
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4), pg_temp.body('added', 0, 5)], NULL, ARRAY['2023-01-01 00:00Z', '-infinity']::timestamptz[]);
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4)], NULL, '{}');
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4)], NULL, ARRAY['2023-01-01 00:00Z', '2023-01-01 00:00Z']::timestamptz[]);
SELECT * FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 0, 4)], NULL, ARRAY[['2023-01-01 00:00Z']]::timestamptz[]);
SELECT * FROM gigs.ingest_gig_events(NULL, NULL, NULL);
\set VERBOSITY default
SELECT count(*) FROM gigs.gig_event_log;
-- ... any finite time is accepted; one in the future counts as now
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[pg_temp.body('added', 9, 1), pg_temp.body('added', 9, 1), pg_temp.body('added', 9, 2)], NULL,
	ARRAY['4713-01-01 00:00Z BC', '294276-12-31 23:59:59.999999Z', clock_timestamp() + interval '1 hour']::timestamptz[]);
SELECT first_event_at, last_event_at BETWEEN :'before' AND clock_timestamp() AS now FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '9';
SELECT max(received_at) <= clock_timestamp() AS past FROM gigs.gig_event_log;
-- ... now is not before the account's last event, although the clock may be set back
UPDATE gigs.gig_account_sync SET last_event_at = '2999-01-01 00:00Z' WHERE right(account_id::text, 1) = '9';
SELECT gigs.ingest_gig_event(pg_temp.body('added', 9, 3), NULL);
SELECT max(received_at) FROM gigs.gig_event_log;
SELECT available_count, last_event_at FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '9';
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;

-- An archive of which two bodies are identical, ten days apart
CREATE TABLE pg_temp.archive (id int PRIMARY KEY, came timestamptz, body bytea, signature text, outcome text, error text);
INSERT INTO pg_temp.archive (id, came, body)
SELECT id, came::timestamptz, pg_temp.body(kind, account, available, own) FROM (VALUES
	(1, '2023-01-01 08:00Z', 'partially_synced', 1, 10, 30),
	(2, '2023-01-01 08:01Z', 'partially_synced', 2, 20, 30),
	(3, '2023-01-01 09:00Z', 'fully_synced', 1, 100, 0),
	(4, '2023-01-02 00:00Z', 'added', 1, 101, 1),
	(5, '2023-01-02 00:05Z', 'added', 1, 101, 1), -- delivered again
	(6, '2023-01-03 12:00Z', 'partially_synced', 2, 10, 14),
	(7, '2023-01-12 00:00Z', 'added', 1, 101, 1) -- added again
) AS v (id, came, kind, account, available, own);
-- ... ingested one by one, as they would have come live
CREATE FUNCTION pg_temp.live(came timestamptz, body bytea) RETURNS text LANGUAGE sql AS $$
	SELECT outcome::text FROM gigs.ingest_gig_events(ARRAY[body], NULL, ARRAY[came])
$$;
SELECT id, pg_temp.live(came, body) FROM pg_temp.archive ORDER BY id;
CREATE TABLE pg_temp.live_accounts AS SELECT account_id, state, days_synced, available_count, added_total, events, duplicates,
	first_event_at, partially_synced_at, fully_synced_at, refreshed_at, last_event, last_event_at, recent_digests, recent_received_at FROM gigs.gig_account_sync;
SELECT right(account_id::text, 1) AS account, state, days_synced, available_count, added_total, events, duplicates FROM pg_temp.live_accounts ORDER BY 1;
SELECT right(account_id::text, 1) AS account, first_event_at, partially_synced_at, fully_synced_at, refreshed_at, last_event, last_event_at FROM pg_temp.live_accounts ORDER BY 1;
SELECT right(account_id::text, 1) AS account, received_at FROM gigs.gig_recent_delivery ORDER BY 1, 2;
-- ... they are counted in the days on which they came
CREATE TABLE pg_temp.live_counts AS SELECT * FROM gigs.gig_event_counts('1 day', '2023-01-01 00:00Z', '2023-02-01 00:00Z');
SELECT bucket_start::date AS day, event, events, gigs FROM pg_temp.live_counts ORDER BY 1, 2;
CREATE FUNCTION pg_temp.differences() RETURNS bigint LANGUAGE sql AS $$
	SELECT (SELECT count(*) FROM (TABLE pg_temp.live_accounts EXCEPT SELECT account_id, state, days_synced, available_count, added_total, events, duplicates,
			first_event_at, partially_synced_at, fully_synced_at, refreshed_at, last_event, last_event_at, recent_digests, recent_received_at FROM gigs.gig_account_sync) AS d)
		+ (SELECT count(*) FROM (TABLE pg_temp.live_counts EXCEPT SELECT * FROM gigs.gig_event_counts('1 day', '2023-01-01 00:00Z', '2023-02-01 00:00Z')) AS d)
$$;

-- A batch has the same result
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;
SELECT pg_temp.differences() AS before;
SELECT ord, outcome FROM gigs.ingest_gig_events(
	ARRAY(SELECT body FROM pg_temp.archive ORDER BY id), NULL, ARRAY(SELECT came FROM pg_temp.archive ORDER BY id));
SELECT pg_temp.differences();

-- ... and so has a drain, in batches of any size
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;
CALL gigs.drain_gig_inbox('pg_temp.archive', 3, received_at => 'came');
SELECT id, outcome FROM pg_temp.archive ORDER BY id;
SELECT pg_temp.differences();
-- ... whose times are of any type that casts to timestamptz
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;
UPDATE pg_temp.archive SET outcome = NULL;
ALTER TABLE pg_temp.archive ALTER came TYPE text;
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'came');
SELECT pg_temp.differences();
-- ... without the times they are received now, and the last body is a duplicate
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;
UPDATE pg_temp.archive SET outcome = NULL;
CALL gigs.drain_gig_inbox('pg_temp.archive');
SELECT id, outcome FROM pg_temp.archive ORDER BY id;
SELECT count(*) FROM gigs.gig_event_counts('1 day', '2023-01-01 00:00Z', '2023-02-01 00:00Z');
-- ... a row without a time is received now; a time that is none stops the drain
DELETE FROM gigs.gig_event_log;
DELETE FROM gigs.gig_account_sync;
UPDATE pg_temp.archive SET outcome = NULL, came = CASE WHEN id > 1 THEN came END;
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'came');
SELECT count(*), count(*) FILTER (WHERE received_at > :'before') AS now FROM gigs.gig_event_log;

-- An archive may come after live webhooks.  The event received last gives the
-- snapshot, and is the last one; the earliest event that synced has done it.
CREATE VIEW pg_temp.account AS
SELECT right(account_id::text, 1) AS account, right(user_id::text, 1) AS "user", state, days_synced, available_count, added_total, events, duplicates, last_event,
	to_char(last_event_at, 'MM-DD') AS last, to_char(first_event_at, 'MM-DD') AS first, to_char(partially_synced_at, 'MM-DD') AS partial,
	to_char(fully_synced_at, 'MM-DD') AS "full", to_char(refreshed_at, 'MM-DD') AS refresh,
	last_event_id = (SELECT max(l.event_id) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id) AS latest
FROM gigs.gig_account_sync AS a;
SELECT pg_temp.live('2023-03-10 00:00Z', pg_temp.body('added', 3, 50, 5));
SELECT pg_temp.live('2023-03-09 00:00Z', convert_to(replace(convert_from(pg_temp.body('added', 3, 40, 4), 'UTF8'), '-9000-000000000001', '-9000-000000000002'), 'UTF8'));
SELECT * FROM pg_temp.account WHERE account = '3';
SELECT pg_temp.live('2023-03-08 00:00Z', pg_temp.body('partially_synced', 3, 30, 60));
SELECT pg_temp.live('2023-03-07 00:00Z', pg_temp.body('partially_synced', 3, 20, 60));
SELECT pg_temp.live('2023-03-06 00:00Z', pg_temp.body('partially_synced', 3, 10, 30));
SELECT * FROM pg_temp.account WHERE account = '3';
SELECT pg_temp.live('2023-03-08 12:00Z', pg_temp.body('fully_synced', 3, 35));
SELECT pg_temp.live('2023-03-08 06:00Z', pg_temp.body('fully_synced', 3, 34));
SELECT pg_temp.live('2023-03-11 00:00Z', pg_temp.body('fully_synced', 3, 60));
SELECT * FROM pg_temp.account WHERE account = '3';
-- ... a batch comes to the same
CREATE TABLE pg_temp.before AS TABLE pg_temp.account;
CREATE TABLE pg_temp.log AS SELECT * FROM gigs.gig_event_log WHERE right(account_id::text, 1) = '3';
DELETE FROM gigs.gig_event_log WHERE right(account_id::text, 1) = '3';
DELETE FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '3';
SELECT outcome, count(*) FROM gigs.ingest_gig_events(
	ARRAY(SELECT body FROM pg_temp.log ORDER BY event_id), NULL, ARRAY(SELECT received_at FROM pg_temp.log ORDER BY event_id)) GROUP BY 1 ORDER BY 1;
SELECT count(*) AS differences FROM (TABLE pg_temp.account EXCEPT TABLE pg_temp.before) AS d;
-- ... and so does the log when it is applied again
CREATE TABLE pg_temp.rows AS TABLE gigs.gig_account_sync;
UPDATE gigs.gig_account_sync SET state = 'unknown', available_count = 0, last_event_at = NULL, first_event_at = NULL;
SELECT accounts_skipped FROM gigs.rebuild_gig_sync();
SELECT count(*) AS differences FROM (TABLE gigs.gig_account_sync EXCEPT TABLE pg_temp.rows) AS d;

-- Errors of a drain
\set VERBOSITY terse
UPDATE pg_temp.archive SET outcome = NULL, came = 'infinity' WHERE id = 1;
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'came');
UPDATE pg_temp.archive SET came = 'once upon a time' WHERE id = 1;
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'came');
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'outcome');
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'body');
CALL gigs.drain_gig_inbox('pg_temp.archive', received_at => 'arrived');
SELECT outcome FROM pg_temp.archive WHERE id = 1;

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
