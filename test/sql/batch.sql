--
-- Many events in a call
--
CREATE SCHEMA "Gig Hooks";
CREATE EXTENSION gigs_webhooks SCHEMA "Gig Hooks";
SET search_path = pg_catalog;
\pset format unaligned

SELECT "Gig Hooks".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT "Gig Hooks".create_gig_subscription('open', 'https://example.com/hooks');

CREATE FUNCTION pg_temp.body(kind text, account int, available int, own int DEFAULT 0, gig int DEFAULT 1)
RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(format(
		'{"event":"gigs.%s","name":"payroll","data":{"account":"%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s%s}}',
		kind, '00000000-0000-4000-8000-' || lpad(account::text, 12, '0'), available,
		CASE kind
			WHEN 'partially_synced' THEN format(',"days_synced":%s', own)
			WHEN 'fully_synced' THEN ''
			WHEN 'added' THEN format(',"added_count":%s', own)
			ELSE format(',"%s_count":%s,"%s_gigs":["00000000-0000-4000-a000-%s"]', kind, own, kind, lpad(gig::text, 12, '0'))
		END), 'UTF8')
$$;
CREATE FUNCTION pg_temp.sign(body bytea) RETURNS text LANGUAGE sql AS
	$$SELECT "Gig Hooks".sign_gig_event(body, 's3cret')$$;

-- None, and arrays that don't fit
SELECT count(*) FROM "Gig Hooks".ingest_gig_events('{}', '{}');
SELECT count(*) FROM "Gig Hooks".ingest_gig_events('{}', NULL);
\set VERBOSITY terse
SELECT * FROM "Gig Hooks".ingest_gig_events(NULL, NULL);
SELECT * FROM "Gig Hooks".ingest_gig_events('{a,b}', '{x}');
SELECT * FROM "Gig Hooks".ingest_gig_events('{{a,b},{c,d}}', NULL);
-- ... and more than are taken: a small array of nulls has many results
\set VERBOSITY sqlstate
SELECT count(*) FROM "Gig Hooks".ingest_gig_events(array_fill(NULL::bytea, ARRAY[1000001]), NULL);
\set VERBOSITY terse
\set VERBOSITY default

-- Every outcome in one call; a bad event harms no other
CREATE TEMP TABLE hook (ord int, body bytea, sig text);
INSERT INTO hook
SELECT v.ord, v.body, pg_temp.sign(v.body) FROM (VALUES
	(1, pg_temp.body('partially_synced', 2, 10, 60)),
	(2, pg_temp.body('fully_synced', 1, 50)),
	(3, 'not json'),
	(4, pg_temp.body('partially_synced', 2, 5, 30)),
	(5, pg_temp.body('updated', 1, 50, 1, 7)),
	(6, pg_temp.body('updated', 1, 50, 1, 7)),
	(7, NULL),
	(8, convert_to('{"event":"shifts.added","name":"payroll"}', 'UTF8')),
	(9, pg_temp.body('added', 1, 51, -1)),
	(10, pg_temp.body('removed', 1, 49, 1, 7)),
	(11, pg_temp.body('added', 3, 1, 1)),
	(12, pg_temp.body('fully_synced', 1, 50))
) AS v (ord, body);
UPDATE hook SET sig = left(sig, -1) || 'z' WHERE ord = 11;
SELECT ord, outcome, event_id, event, right(account_id::text, 1) AS account, sqlstate, message
FROM "Gig Hooks".ingest_gig_events((SELECT array_agg(body ORDER BY ord) FROM hook), (SELECT array_agg(sig ORDER BY ord) FROM hook));
SELECT right(account_id::text, 1) AS account, state, days_synced, available_count, updated_total, removed_total, events, duplicates FROM "Gig Hooks".gig_account_sync ORDER BY 1;
SELECT event_id, outcome, event, right(account_id::text, 1) AS account, duplicate_of FROM "Gig Hooks".gig_event_log ORDER BY event_id;
SELECT name, sqlstate FROM "Gig Hooks".gig_quarantine;
-- again: all that was applied is a redelivery, with an event_id of its own
SELECT ord, outcome, event_id FROM "Gig Hooks".ingest_gig_events((SELECT array_agg(body ORDER BY ord DESC) FROM hook), (SELECT array_agg(sig ORDER BY ord DESC) FROM hook));

-- Unsigned subscriptions need no signatures, not even an array of them
SELECT outcome, sqlstate FROM "Gig Hooks".ingest_gig_events(ARRAY[
	convert_to(replace(convert_from(pg_temp.body('added', 4, 1, 1), 'UTF8'), 'payroll', 'open'), 'UTF8'), pg_temp.body('added', 4, 1, 1)], NULL);

-- A batch ends in what its events one by one end in, event_ids included
CREATE TEMP TABLE stream AS
SELECT i AS ord, pg_temp.body(
	(ARRAY['added', 'updated', 'removed', 'partially_synced', 'fully_synced', 'updated', 'partially_synced'])[1 + j * 31 % 7],
	10 + j * 17 % 23, j * 7 % 40, j * 13 % 29, j * 5 % 11) AS body
