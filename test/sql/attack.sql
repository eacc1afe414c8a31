--
-- Attacks, through every door
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
CREATE SCHEMA test;
SET search_path = pg_catalog;
SET client_min_messages = warning;
\encoding UTF8
\pset format unaligned

SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks', 's3cret');
SELECT gigs.create_gig_subscription('other', 'https://example.com/hooks', 'other s3cret');
SELECT gigs.create_gig_subscription('open', 'https://example.com/hooks');
SELECT gigs.create_gig_subscription('rotated', 'https://example.com/hooks', 'today');
SELECT gigs.add_gig_secret('rotated', 'yesterday');
SELECT gigs.retire_gig_secret('rotated', 'yesterday');

-- The doors.  Each tells what became of a webhook, an error with its SQLSTATE.
CREATE TABLE test.raw_inbox (id int, body bytea, signature text, outcome text, error text);
CREATE TABLE test.text_inbox (LIKE test.raw_inbox);
ALTER TABLE test.text_inbox ALTER body TYPE text USING NULL;
CREATE TABLE test.strict_inbox (body bytea, signature text);
CREATE TRIGGER ingest BEFORE INSERT ON test.raw_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TRIGGER ingest BEFORE INSERT ON test.text_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TRIGGER ingest BEFORE INSERT ON test.strict_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TABLE test.door (name text);
INSERT INTO test.door VALUES ('ingest'), ('ingest text'), ('try'), ('try text'), ('batch'), ('raw inbox'), ('text inbox'), ('strict inbox');
CREATE FUNCTION test.enter(door text, b bytea, s text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	t text := CASE WHEN door LIKE '% text' OR door LIKE 'text %' THEN convert_from(b, 'UTF8') END;
	result text;
BEGIN
	CASE door
		WHEN 'ingest' THEN result := gigs.ingest_gig_event(b, s);
		WHEN 'ingest text' THEN result := gigs.ingest_gig_event(t, s);
		WHEN 'try' THEN SELECT coalesce(r.sqlstate || ': ' || r.message, r.outcome::text) INTO result FROM gigs.try_ingest_gig_event(b, s) AS r;
		WHEN 'try text' THEN SELECT coalesce(r.sqlstate || ': ' || r.message, r.outcome::text) INTO result FROM gigs.try_ingest_gig_event(t, s) AS r;
		WHEN 'batch' THEN SELECT coalesce(r.sqlstate || ': ' || r.message, r.outcome::text) INTO result FROM gigs.ingest_gig_events(ARRAY['', b, ''], ARRAY[NULL, s, NULL]) AS r WHERE r.ord = 2;
		WHEN 'raw inbox' THEN INSERT INTO test.raw_inbox (body, signature) VALUES (b, s) RETURNING coalesce(error, outcome) INTO result;
		WHEN 'text inbox' THEN INSERT INTO test.text_inbox (body, signature) VALUES (t, s) RETURNING coalesce(error, outcome) INTO result;
		WHEN 'strict inbox' THEN INSERT INTO test.strict_inbox VALUES (b, s); result := 'accepted';
	END CASE;
	RETURN CASE WHEN result IN ('applied', 'duplicate', 'stale') THEN 'accepted' ELSE result END;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
-- Attacks, and what they must come to; nothing is shown of those that do
CREATE TABLE test.attack (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text, body bytea, signature text, expected text, outcome text, error text);
CREATE PROCEDURE test.attack(INOUT attacks bigint, INOUT entered bigint, INOUT as_expected bigint) LANGUAGE plpgsql AS $$
DECLARE
	result record;
	drained bigint;
	rejected bigint;
BEGIN
	SELECT count(*) INTO attacks FROM test.attack;
	SELECT 0, 0 INTO entered, as_expected;
	FOR result IN SELECT a.*, d.name AS door, test.enter(d.name, a.body, a.signature) AS result FROM test.attack AS a CROSS JOIN test.door AS d ORDER BY a.id, d.name LOOP
		entered := entered + 1;
		-- (a strict inbox doesn't tell what it ignored)
		IF result.result = result.expected OR (result.door = 'strict inbox' AND result.expected = 'ignored' AND result.result = 'accepted') THEN
			as_expected := as_expected + 1;
		ELSE
			RAISE WARNING '% (%): %', result.what, result.door, result.result;
		END IF;
	END LOOP;
	CALL gigs.drain_gig_inbox('test.attack', 7, 'id', 'body', 'signature', 'outcome', 'error', drained, rejected);
	FOR result IN SELECT a.*, coalesce(a.error, CASE WHEN a.outcome IN ('applied', 'duplicate', 'stale') THEN 'accepted' ELSE a.outcome END) AS result FROM test.attack AS a ORDER BY a.id LOOP
		entered := entered + 1;
		IF result.result = result.expected THEN
			as_expected := as_expected + 1;
		ELSE
			RAISE WARNING '% (drained): %', result.what, result.result;
		END IF;
	END LOOP;
END
$$;
CREATE FUNCTION test.body(name text, available int DEFAULT 1) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"%s","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-9000-000000000001","available_count":%s}}', name, available)
$$;

