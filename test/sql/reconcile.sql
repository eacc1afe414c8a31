--
-- Reconciliation with what Argyle's API says of accounts
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO';
SET client_min_messages = warning;
\pset format unaligned
\set SHOW_CONTEXT never

SELECT gigs.create_gig_subscription('n', 'https://example.com/hooks');

CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
	SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid
$$;
CREATE FUNCTION pg_temp.day(n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT '2024-01-' || lpad(n::text, 2, '0') || 'T00:00:00Z'
$$;
-- A webhook of an account, with gigs from the first of January to another day
CREATE FUNCTION pg_temp.ingest(kind text, account int, available int, "to" int DEFAULT 9, more text DEFAULT '') RETURNS gigs.gig_ingest_outcome LANGUAGE sql AS $$
	SELECT gigs.ingest_gig_event(format(
		'{"event":"gigs.%s","name":"n","data":{"account":"%s","user":"%s","available_count":%s,"available_from":"%s","available_to":"%s"%s}}',
		kind, pg_temp.id(account), pg_temp.id(99), available, pg_temp.day(1), pg_temp.day("to"), more), NULL)
$$;
-- The account as the API shows it
CREATE FUNCTION pg_temp.account(account int, available int, "to" int DEFAULT 9, status text DEFAULT 'synced', updated_at text DEFAULT '2024-01-09T00:00:00Z', "user" int DEFAULT 99) RETURNS json LANGUAGE sql AS $$
	SELECT format(
		'{"id": "%s", "user": "%s", "employers": ["Uber Driver"], "item": "item_1", "connection": {"status": "connected", "updated_at": "2024-01-01"},'
		' "availability": {"shifts": null, "gigs": {"status": "%s", "updated_at": "%s", "available_count": %s, "available_from": "%s", "available_to": "%s"},'
		' "paystubs": {"status": "in_progress", "updated_at": "never", "available_count": -1}}}',
		pg_temp.id(account), pg_temp.id("user"), status, updated_at, available, pg_temp.day(1), pg_temp.day("to"))::json
$$;
CREATE FUNCTION pg_temp.page(VARIADIC accounts json[]) RETURNS json LANGUAGE sql AS $$
	SELECT json_build_object('next', NULL, 'previous', 'https://api.argyle.com/v2/accounts?cursor=1', 'results', accounts)
$$;
CREATE FUNCTION pg_temp.number(id uuid) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT right(id::text, 3)::int $$;
CREATE VIEW pg_temp.account AS
SELECT pg_temp.number(account_id) AS account, pg_temp.number(user_id) AS "user", state, available_count AS available, available_to::date AS "to", last_event, last_event_id, events, duplicates,
	cardinality(recent_digests) AS remembered
FROM gigs.gig_account_sync;
CREATE VIEW pg_temp.log AS
SELECT event_id, outcome, event, pg_temp.number(account_id) AS account, name, available_count AS available, changed_count, changed_from, available_to::date AS "to"
FROM gigs.gig_event_history;
-- Calls without a time have the current one, and so do ingested webhooks
CREATE FUNCTION pg_temp.reconcile(accounts json, fetched_at timestamptz DEFAULT clock_timestamp(), everything boolean DEFAULT false)
RETURNS TABLE (account int, event_id bigint, reason text) LANGUAGE sql AS $$
	SELECT pg_temp.number(account_id), event_id, reason FROM gigs.reconcile_gig_accounts(accounts, fetched_at, everything)
$$;

SELECT gigs.create_gig_consumer('all');
SELECT gigs.create_gig_consumer('updates', ARRAY['gigs.updated']::gigs.gig_event_kind[]);
SELECT gigs.create_gig_consumer('healed', ARRAY['gigs.updated', 'reconciled']::gigs.gig_event_kind[]);

-- Accounts that nothing was lost of
SELECT pg_temp.ingest('fully_synced', a, 100 + a) FROM generate_series(1, 4) AS a;
SELECT pg_temp.ingest('partially_synced', 5, 50, 9, ',"days_synced":30');
CREATE TABLE pg_temp.before AS TABLE gigs.gig_account_sync;
SELECT * FROM gigs.reconcile_gig_accounts(pg_temp.page(pg_temp.account(1, 101), pg_temp.account(2, 102), pg_temp.account(3, 103), pg_temp.account(4, 104), pg_temp.account(5, 50, status => 'in_progress')));
TABLE pg_temp.before EXCEPT TABLE gigs.gig_account_sync;
SELECT count(*) FROM gigs.gig_event_log;
-- ... and the consumers' work up to here
SELECT count(*), gigs.finish_gig_work(max(batch)) FROM gigs.read_gig_work('all');
SELECT count(*) FROM gigs.read_gig_work('updates');

-- Lost events: of a count, a narrower window, the full sync, an account, a user,
-- and one that left the snapshot as it was.  Rows come in the order of account_id.
SELECT * FROM gigs.reconcile_gig_accounts(pg_temp.page(
	pg_temp.account(7, 0, "user" => 98, status => 'in_progress'),
	pg_temp.account(1, 110), pg_temp.account(2, 102, 5), pg_temp.account(3, 103, "user" => 97), pg_temp.account(4, 104, updated_at => '2100-01-01T00:00:00Z'),
	pg_temp.account(5, 50), pg_temp.account(6, 60)));
SELECT * FROM pg_temp.account ORDER BY 1;
SELECT * FROM pg_temp.log WHERE event_id > 5 ORDER BY 1;
SELECT account_id, first_event_at = last_event_at AS first, fully_synced_at = last_event_at AS synced, partially_synced_at < last_event_at AS partially, refreshed_at, added_total, updated_total, removed_total
FROM gigs.gig_account_sync WHERE pg_temp.number(account_id) >= 5 ORDER BY 1;
-- ... the body is the account as it came
SELECT convert_from(body, 'UTF8') = pg_temp.account(6, 60)::text AS same FROM gigs.gig_event_log WHERE pg_temp.number(account_id) = 6;
-- ... all of an account is work for a consumer that takes all kinds, or this one
SELECT pg_temp.number(account_id) AS account, pg_temp.number(user_id) AS "user", windows, updated_gigs, removed_gigs, events FROM gigs.read_gig_work('all');
SELECT pg_temp.number(account_id) AS account, windows FROM gigs.read_gig_work('healed', 3);
SELECT count(*) FROM gigs.read_gig_work('updates');
SELECT gigs.gig_account_fetched('all', pg_temp.id(1));
SELECT gigs.finish_gig_work(max(batch)) FROM gigs.gig_consumer WHERE name = 'all';
SELECT gigs.gig_account_fetched('all', pg_temp.id(1));

-- The same page once more: nothing differs.  Argyle's clock may be ahead.
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(1, 110), pg_temp.account(2, 102, 5), pg_temp.account(5, 50), pg_temp.account(6, 60)));
SELECT * FROM pg_temp.reconcile(pg_temp.account(4, 104, updated_at => '2100-01-01T00:00:00Z'));
-- ... with the same time as well: once, whatever is asked for
SELECT clock_timestamp() AS fetched_at \gset
SELECT * FROM pg_temp.reconcile(pg_temp.account(4, 104, updated_at => '2100-01-01T00:00:00Z'), :'fetched_at');
SELECT * FROM pg_temp.reconcile(pg_temp.account(4, 104, updated_at => '2100-01-01T00:00:00Z'), :'fetched_at');
SELECT clock_timestamp() AS fetched_at \gset
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(1, 110), pg_temp.account(2, 102, 5)), :'fetched_at', true);
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(1, 110), pg_temp.account(2, 102, 5)), :'fetched_at', true);
SELECT count(DISTINCT received_at), bool_and(received_at = :'fetched_at') AS fetched_at FROM gigs.gig_event_log WHERE event_id > 14;

