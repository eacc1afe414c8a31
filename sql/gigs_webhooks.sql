\echo Use "CREATE EXTENSION gigs_webhooks" to load this file. \quit

-- The schema may have operators and functions of other people's: none of them
-- is to be found here, so all that is ours is named with the schema.
SET LOCAL search_path = pg_catalog, pg_temp;

--
-- Types
--

CREATE TYPE @extschema@.gig_event_kind AS ENUM (
	'gigs.added',
	'gigs.updated',
	'gigs.removed',
	'gigs.partially_synced',
	'gigs.fully_synced'
);
COMMENT ON TYPE @extschema@.gig_event_kind IS
	'the gigs webhooks, by the names they carry';

CREATE TYPE @extschema@.gig_sync_state AS ENUM (
	'unknown',
	'partially_synced',
	'fully_synced'
);
COMMENT ON TYPE @extschema@.gig_sync_state IS
	'how far an account''s initial retrieval has come; it only climbs';

CREATE TYPE @extschema@.gig_ingest_outcome AS ENUM (
	'applied',
	'duplicate',
	'stale',
	'ignored',
	'rejected'
);
COMMENT ON TYPE @extschema@.gig_ingest_outcome IS
	'what became of a webhook that was handed in';

CREATE TYPE @extschema@.gigs_added AS (
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	added_count integer,
	added_from timestamptz,
	added_to timestamptz
);
COMMENT ON TYPE @extschema@.gigs_added IS
	'a gigs.added webhook: a refresh found new gigs';

CREATE TYPE @extschema@.gigs_updated AS (
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	updated_count integer,
	updated_gigs uuid[],
	updated_from timestamptz,
	updated_to timestamptz
);
COMMENT ON TYPE @extschema@.gigs_updated IS
	'a gigs.updated webhook: properties of gigs changed';

CREATE TYPE @extschema@.gigs_removed AS (
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	removed_count integer,
	removed_gigs uuid[],
	removed_from timestamptz,
	removed_to timestamptz
);
COMMENT ON TYPE @extschema@.gigs_removed IS
	'a gigs.removed webhook: gigs were not found any more';

CREATE TYPE @extschema@.gigs_partially_synced AS (
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	days_synced integer
);
COMMENT ON TYPE @extschema@.gigs_partially_synced IS
	'a gigs.partially_synced webhook: the latest days of a new account are retrieved';

CREATE TYPE @extschema@.gigs_fully_synced AS (
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer
);
COMMENT ON TYPE @extschema@.gigs_fully_synced IS
	'a gigs.fully_synced webhook: all gigs of a new account are retrieved';

CREATE TYPE @extschema@.gig_event AS (
	event @extschema@.gig_event_kind,
	name text,
	account_id uuid,
	user_id uuid,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	changed_count integer,
	changed_gigs uuid[],
	changed_from timestamptz,
	changed_to timestamptz,
	days_synced integer
);
COMMENT ON TYPE @extschema@.gig_event IS
	'any gigs webhook; "changed" stands for added, updated or removed';

--
-- Tables
--

