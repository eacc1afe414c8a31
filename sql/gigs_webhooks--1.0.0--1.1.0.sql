\echo Use "ALTER EXTENSION gigs_webhooks UPDATE TO '1.1.0'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- Whether a subscription is signed no longer hangs on its secrets being there.
ALTER TABLE @extschema@.gig_subscription
	ADD COLUMN signed boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN @extschema@.gig_subscription.signed IS
	'whether its webhooks carry a signature; then none is accepted without, whatever becomes of the secrets';
COMMENT ON TABLE @extschema@.gig_subscription_secret IS
	'the secrets that webhooks are signed with, retired ones included';
-- Not by an UPDATE here: triggers of the tables' owner would run as who updates.
CREATE FUNCTION @extschema@.gig_find_unsigned()
RETURNS void
AS 'MODULE_PATHNAME', 'gig_find_unsigned'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
SELECT @extschema@.gig_find_unsigned();
DROP FUNCTION @extschema@.gig_find_unsigned();

-- A foreign key between tables that pg_restore -j fills at the same time is in
-- its way.
ALTER TABLE @extschema@.gig_subscription_secret
	DROP CONSTRAINT gig_subscription_secret_name_fkey;

-- What the foreign key did.
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

REVOKE ALL ON FUNCTION @extschema@.gig_subscription_cascade() FROM PUBLIC;
-- Default privileges may have granted it, to anyone.
DO $$
DECLARE
	granted record;
BEGIN
	FOR granted IN
		SELECT p.oid::pg_catalog.regprocedure AS function, a.grantee::pg_catalog.regrole
		FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(p.proacl) AS a
		WHERE p.oid = '@extschema@.gig_subscription_cascade()'::pg_catalog.regprocedure
			AND a.grantee NOT IN (p.proowner, 0)
	LOOP
		EXECUTE pg_catalog.format(
			'REVOKE ALL ON FUNCTION %s FROM %s', granted.function, granted.grantee
		);
	END LOOP;
END
$$;

CREATE OR REPLACE PROCEDURE @extschema@.drain_gig_inbox(
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

CREATE OR REPLACE FUNCTION @extschema@.create_gig_subscription(
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

CREATE OR REPLACE FUNCTION @extschema@.add_gig_secret(name text, secret text)
RETURNS void
AS 'MODULE_PATHNAME', 'add_gig_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;

CREATE OR REPLACE FUNCTION @extschema@.retire_gig_secret(
	name text,
	secret text,
	at timestamptz DEFAULT pg_catalog.now()
)
RETURNS void
AS 'MODULE_PATHNAME', 'retire_gig_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;

CREATE OR REPLACE FUNCTION @extschema@.drop_gig_subscription(name text)
RETURNS void
AS 'MODULE_PATHNAME', 'drop_gig_subscription'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;

CREATE OR REPLACE FUNCTION @extschema@.gig_subscription_request(name text)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'gig_subscription_request'
LANGUAGE C STABLE PARALLEL SAFE CALLED ON NULL INPUT;

CREATE OR REPLACE FUNCTION @extschema@.prune_gig_events(
	keep interval,
	batch integer DEFAULT 10000,
	OUT events_pruned bigint,
	OUT deliveries_pruned bigint
)
AS 'MODULE_PATHNAME', 'prune_gig_events'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT;

CREATE OR REPLACE FUNCTION @extschema@.gig_event_counts(
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

-- What is pure is for anyone, whatever default privileges have to say.
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
