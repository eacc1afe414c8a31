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

-- A foreign key between tables that pg_restore -j fills at the same time is in
-- its way.
ALTER TABLE @extschema@.gig_subscription_secret
	DROP CONSTRAINT gig_subscription_secret_name_fkey;

-- Functions that work in the name of the tables' owner, not of their own.
CREATE FUNCTION @extschema@.gig_become_owner()
RETURNS void
AS 'MODULE_PATHNAME', 'gig_become_owner'
LANGUAGE C VOLATILE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.gig_become_owner() IS
	'let the rest of a SECURITY DEFINER function work in the name of the tables'' owner';
CREATE FUNCTION @extschema@.gig_subscription_cascade()
RETURNS trigger
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
BEGIN
	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	CASE TG_OP
		WHEN 'UPDATE' THEN
			EXECUTE format(
				'UPDATE %s.gig_subscription_secret AS s SET name = $2 WHERE s.name = $1',
				schema
			) USING old.name, new.name;
		WHEN 'DELETE' THEN
			EXECUTE format(
				'DELETE FROM %s.gig_subscription_secret AS s WHERE s.name = $1',
				schema
			) USING old.name;
		WHEN 'TRUNCATE' THEN
			EXECUTE format('DELETE FROM %s.gig_subscription_secret', schema);
	END CASE;
	RETURN NULL;
END
$$;
COMMENT ON FUNCTION @extschema@.gig_subscription_cascade() IS
	'have the secrets of a subscription go and be renamed with it';
CREATE TRIGGER gig_subscription_cascade
	AFTER DELETE OR UPDATE OF name ON @extschema@.gig_subscription
	FOR EACH ROW EXECUTE FUNCTION @extschema@.gig_subscription_cascade();
CREATE TRIGGER gig_subscription_cascade_truncate
	AFTER TRUNCATE ON @extschema@.gig_subscription
	FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.gig_subscription_cascade();

CREATE FUNCTION @extschema@.gig_body_bytes(body text)
RETURNS bytea
AS 'MODULE_PATHNAME', 'gig_body_bytes'
LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.gig_body_bytes(text) IS
	'what was signed of a body that is text: its UTF-8 bytes; if it has none, bytes that are refused as a body';

REVOKE ALL ON FUNCTION
	@extschema@.gig_become_owner(),
	@extschema@.gig_subscription_cascade()
FROM PUBLIC;
-- Default privileges may have granted them, to anyone.
DO $$
DECLARE
	granted record;
BEGIN
	FOR granted IN
		SELECT p.oid::pg_catalog.regprocedure AS function, a.grantee::pg_catalog.regrole
		FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(p.proacl) AS a
		WHERE p.oid IN (
				'@extschema@.gig_body_bytes(text)'::pg_catalog.regprocedure,
				'@extschema@.gig_become_owner()'::pg_catalog.regprocedure,
				'@extschema@.gig_subscription_cascade()'::pg_catalog.regprocedure
			)
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
LANGUAGE plpgsql
AS $$
DECLARE
	caller_path CONSTANT pg_catalog.text := pg_catalog.current_setting('search_path');
	columns CONSTANT pg_catalog.text[] := ARRAY[key, body, signature, outcome, error];
	schema pg_catalog.text;
	table_name pg_catalog.text;
	full_name pg_catalog.text;
	types pg_catalog.text[];
	base_types pg_catalog.oid[];
	error_length integer;
	not_before pg_catalog.text;
	missing integer;
	lock_statement pg_catalog.text;
	statement pg_catalog.text;
	last_key pg_catalog.text;
	tables pg_catalog.oid[];
	places pg_catalog.tid[];
	restarted boolean := false;
	taken bigint;
	bad bigint;
	marked bigint;
