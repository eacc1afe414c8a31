--
-- Draining a backlog of raw rows
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
\encoding UTF8
\pset format unaligned
\set SHOW_CONTEXT never
SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');

CREATE FUNCTION pg_temp.body(n int)
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.added","name":"payroll","data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"added_count":1}}', n % 3, n)
$$;

CREATE TABLE inbox (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	body bytea,
	signature text,
	outcome text,
	error text
);
INSERT INTO inbox (body, signature)
SELECT convert_to(pg_temp.body(n), 'UTF8'), gigs.sign_gig_event(pg_temp.body(n), 's3cret')
FROM generate_series(1, 22) AS n
ORDER BY n;
-- a redelivery, a forgery, no JSON, nothing
INSERT INTO inbox (body, signature)
SELECT body, signature FROM inbox WHERE id = 22;
INSERT INTO inbox (body, signature)
SELECT body, repeat('0', 128) FROM inbox WHERE id = 22;
INSERT INTO inbox (body, signature) VALUES ('no JSON', NULL), (NULL, NULL);

-- In batches, in the rows' order
CALL gigs.drain_gig_inbox('inbox', batch => 10);
SELECT outcome, error, count(*), min(id), max(id) FROM inbox GROUP BY 1, 2 ORDER BY 4;
SELECT right(account_id::text, 1) AS account, available_count, added_total, events, duplicates
FROM gigs.gig_account_sync ORDER BY 1;

-- Rows that have an outcome are left alone
CALL gigs.drain_gig_inbox('inbox');

-- Other names and types, and names that have to be quoted
CREATE TABLE "In Box" (
	arrived int PRIMARY KEY,
	payload text,
	"X-Argyle-Signature" varchar(200),
	status gigs.gig_ingest_outcome,
	"what's wrong" text
);
INSERT INTO "In Box" (arrived, payload, "X-Argyle-Signature")
SELECT -n, pg_temp.body(n), gigs.sign_gig_event(pg_temp.body(n), 's3cret')
FROM generate_series(30, 33) AS n;
CALL gigs.drain_gig_inbox('"In Box"', 3, 'arrived', 'payload', 'X-Argyle-Signature', 'status', 'what''s wrong');
SELECT arrived, status, "what's wrong" FROM "In Box" ORDER BY 1;
SELECT right(account_id::text, 1) AS account, available_count
FROM gigs.gig_account_sync ORDER BY 1;

-- Keys that are the same in many rows, or null, lose no row and no event
CREATE TABLE log (at date, body text, signature text, outcome text, error varchar(20));
INSERT INTO log (at, body, signature)
SELECT CASE WHEN n % 2 = 0 THEN date '2026-01-01' END, pg_temp.body(n), gigs.sign_gig_event(pg_temp.body(n), 's3cret')
FROM generate_series(100, 149) AS n;
-- ... and a row that has an outcome is not drained again
INSERT INTO log SELECT at, body, signature, 'kept', 'mine' FROM log WHERE body = pg_temp.body(100);
CALL gigs.drain_gig_inbox('log', 10, 'at');
SELECT outcome, error, count(*), count(at) AS dated FROM log GROUP BY 1, 2 ORDER BY 1;
SELECT count(*) AS events, count(DISTINCT available_count) AS bodies FROM gigs.gig_event_history WHERE available_count BETWEEN 100 AND 149;
-- ... nor is one lost to a reason that is too long for its column
INSERT INTO log (at, body, signature) VALUES ('2026-01-02', 'junk', 'x'), ('2026-01-03', pg_temp.body(150), gigs.sign_gig_event(pg_temp.body(150), 's3cret'));
CALL gigs.drain_gig_inbox('log', 10, 'at');
SELECT outcome, error FROM log WHERE at > '2026-01-01' ORDER BY at;
CREATE DOMAIN reason AS varchar(20);
ALTER TABLE log ALTER error TYPE reason;
INSERT INTO log (at, body, signature) VALUES ('2026-01-04', 'junk', 'x');
CALL gigs.drain_gig_inbox('log', 10, 'at');
SELECT outcome, error FROM log WHERE at > '2026-01-03' ORDER BY at;
-- ... nor to rows with the same ctid in different partitions
CREATE TABLE parts (id int, body text, signature text, outcome text, error text) PARTITION BY HASH (id);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO parts SELECT n, pg_temp.body(n), gigs.sign_gig_event(pg_temp.body(n), 's3cret') FROM generate_series(200, 219) AS n;
CALL gigs.drain_gig_inbox('parts', 6);
SELECT outcome, count(*) FROM parts GROUP BY 1;
SELECT count(*) AS events FROM gigs.gig_event_history WHERE available_count BETWEEN 200 AND 219;
-- ... rows that cannot be marked are an error, and not drained for ever
CREATE FUNCTION pg_temp.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER keep BEFORE UPDATE ON parts_0 FOR EACH ROW EXECUTE FUNCTION pg_temp.keep();
INSERT INTO parts SELECT n, pg_temp.body(n), gigs.sign_gig_event(pg_temp.body(n), 's3cret') FROM generate_series(220, 239) AS n;
CALL gigs.drain_gig_inbox('parts', 1);
SELECT tableoid::regclass AS part, outcome, count(*) > 0 AS some FROM parts GROUP BY 1, 2 ORDER BY 1, 2;
DROP TABLE log, parts;
DROP DOMAIN reason;