-- An event that came after the accounts were fetched is newer
SELECT clock_timestamp() AS fetched_at \gset
SELECT pg_temp.ingest('fully_synced', 1, 111);
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(1, 110), pg_temp.account(2, 120)), :'fetched_at', true);
SELECT * FROM pg_temp.account WHERE account <= 2 ORDER BY 1;
-- ... and one that came before is not, whatever it says
SELECT pg_temp.ingest('fully_synced', 1, 112);
SELECT * FROM pg_temp.reconcile(pg_temp.account(1, 111));

-- The state never goes back, and a partial sync is late as ever
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(5, 40, status => 'in_progress'), pg_temp.account(6, 61, status => 'sync_failed'), pg_temp.account(7, 1, status => 'a new one')));
SELECT pg_temp.ingest('partially_synced', 6, 30, 9, ',"days_synced":30'), pg_temp.ingest('partially_synced', 7, 30, 9, ',"days_synced":30');
SELECT * FROM pg_temp.account WHERE account >= 5 ORDER BY 1;

-- What was delivered before is still known
SELECT pg_temp.ingest('fully_synced', 2, 102);
SELECT * FROM pg_temp.account WHERE account = 2 ORDER BY 1;
-- ... and what only the API told of is not
SELECT pg_temp.ingest('fully_synced', 6, 60);

-- Nothing to sync: no account, no gigs yet, or the whole of availability unknown
SELECT * FROM gigs.reconcile_gig_accounts('[]');
SELECT * FROM gigs.reconcile_gig_accounts('{"next":null,"previous":null,"results":[]}');
SELECT * FROM gigs.reconcile_gig_accounts('[{"id":"1","availability":{"gigs":null,"paystubs":{"status":"synced"}}},{"id":"1","availability":null}]');
SELECT count(*) FROM gigs.gig_account_sync;
SELECT gigs.parse_gig_account('{"id":"1","availability":{"gigs":null}}') IS NULL AS nothing, gigs.parse_gig_account(NULL) IS NULL AS nothing;
SELECT (gigs.parse_gig_account(pg_temp.account(1, 2))).*;

