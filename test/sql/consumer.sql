--
-- Consumers: work read from the log, finished, retried
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET IntervalStyle = 'postgres';
\pset format unaligned
\set SHOW_CONTEXT never

CREATE FUNCTION pg_temp.account(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid
$$;
-- Logs an event whose window is from one day of January to another, and which
-- names gigs by numbers.  What is not this window is in the year 2000.
CREATE FUNCTION pg_temp.log(kind text, account int, "from" int, "to" int, gigs int[] DEFAULT '{}',
	outcome text DEFAULT 'applied', duplicate_of bigint DEFAULT NULL, "user" int DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
	WITH t (lower, upper) AS (
		SELECT to_json('2024-01-' || lpad("from"::text, 2, '0') || 'T00:00:00Z'), to_json('2024-01-' || lpad("to"::text, 2, '0') || 'T00:00:00Z')
	)
	INSERT INTO gigs.gig_event_log (received_at, outcome, event, account_id, name, body, duplicate_of)
	SELECT now(), outcome::gigs.gig_ingest_outcome, ('gigs.' || kind)::gigs.gig_event_kind, pg_temp.account(account), 'n',
		CASE WHEN duplicate_of IS NULL THEN convert_to(json_build_object('event', 'gigs.' || kind, 'name', 'n', 'data', json_build_object(
			'account', pg_temp.account(account), 'user', pg_temp.account(coalesce("user", account + 100)), 'available_count', 1, 'days_synced', 1, kind || '_count', 1,
			kind || '_gigs', (SELECT coalesce(json_agg(pg_temp.account(g)), '[]') FROM unnest(gigs) AS g),
			'available_from', CASE WHEN kind LIKE '%synced' THEN lower ELSE '"2000-01-01T00:00:00Z"' END,
			'available_to', CASE WHEN kind LIKE '%synced' THEN upper ELSE '"2000-01-01T00:00:00Z"' END,
			kind || '_from', lower, kind || '_to', upper))::text, 'UTF8') END,
		duplicate_of
	FROM t
	RETURNING event_id
$$;
-- Reads work, with UUIDs as their last numbers and times as days
CREATE FUNCTION pg_temp.numbers(ids uuid[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(right(i::text, 3)::int::text, ',') FROM unnest(ids) AS i
$$;
CREATE FUNCTION pg_temp.read(consumer text, max_events int DEFAULT 1000)
RETURNS TABLE (account text, "user" text, windows text, updated text, removed text, events int, last_event bigint, attempts int)
LANGUAGE sql AS $$
	SELECT pg_temp.numbers(ARRAY[account_id]), pg_temp.numbers(ARRAY[user_id]),
		replace(replace(replace(windows::text, ' 00:00:00+00', ''), '2024-01-', ''), '"', ''),
		pg_temp.numbers(updated_gigs), pg_temp.numbers(removed_gigs), events, last_event_id, attempts
	FROM gigs.read_gig_work(consumer, max_events)
$$;
-- The batch that was handed out last
CREATE FUNCTION pg_temp.batch() RETURNS bigint LANGUAGE sql AS $$ SELECT currval('gigs.gig_consumer_batch_seq') $$;
CREATE FUNCTION pg_temp.expire() RETURNS void LANGUAGE sql AS $$
	UPDATE gigs.gig_consumer SET leased_until = now() WHERE batch IS NOT NULL
$$;

SELECT gigs.create_gig_consumer('a');
SELECT name, part, parts, events, position, settled_id, batch FROM gigs.gig_consumer;

-- Nothing to do
SELECT * FROM pg_temp.read('a');

-- Windows: what an event tells of, with both ends
SELECT pg_temp.log('added', 1, 1, 2), pg_temp.log('updated', 2, 1, 2), pg_temp.log('removed', 3, 1, 2),
	pg_temp.log('partially_synced', 4, 1, 2), pg_temp.log('fully_synced', 5, 1, 2);
-- ... a moment, open ends, and ends the wrong way round
SELECT pg_temp.log('added', 6, 3, 3), pg_temp.log('added', 7, NULL, 2), pg_temp.log('updated', 8, 2, NULL),
	pg_temp.log('fully_synced', 9, NULL, NULL), pg_temp.log('removed', 10, 2, 1);
-- ... of several events: what touches becomes one
SELECT pg_temp.log('added', 11, 1, 2), pg_temp.log('updated', 11, 2, 3), pg_temp.log('fully_synced', 11, 5, 6), pg_temp.log('added', 12, 9, 8), pg_temp.log('added', 12, 9, NULL);
SELECT * FROM pg_temp.read('a');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('a');

-- Gigs: each is named once, and the last event that names it decides
SELECT pg_temp.log('updated', 1, 1, 2, '{1,2,2,3}'), pg_temp.log('removed', 1, 1, 2, '{2,4}'), pg_temp.log('updated', 1, 1, 2, '{4,5}'), pg_temp.log('removed', 2, 1, 2, '{1}');
SELECT * FROM pg_temp.read('a');
SELECT gigs.finish_gig_work(pg_temp.batch());

-- A duplicate says what its original says; gigs that it removes may be back
SELECT pg_temp.log('removed', 1, 1, 2, '{1,2}') AS original \gset
SELECT pg_temp.log('updated', 2, 3, 4, '{3}') AS updated \gset
SELECT gigs.finish_gig_work(max(batch)) FROM gigs.read_gig_work('a');
SELECT pg_temp.log('removed', 1, 1, 2, '{}', 'duplicate', :original) IS NOT NULL AS logged, pg_temp.log('updated', 2, 3, 4, '{}', 'duplicate', :updated) IS NOT NULL AS logged;
SELECT * FROM pg_temp.read('a');
-- ... where the original is another account's or pruned, all is to be fetched
BEGIN;
SELECT pg_temp.expire();
UPDATE gigs.gig_event_log SET duplicate_of = 1 WHERE duplicate_of = :updated;
DELETE FROM gigs.gig_event_log WHERE event_id = :original;
INSERT INTO gigs.gig_account_sync (account_id, user_id) VALUES (pg_temp.account(2), pg_temp.account(777));
COMMIT;
SELECT * FROM pg_temp.read('a');
SELECT gigs.finish_gig_work(pg_temp.batch());
DELETE FROM gigs.gig_account_sync;

-- Stale events are no work
SELECT pg_temp.log('partially_synced', 1, 1, 2, '{}', 'stale'), pg_temp.log('added', 2, 1, 2), pg_temp.log('partially_synced', 3, 1, 2, '{}', 'stale');
SELECT * FROM pg_temp.read('a');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT position FROM gigs.gig_consumer;

-- At most so many events; a consumer of some kinds only, from some event on
SELECT gigs.create_gig_consumer('synced', ARRAY['gigs.fully_synced', 'gigs.partially_synced']::gigs.gig_event_kind[]);
SELECT * FROM pg_temp.read('synced', 2);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('synced', 2);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('synced', 2);
SELECT name, position FROM gigs.gig_consumer ORDER BY name;
SELECT gigs.create_gig_consumer('late', start_after => 24);
SELECT * FROM pg_temp.read('late');
SELECT gigs.drop_gig_consumer('late');

-- A lease: nothing for others until it has run out
SELECT pg_temp.log('added', 1, 1, 2), pg_temp.log('added', 2, 1, 2);
SELECT * FROM pg_temp.read('a', 1);
SELECT pg_temp.batch() AS first \gset
SELECT round(extract(epoch FROM leased_until - now()) / 60) AS minutes FROM gigs.gig_consumer WHERE name = 'a';
SELECT * FROM pg_temp.read('a', 1);
SELECT pg_temp.expire();
SELECT * FROM pg_temp.read('a', 2);
\set VERBOSITY sqlstate
SELECT gigs.finish_gig_work(:first);
SELECT gigs.retry_gig_work(:first, pg_temp.account(1), 'late');
-- ... it may still be finished when nobody else has got it
SELECT pg_temp.expire();
SELECT gigs.finish_gig_work(pg_temp.batch());
-- ... but once
SELECT gigs.finish_gig_work(pg_temp.batch());
\set VERBOSITY default

-- Parts: as many batches at a time, and an account has one part
SELECT gigs.create_gig_consumer('p', parts => 3, start_after => 28);
SELECT pg_temp.log('added', a, a, a) IS NULL AS failed FROM generate_series(1, 9) AS a GROUP BY 1;
SELECT * FROM pg_temp.read('p');
SELECT pg_temp.batch() AS first \gset
SELECT * FROM pg_temp.read('p');
SELECT * FROM pg_temp.read('p');
SELECT * FROM pg_temp.read('p');
SELECT part, batch IS NOT NULL AS working FROM gigs.gig_consumer WHERE name = 'p' ORDER BY part;
SELECT gigs.finish_gig_work(:first);
SELECT * FROM pg_temp.read('p');
SELECT * FROM gigs.gig_consumer_status WHERE consumer = 'p' AND time_behind BETWEEN '0' AND '1 minute' \gset
SELECT :parts AS parts, :working AS working, :position AS position, :events_behind AS events_behind;
SELECT gigs.drop_gig_consumer('p');
-- ... which never changes
SELECT gigs.gig_consumer_part('00000000-0000-4000-8000-00000000ffff', 64), gigs.gig_consumer_part('00000000-0000-4000-8000-000000000102', 64),
	gigs.gig_consumer_part('00000000-0000-4000-8000-000000000102', 7), gigs.gig_consumer_part('00000000-0000-4000-8000-000000000102', 1);

-- A transaction that has written is waited for, be it the reader's own, and what
-- is rolled back leaves no trace
SELECT gigs.create_gig_consumer('s', start_after => 37);
BEGIN;
SELECT pg_temp.log('added', 1, 1, 2);
SELECT * FROM pg_temp.read('s');
SELECT position, settled_id, pending_id, cardinality(pending_transactions) FROM gigs.gig_consumer WHERE name = 's';
COMMIT;
SELECT * FROM pg_temp.read('s');
SELECT gigs.finish_gig_work(pg_temp.batch());
BEGIN;
SELECT pg_temp.log('added', 1, 1, 2);
ROLLBACK;
SELECT * FROM pg_temp.read('s');
SELECT position, settled_id FROM gigs.gig_consumer WHERE name = 's';
-- ... a lock that does not write is not
BEGIN;
LOCK TABLE gigs.gig_event_log IN SHARE UPDATE EXCLUSIVE MODE;
SELECT pg_temp.log('added', 2, 1, 2);
ROLLBACK;
SELECT pg_temp.log('added', 3, 1, 2);
BEGIN;
LOCK TABLE gigs.gig_event_log IN SHARE UPDATE EXCLUSIVE MODE;
SELECT * FROM pg_temp.read('s');
COMMIT;
SELECT gigs.drop_gig_consumer('s');

-- Retries: an account leaves the batch, and comes again later
SELECT gigs.create_gig_consumer('r', start_after => 41);
SELECT pg_temp.log('updated', 1, 1, 2, '{1,2}'), pg_temp.log('updated', 2, 1, 2, '{1}'), pg_temp.log('removed', 1, 5, 6, '{2}');
SELECT * FROM pg_temp.read('r');
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(1), 'timeout');
-- ... not twice, and no account that is not in it
\set VERBOSITY terse
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(1), 'timeout');
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(3), 'timeout');
SELECT gigs.retry_gig_work(pg_temp.batch(), NULL, 'timeout');
\set VERBOSITY default
-- ... the others are done with the batch
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT events, last_event_id, attempts, error, batch, ceil(extract(epoch FROM due_at - now()) / 5) * 5 AS due_in FROM gigs.gig_consumer_retry;
SELECT * FROM pg_temp.read('r');
-- ... new events of the account wait with it
SELECT pg_temp.log('updated', 1, 8, 9, '{2,3}'), pg_temp.log('added', 3, 8, 9);
SELECT * FROM pg_temp.read('r');
SELECT events, last_event_id, attempts, pg_temp.numbers(updated_gigs) AS updated, pg_temp.numbers(removed_gigs) AS removed FROM gigs.gig_consumer_retry;
-- ... and do not count twice, when the lease is lost and they are read again
SELECT pg_temp.expire();
SELECT * FROM pg_temp.read('r');
SELECT events, last_event_id FROM gigs.gig_consumer_retry;
-- ... when it is due, old and new come together
SELECT gigs.finish_gig_work(pg_temp.batch());
UPDATE gigs.gig_consumer_retry SET due_at = now();
SELECT pg_temp.log('removed', 1, 11, 12, '{1}'), pg_temp.log('removed', 3, 11, 12, '{1}');
SELECT * FROM pg_temp.read('r');
-- ... and again, when that lease is lost
SELECT pg_temp.expire();
SELECT * FROM pg_temp.read('r');
-- ... the server may have said how long to wait
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(1), '429', '90 seconds');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT events, last_event_id, attempts, error, batch, ceil(extract(epoch FROM due_at - now()) / 5) * 5 AS due_in FROM gigs.gig_consumer_retry;
UPDATE gigs.gig_consumer_retry SET due_at = now();
SELECT * FROM pg_temp.read('r');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT count(*) FROM gigs.gig_consumer_retry;

