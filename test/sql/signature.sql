--
-- Signatures: HMAC-SHA512 of the body's bytes, in hex
--
CREATE SCHEMA "Gig Signatures";
CREATE EXTENSION gigs_webhooks SCHEMA "Gig Signatures";
SET search_path = pg_catalog;
\encoding UTF8
\pset format unaligned

CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE statement INTO result;
	RETURN coalesce(result, 'null');
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;

-- The test cases of RFC 4231; of case 5 it gives the first 128 bits only
CREATE TEMP TABLE rfc4231 (test int, key bytea, data bytea, hmac text);
INSERT INTO rfc4231 VALUES
	(1, decode(repeat('0b', 20), 'hex'), 'Hi There',
		'87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854'),
	(2, 'Jefe', 'what do ya want for nothing?',
		'164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737'),
	(3, decode(repeat('aa', 20), 'hex'), decode(repeat('dd', 50), 'hex'),
		'fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb'),
	(4, '\x0102030405060708090a0b0c0d0e0f10111213141516171819', decode(repeat('cd', 50), 'hex'),
		'b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3dba91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd'),
	(5, decode(repeat('0c', 20), 'hex'), 'Test With Truncation',
		'415fad6271580a531d4179bc891d87a6'),
	(6, decode(repeat('aa', 131), 'hex'), 'Test Using Larger Than Block-Size Key - Hash Key First',
		'80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598'),
	(7, decode(repeat('aa', 131), 'hex'), 'This is a test using a larger than block-size key and a larger than block-size data. The key needs to be hashed before being used by the HMAC algorithm.',
		'e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944b6022cac3c4982b10d5eeb55c3e4de15134676fb6de0446065c97440fa8c6a58');
SELECT test, length("Gig Signatures".sign_gig_event(data, key)) AS digits, left("Gig Signatures".sign_gig_event(data, key), length(hmac)) = hmac AS signed,
	"Gig Signatures".verify_gig_signature(data, hmac, key) AS verified
FROM rfc4231 ORDER BY test;

-- Text is signed, and is a key, as its UTF-8 bytes
SELECT "Gig Signatures".sign_gig_event('größe', 'schlüssel') =
	'71c6befb187c8beeeebc59394b86f27ca7e1cbda911fcc3460cc45fef1f41d893554f536ab3f23f6bca1ca5847f14d8b5082c895fc485a65bccfca7496105d3c' AS signed;
SELECT count(DISTINCT s) FROM (VALUES
	("Gig Signatures".sign_gig_event('größe'::text, 'schlüssel'::text)),
	("Gig Signatures".sign_gig_event('größe'::text, '\x7363686cc3bc7373656c'::bytea)),
	("Gig Signatures".sign_gig_event('\x6772c3b6c39f65'::bytea, 'schlüssel'::text)),
	("Gig Signatures".sign_gig_event('\x6772c3b6c39f65'::bytea, '\x7363686cc3bc7373656c'::bytea))) AS v (s);
SELECT "Gig Signatures".verify_gig_signature('größe'::text, s, 'schlüssel'::text) AS text_text,
	"Gig Signatures".verify_gig_signature('größe'::text, s, '\x7363686cc3bc7373656c'::bytea) AS text_bytea,
	"Gig Signatures".verify_gig_signature('\x6772c3b6c39f65'::bytea, s, 'schlüssel'::text) AS bytea_text,
	"Gig Signatures".verify_gig_signature('\x6772c3b6c39f65'::bytea, s, '\x7363686cc3bc7373656c'::bytea) AS bytea_bytea
FROM "Gig Signatures".sign_gig_event('größe', 'schlüssel') AS s;
-- ... all bytes of them: an empty body, zero bytes, white space, a large one
SELECT count(DISTINCT "Gig Signatures".sign_gig_event(b, k)) FROM (VALUES ('\x'::bytea), ('\x00'), ('\x0000'), ('{}'), ('{} '), (E'{}\n'), (convert_to(repeat('x', 1000000), 'UTF8'))) AS b (b), (VALUES ('k'::bytea), ('k '), ('\x6b01')) AS k (k);
SELECT count(*) FROM (VALUES ('\x'::bytea), ('\x00'), ('\x0000'), ('{}'), ('{} '), (E'{}\n'), (convert_to(repeat('x', 1000000), 'UTF8'))) AS b (b)
WHERE "Gig Signatures".verify_gig_signature(b, "Gig Signatures".sign_gig_event(b, 'k'), 'k');

