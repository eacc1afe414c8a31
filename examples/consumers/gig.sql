-- The gigs that the consumers store.  To let a role run them:
--
--   SELECT grant_gig_consumer('worker');
--   GRANT SELECT, INSERT, UPDATE, DELETE ON gig TO worker;

CREATE TABLE gig (
	gig_id uuid PRIMARY KEY,
	account_id uuid NOT NULL,
	start_datetime timestamptz,
	gig jsonb NOT NULL
);
CREATE INDEX gig_account_id_start_datetime_idx ON gig (account_id, start_datetime);
COMMENT ON TABLE gig IS 'gigs as fetched from Argyle''s API';
