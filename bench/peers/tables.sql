-- The tables of somebody who does without the extension, and what they need.

CREATE EXTENSION pgcrypto;

CREATE TYPE sync_state AS ENUM ('unknown', 'partially_synced', 'fully_synced');

CREATE TABLE subscription_secret (
	name text NOT NULL,
	secret text NOT NULL
);

INSERT INTO subscription_secret (name, secret)
SELECT 'bench-' || i, 'the secret of bench-' || i
FROM generate_series(1, 4) AS i;

CREATE TABLE event_log (
	event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	received_at timestamptz NOT NULL,
	event text NOT NULL,
	account_id uuid NOT NULL,
	name text NOT NULL,
	body bytea NOT NULL,
	digest bytea NOT NULL UNIQUE
);

CREATE TABLE account_sync (
	account_id uuid PRIMARY KEY,
	user_id uuid NOT NULL,
	state sync_state NOT NULL,
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

CREATE VIEW bench_account AS
SELECT account_id, user_id, state::text, days_synced, available_from,
	available_to, available_count, added_total, updated_total, removed_total,
	events, duplicates, last_event
FROM account_sync;

CREATE VIEW bench_change AS
SELECT account_id, gig_id, change FROM gig_change;

CREATE VIEW bench_log AS
SELECT account_id, event, body FROM event_log;
