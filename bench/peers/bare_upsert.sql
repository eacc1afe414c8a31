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
	INSERT INTO event_log (received_at, outcome, event, account_id, name, body)
	SELECT now(), 'applied', event, account_id, name, body
	FROM parsed
	WHERE id BETWEEN first_id AND last_id
	ORDER BY id;

	INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
		available_from, available_to, available_count, last_event, last_event_at,
		last_event_id, added_total, updated_total, removed_total, events,
		first_event_at, refreshed_at, recent_digests, recent_event_ids, recent_received_at)
	SELECT p.account_id, p.user_id, 'unknown', p.days_synced,
		p.available_from, p.available_to, p.available_count, p.event, now(),
		p.id, coalesce(s.changed, 0), 0, 0, s.events,
		now(), now(), s.ids, s.ids, array_fill(now(), ARRAY[s.events])
	FROM (
		SELECT max(id) AS id, sum(changed_count) AS changed, count(*)::integer AS events, array_agg(id) AS ids
		FROM parsed
		WHERE id BETWEEN first_id AND last_id
		GROUP BY account_id
	) AS s
	JOIN parsed AS p ON p.id = s.id
	ORDER BY p.account_id
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
		events = a.events + excluded.events,
		refreshed_at = excluded.refreshed_at,
		recent_digests = a.recent_digests || excluded.recent_digests,
		recent_event_ids = a.recent_event_ids || excluded.recent_event_ids,
		recent_received_at = a.recent_received_at || excluded.recent_received_at;
$$;
