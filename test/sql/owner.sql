--
-- What the tables' owner may do to them, and what comes of it
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET client_min_messages = warning;
\pset format unaligned
\set VERBOSITY terse

SELECT gigs.create_gig_subscription('n', 'https://example.com/hooks');
CREATE FUNCTION pg_temp.body(n int) RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(format('{"event":"gigs.updated","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"updated_count":1,"updated_gigs":["00000000-0000-4000-a000-000000000001"]}}', n), 'UTF8')
$$;
SELECT pg_temp.body(1) AS body1, pg_temp.body(2) AS body2, pg_temp.body(3) AS body3, pg_temp.body(4) AS body4 \gset
CREATE ROLE regress_gigs_owner;
GRANT USAGE, CREATE ON SCHEMA gigs TO regress_gigs_owner;
SELECT format('ALTER TABLE gigs.%I OWNER TO regress_gigs_owner', c.relname) FROM pg_class AS c WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind = 'r' ORDER BY c.relname COLLATE "C" \gexec

-- What he has taken from himself is not done in his name
SELECT gigs.ingest_gig_event(:'body1'::bytea, NULL);
REVOKE INSERT ON gigs.gig_event_log FROM regress_gigs_owner;
SELECT gigs.ingest_gig_event(:'body2'::bytea, NULL);
GRANT INSERT ON gigs.gig_event_log TO regress_gigs_owner;
REVOKE UPDATE ON gigs.gig_account_sync FROM regress_gigs_owner;
SELECT gigs.ingest_gig_event(:'body2'::bytea, NULL);
GRANT UPDATE ON gigs.gig_account_sync TO regress_gigs_owner;
REVOKE SELECT ON gigs.gig_delivery FROM regress_gigs_owner;
SELECT gigs.ingest_gig_event(:'body2'::bytea, NULL);
GRANT SELECT ON gigs.gig_delivery TO regress_gigs_owner;
SELECT events, duplicates FROM gigs.gig_account_sync;
SELECT gigs.ingest_gig_event(:'body2'::bytea, NULL);

-- A column of a type that is made of text by a function of somebody's is not written
BEGIN;
CREATE TYPE address AS (url text);
CREATE FUNCTION to_address(text) RETURNS address LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE CAST (text AS address) WITH FUNCTION to_address(text) AS ASSIGNMENT;
ALTER TABLE gigs.gig_subscription ALTER url TYPE address USING ROW(url)::address;
SELECT gigs.create_gig_subscription('addressed', 'https://example.com/hooks');
ROLLBACK;

-- A statement that has written to the tables can go on to ingest
WITH taken AS MATERIALIZED (DELETE FROM gigs.gig_change RETURNING gig_id)
SELECT gigs.ingest_gig_event(b.body, NULL) FROM (SELECT count(*) FROM taken) AS t, (SELECT :'body3'::bytea) AS b (body);
SELECT change, count(*) FROM gigs.gig_change GROUP BY 1;
WITH noted AS MATERIALIZED (UPDATE gigs.gig_account_sync SET user_id = user_id RETURNING user_id)
SELECT gigs.ingest_gig_event(b.body, NULL) FROM (SELECT count(*) FROM noted) AS t, (SELECT :'body4'::bytea) AS b (body);
SELECT events, updated_total, available_count FROM gigs.gig_account_sync;