FROM generate_series(1, 3000) AS i, mod(i * i, 2200) AS j;
SELECT coalesce(max(event_id), 0) AS base FROM "Gig Hooks".gig_event_log \gset
BEGIN;
DO $$
DECLARE
	hook record;
BEGIN
	FOR hook IN SELECT * FROM stream ORDER BY ord LOOP
		PERFORM "Gig Hooks".ingest_gig_event(hook.body, pg_temp.sign(hook.body));
	END LOOP;
END
$$;
SELECT md5(string_agg(row(event_id - base, outcome, account_id, event, body, duplicate_of - base)::text, ',' ORDER BY event_id)) AS log FROM "Gig Hooks".gig_event_log, LATERAL (SELECT min(event_id) FROM "Gig Hooks".gig_event_log WHERE event_id > :base) AS b (base) WHERE event_id > :base \gset one_
SELECT md5(string_agg(row(account_id, user_id, state, days_synced, available_count, added_total, updated_total, removed_total, events, duplicates, last_event, recent_digests)::text, ',' ORDER BY account_id)) AS accounts FROM "Gig Hooks".gig_account_sync \gset one_
SELECT count(*) > 100 AS logged, (SELECT sum(duplicates) FROM "Gig Hooks".gig_account_sync) > 100 AS duplicates FROM "Gig Hooks".gig_event_log;
ROLLBACK;
SELECT outcome, count(*) > 10 AS many FROM "Gig Hooks".ingest_gig_events((SELECT array_agg(body ORDER BY ord) FROM stream), (SELECT array_agg(pg_temp.sign(body) ORDER BY ord) FROM stream)) GROUP BY 1 ORDER BY 1;
SELECT md5(string_agg(row(event_id - base, outcome, account_id, event, body, duplicate_of - base)::text, ',' ORDER BY event_id)) = :'one_log' AS same_log FROM "Gig Hooks".gig_event_log, LATERAL (SELECT min(event_id) FROM "Gig Hooks".gig_event_log WHERE event_id > :base) AS b (base) WHERE event_id > :base;
SELECT md5(string_agg(row(account_id, user_id, state, days_synced, available_count, added_total, updated_total, removed_total, events, duplicates, last_event, recent_digests)::text, ',' ORDER BY account_id)) = :'one_accounts' AS same_accounts FROM "Gig Hooks".gig_account_sync;

-- Many accounts
CREATE TEMP TABLE many AS
SELECT account, pg_temp.body('updated', account, 1, 2, account) AS body FROM generate_series(1001, 1700) AS account;
SELECT outcome, count(*), count(DISTINCT event_id) AS ids, count(DISTINCT account_id) AS accounts
FROM "Gig Hooks".ingest_gig_events((SELECT array_agg(body ORDER BY md5(account::text)) FROM many), (SELECT array_agg(pg_temp.sign(body) ORDER BY md5(account::text)) FROM many))
GROUP BY 1;
-- ... and again, with another event beside each second redelivery
SELECT outcome, count(*), count(DISTINCT event_id) AS ids, count(DISTINCT account_id) AS accounts
FROM (
		SELECT array_agg(body ORDER BY account, ord) AS bodies, array_agg(pg_temp.sign(body) ORDER BY account, ord) AS sigs
		FROM (
			SELECT account, 1, body FROM many
			UNION ALL
			SELECT account, 2, pg_temp.body('removed', account, 0, 1, account) FROM many WHERE account % 2 = 0
		) AS m (account, ord, body)
	) AS m,
	LATERAL "Gig Hooks".ingest_gig_events(m.bodies, m.sigs)
GROUP BY 1 ORDER BY 1;
SELECT events, duplicates, updated_total, removed_total, count(*) FROM "Gig Hooks".gig_account_sync WHERE right(account_id::text, 4)::int > 1000 GROUP BY 1, 2, 3, 4 ORDER BY 1;
SELECT count(*) AS deliveries, count(body) AS bodies FROM "Gig Hooks".gig_event_log WHERE right(account_id::text, 4)::int > 1000;
-- ... more than rebuild_gig_sync() writes at a time
CREATE TEMP TABLE before AS TABLE "Gig Hooks".gig_account_sync;
SELECT count(*) FROM "Gig Hooks".ingest_gig_events((SELECT array_agg(pg_temp.body('fully_synced', account, 9)) FROM generate_series(2001, 3100) AS account),
	(SELECT array_agg(pg_temp.sign(pg_temp.body('fully_synced', account, 9))) FROM generate_series(2001, 3100) AS account)) WHERE outcome = 'applied';
UPDATE "Gig Hooks".gig_account_sync SET events = 0, state = 'unknown', available_count = 0 WHERE right(account_id::text, 4)::int > 1000;
SELECT * FROM "Gig Hooks".rebuild_gig_sync();
SELECT count(*) AS differences FROM (TABLE before EXCEPT TABLE "Gig Hooks".gig_account_sync) AS d;
SELECT state, available_count, count(*) FROM "Gig Hooks".gig_account_sync WHERE right(account_id::text, 4)::int > 2000 GROUP BY 1, 2;

DROP TABLE before;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Gig Hooks";
