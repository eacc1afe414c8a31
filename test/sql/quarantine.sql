--
-- Signed webhooks that could not be parsed
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET client_min_messages = warning;
\pset format unaligned

SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT gigs.create_gig_subscription('open', 'https://example.com/hooks');

CREATE FUNCTION pg_temp.body(available text, event text DEFAULT 'gigs.fully_synced', name text DEFAULT 'payroll', account int DEFAULT 1) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"%s","name":"%s","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', event, name, account, available)
$$;
CREATE FUNCTION pg_temp.sign(body text) RETURNS text LANGUAGE sql AS $$SELECT gigs.sign_gig_event(body, 's3cret')$$;
CREATE VIEW pg_temp.quarantine AS
SELECT quarantine_id AS id, name, sqlstate, message, right(convert_from(body, 'UTF8'), 20) AS body, received_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS now
FROM gigs.gig_quarantine ORDER BY 1;

-- What is signed but not understood is kept, with the reason; the sender is
-- answered as for any accepted webhook.  So it is by every function.
SELECT gigs.ingest_gig_event(b, pg_temp.sign(b)) FROM pg_temp.body('-1') AS b;
SELECT gigs.ingest_gig_event(convert_to(b, 'UTF8'), pg_temp.sign(b)) FROM pg_temp.body('2', 'gigs.exploded') AS b;
SELECT t.* FROM pg_temp.body('"3"') AS b, gigs.try_ingest_gig_event(b, pg_temp.sign(b)) AS t;
SELECT t.* FROM pg_temp.body('4,"user":"4"') AS b, gigs.try_ingest_gig_event(convert_to(b, 'UTF8'), pg_temp.sign(b)) AS t;
SELECT t.* FROM pg_temp.body('5,"available_from":"tomorrow"') AS b, pg_temp.body('50') AS good,
	gigs.ingest_gig_events(ARRAY[b, good, b]::bytea[], ARRAY[pg_temp.sign(b), pg_temp.sign(good), pg_temp.sign(b)]) AS t;
CREATE TABLE pg_temp.inbox (id int, body text, signature text, outcome text, error text);
CREATE TRIGGER ingest BEFORE INSERT ON pg_temp.inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
INSERT INTO pg_temp.inbox SELECT 1, b, pg_temp.sign(b) FROM pg_temp.body('null') AS b RETURNING outcome, error;
-- ... an inbox without an outcome column takes it as well
CREATE TABLE pg_temp.strict (body text, signature text);
CREATE TRIGGER ingest BEFORE INSERT ON pg_temp.strict FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
INSERT INTO pg_temp.strict SELECT b, pg_temp.sign(b) FROM pg_temp.body('1e3') AS b;
CREATE TABLE pg_temp.backlog (id int, body text, signature text, outcome text, error text);
INSERT INTO pg_temp.backlog SELECT 1, b, pg_temp.sign(b) FROM pg_temp.body('{}') AS b;
CALL gigs.drain_gig_inbox('pg_temp.backlog');
SELECT outcome, error FROM pg_temp.backlog;
SELECT * FROM pg_temp.quarantine;
-- ... the body is kept as it was received, and no account knows of it
SELECT gigs.verify_gig_signature(body, pg_temp.sign(pg_temp.body('-1')), 's3cret') FROM gigs.gig_quarantine WHERE quarantine_id = 1;
SELECT available_count, events FROM gigs.gig_account_sync;
SELECT count(*) FROM gigs.gig_event_log;
-- ... each delivery has a row of its own
SELECT count(*) FROM gigs.gig_quarantine WHERE message LIKE '%available_from%';

-- What is unsigned is rejected, and so is what cannot be verified
SELECT t.* FROM pg_temp.body('-1', name => 'open') AS b, gigs.try_ingest_gig_event(b, NULL) AS t;
SELECT t.* FROM pg_temp.body('1', 'gigs.exploded', 'open') AS b, gigs.try_ingest_gig_event(b, NULL) AS t;
SELECT what, t.outcome, t.sqlstate, t.message FROM (VALUES
	('a wrong signature', pg_temp.body('-1'), pg_temp.sign('')),
	('no signature', pg_temp.body('-1'), NULL),
	('malformed JSON', pg_temp.body('') , pg_temp.sign(pg_temp.body(''))),
	('no name', '{"event":"gigs.exploded"}', pg_temp.sign('{"event":"gigs.exploded"}')),
	('no object', '[]', pg_temp.sign('[]')),
	('another family', '{"event":"users.exploded","name":"payroll","data":7}', pg_temp.sign('{"event":"users.exploded","name":"payroll","data":7}'))
) AS v (what, body, sig), gigs.try_ingest_gig_event(v.body, v.sig) AS t;
-- ... while a signed body that has no event at all is kept
SELECT body, t.outcome, t.sqlstate, t.message FROM (VALUES ('{"name":"payroll"}'), ('{"name":"payroll","event":null}'), ('{"name":"payroll","event":"gigs.added"}')) AS v (body),
	gigs.try_ingest_gig_event(body, pg_temp.sign(body)) AS t;
