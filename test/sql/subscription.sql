--
-- Subscriptions and their secrets
--
CREATE SCHEMA "Webhooks";
CREATE EXTENSION gigs_webhooks SCHEMA "Webhooks";
SET search_path = pg_catalog;
\encoding UTF8
\pset format unaligned

-- Shows what a statement returns, or what its error tells.  The secret is a
-- parameter, so that it is in no error but by our own doing.
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
-- Ingests an event, ever another, signed with a secret or not at all
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

-- (that would be found)
SELECT pg_temp.try('SELECT $1::integer');

-- Without a secret, what comes is accepted unsigned, and only so
SELECT "Webhooks".create_gig_subscription('open', 'https://example.com/open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... not when it has got one
SELECT "Webhooks".add_gig_secret('open', 's3cret');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret'), pg_temp.ingest('open', 'S3cret');
-- ... and never again, when that is retired
SELECT "Webhooks".retire_gig_secret('open', 's3cret');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... until it is made anew
SELECT "Webhooks".drop_gig_subscription('open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
SELECT "Webhooks".create_gig_subscription('open', 'https://example.com/open');
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... or that is undone
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

-- Whether it is signed does not hang on what secrets there are
SELECT "Webhooks".create_gig_subscription('signed', 'https://example.com/signed', 's3cret');
DELETE FROM "Webhooks".gig_subscription_secret WHERE name = 'signed';
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
SELECT "Webhooks".add_gig_secret('signed', 's3cret');
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
UPDATE "Webhooks".gig_subscription SET signed = false WHERE name = 'signed';
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
TRUNCATE "Webhooks".gig_subscription_secret;
SELECT pg_temp.ingest('signed', NULL), pg_temp.ingest('signed', 's3cret');
-- ... added to an unsigned one, a secret makes it signed for ever
SELECT "Webhooks".add_gig_secret('open', 's3cret');
DELETE FROM "Webhooks".gig_subscription_secret WHERE name = 'open';
SELECT pg_temp.ingest('open', NULL), pg_temp.ingest('open', 's3cret');
-- ... and a row made by hand is, unless it says otherwise
INSERT INTO "Webhooks".gig_subscription (name, url, events) VALUES ('by hand', 'https://example.com/hand', '{*}');
SELECT pg_temp.ingest('by hand', NULL), pg_temp.ingest('by hand', 's3cret');

-- Rotation: for a while, two secrets are good
SELECT "Webhooks".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".add_gig_secret('payroll', 's3cret-2');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".gig_subscription_request('payroll') ->> 'secret' AS newest;
-- ... the first one has a time to go
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', now() + interval '1 day');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', 'infinity');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1', now() + interval '0.3 seconds');
SELECT pg_sleep_until(retired_at) FROM "Webhooks".gig_subscription_secret WHERE secret = 's3cret-1';
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
-- ... the second one goes at once
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-2', now() - interval '1 day');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2'), pg_temp.ingest('payroll', NULL);
SELECT "Webhooks".gig_subscription_request('payroll') ? 'secret' AS has_secret;
-- ... a retired one can be taken on again, and is then good once
SELECT "Webhooks".add_gig_secret('payroll', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-2');
SELECT secret, count(*), count(retired_at) AS retired FROM "Webhooks".gig_subscription_secret WHERE name = 'payroll' GROUP BY secret ORDER BY secret;
-- ... in the middle of a transaction, too
BEGIN;
SELECT "Webhooks".retire_gig_secret('payroll', 's3cret-1');
SELECT pg_temp.ingest('payroll', 's3cret-1');
ROLLBACK;
SELECT pg_temp.ingest('payroll', 's3cret-1');
-- ... and by hand
UPDATE "Webhooks".gig_subscription_secret SET secret = 's3cret-3' WHERE retired_at IS NULL AND name = 'payroll';
SELECT pg_temp.ingest('payroll', 's3cret-1'), pg_temp.ingest('payroll', 's3cret-3');
UPDATE "Webhooks".gig_subscription SET name = 'wages' WHERE name = 'payroll';
SELECT pg_temp.ingest('payroll', 's3cret-3'), pg_temp.ingest('wages', 's3cret-3');
TRUNCATE "Webhooks".gig_subscription, "Webhooks".gig_subscription_secret;
SELECT pg_temp.ingest('wages', 's3cret-3'), pg_temp.ingest('open', NULL);

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
-- ... and those that are taken
SELECT pg_temp.try('SELECT "Webhooks".create_gig_subscription(''payroll'', ''https://example.com/other'', $1)', 'other s3cret');
SELECT url FROM "Webhooks".gig_subscription WHERE name = 'payroll';
SELECT pg_temp.ingest('payroll', 'other s3cret');

-- What makes no subscription, and no secret
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
-- ... one that is there already, one that isn't, one that isn't any more
SELECT pg_temp.try('SELECT "Webhooks".add_gig_secret(''payroll'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)', 'another s3cret');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', NULL)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1, NULL)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)');
SELECT pg_temp.try('SELECT "Webhooks".retire_gig_secret(''payroll'', $1)');
-- ... nor do the tables' own constraints show one
SELECT pg_temp.try('INSERT INTO "Webhooks".gig_subscription_secret (name, secret, created_at) SELECT name, secret, created_at FROM "Webhooks".gig_subscription_secret WHERE name = ''Payroll''') LIKE '23505: %' AS refused;