-- Signatures of every wrong form, length and making
SELECT test.body('payroll') AS body, gigs.sign_gig_event(test.body('payroll'), 's3cret') AS good \gset
INSERT INTO test.attack (what, body, signature, expected)
SELECT what, convert_to(:'body', 'UTF8'), sig, expected FROM (VALUES
	('lower case', :'good', 'accepted'),
	('upper case', upper(:'good'), 'accepted'),
	('mixed case', upper(left(:'good', 63)) || right(:'good', 65), 'accepted')
) AS v (what, sig, expected)
UNION ALL SELECT what, convert_to(:'body', 'UTF8'), sig, '28000: could not authenticate webhook' FROM (VALUES
	('none', NULL), ('empty', ''), ('one digit', left(:'good', 1)), ('two digits', left(:'good', 2)),
	('126 digits', left(:'good', 126)), ('127 digits', left(:'good', 127)), ('127 last digits', right(:'good', 127)),
	('129 digits', :'good' || '0'), ('129 digits, the first of them 0', '0' || :'good'), ('130 digits', :'good' || '00'),
	('256 digits', :'good' || :'good'), ('a million digits', repeat('ab', 500000)), ('128 digits, cut and filled', left(:'good', 64) || repeat('0', 64)),
	('prefix sha512=', 'sha512=' || :'good'), ('prefix, 128 characters in all', 'sha512=' || left(:'good', 121)), ('prefix 0x', '0x' || :'good'),
	('prefix \x', '\x' || :'good'), ('prefix 0x, 128 characters in all', '0x' || left(:'good', 126)),
	('space before', ' ' || :'good'), ('space after', :'good' || ' '), ('space for the last digit', left(:'good', 127) || ' '), ('space inside', overlay(:'good' PLACING ' ' FROM 65)),
	('tab before', E'\t' || :'good'), ('new line after', :'good' || E'\n'), ('carriage return and new line after', :'good' || E'\r\n'),
	('in quotes', '"' || :'good' || '"'), ('in braces', '{' || :'good' || '}'), ('twice, as a header that came twice', :'good' || ', ' || :'good'), ('a wrong and a good one', repeat('0', 128) || ',' || :'good'),
	('a digit of full width', overlay(:'good' PLACING '０' FROM 1 FOR 3)), ('a Cyrillic letter', overlay(:'good' PLACING 'а' FROM 1 FOR 2)), ('a combining accent', :'good' || U&'\0301'),
	('a byte order mark', U&'\FEFF' || :'good'), ('a space of no width', :'good' || U&'\200B'), ('a no-break space', :'good' || U&'\00A0'), ('a control character', overlay(:'good' PLACING E'\x01' FROM 128)),
	('a letter g', overlay(:'good' PLACING 'g' FROM 128)), ('a sign', overlay(:'good' PLACING '-' FROM 1)), ('a colon behind 9', translate(:'good', '9', ':')), ('a slash before 0', translate(:'good', '0', '/')), ('an at before A', translate(:'good', 'a', '@')), ('a backquote before a', translate(:'good', 'a', '`')),
	('backwards', reverse(:'good')), ('halves exchanged', right(:'good', 64) || left(:'good', 64)), ('bits inverted', translate(:'good', '0123456789abcdef', 'fedcba9876543210')), ('zeros', repeat('0', 128)), ('ones', repeat('f', 128)),
	('base64', translate(encode(decode(:'good', 'hex'), 'base64'), E'\n', '')), ('hex of the hex', encode(:'good', 'hex')), ('the word null', 'null'), ('the word NULL', 'NULL'), ('the word none', 'none'),
	('the secret', 's3cret'), ('the body', :'body'),
	-- ... by other keys
	('another subscription''s secret', gigs.sign_gig_event(:'body', 'other s3cret')), ('a retired secret', gigs.sign_gig_event(:'body', 'yesterday')),
	('the secret and a space', gigs.sign_gig_event(:'body', 's3cret ')), ('half of the secret', gigs.sign_gig_event(:'body', 's3c')), ('the secret in upper case', gigs.sign_gig_event(:'body', 'S3CRET')),
	('the name for a secret', gigs.sign_gig_event(:'body', 'payroll')), ('the URL for a secret', gigs.sign_gig_event(:'body', 'https://example.com/hooks')), ('the word null for a secret', gigs.sign_gig_event(:'body', 'null')),
	('the secret in hex', gigs.sign_gig_event(:'body', encode('s3cret', 'hex'))), ('the secret''s SHA512', gigs.sign_gig_event(:'body', sha512('s3cret'))), ('the secret''s SHA512 in hex', gigs.sign_gig_event(:'body', encode(sha512('s3cret'), 'hex'))), ('the secret''s MD5', gigs.sign_gig_event(:'body', md5('s3cret'))),
	('an empty key, or zeros', 'd1d25609515d621f1a7216a6c36cd4739eff967086f5faa07f987c9c19cf6d03d151599a9e2d2ec3db18ab43f5e121736f07a5bb0f4407bbce095cbba6580583'),
	-- ... of other data
	('body and secret exchanged', gigs.sign_gig_event('s3cret', :'body')), ('of the signature', gigs.sign_gig_event(:'good', 's3cret')), ('of nothing', gigs.sign_gig_event('', 's3cret')), ('of the body''s hex', gigs.sign_gig_event(encode(:'body', 'hex'), 's3cret')), ('of the body''s base64', gigs.sign_gig_event(encode(:'body', 'base64'), 's3cret')),
	('of the body and a new line', gigs.sign_gig_event(:'body' || E'\n', 's3cret')), ('of the body as jsonb', gigs.sign_gig_event(:'body'::jsonb::text, 's3cret')), ('of the data alone', gigs.sign_gig_event(:'body'::json ->> 'data', 's3cret')), ('of the body''s SHA512', gigs.sign_gig_event(sha512(:'body'), 's3cret')), ('of another body', gigs.sign_gig_event(test.body('payroll', 2), 's3cret')), ('of the body in UTF-16', gigs.sign_gig_event(decode(regexp_replace(encode(:'body', 'hex'), '(..)', '\100', 'g'), 'hex'), 's3cret')),
	-- ... by other algorithms
	('SHA512 of the body', encode(sha512(:'body'), 'hex')), ('SHA512 of secret and body', encode(sha512(('s3cret' || :'body')::bytea), 'hex')), ('SHA512 of body and secret', encode(sha512((:'body' || 's3cret')::bytea), 'hex')), ('SHA512 of the secret', encode(sha512('s3cret'), 'hex')),
	('SHA256 twice', encode(sha256(:'body'), 'hex') || encode(sha256(:'body'), 'hex')), ('SHA384 and filling', encode(sha384(:'body'), 'hex') || repeat('0', 32)), ('SHA384', encode(sha384(:'body'), 'hex')), ('SHA256', encode(sha256(:'body'), 'hex')), ('MD5', md5(:'body')),
	('HMAC-SHA3-512', 'f07a055a441ab5a4055951ac0806c71f38d0983caf039d8759cdeae9b5254a81bc40b2a47367f5af9d839ae0ec9d8d8cc858a26b9feba24fcfdf854135903e5e'),
	('HMAC-BLAKE2b', '4cfd828717992bd63275d12927f545d9e7ef0f9d82c6e83e194a4cb593e1aeabc407dc8fe91a9ec58bfd4c79edb253bc764eed3fe645bf788782b47340a55d41'),
	('HMAC-SHA512/256', '7c7911702eaddd17b2fcf1479662e334db468683ba2dd33a2af2f46d1bb8ae28'),
	('HMAC-SHA384', 'f401226b4e6c5b81074924d2590c2a6cde0606d1ecde3e088ac963982e82aac8b475c87401f8a75c997c2594c8154326'),
	('HMAC-SHA256', '03a95642d84dbdf376f75a461f49ac50d82c23d3a624b389668a04c56ebaf7be'),
	('HMAC-SHA1', '02b1a5d771220abcb37d19cfafa3e8d3a038d8ed')
) AS v (what, sig);
-- ... a digit wrong, at each of the 128 places
INSERT INTO test.attack (what, body, signature, expected)
SELECT 'digit ' || i, convert_to(:'body', 'UTF8'), overlay(:'good' PLACING translate(substr(:'good', i, 1), '0123456789abcdef', '1032547698badcfe') FROM i), '28000: could not authenticate webhook' FROM generate_series(1, 128) AS i;
-- ... the good one, under another name or for a body that was swapped
INSERT INTO test.attack (what, body, signature, expected)
SELECT what, convert_to(body, 'UTF8'), :'good', '28000: could not authenticate webhook' FROM (VALUES
	('another count', test.body('payroll', 2)), ('another name', test.body('other')), ('an unsigned name', test.body('open')), ('an unknown name', test.body('nobody')), ('no such case', test.body('Payroll')),
	('a space more', test.body('payroll') || ' '), ('a space before', ' ' || test.body('payroll')), ('a line more', test.body('payroll') || E'\n'), ('as jsonb', test.body('payroll')::jsonb::text),
	('a key more', replace(test.body('payroll'), '{"event"', '{"more":1,"event"')), ('another account', replace(test.body('payroll'), '-8000-', '-8001-')), ('another user', replace(test.body('payroll'), '-9000-', '-9001-')),
	('another event', replace(test.body('payroll'), 'gigs.fully_synced', 'paystubs.fully_synced')), ('the name escaped', replace(test.body('payroll'), '"payroll"', '"\u0070ayroll"'))
) AS v (what, body);
-- ... secrets that aren't any: none has been set by a function, but who owns the table may
INSERT INTO gigs.gig_subscription_secret (name, secret) VALUES ('payroll', '');
SELECT test.body('unkeyed') AS unkeyed \gset
SELECT gigs.create_gig_subscription('unkeyed', 'https://example.com/hooks', 'x');
UPDATE gigs.gig_subscription_secret SET secret = '' WHERE name = 'unkeyed';
INSERT INTO test.attack (what, body, signature, expected)
SELECT what, convert_to(:'unkeyed', 'UTF8'), sig, '28000: could not authenticate webhook' FROM (VALUES ('an empty secret, unsigned', NULL), ('an empty secret', gigs.sign_gig_event(:'unkeyed', '\x00'::bytea)), ('the secret before', gigs.sign_gig_event(:'unkeyed', 'x'))) AS v (what, sig);
CALL test.attack(0, 0, 0);
DELETE FROM test.attack;