-- A retry of a lost batch waits for the events that it has: the next batch may be
-- smaller, and they must not be read again when the retry is done
SELECT pg_temp.log('added', 1, 1, 2), pg_temp.log('added', 2, 1, 2), pg_temp.log('added', 1, 3, 4);
SELECT * FROM pg_temp.read('r');
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(1), 'lost', '0');
SELECT pg_temp.expire();
SELECT * FROM pg_temp.read('r', 1);
SELECT * FROM pg_temp.read('r', 1);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('r', 1);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('r', 1);

-- The pause grows, and after 20 attempts there is none
SELECT pg_temp.log('added', 1, 1, 2);
DO $$
DECLARE
	pauses numeric[];
BEGIN
	LOOP
		PERFORM FROM gigs.read_gig_work('r');
		EXIT WHEN NOT FOUND;
		PERFORM gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(1), 'still not');
		PERFORM gigs.finish_gig_work(pg_temp.batch());
		pauses := pauses || (SELECT CASE WHEN due_at < 'infinity' THEN ceil(extract(epoch FROM due_at - clock_timestamp()) / 5) * 5 END FROM gigs.gig_consumer_retry);
		UPDATE gigs.gig_consumer_retry SET due_at = clock_timestamp() WHERE due_at < 'infinity';
	END LOOP;
	RAISE INFO '%', pauses;
