-- The extension's tables, bare: what the floors write to.

CREATE TABLE event_log (
	event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	received_at timestamptz NOT NULL,
	event text NOT NULL,
	account_id uuid NOT NULL,
	name text NOT NULL,
	body bytea NOT NULL
);
CREATE INDEX event_log_received_at_idx ON event_log USING brin (received_at);

CREATE TABLE delivery (
	account_id uuid NOT NULL,
	body_digest bytea NOT NULL,
	event_id bigint NOT NULL,
	deliveries integer NOT NULL,
	first_at timestamptz NOT NULL,
	last_at timestamptz NOT NULL,
	PRIMARY KEY (account_id, body_digest)
);

CREATE TABLE account_sync (
	account_id uuid PRIMARY KEY,
	user_id uuid NOT NULL,
	state text NOT NULL,
	days_synced integer,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	added_total bigint NOT NULL,
	updated_total bigint NOT NULL,
	removed_total bigint NOT NULL,
	events bigint NOT NULL,
	duplicates bigint NOT NULL DEFAULT 0,
	first_event_at timestamptz,
	partially_synced_at timestamptz,
	fully_synced_at timestamptz,
	refreshed_at timestamptz,
	last_event text,
	last_event_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX account_sync_user_id_idx ON account_sync (user_id);

CREATE TABLE gig_change (
	account_id uuid NOT NULL,
	gig_id uuid NOT NULL,
	change text NOT NULL,
	changed_at timestamptz NOT NULL,
	event_id bigint NOT NULL,
	PRIMARY KEY (account_id, gig_id)
);