-- Valid signatures
SELECT '{"event":"gigs.added"}' AS body, '7e74b5ba54fdf31aac8c1bd2cb97399f33365c4a3d298a455f9c9245fdeab9e75051da360bf01b3d270d5b2bde111b38a1bae0f098377f72243e5c98dc187fc8' AS good \gset
SELECT what, "Gig Signatures".verify_gig_signature(:'body', sig, 's3cret') FROM (VALUES
	('lower case', :'good'),
	('upper case', upper(:'good')),
	('mixed case', upper(left(:'good', 64)) || right(:'good', 64)),
	('empty', ''),
	('space', ' '),
	('a digit short', left(:'good', 127)),
	('a byte short', left(:'good', 126)),
	('half', left(:'good', 64)),
	('a digit long', :'good' || '0'),
	('a byte long', :'good' || '00'),
	('twice', :'good' || :'good'),
	('with space before', ' ' || :'good'),
	('with space after', :'good' || ' '),
	('with new line', :'good' || E'\n'),
	('with prefix', 'sha512=' || :'good'),
	('with \x', '\x' || :'good'),
	('with a letter first', overlay(:'good' PLACING 'g' FROM 1)),
	('with a letter last', overlay(:'good' PLACING 'G' FROM 128)),
	('with a space inside', overlay(:'good' PLACING ' ' FROM 64)),
	('with a sign', overlay(:'good' PLACING '+' FROM 64)),
	('with one of two bytes', overlay(:'good' PLACING 'é' FROM 1 FOR 2)),
	('no hex at all', repeat('z', 128)),
	('zeros', repeat('0', 128)),
	('backwards', reverse(:'good')),
	('in base64', encode(decode(:'good', 'hex'), 'base64')),
	('HMAC-SHA384', 'a3c1b36e4519d87823849310e4a6e0cfd5e0ee4cb2efc8be28390df8aa5c58c8c58e025b8b3e2555bce264667ba45e7c'),
	('HMAC-SHA256', '4c6643df5afcec1094b62fc181264957fcc46c725116208ab875b3039bf3688a'),
	('HMAC-SHA1', 'ad0d8ec56a5c1674a478116e5ccec86a9e81d500'),
	('HMAC-MD5', '812fcc151a2d3bdba9ddc113f8188b33'),
	('SHA512 without a key', encode(sha512(:'body'), 'hex')),
	('SHA512 of key and body', encode(sha512(('s3cret' || :'body')::bytea), 'hex')),
	('SHA512 of body and key', encode(sha512((:'body' || 's3cret')::bytea), 'hex'))
) AS v (what, sig);
-- ... every digit counts
SELECT count(*) AS tried, count(*) FILTER (WHERE "Gig Signatures".verify_gig_signature(:'body', overlay(:'good' PLACING d FROM i), 's3cret')) AS good
FROM generate_series(1, 128) AS i, unnest(ARRAY['0', '7', 'f']) AS d WHERE substr(:'good', i, 1) <> d;
-- ... are valid for this body and this secret only
SELECT "Gig Signatures".verify_gig_signature(:'body' || ' ', :'good', 's3cret') AS longer,
	"Gig Signatures".verify_gig_signature(upper(:'body'), :'good', 's3cret') AS upper_case,
	"Gig Signatures".verify_gig_signature('', :'good', 's3cret') AS empty,
	"Gig Signatures".verify_gig_signature(:'body', :'good', 'S3cret') AS other_secret,
	"Gig Signatures".verify_gig_signature(:'body', :'good', 's3cret ') AS longer_secret,
	"Gig Signatures".verify_gig_signature(:'good', :'body', 's3cret') AS swapped;

-- Nothing is verified by an empty secret, which anyone knows ...
SELECT "Gig Signatures".verify_gig_signature(:'body', s, '') AS text, "Gig Signatures".verify_gig_signature(:'body', s, ''::bytea) AS bytea
FROM (VALUES ('d196fc6a44fb2788d619642befd19f15b47f17c657ab9f409cb3651124c69823f83136d19fed69192d7e4452e52045ac94b5a07f431106326914e73ac7c4302a'), ('')) AS v (s);
SELECT pg_temp.try('SELECT "Gig Signatures".sign_gig_event(''x'', '''')');
SELECT pg_temp.try('SELECT "Gig Signatures".sign_gig_event(''x'', ''''::bytea)');
-- ... nor by what is missing: that is false, never null
SELECT count(*) AS calls, count(*) FILTER (WHERE NOT tt AND NOT tb AND NOT bt AND NOT bb) AS false, count(*) FILTER (WHERE tt AND tb AND bt AND bb) AS true
FROM (
	SELECT "Gig Signatures".verify_gig_signature(b, s, k) AS tt, "Gig Signatures".verify_gig_signature(b, s, k::bytea) AS tb,
		"Gig Signatures".verify_gig_signature(b::bytea, s, k) AS bt, "Gig Signatures".verify_gig_signature(b::bytea, s, k::bytea) AS bb
	FROM (VALUES (:'body'), (NULL)) AS b (b), (VALUES (:'good'), (NULL)) AS s (s), (VALUES ('s3cret'), (NULL)) AS k (k)
) AS v;
-- ... and makes no signature
SELECT count(*) AS calls, count(coalesce(s1, s2, s3, s4)) AS signed
FROM (
	SELECT "Gig Signatures".sign_gig_event(b, k), "Gig Signatures".sign_gig_event(b, k::bytea), "Gig Signatures".sign_gig_event(b::bytea, k), "Gig Signatures".sign_gig_event(b::bytea, k::bytea)
	FROM (VALUES (:'body', NULL), (NULL, 's3cret'), (NULL, NULL)) AS v (b, k)
) AS v (s1, s2, s3, s4);