-- The log folds to the same rows
CREATE FUNCTION pg_temp.differences() RETURNS bigint LANGUAGE sql AS $$
	SELECT (SELECT count(*) FROM (TABLE pg_temp.before EXCEPT TABLE gigs.gig_account_sync) AS d)
		+ (SELECT count(*) FROM (TABLE gigs.gig_account_sync EXCEPT TABLE pg_temp.before) AS d)
$$;
DELETE FROM pg_temp.before;
INSERT INTO pg_temp.before TABLE gigs.gig_account_sync;
UPDATE gigs.gig_account_sync SET state = 'unknown', available_count = 0, events = 0, fully_synced_at = NULL, recent_digests = '{}', recent_event_ids = '{}', recent_received_at = '{}' WHERE pg_temp.number(account_id) < 4;
DELETE FROM gigs.gig_account_sync WHERE pg_temp.number(account_id) >= 4;
SELECT * FROM gigs.rebuild_gig_sync(pg_temp.id(7));
SELECT * FROM gigs.rebuild_gig_sync();
SELECT pg_temp.differences();

-- A webhook that calls itself reconciled belongs to another family, also when it
-- has all that an account has
SELECT gigs.ingest_gig_event('{"event":"reconciled","name":"n","data":{}}', NULL);
SELECT gigs.ingest_gig_event((left(pg_temp.account(1, 999)::text, -1) || ',"event":"reconciled","name":"n"}'), NULL);
SELECT outcome, sqlstate, message FROM gigs.try_ingest_gig_event(pg_temp.account(1, 999)::text, NULL);
SELECT outcome, sqlstate, message FROM gigs.try_ingest_gig_event((left(pg_temp.account(1, 999)::text, -1) || ',"event":"gigs.fully_synced","name":"n"}'), NULL);
SELECT * FROM pg_temp.account WHERE account = 1 ORDER BY 1;
\set VERBOSITY sqlstate
SELECT gigs.parse_gig_event(pg_temp.account(1, 999)::text);
SELECT gigs.parse_gig_event((left(pg_temp.account(1, 999)::text, -1) || ',"event":"reconciled","name":"n","data":{}}'));
SELECT gigs.parse_logged_gig_event('gigs.fully_synced', pg_temp.account(1, 999)::text::bytea);
SELECT gigs.parse_logged_gig_event('reconciled', '{"event":"gigs.fully_synced","name":"n","data":{"account":"00000000-0000-4000-8000-000000000001","user":"00000000-0000-4000-8000-000000000001","available_count":1}}');
\set VERBOSITY default