BEGIN
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

	IF coalesce(batch, 0) <= 0 THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'batch must be greater than zero';
	END IF;

	SELECT quote_ident(n.nspname)
	INTO schema
	FROM pg_extension AS e
	JOIN pg_namespace AS n ON n.oid = e.extnamespace
	WHERE e.extname = 'gigs_webhooks';

	SELECT c.relname, format('%I.%I', n.nspname, c.relname)
	INTO table_name, full_name
	FROM pg_class AS c
	JOIN pg_namespace AS n ON n.oid = c.relnamespace
	WHERE c.oid = inbox AND c.relkind IN ('r', 'p');
	IF table_name IS NULL THEN
		RAISE wrong_object_type USING
			MESSAGE = format('"%s" is not a table', inbox),
			DETAIL = 'Views have no rows that could be told apart.';
	END IF;

	-- the columns' types, and those under the domains among them
	WITH RECURSIVE used (place, type, base_type, typmod) AS (
		SELECT c.place, a.atttypid, a.atttypid, a.atttypmod
		FROM unnest(columns) WITH ORDINALITY AS c (name, place)
		JOIN pg_attribute AS a
			ON a.attrelid = inbox AND a.attname = c.name AND a.attnum > 0
		UNION ALL
		SELECT u.place, u.type, t.typbasetype, greatest(u.typmod, t.typtypmod)
		FROM used AS u
		JOIN pg_type AS t ON t.oid = u.base_type
		WHERE t.typtype = 'd'
	), named AS (
		SELECT u.place, u.base_type, u.typmod, format('%I.%I', n.nspname, t.typname) AS type
		FROM used AS u
		JOIN pg_type AS b ON b.oid = u.base_type AND b.typtype <> 'd'
		JOIN pg_type AS t ON t.oid = u.type
		JOIN pg_namespace AS n ON n.oid = t.typnamespace
	)
	SELECT
		array_agg(n.type ORDER BY c.place),
		array_agg(n.base_type ORDER BY c.place),
		-- a reason that is too long for its column must not cost the rows
		max(n.typmod - 4) FILTER (
			WHERE c.place = 5 AND n.base_type = 'varchar'::regtype AND n.typmod >= 4
		)
	INTO types, base_types, error_length
	FROM unnest(columns) WITH ORDINALITY AS c (name, place)
	LEFT JOIN named AS n ON n.place = c.place;
	missing := array_position(types, NULL);
	IF missing IS NOT NULL THEN
		RAISE undefined_column USING MESSAGE = format(
			'column "%s" of table "%s" does not exist', columns[missing], table_name);
	END IF;

	-- what ORDER BY goes by: the operator >= of the key's default class; types
	-- that have none go by one of PostgreSQL's own (varchar, enums, arrays)
	not_before := coalesce(
		(
			SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
			FROM pg_opclass AS c
			JOIN pg_am AS a ON a.oid = c.opcmethod AND a.amname = 'btree'
			JOIN pg_amop AS m
				ON m.amopfamily = c.opcfamily
				AND m.amoplefttype = c.opcintype
				AND m.amoprighttype = c.opcintype
				AND m.amopstrategy = 4
			JOIN pg_operator AS o ON o.oid = m.amopopr
			JOIN pg_namespace AS n ON n.oid = o.oprnamespace
			WHERE c.opcdefault AND c.opcintype = base_types[1]
		),
		'OPERATOR(pg_catalog.>=)'
	);

	-- Keys may be null, and the same in several rows: so rows are told apart by
	-- where they lie.  That is where their latest versions lie, which somebody
	-- may have made since this statement began; the next one sees them.
	lock_statement := format(
		$statement$
		SELECT pg_catalog.array_agg(l.tableoid), pg_catalog.array_agg(l.ctid)
		FROM (
			SELECT i.tableoid, i.ctid
			FROM %1$s AS i
			WHERE i.%3$I IS NULL AND ($1 IS NULL OR i.%2$I %4$s $1::%5$s)
			ORDER BY i.%2$I
			LIMIT $2
			FOR UPDATE SKIP LOCKED
		) AS l
		$statement$,
		full_name,
		key,
		outcome,
		not_before,
		types[1]
	);

	-- An array holds a gigabyte: a batch ends before, and what is longer than any
	-- body may be is cut.  How many rows there are is hidden from the planner: it
	-- would read the table to find them, for each batch, and not where they lie.
	statement := format(
		$statement$
		WITH locked AS MATERIALIZED (
			SELECT
				i.tableoid,
				i.ctid,
				i.%2$I AS key,
				%3$s AS body,
				i.%4$I::pg_catalog.text AS signature,
				l.place
			FROM ROWS FROM (pg_catalog.unnest((SELECT $1)), pg_catalog.unnest((SELECT $2)))
				WITH ORDINALITY AS l (in_table, at, place)
			JOIN %1$s AS i
				ON i.tableoid OPERATOR(pg_catalog.=) l.in_table
				AND i.ctid OPERATOR(pg_catalog.=) l.at
		), numbered AS (
			SELECT
				l.*,
				pg_catalog.row_number() OVER w AS ord,
				pg_catalog.sum(pg_catalog.octet_length(l.body)) OVER w AS size
			FROM locked AS l
			WINDOW w AS (ORDER BY l.place ROWS UNBOUNDED PRECEDING)
		), taken AS MATERIALIZED (
			SELECT
				n.tableoid,
				n.ctid,
				n.key,
				n.ord,
				CASE
					WHEN pg_catalog.octet_length(n.body) OPERATOR(pg_catalog.<) 268435456 THEN n.body
					ELSE pg_catalog.substr(n.body, 1, 268435456)
				END AS body,
				n.signature
			FROM numbered AS n
			WHERE n.ord OPERATOR(pg_catalog.=) 1
				OR n.size IS NULL
				OR n.size OPERATOR(pg_catalog.<) 268435456
		), ingested AS MATERIALIZED (
			SELECT r.*
			FROM (
				SELECT
					pg_catalog.array_agg(t.body ORDER BY t.ord) AS bodies,
					pg_catalog.array_agg(t.signature ORDER BY t.ord) AS signatures
				FROM taken AS t
				HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 0
			) AS a
			CROSS JOIN LATERAL %8$s.ingest_gig_events(a.bodies, a.signatures) AS r
		), done AS MATERIALIZED (
			SELECT t.tableoid, t.ctid, t.key, r.*
			FROM taken AS t
			JOIN ingested AS r ON r.ord OPERATOR(pg_catalog.=) t.ord
		), marked AS (
			UPDATE %1$s AS i
			SET
				%5$I = d.outcome::pg_catalog.text::%7$s,
				%6$I = pg_catalog.left(
					d.sqlstate OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) d.message,
					%9$s
				)::%10$s
			FROM done AS d
			WHERE i.tableoid OPERATOR(pg_catalog.=) d.tableoid
				AND i.ctid OPERATOR(pg_catalog.=) d.ctid
			RETURNING 1
		)
		SELECT
			pg_catalog.count(*),
			pg_catalog.count(*) FILTER (
				WHERE d.outcome::pg_catalog.text OPERATOR(pg_catalog.=) 'rejected'
			),
			(pg_catalog.array_agg(d.key ORDER BY d.ord DESC))[1]::pg_catalog.text,
			(SELECT pg_catalog.count(*) FROM marked AS m)
		FROM done AS d
		$statement$,
		full_name,
		key,
		CASE
			WHEN base_types[2] = 'bytea'::regtype THEN format('i.%I::pg_catalog.bytea', body)
			ELSE format('%s.gig_body_bytes(i.%I::pg_catalog.text)', schema, body)
		END,
		signature,
		outcome,
		error,
		types[4],
		schema,
		coalesce(error_length, 2147483647),
		types[5]
	);

	PERFORM pg_catalog.set_config('search_path', caller_path, true);
	drained := 0;
	rejected := 0;
	LOOP
		EXECUTE lock_statement INTO tables, places USING last_key, batch;
		EXECUTE statement INTO taken, bad, last_key, marked USING tables, places;
		IF marked OPERATOR(pg_catalog.<>) taken THEN
			RAISE triggered_data_change_violation USING
				MESSAGE = pg_catalog.format('rows of table "%s" could not be marked as drained', table_name),
				HINT = 'A trigger or rule of the table may have kept them from being updated.';
		END IF;
		COMMIT;
		IF taken OPERATOR(pg_catalog.=) 0 THEN
			EXIT WHEN restarted;
			-- another session may have given up rows that it had locked
			restarted := true;
			CONTINUE;
		END IF;
		drained := drained OPERATOR(pg_catalog.+) taken;
		rejected := rejected OPERATOR(pg_catalog.+) bad;
		RAISE NOTICE 'rows drained from "%": %, rejected: %', table_name, drained, rejected;
	END LOOP;
