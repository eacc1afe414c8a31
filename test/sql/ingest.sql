--
-- The rules of applying, event by event
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
\pset format unaligned

SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');

-- A body for an account that is named by one digit
CREATE FUNCTION pg_temp.body(kind text, account int, available int, own int DEFAULT 0)
RETURNS text LANGUAGE sql AS $$
	SELECT format(
		'{"event":"gigs.%s","name":"payroll","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-00000000000%s",'
		'"available_from":"2023-01-0%sT00:00:00Z","available_to":null,"available_count":%s%s}}',
		kind, account, account % 2, 1 + abs(available) % 9, available,
		CASE WHEN kind = 'partially_synced' THEN format(',"days_synced":%s', own)
			WHEN kind <> 'fully_synced' THEN format(',"%s_count":%s', kind, own) ELSE '' END)
$$;
CREATE FUNCTION pg_temp.ingest(body text)
RETURNS gigs.gig_ingest_outcome LANGUAGE sql AS $$
	SELECT gigs.ingest_gig_event(body, gigs.sign_gig_event(body, 's3cret'))
$$;
CREATE FUNCTION pg_temp.ingest(kind text, account int, available int, own int DEFAULT 0)
RETURNS gigs.gig_ingest_outcome LANGUAGE sql AS $$
	SELECT pg_temp.ingest(pg_temp.body(kind, account, available, own))
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
-- A time is shown as the number of the event that was received then
CREATE FUNCTION pg_temp.event_at(account uuid, at timestamptz) RETURNS bigint LANGUAGE sql AS $$
	SELECT nullif(count(*), 0) FROM gigs.gig_event_log AS l
	WHERE l.account_id = account AND l.outcome <> 'duplicate' AND l.received_at <= at
$$;
CREATE VIEW pg_temp.account AS
SELECT right(account_id::text, 1) AS account, right(user_id::text, 1) AS "user", state, days_synced,
	extract(day FROM available_from AT TIME ZONE 'UTC') AS "from", available_count, added_total, updated_total, removed_total,
	events, duplicates, last_event,
	pg_temp.event_at(account_id, first_event_at) AS first,
	pg_temp.event_at(account_id, partially_synced_at) AS partial,
	pg_temp.event_at(account_id, fully_synced_at) AS "full",
	pg_temp.event_at(account_id, refreshed_at) AS refresh,
	pg_temp.event_at(account_id, last_event_at) AS last,
	last_event_id = (SELECT max(l.event_id) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id) AS latest
FROM gigs.gig_account_sync AS a ORDER BY 1;

-- Nothing is understood, kept or ignored before the signature is valid
SELECT what, pg_temp.try(format('SELECT gigs.ingest_gig_event(%L, %L)', body, gigs.sign_gig_event(body, 'S3cret')))
FROM (VALUES
	('an event', pg_temp.body('fully_synced', 1, 5)),
	('an odd value', pg_temp.body('fully_synced', 1, -5)),
	('an unknown event', '{"event":"gigs.exploded","name":"payroll","data":{}}'),
	('another family', '{"event":"paystubs.added","name":"payroll","data":{}}'),
	('an unknown name', '{"event":"gigs.added","name":"nobody","data":{}}')
) AS v (what, body);
SELECT pg_temp.try('SELECT gigs.ingest_gig_event(NULL::bytea, NULL)');
SELECT pg_temp.try('SELECT gigs.ingest_gig_event(NULL::text, NULL)');
-- ... then other families are ignored
SELECT pg_temp.ingest('{"event":"paystubs.added","name":"payroll","data":{"account":7}}');
SELECT pg_temp.ingest('{"event":"accounts.connected","name":"payroll"}');
SELECT (SELECT count(*) FROM gigs.gig_account_sync) + (SELECT count(*) FROM gigs.gig_event_log) + (SELECT count(*) FROM gigs.gig_quarantine) AS rows;

-- Account 1: an initial retrieval in two steps, then refreshes
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT * FROM pg_temp.account;
SELECT pg_temp.ingest('partially_synced', 1, 26, 60);
SELECT pg_temp.ingest('fully_synced', 1, 100);
SELECT * FROM pg_temp.account;
SELECT pg_temp.ingest('added', 1, 102, 2);
SELECT pg_temp.ingest('updated', 1, 102, 3);
SELECT pg_temp.ingest('removed', 1, 101, 1);
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT * FROM pg_temp.account;