-- The sender of a webhook that isn't authentic can't tell why it isn't: all that
-- a client sees of the error is the same, whichever way it takes
SELECT "Gig Signatures".create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT "Gig Signatures".create_gig_subscription('other', 'https://example.com/hooks', 'other s3cret');
SELECT "Gig Signatures".create_gig_subscription('open', 'https://example.com/hooks');
SELECT "Gig Signatures".create_gig_subscription('retired', 'https://example.com/hooks', 's3cret');
SELECT "Gig Signatures".retire_gig_secret('retired', 's3cret');
CREATE FUNCTION pg_temp.body(name text, available int DEFAULT 1) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"%s","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', name, available)
$$;
CREATE FUNCTION pg_temp.refusal(body text, sig text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; hint text; col text; con text; typ text; tab text; sch text;
BEGIN
	RETURN "Gig Signatures".ingest_gig_event(body, sig);
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
		col = COLUMN_NAME, con = CONSTRAINT_NAME, typ = PG_DATATYPE_NAME, tab = TABLE_NAME, sch = SCHEMA_NAME;
	RETURN concat_ws('|', state, message, detail, hint, col, con, typ, tab, sch);
END
$$;
CREATE TEMP TABLE bad (why text, body text, sig text);
INSERT INTO bad VALUES
	('unknown name', pg_temp.body('nobody'), "Gig Signatures".sign_gig_event(pg_temp.body('nobody'), 's3cret')),
	('unknown name, unsigned', pg_temp.body('nobody'), NULL),
	('missing', pg_temp.body('payroll'), NULL),
	('empty', pg_temp.body('payroll'), ''),
	('too short', pg_temp.body('payroll'), 'abcdef'),
	('too long', pg_temp.body('payroll'), repeat('ab', 100000)),
	('no hex', pg_temp.body('payroll'), repeat('xy', 64)),
	('wrong', pg_temp.body('payroll'), repeat('ab', 64)),
	('other body', pg_temp.body('payroll'), "Gig Signatures".sign_gig_event(pg_temp.body('payroll', 2), 's3cret')),
	('other secret', pg_temp.body('payroll'), "Gig Signatures".sign_gig_event(pg_temp.body('payroll'), 'other s3cret')),
	('other name', pg_temp.body('other'), "Gig Signatures".sign_gig_event(pg_temp.body('other'), 's3cret')),
	('signed, but no secret', pg_temp.body('open'), "Gig Signatures".sign_gig_event(pg_temp.body('open'), 's3cret')),
	('retired secret', pg_temp.body('retired'), "Gig Signatures".sign_gig_event(pg_temp.body('retired'), 's3cret')),
	('retired secret, unsigned', pg_temp.body('retired'), NULL),
	('wrong, and bad otherwise', pg_temp.body('payroll', -1), repeat('ab', 64)),
	('wrong, and of another family', '{"event":"users.added","name":"payroll"}', repeat('ab', 64)),
	('wrong, and of no event', '{"name":"payroll"}', repeat('ab', 64));
SELECT count(*), count(DISTINCT pg_temp.refusal(body, sig)) AS refusals, min(split_part(pg_temp.refusal(body, sig), '|', 1)) AS sqlstate,
	min(split_part(pg_temp.refusal(body, sig), '|', 2)) AS message, min(split_part(pg_temp.refusal(body, sig), '|', 3)) AS detail, min(split_part(pg_temp.refusal(body, sig), '|', 4)) AS hint FROM bad;
SELECT t, count(*) FROM bad, "Gig Signatures".try_ingest_gig_event(body, sig) AS t GROUP BY t;
SELECT t, count(*) FROM bad, "Gig Signatures".try_ingest_gig_event(convert_to(body, 'UTF8'), sig) AS t GROUP BY t;
SELECT t.outcome, t.event_id, t.event, t.account_id, t.sqlstate, t.message, count(*)
FROM (SELECT array_agg(convert_to(body, 'UTF8')) AS bodies, array_agg(sig) AS sigs FROM bad) AS b, "Gig Signatures".ingest_gig_events(bodies, sigs) AS t GROUP BY 1, 2, 3, 4, 5, 6;
-- ... nothing of it is stored, and what is authentic is
SELECT count(*) FROM "Gig Signatures".gig_event_log;
SELECT pg_temp.refusal(body, sig) FROM (VALUES
	(pg_temp.body('payroll'), "Gig Signatures".sign_gig_event(pg_temp.body('payroll'), 's3cret')),
	(pg_temp.body('payroll', 2), upper("Gig Signatures".sign_gig_event(pg_temp.body('payroll', 2), 's3cret'))),
	(pg_temp.body('other', 3), "Gig Signatures".sign_gig_event(pg_temp.body('other', 3), 'other s3cret')),
	(pg_temp.body('open', 4), NULL)) AS v (body, sig);

SET client_min_messages = warning;
DROP EXTENSION gigs_webhooks;
DROP SCHEMA "Gig Signatures";
RESET search_path;
