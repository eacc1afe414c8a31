--
-- Privileges: what a role may do, and as which role it is done
--
CREATE SCHEMA gigs_private;
CREATE EXTENSION gigs_webhooks SCHEMA gigs_private;
SET search_path = pg_catalog;
SET client_min_messages = warning;
\pset format unaligned

SELECT gigs_private.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT gigs_private.create_gig_subscription('open', 'https://example.com/hooks');

-- Helpers
CREATE SCHEMA test;
GRANT USAGE ON SCHEMA test TO PUBLIC;
CREATE FUNCTION test.body(account int, available int, gigs text DEFAULT '')
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.updated","name":"open","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"updated_count":1,"updated_gigs":[%s]}}', account, available, gigs)
$$;
CREATE FUNCTION test.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE statement INTO result;
	RETURN coalesce(result, 'done');
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
-- All objects of the extension, from the catalogs
CREATE VIEW test.relation AS
SELECT c.oid, c.relname AS name, c.relkind AS kind
FROM pg_depend AS d JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks') AND c.relkind IN ('r', 'v', 'S')
UNION SELECT c.oid, c.relname, c.relkind FROM pg_class AS c WHERE c.relnamespace = 'gigs_private'::regnamespace AND c.relkind IN ('r', 'v', 'S');
CREATE VIEW test.routine AS
SELECT p.oid, p.proname AS name, p.oid::regprocedure::text AS signature, p.proacl AS acl, p.provolatile AS volatile
FROM pg_depend AS d JOIN pg_proc AS p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks');
GRANT SELECT ON test.relation, test.routine TO PUBLIC;
SELECT kind, count(*) FROM test.relation GROUP BY kind ORDER BY kind;

-- SECURITY DEFINER functions pin their search_path, and so does the drain
SELECT r.name, p.proconfig FROM test.routine AS r JOIN pg_proc AS p USING (oid)
WHERE p.prosecdef AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false);

-- PUBLIC has the functions that depend on nothing but their arguments, and two
-- settings that views and functions look up; nothing else, and no table
SELECT name, string_agg(DISTINCT volatile::text, '') AS volatile, count(*) FROM test.routine
WHERE has_function_privilege('public', oid, 'EXECUTE') GROUP BY name ORDER BY name COLLATE "C";
SELECT name FROM test.relation
WHERE CASE kind
	WHEN 'S' THEN has_sequence_privilege('public', oid, 'SELECT, USAGE, UPDATE')
	ELSE has_table_privilege('public', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
		OR has_any_column_privilege('public', oid, 'SELECT, INSERT, UPDATE, REFERENCES')
END;

-- A receiver, by grant_gig_receiver(), can ingest: by prepared statements without
-- casts, too, for which both overloads must be granted
CREATE ROLE regress_gigs_receiver;
SET ROLE regress_gigs_receiver;
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(1, 1)));
RESET ROLE;
GRANT USAGE ON SCHEMA gigs_private TO regress_gigs_receiver;
SET ROLE regress_gigs_receiver;
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(1, 1)));
RESET ROLE;
REVOKE USAGE ON SCHEMA gigs_private FROM regress_gigs_receiver;
SELECT gigs_private.grant_gig_receiver('regress_gigs_receiver');
SET ROLE regress_gigs_receiver;
PREPARE ingest AS SELECT gigs_private.ingest_gig_event($1, $2);
PREPARE ingest_bytea (bytea, text) AS SELECT gigs_private.ingest_gig_event($1, $2);
PREPARE try_ingest AS SELECT outcome FROM gigs_private.try_ingest_gig_event($1, $2);
PREPARE ingest_many AS SELECT outcome FROM gigs_private.ingest_gig_events($1, $2);
SELECT name, parameter_types FROM pg_prepared_statements ORDER BY name;
SELECT test.body(1, 1, '"00000000-0000-4000-a000-000000000001"') AS body_1, test.body(1, 2) AS body_2 \gset
EXECUTE ingest (:'body_1', NULL);
EXECUTE ingest_bytea (:'body_1', NULL);
EXECUTE try_ingest (:'body_2', NULL);
EXECUTE ingest_many (ARRAY[:'body_1', :'body_2']::bytea[], NULL);
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, %L)', test.body(1, 1), repeat('0', 128)));
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(1, -1)));
DEALLOCATE ALL;
-- ... and nothing else
SELECT signature FROM test.routine
WHERE has_function_privilege(oid, 'EXECUTE') AND NOT has_function_privilege('public', oid, 'EXECUTE') ORDER BY signature COLLATE "C";
SELECT name FROM test.relation
WHERE CASE kind
	WHEN 'S' THEN has_sequence_privilege(oid, 'SELECT, USAGE, UPDATE')
	ELSE has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
		OR has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES')
