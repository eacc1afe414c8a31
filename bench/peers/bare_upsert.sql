-- The writes of many events and nothing else, a statement a table, from values
-- that lie parsed in a table: the floor of what a batch takes by SQL.

CREATE TABLE parsed (
	account_id uuid,
	body bytea,
	signature text,
	event text,
	name text,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	changed_count integer,
	changed_gigs uuid[],
	days_synced integer,
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
);

CREATE FUNCTION bare_upsert(first_id bigint, last_id bigint)
RETURNS void
LANGUAGE sql VOLATILE
AS $$
	WITH logged AS (
		INSERT INTO event_log (received_at, event, account_id, name, body)
		SELECT now(), event, account_id, name, body
		FROM parsed
		WHERE id BETWEEN first_id AND last_id
		ORDER BY id
		RETURNING event_id, account_id, body
	)
	INSERT INTO delivery (account_id, body_digest, event_id, deliveries, first_at, last_at)
	SELECT account_id, substr(sha256(body), 1, 16), max(event_id), count(*), now(), now()
	FROM logged
	GROUP BY 1, 2
	ON CONFLICT (account_id, body_digest) DO UPDATE SET
		deliveries = delivery.deliveries + 1,
		last_at = excluded.last_at;

	INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
	SELECT DISTINCT ON (account_id, g) account_id, g, event, now(), id
	FROM parsed, unnest(changed_gigs) AS g
	WHERE id BETWEEN first_id AND last_id
	ORDER BY account_id, g, id DESC
	ON CONFLICT (account_id, gig_id) DO UPDATE SET
		change = excluded.change,
		changed_at = excluded.changed_at,
		event_id = excluded.event_id;

	INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
		available_from, available_to, available_count, added_total, updated_total,
		removed_total, events, first_event_at, refreshed_at, last_event, last_event_at)
	SELECT DISTINCT ON (account_id) account_id, user_id, 'unknown', days_synced,
		available_from, available_to, available_count,
		coalesce(sum(changed_count) OVER same, 0), 0, 0, count(*) OVER same, now(), now(), event, now()
	FROM parsed
	WHERE id BETWEEN first_id AND last_id
	WINDOW same AS (PARTITION BY account_id)
	ORDER BY account_id, id DESC
	ON CONFLICT (account_id) DO UPDATE SET
		user_id = excluded.user_id,
		days_synced = excluded.days_synced,
		available_from = excluded.available_from,
		available_to = excluded.available_to,
		available_count = excluded.available_count,
		added_total = a.added_total + excluded.added_total,
		events = a.events + excluded.events,
		refreshed_at = excluded.refreshed_at,
		last_event = excluded.last_event,
		last_event_at = excluded.last_event_at;
$$;
