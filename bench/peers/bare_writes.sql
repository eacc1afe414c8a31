-- One event's writes and nothing else: nothing is verified, parsed or judged,
-- and the event's id stands for its digest.
-- $1 account, $2 body, $3 event, $4 name, $5 user, $6 and $7 available from and
-- to, $8 available count, $9 changed count, $10 changed gigs (not stored), $11
-- days synced
WITH logged AS (
	INSERT INTO event_log (received_at, outcome, event, account_id, name, body)
	SELECT now(), 'applied', $3, $1::uuid, $4, $2::bytea
	WHERE $10::text IS NOT NULL
	RETURNING event_id
)
INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
	available_from, available_to, available_count, last_event, last_event_at,
	last_event_id, added_total, updated_total, removed_total, events,
	first_event_at, refreshed_at, recent_digests, recent_event_ids, recent_received_at)
SELECT $1::uuid, $5::uuid, 'unknown', $11::integer, $6::timestamptz,
	$7::timestamptz, $8::integer, $3, now(), event_id, coalesce($9::integer, 0), 0, 0, 1,
	now(), now(), ARRAY[event_id], ARRAY[event_id], ARRAY[now()]
FROM logged
ON CONFLICT (account_id) DO UPDATE SET
	user_id = excluded.user_id,
	days_synced = excluded.days_synced,
	available_from = excluded.available_from,
	available_to = excluded.available_to,
	available_count = excluded.available_count,
	last_event = excluded.last_event,
	last_event_at = excluded.last_event_at,
	last_event_id = excluded.last_event_id,
	added_total = a.added_total + excluded.added_total,
	events = a.events + 1,
	refreshed_at = excluded.refreshed_at,
	recent_digests = a.recent_digests || excluded.recent_digests,
	recent_event_ids = a.recent_event_ids || excluded.recent_event_ids,
	recent_received_at = a.recent_received_at || excluded.recent_received_at