END;
-- ... it tries
SELECT name, test.try('SELECT count(*) FROM gigs_private.' || name) AS result FROM test.relation ORDER BY name COLLATE "C";
SELECT name, test.try('DELETE FROM gigs_private.' || name) AS result FROM test.relation WHERE kind = 'r' ORDER BY name COLLATE "C";
SELECT name, test.try('TRUNCATE gigs_private.' || name) AS result FROM test.relation WHERE kind = 'r' ORDER BY name COLLATE "C";
SELECT name, test.try('LOCK gigs_private.' || name) AS result FROM test.relation WHERE kind = 'r' ORDER BY name COLLATE "C";
SELECT test.try('SELECT nextval(''gigs_private.gig_event_log_event_id_seq'')');
SELECT c.call, test.try('SELECT gigs_private.' || c.call) AS result
FROM (VALUES
	('ingest_gig_events(NULL, NULL, NULL)'),
	('ingest_authentic_gig_event(NULL, NULL, NULL)'),
	('reconcile_gig_accounts(''[]'')'),
	('retry_gig_quarantine()'),
	('create_gig_subscription(''mine'', ''u'')'),
	('add_gig_secret(''open'', ''mine'')'),
	('retire_gig_secret(''payroll'', ''s3cret'')'),
	('drop_gig_subscription(''payroll'')'),
	('gig_subscription_request(''payroll'')'),
	('rebuild_gig_sync()'),
	('prune_gig_events(interval ''0'')'),
	('gig_event_counts(interval ''1 day'', now(), now())'),
	('read_gig_work(''c'')'),
	('create_gig_consumer(''c'')'),
	('grant_gig_receiver(''regress_gigs_receiver'')'),
	('grant_gig_consumer(''regress_gigs_receiver'')')
) AS c (call);
CREATE TEMP TABLE bait (body text, signature text, outcome text, error text);
SELECT test.try('CREATE TRIGGER t BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION gigs_private.gig_inbox_ingest()');
SELECT test.try('CREATE TRIGGER t BEFORE INSERT ON bait FOR EACH ROW EXECUTE FUNCTION gigs_private.gig_subscription_changed()');
SELECT test.try('CREATE TABLE gigs_private.mine ()');
-- ... it cannot have events counted twice, or refused
SELECT test.try('SET gigs_webhooks.dedupe_window = 0');
SELECT test.try('SET gigs_webhooks.max_body_size = 1024');
SELECT test.try('SELECT set_config(''gigs_webhooks.dedupe_window'', ''0'', true)');
-- ... what reports show as stalled is a setting for everybody
SET gigs_webhooks.stalled_after = '1h';
SELECT gigs_private.gig_stalled_after() = interval '1 hour' AS own;
RESET gigs_webhooks.stalled_after;
DROP TABLE bait;
RESET ROLE;

-- An error leaves the session as it was: user, search_path and security context
CREATE FUNCTION test.session() RETURNS text LANGUAGE sql AS
	$$SELECT concat_ws(', ', session_user = current_user, current_user = 'regress_gigs_receiver', current_setting('search_path'), current_setting('role'))$$;