CREATE TABLE @extschema@.gig_subscription (
	name text NOT NULL,
	url text NOT NULL,
	events text[] NOT NULL,
	config jsonb,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
	signed boolean NOT NULL DEFAULT true,
	CONSTRAINT gig_subscription_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE @extschema@.gig_subscription IS
	'the webhooks we subscribed to';
COMMENT ON COLUMN @extschema@.gig_subscription.signed IS
	'whether its webhooks carry a signature; then none is accepted without, whatever becomes of the secrets';

-- No constraint names the secret: a violation would show it.  And no foreign
-- key names the subscription: pg_restore -j fills both tables at the same time,
-- so a trigger does what it would (gig_subscription_cascade).
CREATE TABLE @extschema@.gig_subscription_secret (
	name text NOT NULL,
	secret text NOT NULL,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	retired_at timestamptz,
	CONSTRAINT gig_subscription_secret_pkey PRIMARY KEY (name, created_at)
);
COMMENT ON TABLE @extschema@.gig_subscription_secret IS
	'the secrets that webhooks are signed with, retired ones included';

-- No index with random keys: the log only grows at its end.
CREATE TABLE @extschema@.gig_event_log (
	event_id bigint GENERATED ALWAYS AS IDENTITY,
	received_at timestamptz NOT NULL,
	event @extschema@.gig_event_kind NOT NULL,
	account_id uuid NOT NULL,
	name text NOT NULL,
	body bytea NOT NULL,
	CONSTRAINT gig_event_log_pkey PRIMARY KEY (event_id)
);
CREATE INDEX gig_event_log_received_at_idx ON @extschema@.gig_event_log
	USING brin (received_at);
COMMENT ON TABLE @extschema@.gig_event_log IS
	'every event applied, in the order of application, its body as received';

CREATE TABLE @extschema@.gig_delivery (
	account_id uuid NOT NULL,
	body_digest bytea NOT NULL,
	event_id bigint NOT NULL,
	deliveries integer NOT NULL,
	first_at timestamptz NOT NULL,
	last_at timestamptz NOT NULL,
	CONSTRAINT gig_delivery_pkey PRIMARY KEY (account_id, body_digest)
);
COMMENT ON TABLE @extschema@.gig_delivery IS
	'bodies delivered lately: what comes again within gigs_webhooks.dedupe_window is a redelivery';

-- Updates stay HOT: events change no indexed column (an account keeps its user).
CREATE TABLE @extschema@.gig_account_sync (
	account_id uuid NOT NULL,
	user_id uuid NOT NULL,
	state @extschema@.gig_sync_state NOT NULL DEFAULT 'unknown',
	days_synced integer,
	available_from timestamptz,
	available_to timestamptz,
	available_count integer,
	added_total bigint NOT NULL DEFAULT 0,
	updated_total bigint NOT NULL DEFAULT 0,
	removed_total bigint NOT NULL DEFAULT 0,
	events bigint NOT NULL DEFAULT 0,
	duplicates bigint NOT NULL DEFAULT 0,
	first_event_at timestamptz,
	partially_synced_at timestamptz,
	fully_synced_at timestamptz,
	refreshed_at timestamptz,
	last_event @extschema@.gig_event_kind,
	last_event_at timestamptz,
	CONSTRAINT gig_account_sync_pkey PRIMARY KEY (account_id)
) WITH (fillfactor = 80);
CREATE INDEX gig_account_sync_user_id_idx ON @extschema@.gig_account_sync (user_id);
COMMENT ON TABLE @extschema@.gig_account_sync IS
	'what is synced of each account';
COMMENT ON COLUMN @extschema@.gig_account_sync.days_synced IS
	'the widest window that a gigs.partially_synced event told of';
COMMENT ON COLUMN @extschema@.gig_account_sync.available_count IS
	'the latest snapshot: how many gigs there are to fetch, from available_from to available_to';
COMMENT ON COLUMN @extschema@.gig_account_sync.events IS
	'how many events the log has had of the account';
COMMENT ON COLUMN @extschema@.gig_account_sync.duplicates IS
	'how many deliveries were redeliveries';

CREATE TABLE @extschema@.gig_change (
	account_id uuid NOT NULL,
	gig_id uuid NOT NULL,
	change @extschema@.gig_event_kind NOT NULL,
	changed_at timestamptz NOT NULL,
	event_id bigint NOT NULL,
	CONSTRAINT gig_change_pkey PRIMARY KEY (account_id, gig_id)
) WITH (fillfactor = 90);
COMMENT ON TABLE @extschema@.gig_change IS
	'gigs that updated and removed events named; the consumer fetches or deletes them and removes the row';

SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_subscription', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_subscription_secret', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_event_log', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_event_log_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_delivery', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_account_sync', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.gig_change', '');

--
-- Pure functions
--

CREATE FUNCTION @extschema@.parse_gig_event(body bytea)
RETURNS @extschema@.gig_event
AS 'MODULE_PATHNAME', 'parse_gig_event'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gig_event(bytea) IS
	'any gigs webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gig_event(body text)
RETURNS @extschema@.gig_event
AS 'MODULE_PATHNAME', 'parse_gig_event_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gig_event(text) IS
	'any gigs webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_gigs_added(body bytea)
RETURNS @extschema@.gigs_added
AS 'MODULE_PATHNAME', 'parse_gigs_added'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_added(bytea) IS
	'a gigs.added webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gigs_added(body text)
RETURNS @extschema@.gigs_added
AS 'MODULE_PATHNAME', 'parse_gigs_added_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_added(text) IS
	'a gigs.added webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_gigs_updated(body bytea)
