--
-- Duplicates: what says the same is the same
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET client_min_messages = warning;
\pset format unaligned

-- One account's webhooks come through subscriptions with and without secrets
SELECT gigs.create_gig_subscription('30 days', 'https://example.com/hooks', config => '{"days_synced": 30}');
SELECT gigs.create_gig_subscription('60 days', 'https://example.com/hooks', config => '{"days_synced": 60, "include_resource": true}');
SELECT gigs.create_gig_subscription('signed', 'https://example.com/hooks', 's3cret');

CREATE FUNCTION pg_temp.ingest(body text, received_at timestamptz DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(' ', outcome, sqlstate, message)
	FROM gigs.ingest_gig_events(
		ARRAY[convert_to(body, 'UTF8')],
		ARRAY[CASE WHEN body LIKE '%"signed"%' THEN gigs.sign_gig_event(body, 's3cret') END],
		ARRAY[received_at])
$$;
CREATE VIEW pg_temp.account AS
SELECT right(account_id::text, 1) AS account, state, days_synced, available_count, added_total, updated_total, removed_total, events, duplicates
FROM gigs.gig_account_sync ORDER BY 1;

-- An event, and what differs in its bytes alone
SELECT pg_temp.ingest($json${"event":"gigs.updated","name":"30 days","data":{
	"account":"00000000-0000-4000-8000-00000000000a","user":"00000000-0000-4000-9000-00000000000b",
	"available_from":"2023-01-01T00:00:00Z","available_to":null,"available_count":10,
	"updated_count":2,"updated_gigs":["00000000-0000-4000-a000-000000000001","00000000-0000-4000-a000-000000000002"],
	"updated_from":"2023-01-02T00:00:00Z","updated_to":"2023-01-03T00:00:00Z"}}$json$);
CREATE TEMP TABLE same (id int, what text, body text);
INSERT INTO same VALUES
	(1, 'the same bytes', $json${"event":"gigs.updated","name":"30 days","data":{
	"account":"00000000-0000-4000-8000-00000000000a","user":"00000000-0000-4000-9000-00000000000b",
	"available_from":"2023-01-01T00:00:00Z","available_to":null,"available_count":10,
	"updated_count":2,"updated_gigs":["00000000-0000-4000-a000-000000000001","00000000-0000-4000-a000-000000000002"],
	"updated_from":"2023-01-02T00:00:00Z","updated_to":"2023-01-03T00:00:00Z"}}$json$);
INSERT INTO same SELECT v.id, v.what, replace(body, v.from, v.to) FROM same, (VALUES
	(2, 'another subscription', '"30 days"', '"60 days"'),
	(3, 'a signed subscription', '"30 days"', '"signed"'),
	(4, 'a name in escapes', '"30 days"', '"3\u0030 days"'),
	(5, 'other white space', E'\n', E'  \r\n\t'),
	(6, 'no white space', E'\n\t', ''),
	(7, 'item_id', '"data":{', '"data":{"item_id":"item_000041078",'),
	(8, 'include_resource', '"data":{', '"data":{"resource":{"id":"00000000-0000-4000-8000-00000000000a","updated_count":7},'),
	(9, 'keys beside data', '"data":{', '"livemode":true,"data":{'),
	(10, 'hexadecimal digits of the other case', '00000000a"', '00000000A"'),
	(11, 'absent instead of null', '"available_to":null,', ''),
	(12, 'another offset', '"2023-01-02T00:00:00Z"', '"2023-01-02T02:00:00+02:00"'),
	(13, 'another notation', '"2023-01-02T00:00:00Z"', '"2023-01-02T0:000:00.000Z"'),
	(14, 'no zone', '"2023-01-02T00:00:00Z"', '"2023-01-02T00:00:00"'),
	(15, 'a key that is replaced', '"available_count":10', '"available_count":11,"available_count":10')
) AS v (id, what, "from", "to") WHERE same.id = 1;
INSERT INTO same VALUES (16, 'shuffled keys', $json${"data":{
	"updated_to":"2023-01-03T00:00:00Z","updated_from":"2023-01-02T00:00:00Z","updated_count":2,
	"updated_gigs":["00000000-0000-4000-a000-000000000001","00000000-0000-4000-a000-000000000002"],"available_count":10,
	"user":"00000000-0000-4000-9000-00000000000b","available_from":"2023-01-01T00:00:00Z","account":"00000000-0000-4000-8000-00000000000a"
	},"name":"30 days","event":"gigs.updated"}$json$);
SELECT id, what, pg_temp.ingest(body) FROM same ORDER BY id;
SELECT * FROM pg_temp.account;
-- ... each is logged, with the subscription that brought it and without a body
SELECT event_id, outcome, name, duplicate_of, body IS NULL AS no_body FROM gigs.gig_event_log ORDER BY event_id;
-- ... and one is remembered
SELECT right(account_id::text, 1) AS account, event_id, received_at = (SELECT min(received_at) FROM gigs.gig_event_log) AS first FROM gigs.gig_recent_delivery;

-- Whatever says something else is another event
CREATE TEMP TABLE other (id int GENERATED ALWAYS AS IDENTITY, what text, body text);
INSERT INTO other (what, body) SELECT v.what, replace(body, v.from, v.to) FROM same, (VALUES
	('another account', '-8000-00000000000a', '-8000-00000000000c'),
	('another user', '-9000-00000000000b', '-9000-00000000000c'),
	('available_from', '"2023-01-01T00:00:00Z"', '"2023-01-01T00:00:00.000001Z"'),
	('no available_from', '"available_from":"2023-01-01T00:00:00Z",', ''),
	('available_to', '"available_to":null', '"available_to":"2023-01-03T00:00:00Z"'),
	('also to the epoch', '"available_to":null', '"available_to":"2000-01-01T00:00:00Z"'),
	('from and to exchanged', '"available_from":"2023-01-01T00:00:00Z","available_to":null', '"available_from":null,"available_to":"2023-01-01T00:00:00Z"'),
	('from the epoch', '"available_from":"2023-01-01T00:00:00Z","available_to":null', '"available_from":"2000-01-01T00:00:00Z","available_to":null'),
	('to the epoch', '"available_from":"2023-01-01T00:00:00Z","available_to":null', '"available_from":null,"available_to":"2000-01-01T00:00:00Z"'),
	('available_count', '"available_count":10', '"available_count":11'),
	('updated_count', '"updated_count":2', '"updated_count":3'),
	('updated_from', '"2023-01-02T00:00:00Z"', '"2023-01-02T00:00:01Z"'),
	('no updated_from', '"updated_from":"2023-01-02T00:00:00Z",', ''),
	('updated_to', '"2023-01-03T00:00:00Z"', '"2023-01-04T00:00:00Z"'),
	('another gig', '-a000-000000000002', '-a000-000000000003'),
	('a gig more', '-a000-000000000002"', '-a000-000000000002","00000000-0000-4000-a000-000000000003"'),
	('a gig less', ',"00000000-0000-4000-a000-000000000002"', ''),
	('a gig twice', '-a000-000000000002', '-a000-000000000001'),
	('no gigs', '"00000000-0000-4000-a000-000000000001","00000000-0000-4000-a000-000000000002"', ''),
	('no list of gigs', '"updated_gigs":["00000000-0000-4000-a000-000000000001","00000000-0000-4000-a000-000000000002"],', ''),
	('another kind', 'updated', 'removed'),
	('gigs.added', 'updated', 'added')
) AS v (what, "from", "to") WHERE same.id = 1 ORDER BY v.what = 'another kind', v.what = 'gigs.added';
INSERT INTO other (what, body) SELECT 'gigs in another order', replace(replace(replace(body, '-a000-000000000001', 'x'), '-a000-000000000002', '-a000-000000000001'), 'x', '-a000-000000000002') FROM same WHERE id = 1;
SELECT id, what, pg_temp.ingest(body) AS first, pg_temp.ingest(body) AS again FROM other ORDER BY id;
SELECT * FROM pg_temp.account;
SELECT count(*), count(DISTINCT digest) AS digests FROM gigs.gig_recent_delivery;
-- ... so are days_synced, of synced events
SELECT kind, days, pg_temp.ingest(format('{"event":"gigs.%s","name":"30 days","data":{"account":"00000000-0000-4000-8000-00000000000d","user":"00000000-0000-4000-9000-00000000000b","available_count":1%s}}',
	kind, ',"days_synced":' || days)) FROM (VALUES (1, 'partially_synced', 30), (2, 'partially_synced', 60), (3, 'partially_synced', 60), (4, 'fully_synced', 30), (5, 'fully_synced', 60)) AS v (id, kind, days) ORDER BY id;

-- The window is counted from the first delivery, not from the latest
CREATE FUNCTION pg_temp.added(account text, available int, name text DEFAULT '30 days') RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.added","name":"%s","data":{"account":"00000000-0000-4000-8000-0000000000%s","user":"00000000-0000-4000-9000-00000000000b","available_count":%s,"added_count":1}}', name, account, available)
$$;
SHOW gigs_webhooks.dedupe_window;
SELECT v.at, pg_temp.ingest(pg_temp.added('01', 1), v.at::timestamptz)
FROM (VALUES (1, '2023-01-01 00:00:00Z'), (2, '2023-01-02 00:00:00Z'), (3, '2023-01-03 23:59:59.999999Z'), (4, '2023-01-04 00:00:00Z'),
	(5, '2023-01-06 23:59:59.999999Z'), (6, '2023-01-07 00:00:00Z')) AS v (id, at) ORDER BY id;
SELECT event_id - min(event_id) OVER () AS n, outcome, duplicate_of - min(event_id) OVER () AS duplicate_of FROM gigs.gig_event_log WHERE right(account_id::text, 2) = '01' ORDER BY event_id;
-- ... it reaches back as well, because an archive may come after what it holds
SELECT v.at, pg_temp.ingest(pg_temp.added('02', 1), v.at::timestamptz)
FROM (VALUES (1, '2023-01-10 00:00:00Z'), (2, '2023-01-07 00:00:00.000001Z'), (3, '2023-01-07 00:00:00Z')) AS v (id, at) ORDER BY id;
-- ... and is a superuser's setting.  What is past it is forgotten when the row is written
SELECT pg_temp.ingest(pg_temp.added('03', n), '2023-01-01 00:00Z') FROM generate_series(1, 3) AS n;
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-03 00:00Z');
SELECT count(*) FROM gigs.gig_recent_delivery WHERE right(account_id::text, 2) = '03';
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-04 00:00Z');
SELECT count(*) FROM gigs.gig_recent_delivery WHERE right(account_id::text, 2) = '03';
SET gigs_webhooks.dedupe_window = '1d';
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-04 00:00Z');
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-04 23:59:59Z');
SET gigs_webhooks.dedupe_window = 0;
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-04 23:59:59Z');
SELECT pg_temp.ingest(pg_temp.added('03', 4), '2023-01-04 23:59:59Z');
RESET gigs_webhooks.dedupe_window;
SELECT added_total, events, duplicates FROM gigs.gig_account_sync WHERE right(account_id::text, 2) = '03';
CREATE ROLE regress_gigs_user;
SET ROLE regress_gigs_user;
SET gigs_webhooks.dedupe_window = 0;
RESET ROLE;
DROP ROLE regress_gigs_user;

-- In a batch, too: of several accounts and subscriptions
SELECT ord, outcome, right(account_id::text, 2) AS account FROM gigs.ingest_gig_events(ARRAY[
	pg_temp.added('04', 1), pg_temp.added('05', 1), pg_temp.added('04', 1, '60 days'), pg_temp.added('04', 2), pg_temp.added('05', 1)]::bytea[], NULL);
-- ... in which the window may end, after which an event from before it is another
SELECT ord, outcome FROM gigs.ingest_gig_events(array_fill(pg_temp.added('06', 1)::bytea, ARRAY[4]), NULL,
	ARRAY['2023-01-01 00:00Z', '2023-01-04 00:00Z', '2023-01-01 00:00Z', '2023-01-06 00:00Z']::timestamptz[]);

-- At most 1,000 events are remembered; the oldest are forgotten
SELECT outcome, count(*) FROM gigs.ingest_gig_events(
	ARRAY(SELECT pg_temp.added('07', n)::bytea FROM generate_series(1, 1000) AS n), NULL,
	ARRAY(SELECT '2023-01-01 00:00Z'::timestamptz + n * interval '1 second' FROM generate_series(1, 1000) AS n)) GROUP BY 1;
SELECT pg_temp.ingest(pg_temp.added('07', 1), '2023-01-01 01:00Z');
SELECT pg_temp.ingest(pg_temp.added('07', 1001), '2023-01-01 01:00Z');
SELECT count(*), min(event_id) - (SELECT min(event_id) FROM gigs.gig_event_log WHERE right(account_id::text, 2) = '07') AS oldest FROM gigs.gig_recent_delivery WHERE right(account_id::text, 2) = '07';
SELECT n, pg_temp.ingest(pg_temp.added('07', n), '2023-01-01 01:00Z') FROM unnest(ARRAY[2, 1000, 1001]) AS n;
SELECT pg_temp.ingest(pg_temp.added('07', 1), '2023-01-01 01:00Z');
-- ... by their times, not by the order in which they came
SELECT pg_temp.ingest(pg_temp.added('07', 1002), '2023-01-01 00:00Z');
SELECT pg_temp.ingest(pg_temp.added('07', 1003), '2023-01-01 01:00Z');
SELECT pg_temp.ingest(pg_temp.added('07', 1002), '2023-01-01 00:00Z');
-- ... in a single call as well
SELECT outcome, count(*), min(ord), max(ord) FROM gigs.ingest_gig_events(
	ARRAY(SELECT pg_temp.added('08', 1 + n % 1001)::bytea FROM generate_series(0, 2001) AS n), NULL, NULL) GROUP BY 1;
SELECT events, duplicates, cardinality(recent_digests) AS digests, cardinality(recent_event_ids) AS event_ids, cardinality(recent_received_at) AS received_at
FROM gigs.gig_account_sync WHERE right(account_id::text, 2) = '08';

-- The memory folds out of the log, if the setting has not changed since
CREATE TEMP TABLE before AS TABLE gigs.gig_account_sync;
DELETE FROM gigs.gig_account_sync;
SELECT accounts_skipped FROM gigs.rebuild_gig_sync();
SELECT right(account_id::text, 2) AS account FROM (TABLE before EXCEPT TABLE gigs.gig_account_sync) AS d ORDER BY 1;

-- Arrays that do not fit together are not made the best of
\set VERBOSITY terse
UPDATE gigs.gig_account_sync SET recent_event_ids = '{1}' WHERE right(account_id::text, 2) = '08';
SELECT pg_temp.ingest(pg_temp.added('08', 1));
UPDATE gigs.gig_account_sync SET recent_event_ids[2] = NULL WHERE right(account_id::text, 2) = '07';
SELECT pg_temp.ingest(pg_temp.added('07', 1));

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