SET ROLE regress_gigs_receiver;
SET search_path = 'Some Where', pg_catalog;
SELECT test.session();
\set VERBOSITY terse
SELECT gigs_private.ingest_gig_event(test.body(1, -1), NULL);
SELECT test.session();
BEGIN;
SAVEPOINT s;
SELECT gigs_private.ingest_gig_event(test.body(1, -1), NULL);
ROLLBACK TO s;
SELECT test.session();
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(1, -1))), test.session();
COMMIT;
RESET ROLE;
-- ... also when it is raised while rows are written
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'refused by a trigger, as the owner: %, %', current_user = session_user, current_setting('search_path');
END
$$;
CREATE TRIGGER refuse BEFORE UPDATE ON gigs_private.gig_account_sync FOR EACH ROW WHEN (new.available_count = 15) EXECUTE FUNCTION public.refuse();
SET ROLE regress_gigs_receiver;
SET search_path = 'Some Where', pg_catalog;
SELECT gigs_private.ingest_gig_event(test.body(1, 15), NULL);
SELECT test.session();
BEGIN;
SAVEPOINT s;
SELECT gigs_private.ingest_gig_event(test.body(1, 15), NULL);
ROLLBACK TO s;
SELECT test.session();
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(1, 15))), test.session();
SELECT gigs_private.ingest_gig_event(test.body(1, 3), NULL), test.session();
COMMIT;
SELECT test.session();
\set VERBOSITY default
RESET ROLE;
DROP FUNCTION public.refuse() CASCADE;
-- ... of which nothing is stored
SELECT available_count, events FROM gigs_private.gig_account_sync;

-- Objects with the names of those that the extension uses, in a schema that is first
-- on the search_path, and in pg_temp: calling one of them is an error
CREATE ROLE regress_gigs_operator;
GRANT USAGE ON SCHEMA gigs_private TO regress_gigs_operator;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA gigs_private TO regress_gigs_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA gigs_private TO regress_gigs_operator;
GRANT INSERT ON gigs_private.gig_quarantine TO regress_gigs_operator;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA gigs_private TO regress_gigs_operator;
CREATE SCHEMA attack;
GRANT USAGE, CREATE ON SCHEMA attack TO regress_gigs_operator;
CREATE PROCEDURE test.attack(place text) LANGUAGE plpgsql AS $$
DECLARE
	raise CONSTANT text := 'BEGIN RAISE ''attacker called by %'', current_user; END';
	made record;