-- Account 2: a partial sync of fewer days than are synced is stale
SELECT pg_temp.ingest('partially_synced', 2, 20, 60);
SELECT pg_temp.ingest('partially_synced', 2, 10, 30);
SELECT * FROM pg_temp.account WHERE account = '2';
-- ... one of as many days is not
SELECT pg_temp.ingest('partially_synced', 2, 21, 60);
SELECT * FROM pg_temp.account WHERE account = '2';
SELECT pg_temp.ingest('fully_synced', 2, 30);
-- ... one after a full sync is: days_synced grows, state and snapshot stay
SELECT pg_temp.ingest('partially_synced', 2, 25, 90);
SELECT * FROM pg_temp.account WHERE account = '2';

-- Account 3: synced at once, and again; the user of the latest event counts
SELECT pg_temp.ingest('fully_synced', 3, 7);
SELECT pg_temp.ingest('fully_synced', 3, 8);
SELECT pg_temp.ingest(replace(pg_temp.body('added', 3, 9, 1), '-9000-000000000001', '-9000-000000000000'));
SELECT * FROM pg_temp.account WHERE account = '3';

-- Account 4: refreshes of an account whose initial retrieval was missed
SELECT pg_temp.ingest('added', 4, 5, 5);
SELECT * FROM pg_temp.account WHERE account = '4';
SELECT pg_temp.ingest('partially_synced', 4, 3, 10);
SELECT * FROM pg_temp.account WHERE account = '4';

-- Redeliveries are counted and logged, and change nothing else (see dedupe)
SELECT pg_temp.ingest('added', 1, 102, 2);
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT pg_temp.ingest('partially_synced', 1, 13, 30);
SELECT * FROM pg_temp.account WHERE account = '1';

-- The log has every delivery in the order of application, with its body as it
-- was received
SELECT right(l.account_id::text, 1) AS account, l.outcome, l.event, e.available_count,
	e.event = l.event AND e.account_id = l.account_id AND e.name = l.name AS told
FROM gigs.gig_event_log AS l, gigs.parse_logged_gig_event(l.event, l.body) AS e
ORDER BY l.account_id, l.event_id;

-- An event is two rows: one is appended to the log, the account's is updated in
-- place.  No other table is touched once the session has read the subscriptions.
CREATE VIEW pg_temp.touched AS
SELECT relname, n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_hot_upd AS hot, n_tup_del AS deleted
FROM pg_stat_xact_user_tables
WHERE schemaname = 'gigs' AND seq_scan + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd + n_tup_del > 0
ORDER BY relname;
SELECT pg_stat_force_next_flush();
BEGIN;
SELECT pg_temp.ingest('added', 1, 106, 1);
SELECT * FROM pg_temp.touched;
ROLLBACK;
SELECT pg_stat_force_next_flush();
-- ... a duplicate is too
BEGIN;
SELECT pg_temp.ingest('added', 1, 105, 4);
SELECT * FROM pg_temp.touched;
ROLLBACK;
SELECT pg_stat_force_next_flush();
-- ... a batch updates each account once
BEGIN;
SELECT outcome, count(*) FROM (
		SELECT array_agg(convert_to(body, 'UTF8')) AS bodies, array_agg(gigs.sign_gig_event(body, 's3cret')) AS sigs
		FROM generate_series(1, 10) AS n, pg_temp.body('updated', 1 + n % 2, 110 + n, 1) AS body
	) AS b, gigs.ingest_gig_events(b.bodies, b.sigs) GROUP BY 1;
SELECT * FROM pg_temp.touched;
ROLLBACK;
SELECT pg_stat_force_next_flush();
-- ... the row of a new account is inserted first
BEGIN;
SELECT pg_temp.ingest('added', 5, 1, 1);
SELECT * FROM pg_temp.touched;
ROLLBACK;

