-- A batch in set-based SQL with fewer rules than peers/set_based.sql: a late
-- partial sync overwrites the snapshot, a redelivery restores no gig, and the key
-- of a changed gig is its id alone.  To be loaded after peers/tables.sql.

ALTER TABLE gig_change DROP CONSTRAINT gig_change_pkey;
ALTER TABLE gig_change ADD PRIMARY KEY (gig_id);

CREATE FUNCTION lean_ingest_batch(bodies bytea[], sigs text[])
RETURNS TABLE (ord integer, outcome text)
LANGUAGE plpgsql VOLATILE
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	WITH input AS MATERIALIZED (
		SELECT i.ord::integer, i.body, i.sig, convert_from(i.body, 'UTF8')::jsonb AS doc,
			digest(i.body, 'sha256') AS digest
		FROM unnest(bodies, sigs) WITH ORDINALITY AS i (body, sig, ord)
	), parsed AS MATERIALIZED (
		SELECT i.ord, i.body, i.digest, i.doc ->> 'name' AS name, i.doc ->> 'event' AS kind,
			d.account AS account_id, d."user" AS user_id, d.available_from, d.available_to,
			d.available_count, d.days_synced, d.added_count, d.updated_count,
			d.removed_count, coalesce(d.updated_gigs, d.removed_gigs) AS gigs,
			row_number() OVER (PARTITION BY i.digest ORDER BY i.ord) = 1 AS is_first
		FROM input AS i
		JOIN subscription_secret AS s
			ON s.name = i.doc ->> 'name'
			AND hmac(i.body, s.secret::bytea, 'sha512') = decode(i.sig, 'hex')
		CROSS JOIN LATERAL jsonb_to_record(i.doc -> 'data') AS d (
			account uuid,
			"user" uuid,
			available_from timestamptz,
			available_to timestamptz,
			available_count integer,
			days_synced integer,
			added_count integer,
			updated_count integer,
			removed_count integer,
			updated_gigs uuid[],
			removed_gigs uuid[]
		)
	), logged AS (
		INSERT INTO event_log (received_at, event, account_id, name, body, digest)
		SELECT now(), p.kind, p.account_id, p.name, p.body, p.digest
		FROM parsed AS p
		WHERE p.is_first
		ORDER BY p.ord
		ON CONFLICT (digest) DO NOTHING
		RETURNING event_id, digest
	), events AS MATERIALIZED (
		SELECT p.*, l.event_id, l.event_id IS NOT NULL AND p.is_first AS is_new
		FROM parsed AS p
		LEFT JOIN logged AS l ON l.digest = p.digest
	), latest AS (
		SELECT DISTINCT ON (account_id) account_id, user_id, available_from,
			available_to, available_count, kind
		FROM events
		ORDER BY account_id, ord DESC
	), totals AS (
		SELECT e.account_id,
			max(CASE e.kind
				WHEN 'gigs.fully_synced' THEN 'fully_synced'
				WHEN 'gigs.partially_synced' THEN 'partially_synced'
				ELSE 'unknown'
			END::sync_state) AS state,
			max(e.days_synced) AS days_synced,
			coalesce(sum(e.added_count) FILTER (WHERE e.is_new), 0) AS added_total,
			coalesce(sum(e.updated_count) FILTER (WHERE e.is_new), 0) AS updated_total,
			coalesce(sum(e.removed_count) FILTER (WHERE e.is_new), 0) AS removed_total,
			count(*) FILTER (WHERE e.is_new) AS events,
			count(*) FILTER (WHERE NOT e.is_new) AS duplicates
		FROM events AS e
		GROUP BY e.account_id
	), written AS (
		INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
			available_from, available_to, available_count, added_total,
			updated_total, removed_total, events, duplicates, first_event_at,
			partially_synced_at, fully_synced_at, refreshed_at, last_event,
			last_event_at)
		SELECT t.account_id, l.user_id, t.state, t.days_synced, l.available_from,
			l.available_to, l.available_count, t.added_total, t.updated_total,
			t.removed_total, t.events, t.duplicates, now(),
			CASE WHEN t.state = 'partially_synced' THEN now() END,
			CASE WHEN t.state = 'fully_synced' THEN now() END,
			now(), l.kind, now()
		FROM totals AS t
		JOIN latest AS l ON l.account_id = t.account_id
		ORDER BY t.account_id
		ON CONFLICT (account_id) DO UPDATE SET
			user_id = excluded.user_id,
			state = greatest(a.state, excluded.state),
			days_synced = greatest(a.days_synced, excluded.days_synced),
			available_from = excluded.available_from,
			available_to = excluded.available_to,
			available_count = excluded.available_count,
			added_total = a.added_total + excluded.added_total,
			updated_total = a.updated_total + excluded.updated_total,
			removed_total = a.removed_total + excluded.removed_total,
			events = a.events + excluded.events,
			duplicates = a.duplicates + excluded.duplicates,
			partially_synced_at = coalesce(a.partially_synced_at, excluded.partially_synced_at),
			fully_synced_at = coalesce(a.fully_synced_at, excluded.fully_synced_at),
			refreshed_at = excluded.refreshed_at,
			last_event = excluded.last_event,
			last_event_at = excluded.last_event_at
	), changed AS (
		INSERT INTO gig_change AS c (account_id, gig_id, change, changed_at, event_id)
		SELECT DISTINCT ON (g.gig_id) e.account_id, g.gig_id, e.kind, now(), e.event_id
		FROM events AS e
		CROSS JOIN LATERAL unnest(e.gigs) AS g (gig_id)
		WHERE e.is_new
		ORDER BY g.gig_id, e.ord DESC
		ON CONFLICT (gig_id) DO UPDATE SET
			change = excluded.change,
			changed_at = excluded.changed_at,
			event_id = excluded.event_id
	)
	SELECT i.ord, CASE WHEN e.ord IS NULL THEN 'rejected' WHEN e.is_new THEN 'applied' ELSE 'duplicate' END::text
	FROM input AS i
	LEFT JOIN events AS e ON e.ord = i.ord;
END
$$;
