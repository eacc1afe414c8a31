--
-- examples/postgrest: a function that PostgREST calls with the body of a request
--
CREATE EXTENSION gigs_webhooks;
SET client_min_messages = warning;
\pset format unaligned

SELECT create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
CREATE ROLE regress_gigs_receiver;
CREATE ROLE regress_gigs_anon;
SELECT grant_gig_receiver('regress_gigs_receiver');
CREATE SCHEMA api;
GRANT USAGE ON SCHEMA api TO regress_gigs_anon;
-- The tests' roles have names of their own.
\set file `cat examples/postgrest/argyle_webhook.sql`
SELECT regexp_replace(:'file', ' TO (receiver|anon);', ' TO regress_gigs_\1;', 'g') \gexec

-- Does with a request what PostgREST does: passes the headers as a setting, and
-- the body's text to the function, as the web role.  Returns the status, which is
-- 200 unless the function sets another one, and the answer.
CREATE FUNCTION pg_temp.post(headers text, body text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	PERFORM set_config('request.headers', headers, true), set_config('response.status', '', true),
		set_config('role', 'regress_gigs_anon', true);
	SELECT api.argyle_webhook(body::json) INTO answer;
	PERFORM set_config('role', 'none', true);
	RETURN concat_ws(' ', coalesce(nullif(current_setting('response.status'), ''), '200'), answer);
END $$;

CREATE FUNCTION pg_temp.signed(body text, secret text DEFAULT 's3cret') RETURNS text LANGUAGE sql AS $$
	SELECT json_build_object('accept', '*/*', 'x-argyle-signature', sign_gig_event(body, secret))::text
$$;

-- A body that jsonb would change in six ways.
CREATE TABLE body AS SELECT
	E'{"event": "gigs.fully_synced",\n  "name": "payroll", "data": {"user": "00000000-0000-4000-9000-000000000001",'
	' "account": "00000000-0000-4000-8000-000000000001", "available_count": 7, "n": 1.50, "n": 1e2,'
	' "note": "\\u00e4 \u00e4 \\u0000 \\\\x41 \\/"}} ' AS b;

SELECT pg_temp.post(pg_temp.signed(b), b) FROM body;
SELECT pg_temp.post(pg_temp.signed(b), b) FROM body;
SELECT l.body = convert_to(b, 'UTF8') AS as_sent FROM gig_event_log AS l, body WHERE l.outcome = 'applied';

-- Forged, without a signature, without headers
SELECT pg_temp.post(pg_temp.signed(b, 'a guess'), b) FROM body;
SELECT pg_temp.post('{"accept": "*/*"}', b) FROM body;
SELECT pg_temp.post('{"x-argyle-signature": null}', b) FROM body;
SELECT pg_temp.post('', b) FROM body;
SELECT pg_temp.post(NULL, b) FROM body;

-- Serialised again, and with one space less
SELECT pg_temp.post(pg_temp.signed(b), replace(b, '\u0000', '')::jsonb::text) FROM body;
SELECT pg_temp.post(pg_temp.signed(b), rtrim(b)) FROM body;

-- What is accepted otherwise, and what is not understood
SELECT pg_temp.post(pg_temp.signed(v), v) FROM (VALUES
	('{"event": "gigs.sold", "name": "payroll"}'),
	('{"event": "users.added", "name": "payroll"}'),
	('[]'),
	('{}')) AS v (v);
SELECT pg_temp.post(pg_temp.signed(''), format('"%s"', repeat('x', 8 * 1024 * 1024)));
SELECT count(*) FROM gig_event_log;
SELECT convert_from(body, 'UTF8') FROM gig_quarantine;

-- The web role can call this function, and nothing else
SET ROLE regress_gigs_anon;
SELECT ingest_gig_event(''::bytea, '');
SELECT try_ingest_gig_event(''::text, '');
SELECT FROM ingest_gig_events('{}', '{}');
SELECT FROM gig_event_log;
RESET ROLE;

-- ... which runs as the receiver, and needs the privilege
SELECT proowner::regrole, prosecdef FROM pg_proc WHERE proname = 'argyle_webhook';
CREATE ROLE regress_gigs_other;
GRANT USAGE ON SCHEMA api TO regress_gigs_other;
SET ROLE regress_gigs_other;
SELECT api.argyle_webhook('{}');
RESET ROLE;

-- ... and which calls no function of the caller's
CREATE SCHEMA attack AUTHORIZATION regress_gigs_anon;
SET ROLE regress_gigs_anon;
GRANT USAGE ON SCHEMA attack TO PUBLIC;
CREATE FUNCTION attack.convert_to(text, name) RETURNS bytea LANGUAGE sql AS $$ SELECT '\x00'::bytea $$;
SET search_path = attack, pg_catalog, public;
SELECT api.argyle_webhook('{}');
RESET ROLE;
RESET search_path;

DROP TABLE body;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA api, attack CASCADE;
DROP OWNED BY regress_gigs_receiver, regress_gigs_anon, regress_gigs_other;
DROP ROLE regress_gigs_receiver, regress_gigs_anon, regress_gigs_other;