END
$$;

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
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	nrows bigint;
BEGIN
	IF coalesce(create_gig_subscription.name, '') = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'subscription name must not be empty';
	END IF;
	IF octet_length(create_gig_subscription.name) > 1024 THEN
		RAISE program_limit_exceeded
			USING MESSAGE = 'subscription name must not be longer than 1024 bytes';
	END IF;
	-- raises if no webhook could spell it
	PERFORM convert_to(create_gig_subscription.name, 'UTF8');
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

	IF create_gig_subscription.secret = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'secret must not be empty';
	END IF;
	-- it must have a form in UTF-8, with which is signed
	EXECUTE format('SELECT %s.sign_gig_event(''\x''::bytea, $1)', schema)
	USING create_gig_subscription.secret;

	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	EXECUTE format(
		$statement$
		INSERT INTO %s.gig_subscription (name, url, events, config, signed)
		VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT ON CONSTRAINT gig_subscription_pkey DO NOTHING
		$statement$,
		schema
	) USING
		create_gig_subscription.name,
		create_gig_subscription.url,
		create_gig_subscription.events,
		create_gig_subscription.config,
		create_gig_subscription.secret IS NOT NULL;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows = 0 THEN
		RAISE duplicate_object USING
			MESSAGE = format('subscription "%s" already exists', create_gig_subscription.name),
			HINT = 'Use add_gig_secret() for another secret of the same name.';
	END IF;

	-- none that somebody has left behind is to come back to life
	EXECUTE format(
		'DELETE FROM %s.gig_subscription_secret AS s WHERE s.name = $1',
		schema
	) USING create_gig_subscription.name;

	IF create_gig_subscription.secret IS NOT NULL THEN
		EXECUTE format(
			'INSERT INTO %s.gig_subscription_secret (name, secret) VALUES ($1, $2)',
			schema
		) USING create_gig_subscription.name, create_gig_subscription.secret;
	END IF;