-- Keys that come twice, or in disguise: the signature check and the parser see
-- the same name, which is the last one
CREATE FUNCTION test.data(more text DEFAULT '', account int DEFAULT 2) RETURNS text LANGUAGE sql AS $$
	SELECT format('"data":{"account":"00000000-0000-4000-8000-00000000000%s","user":"00000000-0000-4000-9000-000000000001","available_count":1%s}', account, more)
$$;
INSERT INTO test.attack (what, body, signature, expected)
SELECT what, convert_to(body, 'UTF8'), gigs.sign_gig_event(body, secret), coalesce(expected, '28000: could not authenticate webhook')
FROM (
	SELECT what, format(body, '"event":"gigs.fully_synced"', test.data()) AS body, secret, expected FROM (VALUES
		('signed name last, unsigned', '{%s,"name":"open","name":"payroll",%s}', NULL, NULL),
		('signed name last, signed', '{%s,"name":"open","name":"payroll",%s}', 's3cret', 'accepted'),
		('unsigned name last, unsigned', '{%s,"name":"payroll","name":"open",%s}', NULL, 'accepted'),
		('unsigned name last, signed', '{%s,"name":"payroll","name":"open",%s}', 's3cret', NULL),
		('another''s name last', '{%s,"name":"other","name":"payroll",%s}', 'other s3cret', NULL),
		('names far apart', '{"name":"open",%s,%s,"name":"payroll"}', NULL, NULL),
		('the name in between', '{"name":"open",%s,"name":"payroll",%s,"name":"open"}', 's3cret', NULL),
		('an escaped key last', '{%s,"name":"open","na\u006de":"payroll",%s}', NULL, NULL),
		('an escaped key last, signed', '{%s,"name":"open","\u006e\u0061\u006D\u0065":"payroll",%s}', 's3cret', 'accepted'),
		('an escaped key first', '{%s,"na\u006de":"open","name":"payroll",%s}', NULL, NULL),
		('nothing but an escaped key', '{%s,"\u006eame":"payroll",%s}', NULL, NULL),
		('a key with a zero byte', '{%s,"name":"payroll","name\u0000":"open",%s}', NULL, NULL),
		('a key with a zero byte before', '{%s,"name":"payroll","\u0000name":"open",%s}', NULL, NULL),
		('a key with half a surrogate', '{%s,"name":"payroll","name\ud800":"open",%s}', NULL, NULL),
		('a key with a space', '{%s,"name":"payroll","name ":"open"," name":"open",%s}', NULL, NULL),
		('a key in upper case', '{%s,"name":"payroll","NAME":"open","Name":"open",%s}', NULL, NULL),
		('a key with a quote', '{%s,"name":"payroll","\"name":"open","x\\\"name":"open","\"name\"":"open",%s}', NULL, NULL),
		('a key with a backslash', '{%s,"name":"payroll","\\":"open","name\\":"open","\\name":"open",%s}', NULL, NULL),
		('a key in full width', '{%s,"name":"payroll","ｎａｍｅ":"open",%s}', NULL, NULL),
		('a value that looks like a key', '{%s,"name":"payroll","x":"\",\"name\":\"open",%s}', NULL, NULL),
		('a name in another object', '{%s,"name":"payroll","x":{"name":"open"},%s}', NULL, NULL),
		('a name in an array', '{%s,"name":"payroll","x":[{"name":"open"},"name","open"],%s}', NULL, NULL),
		('a name in data', '{%s,"name":"payroll",%s,"data":{"name":"open"}}', NULL, NULL),
		('names all over', '{%s,"x":{"name":"open","x":{"name":"open"}},"name":"payroll","data":[{"name":"open"}],"y":[[{"name":"open"}]],%s}', 's3cret', 'accepted'),
		('a name that is no string, last', '{%s,"name":"open","name":["payroll"],%s}', NULL, '22023: invalid value for key "name": expected a string, got an array'),
		('a name that is an object', '{%s,"name":"open","name":{"name":"payroll"},%s}', NULL, '22023: invalid value for key "name": expected a string, got an object'),
		('a name that is null', '{%s,"name":"open","name":null,%s}', NULL, '22023: invalid value for key "name": expected a string, got null'),
		('a name with a zero byte', '{%s,"name":"open\u0000",%s}', NULL, '22P05: invalid value for key "name": unsupported Unicode escape sequence'),
		('a name with a zero byte, then none', '{%s,"name":"payroll\u0000","name":"open",%s}', NULL, 'accepted'),
		('a name and a space', '{%s,"name":"open ",%s}', NULL, NULL),
		('a name that is empty', '{%s,"name":"",%s}', NULL, NULL),
		('no name', '{%s,%s}', NULL, '22023: missing key "name"'),
		('two bodies', '{%s,"name":"open",%s}{"name":"payroll"}', NULL, '22032: malformed JSON at byte 167: Expected end of input, but found "{"')
	) AS v (what, body, secret, expected)
	UNION ALL SELECT * FROM (VALUES
		('event twice, ours last', '{"name":"open","event":"paystubs.added","event":"gigs.fully_synced",' || test.data() || '}', NULL, 'accepted'),
		('event twice, ours first', '{"name":"open","event":"gigs.fully_synced","event":"paystubs.added",' || test.data() || '}', NULL, 'ignored'),
		('event twice, unsigned', '{"name":"payroll","event":"gigs.fully_synced","event":"paystubs.added",' || test.data() || '}', NULL, NULL),
		('event twice, one escaped', '{"name":"open","event":"gigs.fully_synced","e\u0076ent":"paystubs.added",' || test.data() || '}', NULL, 'ignored'),
		('data twice, good last', '{"name":"open","event":"gigs.fully_synced","data":{"account":1},' || test.data() || '}', NULL, 'accepted'),
		('data twice, bad last', '{"name":"open","event":"gigs.fully_synced",' || test.data() || ',"data":{}}', NULL, '22023: missing key "data.account"'),
		('data twice, gone last', '{"name":"open","event":"gigs.fully_synced",' || test.data() || ',"data":null}', NULL, '22023: invalid value for key "data": expected an object, got null'),
		('data twice, an array last', '{"name":"open","event":"gigs.fully_synced",' || test.data() || ',"data":[{"account":1}]}', NULL, '22023: invalid value for key "data": expected an object, got an array'),
		('data twice, one escaped', '{"name":"open","event":"gigs.fully_synced",' || test.data() || ',"d\u0061ta":{}}', NULL, '22023: missing key "data.account"'),
		('data twice, fields not mixed', '{"name":"open","event":"gigs.updated",' || test.data(',"updated_count":1,"updated_gigs":[]') || ',' || test.data() || '}', NULL, '22023: missing key "data.updated_count"'),
		('account twice', '{"name":"open","event":"gigs.fully_synced",' || test.data(',"account":"00000000-0000-4000-8000-000000000003"') || '}', NULL, 'accepted'),
		('account twice, bad last', '{"name":"open","event":"gigs.fully_synced",' || test.data(',"accoun\u0074":"x"') || '}', NULL, '22P02: invalid value for key "data.account": invalid UUID "x"'),
		('gigs twice, bad first', '{"name":"open","event":"gigs.updated",' || test.data(',"updated_count":0,"updated_gigs":[1,"00000000-0000-4000-a000-000000000009"],"updated_gigs":["00000000-0000-4000-a000-000000000001"]') || '}', NULL, 'accepted'),
		('gigs twice, bad last', '{"name":"open","event":"gigs.updated",' || test.data(',"updated_count":0,"updated_gigs":["00000000-0000-4000-a000-000000000001"],"updated_gigs":["00000000-0000-4000-a000-000000000001","x",1]') || '}', NULL, '22P02: invalid value for key "data.updated_gigs[1]": invalid UUID "x"'),
		('gigs elsewhere', '{"name":"open","event":"gigs.updated","updated_gigs":["00000000-0000-4000-a000-000000000008"],' || test.data(',"updated_count":0,"updated_gigs":[],"x":["00000000-0000-4000-a000-000000000007"],"y":{"updated_gigs":["00000000-0000-4000-a000-000000000006"]}') || ',"z":[["00000000-0000-4000-a000-000000000005"]]}', NULL, 'accepted')
	) AS v (what, body, secret, expected)
) AS v;
CALL test.attack(0, 0, 0);
-- ... what has been logged is what jsonb reads there
SELECT count(*) AS accepted, count(*) FILTER (WHERE
	j ->> 'name' = l.name AND j ->> 'event' = l.event::text AND j #>> '{data,account}' = l.account_id::text) AS as_jsonb
FROM gigs.gig_event_log AS l, LATERAL (SELECT convert_from(replace(encode(body, 'escape'), '\\u0000', '')::bytea, 'UTF8')::jsonb AS j) AS b;
SELECT l.name, count(*) FROM gigs.gig_event_log AS l GROUP BY l.name ORDER BY l.name COLLATE "C";
SELECT right(gig_id::text, 1) AS gig, right(account_id::text, 1) AS account FROM gigs.gig_change ORDER BY 1;
TRUNCATE test.attack, test.raw_inbox, test.text_inbox, test.strict_inbox;
