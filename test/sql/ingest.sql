--
-- The rules of applying, event by event
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
\pset format unaligned

SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');

-- A body for an account that is named by one digit
CREATE FUNCTION pg_temp.body(kind text, account int, available int, own int DEFAULT 0, gigs text DEFAULT '', name text DEFAULT 'payroll')
RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(format(
		'{"event":"gigs.%s","name":"%s","data":{"account":"%s","user":"%s","available_from":"2023-01-0%sT00:00:00Z","available_to":null,"available_count":%s%s%s}}',
		kind, name,
		'00000000-0000-4000-8000-00000000000' || account,
		'00000000-0000-4000-9000-00000000000' || account % 2,
		1 + abs(available) % 9, available,
		CASE WHEN kind = 'partially_synced' THEN format(',"days_synced":%s', own)
			WHEN kind <> 'fully_synced' THEN format(',"%s_count":%s', kind, own) ELSE '' END,
		CASE WHEN kind IN ('updated', 'removed') THEN format(',"%s_gigs":[%s]', kind,
			(SELECT string_agg('"00000000-0000-4000-a000-00000000000' || g || '"', ',') FROM regexp_split_to_table(gigs, '') AS g WHERE g <> '')) ELSE '' END
	), 'UTF8')
$$;
CREATE FUNCTION pg_temp.ingest(kind text, account int, available int, own int DEFAULT 0, gigs text DEFAULT '')
RETURNS gigs.gig_ingest_outcome LANGUAGE plpgsql AS $$
DECLARE
	body bytea := pg_temp.body(kind, account, available, own, gigs);
BEGIN
	RETURN gigs.ingest_gig_event(body, gigs.sign_gig_event(body, 's3cret'));
