--
-- Installing and dropping the extension
--
\pset format unaligned
\set VERBOSITY terse
SET client_min_messages = warning;

-- Objects of another role in the schema are not taken over
CREATE ROLE regress_gigs_attacker;
CREATE SCHEMA gigs;
GRANT CREATE, USAGE ON SCHEMA gigs TO regress_gigs_attacker;
SET ROLE regress_gigs_attacker;
CREATE TABLE gigs.gig_subscription (name text, secrets text[]);
RESET ROLE;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
DROP TABLE gigs.gig_subscription;
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.gig_stalled_after() RETURNS interval LANGUAGE sql AS 'SELECT interval ''0''';
RESET ROLE;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
DROP FUNCTION gigs.gig_stalled_after();
-- ... whatever object has a name of ours: each stops the installation, with an error
-- that names it, and keeps its owner
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
	AND NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) AS a (oid) JOIN pg_type AS t USING (oid) WHERE t.typnamespace = p.pronamespace)
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
	('CREATE PROCEDURE gigs.drain_gig_inbox(regclass, integer, name, name, name, name, name, name, bigint, bigint) LANGUAGE sql AS '''''),
	('CREATE AGGREGATE gigs.parse_gig_event(bytea) (SFUNC = byteacat, STYPE = bytea)'),
	('CREATE FUNCTION gigs.gig_stalled_after(n int DEFAULT 1) RETURNS interval LANGUAGE sql AS ''SELECT NULL::interval''')
) AS v (statement);
-- ... functions that are better matches for calls of ours are no obstacle, and not called
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.better() RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
SELECT format('CREATE FUNCTION gigs.%I(%s) RETURNS %s LANGUAGE sql AS %L', name, arguments, result, 'SELECT gigs.better(); SELECT NULL::' || result) FROM (VALUES
	('gig_stalled_after', 'VARIADIC text[]', 'interval'), ('gig_dedupe_window', 'VARIADIC text[]', 'interval'),
	('parse_logged_gig_event', 'anyenum, anyelement', 'text'), ('ingest_gig_events', 'anyarray, anyarray', 'text'),
	('now', '', 'timestamptz'), ('count', '', 'bigint'), ('clock_timestamp', '', 'timestamptz'), ('format', 'text, text', 'text'), ('quote_ident', 'name', 'text')) AS f (name, arguments, result) \gexec
