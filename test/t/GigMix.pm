# A mix of webhooks with all outcomes, ingested by all functions, whose results do
# not depend on ids and times: for tests that compare them under other settings or
# with other tables.

package GigMix;

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT = qw(create_mix $mix);

# Creates mix(), which makes the webhooks, and digest(), which digests the tables.
# GigTest's create_gigs() comes first.
sub create_mix
{
	my ($node, $dbname) = @_;

	$node->safe_psql(
		$dbname, q{
		-- different accounts for each n
		CREATE FUNCTION mix(n int, OUT bodies bytea[], OUT sigs text[]) LANGUAGE sql AS $$
			SELECT array_agg(h.body ORDER BY h.ord), array_agg(h.sig ORDER BY h.ord)
			FROM (
				SELECT i AS ord, b AS body, sig(b) AS sig FROM generate_series(1, 12) AS i, hook(n, i) AS b
				UNION ALL
				SELECT 20 + i, b, sig(b) FROM generate_series(1, 3) AS i, hook(n, 1) AS b
				UNION ALL
				SELECT 30 + o, b, CASE WHEN o % 7 = 3 THEN NULL ELSE sig(b) END
				FROM unnest(ARRAY['2023-01-02T03:04:05Z', '2023-01-02T03:04:05', '2023-01-02T0:000:00', '2023-01-02 03:04:05.5+05:30',
					'0099-01-01T00:00:00Z', '2023-02-30T00:00:00Z', 'now', '01/02/2023 00:00:00', 'infinity',
					'2023-07-01T12:00:00 EST', '10:00:00']) WITH ORDINALITY AS t (t, o),
					convert_to(format('{"event":"gigs.added","name":"payroll","data":{"account":"%s","user":"%s",'
						'"available_count":1,"added_count":%s,"added_from":"%s","available_from":"%s"},"x":"%su00e9"}',
						account(n), account(n), o, t, t, chr(92)), 'UTF8') AS b
				UNION ALL
				SELECT 50, hook(n, 99, 30000), NULL
				UNION ALL
				SELECT 51, hook(n, 99, 30000), sig(hook(n, 99, 30000))
				UNION ALL
				SELECT 52, decode('7b00', 'hex'), NULL UNION ALL SELECT 53, NULL, NULL
				UNION ALL
				SELECT 60 + o, b, sig(b)
				FROM unnest(ARRAY['{"event":"gigs.paused","name":"payroll"}', '{"event":"users.updated","name":"payroll"}']) WITH ORDINALITY AS t (t, o),
					convert_to(t, 'UTF8') AS b
			) AS h
		$$;
		CREATE FUNCTION digest() RETURNS text LANGUAGE sql
		SET bytea_output = hex SET datestyle = 'ISO, YMD' SET intervalstyle = postgres SET timezone = UTC SET extra_float_digits = 1 AS $$
			SELECT md5(concat_ws(E'\n',
				(SELECT string_agg(concat_ws(',', user_id, state, days_synced, available_from, available_to, available_count,
					added_total, updated_total, removed_total, events, duplicates, last_event, recent_digests), E'\n' ORDER BY account_id) FROM gigs.gig_account_sync),
				(SELECT string_agg(concat_ws(',', event, outcome, account_id, name, body), E'\n' ORDER BY event_id) FROM gigs.gig_event_log),
				(SELECT string_agg(concat_ws(',', name, sqlstate, message, body), E'\n' ORDER BY quarantine_id) FROM gigs.gig_quarantine),
				(SELECT string_agg(concat_ws(',', name, part, batch IS NULL), E'\n' ORDER BY name, part) FROM gigs.gig_consumer)))
		$$;
		SELECT gigs.create_gig_consumer('mix');
	});
	return;
}

# To be run in a transaction that is READ COMMITTED.
our $mix = q{
	SELECT string_agg(concat_ws(' ', ord, outcome, event, account_id, sqlstate, message), ';' ORDER BY ord)
	FROM mix(1) AS z, gigs.ingest_gig_events(z.bodies, z.sigs);
	SELECT string_agg(concat_ws(' ', o, r.outcome, r.event, r.account_id, r.sqlstate, r.message), ';' ORDER BY o)
	FROM mix(2) AS z, unnest(z.bodies, z.sigs) WITH ORDINALITY AS u (b, s, o), gigs.try_ingest_gig_event(b, s) AS r;
	SELECT string_agg((gigs.try_ingest_gig_event(convert_from(b, 'UTF8'), s)).outcome::text, ' ' ORDER BY o)
	FROM mix(3) AS z, unnest(z.bodies[1:15], z.sigs[1:15]) WITH ORDINALITY AS u (b, s, o);
	SELECT gigs.rebuild_gig_sync();
	SELECT string_agg(concat_ws(',', EXTRACT(epoch FROM available_from)::numeric(20, 6), EXTRACT(epoch FROM changed_from)::numeric(20, 6)), ' ' ORDER BY event_id) FROM gigs.gig_event_history;
	SELECT digest();
};

1;