-- Errors
CALL gigs.drain_gig_inbox('inbox', 0);
CALL gigs.drain_gig_inbox('inbox', NULL);
CALL gigs.drain_gig_inbox('"In Box"');
CALL gigs.drain_gig_inbox('inbox', outcome => 'nothing');
INSERT INTO inbox (body) VALUES (NULL);
BEGIN;
CALL gigs.drain_gig_inbox('inbox');
ROLLBACK;
SELECT count(*) FROM inbox WHERE outcome IS NULL;

-- A batch ends before its bodies fill memory
CREATE TABLE large (id int, body bytea, signature text, outcome text, error text);
INSERT INTO large VALUES (1, convert_to(repeat('x', 150000000), 'UTF8'));
INSERT INTO large SELECT 2, body FROM large;
INSERT INTO large (id, body) VALUES (3, 'junk');
CALL gigs.drain_gig_inbox('large');
SELECT id, outcome, error FROM large ORDER BY id;
DROP TABLE large;

-- Keys are in order whatever the settings for dates and numbers are
SET TimeZone = 'Asia/Manila';
SET DateStyle = 'SQL, DMY';
SET extra_float_digits = -15;
CREATE TABLE dated (at timestamptz, amount float8, body text, signature text, outcome text, error char(10));
INSERT INTO dated SELECT '2026-01-01 00:00+00'::timestamptz + n * interval '17 minutes', n / 3.0::float8, CASE WHEN n < 29 THEN pg_temp.body(400 + n) ELSE 'junk' END, gigs.sign_gig_event(pg_temp.body(400 + n), 's3cret') FROM generate_series(0, 29) AS n;
SET client_min_messages = warning;
CALL gigs.drain_gig_inbox('dated', 4, 'at');
UPDATE dated SET outcome = NULL;
CALL gigs.drain_gig_inbox('dated', 4, 'amount');
SHOW DateStyle;
RESET client_min_messages;
RESET extra_float_digits;
RESET DateStyle;
RESET TimeZone;
SELECT outcome, error, count(*) FROM dated GROUP BY 1, 2 ORDER BY 1;
SELECT (array_agg(available_count ORDER BY event_id DESC))[1] AS latest, outcome, count(*) FROM gigs.gig_event_history WHERE available_count BETWEEN 400 AND 428 GROUP BY 2 ORDER BY 2;
-- ... nor are those that a trigger leaves without an outcome
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN old; END';
CREATE TRIGGER keep BEFORE UPDATE ON dated FOR EACH ROW WHEN (new.outcome IS NOT NULL) EXECUTE FUNCTION keep();
UPDATE dated SET outcome = NULL;
SELECT sum(duplicates) AS duplicates FROM gigs.gig_account_sync \gset
\set VERBOSITY terse
CALL gigs.drain_gig_inbox('dated', 4, 'at');
SELECT sum(duplicates) - :duplicates AS more FROM gigs.gig_account_sync;
\set VERBOSITY default
DROP TABLE dated;
DROP FUNCTION keep();

