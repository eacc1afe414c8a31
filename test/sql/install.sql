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
-- ... whatever it is that has one of our names: each stops the installation, with
-- an error that tells it, and keeps its owner
CREATE FUNCTION pg_temp.squat(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE regress_gigs_attacker;
	EXECUTE statement;
	RESET ROLE;
	EXECUTE 'CREATE EXTENSION gigs_webhooks SCHEMA gigs';
	RETURN 'TAKEN OVER';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
CREATE TEMP TABLE ours AS
SELECT c.relkind::text AS kind, c.relname::text AS name, NULL AS arguments FROM pg_class AS c WHERE c.relnamespace = 'gigs'::regnamespace
UNION ALL SELECT 'f', p.proname, oidvectortypes(p.proargtypes) FROM pg_proc AS p WHERE p.pronamespace = 'gigs'::regnamespace AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
UNION ALL SELECT 't', t.typname, NULL FROM pg_type AS t WHERE t.typnamespace = 'gigs'::regnamespace AND t.typelem = 0;
DROP EXTENSION gigs_webhooks;
SELECT kind, count(*) > 0 AS tried, count(*) FILTER (WHERE NOT stopped) AS not_stopped, string_agg(name || ': ' || result, E'\n') FILTER (WHERE NOT stopped) AS by
FROM (
	SELECT o.kind, o.name, pg_temp.squat(CASE o.kind
		WHEN 'S' THEN format('CREATE SEQUENCE gigs.%I', o.name)
		WHEN 'v' THEN format('CREATE VIEW gigs.%I AS SELECT 1', o.name)
		WHEN 'f' THEN format('CREATE FUNCTION gigs.%I(%s) RETURNS text LANGUAGE sql AS ''SELECT NULL::text''', o.name, o.arguments)
		WHEN 't' THEN format(d.statement, o.name)
		ELSE format('CREATE TABLE gigs.%I (name text, secret text)', o.name)
	END) AS result
	FROM ours AS o
	LEFT JOIN (VALUES ('CREATE DOMAIN gigs.%I AS text'), ('CREATE TYPE gigs.%I AS ENUM (''gigs.added'')'), ('CREATE TYPE gigs.%I AS (name text)'), ('CREATE TYPE gigs.%I AS RANGE (subtype = int)')) AS d (statement)
		ON o.kind = 't' AND (d.statement LIKE 'CREATE DOMAIN %' OR o.name = 'gig_event')
) AS s, LATERAL (SELECT result ~ '^(42(P07|710|723): .* already exists|55000: .* is not a member of the extension)') AS r (stopped)
GROUP BY kind ORDER BY kind COLLATE "C";
SELECT pg_temp.squat(statement) FROM (VALUES
	('CREATE FUNCTION gigs.gig_subscription_changed() RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END'''),
	('CREATE FUNCTION gigs.gig_inbox_ingest() RETURNS trigger LANGUAGE plpgsql AS ''BEGIN RETURN NULL; END'''),
	('CREATE PROCEDURE gigs.drain_gig_inbox(regclass, integer, name, name, name, name, name, bigint, bigint) LANGUAGE sql AS '''''),
	('CREATE AGGREGATE gigs.parse_gig_event(bytea) (SFUNC = byteacat, STYPE = bytea)'),
	('CREATE FUNCTION gigs.gig_stalled_after(n int DEFAULT 1) RETURNS interval LANGUAGE sql AS ''SELECT NULL::interval''')
) AS v (statement);
-- ... while what merely fits our calls, or better, is let be, and not called
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.better() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
SELECT format('CREATE FUNCTION gigs.%I(%s) RETURNS %s LANGUAGE sql AS %L', name, arguments, result, 'SELECT gigs.better(); SELECT NULL::' || result) FROM (VALUES
	('gig_stalled_after', 'VARIADIC text[]', 'interval'), ('gig_dedupe_window', 'VARIADIC text[]', 'interval'),
	('parse_logged_gig_event', 'anyelement', 'text'), ('ingest_gig_events', 'anyarray, anyarray', 'text'),
	('now', '', 'timestamptz'), ('count', '', 'bigint'), ('clock_timestamp', '', 'timestamptz'), ('format', 'text, text', 'text'), ('quote_ident', 'name', 'text')) AS f (name, arguments, result) \gexec
RESET ROLE;
-- ... and operators of its own there are not called
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.trap(oid, integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE FUNCTION gigs.trap(anyenum, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE OPERATOR gigs.= (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.<> (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.= (LEFTARG = anyenum, RIGHTARG = text, FUNCTION = gigs.trap);
RESET ROLE;

-- ... nor do types of the session's stand in for PostgreSQL's
CREATE DOMAIN pg_temp.text AS int;
CREATE DOMAIN pg_temp.bytea AS int;
CREATE DOMAIN pg_temp.uuid AS int;
CREATE DOMAIN pg_temp.jsonb AS int;
CREATE DOMAIN pg_temp.timestamptz AS int;
CREATE DOMAIN pg_temp.regclass AS int;
CREATE TABLE pg_temp.pg_depend (classid oid, objid oid, refclassid oid, refobjid oid);
CREATE TABLE pg_temp.gig_subscription (name int);
SET search_path = pg_temp, gigs, pg_catalog;

-- Default privileges give nobody what only the owner should have
CREATE ROLE regress_gigs_reader;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_gigs_reader;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
RESET search_path;
SELECT DISTINCT t.typname COLLATE "C" AS type FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relnamespace = 'gigs'::regnamespace AND t.typnamespace <> 'gigs'::regnamespace AND t.typnamespace <> 'pg_catalog'::regnamespace;
SELECT count(*) AS strange FROM pg_proc AS p, unnest(p.proargtypes::oid[] || p.prorettype || p.proallargtypes) AS u (type) JOIN pg_type AS t ON t.oid = u.type
WHERE p.pronamespace = 'gigs'::regnamespace AND p.proowner = (SELECT extowner FROM pg_extension WHERE extname = 'gigs_webhooks') AND t.typnamespace NOT IN ('gigs'::regnamespace, 'pg_catalog'::regnamespace);
DROP TABLE pg_temp.pg_depend, pg_temp.gig_subscription;
DROP DOMAIN pg_temp.text, pg_temp.bytea, pg_temp.uuid, pg_temp.jsonb, pg_temp.timestamptz, pg_temp.regclass;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM regress_gigs_reader, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM regress_gigs_reader;
SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 'v', 'S')
	AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('regress_gigs_reader', c.oid, 'SELECT, USAGE, UPDATE')
		ELSE has_table_privilege('regress_gigs_reader', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END;
SELECT DISTINCT p.proname COLLATE "C" AS function FROM pg_proc AS p
WHERE p.pronamespace = 'gigs'::regnamespace AND p.proowner <> 'regress_gigs_attacker'::regrole AND has_function_privilege('regress_gigs_reader', p.oid, 'EXECUTE') ORDER BY 1;

-- ... not by any of ours, then or later
SELECT gigs.create_gig_subscription('better', 'u', 's');
SELECT gigs.drop_gig_subscription('better');
SELECT gigs.prune_gig_events('1 day');
SELECT count(*) FROM gigs.gig_event_counts('1 day', '-infinity', 'infinity');
SELECT count(*) FROM gigs.gig_event_history;
SELECT count(*) FROM gigs.gig_sync_status;
CREATE TABLE inbox (id int, body text, signature text, outcome text, error text);
INSERT INTO inbox VALUES (1, '{}');
CALL gigs.drain_gig_inbox('inbox');
DROP TABLE inbox;

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
FROM (VALUES ('add_gig_secret', 'text, text', 'text'), ('gig_dedupe_window', '', 'interval'),
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

-- What is for anyone is, even where functions are for nobody by default
DROP EXTENSION gigs_webhooks;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE EXTENSION gigs_webhooks SCHEMA "Renamed Gigs";
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
SELECT count(*), count(DISTINCT p.proname) AS names FROM pg_proc AS p
WHERE p.pronamespace = '"Renamed Gigs"'::regnamespace AND p.proowner <> 'regress_gigs_attacker'::regrole AND has_function_privilege('public', p.oid, 'EXECUTE');

DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Renamed Gigs" CASCADE;
DROP ROLE regress_gigs_attacker;
DROP ROLE regress_gigs_reader;
