--
-- What the owner has put on the tables (triggers, policies, indexes) runs in the
-- middle of a call, and may call the extension again, or change the tables
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
\pset format unaligned
\set SHOW_CONTEXT never
\set VERBOSITY terse
SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks');

-- row security is not for superusers
CREATE ROLE regress_gigs_owner;
GRANT CREATE ON DATABASE :DBNAME TO regress_gigs_owner;
GRANT CREATE ON SCHEMA public TO regress_gigs_owner;
ALTER SCHEMA gigs OWNER TO regress_gigs_owner;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA gigs TO regress_gigs_owner;
DO $$
DECLARE
	t name;
BEGIN
	FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'gigs'::regnamespace AND relkind = 'r'
	LOOP
		EXECUTE format('ALTER TABLE gigs.%I OWNER TO regress_gigs_owner', t);
	END LOOP;
END
$$;

CREATE FUNCTION gig_body(account int, n int DEFAULT 1)
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.updated","name":"payroll","data":{"account":"00000000-0000-4000-8000-%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"updated_count":1,"updated_gigs":["00000000-0000-4000-a000-000000000001"]}}',
		lpad(account::text, 12, '0'), n)
$$;
-- does once what the setting says
CREATE FUNCTION act()
RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
	what text := current_setting('test.act', true);
BEGIN
	IF what <> '' THEN
		PERFORM set_config('test.act', '', false);
		EXECUTE what;
	END IF;
	RETURN true;
END
$$;
-- the same as soon as a statement is planned
CREATE FUNCTION act_when_planned(int)
RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN public.act();
END
$$;
CREATE FUNCTION act_before()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM public.act();
	RETURN new;
END
$$;
CREATE VIEW sums AS
	SELECT right(account_id::text, 4) AS account, events, duplicates,
		(SELECT count(*) FROM gigs.gig_event_log AS l WHERE l.account_id = a.account_id) AS logged,
		(SELECT sum(d.deliveries) - count(*) FROM gigs.gig_delivery AS d WHERE d.account_id = a.account_id) AS redelivered
	FROM gigs.gig_account_sync AS a
	ORDER BY 1;

-- another event of the account, while one is between being read and written
SELECT gigs.ingest_gig_event(gig_body(1), NULL);
SET ROLE regress_gigs_owner;
ALTER TABLE gigs.gig_event_log ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY readable ON gigs.gig_event_log FOR SELECT USING (true);
CREATE POLICY checked ON gigs.gig_event_log FOR INSERT WITH CHECK (act_when_planned(1));
RESET ROLE;
DISCARD PLANS;
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 2), NULL)';
SELECT gigs.ingest_gig_event(gig_body(1, 3), NULL);
DISCARD PLANS;
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1), NULL)';
SELECT gigs.ingest_gig_event(gig_body(1, 3), NULL);
-- ... of another one, and later
DISCARD PLANS;
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(2), NULL)';
SELECT gigs.ingest_gig_event(gig_body(1, 3), NULL);
SELECT gigs.ingest_gig_event(gig_body(1, 2), NULL);
DROP POLICY checked ON gigs.gig_event_log;
CREATE POLICY insertable ON gigs.gig_event_log FOR INSERT WITH CHECK (true);
-- ... while the account is rebuilt
CREATE POLICY checked ON gigs.gig_account_sync FOR UPDATE USING (true) WITH CHECK (act_when_planned(2));
CREATE POLICY readable ON gigs.gig_account_sync FOR SELECT USING (true);
CREATE POLICY insertable ON gigs.gig_account_sync FOR INSERT WITH CHECK (true);
ALTER TABLE gigs.gig_account_sync ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE TRIGGER act BEFORE UPDATE ON gigs.gig_account_sync
	FOR EACH STATEMENT EXECUTE FUNCTION act_before();
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 4), NULL)';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
RESET test.act;
SELECT * FROM sums;
DROP TRIGGER act ON gigs.gig_account_sync;
-- ... or the writing of it is planned
DISCARD PLANS;
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 4), NULL)';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
RESET test.act;
SELECT * FROM sums;
-- ... or planned again
DISCARD PLANS;
SET test.act = $$SELECT set_config('test.act', 'SELECT gigs.ingest_gig_event(public.gig_body(1, 4), NULL)', false); ANALYZE gigs.gig_account_sync$$;
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
RESET test.act;
SELECT * FROM sums;
DROP POLICY checked ON gigs.gig_account_sync;
CREATE POLICY updatable ON gigs.gig_account_sync FOR UPDATE USING (true);
-- ... or the log read, whatever there is of accounts
BEGIN;
ALTER POLICY readable ON gigs.gig_event_log USING (act());
DELETE FROM gigs.gig_account_sync;
SET LOCAL test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 4), NULL)';
SAVEPOINT one;
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
ROLLBACK TO one;
SELECT * FROM gigs.rebuild_gig_sync();
ROLLBACK;
-- ... not even then
CREATE TRIGGER act AFTER UPDATE ON gigs.gig_account_sync
	FOR EACH ROW EXECUTE FUNCTION act_before();
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 4), NULL)';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
-- ... but one of another account
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(2, 4), NULL)';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
SELECT * FROM sums;
DROP TRIGGER act ON gigs.gig_account_sync;
-- ... while the accounts of a batch are read one after the other
CREATE FUNCTION act_at(account uuid)
RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	IF right(account::text, 4) = '0002' THEN
		PERFORM set_config('test.seen', (current_setting('test.seen', true)::int + 1)::text, false);
		RETURN current_setting('test.seen')::int <> 2 OR public.act();
	END IF;
	RETURN true;
