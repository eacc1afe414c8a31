-- The extension's two tables, bare: what the floors write to.

CREATE TABLE event_log (
	event_id bigint GENERATED ALWAYS AS IDENTITY,
	received_at timestamptz NOT NULL,
	outcome text NOT NULL,
	event text NOT NULL,
	account_id uuid NOT NULL,
	name text NOT NULL,
	body bytea,
	duplicate_of bigint,
	PRIMARY KEY (event_id, account_id)
);
CREATE INDEX event_log_received_at_idx ON event_log USING brin (received_at);

CREATE TABLE account_sync (
	account_id uuid PRIMARY KEY,
	user_id uuid NOT NULL,
	state text NOT NULL,
	days_synced integer,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	last_event text,
	last_event_at timestamptz,
	last_event_id bigint,
	added_total bigint NOT NULL,
	updated_total bigint NOT NULL,
	removed_total bigint NOT NULL,
	events bigint NOT NULL,
	duplicates bigint NOT NULL DEFAULT 0,
	first_event_at timestamptz,
	partially_synced_at timestamptz,
	fully_synced_at timestamptz,
	refreshed_at timestamptz,
	recent_digests bigint[] NOT NULL,
	recent_event_ids bigint[] NOT NULL,
	recent_received_at timestamptz[] NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX account_sync_user_id_idx ON account_sync (user_id);
