--
-- Reports, on rows laid out by hand
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET TimeZone = 'UTC';
SET IntervalStyle = 'postgres';
SET DateStyle = 'ISO, MDY';
\pset format unaligned

-- Empty tables: every state has its row, nothing else does
SELECT * FROM gigs.gig_sync_summary ORDER BY state;
SELECT count(*) FROM gigs.gig_sync_status;
SELECT count(*) FROM gigs.gig_user_sync;

INSERT INTO gigs.gig_account_sync (account_id, user_id, state, days_synced, available_from, available_to, available_count, events,
	first_event_at, partially_synced_at, fully_synced_at, refreshed_at, last_event, last_event_at)
SELECT ('00000000-0000-4000-8000-00000000000' || a)::uuid, ('00000000-0000-4000-9000-00000000000' || u)::uuid, state::gigs.gig_sync_state, days,
	f::timestamptz, t::timestamptz, n, 1, now() - first::interval, now() - partially::interval, now() - fully::interval, now() - refreshed::interval,
	event::gigs.gig_event_kind, now() - last::interval
FROM (VALUES
	-- synced in two steps, refreshed since
	(1, 1, 'fully_synced', 60, '2016-04-16 05:32:41', '2023-03-03', 2385, '10 days', '10 days', '9 days 20 hours', '1 day', 'gigs.updated', '1 day'),
	-- synced at once
	(2, 1, 'fully_synced', NULL, '2023-03-01', '2023-03-01 12:00', 2, '5 hours', NULL, '5 hours', NULL, 'gigs.fully_synced', '5 hours'),
	-- on its way
	(3, 2, 'partially_synced', 30, '2023-02-01', '2023-03-03', 132, '2 hours', '1 hour', NULL, NULL, 'gigs.partially_synced', '1 hour'),
	-- stalled
	(4, 2, 'partially_synced', 30, NULL, NULL, 0, '8 hours', '7 hours', NULL, NULL, 'gigs.partially_synced', '7 hours'),
	-- stalled, though refreshes go on: gigs.fully_synced was lost
	(5, 3, 'unknown', NULL, '2023-02-01', '2023-02-01', 1, '3 days', NULL, NULL, '1 minute', 'gigs.added', '1 minute'),
	-- new, only refreshes seen so far
	(6, 3, 'unknown', NULL, NULL, NULL, 1, '5 hours', NULL, NULL, '5 hours', 'gigs.updated', '5 hours')
) AS v (a, u, state, days, f, t, n, first, partially, fully, refreshed, event, last);

SELECT right(account_id::text, 1) AS account, right(user_id::text, 1) AS "user", state, available_from, available_to, available_count,
	days_synced, days_covered, partial_sync_took, full_sync_took, last_event, date_trunc('hour', last_event_age + interval '1 minute') AS age, stalled
FROM gigs.gig_sync_status ORDER BY 1;
SELECT right(user_id::text, 1) AS "user", accounts, fully_synced, all_synced, available_count, date_trunc('minute', now() - last_event_at) AS age
FROM gigs.gig_user_sync ORDER BY 1;
SELECT state, accounts, gigs, date_trunc('minute', now() - oldest) AS age FROM gigs.gig_sync_summary ORDER BY state;

-- What counts as stalled is a setting; the views know it in a session that
-- has not called the extension before
\c -
SET search_path = pg_catalog;
SET IntervalStyle = 'postgres';
SELECT string_agg(right(account_id::text, 1), ' ' ORDER BY account_id) AS stalled FROM gigs.gig_sync_status WHERE stalled;
SET gigs_webhooks.stalled_after = '30min';
SELECT string_agg(right(account_id::text, 1), ' ' ORDER BY account_id) AS stalled FROM gigs.gig_sync_status WHERE stalled;
SET gigs_webhooks.stalled_after = '1d';
SELECT string_agg(right(account_id::text, 1), ' ' ORDER BY account_id) AS stalled FROM gigs.gig_sync_status WHERE stalled;
SELECT gigs.gig_stalled_after(), gigs.gig_dedupe_window();