END
$$;
ALTER POLICY readable ON gigs.gig_account_sync USING (act_at(account_id));
SET enable_bitmapscan = off;
SET enable_sort = off;
DISCARD PLANS;
SET test.seen = 0;
SET test.act = 'SELECT gigs.ingest_gig_event(public.gig_body(1, 20), NULL)';
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[gig_body(1, 21)::bytea, gig_body(2, 21)::bytea], NULL);
RESET test.act;
RESET enable_sort;
RESET enable_bitmapscan;
SELECT * FROM sums;
ALTER POLICY readable ON gigs.gig_account_sync USING (true);
DROP FUNCTION act_at(uuid);

-- the cursor over the log closed, as who owns the tables may
BEGIN;
SELECT count(*) FROM gigs.ingest_gig_events((SELECT array_agg(gig_body(n)::bytea) FROM generate_series(1000, 2100) AS n), NULL);
CREATE TRIGGER act BEFORE UPDATE ON gigs.gig_account_sync
	FOR EACH STATEMENT EXECUTE FUNCTION act_before();
SET LOCAL ROLE regress_gigs_owner;
SET LOCAL test.act = 'CLOSE ALL';
\set VERBOSITY sqlstate
SELECT * FROM gigs.rebuild_gig_sync();
\set VERBOSITY terse
ROLLBACK;

-- the schema renamed, and so statements made anew, while one is planned
DROP POLICY readable ON gigs.gig_account_sync;
DROP POLICY updatable ON gigs.gig_account_sync;
DROP POLICY insertable ON gigs.gig_account_sync;
CREATE POLICY checked ON gigs.gig_account_sync USING (act_when_planned(1));
DISCARD PLANS;
SET test.act = 'ALTER SCHEMA gigs RENAME TO hooks; SELECT hooks.ingest_gig_event(public.gig_body(1, 5), NULL)';
SELECT gigs.ingest_gig_event(gig_body(3), NULL);
DISCARD PLANS;
SET test.act = 'ALTER SCHEMA gigs RENAME TO hooks; SELECT hooks.ingest_gig_event(public.gig_body(1, 5), NULL)';
SELECT gigs.ingest_gig_event(gig_body(1, 6), NULL);
RESET test.act;
SELECT count(*) FROM pg_namespace WHERE nspname IN ('gigs', 'hooks');
DROP POLICY checked ON gigs.gig_account_sync;
ALTER TABLE gigs.gig_account_sync DISABLE ROW LEVEL SECURITY;
SELECT * FROM sums;

-- a column of another type, while rows are read
ALTER POLICY readable ON gigs.gig_event_log USING (act());
SET test.act = 'ALTER TABLE gigs.gig_account_sync RENAME user_id TO old; ALTER TABLE gigs.gig_account_sync ADD user_id bigint DEFAULT 1234567';
SELECT * FROM gigs.rebuild_gig_sync('00000000-0000-4000-8000-000000000001');
RESET test.act;
SELECT * FROM sums;
DROP POLICY readable ON gigs.gig_event_log;
DROP POLICY insertable ON gigs.gig_event_log;
ALTER TABLE gigs.gig_event_log DISABLE ROW LEVEL SECURITY;
BEGIN;
CREATE TRIGGER act BEFORE INSERT ON gigs.gig_account_sync
	FOR EACH ROW EXECUTE FUNCTION act_before();