EXCEPTION
	-- its detail would show the row, and so the secret
	WHEN integrity_constraint_violation THEN
		RAISE USING ERRCODE = sqlstate, MESSAGE = sqlerrm;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.add_gig_secret(name text, secret text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	nrows bigint;
BEGIN
	IF coalesce(add_gig_secret.secret, '') = '' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'secret must not be empty';
	END IF;
	-- it must have a form in UTF-8, with which is signed
	EXECUTE format('SELECT %s.sign_gig_event(''\x''::bytea, $1)', schema)
	USING add_gig_secret.secret;

	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	-- updated even where it is signed already: whoever renames or drops it with an
	-- older snapshot, which does not have the new secret, has to try again
	EXECUTE format(
		'UPDATE %s.gig_subscription AS s SET signed = true WHERE s.name = $1',
		schema
	) USING add_gig_secret.name;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows = 0 THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" does not exist', add_gig_secret.name);
	END IF;

	EXECUTE format(
		$statement$
		SELECT
		FROM %s.gig_subscription_secret AS s
		WHERE s.name = $1
			AND s.secret = $2
			AND coalesce(s.retired_at, 'infinity') > clock_timestamp()
		$statement$,
		schema
	) USING add_gig_secret.name, add_gig_secret.secret;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows > 0 THEN
		RAISE duplicate_object
			USING MESSAGE = format('subscription "%s" has this secret already', add_gig_secret.name);
	END IF;

	EXECUTE format(
		'INSERT INTO %s.gig_subscription_secret (name, secret) VALUES ($1, $2)',
		schema
	) USING add_gig_secret.name, add_gig_secret.secret;
EXCEPTION
	-- its detail would show the row, and so the secret
	WHEN integrity_constraint_violation THEN
		RAISE USING ERRCODE = sqlstate, MESSAGE = sqlerrm;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.retire_gig_secret(
	name text,
	secret text,
	at timestamptz DEFAULT pg_catalog.now()
)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	nrows bigint;
BEGIN
	IF retire_gig_secret.at IS NULL THEN
		RAISE null_value_not_allowed
			USING MESSAGE = 'time of retirement must not be null';
	END IF;

	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	EXECUTE format('SELECT FROM %s.gig_subscription AS s WHERE s.name = $1', schema)
	USING retire_gig_secret.name;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows = 0 THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" does not exist', retire_gig_secret.name);
	END IF;

	EXECUTE format(
		$statement$
		UPDATE %s.gig_subscription_secret AS s
		SET retired_at = $3
		WHERE s.name = $1
			AND s.secret = $2
			AND coalesce(s.retired_at, 'infinity') > clock_timestamp()
		$statement$,
		schema
	) USING retire_gig_secret.name, retire_gig_secret.secret, retire_gig_secret.at;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows = 0 THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" has no such valid secret', retire_gig_secret.name);
	END IF;
EXCEPTION
	-- its detail would show the row, and so the secret
	WHEN integrity_constraint_violation THEN
		RAISE USING ERRCODE = sqlstate, MESSAGE = sqlerrm;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.drop_gig_subscription(name text)
RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	nrows bigint;
BEGIN
	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	EXECUTE format('DELETE FROM %s.gig_subscription AS s WHERE s.name = $1', schema)
	USING drop_gig_subscription.name;
	GET DIAGNOSTICS nrows = ROW_COUNT;
	IF nrows = 0 THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" does not exist', drop_gig_subscription.name);
	END IF;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.gig_subscription_request(name text)
RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	subscription record;
	newest_secret text;
	request jsonb;
BEGIN
	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	EXECUTE format(
		$statement$
		SELECT s.name, s.url, s.events, s.config
		FROM %s.gig_subscription AS s
		WHERE s.name = $1
		$statement$,
		schema
	) INTO subscription USING gig_subscription_request.name;
	IF subscription.name IS NULL THEN
		RAISE undefined_object
			USING MESSAGE = format('subscription "%s" does not exist', gig_subscription_request.name);
	END IF;

	EXECUTE format(
		$statement$
		SELECT s.secret
		FROM %s.gig_subscription_secret AS s
		WHERE s.name = $1
			AND coalesce(s.retired_at, 'infinity') > clock_timestamp()
		ORDER BY s.created_at DESC
		LIMIT 1
		$statement$,
		schema
	) INTO newest_secret USING gig_subscription_request.name;

	request := jsonb_build_object(
		'events', CASE
			WHEN subscription.events = ARRAY['*'] THEN to_jsonb('*'::text)
			ELSE to_jsonb(subscription.events)
		END,
		'name', subscription.name,
		'url', subscription.url
	);
	IF newest_secret IS NOT NULL THEN
		request := request || jsonb_build_object('secret', newest_secret);
	END IF;
	IF subscription.config IS NOT NULL THEN
		request := request || jsonb_build_object('config', subscription.config);
	END IF;
	RETURN request;
END
$$;

CREATE OR REPLACE FUNCTION @extschema@.prune_gig_events(
	keep interval,
	batch integer DEFAULT 10000,
	OUT events_pruned bigint,
	OUT deliveries_pruned bigint
)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
BEGIN
	IF keep IS NULL OR keep < interval '0' THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'interval to keep must not be null or negative';
	END IF;
	IF batch IS NULL OR batch <= 0 THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'batch must be greater than zero';
	END IF;

	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	EXECUTE format(
		$statement$
		DELETE FROM %1$s.gig_event_log AS l
		WHERE l.event_id IN (
			SELECT o.event_id
			FROM %1$s.gig_event_log AS o
			WHERE o.received_at < now() - $1
			LIMIT $2
			FOR UPDATE SKIP LOCKED
		)
		$statement$,
		schema
	) USING keep, batch;
	GET DIAGNOSTICS events_pruned = ROW_COUNT;

	-- past the window a delivery tells nothing, however long events are kept
	EXECUTE format(
		$statement$
		DELETE FROM %1$s.gig_delivery AS d
		WHERE (d.account_id, d.body_digest) IN (
			SELECT o.account_id, o.body_digest
			FROM %1$s.gig_delivery AS o
			WHERE o.first_at < now() - %1$s.gig_dedupe_window()
			LIMIT $1
			FOR UPDATE SKIP LOCKED
		)
		$statement$,
		schema
	) USING batch;
	GET DIAGNOSTICS deliveries_pruned = ROW_COUNT;
END
$$;

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
LANGUAGE plpgsql STABLE PARALLEL SAFE CALLED ON NULL INPUT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	schema CONSTANT text := (
		SELECT quote_ident(n.nspname)
		FROM pg_extension AS e
		JOIN pg_namespace AS n ON n.oid = e.extnamespace
		WHERE e.extname = 'gigs_webhooks'
	);
	seconds double precision := EXTRACT(epoch FROM gig_event_counts.bucket);
BEGIN
	IF seconds IS NULL OR seconds <= 0 THEN
		RAISE invalid_parameter_value
			USING MESSAGE = 'bucket must be greater than zero';
	END IF;
	IF EXTRACT(month FROM gig_event_counts.bucket) <> 0
		OR EXTRACT(year FROM gig_event_counts.bucket) <> 0
	THEN
		RAISE feature_not_supported
			USING MESSAGE = 'buckets of months or years are not supported';
	END IF;

	EXECUTE format('SELECT %s.gig_become_owner()', schema);
	RETURN QUERY EXECUTE format(
		$statement$
		SELECT
			to_timestamp(floor(EXTRACT(epoch FROM l.received_at) / $1) * $1),
			l.event,
			count(*),
			coalesce(sum((%1$s.parse_logged_gig_event(l.body)).changed_count), 0)::bigint
		FROM %1$s.gig_event_log AS l
		WHERE l.received_at >= $2
			AND l.received_at < $3
		GROUP BY 1, 2
		ORDER BY 1, 2
		$statement$,
		schema
	) USING seconds, gig_event_counts."from", gig_event_counts."to";
END
$$;