-- What he adds to the tables has its default, whatever that is by now
CREATE FUNCTION pg_temp.alter_all(change text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	name name;
BEGIN
	FOREACH name IN ARRAY ARRAY['gig_event_log', 'gig_account_sync', 'gig_delivery', 'gig_change'] LOOP
		EXECUTE format('ALTER TABLE gigs.%I %s', name, change);
	END LOOP;
END
$$;
CREATE FUNCTION pg_temp.another(n int) RETURNS bytea LANGUAGE sql AS $$
	SELECT convert_to(regexp_replace(convert_from(pg_temp.body(n), 'UTF8'), '-([89a])000-000000000001', format('-\1000-%s', lpad(n::text, 12, '0')), 'g'), 'UTF8')
$$;
SELECT pg_temp.alter_all('ADD COLUMN note text DEFAULT ''first''');
SELECT gigs.ingest_gig_event(pg_temp.another(2), NULL);
SELECT pg_temp.alter_all('ALTER COLUMN note SET DEFAULT ''second''');
SELECT gigs.ingest_gig_event(pg_temp.another(3), NULL);
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[pg_temp.another(4), pg_temp.another(5)], ARRAY[NULL, NULL]);
SELECT right(account_id::text, 1) AS account, l.note, a.note, d.note, c.note
FROM gigs.gig_event_log AS l JOIN gigs.gig_account_sync AS a USING (account_id) JOIN gigs.gig_delivery AS d USING (account_id) JOIN gigs.gig_change AS c USING (account_id)
WHERE right(account_id::text, 1) > '1' ORDER BY 1;
SELECT pg_temp.alter_all('DROP COLUMN note');
-- ... and what he makes less exact is
ALTER TABLE gigs.gig_change ALTER COLUMN changed_at TYPE timestamptz(0);
UPDATE gigs.gig_change SET changed_at = '2000-01-01';
SELECT count(gigs.ingest_gig_event(pg_temp.another(n), NULL)) FROM generate_series(10, 14) AS n;
SELECT count(*) FROM gigs.gig_change WHERE changed_at <> date_trunc('second', changed_at);
ALTER TABLE gigs.gig_change ALTER COLUMN changed_at TYPE timestamptz;
-- ... while ours begin as they always do, whatever their defaults are
SELECT string_agg(format('ALTER COLUMN %I SET DEFAULT %L', attname, CASE atttypid WHEN 'timestamptz'::regtype THEN '2000-01-01' WHEN 'gigs.gig_sync_state'::regtype THEN 'fully_synced' WHEN 'gigs.gig_event_kind'::regtype THEN 'gigs.removed' ELSE '7' END), ', ' ORDER BY attnum) AS sevens,
	string_agg(format('ALTER COLUMN %I DROP DEFAULT', attname), ', ' ORDER BY attnum) AS none
FROM pg_attribute WHERE attrelid = 'gigs.gig_account_sync'::regclass AND attnum > 2 AND NOT attisdropped \gset
ALTER TABLE gigs.gig_account_sync :sevens;
SELECT gigs.ingest_gig_event(pg_temp.another(6), NULL);
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[pg_temp.another(7), pg_temp.another(8)], ARRAY[NULL, NULL]);
ALTER TABLE gigs.gig_account_sync :none;
SELECT gigs.ingest_gig_event(pg_temp.another(9), NULL);
CREATE TEMP TABLE accounts AS SELECT * FROM gigs.gig_account_sync WHERE right(account_id::text, 1) > '5';
SELECT available_count, state, days_synced, available_from, added_total, updated_total, removed_total, events, duplicates, partially_synced_at, fully_synced_at, last_event FROM accounts ORDER BY account_id;
SELECT accounts_skipped FROM gigs.rebuild_gig_sync();
SELECT count(*) FROM accounts JOIN gigs.gig_account_sync AS a USING (account_id) WHERE accounts IS DISTINCT FROM a.*;
DROP TABLE accounts;

