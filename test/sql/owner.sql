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

-- A statement that has written to the tables can go on to ingest
WITH taken AS MATERIALIZED (DELETE FROM gigs.gig_change RETURNING gig_id)
SELECT gigs.ingest_gig_event(b.body, NULL) FROM (SELECT count(*) FROM taken) AS t, (SELECT :'body3'::bytea) AS b (body);
SELECT change, count(*) FROM gigs.gig_change GROUP BY 1;
WITH noted AS MATERIALIZED (UPDATE gigs.gig_account_sync SET user_id = user_id RETURNING user_id)
SELECT gigs.ingest_gig_event(b.body, NULL) FROM (SELECT count(*) FROM noted) AS t, (SELECT :'body4'::bytea) AS b (body);
SELECT events, updated_total, available_count FROM gigs.gig_account_sync;

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