END
$$;
CREATE FUNCTION pg_temp.try(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE query INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
-- Times are shown by which event they are the time of
CREATE VIEW pg_temp.account AS
SELECT right(account_id::text, 1) AS account, right(user_id::text, 1) AS "user", state, days_synced,
	extract(day FROM available_from AT TIME ZONE 'UTC') AS "from", available_count, added_total, updated_total, removed_total,
	events, duplicates, last_event,
	(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id AND l.received_at <= a.first_event_at) AS first,
	(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id AND l.received_at <= a.partially_synced_at) AS partial,
	(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id AND l.received_at <= a.fully_synced_at) AS "full",
	(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id AND l.received_at <= a.refreshed_at) AS refresh,
	(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id AND l.received_at <= a.last_event_at) AS last
FROM gigs.gig_account_sync AS a ORDER BY 1;
CREATE VIEW pg_temp.change AS
SELECT right(account_id::text, 1) AS account, right(gig_id::text, 1) AS gig, change, event_id FROM gigs.gig_change ORDER BY 1, 2;

-- Nothing changes before the signature is good
SELECT pg_temp.try(format('SELECT gigs.ingest_gig_event(%L::bytea, %L)', pg_temp.body('fully_synced', 1, 5), gigs.sign_gig_event(pg_temp.body('fully_synced', 1, 5), 'S3cret')));
-- ... and what is signed but makes no sense is refused as a whole
SELECT pg_temp.try(format('SELECT gigs.ingest_gig_event(%L::bytea, %L)', pg_temp.body('fully_synced', 1, -5), gigs.sign_gig_event(pg_temp.body('fully_synced', 1, -5), 's3cret')));
SELECT pg_temp.try('SELECT gigs.ingest_gig_event(NULL::bytea, NULL)');
SELECT pg_temp.try('SELECT gigs.ingest_gig_event(NULL::text, NULL)');
-- ... and one of another family is let pass
SELECT gigs.ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret')) FROM convert_to('{"event":"paystubs.added","name":"payroll","data":{"account":7}}', 'UTF8') AS b;
SELECT gigs.ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret')) FROM convert_to('{"event":"accounts.connected","name":"payroll"}', 'UTF8') AS b;
-- ... but only if it is authentic
SELECT outcome, sqlstate, message FROM gigs.try_ingest_gig_event('{"event":"paystubs.added","name":"payroll","data":{}}', NULL);
-- ... and no event of ours that we don't know
SELECT outcome, sqlstate, message FROM convert_to('{"event":"gigs.exploded","name":"payroll","data":{}}', 'UTF8') AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret'));
SELECT (SELECT count(*) FROM gigs.gig_account_sync) + (SELECT count(*) FROM gigs.gig_event_log) + (SELECT count(*) FROM gigs.gig_delivery) AS rows;

-- Account 1: an initial retrieval in two steps, then refreshes
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT * FROM pg_temp.account;
SELECT pg_temp.ingest('partially_synced', 1, 26, 60);
SELECT pg_temp.ingest('fully_synced', 1, 100);
SELECT * FROM pg_temp.account;
SELECT pg_temp.ingest('added', 1, 102, 2);
SELECT pg_temp.ingest('updated', 1, 102, 2, '13');
SELECT pg_temp.ingest('removed', 1, 101, 1, '2');
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT * FROM pg_temp.account;
SELECT * FROM pg_temp.change;

-- Account 2: partial syncs that come late
SELECT pg_temp.ingest('partially_synced', 2, 20, 60);
SELECT pg_temp.ingest('partially_synced', 2, 10, 30);
SELECT * FROM pg_temp.account WHERE account = '2';
-- an equal window is no late one
SELECT pg_temp.ingest('partially_synced', 2, 21, 60);
SELECT * FROM pg_temp.account WHERE account = '2';
SELECT pg_temp.ingest('fully_synced', 2, 30);
-- the window grows even then, the state and the snapshot stay
SELECT pg_temp.ingest('partially_synced', 2, 25, 90);
SELECT * FROM pg_temp.account WHERE account = '2';

-- Account 3: synced at once; the user of the latest event counts
SELECT pg_temp.ingest('fully_synced', 3, 7);
SELECT pg_temp.ingest('fully_synced', 3, 8);
SELECT gigs.ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret'))
FROM convert_to(replace(convert_from(pg_temp.body('added', 3, 9, 1), 'UTF8'), '-9000-000000000001', '-9000-000000000000'), 'UTF8') AS b;
SELECT * FROM pg_temp.account WHERE account = '3';

-- Account 4: refreshes of an account whose initial retrieval we missed
SELECT pg_temp.ingest('added', 4, 5, 5);
SELECT * FROM pg_temp.account WHERE account = '4';
SELECT pg_temp.ingest('partially_synced', 4, 3, 10);
SELECT * FROM pg_temp.account WHERE account = '4';

-- Redeliveries change nothing but their count
SELECT pg_temp.ingest('added', 1, 102, 2);
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT * FROM pg_temp.account WHERE account = '1';
SELECT deliveries, count(*) FROM gigs.gig_delivery GROUP BY 1 ORDER BY 1;
-- the same body for another account is another event; any other byte makes another body
SELECT gigs.ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret')) FROM (SELECT pg_temp.body('added', 4, 5, 5) || ' '::bytea) AS v (b);

-- They bring back a gig that has been taken out, and leave alone one that hasn't
TRUNCATE gigs.gig_change;
SELECT pg_temp.ingest('updated', 5, 5, 2, '12'); -- logged as the first
SELECT pg_temp.ingest('updated', 5, 6, 2, '23');
DELETE FROM gigs.gig_change WHERE right(gig_id::text, 1) = '1';
SELECT pg_temp.ingest('updated', 5, 5, 2, '12');
SELECT c.account, c.gig, c.change, l.event_id = (SELECT min(event_id) FROM gigs.gig_event_log WHERE account_id = l.account_id) AS of_first
FROM pg_temp.change AS c JOIN gigs.gig_event_log AS l USING (event_id);
-- a gig named twice, and a later event of another kind
SELECT pg_temp.ingest('updated', 5, 7, 3, '747');
SELECT pg_temp.ingest('removed', 5, 7, 1, '7');
SELECT gig, change FROM pg_temp.change WHERE gig = '7';
SELECT pg_temp.ingest('updated', 5, 8, 0, '');

-- Past the window the same body is a new event
SET gigs_webhooks.dedupe_window = 0;
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT pg_temp.ingest('added', 1, 105, 4);
RESET gigs_webhooks.dedupe_window;
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT * FROM pg_temp.account WHERE account = '1';
UPDATE gigs.gig_delivery SET first_at = first_at - interval '3 days' + interval '1 minute';
SELECT pg_temp.ingest('added', 1, 105, 4);
UPDATE gigs.gig_delivery SET first_at = first_at - interval '1 minute', last_at = now();
SELECT pg_temp.ingest('added', 1, 105, 4);
-- ... with a window of its own
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT added_total, events, duplicates FROM pg_temp.account WHERE account = '1';

-- An event commits as a whole, or not at all
BEGIN;
SELECT pg_temp.ingest('added', 6, 1, 1);
ROLLBACK;
SELECT pg_temp.ingest('added', 6, 1, 1);
ALTER TABLE gigs.gig_change ADD CONSTRAINT fits CHECK (gig_id <> '00000000-0000-4000-a000-000000000009');
SELECT pg_temp.try('SELECT pg_temp.ingest(''updated'', 6, 2, 2, ''89'')');
SELECT * FROM pg_temp.account WHERE account = '6';
SELECT * FROM pg_temp.change WHERE account = '6';
ALTER TABLE gigs.gig_change DROP CONSTRAINT fits;
SELECT pg_temp.ingest('updated', 6, 2, 2, '89');

-- A trigger of the user's that drops what should be logged loses nothing silently
CREATE FUNCTION pg_temp.drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_event_log FOR EACH ROW EXECUTE FUNCTION pg_temp.drop_row();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 3, 1)');
DROP TRIGGER drop_row ON gigs.gig_event_log;
CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_account_sync FOR EACH ROW EXECUTE FUNCTION pg_temp.drop_row();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 7, 3, 1)');
DROP TRIGGER drop_row ON gigs.gig_account_sync;

