-- The summary on a table of narrower rows: the same accounts without what they
-- remember.

CREATE TABLE narrow_account_sync WITH (fillfactor = 80) AS
SELECT account_id, user_id, state, days_synced, available_from, available_to,
	available_count, added_total, updated_total, removed_total, events,
	duplicates, first_event_at, partially_synced_at, fully_synced_at,
	refreshed_at, last_event, last_event_at
FROM gig_account_sync;

CREATE VIEW narrow_summary AS
SELECT s.state, coalesce(a.accounts, 0) AS accounts, coalesce(a.gigs, 0) AS gigs, a.oldest
FROM unnest(enum_range(NULL::gig_sync_state)) AS s (state)
LEFT JOIN (
	SELECT state, count(*) AS accounts, sum(available_count) AS gigs, min(first_event_at) AS oldest
	FROM narrow_account_sync
	GROUP BY state
) AS a ON a.state = s.state;

VACUUM ANALYZE narrow_account_sync;
