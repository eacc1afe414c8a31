--
-- Rebuilding from the log, and pruning it
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
\pset format unaligned

SELECT gigs.create_gig_subscription('n', 'https://example.com/hooks');
CREATE FUNCTION pg_temp.ingest(kind text, account int, available int, own int DEFAULT 0)
RETURNS gigs.gig_ingest_outcome LANGUAGE sql AS $$
	SELECT gigs.ingest_gig_event(format(
		'{"event":"gigs.%s","name":"n","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s%s}}',
		kind, account, available, CASE kind WHEN 'partially_synced' THEN format(',"days_synced":%s', own) WHEN 'added' THEN format(',"added_count":%s', own) ELSE '' END), NULL)
$$;
-- accounts 1 to 5: each with one event more, the latest ones redelivered
SELECT count(*) FROM (
	SELECT pg_temp.ingest(k.kind, a, 10 * a + k.i, k.i)
	FROM generate_series(1, 5) AS a, (VALUES (1, 'partially_synced'), (2, 'partially_synced'), (3, 'fully_synced'), (4, 'added'), (5, 'partially_synced')) AS k (i, kind)
	WHERE k.i <= a ORDER BY k.i, a) AS v;
SELECT pg_temp.ingest('partially_synced', a, 10 * a + 1, 1) FROM generate_series(1, 3) AS a;
CREATE TABLE pg_temp.before AS TABLE gigs.gig_account_sync;
CREATE FUNCTION pg_temp.differences() RETURNS bigint LANGUAGE sql AS $$
	SELECT (SELECT count(*) FROM (TABLE pg_temp.before EXCEPT TABLE gigs.gig_account_sync) AS d)
		+ (SELECT count(*) FROM (TABLE gigs.gig_account_sync EXCEPT TABLE pg_temp.before) AS d)
$$;

-- Nothing to do
SELECT * FROM gigs.rebuild_gig_sync();
SELECT pg_temp.differences();

-- Damage is mended, of one account or of all, down to what tells redeliveries
UPDATE gigs.gig_account_sync SET state = 'unknown', days_synced = 99, available_count = NULL, added_total = 7, events = 0, duplicates = 0,
	first_event_at = NULL, last_event = 'gigs.removed', last_event_id = 0, fully_synced_at = now(), refreshed_at = now(),
	recent_digests = '{}', recent_event_ids = '{}', recent_received_at = '{}';
SELECT pg_temp.differences() AS damaged;
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000004');
SELECT pg_temp.differences() AS damaged;
SELECT * FROM gigs.rebuild_gig_sync();
SELECT pg_temp.differences();

-- A lost row comes back
DELETE FROM gigs.gig_account_sync WHERE right(account_id::text, 1) IN ('1', '5');
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
SELECT * FROM gigs.rebuild_gig_sync();
SELECT right(account_id::text, 1) AS account, state, events, duplicates FROM gigs.gig_account_sync ORDER BY 1;
SELECT pg_temp.differences();
-- ... and tells redeliveries again
BEGIN;
SELECT pg_temp.ingest('partially_synced', 1, 11, 1);
ROLLBACK;

-- A duplicate stays one, even if the log alone would not tell
BEGIN;
SET LOCAL gigs_webhooks.dedupe_window = 0;
SELECT * FROM gigs.rebuild_gig_sync();
SELECT sum(events) AS events, sum(duplicates) AS duplicates FROM gigs.gig_account_sync;
ROLLBACK;

-- Accounts that are unknown
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-00000000000f');

-- A body in the log that does not parse is an error
BEGIN;
UPDATE gigs.gig_event_log SET body = 'not json' WHERE event_id = 3;
\set VERBOSITY terse
SELECT * FROM gigs.rebuild_gig_sync();
\set VERBOSITY default
ROLLBACK;
SELECT pg_temp.differences();

-- Pruning: arguments
\set VERBOSITY terse
SELECT * FROM gigs.prune_gig_events(NULL);
SELECT * FROM gigs.prune_gig_events('-1 day');
SELECT * FROM gigs.prune_gig_events('1 day', 0);
SELECT * FROM gigs.prune_gig_events('1 day', NULL);
\set VERBOSITY default
-- ... nothing is old enough
SELECT * FROM gigs.prune_gig_events('1 day');
-- ... every account's first event is
UPDATE gigs.gig_event_log AS l SET received_at = received_at - interval '30 days'
WHERE event_id = (SELECT min(event_id) FROM gigs.gig_event_log WHERE account_id = l.account_id);
SELECT * FROM gigs.prune_gig_events('30 days 1 hour');
SELECT * FROM gigs.prune_gig_events('29 days', 2);
SELECT * FROM gigs.prune_gig_events('29 days', 2);
SELECT * FROM gigs.prune_gig_events('29 days', 2);
SELECT * FROM gigs.prune_gig_events('29 days', 2);
SELECT count(*) FROM gigs.gig_event_log;