-- The log has every body as it was received, in the order of application
SELECT right(account_id::text, 1) AS account, string_agg(split_part(event::text, '.', 2), ' ' ORDER BY event_id) AS events,
	bool_and((gigs.parse_gig_event(body)).event = event AND (gigs.parse_gig_event(body)).account_id = account_id AND (gigs.parse_gig_event(body)).name = name) AS told
FROM gigs.gig_event_log GROUP BY 1 ORDER BY 1;

-- The tables are what the log folds to
CREATE TEMP TABLE before AS TABLE gigs.gig_account_sync;
SELECT * FROM gigs.rebuild_gig_sync();
SELECT count(*) AS differences FROM (TABLE before EXCEPT TABLE gigs.gig_account_sync) AS d;

-- Bodies that the server has stored compressed, or elsewhere, are none the worse
CREATE TEMP TABLE stored AS
SELECT n, compressed, convert_to(replace(convert_from(pg_temp.body('added', 1, 500 + n, 1), 'UTF8'), '"data":{', format('"data":{"resource":"%s",', filler)), 'UTF8') AS body
FROM (VALUES (1, true, repeat('x', 20000)), (2, false, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) AS i))) AS v (n, compressed, filler);
SELECT n, (pg_column_size(body) < octet_length(body)) = compressed AS as_wanted FROM stored ORDER BY n;
SELECT n, (gigs.try_ingest_gig_event(body, gigs.sign_gig_event(body, 's3cret'))).outcome, (gigs.try_ingest_gig_event(body, NULL)).sqlstate FROM stored ORDER BY n;
SELECT s.n, l.body = s.body AS same FROM stored AS s JOIN gigs.gig_event_log AS l ON l.event_id = (SELECT max(event_id) - 2 + s.n FROM gigs.gig_event_log) ORDER BY n;

-- What is refused for the transaction's sake, not the event's, is raised by every door
BEGIN READ ONLY;
SELECT pg_temp.try('SELECT gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, ''s3cret'')) FROM pg_temp.body(''added'', 1, 1, 1) AS b');
ROLLBACK;

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