END
$$;
SELECT attempts, due_at, error FROM gigs.gig_consumer_retry;
SELECT retries, dead FROM gigs.gig_consumer_status WHERE consumer = 'r';
-- ... new events wait for it to be revived
SELECT pg_temp.log('added', 1, 5, 6);
SELECT * FROM pg_temp.read('r');
SELECT gigs.revive_gig_work('r', pg_temp.account(2)), gigs.revive_gig_work('a');
SELECT gigs.revive_gig_work('r', pg_temp.account(1));
SELECT gigs.revive_gig_work('r');
SELECT * FROM pg_temp.read('r');
SELECT gigs.finish_gig_work(pg_temp.batch());

-- More retries than events that may be read at a time
SELECT pg_temp.log('added', a, 1, 2) IS NULL AS failed FROM generate_series(1, 5) AS a GROUP BY 1;
SELECT count(gigs.retry_gig_work(batch, account_id, 'all', '0')) FROM gigs.read_gig_work('r');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT pg_temp.log('added', 5, 3, 4) IS NULL AS failed;
SELECT count(*), sum(events) FROM gigs.read_gig_work('r', 2);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT count(*), sum(events) FROM gigs.read_gig_work('r', 2);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT count(*), sum(events) FROM gigs.read_gig_work('r', 2);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('r');