DELETE FROM gigs.gig_quarantine WHERE convert_from(body, 'UTF8') NOT LIKE '%data%';
SELECT count(*) FROM gigs.gig_quarantine;

-- A retry keeps what still cannot be parsed
SELECT * FROM gigs.retry_gig_quarantine();
SELECT * FROM gigs.retry_gig_quarantine(1);
SELECT * FROM gigs.retry_gig_quarantine(99);
SELECT count(*) FROM gigs.gig_quarantine;

-- A body that parses, as it would in a later version of the extension, is
-- ingested with the time at which it was received
UPDATE gigs.gig_quarantine SET body = pg_temp.body('100')::bytea, received_at = '2023-01-01 12:00Z' WHERE quarantine_id = 2;
UPDATE gigs.gig_quarantine SET body = pg_temp.body('101', account => 2)::bytea, received_at = '2023-01-02 12:00Z' WHERE quarantine_id = 3;
SELECT * FROM gigs.retry_gig_quarantine(2);
SELECT id FROM pg_temp.quarantine WHERE id < 4;
SELECT * FROM gigs.retry_gig_quarantine();
SELECT id FROM pg_temp.quarantine;
SELECT outcome, event, name, right(account_id::text, 1) AS account, received_at AT TIME ZONE 'UTC' AS received_at FROM gigs.gig_event_log WHERE received_at < '2023-02-01' ORDER BY event_id;
-- ... so it takes no snapshot where a later event has given one
SELECT right(account_id::text, 1) AS account, available_count, events, last_event_at < '2023-02-01' AS old FROM gigs.gig_account_sync ORDER BY 1;
-- ... whatever the outcome is: duplicate, stale or ignored
INSERT INTO gigs.gig_quarantine (received_at, name, sqlstate, message, body) VALUES
	('2023-01-03', 'payroll', '0A000', 'by hand', pg_temp.body('101', account => 2)::bytea),
	('2023-01-03', 'payroll', '0A000', 'by hand', pg_temp.body('1,"days_synced":3', 'gigs.partially_synced', account => 2)::bytea),
	('2023-01-03', 'payroll', '0A000', 'by hand', '{"event":"paystubs.added","name":"payroll"}'),
	-- the signature has been verified before, so the subscription may be gone
	('2023-01-03', 'dropped', '0A000', 'by hand', pg_temp.body('102', name => 'dropped', account => 2)::bytea);
SELECT * FROM gigs.retry_gig_quarantine();
SELECT outcome, name, count(*) FROM gigs.gig_event_log WHERE right(account_id::text, 1) = '2' GROUP BY 1, 2 ORDER BY 1, 2;
-- ... what is still not understood stays, with the latest reason
UPDATE gigs.gig_quarantine SET sqlstate = '0A000', message = 'by an older version' WHERE quarantine_id = 1;
SELECT * FROM gigs.retry_gig_quarantine(1);
SELECT id, sqlstate, message FROM pg_temp.quarantine WHERE id = 1;
-- ... and so does a body larger than gigs_webhooks.max_body_size is by now
INSERT INTO gigs.gig_quarantine (quarantine_id, received_at, name, sqlstate, message, body) VALUES (1000, '2023-01-04', 'payroll', '0A000', 'by hand', (pg_temp.body('103', account => 3) || repeat(' ', 1024))::bytea);
SET gigs_webhooks.max_body_size = 1024;
SELECT * FROM gigs.retry_gig_quarantine(1000);
SELECT sqlstate FROM gigs.gig_quarantine WHERE quarantine_id = 1000;
RESET gigs_webhooks.max_body_size;
SELECT * FROM gigs.retry_gig_quarantine(1000);
SELECT available_count FROM gigs.gig_account_sync WHERE right(account_id::text, 1) = '3';

-- A time that was given is kept, but one in the future counts as now
SELECT outcome FROM pg_temp.body('-8') AS b, gigs.ingest_gig_events(ARRAY[b, b, b]::bytea[], ARRAY[pg_temp.sign(b), pg_temp.sign(b), pg_temp.sign(b)], ARRAY['2023-01-05 00:00Z', '2999-01-01 00:00Z', NULL]::timestamptz[]);
SELECT CASE WHEN received_at < '2023-02-01' THEN received_at AT TIME ZONE 'UTC' END AS received_at, received_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS now
FROM gigs.gig_quarantine WHERE convert_from(body, 'UTF8') LIKE '%-8}}' ORDER BY quarantine_id;

-- A transaction keeps all of it or nothing
BEGIN;
SELECT gigs.ingest_gig_event(b, pg_temp.sign(b)) FROM pg_temp.body('-7') AS b;
ROLLBACK;
SELECT count(*) FROM gigs.gig_quarantine WHERE convert_from(body, 'UTF8') LIKE '%-7}}';

-- What is not kept is not acknowledged
CREATE RULE forget AS ON INSERT TO gigs.gig_quarantine DO INSTEAD NOTHING;
SELECT gigs.ingest_gig_event(b, pg_temp.sign(b)) FROM pg_temp.body('-6') AS b;

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
