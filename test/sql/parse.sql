--
-- What parses, what is refused, and what is said then
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = gigs, public;
\pset format unaligned
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, MDY';

-- A query's result, or its SQLSTATE and message
CREATE FUNCTION pg_temp.try(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE query INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
CREATE FUNCTION pg_temp.try_body(body bytea) RETURNS text LANGUAGE sql AS
	$$SELECT pg_temp.try(format('SELECT gigs.parse_gig_event(%L::bytea)', body))$$;
CREATE FUNCTION pg_temp.try_body(body text) RETURNS text LANGUAGE sql AS
	$$SELECT pg_temp.try_body(convert_to(body, 'UTF8'))$$;

-- A good gigs.partially_synced, and the same with keys of "data" replaced
-- (with null as text: taken out)
CREATE FUNCTION pg_temp.partial(VARIADIC replaced text[] DEFAULT '{}')
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	keys text[] := '{account,user,available_from,available_to,available_count,days_synced}';
	vals text[] := ARRAY[
		'"0187c66e-e7e5-811c-b006-2232f00f426a"',
		'"018051aa-f7a9-a0db-2f38-6cfa325e9d69"',
		'"2023-01-02T03:04:05Z"', '"2023-03-03T00:00:00Z"', '132', '60'
	];
	members text := '';
BEGIN
	FOR i IN 1 .. coalesce(array_length(replaced, 1), 0) / 2 LOOP
		IF array_position(keys, replaced[2 * i - 1]) IS NULL THEN
			keys := keys || replaced[2 * i - 1];
		END IF;
		vals[array_position(keys, replaced[2 * i - 1])] := replaced[2 * i];
	END LOOP;
	FOR i IN 1 .. array_length(keys, 1) LOOP
		IF vals[i] IS NOT NULL THEN
			members := members || format(',"%s":%s', keys[i], vals[i]);
		END IF;
	END LOOP;
	RETURN format('{"event":"gigs.partially_synced","name":"n","data":{%s}}', substr(members, 2));
END
$$;
CREATE FUNCTION pg_temp.try_partial(VARIADIC replaced text[]) RETURNS text LANGUAGE sql AS
	$$SELECT pg_temp.try_body(pg_temp.partial(VARIADIC replaced))$$;

--
-- The five events of the reference
--
CREATE TEMP TABLE example AS
SELECT event, format($json${
  "event": "%s",
  "name": "name-for-the-webhook-subscription",
  "data": {
    "account": "0187c66e-e7e5-811c-b006-2232f00f426a",
    "user": "018051aa-f7a9-a0db-2f38-6cfa325e9d69",
%s
  }
}
$json$, event, data) AS body
FROM (VALUES
	('gigs.added', $json$    "available_from": "2016-04-16T05:32:41Z",
    "available_to": "2023-03-03T00:00:00Z",
    "available_count": 2385,
    "added_count": 6,
    "added_from": "2023-03-02T00:00:00Z",
    "added_to": "2023-03-03T00:00:00Z"$json$),
	('gigs.updated', $json$    "available_from": "2016-04-16T05:32:41Z",
    "available_to": "2023-03-03T00:00:00Z",
    "available_count": 2385,
    "updated_count": 2,
    "updated_gigs": [
      "0187b43a-35fa-56e2-1a95-f7e4232a4b3a",
      "0187dbfa-6f5e-a33a-af26-7e12ff408fea"
    ],
    "updated_from": "2023-03-02T00:00:00Z",
    "updated_to": "2023-03-03T00:00:00Z"$json$),
	('gigs.removed', $json$    "available_from": "2016-04-16T05:32:41Z",
    "available_to": "2023-03-02T00:00:00Z",
    "available_count": 2383,
    "removed_count": 2,
    "removed_gigs": [
      "0187b43a-35fa-56e2-1a95-f7e4232a4b3a",
      "0187dbfa-6f5e-a33a-af26-7e12ff408fea"
    ],
    "removed_from": "2023-03-02T00:00:00Z",
    "removed_to": "2023-03-03T00:00:00Z"$json$),
	('gigs.partially_synced', $json$    "available_from": "2023-01-02T0:000:00Z",
    "available_to": "2023-03-03T0:000:00Z",
    "available_count": 132,
    "days_synced": 60$json$),
	('gigs.fully_synced', $json$    "available_from": "2016-04-16T05:32:41Z",
    "available_to": "2023-03-02T00:00:00Z",
    "available_count": 2379$json$)
) AS v (event, data);

-- these are the bodies in test/payloads, byte for byte
SELECT event, octet_length(body), md5(body) FROM example;

\x
SELECT (parse_gig_event(body)).* FROM example;
SELECT (parse_gigs_added(body)).* FROM example WHERE event = 'gigs.added';
SELECT (parse_gigs_updated(body)).* FROM example WHERE event = 'gigs.updated';
SELECT (parse_gigs_removed(body)).* FROM example WHERE event = 'gigs.removed';
SELECT (parse_gigs_partially_synced(body)).* FROM example WHERE event = 'gigs.partially_synced';
SELECT (parse_gigs_fully_synced(body)).* FROM example WHERE event = 'gigs.fully_synced';
\x

-- a typed function takes no other event
SELECT pg_temp.try('SELECT gigs.parse_gigs_added(body) FROM example WHERE event = ''gigs.removed''');

-- text and bytea are the same
SELECT parse_gig_event(body) = parse_gig_event(convert_to(body, 'UTF8')) AS same FROM example;

--
-- Shapes of JSON that mean the same
--
SELECT pg_temp.try_body(pg_temp.partial());
-- any order, white space, unknown and nested keys, keys of other events
SELECT pg_temp.try_body(E'\t{ "data" :{"days_synced":60,"resource":{"data":{"account":1,"a":[{"event":[[]]}]}},"item_id":"item_000041078",\r\n'
	'"updated_gigs":[1,[2],{"account":3}],"added_count":"x","available_count":132,"user":"018051AA-F7A9-A0DB-2F38-6CFA325E9D69",'
	'"account":"0187c66e-e7e5-811c-b006-2232f00f426a"}  ,"livemode":true,"name":"n","x":null,"event":"gigs.partially_synced" } ');
-- the last of duplicate keys counts, on both levels, and whatever the first was
SELECT pg_temp.try_partial('days_synced', '[7],"days_synced":"8","days_synced":60');
SELECT pg_temp.try_body(replace(pg_temp.partial(), '"data":', '"data":{"days_synced":1,"available_from":"2001-01-01T00:00:00Z"},"data":'))
	= pg_temp.try_body(pg_temp.partial()) AS last_data_counts;
SELECT pg_temp.try_body(replace(pg_temp.partial('available_from', NULL), '"data":', '"data":{"available_from":"2001-01-01T00:00:00Z"},"data":'));
SELECT pg_temp.try_body(replace(pg_temp.partial(), '"name":"n"', '"name":"n","data":7'));
SELECT pg_temp.try_body(pg_temp.partial() || '{}');
SELECT pg_temp.try_body(rtrim(pg_temp.partial(), '}') || '},"data":7}');
SELECT (parse_gig_event(format('{"event":"gigs.updated","name":"n","data":{"account":"0187c66e-e7e5-811c-b006-2232f00f426a",'
	'"user":"018051aa-f7a9-a0db-2f38-6cfa325e9d69","available_count":1,"updated_count":1,"updated_gigs":%s}}', gigs))).changed_gigs
FROM (VALUES
	('[]'),
	('["0187b43a-35fa-56e2-1a95-f7e4232a4b3a"]'),
	('[1,2],"updated_gigs":["0187b43a-35fa-56e2-1a95-f7e4232a4b3a"]'),
	('["0187dbfa-6f5e-a33a-af26-7e12ff408fea"],"updated_gigs":["0187b43a-35fa-56e2-1a95-f7e4232a4b3a"]')
) AS v (gigs);
-- escapes in keys and strings
SELECT pg_temp.try_body(replace(replace(replace(pg_temp.partial(),
	'"days_synced"', '"days\u005fsynced"'), '"data"', '"\u0064\u0061ta"'), '"0187c66e', '"\u0030187c66e'));
SELECT (parse_gig_event(replace(pg_temp.partial(), '"n"', '"\"\\\/\b\f\n\r\t\u0041\u00e9"'))).name
	= E'"\\/\b\f\n\r\tA\u00e9' AS escapes;
SELECT octet_length(convert_to((parse_gig_event(replace(pg_temp.partial(), '"n"', '"\ud83d\ude00"'))).name, 'UTF8')) AS surrogate_pair;
-- a key that ends in a backslash, or is empty
SELECT pg_temp.try_partial('\\', '1', '', '2', '\"days_synced\"', '3', 'a\\\"', '4');
-- \u0000 and halves of surrogate pairs are let pass where nobody reads them
SELECT pg_temp.try_partial('item_id', '"\u0000 \ud800"', 'x\u0000', '1', 'days_synced\u0000', '7');
SELECT pg_temp.try_body(replace(pg_temp.partial(), '"n"', format('"%s"', s)))
FROM unnest(ARRAY['a\u0000b', '\ud800', '\ud800x', '\ud800\u0041', '\udc00', '\ud800\ud800']) AS s;
SELECT pg_temp.try_partial('account', '"0187c66e-e7e5-811c-b006-2232f00f42\u00006a"');
-- without date-times, and with every form that they come in
SELECT pg_temp.try_partial('available_from', NULL, 'available_to', 'null', 'available_count', '0');
SELECT s, (parse_gig_event(pg_temp.partial('available_from', to_json(s)::text))).available_from
FROM unnest('{2023-01-02T03:04:05Z,2023-01-02t03:04:05z,2023-01-02 03:04:05,2023-01-02T03:04:05,2023-01-02T03:04,
	2023-01-02T03:04:05.123456Z,2023-01-02T03:04:05.5+02:00,2023-01-02T03:04:05-0330,2023-01-02T03:04:05+02,
	2023-01-02T0:000:00Z,2024-02-29T24:00:00Z,2016-12-31T23:59:60Z,0001-01-01T00:00:00Z,9999-12-31T23:59:59Z}'::text[]) AS s;
-- as PostgreSQL reads them, all over the calendar
SELECT count(*), count(*) FILTER (WHERE parsed <> read) AS different
FROM generate_series(timestamp '0001-01-01 00:00:00', '9999-12-31 23:59:59', '97 days 7:11:13') AS t,
	to_char(t, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS s,
	CAST(s AS timestamptz) AS read,
	LATERAL (SELECT (parse_gig_event(pg_temp.partial('available_from', to_json(s)::text))).available_from) AS p (parsed);
SELECT s, (parse_gig_event(pg_temp.partial('available_from', to_json(s)::text))).available_from = s::timestamptz AS same
FROM unnest('{2000-02-29T00:00:00Z,2023-02-28T23:59:59Z,2023-12-31T00:00:00Z,2023-04-30T23:00:00Z}'::text[]) AS s;
-- whatever the session's zone and style
SET TimeZone = 'America/New_York';
SET DateStyle = 'SQL, DMY';
SET timezone_abbreviations = 'India';
SELECT (parse_gig_event(pg_temp.partial('available_from', to_json(s)::text))).available_from AT TIME ZONE 'UTC' AS utc
FROM unnest('{2023-07-02T03:04:05Z,2023-07-02T03:04:05,2023-07-02T03:04:05+02:00,2023-07-02T0:000:00Z}'::text[]) AS s;
RESET timezone_abbreviations;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, MDY';

--
-- What is refused
--
-- no JSON
SELECT s, pg_temp.try_body(s)
FROM unnest(ARRAY['', ' ', '{', '{"event"', '{"event":}', '{"event":"gigs.added",}', '{''a'':1}', '{"a":01}', '{"a":+1}',
	'{"a":nul}', '{"a":"\x"}', '{"a":"\u12"}', E'{"a":"\t"}', '{"a":1} x', '{"a":1}}', '[1', '{"a" 1}', '{1:2}',
	'{"a":' || repeat('x', 500) || '}']) AS s;
-- JSON, but no object
SELECT s, pg_temp.try_body(s) FROM unnest(ARRAY['[]', '[{"event":"gigs.added","name":"n"}]', '1', '"x"', 'null', 'true']) AS s;
-- no UTF-8
SELECT s, pg_temp.try_body(s)
FROM unnest(ARRAY['\xff', '\x7b2261223a22c3287d', '\x7b2261223a22eda080227d', '\x7b22612200', '\x7b2261223a22c3']::bytea[]) AS s;
-- null; a logged body may be null, because a duplicate has none
SELECT pg_temp.try('SELECT gigs.parse_gig_event(NULL::bytea)'), pg_temp.try('SELECT gigs.parse_gigs_added(NULL::text)'), pg_temp.try('SELECT gigs.parse_logged_gig_event(''gigs.added'', NULL) IS NULL');
-- what receivers are known to put in front of JSON
SELECT s, pg_temp.try_body(s)
FROM unnest(ARRAY['\xefbbbf7b7d', '\xefbbbf', '\x1f8b0800', '\x1f8b', '\xefbb']::bytea[]) AS s;
-- too deep, however deep
SELECT depth, pg_temp.try_partial('resource', repeat('[', depth) || repeat(']', depth)) FROM unnest('{10,250,255,10000}'::int[]) AS depth;
SELECT pg_temp.try_partial('resource', repeat('{"a":', 100000) || '1' || repeat('}', 100000));
SELECT pg_temp.try_body(repeat('[', 1000000));
-- too large
SET gigs_webhooks.max_body_size = '2kB';
SELECT pg_temp.try_partial('resource', to_json(repeat('x', 3000))::text);
SELECT pg_temp.try('SELECT gigs.parse_gigs_fully_synced(repeat('' '', 2049))');
SELECT pg_temp.try('SELECT gigs.parse_gigs_fully_synced(repeat('' '', 2048))');
RESET gigs_webhooks.max_body_size;

-- the envelope
SELECT s, pg_temp.try_body(s)
FROM unnest(ARRAY['{}', '{"name":null}', '{"name":1}', '{"name":"n"}', '{"name":"n","event":null}', '{"name":"n","event":["gigs.added"]}',
	'{"name":"n","event":"gigs.added"}', '{"name":"n","event":"gigs.added","data":null}', '{"name":"n","event":"gigs.added","data":[{}]}',
	'{"name":"n","event":"gigs.Added","data":{}}', '{"name":"n","event":"","data":{}}', '{"name":"n","event":"paystubs.added","data":{}}',
	'{"name":"n","event":"gigs.exploded","data":{}}', '{"name":"n","event":"gigs.added\u0000","data":{}}']) AS s;

-- keys that are missing, null, or of the wrong type
SELECT k, v, pg_temp.try_partial(k, v)
FROM unnest(ARRAY['account', 'user', 'available_count', 'days_synced']) AS k,
	unnest(ARRAY[NULL, 'null', '"x"', '{}', '[]', 'true']) AS v;
SELECT v, pg_temp.try_partial('available_to', v) FROM unnest(ARRAY['1', '""', '{}', '["2023-03-03T00:00:00Z"]', 'false']) AS v;
-- numbers that are no counts
SELECT v, pg_temp.try_partial('available_count', v)
FROM unnest(ARRAY['0', '-0', '2147483647', '-1', '2147483648', '99999999999999999999999999', '1.5', '6.0', '1e2', '"6"']) AS v;
-- strings that are no UUIDs
SELECT v, pg_temp.try_partial('account', v)
FROM unnest(ARRAY['""', '"0187c66e-e7e5-811c-b006-2232f00f426"', '"0187c66e-e7e5-811c-b006-2232f00f426ab"',
	'"0187c66ee7e5811cb0062232f00f426a"', '"{0187c66e-e7e5-811c-b006-2232f00f426a}"', '"0187c66e-e7e5-811c-b006-2232f00f426g"',
	'"0187c66e+e7e5-811c-b006-2232f00f426a"', '"0187c66e-e7e5-811c-b006-2232f00f42 6"', '1']) AS v;
-- strings that are no date-times
SELECT v, pg_temp.try_partial('available_from', to_json(v)::text)
FROM unnest(ARRAY['', 'now', 'infinity', '-infinity', 'epoch', 'today', 'yesterday 00:00', '2023-01-02', '20230102T030405Z',
	'2023-02-30T00:00:00Z', '2023-02-29T00:00:00Z', '1900-02-29T00:00:00Z', '2023-04-31T00:00:00Z', '2023-01-32T00:00:00Z',
	'0000-01-01T00:00:00Z', '2023-13-01T00:00:00Z', '2023-00-01T00:00:00Z', '2023-01-02T25:00:00Z', '2023-01-02T00:60:00Z',
	'0000-01-01T00:00:00Z', '2023-01-02T', '2023-01-02T00', '2023-01-02TZ', '2023-01-02T00:00:00ZZ', '2023-01-02T00:00:00 Z',
	'2023-01-02T00:00:00 PST', '2023-01-02T00:00:00+2', '2023-01-02T00:00:00+25:00', '2023-01-02T00:00:00+02:00:00',
	'2023-01-02T00:00:00 BC', '01/02/2023 00:00:00', '2023-Jan-02T00:00:00Z', '12023-01-02T00:00:00Z', '2023-01-02T::Z',
	'2023-01-02T00:00:00.Z', repeat('2023-01-02T00:00:00', 50), '2023-01-02T00:' || repeat('0', 200) || 'Z']) AS v;
-- the lists of gigs may be absent or null, then the window tells what to fetch
SELECT v, (e).event, (e).changed_count, (e).changed_gigs
FROM (VALUES
	('updated', ''), ('updated', ',"updated_gigs":null'), ('updated', ',"updated_gigs":[]'), ('updated', ',"removed_gigs":[1]'),
	('removed', ''), ('removed', ',"removed_gigs":null'), ('removed', ',"removed_gigs":[]'),
	('removed', ',"removed_gigs":["0187b43a-35fa-56e2-1a95-f7e4232a4b3a"],"removed_gigs":null')
) AS v (kind, gigs), LATERAL parse_gig_event(format('{"event":"gigs.%s","name":"n","data":{"account":"0187c66e-e7e5-811c-b006-2232f00f426a",'
	'"user":"018051aa-f7a9-a0db-2f38-6cfa325e9d69","available_count":1,"%1$s_count":1%s}}', kind, gigs)) AS e;
-- elements that are no UUIDs; the first one is named
SELECT pg_temp.try_body(format('{"event":"gigs.removed","name":"n","data":{"account":"0187c66e-e7e5-811c-b006-2232f00f426a",'
	'"user":"018051aa-f7a9-a0db-2f38-6cfa325e9d69","available_count":1,"removed_count":1,"removed_gigs":%s}}', gigs))
FROM unnest(ARRAY['{}', '"0187b43a-35fa-56e2-1a95-f7e4232a4b3a"', '[null]', '["0187b43a-35fa-56e2-1a95-f7e4232a4b3a",7,"x"]',
	'["0187b43a-35fa-56e2-1a95-f7e4232a4b3a",["0187b43a-35fa-56e2-1a95-f7e4232a4b3a"]]', '[{"a":["x"]}]', '["x"]']) AS gigs;
-- a message quotes little of its input, and nothing that could forge a log line
SELECT pg_temp.try_partial('account', to_json(E'x\ny\u007f' || repeat('é', 300))::text);

-- thousands of gigs
SELECT array_length((parse_gigs_updated(format('{"event":"gigs.updated","name":"n","data":{"account":"0187c66e-e7e5-811c-b006-2232f00f426a",'
	'"user":"018051aa-f7a9-a0db-2f38-6cfa325e9d69","available_count":1,"updated_count":20000,"updated_gigs":%s}}',
	(SELECT json_agg(md5(i::text)::uuid) FROM generate_series(1, 20000) AS i)))).updated_gigs, 1);

DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