RESET ROLE;
-- ... nor are operators there
SET ROLE regress_gigs_attacker;
CREATE FUNCTION gigs.trap(oid, integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE FUNCTION gigs.trap(anyenum, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''attacker called by %'', current_user; END';
CREATE OPERATOR gigs.= (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.<> (LEFTARG = oid, RIGHTARG = integer, FUNCTION = gigs.trap);
CREATE OPERATOR gigs.= (LEFTARG = anyenum, RIGHTARG = text, FUNCTION = gigs.trap);
RESET ROLE;

-- ... nor are types of the session used in place of PostgreSQL's
CREATE DOMAIN pg_temp.text AS int;
CREATE DOMAIN pg_temp.bytea AS int;
CREATE DOMAIN pg_temp.uuid AS int;
CREATE DOMAIN pg_temp.jsonb AS int;
CREATE DOMAIN pg_temp.timestamptz AS int;
CREATE DOMAIN pg_temp.regclass AS int;
CREATE TABLE pg_temp.pg_depend (classid oid, objid oid, refclassid oid, refobjid oid);
CREATE TABLE pg_temp.gig_subscription (name int);
SET search_path = pg_temp, gigs, pg_catalog;

-- Default privileges do not apply to what is for the owner only
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

-- ... no function of ours calls the others later, either
SELECT gigs.create_gig_subscription('better', 'u', 's');
SELECT gigs.drop_gig_subscription('better');
SELECT gigs.prune_gig_events('1 day');
SELECT count(*) FROM gigs.reconcile_gig_accounts('{"id":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","availability":{"gigs":{"status":"in_progress","available_count":1}}}');
SELECT count(*) FROM gigs.gig_event_counts('1 day', '-infinity', 'infinity');
SELECT count(*) FROM gigs.gig_event_history;
SELECT count(*) FROM gigs.gig_sync_status;
CREATE TABLE inbox (id int, body text, signature text, outcome text, error text);
INSERT INTO inbox VALUES (1, '{}');
CALL gigs.drain_gig_inbox('inbox');
DROP TABLE inbox;

-- It stays in its schema
ALTER EXTENSION gigs_webhooks SET SCHEMA public;
SELECT gigs.create_gig_subscription('n', 'u');
CREATE FUNCTION pg_temp.body(n int) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', n)
$$;
SELECT gigs.ingest_gig_event(pg_temp.body(1), NULL);
-- ... of any name
CREATE SCHEMA "Some Gigs, 100 %s (%I)";

-- Nothing is remembered of an extension that is dropped and created again
DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs CASCADE;
CREATE EXTENSION gigs_webhooks SCHEMA "Some Gigs, 100 %s (%I)";
SELECT "Some Gigs, 100 %s (%I)".ingest_gig_event(pg_temp.body(1), NULL);
SELECT "Some Gigs, 100 %s (%I)".create_gig_subscription('n', 'u');
SELECT "Some Gigs, 100 %s (%I)".ingest_gig_event(pg_temp.body(1), NULL);
SELECT state, events FROM "Some Gigs, 100 %s (%I)".gig_account_sync;
CREATE ROLE regress_gigs_receiver;
SELECT "Some Gigs, 100 %s (%I)".grant_gig_receiver('regress_gigs_receiver');
SELECT "Some Gigs, 100 %s (%I)".grant_gig_consumer('regress_gigs_receiver');
SET ROLE regress_gigs_receiver;
SELECT "Some Gigs, 100 %s (%I)".ingest_gig_event(pg_temp.body(2), NULL);
RESET ROLE;
SELECT "Some Gigs, 100 %s (%I)".create_gig_consumer('c');
SELECT count(*) FROM "Some Gigs, 100 %s (%I)".read_gig_work('c');
CREATE TABLE inbox (id int, body text, signature text, outcome text, error text);
INSERT INTO inbox VALUES (1, pg_temp.body(3));
CALL "Some Gigs, 100 %s (%I)".drain_gig_inbox('inbox');
SELECT * FROM "Some Gigs, 100 %s (%I)".retry_gig_quarantine();
SELECT * FROM "Some Gigs, 100 %s (%I)".rebuild_gig_sync();
SELECT * FROM "Some Gigs, 100 %s (%I)".prune_gig_events('4 days');
SELECT events FROM "Some Gigs, 100 %s (%I)".gig_event_counts('36500 days', '-infinity', 'infinity');
SELECT state, stalled FROM "Some Gigs, 100 %s (%I)".gig_sync_status;
DROP TABLE inbox;
DROP OWNED BY regress_gigs_receiver;
DROP ROLE regress_gigs_receiver;

-- Functions for everybody are, even where default privileges grant nothing
DROP EXTENSION gigs_webhooks;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE EXTENSION gigs_webhooks SCHEMA "Some Gigs, 100 %s (%I)";
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
SELECT count(*), count(DISTINCT p.proname) AS names FROM pg_proc AS p
WHERE p.pronamespace = '"Some Gigs, 100 %s (%I)"'::regnamespace AND p.proowner <> 'regress_gigs_attacker'::regrole AND has_function_privilege('public', p.oid, 'EXECUTE');

DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Some Gigs, 100 %s (%I)";
DROP ROLE regress_gigs_attacker;
DROP ROLE regress_gigs_reader;

-- Only in a UTF8 database
SELECT current_database() AS database \gset
CREATE DATABASE regress_gigs_latin1 TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C';
\c regress_gigs_latin1
\set VERBOSITY default
\set SHOW_CONTEXT never
CREATE EXTENSION gigs_webhooks;
\c :database
DROP DATABASE regress_gigs_latin1;