BEGIN
	FOR made IN SELECT * FROM (VALUES
		('now', '', 'timestamptz'),
		('clock_timestamp', '', 'timestamptz'),
		('unnest', 'anyarray', 'SETOF anyelement'),
		('unnest', 'uuid[]', 'SETOF uuid'),
		('unnest', 'text[]', 'SETOF text'),
		('format', 'text, text', 'text'),
		('cardinality', 'text[]', 'int'),
		('array_position', 'text[], text', 'int'),
		('jsonb_typeof', 'jsonb', 'text'),
		('to_jsonb', 'text', 'jsonb'),
		('to_jsonb', 'text[]', 'jsonb'),
		('to_timestamp', 'double precision', 'timestamptz'),
		('floor', 'double precision', 'double precision'),
		('floor', 'numeric', 'numeric'),
		('date_part', 'text, interval', 'double precision'),
		('date_part', 'text, timestamptz', 'double precision'),
		('enum_range', 'gigs_private.gig_sync_state', 'gigs_private.gig_sync_state[]'),
		('nextval', 'regclass', 'bigint'),
		('gig_dedupe_window', '', 'interval'),
		('gig_stalled_after', '', 'interval'),
		('parse_logged_gig_event', 'gigs_private.gig_event_kind, bytea', 'gigs_private.gig_event'),
		('parse_gig_account', 'json', 'gigs_private.gig_account'),
		('json_typeof', 'json', 'text'),
		('json_build_array', 'json', 'json'),
		('json_array_elements', 'json', 'SETOF json'),
		('isfinite', 'timestamptz', 'boolean'),
		('add_gig_secret', 'text, text', 'void'),
		('gig_subscription_changed', '', 'trigger'),
		('step', 'bigint', 'bigint'),
		('step', 'bigint, integer', 'bigint'),
		('step', 'timestamptz, timestamptz', 'timestamptz')
	) AS f (name, arguments, result) LOOP
		EXECUTE format('CREATE FUNCTION %s.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', place, made.name, made.arguments, made.result, raise);
	END LOOP;
	EXECUTE format('CREATE AGGREGATE %1$s.count(*) (SFUNC = %1$s.step, STYPE = bigint, INITCOND = 0)', place);
	EXECUTE format('CREATE AGGREGATE %1$s.sum(integer) (SFUNC = %1$s.step, STYPE = bigint, INITCOND = 0)', place);
	EXECUTE format('CREATE AGGREGATE %1$s.max(timestamptz) (SFUNC = %1$s.step, STYPE = timestamptz, INITCOND = infinity)', place);
	EXECUTE format('CREATE AGGREGATE %1$s.min(timestamptz) (SFUNC = %1$s.step, STYPE = timestamptz, INITCOND = infinity)', place);

	FOR made IN SELECT * FROM (VALUES
		('uuid', 'uuid'), ('text', 'text'), ('bytea', 'bytea'), ('bigint', 'bigint'), ('integer', 'integer'), ('timestamptz', 'timestamptz'),
		('interval', 'interval'), ('numeric', 'integer'), ('double precision', 'integer'), ('text[]', 'text[]'),
		('gigs_private.gig_sync_state', 'gigs_private.gig_sync_state')
	) AS t (l, r) LOOP
		EXECUTE format('CREATE FUNCTION %s.compare(%s, %s) RETURNS boolean LANGUAGE plpgsql AS %L', place, made.l, made.r, raise);
		EXECUTE format('CREATE OPERATOR %1$s.= (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
		EXECUTE format('CREATE OPERATOR %1$s.<> (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
		EXECUTE format('CREATE OPERATOR %1$s.< (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
		EXECUTE format('CREATE OPERATOR %1$s.<= (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
		EXECUTE format('CREATE OPERATOR %1$s.> (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
		EXECUTE format('CREATE OPERATOR %1$s.>= (LEFTARG = %2$s, RIGHTARG = %3$s, FUNCTION = %1$s.compare)', place, made.l, made.r);
	END LOOP;
	FOR made IN SELECT * FROM (VALUES
		('-', 'timestamptz', 'interval', 'timestamptz'), ('-', 'timestamptz', 'timestamptz', 'interval'),
		('*', 'double precision', 'double precision', 'double precision'), ('/', 'double precision', 'double precision', 'double precision'),
		('||', 'jsonb', 'jsonb', 'jsonb')
	) AS t (operator, l, r, result) LOOP
		EXECUTE format('CREATE FUNCTION %s.compute_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS %L', place, ascii(made.operator), made.l, made.r, made.result, raise);
		EXECUTE format('CREATE OPERATOR %1$s.%2$s (LEFTARG = %4$s, RIGHTARG = %5$s, FUNCTION = %1$s.compute_%3$s)', place, made.operator, ascii(made.operator), made.l, made.r);
	END LOOP;

	-- tables and views, with what an attacker would like to be read there
	FOR made IN SELECT name FROM test.relation WHERE kind IN ('r', 'v') ORDER BY name LOOP
		EXECUTE format('CREATE TABLE %s.%I (name text, secret text, account_id uuid, event_id bigint, state text)', place, made.name);
		EXECUTE format('INSERT INTO %s.%I VALUES (''payroll'', ''known to the attacker'')', place, made.name);
		EXECUTE format('GRANT ALL ON %s.%I TO PUBLIC', place, made.name);
	END LOOP;
	FOR made IN SELECT * FROM unnest(ARRAY['gig_event_kind', 'gig_sync_state', 'gig_ingest_outcome', 'gig_event', 'gig_account', 'gig_secret']) AS t (name) LOOP
		EXECUTE format('CREATE TYPE %s.%I AS ENUM (''attack'')', place, made.name);
	END LOOP;
	FOR made IN SELECT * FROM unnest(ARRAY['uuid', 'text', 'bytea', 'timestamptz', 'json', 'jsonb']) AS t (name) LOOP
		EXECUTE format('CREATE DOMAIN %s.%I AS int', place, made.name);
	END LOOP;
END
$$;
CREATE TABLE test.hook (body text, signature text, outcome gigs_private.gig_ingest_outcome, error text);
CREATE TRIGGER ingest BEFORE INSERT ON test.hook FOR EACH ROW EXECUTE FUNCTION gigs_private.gig_inbox_ingest();
GRANT SELECT, INSERT ON test.hook TO regress_gigs_operator;
SELECT test.body(2, 1, '"00000000-0000-4000-a000-000000000001"') AS body_1, test.body(2, 2, '"00000000-0000-4000-a000-000000000002"') AS body_2,
	test.body(3, 1, '"00000000-0000-4000-a000-000000000003"') AS body_3, test.body(2, 3) AS body_4 \gset
-- ... in a new session, where nothing has been planned yet
\c -
SET client_min_messages = warning;
\set VERBOSITY terse
SET ROLE regress_gigs_operator;
SET search_path = pg_catalog;
CALL test.attack('attack');
CALL test.attack('pg_temp');
SET search_path = attack, pg_temp, pg_catalog;
-- ... they work
SELECT now();
SELECT count(*);
SELECT 1 = 1;
SELECT 'x'::text;
SELECT * FROM unnest(ARRAY[1::bigint]);
SELECT secret FROM gig_subscription;
-- ... and the extension does not call them
SELECT gigs_private.ingest_gig_event(:'body_1', NULL);
SELECT gigs_private.ingest_gig_event(:'body_1'::pg_catalog.bytea, NULL);
SELECT outcome, sqlstate FROM gigs_private.try_ingest_gig_event(:'body_2', NULL);
SELECT outcome, sqlstate FROM gigs_private.ingest_gig_events(ARRAY[:'body_2', :'body_3', '{}']::pg_catalog.bytea[], NULL);
INSERT INTO test.hook (body) VALUES (:'body_4') RETURNING outcome, error;
SELECT * FROM gigs_private.rebuild_gig_sync();
SELECT * FROM gigs_private.rebuild_gig_sync('00000000-0000-4000-8000-000000000002');
SELECT gigs_private.create_gig_subscription('new', 'https://example.com/new', 'one', '{gigs.added}', '{"a": 1}');
SELECT gigs_private.add_gig_secret('new', 'two');
SELECT gigs_private.retire_gig_secret('new', 'one');
SELECT gigs_private.gig_subscription_request('new');
SELECT gigs_private.gig_subscription_request('payroll');
SELECT gigs_private.drop_gig_subscription('new');
INSERT INTO gigs_private.gig_quarantine (received_at, name, sqlstate, message, body) VALUES ('2023-01-01', 'open', '0A000', '', :'body_4'::pg_catalog.bytea), ('2023-01-01', 'open', '0A000', '', '{}');
SELECT * FROM gigs_private.retry_gig_quarantine();
SELECT gigs_private.create_gig_consumer('new', parts => 2);
SELECT pg_catalog.count(w) OPERATOR(pg_catalog.>) 0 AS some, pg_catalog.max(w.batch) AS batch FROM gigs_private.read_gig_work('new') AS w \gset
SELECT gigs_private.retry_gig_work(:batch, '00000000-0000-4000-8000-000000000002', 'later');
SELECT gigs_private.finish_gig_work(:batch);
SELECT gigs_private.revive_gig_work('new');
SELECT gigs_private.gig_account_fetched('new', '00000000-0000-4000-8000-000000000002');
SELECT consumer, parts FROM gigs_private.gig_consumer_status;
SELECT gigs_private.seek_gig_consumer('new', 0);
SELECT gigs_private.drop_gig_consumer('new');
SELECT pg_catalog.count(d) FROM gigs_private.gig_recent_delivery AS d;
SELECT account_id, reason FROM gigs_private.reconcile_gig_accounts(('{"id":"00000000-0000-4000-8000-000000000007","user":"00000000-0000-4000-9000-000000000001","availability":{"gigs":{"status":"synced","available_count":1}}}'::pg_catalog.json));
SELECT * FROM gigs_private.prune_gig_events('1 day');
SELECT event, events, gigs FROM gigs_private.gig_event_counts('36500 days', '-infinity', 'infinity');
SELECT account_id, state, days_covered, last_event, stalled FROM gigs_private.gig_sync_status ORDER BY account_id;
SELECT accounts, fully_synced, all_synced, available_count FROM gigs_private.gig_user_sync;
SELECT state, accounts, gigs FROM gigs_private.gig_sync_summary ORDER BY state;
SELECT event, account_id, available_count FROM gigs_private.gig_event_history ORDER BY event_id;
\set VERBOSITY default
SET search_path = pg_catalog;
SELECT right(account_id::pg_catalog.text, 1) AS account, available_count, events, duplicates FROM gigs_private.gig_account_sync ORDER BY 1;
SELECT * FROM attack.gig_event_log;
RESET ROLE;
DROP OWNED BY regress_gigs_operator CASCADE;

-- Domains, defaults, generated columns and triggers of an inbox are its owner's
-- code: they run as the role that inserts
GRANT USAGE ON SCHEMA gigs_private TO regress_gigs_operator;
GRANT EXECUTE ON FUNCTION gigs_private.gig_inbox_ingest() TO regress_gigs_operator;
CREATE SCHEMA app AUTHORIZATION regress_gigs_operator;
SET ROLE regress_gigs_operator;
CREATE TABLE app.seen (what text COLLATE "C", who name, search_path text);
CREATE FUNCTION app.see(what text) RETURNS boolean LANGUAGE sql AS $$
	INSERT INTO app.seen VALUES (what, current_user, current_setting('search_path'));
	SELECT true
$$;
CREATE DOMAIN app.payload AS text CHECK (app.see('body'));
CREATE DOMAIN app.outcome AS gigs_private.gig_ingest_outcome CHECK (app.see('outcome ' || VALUE));
CREATE DOMAIN app.error AS text CHECK (app.see('error ' || left(VALUE, 5)));
CREATE FUNCTION app.see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM app.see(concat_ws(' ', tg_when, tg_op, 'trigger')); RETURN new; END $$;
CREATE TABLE app.hook (body app.payload, signature text, outcome app.outcome, error app.error, seen boolean DEFAULT app.see('default'), CHECK (app.see('constraint')));
CREATE TRIGGER a_first BEFORE INSERT ON app.hook FOR EACH ROW EXECUTE FUNCTION app.see();
CREATE TRIGGER last AFTER INSERT ON app.hook FOR EACH ROW EXECUTE FUNCTION app.see();
CREATE TRIGGER ingest BEFORE INSERT ON app.hook FOR EACH ROW EXECUTE FUNCTION gigs_private.gig_inbox_ingest();
GRANT USAGE ON SCHEMA app TO regress_gigs_receiver;
GRANT INSERT ON app.hook, app.seen TO regress_gigs_receiver;
SET ROLE regress_gigs_receiver;
SET search_path = 'Some Where', pg_catalog;
INSERT INTO app.hook (body) VALUES (test.body(4, 1)), ('{}');
RESET ROLE;
SET search_path = pg_catalog;
SELECT DISTINCT * FROM app.seen WHERE what IS NOT NULL ORDER BY what;
SELECT events FROM gigs_private.gig_account_sync WHERE right(account_id::text, 1) = '4';
DROP OWNED BY regress_gigs_operator CASCADE;

-- Given to another owner as a whole, the extension works as that role.  Its triggers
-- see a search_path that has nothing of the caller's.
CREATE ROLE regress_gigs_owner;
GRANT USAGE, CREATE ON SCHEMA gigs_private TO regress_gigs_owner;
DO $$
DECLARE
	member record;
BEGIN
	FOR member IN
		SELECT CASE o.type WHEN 'composite type' THEN 'type' WHEN 'function' THEN 'routine' WHEN 'procedure' THEN 'routine' ELSE o.type END AS type, o.identity
		FROM pg_depend AS d, pg_identify_object(d.classid, d.objid, 0) AS o
		WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'gigs_webhooks') AND d.deptype = 'e'
			AND o.type IN ('table', 'view', 'function', 'procedure', 'type', 'composite type')
			-- array types go along with their elements'
			AND NOT EXISTS (SELECT FROM pg_depend AS i WHERE (i.classid, i.objid) = (d.classid, d.objid) AND i.deptype IN ('a', 'i'))
	LOOP
		EXECUTE format('ALTER %s %s OWNER TO regress_gigs_owner', member.type, member.identity);
	END LOOP;
END
$$;
SELECT count(*) AS left_behind FROM pg_class AS c WHERE c.relnamespace = 'gigs_private'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND c.relowner <> 'regress_gigs_owner'::regrole;
SELECT count(*) AS left_behind FROM test.routine AS r JOIN pg_proc AS p USING (oid) WHERE p.proowner <> 'regress_gigs_owner'::regrole;
SET ROLE regress_gigs_owner;
CREATE TABLE gigs_private.seen (what text COLLATE "C", who name, search_path text);
CREATE FUNCTION gigs_private.see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO gigs_private.seen VALUES (concat_ws(' ', tg_op, tg_table_name), current_user, current_setting('search_path'));
	RETURN NULL;
END
$$;
SELECT format('CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON gigs_private.%I FOR EACH ROW EXECUTE FUNCTION gigs_private.see()', name) FROM test.relation WHERE kind = 'r' AND name LIKE 'gig%' ORDER BY name COLLATE "C" \gexec
RESET ROLE;
CREATE PROCEDURE test.watch(call text) LANGUAGE plpgsql AS $$
DECLARE
	result text := test.try('SELECT gigs_private.' || call);
	seen record;
BEGIN
	RAISE WARNING '% -> %', split_part(call, '{', 1), result;
	FOR seen IN SELECT DISTINCT * FROM gigs_private.seen ORDER BY what LOOP
		RAISE WARNING '    % as %, search_path %', seen.what, seen.who, seen.search_path;
	END LOOP;
	DELETE FROM gigs_private.seen;
END
$$;
\set VERBOSITY terse
SET search_path = 'Some Where', pg_catalog;
CALL test.watch(format('ingest_gig_event(%L, NULL)', test.body(5, 1)));
CALL test.watch(format('ingest_gig_event(%L, NULL)', test.body(5, 1)));
CALL test.watch(format('ingest_gig_events(ARRAY[%L, %L]::bytea[], NULL)', test.body(5, 2), test.body(6, 2)));
CALL test.watch(format('rebuild_gig_sync()'));
CALL test.watch($$create_gig_subscription('theirs', 'https://example.com/theirs', 'one')$$);
CALL test.watch($$add_gig_secret('theirs', 'two')$$);
CALL test.watch($$retire_gig_secret('theirs', 'one')$$);
CALL test.watch($$gig_subscription_request('theirs') ->> 'secret'$$);
CALL test.watch(format('ingest_gig_event(%L, %L)', replace(test.body(5, -1), '"open"', '"theirs"'), gigs_private.sign_gig_event(replace(test.body(5, -1), '"open"', '"theirs"'), 'two')));
CALL test.watch($$retry_gig_quarantine()$$);
CALL test.watch($$reconcile_gig_accounts('{"id":"00000000-0000-4000-8000-000000000008","user":"00000000-0000-4000-9000-000000000001","availability":{"gigs":{"status":"synced","available_count":1}}}') IS NOT NULL$$);
CALL test.watch($$drop_gig_subscription('theirs')$$);
CALL test.watch($$gig_event_counts('36500 days', '-infinity', 'infinity') IS NOT NULL$$);
CALL test.watch($$create_gig_consumer('theirs')$$);
CALL test.watch($$drop_gig_consumer('theirs')$$);
SET gigs_webhooks.dedupe_window = 0;
CALL test.watch($$prune_gig_events('0') IS NULL$$);
RESET gigs_webhooks.dedupe_window;
SET search_path = pg_catalog;
\set VERBOSITY default
-- ... whose triggers cannot get back to the role of the caller
SET ROLE regress_gigs_owner;
CREATE FUNCTION gigs_private.escape() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	statement text;
BEGIN
	FOREACH statement IN ARRAY ARRAY['RESET ROLE', 'SET ROLE NONE', 'SET LOCAL ROLE NONE', 'SET SESSION AUTHORIZATION DEFAULT', 'RESET SESSION AUTHORIZATION',
		'SELECT set_config(''role'', ''none'', false)', 'DECLARE later CURSOR WITH HOLD FOR SELECT 1', 'CREATE TEMP TABLE shadow (n int)'] LOOP
		BEGIN
			EXECUTE statement;
			RAISE WARNING '% in %: %', statement, tg_table_name, current_user;
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE WARNING '% in %: % %', statement, tg_table_name, current_user, sqlerrm;
		END;
	END LOOP;
	RETURN NULL;
END
$$;
CREATE TRIGGER escape AFTER UPDATE ON gigs_private.gig_account_sync FOR EACH ROW EXECUTE FUNCTION gigs_private.escape();
RESET ROLE;
\set VERBOSITY terse
SELECT gigs_private.ingest_gig_event(test.body(5, 4), NULL);
\set VERBOSITY default
SELECT current_user = session_user AS same_user;
DROP FUNCTION gigs_private.escape() CASCADE;
-- ... which does not drain an inbox of a role that is no superuser, because the
-- inbox's triggers would run as the extension's owner
CREATE TABLE test.inbox (id int, body text, signature text, outcome text, error text);
INSERT INTO test.inbox (id, body) VALUES (1, 'junk');
GRANT SELECT, UPDATE ON test.inbox TO regress_gigs_owner;
ALTER TABLE test.inbox OWNER TO regress_gigs_receiver;
SET ROLE regress_gigs_owner;
\set SHOW_CONTEXT never
CALL gigs_private.drain_gig_inbox('test.inbox');
RESET ROLE;
ALTER TABLE test.inbox OWNER TO CURRENT_USER;
SET ROLE regress_gigs_owner;
CALL gigs_private.drain_gig_inbox('test.inbox');
\set SHOW_CONTEXT errors
RESET ROLE;
-- ... what the owner may not do is not done
REVOKE INSERT ON gigs_private.gig_event_log FROM regress_gigs_owner;
SET ROLE regress_gigs_receiver;
SELECT test.try(format('SELECT gigs_private.ingest_gig_event(%L, NULL)', test.body(5, 8)));
SELECT test.session();
RESET ROLE;

-- A setting for superusers that another role has set before the module is loaded is
-- not used
\c -
SET client_min_messages = error;
SET ROLE regress_gigs_receiver;
DO $$
BEGIN
	SET gigs_webhooks.dedupe_window = 0;
	SET gigs_webhooks.max_body_size = 1024;
EXCEPTION WHEN insufficient_privilege THEN
	NULL;
END
$$;
SELECT gigs_private.gig_dedupe_window() = interval '72 hours' AS kept;
SHOW gigs_webhooks.dedupe_window;
SHOW gigs_webhooks.max_body_size;
RESET ROLE;

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs_private, attack, test CASCADE;
DROP ROLE regress_gigs_receiver, regress_gigs_operator, regress_gigs_owner;
RESET search_path;