RETURNS @extschema@.gigs_updated
AS 'MODULE_PATHNAME', 'parse_gigs_updated'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_updated(bytea) IS
	'a gigs.updated webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gigs_updated(body text)
RETURNS @extschema@.gigs_updated
AS 'MODULE_PATHNAME', 'parse_gigs_updated_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_updated(text) IS
	'a gigs.updated webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_gigs_removed(body bytea)
RETURNS @extschema@.gigs_removed
AS 'MODULE_PATHNAME', 'parse_gigs_removed'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_removed(bytea) IS
	'a gigs.removed webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gigs_removed(body text)
RETURNS @extschema@.gigs_removed
AS 'MODULE_PATHNAME', 'parse_gigs_removed_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_removed(text) IS
	'a gigs.removed webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_gigs_partially_synced(body bytea)
RETURNS @extschema@.gigs_partially_synced
AS 'MODULE_PATHNAME', 'parse_gigs_partially_synced'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_partially_synced(bytea) IS
	'a gigs.partially_synced webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gigs_partially_synced(body text)
RETURNS @extschema@.gigs_partially_synced
AS 'MODULE_PATHNAME', 'parse_gigs_partially_synced_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_partially_synced(text) IS
	'a gigs.partially_synced webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_gigs_fully_synced(body bytea)
RETURNS @extschema@.gigs_fully_synced
AS 'MODULE_PATHNAME', 'parse_gigs_fully_synced'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_fully_synced(bytea) IS
	'a gigs.fully_synced webhook, parsed and checked';

CREATE FUNCTION @extschema@.parse_gigs_fully_synced(body text)
RETURNS @extschema@.gigs_fully_synced
AS 'MODULE_PATHNAME', 'parse_gigs_fully_synced_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_gigs_fully_synced(text) IS
	'a gigs.fully_synced webhook, parsed and checked (from text)';

CREATE FUNCTION @extschema@.parse_logged_gig_event(body bytea)
RETURNS @extschema@.gig_event
AS 'MODULE_PATHNAME', 'parse_logged_gig_event'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.parse_logged_gig_event(bytea) IS
	'a body of gig_event_log, parsed; however large bodies may be today';

CREATE FUNCTION @extschema@.sign_gig_event(body bytea, secret text)
RETURNS text
AS 'MODULE_PATHNAME', 'sign_gig_event'
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.sign_gig_event(bytea, text) IS
	'the signature that comes with a body: HMAC-SHA512 in lower-case hex';