-- Errors: of the arguments
CREATE FUNCTION pg_temp.try(accounts text, fetched_at text DEFAULT 'now', everything boolean DEFAULT false) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT count(*) FROM gigs.reconcile_gig_accounts(accounts::json, fetched_at::timestamptz, everything));
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ': ' || sqlerrm;
END
$$;
SELECT call, result FROM (VALUES
	(NULL, 'now', false), ('[]', NULL, false), ('[]', 'now', NULL), ('[]', 'infinity', false), ('[]', '-infinity', false),
	('not json', 'now', false), ('null', 'now', false), ('7', 'now', false), ('"results"', 'now', false), ('{"results":null}', 'now', false), ('{"results":{}}', 'now', false)
) AS v (call, fetched_at, everything), pg_temp.try(call, fetched_at, everything) AS result;
-- ... of an account: nothing of the page is reconciled
SELECT what, pg_temp.try(format('[%s, %s]', pg_temp.account(1, 9999), account)) AS result FROM (
	SELECT 'a scalar', '7'
	UNION ALL SELECT 'an array', '[]'
	UNION ALL SELECT what, replace(pg_temp.account(2, 12345)::text, search, replacement) FROM (VALUES
		('no id', '"id"', '"ID"'), ('no user', '"user"', '"uſer"'), ('a user of another type', '"00000000-0000-4000-8000-000000000099"', '7'), ('no UUID', '"00000000-0000-4000-8000-000000000002"', '"2"'),
		('no availability', '"availability"', '"availabilities"'), ('availability of another type', '"availability": {', '"availability": 7, "x": {'),
		('no gigs', '"gigs"', '"Gigs"'), ('gigs of another type', '"gigs": {', '"gigs": [], "x": {'), ('no status', '"status": "synced"', '"x": 1'), ('a status of another type', '"synced"', 'true'), ('a status that is null', '"synced"', 'null'),
		('no count', '12345', 'null'), ('a count of another type', '12345', '"12345"'), ('a negative count', '12345', '-1'), ('a fraction', '12345', '1.5'), ('too large', '12345', '2147483648'),
		('no time', '"updated_at": "2024-01-09T00:00:00Z"', '"updated_at": "tomorrow"'), ('a time of another type', '"available_from": "2024-01-01T00:00:00Z"', '"available_from": 1704067200'), ('no day of a month', '"available_to": "2024-01-09T00:00:00Z"', '"available_to": "2024-02-30T00:00:00Z"'),
		('half a pair of surrogates', '"synced"', '"\ud800"'), ('a NUL', '"synced"', '"\u0000"'), ('a NUL in the id', '"id": "0', '"id": "\u00000'),
		('deep nesting', '"item_1"', repeat('[', 300) || repeat(']', 300)),
		('the same account', '00002"', '00001"')
	) AS v (what, search, replacement)
) AS v (what, account);
SELECT pg_temp.try(pg_temp.page(pg_temp.account(1, 9999), '{"id":"\u0000"}')::text);
SELECT pg_temp.try(repeat('[', 100000));
SELECT * FROM pg_temp.account WHERE account <= 2 ORDER BY 1;
-- ... what is not read does not matter, nor a key that comes twice, as in jsonb
SELECT pg_temp.try(replace(pg_temp.account(8, 1)::text, '"item_1"', '"\u0000\ud800"'));
SELECT pg_temp.try('[' || replace(pg_temp.account(8, 1)::text, '"item_1"', '"\u0000\ud800"') || ']');
SELECT pg_temp.try(replace(pg_temp.account(9, 12345)::text, '"available_count": 12345', '"available_count": 1, "available_count": 2, "availability.gigs.available_count": 3, "deeper": {"available_count": 4}'));
SELECT pg_temp.try(replace(pg_temp.account(10, 12345)::text, '"availability": {', '"available_count": 5, "availability.gigs.available_count": 6, "gigs": {"available_count": 7}, "data": {"available_count": 8}, "availability": {"gigs": {"status": "x", "available_count": 9}}, "availability": {"x": {"gigs": {"available_count": 10}}, '));
SELECT pg_temp.try(replace(pg_temp.account(11, 12345)::text, '"paystubs": {', '"gigs": {"status": "in_progress", "available_count": 11}, "paystubs": {"gigs": {"available_count": 12}, '));
SELECT pg_temp.try(replace(pg_temp.account(12, 12345)::text, '"availability": {', '"availability": [{"gigs": {"available_count": 13}}], "avail\u0061bility": {'));
SELECT account, available, "to", state FROM pg_temp.account WHERE account >= 8 ORDER BY 1;
-- ... a page may be large, and so may an account
SELECT count(*) FROM gigs.reconcile_gig_accounts((SELECT json_agg(pg_temp.account(n, n)) FROM generate_series(100, 899) AS n));
SET gigs_webhooks.max_body_size = '1kB';
SELECT pg_temp.try(replace(pg_temp.account(13, 1)::text, 'item_1', repeat('x', 2000)));
RESET gigs_webhooks.max_body_size;
SELECT count(*), count(*) FILTER (WHERE octet_length(body) > 2000) AS large FROM gigs.gig_event_log WHERE event = 'reconciled' AND pg_temp.number(account_id) >= 13;

-- A time in the future is the current one; one of the past does not come before an event
SELECT * FROM pg_temp.reconcile(pg_temp.account(13, 2), '2100-01-01');
SELECT max(received_at) <= clock_timestamp() AS now FROM gigs.gig_event_log;
SELECT * FROM pg_temp.reconcile(pg_temp.page(pg_temp.account(13, 3), pg_temp.account(14, 1)), '2000-01-01', true);
SELECT first_event_at, fully_synced_at, last_event_at FROM gigs.gig_account_sync WHERE pg_temp.number(account_id) = 14;

-- Reports: counted as a kind of its own, by which no gigs are added
SELECT event, gigs FROM gigs.gig_event_counts('36500 days', '2001-01-01', 'infinity');
SELECT last_event, stalled FROM gigs.gig_sync_status WHERE pg_temp.number(account_id) = 14;
-- ... Argyle is not asked for such events
SELECT events FROM gigs.gig_subscription;

-- Above READ COMMITTED
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM pg_temp.reconcile(pg_temp.account(13, 4));
COMMIT;

-- Old events are pruned, whatever their kind
SELECT count(*) FROM gigs.gig_event_log WHERE received_at < '2001-01-01';
SELECT gigs.drop_gig_consumer(name) FROM (SELECT DISTINCT name FROM gigs.gig_consumer) AS c;
SELECT * FROM gigs.prune_gig_events('30 days');

DROP EXTENSION gigs_webhooks CASCADE;
DROP SCHEMA gigs;
