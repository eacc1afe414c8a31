--
-- Installing, moving and dropping the extension
--
\pset format unaligned
\set VERBOSITY terse
SET client_min_messages = warning;

-- What somebody else has put into the schema is not taken over
CREATE ROLE regress_gigs_attacker;
CREATE SCHEMA gigs;
GRANT CREATE, USAGE ON SCHEMA gigs TO regress_gigs_attacker;
SET ROLE regress_gigs_attacker;
CREATE TABLE gigs.gig_subscription_secret (name text, secret text, retired_at timestamptz);
RESET ROLE;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
DROP TABLE gigs.gig_subscription_secret;
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.gig_stalled_after() RETURNS interval LANGUAGE sql AS 'SELECT interval ''0''';
RESET ROLE;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
DROP FUNCTION gigs.gig_stalled_after();
-- ... and operators of its own there are not called
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.trap(oid, integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE FUNCTION gigs.trap(anyenum, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE OPERATOR gigs.= (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.<> (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.= (LEFTARG = anyenum, RIGHTARG = text, FUNCTION = gigs.trap);
RESET ROLE;

-- Default privileges give nobody what only the owner should have
CREATE ROLE regress_gigs_reader;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_gigs_reader;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM regress_gigs_reader;
SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 'v', 'S')
	AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('regress_gigs_reader', c.oid, 'SELECT, USAGE, UPDATE')
		ELSE has_table_privilege('regress_gigs_reader', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END;
SELECT DISTINCT p.proname COLLATE "C" AS function FROM pg_proc AS p
WHERE p.pronamespace = 'gigs'::regnamespace AND p.proname <> 'trap' AND has_function_privilege('regress_gigs_reader', p.oid, 'EXECUTE') ORDER BY 1;

-- It stays in its schema, whose name may change
ALTER EXTENSION gigs_webhooks SET SCHEMA public;
SELECT gigs.create_gig_subscription('n', 'u');
CREATE FUNCTION pg_temp.body(n int) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', n)
$$;
SELECT gigs.ingest_gig_event(pg_temp.body(1), NULL);
ALTER SCHEMA gigs RENAME TO "Renamed Gigs";
SELECT "Renamed Gigs".ingest_gig_event(pg_temp.body(2), NULL);
SELECT state, events FROM "Renamed Gigs".gig_account_sync;
SELECT state, stalled FROM "Renamed Gigs".gig_sync_status;
SELECT all_synced FROM "Renamed Gigs".gig_user_sync;
SELECT count(*) FROM "Renamed Gigs".gig_sync_summary;
-- ... even where somebody else has taken its old name, and waits there
SELECT current_database() AS database \gset
GRANT CREATE ON DATABASE :"database" TO regress_gigs_attacker;
SET ROLE regress_gigs_attacker;
CREATE SCHEMA gigs;
CREATE FUNCTION gigs.trap() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
SELECT format('CREATE FUNCTION gigs.%I(%s) RETURNS %s LANGUAGE sql AS %L', name, arguments, result, 'SELECT gigs.trap(); SELECT NULL::' || result)
FROM (VALUES ('gig_become_owner', '', 'text'), ('add_gig_secret', 'text, text', 'text'), ('gig_dedupe_window', '', 'interval'),
	('parse_logged_gig_event', 'bytea', 'bytea'), ('ingest_gig_events', 'bytea[], text[]', 'bytea')) AS f (name, arguments, result) \gexec
RESET ROLE;
SELECT format('CREATE TABLE gigs.%I (LIKE "Renamed Gigs".%1$I INCLUDING ALL)', name), format('ALTER TABLE gigs.%I OWNER TO regress_gigs_attacker', name)
FROM (VALUES ('gig_subscription'), ('gig_subscription_secret'), ('gig_event_log'), ('gig_delivery')) AS t (name) \gexec
SELECT "Renamed Gigs".create_gig_subscription('signed', 'u', 'one');
SELECT "Renamed Gigs".add_gig_secret('signed', 'two');
SELECT "Renamed Gigs".retire_gig_secret('signed', 'one');
SELECT "Renamed Gigs".gig_subscription_request('signed');
SELECT "Renamed Gigs".drop_gig_subscription('signed');
SELECT event, events FROM "Renamed Gigs".gig_event_counts('36500 days', '-infinity', 'infinity');
SELECT events_pruned FROM "Renamed Gigs".prune_gig_events('1 day');
CREATE TABLE inbox (id int, body text, signature text, outcome text, error text);
INSERT INTO inbox VALUES (1, pg_temp.body(3));
CALL "Renamed Gigs".drain_gig_inbox('inbox');
SELECT outcome FROM inbox;
DROP TABLE inbox;
SELECT (SELECT count(*) FROM gigs.gig_subscription) + (SELECT count(*) FROM gigs.gig_subscription_secret) AS taken;
REVOKE CREATE ON DATABASE :"database" FROM regress_gigs_attacker;
DROP SCHEMA gigs CASCADE;

-- Dropped and created again in one session: nothing of it is remembered
DROP EXTENSION gigs_webhooks;
CREATE EXTENSION gigs_webhooks SCHEMA "Renamed Gigs";
SELECT "Renamed Gigs".ingest_gig_event(pg_temp.body(1), NULL);
SELECT "Renamed Gigs".create_gig_subscription('n', 'u');
SELECT "Renamed Gigs".ingest_gig_event(pg_temp.body(1), NULL);
SELECT state, events FROM "Renamed Gigs".gig_account_sync;

DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Renamed Gigs" CASCADE;
DROP ROLE regress_gigs_attacker;
DROP ROLE regress_gigs_reader;
