\echo Use "ALTER EXTENSION gigs_webhooks UPDATE TO '1.1.0'" to load this file. \quit

SET LOCAL search_path = pg_catalog, pg_temp;

-- Whether a subscription is signed no longer hangs on its secrets being there.
ALTER TABLE @extschema@.gig_subscription
	ADD COLUMN signed boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN @extschema@.gig_subscription.signed IS
	'whether its webhooks carry a signature; then none is accepted without, whatever becomes of the secrets';
COMMENT ON TABLE @extschema@.gig_subscription_secret IS
	'the secrets that webhooks are signed with, retired ones included';
UPDATE @extschema@.gig_subscription AS s
SET signed = false
WHERE NOT EXISTS (
	SELECT FROM @extschema@.gig_subscription_secret AS k WHERE k.name = s.name
);

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
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	IF coalesce(create_gig_subscription.name, '') = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'subscription name must not be empty';
	END IF;
	IF octet_length(create_gig_subscription.name) > 1024 THEN
		RAISE program_limit_exceeded
			USING MESSAGE = 'subscription name must not be longer than 1024 bytes';
	END IF;
	IF coalesce(create_gig_subscription.url, '') = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'subscription URL must not be empty';
	END IF;
	IF coalesce(cardinality(create_gig_subscription.events), 0) = 0
		OR array_position(create_gig_subscription.events, NULL) IS NOT NULL
		OR array_position(create_gig_subscription.events, '') IS NOT NULL
	THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'subscription events must not be empty';
	END IF;
	IF jsonb_typeof(create_gig_subscription.config) <> 'object' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'subscription config must be a JSON object';
	END IF;

	INSERT INTO @extschema@.gig_subscription (name, url, events, config, signed)
	VALUES (
		create_gig_subscription.name,
		create_gig_subscription.url,
		create_gig_subscription.events,
		create_gig_subscription.config,
		create_gig_subscription.secret IS NOT NULL
	)
	ON CONFLICT ON CONSTRAINT gig_subscription_pkey DO NOTHING;
	IF NOT FOUND THEN
		RAISE duplicate_object USING
			MESSAGE = format('subscription "%s" already exists', create_gig_subscription.name),
			HINT = 'Use add_gig_secret() for another secret of the same name.';
	END IF;

	IF create_gig_subscription.secret IS NOT NULL THEN
		PERFORM @extschema@.add_gig_secret(
			create_gig_subscription.name,
			create_gig_subscription.secret
		);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.add_gig_secret(name text, secret text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
	IF coalesce(add_gig_secret.secret, '') = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'secret must not be empty';
	END IF;

	PERFORM FROM @extschema@.gig_subscription AS s
	WHERE s.name = add_gig_secret.name
	FOR UPDATE;
	IF NOT FOUND THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" does not exist', add_gig_secret.name);
	END IF;

	PERFORM FROM @extschema@.gig_subscription_secret AS s
	WHERE s.name = add_gig_secret.name
		AND s.secret = add_gig_secret.secret
		AND coalesce(s.retired_at, 'infinity') > clock_timestamp();
	IF FOUND THEN
		RAISE duplicate_object
			USING MESSAGE = format('subscription "%s" has this secret already', add_gig_secret.name);
	END IF;

	INSERT INTO @extschema@.gig_subscription_secret (name, secret)
	VALUES (add_gig_secret.name, add_gig_secret.secret);
	UPDATE @extschema@.gig_subscription AS s
	SET signed = true
	WHERE s.name = add_gig_secret.name AND NOT s.signed;
END
$$;