-- Whether all of an account is fetched: not what is new, leased or to be retried
INSERT INTO gigs.gig_account_sync (account_id, user_id, last_event_id)
SELECT pg_temp.account(a), pg_temp.account(a + 100), pg_temp.log('added', a, 1, 2) FROM generate_series(1, 2) AS a;
CREATE FUNCTION pg_temp.fetched() RETURNS TABLE ("1" boolean, "2" boolean, unknown boolean) LANGUAGE sql AS $$
	SELECT gigs.gig_account_fetched('r', pg_temp.account(1)), gigs.gig_account_fetched('r', pg_temp.account(2)), gigs.gig_account_fetched('r', pg_temp.account(3))
$$;
SELECT * FROM pg_temp.fetched();
SELECT * FROM pg_temp.read('r');
SELECT * FROM pg_temp.fetched();
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(2), 'no');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.fetched();

-- Seeking: events come again, those of retries too, and batches in work are void
SELECT max(event_id) AS last FROM gigs.gig_event_log \gset
SELECT pg_temp.log('added', 1, 8, 9);
SELECT count(*) FROM pg_temp.read('r');
SELECT gigs.seek_gig_consumer('r', :last - 2);
\set VERBOSITY sqlstate
SELECT gigs.finish_gig_work(pg_temp.batch());
\set VERBOSITY default
SELECT * FROM pg_temp.read('r');
SELECT events, last_event_id = :last AS last, attempts FROM gigs.gig_consumer_retry;
SELECT gigs.seek_gig_consumer('r', :last + 1);
SELECT * FROM pg_temp.read('r');
SELECT events_behind, time_behind, retries, dead, working FROM gigs.gig_consumer_status WHERE consumer = 'r';
SELECT gigs.seek_gig_consumer('r', :last);
SELECT events_behind, time_behind > '0' AS behind FROM gigs.gig_consumer_status WHERE consumer = 'r';

