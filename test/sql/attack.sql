--
-- Attacks, through every function that ingests
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

-- The entry points.  Each tells the outcome of a webhook, an error with its SQLSTATE.
CREATE TABLE test.raw_inbox (id int, body bytea, signature text, outcome text, error text);
CREATE TABLE test.text_inbox (LIKE test.raw_inbox);
ALTER TABLE test.text_inbox ALTER body TYPE text USING NULL;
CREATE TABLE test.strict_inbox (body bytea, signature text);
CREATE TRIGGER ingest BEFORE INSERT ON test.raw_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TRIGGER ingest BEFORE INSERT ON test.text_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TRIGGER ingest BEFORE INSERT ON test.strict_inbox FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
CREATE TABLE test.entry (name text);
INSERT INTO test.entry VALUES ('ingest'), ('ingest text'), ('try'), ('try text'), ('batch'), ('raw inbox'), ('text inbox'), ('strict inbox');
CREATE FUNCTION test.enter(entry text, b bytea, s text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	t text := CASE WHEN entry LIKE '% text' OR entry LIKE 'text %' THEN convert_from(b, 'UTF8') END;
	result text;
BEGIN
	CASE entry
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
	FOR result IN SELECT a.*, d.name AS entry, test.enter(d.name, a.body, a.signature) AS result FROM test.attack AS a CROSS JOIN test.entry AS d ORDER BY a.id, d.name LOOP
		entered := entered + 1;
		-- (a strict inbox doesn't tell what it ignored)
		IF result.result = result.expected OR (result.entry = 'strict inbox' AND result.expected = 'ignored' AND result.result = 'accepted') THEN
			as_expected := as_expected + 1;
		ELSE
			RAISE WARNING '% (%): %', result.what, result.entry, result.result;
		END IF;
	END LOOP;
	CALL gigs.drain_gig_inbox('test.attack', 7, 'id', 'body', 'signature', 'outcome', 'error', NULL, drained, rejected);
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
-- ... what a lenient reader could take for a digit
INSERT INTO test.attack (what, body, signature, expected)
SELECT format('%s for %s', ascii(t.with), t.digit), convert_to(:'body', 'UTF8'), translate(:'good', t.digit, t.with), '28000: could not authenticate webhook' FROM (VALUES
	('0', 'g'), ('0', 'G'), ('0', 'p'), ('0', 'P'), ('0', 'o'), ('0', 'O'), ('0', '@'), ('0', '`'), ('0', '/'), ('0', ' '), ('0', E'\x10'), ('1', 'q'), ('1', 'l'), ('1', 'I'), ('1', 'h'), ('9', 'i'), ('a', 'j'), ('a', 'z'), ('a', ':'), ('a', '*'), ('f', '?'), ('f', 'v'), ('f', 'o')
) AS t (digit, "with") WHERE strpos(:'good', t.digit) > 0;
-- ... the good one, under another name or for a body that was swapped
INSERT INTO test.attack (what, body, signature, expected)
SELECT what, convert_to(body, 'UTF8'), :'good', '28000: could not authenticate webhook' FROM (VALUES
	('another count', test.body('payroll', 2)), ('another name', test.body('other')), ('an unsigned name', test.body('open')), ('an unknown name', test.body('nobody')), ('no such case', test.body('Payroll')),
	('a space more', test.body('payroll') || ' '), ('a space before', ' ' || test.body('payroll')), ('a line more', test.body('payroll') || E'\n'), ('as jsonb', test.body('payroll')::jsonb::text),
	('a key more', replace(test.body('payroll'), '{"event"', '{"more":1,"event"')), ('another account', replace(test.body('payroll'), '-8000-', '-8001-')), ('another user', replace(test.body('payroll'), '-9000-', '-9001-')),
	('another event', replace(test.body('payroll'), 'gigs.fully_synced', 'paystubs.fully_synced')), ('the name escaped', replace(test.body('payroll'), '"payroll"', '"\u0070ayroll"'))
) AS v (what, body);
-- ... secrets that are empty: the functions refuse them, but the owner may store one
UPDATE gigs.gig_subscription SET secrets = secrets || ROW('', NULL, NULL)::gigs.gig_secret WHERE name = 'payroll';
SELECT test.body('unkeyed') AS unkeyed \gset
SELECT gigs.create_gig_subscription('unkeyed', 'https://example.com/hooks', 'x');
UPDATE gigs.gig_subscription SET secrets[1].secret = '' WHERE name = 'unkeyed';
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
	SELECT what, replace(body, '"available_count":1', '"available_count":' || 100 + row_number() OVER ()) AS body, secret, expected
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
		('two bodies', '{%s,"name":"open",%s}{"name":"payroll"}', NULL, '22032: malformed JSON at byte 169: Expected end of input, but found "{"')
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
	) AS v
) AS v;
CALL test.attack(0, 0, 0);
-- ... the log has what jsonb reads there, once for each body
SELECT count(*) AS accepted, count(*) FILTER (WHERE
	j ->> 'name' = l.name AND j ->> 'event' = l.event::text AND j #>> '{data,account}' = l.account_id::text) AS as_jsonb
FROM gigs.gig_event_log AS l, LATERAL (SELECT convert_from(replace(encode(body, 'escape'), '\\u0000', '')::bytea, 'UTF8')::jsonb AS j) AS b WHERE l.outcome <> 'duplicate';
SELECT l.name, count(*) FROM gigs.gig_event_log AS l GROUP BY l.name ORDER BY l.name COLLATE "C";
SELECT outcome, changed_gigs FROM gigs.gig_event_history WHERE event = 'gigs.updated' AND outcome <> 'duplicate' ORDER BY event_id;
TRUNCATE test.attack, test.raw_inbox, test.text_inbox, test.strict_inbox;

-- Replay: a body that was signed once stays valid.  Within the window it is a
-- duplicate, which changes nothing but what counts deliveries
SELECT gigs.create_gig_subscription('replay', 'https://example.com/hooks', 'replay s3cret');
CREATE FUNCTION test.event(kind text, own text, available int) RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.%s","name":"replay","data":{"account":"00000000-0000-4000-8000-000000000007","user":"00000000-0000-4000-9000-000000000001","available_count":%s%s}}', kind, available, own)
$$;
CREATE TABLE test.replay (id int, body text);
INSERT INTO test.replay VALUES
	(1, test.event('partially_synced', ',"days_synced":30', 10)),
	(2, test.event('added', ',"added_count":5', 15)),
	(3, test.event('fully_synced', '', 50)),
	(4, test.event('updated', ',"updated_count":2,"updated_gigs":["00000000-0000-4000-a000-000000000001"]', 50)),
	(5, test.event('removed', ',"removed_count":1,"removed_gigs":["00000000-0000-4000-a000-000000000002"]', 49));
CREATE VIEW test.account AS
SELECT a.state, a.days_synced AS days, a.available_count AS available, a.added_total AS added, a.updated_total AS updated, a.removed_total AS removed, a.events, a.duplicates, a.last_event
FROM gigs.gig_account_sync AS a WHERE right(a.account_id::text, 1) = '7';
CREATE FUNCTION test.replay() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	hook record;
	outcomes text[];
BEGIN
	FOR hook IN SELECT * FROM test.replay ORDER BY id LOOP
		outcomes := outcomes || gigs.ingest_gig_event(hook.body, gigs.sign_gig_event(hook.body, 'replay s3cret'))::text;
	END LOOP;
	RETURN outcomes;
END
$$;
SELECT test.replay();
TABLE test.account;
CREATE TABLE test.before AS TABLE gigs.gig_account_sync;
SELECT test.replay();
TABLE test.account;
SELECT count(*) FROM gigs.gig_account_sync AS a JOIN test.before AS b USING (account_id) WHERE to_jsonb(a) - '{duplicates,last_event_id}'::text[] = to_jsonb(b) - '{duplicates,last_event_id}'::text[];
-- ... signed by a secret that is retired since, it is rejected
SELECT gigs.add_gig_secret('replay', 'next s3cret');
BEGIN;
SELECT gigs.retire_gig_secret('replay', 'replay s3cret');
SELECT DISTINCT test.enter(d.name, convert_to(r.body, 'UTF8'), gigs.sign_gig_event(r.body, 'replay s3cret')) FROM test.replay AS r, test.entry AS d;
ROLLBACK;
-- ... past the window it is a new event: totals and the log grow, the snapshot is
-- that of the body; but the state and days_synced never go back
SET gigs_webhooks.dedupe_window = 0;
SELECT test.replay();
TABLE test.account;
SELECT gigs.ingest_gig_event(body, gigs.sign_gig_event(body, 'replay s3cret')) FROM test.replay WHERE id = 1;
SELECT gigs.ingest_gig_event(body, gigs.sign_gig_event(body, 'replay s3cret')) FROM test.replay WHERE id = 2;
TABLE test.account;
RESET gigs_webhooks.dedupe_window;
-- ... of other accounts, nothing changes
SELECT count(*) AS others, count(*) FILTER (WHERE a IS NOT DISTINCT FROM b) AS same FROM gigs.gig_account_sync AS a FULL JOIN test.before AS b USING (account_id) WHERE right(account_id::text, 1) <> '7';

-- Objects in a schema that others have on their search_path, as "public" is, are not
-- called: operators for pairs of types that PostgreSQL compares by conversion, and
-- functions that are better matches
CREATE ROLE regress_attack_squatter;
CREATE ROLE regress_attack_superuser SUPERUSER;
CREATE SCHEMA commons;
GRANT USAGE, CREATE ON SCHEMA commons TO regress_attack_squatter;
GRANT USAGE ON SCHEMA gigs, test TO regress_attack_squatter;
CREATE TABLE test.backlog (id varchar(20), body text, signature varchar(200), outcome gigs.gig_ingest_outcome, error varchar(100));
CREATE TABLE test.plain (id text, body bytea, signature text, outcome text, error text);
CREATE TYPE test.priority AS ENUM ('high', 'low', 'none');
CREATE TABLE test.queue (key test.priority, raw bytea, sig text, state varchar(20), why text);
SET ROLE regress_attack_squatter;
CREATE PROCEDURE commons.squat() LANGUAGE plpgsql AS $$
DECLARE
	trap CONSTANT text := 'BEGIN RAISE WARNING ''squatter called by %'', current_user; RETURN NULL; END';
	types CONSTANT text[] := ARRAY['oid', 'regclass', 'integer', 'bigint', 'text', 'varchar', 'name', 'uuid', 'bytea', 'timestamptz', 'interval', 'test.priority', 'gigs.gig_ingest_outcome', 'gigs.gig_sync_state'];
	made record;
BEGIN
	FOR made IN SELECT l, r FROM unnest(types) AS l, unnest(types) AS r LOOP
		EXECUTE format('CREATE FUNCTION commons.trap(%s, %s) RETURNS boolean LANGUAGE plpgsql AS %L', made.l, made.r, trap);
		EXECUTE format('CREATE OPERATOR commons.= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.<> (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.> (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.< (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.<= (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.|| (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
		EXECUTE format('CREATE OPERATOR commons.- (LEFTARG = %s, RIGHTARG = %s, FUNCTION = commons.trap)', made.l, made.r);
	END LOOP;
	FOR made IN SELECT * FROM (VALUES
		('format', 'text, name, name', 'text'), ('format', 'text, text', 'text'), ('format', 'text, name', 'text'), ('quote_ident', 'name', 'text'),
		('convert_to', 'varchar, text', 'bytea'), ('unnest', 'name[]', 'SETOF name'), ('count', '', 'bigint'), ('array_agg', 'text', 'text[]'), ('octet_length', 'varchar', 'int'),
		('jsonb_build_object', 'text, jsonb, text, text, text, text', 'jsonb'), ('to_jsonb', 'text[]', 'jsonb'), ('set_config', 'text, text, boolean', 'text'), ('current_setting', 'text', 'text')
	) AS f (name, arguments, result) LOOP
		EXECUTE format('CREATE FUNCTION commons.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', made.name, made.arguments, made.result, 'BEGIN RAISE WARNING ''squatter called by %'', current_user; RETURN' || CASE WHEN made.result LIKE 'SETOF%' THEN '' ELSE ' NULL' END || '; END');
	END LOOP;
END
$$;
CALL commons.squat();
RESET ROLE;
INSERT INTO test.backlog (id, body) SELECT 'row ' || i, test.body('open', 100 + i) FROM generate_series(1, 5) AS i;
INSERT INTO test.plain (id, body) SELECT 'row ' || i, convert_to(test.body('open', 110 + i), 'UTF8') FROM generate_series(1, 3) AS i;
INSERT INTO test.queue (key, raw) VALUES ('none', convert_to(test.body('open', 203), 'UTF8')), ('high', convert_to(test.body('open', 201), 'UTF8')), ('low', convert_to(test.body('open', 202), 'UTF8'));
CREATE TABLE test.hooked (raw bytea, signature varchar(200), outcome varchar(20), error varchar(100));
CREATE TRIGGER hooked BEFORE INSERT ON test.hooked FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest('raw');
\c -
SET client_min_messages = warning;
\set VERBOSITY terse
SELECT test.body('open', 301) AS body1, test.body('open', 302) AS body2, test.body('open', 303) AS body3, test.body('open', 304) AS body4, test.body('open', 305) AS body5 \gset
SET ROLE regress_attack_superuser;
SET search_path = commons;
-- ... they are there
SELECT 'pg_class'::regclass = 'pg_class'::regclass AS same, 'pg_class'::regclass = 1259::oid AS trapped;
CALL gigs.drain_gig_inbox('test.backlog', 2);
CALL gigs.drain_gig_inbox('test.queue', 1, 'key', 'raw', 'sig', 'state', 'why');
SELECT gigs.create_gig_subscription('squatted', 'https://example.com/', 'one', '{*}', '{}');
SELECT gigs.add_gig_secret('squatted', 'two');
SELECT gigs.retire_gig_secret('squatted', 'two');
SELECT gigs.gig_subscription_request('squatted');
SELECT gigs.drop_gig_subscription('squatted');
SELECT gigs.prune_gig_events('1 day');
SELECT count(*) > 0 AS some FROM gigs.gig_event_counts('1 day', '-infinity', 'infinity');
SELECT count(*) > 0 AS some FROM gigs.gig_sync_status;
SELECT count(*) > 0 AS some FROM gigs.gig_user_sync;
SELECT count(*) > 0 AS some FROM gigs.gig_sync_summary;
SELECT count(*) > 0 AS some FROM gigs.gig_event_history;
SELECT gigs.rebuild_gig_sync() IS NOT NULL AS rebuilt;
-- ... not even where they come first
SET search_path = commons, pg_temp, pg_catalog;
CREATE TEMP TABLE picked (ctid_ pg_catalog.int4);
CREATE TEMP TABLE numbered (n pg_catalog.int4);
CREATE TEMP TABLE marked (outcome pg_catalog.int4);
CREATE TEMP TABLE gig_subscription (name pg_catalog.text);
CREATE DOMAIN pg_temp.text AS pg_catalog.int4;
CREATE DOMAIN pg_temp.bytea AS pg_catalog.int4;
CREATE DOMAIN pg_temp.name AS pg_catalog.int4;
CREATE DOMAIN pg_temp.varchar AS pg_catalog.int4;
CREATE DOMAIN pg_temp.oid AS pg_catalog.bool;
CREATE DOMAIN pg_temp.regclass AS pg_catalog.bool;
CREATE DOMAIN pg_temp.record AS pg_catalog.bool;
CREATE DOMAIN pg_temp.jsonb AS pg_catalog.bool;
CREATE DOMAIN pg_temp.priority AS pg_catalog.bool;
UPDATE test.backlog SET outcome = NULL;
UPDATE test.queue SET state = NULL;
CALL gigs.drain_gig_inbox('test.backlog', 2);
CALL gigs.drain_gig_inbox('test.plain', 2);
CALL gigs.drain_gig_inbox('test.queue', 2, 'key', 'raw', 'sig', 'state', 'why');
SELECT gigs.create_gig_subscription('squatted', 'https://example.com/', 'one');
SELECT gigs.add_gig_secret('squatted', 'two');
SELECT gigs.retire_gig_secret('squatted', 'two');
SELECT gigs.gig_subscription_request('squatted');
SELECT gigs.drop_gig_subscription('squatted');
SELECT gigs.create_gig_subscription('squatted', 'https://example.com/', 'one');
UPDATE gigs.gig_subscription SET name = 'renamed' WHERE name OPERATOR(pg_catalog.=) 'squatted';
DELETE FROM gigs.gig_subscription WHERE name OPERATOR(pg_catalog.=) 'renamed';
BEGIN;
TRUNCATE gigs.gig_subscription;
ROLLBACK;
SELECT gigs.prune_gig_events('1 day');
SELECT gigs.ingest_gig_event(:'body1', NULL);
SELECT gigs.ingest_gig_event(:'body2'::pg_catalog.bytea, NULL);
SELECT outcome FROM gigs.try_ingest_gig_event(:'body2', NULL);
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[:'body3'::pg_catalog.bytea, :'body4'], NULL);
INSERT INTO test.hooked (raw) VALUES (:'body4'), (:'body5'), ('{}') RETURNING outcome, error;
SELECT available_count FROM gigs.parse_gig_event(:'body1'::pg_catalog.text);
SELECT gigs.rebuild_gig_sync() IS NOT NULL AS rebuilt;
SELECT pg_catalog.count(c) OPERATOR(pg_catalog.>) 0 AS some FROM gigs.gig_event_counts('1 day', '-infinity', 'infinity') AS c;
SELECT pg_catalog.count(s) OPERATOR(pg_catalog.>) 0 AS some FROM gigs.gig_sync_status AS s;
SELECT pg_catalog.count(s) OPERATOR(pg_catalog.>) 0 AS some FROM gigs.gig_user_sync AS s;
SELECT pg_catalog.count(s) OPERATOR(pg_catalog.>) 0 AS some FROM gigs.gig_sync_summary AS s;
SELECT pg_catalog.count(h) OPERATOR(pg_catalog.>) 0 AS some FROM gigs.gig_event_history AS h;
SHOW search_path;
RESET search_path;
RESET ROLE;
\set VERBOSITY default
SET search_path = pg_catalog;
SELECT id, outcome, error FROM test.backlog ORDER BY id COLLATE "C";
SELECT id, outcome, error FROM test.plain ORDER BY id COLLATE "C";
SELECT key, state, why FROM test.queue ORDER BY key;
SELECT right(convert_from(body, 'UTF8'), 5) AS body, event_id - min(event_id) OVER () AS place FROM gigs.gig_event_log WHERE body LIKE '%"available_count":20_}}' ORDER BY event_id;
\c -
SET client_min_messages = warning;
SET search_path = pg_catalog;
-- Overloads in the extension's own schema that are better matches for arguments of
-- unknown type are not called by the extension.  The caller must cast, of course.
GRANT CREATE ON SCHEMA gigs TO regress_attack_squatter;
CREATE TABLE test.ours AS
SELECT p.proname AS name, p.prokind AS kind, p.proargtypes::oid[] AS types FROM pg_proc AS p
WHERE p.pronamespace = 'gigs'::regnamespace AND p.pronargs > 0;
GRANT SELECT ON test.ours TO regress_attack_squatter;
SET ROLE regress_attack_squatter;
DO $$
DECLARE
	made record;
BEGIN
	FOR made IN
		SELECT DISTINCT o.name, o.kind, (SELECT string_agg(CASE WHEN bits & (1 << ord::int) <> 0 THEN k.type ELSE format_type(t, NULL) END, ', ' ORDER BY ord)
			FROM unnest(o.types) WITH ORDINALITY AS u (t, ord)) AS arguments
		FROM test.ours AS o, unnest(ARRAY['text', 'name', 'integer', 'bytea', 'text[]']) AS k (type), generate_series(2, least(2 ^ (cardinality(o.types) + 1), 64)::int - 2, 2) AS bits
	LOOP
		BEGIN
			EXECUTE format('CREATE FUNCTION gigs.%I(%s) RETURNS text LANGUAGE plpgsql AS %L', made.name, made.arguments, 'BEGIN RAISE ''squatter called by %'', current_user; END');
		EXCEPTION WHEN duplicate_function THEN
			NULL;
		END;
	END LOOP;
END
$$;
RESET ROLE;
SELECT count(*) > 100 AS many FROM pg_proc AS p WHERE p.pronamespace = 'gigs'::regnamespace AND p.proowner = 'regress_attack_squatter'::regrole;
\c -
SET client_min_messages = warning;
SET search_path = pg_catalog;
\set VERBOSITY terse
-- ... they are there
SELECT gigs.drop_gig_consumer('x'::name);
SELECT gigs.prune_gig_events('1 day', NULL);
SELECT test.body('open', 501) AS body1, test.body('open', 502) AS body2 \gset
SELECT gigs.ingest_gig_event(:'body1'::text, NULL::text);
SELECT outcome FROM gigs.try_ingest_gig_event(:'body1'::bytea, NULL::text);
SELECT outcome FROM gigs.ingest_gig_events(ARRAY[:'body1', :'body2']::bytea[], NULL::text[], NULL::timestamptz[]);
INSERT INTO gigs.gig_quarantine (received_at, name, sqlstate, message, body) VALUES ('2023-01-01', 'open', '0A000', '', test.body('open', 503)::bytea), ('2023-01-01', 'open', '0A000', '', '{}');
SELECT * FROM gigs.retry_gig_quarantine(NULL::bigint);
SELECT gigs.create_gig_subscription('squatted'::text, 'https://example.com/'::text, 'one'::text, '{*}'::text[], '{}'::jsonb);
SELECT gigs.add_gig_secret('squatted'::text, 'two'::text);
SELECT gigs.retire_gig_secret('squatted'::text, 'two'::text, now());
SELECT gigs.gig_subscription_request('squatted'::text) ->> 'secret' AS secret;
SELECT gigs.drop_gig_subscription('squatted'::text);
SELECT gigs.create_gig_consumer('squatted'::text, NULL::gigs.gig_event_kind[], 1::integer, 0::bigint);
SELECT max(w.batch) AS batch FROM gigs.read_gig_work('squatted'::text, 1000::integer, '1 minute'::interval) AS w \gset
SELECT gigs.retry_gig_work(:batch::bigint, '00000000-0000-4000-8000-000000000001'::uuid, 'later'::text, NULL::interval);
SELECT gigs.finish_gig_work(:batch::bigint);
SELECT gigs.revive_gig_work('squatted'::text, NULL::uuid);
SELECT gigs.gig_account_fetched('squatted'::text, '00000000-0000-4000-8000-000000000001'::uuid);
SELECT consumer, retries FROM gigs.gig_consumer_status;
SELECT gigs.seek_gig_consumer('squatted'::text, 0::bigint);
SELECT gigs.drop_gig_consumer('squatted'::text);
SELECT * FROM gigs.rebuild_gig_sync(NULL::uuid);
SELECT held_back_by FROM gigs.prune_gig_events('1 day'::interval, 10::integer);
SELECT count(*) > 0 AS some FROM gigs.gig_event_counts('1 day'::interval, '-infinity'::timestamptz, 'infinity'::timestamptz);
SELECT count(*) > 0 AS some FROM gigs.gig_sync_status;
SELECT count(*) > 0 AS some FROM gigs.gig_user_sync;
SELECT count(*) > 0 AS some FROM gigs.gig_sync_summary;
SELECT count(*) > 0 AS some FROM gigs.gig_event_history;
SELECT count(*) > 0 AS some FROM gigs.gig_recent_delivery;
SELECT gigs.grant_gig_receiver('regress_attack_superuser'::regrole);
SELECT gigs.grant_gig_consumer('regress_attack_superuser'::regrole);
DROP OWNED BY regress_attack_superuser;
CREATE TABLE test.squatted (id int, body text, signature text, outcome text, error text);
INSERT INTO test.squatted (id, body) VALUES (1, test.body('open', 504));
CALL gigs.drain_gig_inbox('test.squatted'::regclass, 10::integer, 'id'::name, 'body'::name, 'signature'::name, 'outcome'::name, 'error'::name, NULL::name, 0::bigint, 0::bigint);
CREATE TRIGGER ingest BEFORE INSERT ON test.squatted FOR EACH ROW EXECUTE FUNCTION gigs.gig_inbox_ingest();
INSERT INTO test.squatted (id, body) VALUES (2, test.body('open', 505));
SELECT id, outcome, error FROM test.squatted ORDER BY id;
\set VERBOSITY default
REVOKE CREATE ON SCHEMA gigs FROM regress_attack_squatter;
DO $$
DECLARE
	made record;
BEGIN
	FOR made IN SELECT p.oid::regprocedure AS f FROM pg_proc AS p WHERE p.pronamespace = 'gigs'::regnamespace AND p.proowner = 'regress_attack_squatter'::regrole LOOP
		EXECUTE format('DROP FUNCTION %s', made.f);
	END LOOP;
END
$$;

-- What the owner of an inbox has attached to it runs as the role that drains, as with
-- any UPDATE, and not as the extension's owner
CREATE ROLE regress_attack_worker;
GRANT USAGE ON SCHEMA gigs, commons, test TO regress_attack_worker;
GRANT EXECUTE ON FUNCTION gigs.ingest_gig_events(bytea[], text[]) TO regress_attack_worker;
GRANT EXECUTE ON PROCEDURE gigs.drain_gig_inbox TO regress_attack_worker;
SET ROLE regress_attack_squatter;
CREATE FUNCTION commons.ran(what text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE WARNING '% as %, search_path %', what, current_user, current_setting('search_path');
	BEGIN
		PERFORM secrets FROM gigs.gig_subscription;
		RAISE WARNING 'secrets read as %', current_user;
	EXCEPTION WHEN insufficient_privilege THEN
		NULL;
	END;
	RETURN true;
END
$$;
CREATE FUNCTION commons.ran() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM commons.ran(''trigger''); RETURN new; END';
CREATE DOMAIN commons.told AS text CHECK (VALUE IS NULL OR commons.ran('check of a domain'));
CREATE TABLE commons.inbox (id int, body text, signature text, outcome text, error commons.told, CHECK (outcome IS NULL OR commons.ran('check of a table')));
CREATE TRIGGER ran BEFORE UPDATE ON commons.inbox FOR EACH ROW EXECUTE FUNCTION commons.ran();
INSERT INTO commons.inbox VALUES (1, '{}');
GRANT SELECT, UPDATE ON commons.inbox TO regress_attack_worker;
RESET ROLE;
SET ROLE regress_attack_worker;
SET search_path = 'Some Where', commons;
\set VERBOSITY terse
CALL gigs.drain_gig_inbox('commons.inbox');
\set VERBOSITY default
SHOW search_path;
SET search_path = pg_catalog;
RESET ROLE;
SELECT outcome, error FROM commons.inbox;
DROP OWNED BY regress_attack_worker CASCADE;
DROP ROLE regress_attack_worker;
DROP OWNED BY regress_attack_squatter CASCADE;

-- A role that may ingest tries all that can be done to an object, on every object of
-- the extension.  It may use the types, which show nothing; the rest is denied.
CREATE ROLE regress_attack_receiver;
CREATE ROLE regress_attack_friend;
GRANT USAGE ON SCHEMA gigs, test TO regress_attack_receiver;
GRANT USAGE ON SCHEMA test TO regress_attack_friend;
GRANT EXECUTE ON FUNCTION gigs.ingest_gig_event(bytea, text) TO regress_attack_receiver;
CREATE SCHEMA own AUTHORIZATION regress_attack_receiver;
CREATE FUNCTION test.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'DONE0' USING MESSAGE = 'undo it';
EXCEPTION WHEN OTHERS THEN
	RETURN CASE sqlstate WHEN 'DONE0' THEN 'done' ELSE sqlstate END;
END
$$;
CREATE FUNCTION own.trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TABLE test.operation (kind text, operation text);
INSERT INTO test.operation
SELECT k.kind, o.operation FROM (VALUES ('r'), ('v'), ('S'), ('i'), ('f'), ('t')) AS k (kind)
JOIN (VALUES
	('rvS', 'SELECT FROM %s'), ('rv', 'SELECT * FROM %s'), ('rv', 'SELECT ctid FROM %s'), ('r', 'SELECT tableoid FROM %s FOR UPDATE'), ('r', 'SELECT FROM ONLY %s FOR KEY SHARE'),
	('rv', 'TABLE %s'), ('rv', 'COPY %s TO ''/dev/null'''), ('r', 'COPY %s FROM ''/dev/null'''), ('rv', 'COPY (SELECT * FROM %s) TO ''/dev/null'''), ('rv', 'EXPLAIN SELECT * FROM %s'), ('rv', 'EXPLAIN (ANALYZE, VERBOSE) TABLE %s'),
	('rv', 'DECLARE c CURSOR FOR TABLE %s'), ('rv', 'SELECT t FROM %s AS t'), ('rv', 'SELECT count(*) FROM %s'), ('r', 'SELECT FROM %s TABLESAMPLE SYSTEM (100)'), ('rv', 'CREATE TABLE own.copy AS TABLE %s'), ('rv', 'CREATE MATERIALIZED VIEW own.copy AS TABLE %s'), ('rv', 'CREATE TABLE own.copy (LIKE %s)'),
	('r', 'INSERT INTO %s DEFAULT VALUES'), ('r', 'INSERT INTO %s SELECT * FROM %1$s'), ('r', 'DELETE FROM %s'), ('r', 'DELETE FROM %s WHERE false'), ('r', 'TRUNCATE %s CASCADE'),
	('r', 'LOCK TABLE %s IN ACCESS SHARE MODE'), ('r', 'LOCK TABLE %s'), ('v', 'LOCK TABLE %s'), ('r', 'CREATE TABLE own.child () INHERITS (%s)'), ('r', 'CREATE INDEX ON %s ((1))'), ('r', 'CREATE STATISTICS own.s ON ctid, tableoid FROM %s'),
	('r', 'CREATE TRIGGER trap BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION own.trap()'), ('v', 'CREATE TRIGGER trap INSTEAD OF INSERT ON %s FOR EACH ROW EXECUTE FUNCTION own.trap()'), ('rv', 'CREATE RULE trap AS ON UPDATE TO %s DO INSTEAD NOTHING'), ('r', 'CREATE POLICY trap ON %s USING (true)'),
	('r', 'ALTER TABLE %s ADD COLUMN trap int'), ('r', 'ALTER TABLE %s DISABLE TRIGGER ALL'), ('r', 'ALTER TABLE %s ENABLE ROW LEVEL SECURITY'), ('r', 'ALTER TABLE %s SET UNLOGGED'), ('r', 'ALTER TABLE %s ADD CHECK (false)'), ('rvS', 'ALTER TABLE %s RENAME TO trap'), ('r', 'ALTER TABLE %s SET SCHEMA own'), ('rv', 'ALTER TABLE %s OWNER TO regress_attack_receiver'), ('r', 'ALTER TABLE %s SET (autovacuum_enabled = false)'), ('r', 'ALTER TABLE %s REPLICA IDENTITY FULL'),
	('v', 'ALTER VIEW %s RENAME TO trap'), ('v', 'ALTER VIEW %s OWNER TO CURRENT_USER'), ('v', 'CREATE OR REPLACE VIEW %s AS SELECT 1'), ('v', 'DROP VIEW %s CASCADE'), ('r', 'DROP TABLE %s CASCADE'), ('r', 'REINDEX TABLE %s'), ('r', 'CREATE PUBLICATION own FOR TABLE %s'),
	('i', 'REINDEX INDEX %s'), ('i', 'ALTER INDEX %s RENAME TO trap'), ('i', 'DROP INDEX %s'),
	('S', 'SELECT nextval(%L)'), ('S', 'SELECT setval(%L, 1)'), ('S', 'SELECT currval(%L)'), ('S', 'ALTER SEQUENCE %s RESTART'), ('S', 'ALTER SEQUENCE %s OWNED BY NONE'), ('S', 'DROP SEQUENCE %s CASCADE'), ('S', 'SELECT last_value FROM %s'),
	('rvSi', 'COMMENT ON %2$s %1$s IS ''trap'''), ('f', 'COMMENT ON ROUTINE %s IS ''trap'''), ('t', 'COMMENT ON TYPE %s IS ''trap'''),
	('f', 'ALTER ROUTINE %s RENAME TO trap'), ('f', 'ALTER ROUTINE %s OWNER TO CURRENT_USER'), ('f', 'ALTER ROUTINE %s SET SCHEMA own'), ('f', 'ALTER ROUTINE %s SET search_path = own'), ('f', 'ALTER ROUTINE %s SECURITY INVOKER'), ('f', 'DROP ROUTINE %s CASCADE'), ('f', 'ALTER ROUTINE %s DEPENDS ON EXTENSION plpgsql'),
	('t', 'ALTER TYPE %s RENAME TO trap'), ('t', 'ALTER TYPE %s OWNER TO CURRENT_USER'), ('t', 'ALTER TYPE %s SET SCHEMA own'), ('t', 'DROP TYPE %s CASCADE'),
	('t', 'CREATE CAST (%s AS text) WITH INOUT AS IMPLICIT'), ('t', 'CREATE TYPE own.range AS RANGE (subtype = %s)'), ('t', 'CREATE TABLE own.uses (x %s)')
) AS o (kinds, operation) ON strpos(o.kinds, k.kind) > 0;
INSERT INTO test.operation VALUES ('r', 'UPDATE %s SET %3$I = %3$I'), ('r', 'SELECT %3$I FROM %1$s'), ('r', 'CREATE TABLE own.refers (x %4$s REFERENCES %1$s (%3$I))');
CREATE VIEW test.object AS
SELECT c.relkind::text AS kind, c.oid::regclass::text AS name, CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' WHEN 'i' THEN 'INDEX' END AS word, a.attname AS "column", a.atttypid::regtype::text AS type
FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1 WHERE c.relnamespace = 'gigs'::regnamespace AND c.relkind IN ('r', 'v', 'S', 'i')
UNION ALL SELECT 'f', p.oid::regprocedure::text, NULL, NULL, NULL FROM pg_proc AS p WHERE p.pronamespace = 'gigs'::regnamespace
UNION ALL SELECT 't', t.oid::regtype::text, NULL, NULL, NULL FROM pg_type AS t WHERE t.typnamespace = 'gigs'::regnamespace AND t.typtype IN ('c', 'e') AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c');
SELECT kind, count(*) > 3 AS many FROM test.object GROUP BY kind ORDER BY kind COLLATE "C";
ANALYZE gigs.gig_subscription;
GRANT SELECT ON test.object, test.operation TO regress_attack_receiver;
SET ROLE regress_attack_receiver;
CREATE TEMP TABLE tried AS
SELECT p.kind, p.operation, b.name, test.try(format(p.operation, b.name, b.word, b."column", b.type)) AS result FROM test.operation AS p JOIN test.object AS b USING (kind);
RESET ROLE;
SELECT count(*) > 500 AS many, count(*) FILTER (WHERE result = '42501') * 100 / count(*) > 90 AS nearly_all_denied FROM tried;
-- ... what is not denied neither reads nor changes anything
SELECT kind, operation, result, count(*) > 0 AS any FROM tried WHERE result <> '42501' GROUP BY kind, operation, result ORDER BY (kind, operation, result)::text COLLATE "C";
-- ... statements that name no object of a kind, or one in particular
SELECT gigs.gig_dedupe_window() > interval '0' AS loaded;
SET client_min_messages = error;
SET ROLE regress_attack_receiver;
SELECT statement, test.try(statement) FROM unnest(ARRAY[
	'DROP EXTENSION gigs_webhooks CASCADE', 'ALTER EXTENSION gigs_webhooks UPDATE', 'ALTER EXTENSION gigs_webhooks SET SCHEMA own', 'ALTER EXTENSION gigs_webhooks DROP TABLE gigs.gig_event_log', 'ALTER EXTENSION gigs_webhooks ADD FUNCTION own.trap()', 'COMMENT ON EXTENSION gigs_webhooks IS ''trap''',
	'DROP SCHEMA gigs CASCADE', 'ALTER SCHEMA gigs RENAME TO trap', 'ALTER SCHEMA gigs OWNER TO CURRENT_USER', 'CREATE TABLE gigs.trap ()', 'CREATE FUNCTION gigs.trap() RETURNS int LANGUAGE sql AS ''SELECT 1''', 'CREATE TYPE gigs.trap AS ()', 'CREATE OPERATOR gigs.= (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)',
	'CREATE FUNCTION own.mine(bytea, text) RETURNS gigs.gig_ingest_outcome LANGUAGE c AS ''$libdir/gigs_webhooks'', ''ingest_gig_event''', 'CREATE FUNCTION own.mine() RETURNS void LANGUAGE c AS ''$libdir/gigs_webhooks'', ''gig_subscription_changed''', 'LOAD ''$libdir/gigs_webhooks''',
	'CREATE OR REPLACE FUNCTION gigs.gig_stalled_after() RETURNS interval LANGUAGE sql AS ''SELECT interval ''''0''''''', 'ALTER TYPE gigs.gig_sync_state ADD VALUE ''trap''', 'ALTER TYPE gigs.gig_event_kind RENAME VALUE ''gigs.added'' TO ''trap''', 'ALTER TYPE gigs.gig_event DROP ATTRIBUTE name',
	'GRANT regress_attack_superuser TO regress_attack_receiver', 'GRANT ALL ON ALL TABLES IN SCHEMA gigs TO regress_attack_friend', 'GRANT SELECT ON gigs.gig_subscription TO regress_attack_receiver', 'GRANT ALL ON ALL ROUTINES IN SCHEMA gigs TO regress_attack_receiver', 'REASSIGN OWNED BY regress_attack_superuser TO regress_attack_receiver',
	'CREATE EVENT TRIGGER trap ON ddl_command_end EXECUTE FUNCTION own.trap()', 'SET session_replication_role = replica', 'SET gigs_webhooks.dedupe_window = 0', 'SET gigs_webhooks.direct_writes = off', 'SET gigs_webhooks.max_body_size = 1024',
	'ALTER ROLE regress_attack_receiver SET gigs_webhooks.dedupe_window = 0', 'ALTER ROLE ALL SET gigs_webhooks.stalled_after = 0',
	'SELECT stavalues1 FROM pg_statistic', 'SELECT FROM pg_subscription, pg_authid'
]) AS s (statement);
SELECT count(*) AS stats FROM pg_stats WHERE schemaname = 'gigs';
-- ... it cannot pass on what it was granted
GRANT EXECUTE ON FUNCTION gigs.ingest_gig_event(bytea, text) TO regress_attack_friend;
SET client_min_messages = warning;
RESET ROLE;
SELECT has_function_privilege('regress_attack_friend', 'gigs.ingest_gig_event(bytea, text)', 'EXECUTE') AS passed_on;
-- ... but a SECURITY DEFINER function of the role may do what the role may, no more
SET ROLE regress_attack_receiver;
CREATE FUNCTION own.ingest(body bytea) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT gigs.ingest_gig_event(body, NULL)::text';
CREATE FUNCTION own.steal() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT secrets::text FROM gigs.gig_subscription';
GRANT USAGE ON SCHEMA own TO regress_attack_friend;
SET ROLE regress_attack_friend;
SELECT own.ingest(convert_to(test.body('open', 300), 'UTF8'));
SELECT test.try('SELECT own.steal()');
SELECT test.try('SELECT gigs.ingest_gig_event('''', NULL)');
RESET ROLE;

-- No error shows a secret that a function was called with
CREATE FUNCTION test.shown(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	message text; detail text; hint text; context text; col text; con text; tab text;
BEGIN
	EXECUTE format('SELECT gigs.%s', call) USING 'visible s3cret';
	RETURN 'done';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT, col = COLUMN_NAME, con = CONSTRAINT_NAME, tab = TABLE_NAME;
	RETURN concat_ws(' / ', sqlstate, message, CASE WHEN concat(message, detail, hint, context, col, con, tab) LIKE '%visible%' THEN 'SECRET SHOWN: ' || concat_ws(' / ', detail, hint, context, col, con, tab) END);
END
$$;
SELECT test.shown('add_gig_secret(''payroll'', $1)');
SELECT test.shown('add_gig_secret(''payroll'', $1)');
SELECT test.shown('add_gig_secret(''nobody'', $1)');
SELECT test.shown('retire_gig_secret(''nobody'', $1)');
SELECT test.shown('retire_gig_secret(''other'', $1)');
SELECT test.shown('create_gig_subscription(''other'', ''u'', $1)');
SELECT test.shown('create_gig_subscription(''bad'', '''', $1)');
SELECT test.shown('sign_gig_event(''x''::text, $1 || null) IS NULL');
SELECT test.shown('ingest_gig_event(''x''::text, $1)');
-- ... nor do the views show one, or a body, to a role that may read them
GRANT SELECT ON gigs.gig_event_history, gigs.gig_sync_status, gigs.gig_user_sync, gigs.gig_sync_summary TO regress_attack_receiver;
SET ROLE regress_attack_receiver;
CREATE FUNCTION own.leak(x anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN
	IF x::text LIKE '%s3cret%' OR x::text LIKE '%"data"%' THEN
		RAISE WARNING 'leaked: %', x;
	END IF;
	RETURN true;
END
$$;
SELECT count(*) > 0 AS some FROM gigs.gig_event_history AS h WHERE own.leak(h) AND own.leak(h.name);
SELECT count(*) > 0 AS some FROM gigs.gig_sync_status AS s WHERE own.leak(s);
SELECT count(*) > 0 AS some FROM gigs.gig_user_sync AS s WHERE own.leak(s);
SELECT count(*) > 0 AS some FROM gigs.gig_sync_summary AS s WHERE own.leak(s);
SELECT count(*) AS columns FROM information_schema.columns WHERE table_schema = 'gigs' AND (column_name IN ('secret', 'body') OR table_name LIKE 'gig_subscription%');
SELECT count(*) AS stats FROM pg_stats WHERE schemaname = 'gigs' AND tablename = 'gig_subscription';
RESET ROLE;

\c -
SET client_min_messages = warning;
DROP OWNED BY regress_attack_receiver, regress_attack_friend CASCADE;
DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs, test, commons CASCADE;
DROP ROLE regress_attack_squatter, regress_attack_superuser, regress_attack_receiver, regress_attack_friend;
