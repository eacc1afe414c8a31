--
-- A schema that is renamed while events are written, by a trigger that ingests
-- in its turn: the statement that is running stays, others take its place
--
CREATE SCHEMA gigs;
CREATE EXTENSION gigs_webhooks SCHEMA gigs;
\pset format unaligned
\set SHOW_CONTEXT never
SELECT gigs.create_gig_subscription('payroll', 'https://example.com/hooks');

CREATE FUNCTION gig_body(n int)
RETURNS text LANGUAGE sql AS $$
	SELECT format('{"event":"gigs.fully_synced","name":"payroll","data":{"account":"00000000-0000-4000-8000-%s","user":"00000000-0000-4000-9000-000000000001","available_count":%s,"days_synced":365}}',
		lpad(n::text, 12, '0'), n)
$$;
CREATE FUNCTION rename_and_ingest()
RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF pg_trigger_depth() > 1 THEN
		RETURN NULL;
	END IF;
	IF to_regnamespace('gigs') IS NOT NULL THEN
		ALTER SCHEMA gigs RENAME TO hooks;
		PERFORM hooks.ingest_gig_event(public.gig_body(new.event_id::int + 1000), NULL);
	ELSE
		ALTER SCHEMA hooks RENAME TO gigs;
		PERFORM gigs.ingest_gig_event(public.gig_body(new.event_id::int + 1000), NULL);
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER rename AFTER INSERT ON gigs.gig_event_log
	FOR EACH ROW EXECUTE FUNCTION rename_and_ingest();

SELECT gigs.ingest_gig_event(gig_body(1), NULL);
SELECT hooks.ingest_gig_event(gig_body(2), NULL);
SELECT gigs.ingest_gig_event(gig_body(3), NULL);
SELECT hooks.ingest_gig_event(gig_body(4), NULL);
SELECT right(account_id::text, 4) AS account, available_count, events
FROM gigs.gig_account_sync ORDER BY 1;

DROP TRIGGER rename ON gigs.gig_event_log;
SELECT gigs.ingest_gig_event(gig_body(5), NULL);
DROP FUNCTION rename_and_ingest();
DROP FUNCTION gig_body(int);
DROP EXTENSION gigs_webhooks;
DROP SCHEMA gigs;
