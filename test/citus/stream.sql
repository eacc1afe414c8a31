-- Ingests a stream of events by every function, reads and finishes a consumer's
-- work, and prints all rows that this leaves behind, without the times.  The
-- stream is the same in every database.
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = gigs, public;
SELECT create_gig_subscription('n', 'https://example.com/hooks', 'secret-of-the-stream') \g /dev/null

CREATE FUNCTION draw(n integer, seed integer, below integer) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$
	SELECT ((hashint4extended(n, seed) & 2147483647) % below)::integer
$$;

-- An event of one of 40 accounts
CREATE FUNCTION body(n integer) RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(
		format('{"event":"gigs.%s","name":"n","data":{"account":"%s","user":"%s","available_count":%s%s}}',
			kind,
			'00000000-0000-4000-8000-0000000000' || 10 + draw(n, 2, 40),
			'00000000-0000-4000-9000-000000000001',
			draw(n, 3, 1000),
			CASE kind
				WHEN 'partially_synced' THEN format(',"days_synced":%s', 30 * (1 + draw(n, 4, 3)))
				WHEN 'fully_synced' THEN ''
				WHEN 'added' THEN ',"added_count":1'
				ELSE format(',"%1$s_count":1,"%1$s_gigs":["00000000-0000-4000-a000-0000000000%2$s"]',
					kind, 10 + draw(n, 5, 90))
			END),
		'UTF8')
	FROM (SELECT ('[0:4]={added,updated,removed,partially_synced,fully_synced}'::text[])[draw(n, 1, 5)]) AS k (kind)
$$;

-- One event in eight is a redelivery of one of the twenty before, and one in 50
-- has a wrong signature.
CREATE TABLE stream (n integer PRIMARY KEY, body bytea, signature text);
INSERT INTO stream
SELECT n, body, sign_gig_event(body, CASE draw(n, 6, 50) WHEN 0 THEN 'another secret of the stream' ELSE 'secret-of-the-stream' END)
FROM generate_series(1, 2500) AS n, body(n - CASE draw(n, 7, 8) WHEN 0 THEN 1 + draw(n, 8, 20) ELSE 0 END) AS body;

CREATE TABLE result (n integer PRIMARY KEY, outcome gig_ingest_outcome, event_id bigint);

-- Single events, each in its own transaction
DO $$
DECLARE
	r stream;
BEGIN
	FOR r IN SELECT * FROM stream WHERE n <= 500 ORDER BY n LOOP
		INSERT INTO result
		SELECT r.n, t.outcome, t.event_id FROM try_ingest_gig_event(r.body, r.signature) AS t;
		COMMIT;
	END LOOP;
END
$$;

-- Batches of 100, each in its own transaction
DO $$
BEGIN
	FOR low IN 501..1901 BY 100 LOOP
		INSERT INTO result
		SELECT low - 1 + t.ord, t.outcome, t.event_id
		FROM ingest_gig_events(
			ARRAY(SELECT body FROM stream WHERE n BETWEEN low AND low + 99 ORDER BY n),
			ARRAY(SELECT signature FROM stream WHERE n BETWEEN low AND low + 99 ORDER BY n)) AS t;
		COMMIT;
	END LOOP;
END
$$;

-- An inbox table: a trigger, and a drain
CREATE TABLE inbox (id integer PRIMARY KEY, body bytea, signature text, outcome text, error text);
INSERT INTO inbox SELECT * FROM stream WHERE n BETWEEN 2251 AND 2500;
CALL drain_gig_inbox('inbox', 100) \g /dev/null
CREATE TRIGGER ingest BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION gig_inbox_ingest();
INSERT INTO inbox SELECT * FROM stream WHERE n BETWEEN 2001 AND 2250 ORDER BY n;

-- A page of accounts: some as they are, others not, and some new ones
SELECT json_build_object('results', json_agg(json_build_object(
	'id', '00000000-0000-4000-8000-0000000000' || n,
	'user', '00000000-0000-4000-9000-000000000001',
	'availability', json_build_object('gigs', json_build_object(
		'status', CASE draw(n, 10, 3) WHEN 0 THEN 'in_progress' ELSE 'synced' END,
		'available_count', CASE draw(n, 11, 2) WHEN 0 THEN coalesce(a.available_count, 7) ELSE draw(n, 12, 1000) END))) ORDER BY draw(n, 13, 1000))) AS page
FROM generate_series(10, 54) AS n
LEFT JOIN gig_account_sync AS a ON a.account_id = ('00000000-0000-4000-8000-0000000000' || n)::uuid \gset
SELECT 'reconciled', r.* FROM reconcile_gig_accounts(:'page') AS r;
SELECT 'reconciled again', r.* FROM reconcile_gig_accounts(:'page') AS r;

CREATE FUNCTION without_times(r jsonb) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_object_agg(key, value) FROM jsonb_each(r) WHERE key !~ '_at$'
$$;

-- A consumer of two parts.  Some accounts fail at their first attempt.
SELECT create_gig_consumer('c', parts => 2) \g /dev/null
CREATE TABLE work (read integer, account_id uuid, user_id uuid, windows tstzmultirange, updated_gigs uuid[], removed_gigs uuid[],
	events integer, last_event_id bigint, attempts integer, batch bigint);
DO $$
DECLARE
	n integer := 0;
BEGIN
	LOOP
		n := n + 1;
		INSERT INTO work
		SELECT n, account_id, user_id, windows, updated_gigs, removed_gigs, events, last_event_id, attempts, batch
		FROM read_gig_work('c', 200);
		EXIT WHEN NOT FOUND;
		COMMIT;
		PERFORM retry_gig_work(batch, account_id, 'an error', '0')
		FROM work
		WHERE read = n AND attempts = 0 AND account_id::text ~ '[05]$';
		PERFORM finish_gig_work(batch) FROM work WHERE read = n LIMIT 1;
		COMMIT;
	END LOOP;
END
$$;

-- Functions that Citus does not distribute want local copies of the rows.
CREATE TEMPORARY TABLE log AS SELECT * FROM gig_event_log;
CREATE TEMPORARY TABLE account AS SELECT * FROM gig_account_sync;
SELECT rebuild_gig_sync() \g /dev/null
CREATE TEMPORARY TABLE rebuilt AS SELECT * FROM gig_account_sync;

SELECT 'result', to_jsonb(r) FROM result AS r ORDER BY n;
SELECT 'inbox', without_times(to_jsonb(i)) FROM inbox AS i ORDER BY id;
SELECT 'log', without_times(to_jsonb(l)) FROM log AS l ORDER BY event_id;
SELECT 'account', without_times(to_jsonb(a)) FROM account AS a ORDER BY account_id;
SELECT 'rebuilt', to_jsonb(r) FROM (TABLE rebuilt EXCEPT TABLE account) AS r;
SELECT 'work', read, account_id, user_id, windows, ARRAY(SELECT unnest(updated_gigs) ORDER BY 1),
	ARRAY(SELECT unnest(removed_gigs) ORDER BY 1), events, last_event_id, attempts
FROM work ORDER BY read, account_id;
SELECT 'status', parts, working, position, events_behind, time_behind, retries, dead FROM gig_consumer_status;
SELECT 'fetched', count(*) FILTER (WHERE gig_account_fetched('c', account_id)) FROM account;
SELECT 'counts', event, sum(events), sum(gigs)
FROM gig_event_counts('1 day', now() - interval '1 day', now() + interval '1 day') GROUP BY event ORDER BY event;
