--
-- Tables and types that the owner of the extension has altered: events are as
-- PostgreSQL's statements would have them, or an error
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET client_min_messages = error;
\pset format unaligned
\set VERBOSITY terse

SELECT gigs.create_gig_subscription('n', 'https://example.com/hooks');
CREATE FUNCTION pg_temp.body(available int) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.added","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"added_count":1,"available_from":"2024-01-01T00:00:00Z"}}', available)
$$;
-- An event, written in both ways
CREATE FUNCTION pg_temp.try(direct_writes text, available int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('gigs_webhooks.direct_writes', direct_writes, false);
	RETURN gigs.ingest_gig_event(pg_temp.body(available), NULL);
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
SELECT pg_temp.try('on', 1) AS direct, pg_temp.try('off', 2) AS statements;

-- A publication needs the identity of accounts, which are updated; the log's rows
-- are inserted only
BEGIN;
CREATE PUBLICATION regress_gigs FOR TABLE gigs.gig_event_log (event_id, received_at, event);
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;
BEGIN;
CREATE PUBLICATION regress_gigs FOR TABLE gigs.gig_event_log;
ALTER TABLE gigs.gig_event_log REPLICA IDENTITY NOTHING;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;
BEGIN;
CREATE PUBLICATION regress_gigs FOR TABLE gigs.gig_account_sync;
ALTER TABLE gigs.gig_account_sync REPLICA IDENTITY NOTHING;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;

-- An identity that PostgreSQL always generates
BEGIN;
ALTER TABLE gigs.gig_event_log ALTER event_id SET GENERATED ALWAYS;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;

-- Columns of other types: events are stored where PostgreSQL converts to them, and
-- an account must be read as it was
BEGIN;
ALTER TABLE gigs.gig_event_log RENAME TO former_log;
CREATE TABLE gigs.gig_event_log (LIKE gigs.former_log INCLUDING ALL);
ALTER TABLE gigs.gig_event_log ALTER name TYPE varchar, ALTER duplicate_of TYPE numeric;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements, pg_temp.try('on', 4) AS again;
ALTER TABLE gigs.gig_account_sync RENAME TO former_accounts;
CREATE TABLE gigs.gig_account_sync (LIKE gigs.former_accounts INCLUDING ALL);
ALTER TABLE gigs.gig_account_sync ALTER days_synced TYPE bigint;
SELECT pg_temp.try('on', 5) AS direct, pg_temp.try('off', 6) AS statements;
ROLLBACK;

-- Null where none can be: of one array that tells redeliveries, of all, and of
-- another column
BEGIN;
ALTER TABLE gigs.gig_account_sync ALTER recent_digests DROP NOT NULL, ALTER recent_event_ids DROP NOT NULL, ALTER recent_received_at DROP NOT NULL, ALTER events DROP NOT NULL;
UPDATE gigs.gig_account_sync SET recent_received_at = NULL;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
UPDATE gigs.gig_account_sync SET recent_digests = NULL, recent_event_ids = NULL;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
UPDATE gigs.gig_account_sync SET recent_digests = '{}', recent_event_ids = '{}', recent_received_at = '{}', events = NULL;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
-- ... which the hint of this error mends
DELETE FROM gigs.gig_account_sync;
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;

-- Attributes of the types that events are parsed to
BEGIN;
ALTER TYPE gigs.gig_event ALTER ATTRIBUTE account_id TYPE text;
SELECT gigs.parse_gig_event(pg_temp.body(1));
ROLLBACK;
BEGIN;
ALTER TYPE gigs.gigs_added ALTER ATTRIBUTE available_from TYPE text;
SELECT gigs.parse_gigs_added(pg_temp.body(1));
ROLLBACK;
BEGIN;
ALTER TYPE gigs.gigs_added DROP ATTRIBUTE available_from;
SELECT gigs.parse_gigs_added(pg_temp.body(1));
ROLLBACK;
BEGIN;
ALTER TYPE gigs.gigs_added ADD ATTRIBUTE more text;
SELECT gigs.parse_gigs_added(pg_temp.body(1));
ROLLBACK;
-- ... are none of ingestion's concern
BEGIN;
ALTER TYPE gigs.gigs_added ALTER ATTRIBUTE available_from TYPE text;
SELECT pg_temp.try('on', 3) AS direct, pg_temp.try('off', 4) AS statements;
ROLLBACK;

-- A log with a body of another type
\set VERBOSITY sqlstate
BEGIN;
ALTER TABLE gigs.gig_event_log RENAME TO former_log;
CREATE TABLE gigs.gig_event_log AS SELECT event_id, received_at, outcome, event, account_id, name, body IS NOT NULL AS body, duplicate_of FROM gigs.former_log;
SAVEPOINT before;
SELECT * FROM gigs.rebuild_gig_sync();
ROLLBACK TO before;
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
ROLLBACK;

DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