-- Dropping a consumer drops what it left undone
SELECT gigs.drop_gig_consumer('r');
SELECT count(*) FROM gigs.gig_consumer_retry;

-- A rare kind of event is found in a long log; a batch spans no more than a hundred
-- times as many events as it has, because each retry reads them again
SELECT max(event_id) AS before FROM gigs.gig_event_log \gset
SELECT gigs.create_gig_consumer('rare', '{gigs.removed}', start_after => :before);
SELECT count(pg_temp.log(CASE WHEN n IN (250, 420) THEN 'removed' ELSE 'added' END, n, 1, 2)) FROM generate_series(1, 420) AS n;
SELECT * FROM pg_temp.read('rare', 1);
SELECT batch_end - :before AS batch_end, batch_end - position <= 100 AS short FROM gigs.gig_consumer WHERE name = 'rare';
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('rare', 3);
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT * FROM pg_temp.read('rare', 1);
-- ... and what has been pruned takes no time
SELECT setval('gigs.gig_event_log_event_id_seq', 1000000000) AS last_id;
SELECT pg_temp.log('removed', 1, 1, 2);
SET statement_timeout = '1min';
SELECT * FROM pg_temp.read('rare', 1);
RESET statement_timeout;
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT gigs.drop_gig_consumer('rare');