-- An event commits as a whole, or not at all
BEGIN;
SELECT pg_temp.ingest('added', 6, 1, 1);
ROLLBACK;
SELECT pg_temp.ingest('added', 6, 1, 1);
ALTER TABLE gigs.gig_account_sync ADD CONSTRAINT few CHECK (available_count < 1000);
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 1001, 1)');
SELECT outcome, message IS NOT NULL AS message FROM pg_temp.body('added', 6, 2, 1) AS b, gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, 's3cret'));
ALTER TABLE gigs.gig_account_sync DROP CONSTRAINT few;
SELECT * FROM pg_temp.account WHERE account = '6';
SELECT count(*) FROM gigs.gig_event_log WHERE right(account_id::text, 1) = '6';

-- A user's trigger that drops a row is told, and loses no event silently
CREATE FUNCTION pg_temp.drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_event_log FOR EACH ROW EXECUTE FUNCTION pg_temp.drop_row();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 3, 1)');
DROP TRIGGER drop_row ON gigs.gig_event_log;
CREATE TRIGGER drop_row BEFORE INSERT ON gigs.gig_account_sync FOR EACH ROW EXECUTE FUNCTION pg_temp.drop_row();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 7, 3, 1)');
DROP TRIGGER drop_row ON gigs.gig_account_sync;
CREATE TRIGGER drop_row BEFORE UPDATE ON gigs.gig_account_sync FOR EACH ROW EXECUTE FUNCTION pg_temp.drop_row();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 3, 1)');
DROP TRIGGER drop_row ON gigs.gig_account_sync;
SELECT events FROM pg_temp.account WHERE account = '6';

-- A user's trigger that ingests an event is told as well
CREATE FUNCTION pg_temp.ingest_more() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM gigs.ingest_gig_event('{"event":"accounts.connected","name":"payroll"}'::bytea, NULL);
	RETURN new;
END
$$;
CREATE TRIGGER ingest_more AFTER INSERT ON gigs.gig_event_log FOR EACH ROW EXECUTE FUNCTION pg_temp.ingest_more();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 3, 1)');
DROP TRIGGER ingest_more ON gigs.gig_event_log;
CREATE TRIGGER ingest_more BEFORE UPDATE ON gigs.gig_account_sync FOR EACH ROW EXECUTE FUNCTION pg_temp.ingest_more();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, 3, 1)');
DROP TRIGGER ingest_more ON gigs.gig_account_sync;
CREATE TRIGGER ingest_more BEFORE INSERT ON gigs.gig_quarantine FOR EACH ROW EXECUTE FUNCTION pg_temp.ingest_more();
SELECT pg_temp.try('SELECT pg_temp.ingest(''added'', 6, -3, 1)');
DROP TRIGGER ingest_more ON gigs.gig_quarantine;
-- ... and does no harm to the session
SELECT pg_temp.ingest('added', 6, 3, 1);

-- Bodies that the server has stored compressed, or out of line, are the same
CREATE TEMP TABLE stored AS
SELECT n, compressed, convert_to(replace(pg_temp.body('added', 1, 500 + n, 1), '"data":{', format('"data":{"resource":"%s",', filler)), 'UTF8') AS body
FROM (VALUES (1, true, repeat('x', 20000)), (2, false, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) AS i))) AS v (n, compressed, filler);
SELECT n, (pg_column_size(body) < octet_length(body)) = compressed AS as_wanted FROM stored ORDER BY n;
SELECT n, (gigs.try_ingest_gig_event(body, gigs.sign_gig_event(body, 's3cret'))).outcome, (gigs.try_ingest_gig_event(body, NULL)).sqlstate FROM stored ORDER BY n;
SELECT s.n, l.body = s.body AS same FROM stored AS s JOIN gigs.gig_event_log AS l ON l.event_id = (SELECT max(event_id) - 2 + s.n FROM gigs.gig_event_log) ORDER BY n;

-- An error of the transaction, not of the webhook, is raised by every function
BEGIN READ ONLY;
SELECT pg_temp.try('SELECT gigs.try_ingest_gig_event(b, gigs.sign_gig_event(b, ''s3cret'')) FROM pg_temp.body(''added'', 1, 1, 1) AS b');
ROLLBACK;

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