DELETE FROM gigs.gig_account_sync;
SET LOCAL test.act = 'ALTER TABLE gigs.gig_delivery ALTER event_id TYPE text';
SELECT outcome, event_id FROM gigs.try_ingest_gig_event(gig_body(1), NULL);
ROLLBACK;
BEGIN;
CREATE TRIGGER act BEFORE INSERT ON gigs.gig_account_sync
	FOR EACH ROW EXECUTE FUNCTION act_before();
SET LOCAL test.act = 'ALTER TABLE gigs.gig_delivery ALTER event_id TYPE text';
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[gig_body(4)::bytea, gig_body(5)::bytea], NULL);
ROLLBACK;

-- a column more, while it is looked into whether tables are ordinary
SET ROLE regress_gigs_owner;
CREATE INDEX acting ON gigs.gig_change (act_when_planned(1));
RESET ROLE;
\c -
\pset format unaligned
\set SHOW_CONTEXT never
\set VERBOSITY terse
BEGIN;
SET LOCAL test.act = 'ALTER TABLE gigs.gig_event_log ADD extra int DEFAULT 7; SELECT gigs.ingest_gig_event(public.gig_body(6), NULL)';
SELECT gigs.ingest_gig_event(gig_body(7), NULL);
SELECT right(account_id::text, 4) AS account, extra FROM gigs.gig_event_log WHERE extra = 7 ORDER BY event_id;
ROLLBACK;
DROP INDEX gigs.acting;

-- a search_path that a trigger has set for itself
CREATE TABLE stolen (name text);
GRANT ALL ON stolen TO PUBLIC;
CREATE FUNCTION steal(uuid, uuid)
RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.stolen VALUES (current_user);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	RETURN pg_catalog.uuid_eq($1, $2);
END
$$;
CREATE OPERATOR public.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = steal);
CREATE TRIGGER act BEFORE INSERT ON gigs.gig_account_sync
	FOR EACH ROW EXECUTE FUNCTION act_before();
SET test.act = $$SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', true)$$;
SELECT gigs.ingest_gig_event(gig_body(8), NULL);
SET test.act = $$SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', false)$$;
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[gig_body(9)::bytea, gig_body(10)::bytea], NULL);
SHOW search_path;
-- ... who is the owner himself has set it
BEGIN;
SET LOCAL ROLE regress_gigs_owner;
SET LOCAL test.act = $$SELECT pg_catalog.set_config('search_path', 'public, pg_catalog', true)$$;
SELECT gigs.ingest_gig_event(gig_body(11), NULL);
SHOW search_path;
ROLLBACK;
SHOW search_path;
SELECT * FROM stolen;
DROP TRIGGER act ON gigs.gig_account_sync;
DROP OPERATOR public.= (uuid, uuid);
DROP FUNCTION steal(uuid, uuid);
DROP TABLE stolen;
SELECT * FROM sums;

-- what there can't be in the log, unless the owner lets it
BEGIN;
ALTER TABLE gigs.gig_event_log ALTER body DROP NOT NULL;
UPDATE gigs.gig_event_log SET body = NULL WHERE event_id = (SELECT min(event_id) FROM gigs.gig_event_log);
SELECT * FROM gigs.rebuild_gig_sync();
ROLLBACK;
BEGIN;
ALTER TABLE gigs.gig_event_log ALTER received_at DROP NOT NULL;
UPDATE gigs.gig_event_log SET received_at = NULL WHERE event_id = (SELECT min(event_id) FROM gigs.gig_event_log);
SELECT * FROM gigs.rebuild_gig_sync();
ROLLBACK;
BEGIN;
ALTER TABLE gigs.gig_event_log ALTER account_id DROP NOT NULL;
UPDATE gigs.gig_event_log SET account_id = NULL WHERE event_id = (SELECT min(event_id) FROM gigs.gig_event_log);
SELECT * FROM gigs.rebuild_gig_sync();
ROLLBACK;

DROP EXTENSION gigs_webhooks CASCADE;
DROP FUNCTION act_before();
DROP FUNCTION act_when_planned(int);
DROP FUNCTION act();
DROP FUNCTION gig_body(int, int);
DROP SCHEMA gigs;
DROP OWNED BY regress_gigs_owner;
DROP ROLE regress_gigs_owner;