-- No column is named twice, but for the key, which is only read
CREATE TABLE strict (id int, body text, signature text, outcome text, error text, note text);
CALL gigs.drain_gig_inbox('strict', error => 'body');
CALL gigs.drain_gig_inbox('strict', error => 'signature');
CALL gigs.drain_gig_inbox('strict', outcome => 'error');
CALL gigs.drain_gig_inbox('strict', signature => 'body');
-- A body is of a type that keeps its bytes
ALTER TABLE strict ALTER body TYPE jsonb USING '{}';
CALL gigs.drain_gig_inbox('strict');
ALTER TABLE strict ALTER body TYPE char(400);
CALL gigs.drain_gig_inbox('strict');
ALTER TABLE strict ALTER body TYPE text;
CALL gigs.drain_gig_inbox(NULL);
-- The key is of any type that has an order
INSERT INTO strict (id, body, signature) SELECT n, pg_temp.body(500 + n), gigs.sign_gig_event(pg_temp.body(500 + n), 's3cret') FROM generate_series(1, 5) AS n;
SET client_min_messages = warning;
CALL gigs.drain_gig_inbox('strict', 2, 'body');
CREATE TYPE urgency AS ENUM ('high', 'low');
CREATE DOMAIN urgent AS urgency;
ALTER TABLE strict ADD urgent urgent, ADD place name COLLATE "POSIX";
UPDATE strict SET outcome = NULL, urgent = (CASE WHEN id % 2 = 0 THEN 'high' ELSE 'low' END)::urgency, place = 'place ' || id;
CALL gigs.drain_gig_inbox('strict', 2, 'urgent');
UPDATE strict SET outcome = NULL;
CALL gigs.drain_gig_inbox('strict', 2, 'place');
CREATE DOMAIN in_c AS text COLLATE "C";
ALTER TABLE strict ALTER note TYPE in_c COLLATE "POSIX";
UPDATE strict SET outcome = NULL, note = 'note ' || id;
CALL gigs.drain_gig_inbox('strict', 2, 'note');
-- ... even if the domain has operators of its own
CREATE FUNCTION never(in_c, in_c) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE OPERATOR public.>= (LEFTARG = in_c, RIGHTARG = in_c, FUNCTION = never);
UPDATE strict SET outcome = NULL;
CALL gigs.drain_gig_inbox('strict', 2, 'note');
SELECT outcome, count(*) FROM strict GROUP BY 1;
DROP OPERATOR public.>= (in_c, in_c);
DROP FUNCTION never(in_c, in_c);
-- ... rules that replace the update are an error
UPDATE strict SET outcome = NULL WHERE id = 1;
CREATE RULE instead AS ON UPDATE TO strict DO INSTEAD NOTHING;
CALL gigs.drain_gig_inbox('strict');
ALTER TABLE strict DISABLE RULE instead;
CALL gigs.drain_gig_inbox('strict');
DROP TABLE strict;
DROP DOMAIN in_c, urgent;
DROP TYPE urgency;
RESET client_min_messages;

-- Columns of other types for signature, outcome and error
CREATE TYPE result AS ENUM ('applied', 'duplicate', 'stale', 'ignored', 'rejected');
CREATE TABLE loose (id int, body varchar, signature char(200), outcome result, error char(40));
INSERT INTO loose SELECT n, pg_temp.body(700 + n) || ' ', gigs.sign_gig_event(pg_temp.body(700 + n) || ' ', 's3cret') FROM generate_series(1, 3) AS n;
INSERT INTO loose SELECT 4, body, 'short' FROM loose WHERE id = 1;
CALL gigs.drain_gig_inbox('loose');
SELECT id, outcome, error FROM loose ORDER BY id;
ALTER TABLE loose ALTER outcome TYPE char(12);
UPDATE loose SET outcome = NULL;
CALL gigs.drain_gig_inbox('loose');
SELECT id, outcome, error FROM loose ORDER BY id;
DROP TABLE loose;
DROP TYPE result;