-- Errors
CREATE FUNCTION pg_temp.try(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SELECT gigs.' || call;
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
SELECT c.call, pg_temp.try(c.call) FROM (VALUES
	(1, $c$create_gig_consumer('a', parts => 2)$c$),
	(2, $c$create_gig_consumer('')$c$),
	(3, $c$create_gig_consumer(NULL)$c$),
	(4, $c$create_gig_consumer('b', '{}')$c$),
	(5, $c$create_gig_consumer('b', '{NULL}')$c$),
	(6, $c$create_gig_consumer('b', parts => 0)$c$),
	(7, $c$create_gig_consumer('b', parts => 65)$c$),
	(8, $c$create_gig_consumer('b', start_after => NULL)$c$),
	(9, $c$drop_gig_consumer('b')$c$),
	(10, $c$seek_gig_consumer('b', 0)$c$),
	(11, $c$read_gig_work('b')$c$),
	(12, $c$read_gig_work(NULL)$c$),
	(13, $c$read_gig_work('a', 0)$c$),
	(14, $c$read_gig_work('a', 1, '0')$c$),
	(15, $c$read_gig_work('a', 1, NULL)$c$),
	(16, $c$finish_gig_work(NULL)$c$),
	(17, $c$retry_gig_work(0, pg_temp.account(1), 'no')$c$),
	(18, $c$revive_gig_work('b')$c$),
	(19, $c$gig_account_fetched('b', pg_temp.account(1))$c$),
	(20, $c$seek_gig_consumer('a', -1)$c$)
) AS c (n, call) ORDER BY c.n;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.try('read_gig_work(''a'')');
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT pg_temp.try('read_gig_work(''a'')');
ROLLBACK;
BEGIN ISOLATION LEVEL READ UNCOMMITTED;
SELECT count(*) > 0 AS read FROM gigs.read_gig_work('a');
ROLLBACK;

-- The user is that of the last event, and a column of the owner's is in nobody's way
ALTER TABLE gigs.gig_consumer_retry ADD COLUMN note text NOT NULL DEFAULT 'none';
SELECT gigs.create_gig_consumer('u', start_after => max(event_id)) FROM gigs.gig_event_log;
SELECT pg_temp.log('added', 20, 1, 2);
SELECT pg_temp.log('added', 20, 3, 4, "user" => 121);
SELECT * FROM pg_temp.read('u');
SELECT gigs.retry_gig_work(pg_temp.batch(), pg_temp.account(20), 'later', '0');
SELECT gigs.finish_gig_work(pg_temp.batch());
SELECT r.error, r.note FROM gigs.gig_consumer_retry AS r WHERE r.consumer = 'u';
SELECT * FROM pg_temp.read('u');
SELECT gigs.drop_gig_consumer('u');
ALTER TABLE gigs.gig_consumer_retry DROP COLUMN note;

-- What a worker is granted is enough to work, and nothing else
SET client_min_messages = warning;
CREATE ROLE regress_gigs_worker;
SELECT gigs.grant_gig_consumer('regress_gigs_worker');
SELECT p.proname
FROM pg_proc AS p
WHERE p.pronamespace = 'gigs'::regnamespace AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
	AND has_function_privilege('regress_gigs_worker', p.oid, 'EXECUTE')
ORDER BY p.proname COLLATE "C";
SELECT c.relname
FROM pg_class AS c
WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 'v')
	AND has_table_privilege('regress_gigs_worker', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')
ORDER BY c.relname COLLATE "C";
SET ROLE regress_gigs_worker;
SELECT count(*) > 0 AS has_work, max(batch) AS batch, max(account_id::text) AS account FROM gigs.read_gig_work('a') \gset
SELECT gigs.retry_gig_work(:batch, :'account', 'no');
SELECT gigs.finish_gig_work(:batch);
SELECT consumer, retries FROM gigs.gig_consumer_status ORDER BY consumer;
SELECT gigs.gig_account_fetched('a', :'account');
RESET ROLE;
DROP OWNED BY regress_gigs_worker;
DROP ROLE regress_gigs_worker;

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
