--
-- Subscriptions and their secrets
--
CREATE SCHEMA "Webhooks";
CREATE EXTENSION gigs_webhooks SCHEMA "Webhooks";
SET search_path = pg_catalog;
\encoding UTF8
\pset format unaligned

-- Shows what a statement returns, or its error.  The secret is a parameter, so
-- that only the extension could show it.
CREATE FUNCTION pg_temp.try(statement text, secret text DEFAULT 's3cret') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	detail text;
	hint text;
	context text;
BEGIN
	EXECUTE statement INTO result USING secret;
	RETURN coalesce(nullif(result, ''), 'done');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
	IF concat(sqlerrm, detail, hint, context) LIKE '%s3cret%' THEN
		RETURN sqlstate || ': SECRET SHOWN';
	END IF;
	RETURN sqlstate || ': ' || concat_ws(' / ', sqlerrm, nullif(detail, ''), nullif(hint, ''));
END
$$;
-- Ingests a new event, signed with a secret or not at all
CREATE SEQUENCE pg_temp.available;
CREATE FUNCTION pg_temp.ingest(name text, secret text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	body text := format('{"event":"gigs.fully_synced","name":%s,"data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}',
		to_json(name), nextval('pg_temp.available'));
	result record;
BEGIN
	SELECT * INTO result FROM "Webhooks".try_ingest_gig_event(body, "Webhooks".sign_gig_event(body, secret));
	RETURN concat_ws(' ', result.outcome, result.sqlstate);
END
$$;

-- ... a secret that is shown is found
SELECT pg_temp.try('SELECT $1::integer');

-- Without a secret, webhooks are accepted unsigned, and only so
SELECT "Webhooks".create_gig_subscription('open', 'https://example.com/open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... not once it has a secret
SELECT "Webhooks".add_gig_secret('open', 's3cret');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret'), pg_temp.ingest('open', 'S3cret');
-- ... and never again, even when the secret is retired
SELECT "Webhooks".retire_gig_secret('open', 's3cret');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... until it is created again
SELECT "Webhooks".drop_gig_subscription('open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
SELECT "Webhooks".create_gig_subscription('open', 'https://example.com/open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... or the change is rolled back
BEGIN;
SELECT "Webhooks".add_gig_secret('open', 's3cret');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
ROLLBACK;
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
BEGIN;
SAVEPOINT s;
SELECT "Webhooks".drop_gig_subscription('open');
SELECT pg_temp.ingest('open', NULL);
ROLLBACK TO s;
SELECT pg_temp.ingest('open', NULL);
COMMIT;

-- An array of secrets, even an empty one, never accepts what is unsigned
SELECT "Webhooks".create_gig_subscription('signed', 'https://example.com/signed', 's3cret');
SELECT secrets IS NOT NULL AS signed FROM "Webhooks".gig_subscription WHERE name IN ('open', 'signed') ORDER BY name;
UPDATE "Webhooks".gig_subscription SET secrets = '{}' WHERE name = 'signed';
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
SELECT "Webhooks".add_gig_secret('signed', 's3cret');
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
-- ... nor does one of elements that are null, empty or of a null secret
UPDATE "Webhooks".gig_subscription SET secrets = ARRAY[NULL, ROW(NULL, NULL, NULL), ROW('', NULL, NULL), ROW('', now(), NULL)]::"Webhooks".gig_secret[] WHERE name = 'signed';
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
SELECT "Webhooks".add_gig_secret('signed', 's3cret');
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
-- ... null does, also after there were secrets
UPDATE "Webhooks".gig_subscription SET secrets = NULL WHERE name = 'signed';
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
-- ... a row inserted by hand is unsigned, unless it has secrets
INSERT INTO "Webhooks".gig_subscription (name, url, events, secrets) VALUES
	('by hand', 'https://example.com/hand', '{*}', NULL),
	('by hand, signed', 'https://example.com/hand', '{*}', ARRAY[ROW('s3cret', NULL, NULL)]::"Webhooks".gig_secret[]);
SELECT name, pg_temp.ingest(name, NULL), pg_temp.ingest(name, 's3cret') FROM "Webhooks".gig_subscription WHERE name LIKE 'by hand%' ORDER BY 1;
DELETE FROM "Webhooks".gig_subscription;

-- Rotation: for a while, two secrets are valid
SELECT "Webhooks".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".add_gig_secret('payroll', 's3cret-2');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".gig_subscription_request('payroll') ->> 'secret' AS newest;
-- ... the first one is retired from a time on
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', now() + interval '1 day');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', 'infinity');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', now() + interval '0.3 seconds');
SELECT pg_sleep_until(max(k.retired_at)) FROM "Webhooks".gig_subscription AS s, unnest(s.secrets) AS k WHERE s.name = 'payroll' AND k.secret = 's3cret-1';
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
-- ... the second one at once
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-2', now() - interval '1 day');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".gig_subscription_request('payroll') ? 'secret' AS has_secret;
-- ... a retired one can be added again
SELECT "Webhooks".add_gig_secret('payroll', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT k.secret, k.added_at < clock_timestamp() AS added, k.retired_at IS NOT NULL AS retired FROM "Webhooks".gig_subscription AS s, unnest(s.secrets) AS k WHERE s.name = 'payroll' ORDER BY k.added_at;
-- ... in the middle of a transaction, too
BEGIN;
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1');
ROLLBACK;
SELECT pg_temp.ingest('payroll', 's3cret-1');
-- ... and by hand
UPDATE "Webhooks".gig_subscription SET secrets[3].secret = 's3cret-3' WHERE name = 'payroll';
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-3');
UPDATE "Webhooks".gig_subscription SET name = 'wages' WHERE name = 'payroll';
SELECT pg_temp.ingest('payroll', 's3cret-3'), pg_temp.ingest('wages', 's3cret-3');
UPDATE "Webhooks".gig_subscription SET secrets = secrets[1:2] WHERE name = 'wages';
SELECT pg_temp.ingest('wages', 's3cret-3'), pg_temp.ingest('wages', NULL);
SELECT "Webhooks".create_gig_subscription('open', 'https://example.com/open');
SELECT pg_temp.ingest('open', NULL);
TRUNCATE "Webhooks".gig_subscription;
SELECT pg_temp.ingest('open', NULL);

-- Names are exact, and each has its own secrets
SELECT "Webhooks".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT "Webhooks".create_gig_subscription('Payroll', 'https://example.com/hooks', 'another s3cret');
SELECT "Webhooks".create_gig_subscription('payroll ', 'https://example.com/hooks', 's3cret');
SELECT "Webhooks".create_gig_subscription(n, 'https://example.com/hooks', 's3cret') FROM (VALUES ('Zürich'), ('"quoted" \''s'), ('a/b%20c')) AS v (n);
SELECT pg_temp.ingest('payroll', 's3cret'), pg_temp.ingest('Payroll', 's3cret'), pg_temp.ingest('payroll', 'another s3cret'), pg_temp.ingest('PAYROLL', 's3cret');
SELECT name, pg_temp.ingest(name, 's3cret') FROM "Webhooks".gig_subscription ORDER BY name COLLATE "C";
-- ... unknown ones
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(''nobody'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''nobody'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".drop_gig_subscription(''nobody'')');
SELECT pg_temp.try('SELECT "Webhooks".gig_subscription_request(''nobody'')');
SELECT pg_temp.try('SELECT "Webhooks".drop_gig_subscription(NULL)');
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(NULL, $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(NULL, $1)');
SELECT pg_temp.try('SELECT "Webhooks".gig_subscription_request(NULL)');
-- ... and existing ones
SELECT pg_temp.try('SELECT "Webhooks".create_gig_subscription(''payroll'', ''https://example.com/other'', $1)', 'other s3cret');
SELECT url FROM "Webhooks".gig_subscription WHERE name = 'payroll';
SELECT pg_temp.ingest('payroll', 'other s3cret');

-- Invalid subscriptions and secrets
SELECT pg_temp.try('SELECT "Webhooks".create_gig_subscription(' || arguments || ')') FROM (VALUES
	(''''', ''u'', $1'),
	('NULL, ''u'', $1'),
	('''new'', '''', $1'),
	('''new'', NULL, $1'),
	('''new'', ''u'', '''''),
	('''new'', ''u'', $1, ''{}'''),
	('''new'', ''u'', $1, NULL'),
	('''new'', ''u'', $1, ''{gigs.added,NULL}'''),
	('''new'', ''u'', $1, ''{gigs.added,""}'''),
	('''new'', ''u'', $1, ''{*}'', ''[]'''),
	('''new'', ''u'', $1, ''{*}'', ''1'''),
	('''new'', ''u'', $1, ''{*}'', ''null''')
) AS v (arguments);
SELECT count(*) FROM "Webhooks".gig_subscription WHERE name = 'new';
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(''payroll'', '''')');
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(''payroll'', NULL)');
-- ... a secret that exists, that does not, and that is retired
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(''payroll'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)', 'another s3cret');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', NULL)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1, NULL)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)');

-- A secret is any text, its UTF-8 bytes are the key; white space around it draws a
-- warning, because in most cases it was pasted along
CREATE TEMP TABLE secret (id int, secret text);
INSERT INTO secret VALUES
	(1, ' '), (2, ' s3cret'), (3, 's3cret '), (4, 'two words'), (5, 'it''s "quoted"'), (6, '\'), (7, '\x00'), (8, E'tab\tand\nnew line'),
	(9, 'größe'), (10, '%s %L $1'), (11, 'NULL'), (12, repeat('0123456789', 500)), (13, repeat('0123456789', 500) || '!'), (14, 'viv'), (15, E's3cret\x0b');
SELECT count("Webhooks".create_gig_subscription('any ' || id, 'https://example.com/any', secret)) FROM secret;
SELECT id, pg_temp.ingest('any ' || id, secret), pg_temp.ingest('any ' || id, secret || ' '), pg_temp.ingest('any ' || id, trim(secret) || 'x'),
	"Webhooks".gig_subscription_request('any ' || id) ->> 'secret' = secret AS requested
FROM secret ORDER BY id;
SELECT count(*) AS each_only_its_own FROM secret AS a, secret AS b WHERE a.id <> b.id AND pg_temp.ingest('any ' || a.id, b.secret) = 'rejected 28000';
SELECT count("Webhooks".retire_gig_secret('any ' || id, secret)) FROM secret;
SELECT DISTINCT pg_temp.ingest('any ' || id, secret) FROM secret;

\set VERBOSITY terse
SELECT "Webhooks".create_gig_subscription('nested', 'https://example.com/', events => '{{gigs.added,gigs.removed}}');
\set VERBOSITY default

-- What to POST for it
SELECT "Webhooks".create_gig_subscription('request 1', 'https://example.com/1');
SELECT "Webhooks".create_gig_subscription('request 2', 'https://example.com/2', 's3cret');
SELECT "Webhooks".create_gig_subscription('request 3', 'https://example.com/3', NULL, '{*}');
SELECT "Webhooks".create_gig_subscription('request 4', 'https://example.com/4', 's3cret "4"', '{gigs.partially_synced}', '{"days_synced": 30, "include_resource": true}');
SELECT "Webhooks".create_gig_subscription('request "5" ü', 'https://example.com/5?a=b&c=\', events => '{gigs.added,accounts.connected}', config => '{}');
SELECT "Webhooks".gig_subscription_request(name) FROM "Webhooks".gig_subscription WHERE name LIKE 'request%' ORDER BY name COLLATE "C";
-- ... webhooks carry the subscription's name
SELECT pg_temp.ingest('request 3', NULL), pg_temp.ingest('request "5" ü', NULL);

-- A dropped subscription's events stay
SELECT count(*) > 0 AS some FROM "Webhooks".gig_event_log WHERE name = 'request 3';
SELECT count("Webhooks".drop_gig_subscription(name)) > 0 AS dropped FROM "Webhooks".gig_subscription;
SELECT count(*) > 0 AS some FROM "Webhooks".gig_event_log WHERE name = 'request 3';

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Webhooks";
RESET search_path;
