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

CREATE FUNCTION @extschema@.gig_body_bytes(body text)
RETURNS bytea
AS 'MODULE_PATHNAME', 'gig_body_bytes'
LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION @extschema@.gig_body_bytes(text) IS
	'what was signed of a body that is text: its UTF-8 bytes; if it has none, bytes that are refused as a body';

REVOKE ALL ON FUNCTION
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
	date_style CONSTANT pg_catalog.text := pg_catalog.current_setting('DateStyle');
	interval_style CONSTANT pg_catalog.text := pg_catalog.current_setting('IntervalStyle');
	float_digits CONSTANT pg_catalog.text := pg_catalog.current_setting('extra_float_digits');
	columns CONSTANT pg_catalog.text[] := ARRAY[key, body, signature, outcome, error];
	schema pg_catalog.text;
	table_name pg_catalog.text;
	full_name pg_catalog.text;
	types pg_catalog.text[];
	base_types pg_catalog.oid[];
	error_length integer;
	definition pg_catalog.text;
	locked_definition pg_catalog.text;
	not_before pg_catalog.text;
	missing integer;
	statement pg_catalog.text;
	tables pg_catalog.oid[];
	places pg_catalog.tid[];
	keys pg_catalog.text[];
	last_key pg_catalog.text;
	done record;
	restarted boolean := false;
BEGIN
	drained := 0;
	rejected := 0;
	<<batches>>
	LOOP
		-- Names and types are looked up for every batch: between them they may change.
		-- They are until the rows, and so the table, are locked.
		locked_definition := NULL;
		LOOP
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
					WHERE c.place = 5 AND n.base_type IN ('varchar'::regtype, 'bpchar'::regtype)
						AND n.typmod >= 4
				)
			INTO types, base_types, error_length
			FROM unnest(columns) WITH ORDINALITY AS c (name, place)
			LEFT JOIN named AS n ON n.place = c.place;
			missing := array_position(types, NULL);
			IF missing IS NOT NULL THEN
				RAISE undefined_column USING MESSAGE = format(
					'column "%s" of table "%s" does not exist', columns[missing], table_name);
			END IF;
			IF base_types[2] = 'jsonb'::regtype THEN
				RAISE datatype_mismatch USING
					MESSAGE = format('column "%s" of table "%s" for the body has type jsonb', body, table_name),
					DETAIL = 'It does not keep the bytes that were signed.';
			END IF;
			definition := concat_ws(' ', schema, full_name, types, base_types, error_length);
			EXIT WHEN definition = locked_definition;

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
			statement := format(
				$statement$
				SELECT
					pg_catalog.array_agg(l.tableoid),
					pg_catalog.array_agg(l.ctid),
					pg_catalog.array_agg(l.key::pg_catalog.text)
				FROM (
					SELECT i.tableoid, i.ctid, i.%2$I AS key
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
			-- a key that goes through text has to come back as what it was
			PERFORM
				set_config('DateStyle', 'ISO', true),
				set_config('IntervalStyle', 'postgres', true),
				set_config('extra_float_digits', '1', true),
				set_config('search_path', caller_path, true);
			EXECUTE statement INTO tables, places, keys USING last_key, batch;
			PERFORM
				pg_catalog.set_config('DateStyle', date_style, true),
				pg_catalog.set_config('IntervalStyle', interval_style, true),
				pg_catalog.set_config('extra_float_digits', float_digits, true);
			locked_definition := definition;
		END LOOP;

		-- An array holds a gigabyte: a batch ends before, and what is longer than any
		-- body may be is cut.  How many rows there are is hidden from the planner: it
		-- would read the table to find them, for each batch, and not where they lie.
		statement := format(
			$statement$
			WITH locked AS MATERIALIZED (
				SELECT
					i.tableoid,
					i.ctid,
					%2$s AS body,
					i.%3$I::pg_catalog.text AS signature,
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
					n.place,
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
				CROSS JOIN LATERAL %7$s.ingest_gig_events(a.bodies, a.signatures) AS r
			), done AS MATERIALIZED (
				SELECT t.tableoid, t.ctid, t.place, r.*
				FROM taken AS t
				JOIN ingested AS r ON r.ord OPERATOR(pg_catalog.=) t.ord
			), marked AS (
				UPDATE %1$s AS i
				SET
					%4$I = d.outcome::pg_catalog.text::%6$s,
					%5$I = pg_catalog.left(
						d.sqlstate OPERATOR(pg_catalog.||) ': ' OPERATOR(pg_catalog.||) d.message,
						%8$s
					)::%9$s
				FROM done AS d
				WHERE i.tableoid OPERATOR(pg_catalog.=) d.tableoid
					AND i.ctid OPERATOR(pg_catalog.=) d.ctid
				RETURNING i.%4$I IS NOT NULL AS good
			)
			SELECT
				pg_catalog.count(*) AS taken,
				pg_catalog.count(*) FILTER (
					WHERE d.outcome::pg_catalog.text OPERATOR(pg_catalog.=) 'rejected'
				) AS rejected,
				pg_catalog.max(d.place) AS last_place,
				(SELECT pg_catalog.count(*) FROM marked AS m WHERE m.good) AS marked
			FROM done AS d
			$statement$,
			full_name,
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

		PERFORM set_config('search_path', caller_path, true);
		EXECUTE statement INTO done USING tables, places;
		IF done.marked OPERATOR(pg_catalog.<>) done.taken THEN
			RAISE triggered_data_change_violation USING
				MESSAGE = pg_catalog.format('rows of table "%s" could not be marked as drained', table_name),
				HINT = 'A trigger or rule of the table may have kept them from being updated.';
		END IF;
		COMMIT;
		IF done.taken OPERATOR(pg_catalog.=) 0 THEN
			EXIT batches WHEN restarted;
			-- from the start: another session may have given up rows that it had locked
			restarted := true;
			last_key := NULL;
		ELSE
			last_key := keys[done.last_place];
			drained := drained OPERATOR(pg_catalog.+) done.taken;
			rejected := rejected OPERATOR(pg_catalog.+) done.rejected;
			RAISE NOTICE 'rows drained from "%": %, rejected: %', table_name, drained, rejected;
		END IF;
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
	@extschema@.gig_body_bytes(text),
	@extschema@.gig_stalled_after(),
	@extschema@.gig_dedupe_window()
TO PUBLIC;
