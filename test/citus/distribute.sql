-- Prepares a database in which CREATE EXTENSION gigs_webhooks distributes the
-- tables that events are written to.
CREATE EXTENSION citus;

CREATE SCHEMA distribute;

-- Within DO, Citus creates shards in this session.  A connection of its own does
-- not see the extension's types, which are not committed yet.
CREATE FUNCTION distribute.distribute_gig_tables() RETURNS event_trigger
LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (
		SELECT FROM pg_event_trigger_ddl_commands()
		WHERE object_type = 'extension' AND object_identity = 'gigs_webhooks'
	) THEN
		DO LANGUAGE plpgsql $do$
		DECLARE
			extschema text := (
				SELECT extnamespace::regnamespace
				FROM pg_extension
				WHERE extname = 'gigs_webhooks'
			);
		BEGIN
			PERFORM create_distributed_table(extschema || '.gig_account_sync', 'account_id',
				shard_count => 4);
			PERFORM create_distributed_table(extschema || '.gig_event_log', 'account_id',
				colocate_with => extschema || '.gig_account_sync');
		END
		$do$;
	END IF;
END
$$;

CREATE EVENT TRIGGER distribute_gig_tables ON ddl_command_end
	WHEN TAG IN ('CREATE EXTENSION')
	EXECUTE FUNCTION distribute.distribute_gig_tables();