-- A secret without a subscription is none, and is not there when that comes
INSERT INTO "Webhooks".gig_subscription_secret (name, secret) VALUES ('nobody', 's3cret');
SELECT pg_temp.ingest('nobody', 's3cret'), pg_temp.ingest('nobody', NULL);
SELECT "Webhooks".create_gig_subscription('nobody', 'https://example.com/nobody', 'another s3cret');
SELECT pg_temp.ingest('nobody', 's3cret'), pg_temp.ingest('nobody', 'another s3cret');
-- ... nor when one is renamed to what they were for
INSERT INTO "Webhooks".gig_subscription_secret (name, secret) VALUES ('nobody else', 's3cret');
UPDATE "Webhooks".gig_subscription SET name = 'nobody else' WHERE name = 'nobody';
SELECT pg_temp.ingest('nobody else', 's3cret'), pg_temp.ingest('nobody else', 'another s3cret');
UPDATE "Webhooks".gig_subscription SET name = 'nobody' WHERE name = 'nobody else';
-- ... nor are those of one that went in another way
DELETE FROM "Webhooks".gig_subscription WHERE name = 'nobody';
SELECT count(*) FROM "Webhooks".gig_subscription_secret WHERE name = 'nobody';
BEGIN;
TRUNCATE "Webhooks".gig_subscription;
SELECT count(*) FROM "Webhooks".gig_subscription_secret;
ROLLBACK;
SELECT count(*) > 0 AS some FROM "Webhooks".gig_subscription_secret;

-- A change that never commits is forgotten, even if it was read before the trigger came that makes it known
CREATE FUNCTION pg_temp.read_and_raise() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'while it lasts: %', concat_ws(', ', pg_temp.ingest('undone', 'added'), pg_temp.ingest('undone', 'kept'));
END
$$;
SELECT "Webhooks".create_gig_subscription('undone', 'https://example.com/undone', 'kept');
CREATE TRIGGER a_first AFTER INSERT OR DELETE ON "Webhooks".gig_subscription_secret
	FOR EACH ROW EXECUTE FUNCTION pg_temp.read_and_raise();
SELECT pg_temp.try('INSERT INTO "Webhooks".gig_subscription_secret (name, secret) VALUES (''undone'', ''added'')');
SELECT pg_temp.ingest('undone', 'added'), pg_temp.ingest('undone', 'kept');
INSERT INTO "Webhooks".gig_subscription (name, url, events) VALUES ('unread', 'https://example.com/', '{*}');
\set VERBOSITY terse
INSERT INTO "Webhooks".gig_subscription_secret (name, secret) VALUES ('undone', 'added');
\set VERBOSITY default
SELECT pg_temp.ingest('undone', 'added'), pg_temp.ingest('undone', 'kept');
INSERT INTO "Webhooks".gig_subscription (name, url, events) VALUES ('unread too', 'https://example.com/', '{*}');
SELECT pg_temp.try('DELETE FROM "Webhooks".gig_subscription_secret WHERE name = ''undone''');
SELECT pg_temp.ingest('undone', 'added'), pg_temp.ingest('undone', 'kept');
DROP TRIGGER a_first ON "Webhooks".gig_subscription_secret;