-- An account whose first event is pruned is skipped
UPDATE gigs.gig_account_sync SET available_count = 12345;
UPDATE pg_temp.before SET available_count = 12345;
SELECT * FROM gigs.rebuild_gig_sync();
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000005');
SELECT pg_temp.differences();
-- ... and a new one beside them is rebuilt
SELECT pg_temp.ingest('fully_synced', 6, 1);
SELECT * FROM gigs.rebuild_gig_sync();

-- ... but not from its duplicates alone, which do not tell its user
BEGIN;
SELECT pg_temp.ingest('fully_synced', 7, 1), pg_temp.ingest('fully_synced', 7, 1);
DELETE FROM gigs.gig_event_log WHERE right(account_id::text, 1) = '7' AND outcome = 'applied';
DELETE FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '7';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000007');
SELECT * FROM gigs.rebuild_gig_sync();
SELECT count(*) FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '7';
-- ... and an event after them is the first one
SELECT pg_temp.ingest('added', 7, 2, 1);
DELETE FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '7';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000007');
SELECT right(user_id::text, 1) AS "user", state, events, duplicates FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '7';
ROLLBACK;

-- Nothing is pruned within the window: a duplicate needs its first delivery's body
SELECT * FROM gigs.prune_gig_events('0');
UPDATE gigs.gig_event_log SET received_at = now() - interval '3 days' + interval '1 minute';
SELECT * FROM gigs.prune_gig_events('0');
SELECT count(*) FROM gigs.gig_event_log;
SET gigs_webhooks.dedupe_window = '2d';
SELECT * FROM gigs.prune_gig_events('3 days');
BEGIN;
SELECT * FROM gigs.prune_gig_events('0');
SELECT count(*) FROM gigs.gig_event_log;
ROLLBACK;
RESET gigs_webhooks.dedupe_window;

-- ... nor what is after the position of a consumer
UPDATE gigs.gig_event_log SET received_at = now() - interval '10 days';
SELECT gigs.create_gig_consumer('fast');
SELECT * FROM gigs.prune_gig_events('5 days');
SELECT min(event_id) AS first_id, max(event_id) AS last_id, count(*) AS events FROM gigs.gig_event_log \gset
SELECT gigs.seek_gig_consumer('fast', :last_id);
SELECT gigs.create_gig_consumer('slow', parts => 2);
SELECT * FROM gigs.prune_gig_events('5 days');
-- ... of any of its parts
UPDATE gigs.gig_consumer SET position = :last_id WHERE name = 'slow' AND part = 0;
SELECT * FROM gigs.prune_gig_events('5 days');
SELECT gigs.seek_gig_consumer('slow', :first_id);
SELECT * FROM gigs.prune_gig_events('5 days');
SELECT min(event_id) > :first_id AS beyond, count(*) - :events AS more FROM gigs.gig_event_log;
-- ... which does not hold back what is too young anyway
SELECT * FROM gigs.prune_gig_events('11 days');
-- ... nor anything once it is dropped; a batch is never exceeded
SELECT gigs.drop_gig_consumer('slow');
SELECT * FROM gigs.prune_gig_events('5 days', 5);
SELECT * FROM gigs.prune_gig_events('5 days', 5);
SELECT * FROM gigs.prune_gig_events('5 days', 5);
SELECT count(*) FROM gigs.gig_event_log;
-- ... not even where times are not in the order of the log
INSERT INTO gigs.gig_event_log (received_at, outcome, event, account_id, name, duplicate_of)
SELECT now() - (n % 7) * interval '1 day', 'duplicate', 'gigs.added', '00000000-0000-4000-8000-000000000007', 'n', 1 FROM generate_series(1, 70) AS n;
SELECT gigs.drop_gig_consumer('fast');
SELECT * FROM gigs.prune_gig_events('4 days', 15);
SELECT * FROM gigs.prune_gig_events('4 days', 15);
SELECT count(*), count(*) FILTER (WHERE received_at < now() - interval '4 days') AS old FROM gigs.gig_event_log;
DELETE FROM gigs.gig_event_log;

-- Events that are logged after the index on time was summarized are found by it
SELECT pg_temp.ingest('added', 7, 1, 1);
SELECT brin_summarize_new_values('gigs.gig_event_log_received_at_idx') AS summarised;
SELECT max(received_at) AS before FROM gigs.gig_event_log \gset
SELECT pg_temp.ingest('added', a, 2, 1) FROM generate_series(7, 9) AS a;
SET enable_seqscan = off;
SET enable_indexscan = off;
SELECT count(*) FROM gigs.gig_event_log WHERE received_at > :'before';
RESET enable_seqscan;
RESET enable_indexscan;
SELECT sum(events) FROM gigs.gig_event_counts('1 day', :'before', 'infinity');

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
