-- One event's writes and nothing else: nothing is verified, parsed or judged.
-- $1 account, $2 body, $3 event, $4 name, $5 user, $6 and $7 available from and
-- to, $8 available count, $9 changed count, $10 changed gigs, $11 days synced
WITH logged AS (
	INSERT INTO event_log (received_at, event, account_id, name, body)
	VALUES (now(), $3, $1::uuid, $4, $2::bytea)
	RETURNING event_id
), delivered AS (
	INSERT INTO delivery (account_id, body_digest, event_id, deliveries, first_at, last_at)
	SELECT $1::uuid, substr(sha256($2::bytea), 1, 16), event_id, 1, now(), now()
	FROM logged
	ON CONFLICT (account_id, body_digest) DO UPDATE SET
		deliveries = delivery.deliveries + 1,
		last_at = excluded.last_at
), changed AS (
	INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
	SELECT $1::uuid, g, $3, now(), event_id
	FROM logged, unnest($10::uuid[]) AS g
	ON CONFLICT (account_id, gig_id) DO UPDATE SET
		change = excluded.change,
		changed_at = excluded.changed_at,
		event_id = excluded.event_id
)
INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
	available_from, available_to, available_count, added_total, updated_total,
	removed_total, events, first_event_at, refreshed_at, last_event, last_event_at)
VALUES ($1::uuid, $5::uuid, 'unknown', $11::integer, $6::timestamptz,
	$7::timestamptz, $8::integer, coalesce($9::integer, 0), 0, 0, 1, now(), now(), $3, now())
ON CONFLICT (account_id) DO UPDATE SET
	user_id = excluded.user_id,
	days_synced = excluded.days_synced,
	available_from = excluded.available_from,
	available_to = excluded.available_to,
	available_count = excluded.available_count,
	added_total = a.added_total + excluded.added_total,
	events = a.events + 1,
	refreshed_at = excluded.refreshed_at,
	last_event = excluded.last_event,
	last_event_at = excluded.last_event_at