-- A secret is any text: its UTF-8 bytes are the key
CREATE TEMP TABLE secret (id int, secret text);
INSERT INTO secret VALUES
	(1, ' '), (2, ' s3cret'), (3, 's3cret '), (4, 'two words'), (5, 'it''s "quoted"'), (6, '\'), (7, '\x00'), (8, E'tab\tand\nnew line'),
	(9, 'größe'), (10, '%s %L $1'), (11, 'NULL'), (12, repeat('0123456789', 500)), (13, repeat('0123456789', 500) || '!');
SELECT count("Webhooks".create_gig_subscription('any ' || id, 'https://example.com/any', secret)) FROM secret;
SELECT id, pg_temp.ingest('any ' || id, secret), pg_temp.ingest('any ' || id, secret || ' '), pg_temp.ingest('any ' || id, trim(secret) || 'x'),
	"Webhooks".gig_subscription_request('any ' || id) ->> 'secret' = secret AS requested
FROM secret ORDER BY id;
SELECT count(*) AS each_only_its_own FROM secret AS a, secret AS b WHERE a.id <> b.id AND pg_temp.ingest('any ' || a.id, b.secret) = 'rejected 28000';
SELECT count("Webhooks".retire_gig_secret('any ' || id, secret)) FROM secret;
SELECT DISTINCT pg_temp.ingest('any ' || id, secret) FROM secret;

SELECT "Webhooks".create_gig_subscription('nested', 'https://example.com/', events => '{{gigs.added,gigs.removed}}');

-- What to POST for it
SELECT "Webhooks".create_gig_subscription('request 1', 'https://example.com/1');
SELECT "Webhooks".create_gig_subscription('request 2', 'https://example.com/2', 's3cret');
SELECT "Webhooks".create_gig_subscription('request 3', 'https://example.com/3', NULL, '{*}');
SELECT "Webhooks".create_gig_subscription('request 4', 'https://example.com/4', 's3cret "4"', '{gigs.partially_synced}', '{"days_synced": 30, "include_resource": true}');
SELECT "Webhooks".create_gig_subscription('request "5" ü', 'https://example.com/5?a=b&c=\', events => '{gigs.added,accounts.connected}', config => '{}');
SELECT "Webhooks".gig_subscription_request(name) FROM "Webhooks".gig_subscription WHERE name LIKE 'request%' ORDER BY name COLLATE "C";
-- ... those that come for it bear its name
SELECT pg_temp.ingest('request 3', NULL), pg_temp.ingest('request "5" ü', NULL);

-- Whoever may use its function as a trigger can't have secrets go with another table
CREATE TEMP TABLE names AS SELECT 'request 2'::text AS name;
CREATE TRIGGER cascade AFTER DELETE ON names FOR EACH ROW EXECUTE FUNCTION "Webhooks".gig_subscription_cascade();
DELETE FROM names;
DROP TABLE names;
SELECT count(*) FROM "Webhooks".gig_subscription_secret WHERE name = 'request 2';

-- A dropped subscription's secrets are gone, what it brought stays
SELECT count(*) > 0 AS some FROM "Webhooks".gig_event_log WHERE name = 'request 3';
SELECT count("Webhooks".drop_gig_subscription(name)) > 0 AS dropped FROM "Webhooks".gig_subscription;
SELECT count(*) FROM "Webhooks".gig_subscription_secret;
SELECT count(*) > 0 AS some FROM "Webhooks".gig_event_log WHERE name = 'request 3';

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Webhooks";
RESET search_path;
