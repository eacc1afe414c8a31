-- A batch in set-based SQL on the extension's own tables: the memory in the
-- account's row tells redeliveries, and the log has the outcomes.
--
-- It does less than the extension: the digest is a fast hash of the body, the
-- window is the only limit of the memory, accounts that do not exist yet are not
-- locked, and a body that is not JSON fails the whole batch.

CREATE EXTENSION pgcrypto;

CREATE TABLE subscription_secret (
	name text NOT NULL,
	secret text NOT NULL
);

INSERT INTO subscription_secret (name, secret)
SELECT 'bench-' || i, 'the secret of bench-' || i
FROM generate_series(1, 4) AS i;

CREATE FUNCTION two_tables_ingest_batch(bodies bytea[], sigs text[])
RETURNS TABLE (ord integer, outcome gig_ingest_outcome)
LANGUAGE plpgsql VOLATILE
SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
	RETURN QUERY
	WITH input AS MATERIALIZED (
		SELECT i.ord::integer, i.body, i.sig, convert_from(i.body, 'UTF8')::jsonb AS doc,
			hashtextextended(convert_from(i.body, 'UTF8'), 0) AS digest
		FROM unnest(bodies, sigs) WITH ORDINALITY AS i (body, sig, ord)
	), parsed AS MATERIALIZED (
		SELECT i.ord, i.body, i.digest, i.doc ->> 'name' AS name,
			(i.doc ->> 'event')::gig_event_kind AS kind,
			d.account AS account_id, d."user" AS user_id, d.available_from, d.available_to,
			d.available_count, d.days_synced, d.added_count, d.updated_count,
			d.removed_count
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
			removed_count integer
		)
	), numbered AS MATERIALIZED (
		SELECT p.*, nextval('gig_event_log_event_id_seq') AS event_id
		FROM (SELECT * FROM parsed ORDER BY ord) AS p
	), locked AS MATERIALIZED (
		SELECT a.*
		FROM gig_account_sync AS a
		WHERE a.account_id = ANY (ARRAY(SELECT p.account_id FROM parsed AS p ORDER BY 1))
		ORDER BY a.account_id
		FOR NO KEY UPDATE
	), remembered AS MATERIALIZED (
		SELECT l.account_id, r.digest, r.event_id, r.received_at
		FROM locked AS l
		CROSS JOIN LATERAL unnest(l.recent_digests, l.recent_event_ids, l.recent_received_at)
			AS r (digest, event_id, received_at)
		WHERE now() - r.received_at < interval '3 days'
	), events AS MATERIALIZED (
		SELECT n.*,
			coalesce(r.event_id,
				nullif(first_value(n.event_id) OVER (PARTITION BY n.account_id, n.digest ORDER BY n.ord),
					n.event_id)) AS duplicate_of
		FROM numbered AS n
		LEFT JOIN remembered AS r ON r.account_id = n.account_id AND r.digest = n.digest
	), judged AS MATERIALIZED (
		SELECT e.*, e.kind = 'gigs.partially_synced' AND (
				coalesce(a.state = 'fully_synced', false)
				OR coalesce(e.days_synced < a.days_synced, false)
				OR coalesce(bool_or(e.kind = 'gigs.fully_synced') OVER earlier, false)
				OR coalesce(e.days_synced < max(e.days_synced) OVER earlier, false)
			) AS late
		FROM events AS e
		LEFT JOIN locked AS a ON a.account_id = e.account_id
		WHERE e.duplicate_of IS NULL
		WINDOW earlier AS (
			PARTITION BY e.account_id ORDER BY e.ord
			ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
		)
	), outcomes AS MATERIALIZED (
		SELECT e.*, CASE
				WHEN e.duplicate_of IS NOT NULL THEN 'duplicate'
				WHEN j.late THEN 'stale'
				ELSE 'applied'
			END::gig_ingest_outcome AS outcome
		FROM events AS e
		LEFT JOIN judged AS j ON j.ord = e.ord
	), logged AS (
		INSERT INTO gig_event_log (event_id, received_at, outcome, event, account_id, name, body, duplicate_of)
		SELECT o.event_id, now(), o.outcome, o.kind, o.account_id, o.name,
			CASE WHEN o.duplicate_of IS NULL THEN o.body END, o.duplicate_of
		FROM outcomes AS o
		ORDER BY o.ord
	), snapshots AS (
		SELECT DISTINCT ON (account_id) account_id, user_id, available_from,
			available_to, available_count
		FROM judged
		WHERE NOT late
		ORDER BY account_id, ord DESC
	), totals AS (
		SELECT e.account_id,
			max(CASE e.kind
				WHEN 'gigs.fully_synced' THEN 'fully_synced'
				WHEN 'gigs.partially_synced' THEN 'partially_synced'
				ELSE 'unknown'
			END::gig_sync_state) FILTER (WHERE e.duplicate_of IS NULL) AS state,
			max(e.days_synced) FILTER (WHERE e.duplicate_of IS NULL) AS days_synced,
			coalesce(sum(e.added_count) FILTER (WHERE e.duplicate_of IS NULL), 0) AS added_total,
			coalesce(sum(e.updated_count) FILTER (WHERE e.duplicate_of IS NULL), 0) AS updated_total,
			coalesce(sum(e.removed_count) FILTER (WHERE e.duplicate_of IS NULL), 0) AS removed_total,
			count(*) FILTER (WHERE e.duplicate_of IS NULL) AS events,
			count(e.duplicate_of) AS duplicates,
			max(e.event_id) AS last_event_id,
			bool_or(e.kind = 'gigs.partially_synced' AND e.duplicate_of IS NULL) AS any_partial,
			bool_or(e.kind = 'gigs.fully_synced' AND e.duplicate_of IS NULL) AS any_full,
			bool_or(e.kind IN ('gigs.added', 'gigs.updated', 'gigs.removed') AND e.duplicate_of IS NULL) AS any_refresh,
			(array_agg(e.kind ORDER BY e.ord DESC) FILTER (WHERE e.duplicate_of IS NULL))[1] AS last_event,
			array_agg(e.user_id ORDER BY e.ord) AS users,
			array_agg(e.digest ORDER BY e.ord) FILTER (WHERE e.duplicate_of IS NULL) AS digests,
			array_agg(e.event_id ORDER BY e.ord) FILTER (WHERE e.duplicate_of IS NULL) AS event_ids,
			array_agg(now() ORDER BY e.ord) FILTER (WHERE e.duplicate_of IS NULL) AS received_at
		FROM events AS e
		GROUP BY e.account_id
	), kept AS (
		SELECT r.account_id, array_agg(r.digest ORDER BY r.event_id) AS digests,
			array_agg(r.event_id ORDER BY r.event_id) AS event_ids,
			array_agg(r.received_at ORDER BY r.event_id) AS received_at
		FROM remembered AS r
		GROUP BY r.account_id
	), written AS (
		INSERT INTO gig_account_sync AS a (account_id, user_id, state, days_synced,
			available_from, available_to, available_count, last_event, last_event_at,
			last_event_id, added_total, updated_total, removed_total, events, duplicates,
			first_event_at, partially_synced_at, fully_synced_at, refreshed_at,
			recent_digests, recent_event_ids, recent_received_at)
		SELECT t.account_id, coalesce(s.user_id, l.user_id, t.users[1]),
			coalesce(t.state, 'unknown'), t.days_synced,
			CASE WHEN s.account_id IS NULL THEN l.available_from ELSE s.available_from END,
			CASE WHEN s.account_id IS NULL THEN l.available_to ELSE s.available_to END,
			CASE WHEN s.account_id IS NULL THEN l.available_count ELSE s.available_count END,
			t.last_event, CASE WHEN t.events > 0 THEN now() END, t.last_event_id,
			t.added_total, t.updated_total, t.removed_total, t.events, t.duplicates, now(),
			CASE WHEN t.any_partial THEN now() END,
			CASE WHEN t.any_full THEN now() END,
			CASE WHEN t.any_refresh THEN now() END,
			coalesce(k.digests || t.digests, '{}'),
			coalesce(k.event_ids || t.event_ids, '{}'),
			coalesce(k.received_at || t.received_at, '{}')
		FROM totals AS t
		LEFT JOIN snapshots AS s ON s.account_id = t.account_id
		LEFT JOIN kept AS k ON k.account_id = t.account_id
		LEFT JOIN locked AS l ON l.account_id = t.account_id
		ORDER BY t.account_id
		ON CONFLICT (account_id) DO UPDATE SET
			user_id = excluded.user_id,
			state = greatest(a.state, excluded.state),
			days_synced = greatest(a.days_synced, excluded.days_synced),
			available_from = excluded.available_from,
			available_to = excluded.available_to,
			available_count = excluded.available_count,
			last_event = coalesce(excluded.last_event, a.last_event),
			last_event_at = coalesce(excluded.last_event_at, a.last_event_at),
			last_event_id = excluded.last_event_id,
			added_total = a.added_total + excluded.added_total,
			updated_total = a.updated_total + excluded.updated_total,
			removed_total = a.removed_total + excluded.removed_total,
			events = a.events + excluded.events,
			duplicates = a.duplicates + excluded.duplicates,
			partially_synced_at = CASE
				WHEN a.state = 'unknown' THEN coalesce(a.partially_synced_at, excluded.partially_synced_at)
				ELSE a.partially_synced_at
			END,
			fully_synced_at = coalesce(a.fully_synced_at, excluded.fully_synced_at),
			refreshed_at = coalesce(excluded.refreshed_at, a.refreshed_at),
			recent_digests = excluded.recent_digests,
			recent_event_ids = excluded.recent_event_ids,
			recent_received_at = excluded.recent_received_at
	)
	SELECT i.ord, coalesce(o.outcome, 'rejected')
	FROM input AS i
	LEFT JOIN outcomes AS o ON o.ord = i.ord;
END
$$;