-- Triggers see a batch as one update, with a search_path of pg_catalog only
CREATE TABLE noted (id int, body text, signature text, outcome text, error text, note text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() = 1 THEN
		UPDATE public.noted SET note = (SELECT count(*) FROM updated) || ' rows' WHERE note IS NULL;
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER note AFTER UPDATE ON noted REFERENCING NEW TABLE AS updated FOR EACH STATEMENT EXECUTE FUNCTION note();
INSERT INTO noted (id, body) SELECT n, 'junk' FROM generate_series(1, 2500) AS n;
CALL gigs.drain_gig_inbox('noted');
SELECT outcome, note, count(*) FROM noted GROUP BY 1, 2;
DROP TABLE noted;
DROP FUNCTION note();

-- A signature that is too long is not read
CREATE TABLE signed (id int, body text, signature text, outcome text, error text);
INSERT INTO signed VALUES (1, pg_temp.body(600), repeat('0', 1000000)), (2, pg_temp.body(601), gigs.sign_gig_event(pg_temp.body(601), 's3cret'));
CALL gigs.drain_gig_inbox('signed');
SELECT id, outcome, error FROM signed ORDER BY id;
ALTER TABLE signed ALTER signature TYPE bpchar;
UPDATE signed SET outcome = NULL, signature = CASE WHEN id = 1 THEN signature || repeat(' ', 1000000) ELSE signature || '   ' END;
CALL gigs.drain_gig_inbox('signed');
SELECT id, outcome, error FROM signed ORDER BY id;
DROP TABLE signed;

-- The procedure must be granted, and runs with the caller's privileges
CREATE ROLE regress_gig_worker;
GRANT USAGE ON SCHEMA gigs TO regress_gig_worker;
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('inbox');
RESET ROLE;
GRANT EXECUTE ON PROCEDURE gigs.drain_gig_inbox TO regress_gig_worker;
GRANT EXECUTE ON FUNCTION gigs.ingest_gig_events(bytea[], text[]) TO regress_gig_worker;
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('inbox');
RESET ROLE;
GRANT SELECT, UPDATE ON inbox TO regress_gig_worker;
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('inbox');
RESET ROLE;

-- A superuser does not drain the inbox of a role that is none, whose triggers would
-- run as the superuser
CREATE TABLE theirs (id int, body text, signature text, outcome text, error text);
INSERT INTO theirs (id, body) VALUES (1, 'junk');
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'updated by %', current_user; RETURN new; END $$;
CREATE TRIGGER tell BEFORE UPDATE ON theirs FOR EACH ROW EXECUTE FUNCTION tell();
ALTER TABLE theirs OWNER TO regress_gig_worker;
CALL gigs.drain_gig_inbox('theirs');
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('theirs');
RESET ROLE;
DROP TABLE theirs;
DROP FUNCTION tell();

-- Operators that the caller's search_path puts before those of pg_catalog are not
-- used, not even after a COMMIT
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
CREATE OPERATOR hostile.+ (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.plus);
CREATE OPERATOR hostile.<> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.plus);
INSERT INTO inbox (body) SELECT 'junk' FROM generate_series(1, 3);
SET search_path = hostile, public, pg_catalog;
CALL gigs.drain_gig_inbox('inbox', batch => 2);
RESET search_path;
DROP SCHEMA hostile CASCADE;

-- Row security applies to the caller; rows that it keeps from being marked are not
-- ingested
CREATE TABLE tenants (id int PRIMARY KEY, tenant text, body text, signature text, outcome text, error text);
INSERT INTO tenants SELECT n, chr(97 + n % 2), pg_temp.body(n), gigs.sign_gig_event(pg_temp.body(n), 's3cret') FROM generate_series(301, 306) AS n;
INSERT INTO tenants VALUES (307, 'a', '{}');
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
GRANT SELECT, UPDATE ON tenants TO regress_gig_worker;
SELECT sum(events) AS events FROM gigs.gig_account_sync \gset
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('tenants');
RESET ROLE;
CREATE POLICY own ON tenants TO regress_gig_worker USING (tenant = 'a') WITH CHECK (outcome <> 'rejected');
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('tenants');
RESET ROLE;
SELECT tenant, outcome, count(*) FROM tenants GROUP BY 1, 2 ORDER BY 1, 2;
SELECT sum(events) - :events AS more FROM gigs.gig_account_sync;
ALTER POLICY own ON tenants WITH CHECK (true);
SET ROLE regress_gig_worker;
CALL gigs.drain_gig_inbox('tenants');
RESET ROLE;
SELECT tenant, outcome, count(*) FROM tenants GROUP BY 1, 2 ORDER BY 1, 2;
SELECT sum(events) - :events AS more FROM gigs.gig_account_sync;

DROP TABLE inbox, "In Box", tenants;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
DROP ROLE regress_gig_worker;
