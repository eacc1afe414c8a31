--
-- Indexes that are added to the extension's tables
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
SET search_path = pg_catalog;
\pset format unaligned

-- An unsigned gigs.added event of account n
SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks');
CREATE FUNCTION pg_temp.ingest(account int, available int) RETURNS text LANGUAGE sql AS $$
	SELECT (gigs.try_ingest_gig_event(format(
		'{"event":"gigs.added","name":"payroll","data":{"account":"00000000-0000-4000-8000-%s","user":"00000000-0000-4000-9000-000000000001",'
		'"available_count":%s,"added_count":1}}', lpad(account::text, 12, '0'), available), NULL)).outcome
$$;

-- A BRIN index on a column that every event changes.  From PostgreSQL 16 on,
-- updates stay HOT, and add entries to this index alone: an entry of another
-- index would find a row of another account, once its place is used again.
CREATE INDEX account_time ON gigs.gig_account_sync USING brin (last_event_at);
DO $$
BEGIN
	FOR i IN 1 .. 2000 LOOP
		PERFORM pg_temp.ingest(i % (1 + i / 20), i);
		COMMIT;
	END LOOP;
END
$$;
CREATE TEMPORARY TABLE account AS SELECT DISTINCT account_id FROM gigs.gig_event_log;
SELECT count(*) FROM account;
SELECT count(*), min(events), sum(events) FROM gigs.gig_account_sync;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
CREATE FUNCTION pg_temp.found(wanted uuid) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT string_agg(account_id::text, ' ') FROM gigs.gig_account_sync WHERE account_id = wanted);
END
$$;
SELECT account_id, pg_temp.found(account_id) AS found FROM account WHERE pg_temp.found(account_id) IS DISTINCT FROM account_id::text;

-- Indexes on such a column, on an expression and on some of the rows
CREATE INDEX account_count ON gigs.gig_account_sync (available_count);
CREATE INDEX account_half ON gigs.gig_account_sync ((available_count / 2)) WHERE available_count > 2500;
CREATE INDEX event_length ON gigs.gig_event_log (length(body)) WHERE outcome = 'applied';
SELECT pg_temp.ingest(n % 3, 3000 + n) FROM generate_series(1, 5) AS n;
SELECT available_count FROM gigs.gig_account_sync WHERE available_count > 2990 ORDER BY available_count;
SELECT available_count FROM gigs.gig_account_sync WHERE available_count / 2 = 1501 AND available_count > 2500;
SELECT count(*) FROM gigs.gig_account_sync WHERE available_count > 0;
SELECT count(*) FROM gigs.gig_event_log WHERE length(body) > 0 AND outcome = 'applied';
RESET enable_seqscan;
RESET enable_bitmapscan;

-- A unique index is enforced.
CREATE UNIQUE INDEX account_unique ON gigs.gig_account_sync (available_count);
\set VERBOSITY terse
SELECT pg_temp.ingest(1, 3005);
SELECT available_count FROM gigs.gig_account_sync WHERE available_count > 2990 ORDER BY available_count;
-- ... also one that keeps an account from being created when it is reconciled
CREATE UNIQUE INDEX user_unique ON gigs.gig_account_sync (user_id) WHERE account_id > '00000000-0000-4000-8000-000000010000';
SELECT count(*) FROM gigs.reconcile_gig_accounts((
	SELECT json_agg(json_build_object('id', '00000000-0000-4000-8000-00000002000' || n, 'user', '00000000-0000-4000-9000-000000000050',
		'availability', json_build_object('gigs', json_build_object('status', 'synced', 'available_count', 50000 + n))))
	FROM generate_series(1, 2) AS n));

-- A function of an index runs as the owner, without the caller's search_path.
CREATE ROLE regress_index_receiver;
SELECT gigs.grant_gig_receiver('regress_index_receiver');
CREATE FUNCTION gigs.seen(body bytea) RETURNS bytea LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RAISE NOTICE 'as the receiver: %, search_path: %', current_user = 'regress_index_receiver', current_setting('search_path');
	RETURN body;
END
$$;
SELECT pg_temp.ingest(9999, 1);
SET search_path = pg_catalog, pg_temp;
CREATE INDEX event_seen ON gigs.gig_event_log (gigs.seen(body)) WHERE account_id = '00000000-0000-4000-8000-000000009999';
SET search_path = public;
SET ROLE regress_index_receiver;
SELECT gigs.ingest_gig_event('{"event":"gigs.added","name":"payroll","data":{"account":"00000000-0000-4000-8000-000000009999",'
	'"user":"00000000-0000-4000-9000-000000000001","available_count":2,"added_count":1}}', NULL);
RESET ROLE;

\set VERBOSITY terse
DROP SCHEMA gigs CASCADE;
DROP ROLE regress_index_receiver;
