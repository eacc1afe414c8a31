-- The function that a user would write: pgcrypto, jsonb, INSERT … ON CONFLICT.
--
-- It is lean: the unique digest of the log tells redeliveries, the upsert of
-- the account serialises its events.  So it is a little less than what it is
-- measured against: an event's id is drawn before its account is locked.

CREATE FUNCTION peer_ingest(body bytea, sig text)
RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
	doc CONSTANT jsonb := convert_from(peer_ingest.body, 'UTF8');
	data CONSTANT jsonb := doc -> 'data';
	kind CONSTANT text := doc ->> 'event';
	account CONSTANT uuid := data ->> 'account';
	added CONSTANT integer := data ->> 'added_count';
	updated CONSTANT integer := data ->> 'updated_count';
	removed CONSTANT integer := data ->> 'removed_count';
	days CONSTANT integer := data ->> 'days_synced';
	gigs CONSTANT jsonb := coalesce(data -> 'updated_gigs', data -> 'removed_gigs');
	now CONSTANT timestamptz := clock_timestamp();
	new_id bigint;
BEGIN
	PERFORM
	FROM subscription_secret AS s
	WHERE s.name = doc ->> 'name'
		AND hmac(peer_ingest.body, s.secret::bytea, 'sha512') = decode(peer_ingest.sig, 'hex');
	IF NOT FOUND THEN
		RAISE invalid_authorization_specification
			USING MESSAGE = 'could not authenticate webhook';
	END IF;

	INSERT INTO event_log (received_at, event, account_id, name, body, digest)
	VALUES (now, kind, account, doc ->> 'name', peer_ingest.body, digest(peer_ingest.body, 'sha256'))
	ON CONFLICT (digest) DO NOTHING
	RETURNING event_id INTO new_id;

	IF new_id IS NULL THEN
		UPDATE account_sync SET duplicates = duplicates + 1
		WHERE account_id = account;
		IF gigs IS NOT NULL THEN
			INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
			SELECT account, g::uuid, 'gigs.updated', now,
				(SELECT l.event_id FROM event_log AS l
					WHERE l.digest = digest(peer_ingest.body, 'sha256'))
			FROM jsonb_array_elements_text(gigs) AS g
			ON CONFLICT (account_id, gig_id) DO NOTHING;
		END IF;
		RETURN 'duplicate';
	END IF;

	INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
		available_from, available_to, available_count, added_total,
		updated_total, removed_total, events, first_event_at,
		partially_synced_at, fully_synced_at, refreshed_at, last_event,
		last_event_at)
	VALUES (
		account,
		(data ->> 'user')::uuid,
		CASE kind
			WHEN 'gigs.fully_synced' THEN 'fully_synced'
			WHEN 'gigs.partially_synced' THEN 'partially_synced'
			ELSE 'unknown'
		END::sync_state,
		days,
		(data ->> 'available_from')::timestamptz,
		(data ->> 'available_to')::timestamptz,
		(data ->> 'available_count')::integer,
		coalesce(added, 0),
		coalesce(updated, 0),
		coalesce(removed, 0),
		1,
		now,
		CASE WHEN kind = 'gigs.partially_synced' THEN now END,
		CASE WHEN kind = 'gigs.fully_synced' THEN now END,
		CASE WHEN coalesce(added, updated, removed) IS NOT NULL THEN now END,
		kind,
		now
	)
	ON CONFLICT (account_id) DO UPDATE SET
		user_id = CASE
			WHEN kind = 'gigs.partially_synced' AND (a.state = 'fully_synced' OR days < a.days_synced)
			THEN a.user_id ELSE excluded.user_id
		END,
		available_from = CASE
			WHEN kind = 'gigs.partially_synced' AND (a.state = 'fully_synced' OR days < a.days_synced)
			THEN a.available_from ELSE excluded.available_from
		END,
		available_to = CASE
			WHEN kind = 'gigs.partially_synced' AND (a.state = 'fully_synced' OR days < a.days_synced)
			THEN a.available_to ELSE excluded.available_to
		END,
		available_count = CASE
			WHEN kind = 'gigs.partially_synced' AND (a.state = 'fully_synced' OR days < a.days_synced)
			THEN a.available_count ELSE excluded.available_count
		END,
		state = greatest(a.state, excluded.state),
		days_synced = greatest(a.days_synced, excluded.days_synced),
		added_total = a.added_total + excluded.added_total,
		updated_total = a.updated_total + excluded.updated_total,
		removed_total = a.removed_total + excluded.removed_total,
		events = a.events + 1,
		partially_synced_at = CASE
			WHEN a.state = 'unknown' THEN coalesce(a.partially_synced_at, excluded.partially_synced_at)
			ELSE a.partially_synced_at
		END,
		fully_synced_at = coalesce(a.fully_synced_at, excluded.fully_synced_at),
		refreshed_at = coalesce(excluded.refreshed_at, a.refreshed_at),
		last_event = excluded.last_event,
		last_event_at = excluded.last_event_at;

	IF gigs IS NOT NULL THEN
		INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
		SELECT account, g::uuid, kind, now, new_id
		FROM jsonb_array_elements_text(gigs) AS g
		ON CONFLICT (account_id, gig_id) DO UPDATE SET
			change = excluded.change,
			changed_at = excluded.changed_at,
			event_id = excluded.event_id;
	END IF;
	RETURN 'applied';
END
$$;

-- The same as a trigger.  A bad row is kept, which takes a subtransaction.
CREATE FUNCTION peer_inbox_ingest()
RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
	NEW.outcome := peer_ingest(NEW.body, NEW.signature);
	RETURN NEW;
EXCEPTION WHEN OTHERS THEN
	NEW.outcome := 'rejected';
	NEW.error := SQLERRM;
	RETURN NEW;
END
$$;