-- Columns are read only as what they should be
ALTER TABLE gigs.gig_account_sync ALTER COLUMN added_total TYPE numeric;
SELECT gigs.ingest_gig_event(pg_temp.another(2), NULL);
SELECT * FROM gigs.rebuild_gig_sync();
ALTER TABLE gigs.gig_account_sync ALTER COLUMN added_total TYPE bigint;
ALTER TABLE gigs.gig_delivery ALTER COLUMN deliveries TYPE text;
SELECT gigs.ingest_gig_event(pg_temp.another(2), NULL);
ALTER TABLE gigs.gig_delivery ALTER COLUMN deliveries TYPE integer USING deliveries::integer;
ALTER TABLE gigs.gig_account_sync RENAME COLUMN user_id TO old_user;
ALTER TABLE gigs.gig_account_sync ALTER COLUMN old_user DROP NOT NULL, ADD COLUMN user_id bigint NOT NULL DEFAULT 1;
SELECT gigs.ingest_gig_event(pg_temp.another(2), NULL);
ALTER TABLE gigs.gig_account_sync DROP COLUMN user_id;
ALTER TABLE gigs.gig_account_sync RENAME COLUMN old_user TO user_id;
CREATE DOMAIN gigs.total AS bigint CHECK (VALUE >= 0);
ALTER TABLE gigs.gig_account_sync ALTER COLUMN updated_total TYPE gigs.total;
SELECT gigs.ingest_gig_event(pg_temp.another(2), NULL);
SELECT updated_total, events, duplicates FROM gigs.gig_account_sync WHERE right(account_id::text, 12) = '000000000002';
ALTER TABLE gigs.gig_account_sync ALTER COLUMN updated_total TYPE bigint;
DROP DOMAIN gigs.total;

-- A sequence that draws out of turn would have the log in another order than that of application
ALTER SEQUENCE gigs.gig_event_log_event_id_seq CACHE 10;
SELECT gigs.ingest_gig_event(pg_temp.another(20), NULL);
ALTER SEQUENCE gigs.gig_event_log_event_id_seq CACHE 1 CYCLE;
SELECT gigs.ingest_gig_event(pg_temp.another(20), NULL);
ALTER TABLE gigs.gig_event_log ALTER event_id SET NO CYCLE, ALTER event_id SET INCREMENT -1;
SELECT gigs.ingest_gig_event(pg_temp.another(20), NULL);
ALTER TABLE gigs.gig_event_log ALTER event_id SET INCREMENT 2;
SELECT gigs.ingest_gig_event(pg_temp.another(20), NULL), gigs.ingest_gig_event(pg_temp.another(21), NULL);
SELECT max(event_id) - min(event_id) AS apart FROM gigs.gig_event_log WHERE right(account_id::text, 12) IN ('000000000020', '000000000021');
ALTER TABLE gigs.gig_event_log ALTER event_id SET INCREMENT 1;

-- What is no ordinary table is no place for subscriptions and secrets
SET ROLE regress_gigs_owner;
ALTER TABLE gigs.gig_subscription RENAME TO subscription;
CREATE VIEW gigs.gig_subscription AS TABLE gigs.subscription;
RESET ROLE;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
SET ROLE regress_gigs_owner;
DROP VIEW gigs.gig_subscription;
CREATE TABLE gigs.gig_subscription (LIKE gigs.subscription) PARTITION BY HASH (name);
RESET ROLE;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
SET ROLE regress_gigs_owner;
DROP TABLE gigs.gig_subscription;
ALTER TABLE gigs.subscription RENAME TO gig_subscription;
RESET ROLE;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
-- ... nor are they read where a column has gone, or is another
ALTER TABLE gigs.gig_subscription ALTER signed DROP NOT NULL;
UPDATE gigs.gig_subscription SET signed = NULL;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
UPDATE gigs.gig_subscription SET signed = false;
ALTER TABLE gigs.gig_subscription_secret ALTER secret DROP NOT NULL;
INSERT INTO gigs.gig_subscription_secret (name) VALUES ('n');
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
DELETE FROM gigs.gig_subscription_secret;
ALTER TABLE gigs.gig_subscription ALTER signed TYPE text;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
ALTER TABLE gigs.gig_subscription RENAME signed TO is_signed;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
ALTER TABLE gigs.gig_subscription DROP is_signed, ADD signed boolean NOT NULL DEFAULT false;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
-- ... and no table at all is missed
ALTER TABLE gigs.gig_change RENAME TO change;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);
ALTER TABLE gigs.change RENAME TO gig_change;
SELECT gigs.ingest_gig_event(:'body4'::bytea, NULL);

-- The trigger of the subscriptions' tables is for nothing else
SELECT gigs.gig_subscription_changed();

DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
DROP ROLE regress_gigs_owner;