CREATE FUNCTION @extschema@.sign_gig_event(body bytea, secret bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'sign_gig_event_with_bytes'
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.sign_gig_event(bytea, bytea) IS
	'the signature that comes with a body: HMAC-SHA512 in lower-case hex';

CREATE FUNCTION @extschema@.sign_gig_event(body text, secret text)
RETURNS text
AS 'MODULE_PATHNAME', 'sign_gig_event_text'
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.sign_gig_event(text, text) IS
	'the signature that comes with a body: HMAC-SHA512 in lower-case hex';

CREATE FUNCTION @extschema@.sign_gig_event(body text, secret bytea)
RETURNS text
AS 'MODULE_PATHNAME', 'sign_gig_event_with_bytes_text'
LANGUAGE C STRICT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.sign_gig_event(text, bytea) IS
	'the signature that comes with a body: HMAC-SHA512 in lower-case hex';

CREATE FUNCTION @extschema@.verify_gig_signature(body bytea, sig text, secret text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'verify_gig_signature'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.verify_gig_signature(bytea, text, text) IS
	'whether a signature is good for a body; false, never null, where anything is missing';

CREATE FUNCTION @extschema@.verify_gig_signature(body bytea, sig text, secret bytea)
RETURNS boolean
AS 'MODULE_PATHNAME', 'verify_gig_signature_with_bytes'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.verify_gig_signature(bytea, text, bytea) IS
	'whether a signature is good for a body; false, never null, where anything is missing';

CREATE FUNCTION @extschema@.verify_gig_signature(body text, sig text, secret text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'verify_gig_signature_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.verify_gig_signature(text, text, text) IS
	'whether a signature is good for a body; false, never null, where anything is missing';

CREATE FUNCTION @extschema@.verify_gig_signature(body text, sig text, secret bytea)
RETURNS boolean
AS 'MODULE_PATHNAME', 'verify_gig_signature_with_bytes_text'
LANGUAGE C CALLED ON NULL INPUT IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.verify_gig_signature(text, text, bytea) IS
	'whether a signature is good for a body; false, never null, where anything is missing';

--
-- Settings, for SQL
--

CREATE FUNCTION @extschema@.gig_stalled_after()
RETURNS interval
AS 'MODULE_PATHNAME', 'gig_stalled_after_interval'
LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.gig_stalled_after() IS
	'the setting gigs_webhooks.stalled_after';

CREATE FUNCTION @extschema@.gig_dedupe_window()
RETURNS interval
AS 'MODULE_PATHNAME', 'gig_dedupe_window_interval'
LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.gig_dedupe_window() IS
	'the setting gigs_webhooks.dedupe_window';

--
-- Doors
--
-- They work on the tables in the owner's name, but not by SECURITY DEFINER:
-- the module itself takes on the owner for its own statements, and for nothing
-- that a caller could have brought along.
--

CREATE FUNCTION @extschema@.ingest_gig_event(body bytea, sig text)
RETURNS @extschema@.gig_ingest_outcome
AS 'MODULE_PATHNAME', 'ingest_gig_event'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.ingest_gig_event(bytea, text) IS
	'take in a webhook: its raw body and its X-Argyle-Signature header; raises on a bad one';

CREATE FUNCTION @extschema@.ingest_gig_event(body text, sig text)
RETURNS @extschema@.gig_ingest_outcome
AS 'MODULE_PATHNAME', 'ingest_gig_event_text'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.ingest_gig_event(text, text) IS
	'take in a webhook: its raw body and its X-Argyle-Signature header; raises on a bad one';

CREATE FUNCTION @extschema@.try_ingest_gig_event(
	body bytea,
	sig text,
	OUT outcome @extschema@.gig_ingest_outcome,
	OUT event_id bigint,
	OUT event @extschema@.gig_event_kind,
	OUT account_id uuid,
	OUT sqlstate text,
	OUT message text
)
AS 'MODULE_PATHNAME', 'try_ingest_gig_event'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.try_ingest_gig_event(bytea, text) IS
	'take in a webhook; a bad one comes back as rejected, with the reason';

CREATE FUNCTION @extschema@.try_ingest_gig_event(
	body text,
	sig text,
	OUT outcome @extschema@.gig_ingest_outcome,
	OUT event_id bigint,
	OUT event @extschema@.gig_event_kind,
	OUT account_id uuid,
	OUT sqlstate text,
	OUT message text
)
AS 'MODULE_PATHNAME', 'try_ingest_gig_event_text'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.try_ingest_gig_event(text, text) IS
	'take in a webhook; a bad one comes back as rejected, with the reason';

CREATE FUNCTION @extschema@.ingest_gig_events(bodies bytea[], sigs text[])
RETURNS TABLE (
	ord integer,
	outcome @extschema@.gig_ingest_outcome,
	event_id bigint,
	event @extschema@.gig_event_kind,
	account_id uuid,
	sqlstate text,
	message text
)
AS 'MODULE_PATHNAME', 'ingest_gig_events'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT ROWS 1000;
COMMENT ON FUNCTION @extschema@.ingest_gig_events(bytea[], text[]) IS
	'take in many webhooks at once, in this order; a bad one harms no other';

CREATE FUNCTION @extschema@.gig_inbox_ingest()
RETURNS trigger
AS 'MODULE_PATHNAME', 'gig_inbox_ingest'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.gig_inbox_ingest() IS
	'take in what is inserted into a raw inbox table; arguments: the columns of body, signature, outcome and error';

-- It runs as its caller: what the table's owner has put on the table (triggers,
-- domains, expressions) does as with any UPDATE.
CREATE PROCEDURE @extschema@.drain_gig_inbox(
	inbox regclass,
	batch integer DEFAULT 10000,
	key name DEFAULT 'id',
	body name DEFAULT 'body',
	signature name DEFAULT 'signature',
	outcome name DEFAULT 'outcome',
	error name DEFAULT 'error',
	INOUT drained bigint DEFAULT 0,
	INOUT rejected bigint DEFAULT 0
)
AS 'MODULE_PATHNAME', 'drain_gig_inbox'
LANGUAGE C;
COMMENT ON PROCEDURE @extschema@.drain_gig_inbox(regclass, integer, name, name, name, name, name, bigint, bigint) IS
	'take in the rows of an inbox table that have no outcome yet, a batch a transaction; goes on where it was ended, and beside others';

--
-- Subscriptions
--

CREATE FUNCTION @extschema@.gig_subscription_changed()
RETURNS trigger
AS 'MODULE_PATHNAME', 'gig_subscription_changed'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.gig_subscription_changed() IS
	'make every session read the subscriptions again';

CREATE TRIGGER gig_subscription_changed
	AFTER INSERT OR UPDATE OR DELETE ON @extschema@.gig_subscription
	FOR EACH ROW EXECUTE FUNCTION @extschema@.gig_subscription_changed();
CREATE TRIGGER gig_subscription_truncated
	AFTER TRUNCATE ON @extschema@.gig_subscription
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.gig_subscription_changed();
CREATE TRIGGER gig_subscription_secret_changed
	AFTER INSERT OR UPDATE OR DELETE ON @extschema@.gig_subscription_secret
	FOR EACH ROW EXECUTE FUNCTION @extschema@.gig_subscription_changed();
CREATE TRIGGER gig_subscription_secret_truncated
	AFTER TRUNCATE ON @extschema@.gig_subscription_secret
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.gig_subscription_changed();

-- A replica that applies changes has sessions that ingest, too.
ALTER TABLE @extschema@.gig_subscription
	ENABLE ALWAYS TRIGGER gig_subscription_changed;
ALTER TABLE @extschema@.gig_subscription
	ENABLE ALWAYS TRIGGER gig_subscription_truncated;
ALTER TABLE @extschema@.gig_subscription_secret
	ENABLE ALWAYS TRIGGER gig_subscription_secret_changed;
ALTER TABLE @extschema@.gig_subscription_secret
	ENABLE ALWAYS TRIGGER gig_subscription_secret_truncated;

CREATE FUNCTION @extschema@.gig_subscription_cascade()
RETURNS trigger
AS 'MODULE_PATHNAME', 'gig_subscription_cascade'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION @extschema@.gig_subscription_cascade() IS
	'have the secrets of a subscription go and be renamed with it';

CREATE TRIGGER gig_subscription_cascade
	AFTER DELETE OR UPDATE OF name ON @extschema@.gig_subscription
	FOR EACH ROW EXECUTE FUNCTION @extschema@.gig_subscription_cascade();
CREATE TRIGGER gig_subscription_cascade_truncate
	AFTER TRUNCATE ON @extschema@.gig_subscription
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.gig_subscription_cascade();

CREATE FUNCTION @extschema@.create_gig_subscription(
	name text,
	url text,
	secret text DEFAULT NULL,
	events text[] DEFAULT ARRAY[
		'gigs.added',
		'gigs.updated',
		'gigs.removed',
		'gigs.partially_synced',
		'gigs.fully_synced'
	],
	config jsonb DEFAULT NULL
)
RETURNS void
AS 'MODULE_PATHNAME', 'create_gig_subscription'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.create_gig_subscription(text, text, text, text[], jsonb) IS
	'register a webhook subscription; without a secret, what comes for it is accepted unsigned';

CREATE FUNCTION @extschema@.add_gig_secret(name text, secret text)
RETURNS void
AS 'MODULE_PATHNAME', 'add_gig_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.add_gig_secret(text, text) IS
	'accept another secret for a subscription; those it has stay valid';

CREATE FUNCTION @extschema@.retire_gig_secret(
	name text,
	secret text,
	at timestamptz DEFAULT pg_catalog.now()
)
RETURNS void
AS 'MODULE_PATHNAME', 'retire_gig_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.retire_gig_secret(text, text, timestamptz) IS
	'refuse a secret from a time on; every session does from its next statement after the commit';

CREATE FUNCTION @extschema@.drop_gig_subscription(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'drop_gig_subscription'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.drop_gig_subscription(text) IS
	'forget a subscription and its secrets; what it brought stays';

CREATE FUNCTION @extschema@.gig_subscription_request(name text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'gig_subscription_request'
LANGUAGE C STABLE PARALLEL SAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.gig_subscription_request(text) IS
	'what to POST to /v2/webhooks for a subscription; holds its newest secret';

--
-- Upkeep
--

CREATE FUNCTION @extschema@.rebuild_gig_sync(
	account_id uuid DEFAULT NULL,
	OUT accounts_rebuilt bigint,
	OUT accounts_skipped bigint
)
AS 'MODULE_PATHNAME', 'rebuild_gig_sync'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.rebuild_gig_sync(uuid) IS
	'fold the log again into gig_account_sync, for one account or all; skips accounts whose first events are pruned';

CREATE FUNCTION @extschema@.prune_gig_events(
	keep interval,
	batch integer DEFAULT 10000,
	OUT events_pruned bigint,
	OUT deliveries_pruned bigint
)
AS 'MODULE_PATHNAME', 'prune_gig_events'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.prune_gig_events(interval, integer) IS
	'delete events older than "keep", and deliveries past the dedupe window, at most a batch of each; call it until both are 0';

--
-- Reports
--

CREATE VIEW @extschema@.gig_sync_status AS
SELECT
	a.account_id,
	a.user_id,
	a.state,
	a.available_from,
	a.available_to,
	a.available_count,
	a.days_synced,
	EXTRACT(day FROM a.available_to - a.available_from)::integer AS days_covered,
	a.partially_synced_at - a.first_event_at AS partial_sync_took,
	a.fully_synced_at - a.first_event_at AS full_sync_took,
	a.refreshed_at,
	a.last_event,
	a.last_event_at,
	pg_catalog.now() - a.last_event_at AS last_event_age,
	a.state = 'partially_synced'
		AND a.partially_synced_at < pg_catalog.now() - @extschema@.gig_stalled_after() AS stalled
FROM @extschema@.gig_account_sync AS a;
COMMENT ON VIEW @extschema@.gig_sync_status IS
	'an account a row: how far it is synced, since when, and whether that has stalled';

CREATE VIEW @extschema@.gig_user_sync AS
SELECT
	a.user_id,
	pg_catalog.count(*) AS accounts,
	pg_catalog.count(*) FILTER (WHERE a.state = 'fully_synced') AS fully_synced,
	pg_catalog.bool_and(a.state = 'fully_synced') AS all_synced,
	pg_catalog.sum(a.available_count) AS available_count,
	pg_catalog.max(a.last_event_at) AS last_event_at
FROM @extschema@.gig_account_sync AS a
GROUP BY a.user_id;
COMMENT ON VIEW @extschema@.gig_user_sync IS
	'a user a row: how many accounts, and whether all are fully synced';

CREATE VIEW @extschema@.gig_sync_summary AS
SELECT
	s.state,
	coalesce(a.accounts, 0) AS accounts,
	coalesce(a.gigs, 0) AS gigs,
	a.oldest
FROM pg_catalog.unnest(pg_catalog.enum_range(NULL::@extschema@.gig_sync_state)) AS s (state)
LEFT JOIN (
	SELECT
		state,
		pg_catalog.count(*) AS accounts,
		pg_catalog.sum(available_count) AS gigs,
		pg_catalog.min(first_event_at) AS oldest
	FROM @extschema@.gig_account_sync
	GROUP BY state
) AS a ON a.state = s.state;
COMMENT ON VIEW @extschema@.gig_sync_summary IS
	'a state a row: how many accounts and gigs, and since when the oldest is known';

CREATE VIEW @extschema@.gig_event_history AS
SELECT
	l.event_id,
	l.received_at,
	l.event,
	l.name,
	l.account_id,
	e.user_id,
	e.available_from,
	e.available_to,
	e.available_count,
	e.changed_count,
	e.changed_gigs,
	e.changed_from,
	e.changed_to,
	e.days_synced
FROM @extschema@.gig_event_log AS l
CROSS JOIN LATERAL @extschema@.parse_logged_gig_event(l.body) AS e;
COMMENT ON VIEW @extschema@.gig_event_history IS
	'the log, parsed again from the bodies as received';

CREATE FUNCTION @extschema@.gig_event_counts(
	bucket interval,
	"from" timestamptz,
	"to" timestamptz
)
RETURNS TABLE (
	bucket_start timestamptz,
	event @extschema@.gig_event_kind,
	events bigint,
	gigs bigint
)
AS 'MODULE_PATHNAME', 'gig_event_counts'
LANGUAGE C STABLE PARALLEL SAFE CALLED ON NULL INPUT;
COMMENT ON FUNCTION @extschema@.gig_event_counts(interval, timestamptz, timestamptz) IS
	'events, and gigs added, updated or removed, by kind per time bucket (in UTC), from "from" up to but not including "to"';

--
-- Privileges: what isn't pure is for those it is granted to
--

REVOKE ALL ON
	@extschema@.gig_subscription,
	@extschema@.gig_subscription_secret,
	@extschema@.gig_event_log,
	@extschema@.gig_delivery,
	@extschema@.gig_account_sync,
	@extschema@.gig_change,
	@extschema@.gig_sync_status,
	@extschema@.gig_user_sync,
	@extschema@.gig_sync_summary,
	@extschema@.gig_event_history
FROM PUBLIC;

REVOKE ALL ON FUNCTION
	@extschema@.ingest_gig_event(bytea, text),
	@extschema@.ingest_gig_event(text, text),
	@extschema@.try_ingest_gig_event(bytea, text),
	@extschema@.try_ingest_gig_event(text, text),
	@extschema@.ingest_gig_events(bytea[], text[]),
	@extschema@.gig_inbox_ingest(),
	@extschema@.gig_subscription_changed(),
	@extschema@.gig_subscription_cascade(),
	@extschema@.create_gig_subscription(text, text, text, text[], jsonb),
	@extschema@.add_gig_secret(text, text),
	@extschema@.retire_gig_secret(text, text, timestamptz),
	@extschema@.drop_gig_subscription(text),
	@extschema@.gig_subscription_request(text),
	@extschema@.rebuild_gig_sync(uuid),
	@extschema@.prune_gig_events(interval, integer),
	@extschema@.gig_event_counts(interval, timestamptz, timestamptz)
FROM PUBLIC;

REVOKE ALL ON PROCEDURE
	@extschema@.drain_gig_inbox(regclass, integer, name, name, name, name, name, bigint, bigint)
FROM PUBLIC;

-- Default privileges may have granted more, to anyone.
DO $$
DECLARE
	granted record;
BEGIN
	FOR granted IN
		SELECT 'TABLE' AS kind, c.oid::pg_catalog.regclass::text AS name, a.grantee
		FROM pg_catalog.pg_depend AS d
		JOIN pg_catalog.pg_extension AS e
			ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
		JOIN pg_catalog.pg_class AS c
			ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid,
			pg_catalog.aclexplode(c.relacl) AS a
		WHERE e.extname = 'gigs_webhooks' AND a.grantee <> c.relowner
		UNION
		SELECT 'ROUTINE', p.oid::pg_catalog.regprocedure::text, a.grantee
		FROM pg_catalog.pg_depend AS d
		JOIN pg_catalog.pg_extension AS e
			ON d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid
		JOIN pg_catalog.pg_proc AS p
			ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid,
			pg_catalog.aclexplode(p.proacl) AS a
		WHERE e.extname = 'gigs_webhooks' AND a.grantee NOT IN (p.proowner, 0)
	LOOP
		EXECUTE pg_catalog.format(
			'REVOKE ALL ON %s %s FROM %s',
			granted.kind,
			granted.name,
			CASE granted.grantee
				WHEN 0 THEN 'PUBLIC'
				ELSE granted.grantee::pg_catalog.regrole::text
			END
		);
	END LOOP;
END
$$;

-- ... and what is pure is for anyone, whatever default privileges have to say.
GRANT EXECUTE ON FUNCTION
	@extschema@.parse_gig_event(bytea),
	@extschema@.parse_gig_event(text),
	@extschema@.parse_gigs_added(bytea),
	@extschema@.parse_gigs_added(text),
	@extschema@.parse_gigs_updated(bytea),
	@extschema@.parse_gigs_updated(text),
	@extschema@.parse_gigs_removed(bytea),
	@extschema@.parse_gigs_removed(text),
	@extschema@.parse_gigs_partially_synced(bytea),
	@extschema@.parse_gigs_partially_synced(text),
	@extschema@.parse_gigs_fully_synced(bytea),
	@extschema@.parse_gigs_fully_synced(text),
	@extschema@.parse_logged_gig_event(bytea),
	@extschema@.sign_gig_event(bytea, text),
	@extschema@.sign_gig_event(bytea, bytea),
	@extschema@.sign_gig_event(text, text),
	@extschema@.sign_gig_event(text, bytea),
	@extschema@.verify_gig_signature(bytea, text, text),
	@extschema@.verify_gig_signature(bytea, text, bytea),
	@extschema@.verify_gig_signature(text, text, text),
	@extschema@.verify_gig_signature(text, text, bytea),
	@extschema@.gig_stalled_after(),
	@extschema@.gig_dedupe_window()
TO PUBLIC;