-- One user is found by an index, and so is one account
SET enable_seqscan = off;
CREATE FUNCTION pg_temp.plan(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	plan json;
BEGIN
	EXECUTE 'EXPLAIN (COSTS OFF, FORMAT JSON) ' || query INTO plan;
	RETURN substring(plan::text FROM '"Index Name": "([^"]*)"');
END
$$;
SELECT pg_temp.plan($$SELECT all_synced FROM gigs.gig_user_sync WHERE user_id = '00000000-0000-4000-9000-000000000001'$$);
SELECT pg_temp.plan($$SELECT state FROM gigs.gig_sync_status WHERE account_id = '00000000-0000-4000-8000-000000000001'$$);
RESET enable_seqscan;

--
-- The log, parsed again and counted
--
SET TimeZone = 'America/New_York';
INSERT INTO gigs.gig_event_log (received_at, outcome, event, account_id, name, body)
SELECT t::timestamptz, CASE WHEN n = 15 THEN 'stale' ELSE 'applied' END::gigs.gig_ingest_outcome, kind::gigs.gig_event_kind, '00000000-0000-4000-8000-000000000001', 'n', convert_to(format(
	'{"event":"%s","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001",'
	'"available_from":null,"available_to":"2023-03-03T00:00:00+01:00","available_count":%s%s}}', kind, n, extra), 'UTF8')
FROM (VALUES
	('2026-01-01 00:00:00+00', 'gigs.partially_synced', 10, ',"days_synced":30'),
	('2026-01-01 00:59:59.999999+00', 'gigs.fully_synced', 20, ''),
	('2026-01-01 01:00:00+00', 'gigs.added', 23, ',"added_count":3,"added_from":"2023-03-01T00:00:00"'),
	('2026-01-01 01:30:00+00', 'gigs.added', 27, ',"added_count":4'),
	('2026-01-01 01:30:00+00', 'gigs.removed', 25, ',"removed_count":2,"removed_gigs":["00000000-0000-4000-a000-000000000001"]'),
	('2026-01-01 02:00:00+00', 'gigs.partially_synced', 15, ',"days_synced":14'),
	('2026-01-01 23:59:59+00', 'gigs.added', 30, ',"added_count":5'),
	('2026-01-02 00:00:00+00', 'gigs.added', 31, ',"added_count":1')
) AS v (t, kind, n, extra);
-- ... with duplicates, of which one has lost its first delivery
INSERT INTO gigs.gig_event_log (received_at, outcome, event, account_id, name, duplicate_of)
SELECT t::timestamptz, 'duplicate', 'gigs.added', '00000000-0000-4000-8000-000000000001', 'm', duplicate_of
FROM (VALUES ('2026-01-02 00:30:00+00', 3), ('2026-01-02 00:30:00+00', 99)) AS v (t, duplicate_of);
SET TimeZone = 'UTC';
SELECT event_id, received_at, outcome, duplicate_of, event, name, right(account_id::text, 1) AS account, right(user_id::text, 1) AS "user", available_from, available_to,
	available_count, changed_count, changed_gigs, changed_from, changed_to, days_synced
FROM gigs.gig_event_history ORDER BY event_id;
SELECT * FROM gigs.gig_event_counts('1 hour', '2026-01-01 00:00+00', '2026-01-02 00:00+00');
SELECT * FROM gigs.gig_event_counts('1 day', '2026-01-01 00:00+00', '2026-01-03 00:00+00');
-- buckets don't move with the session's zone
SET TimeZone = 'Asia/Kathmandu';
SELECT bucket_start AT TIME ZONE 'UTC' AS bucket_start, event, events, gigs FROM gigs.gig_event_counts('1 day', '2026-01-01 00:00+00', '2026-01-03 00:00+00');
-- "from" is in, "to" is out
SELECT event, events FROM gigs.gig_event_counts('1 hour', '2026-01-01 01:00:00+00', '2026-01-01 01:30:00+00');
\set VERBOSITY sqlstate
SELECT * FROM gigs.gig_event_counts('0', '-infinity', 'infinity');
SELECT * FROM gigs.gig_event_counts('-1 hour', '-infinity', 'infinity');
SELECT * FROM gigs.gig_event_counts('1 month', '-infinity', 'infinity');
\set VERBOSITY default
SELECT count(*) FROM gigs.gig_event_counts(NULL, '-infinity', 'infinity');
-- the history reads what was once accepted, however small bodies have to be now
UPDATE gigs.gig_event_log SET body = body || convert_to(repeat(' ', 2000), 'UTF8');
\set VERBOSITY terse
SET gigs_webhooks.max_body_size = 1024;
SELECT gigs.parse_gig_event(body) FROM gigs.gig_event_log LIMIT 1;
SELECT count(user_id) FROM gigs.gig_event_history;

DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
