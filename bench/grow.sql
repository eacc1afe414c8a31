-- Accounts that were synced long ago, as many as :rows and with the ids that the
-- stream gives them, and as many logged events, in place of what is there.  Each
-- account remembers :remembered deliveries, spread over the three days that end
-- with 2023.

TRUNCATE gig_account_sync, gig_event_log;

INSERT INTO gig_account_sync (account_id, user_id, state, available_from,
	available_to, available_count, added_total, events, first_event_at,
	partially_synced_at, fully_synced_at, refreshed_at, last_event, last_event_at,
	last_event_id, recent_digests, recent_event_ids, recent_received_at)
SELECT md5('account ' || n)::uuid, md5('user ' || n)::uuid, 'fully_synced', '2016-04-16',
	'2023-03-03', 500, 400, 20, '2023-01-01',
	'2023-01-01', '2023-01-01', '2023-03-03', 'gigs.added', '2023-03-03',
	n, r.digests, r.event_ids, r.received_at
FROM generate_series(0, :rows - 1) AS n
CROSS JOIN LATERAL (
	SELECT coalesce(array_agg(hashtextextended(n || ' ' || d, 0) ORDER BY d), '{}') AS digests,
		coalesce(array_agg(n ORDER BY d), '{}') AS event_ids,
		coalesce(array_agg(timestamptz '2024-01-01'
			- interval '3 days' * (:remembered - d + (hashtext(n::text) & 1023) / 1024.0) / :remembered
			ORDER BY d), '{}') AS received_at
	FROM generate_series(1, :remembered) AS d
) AS r
ORDER BY 1;

INSERT INTO gig_event_log (received_at, outcome, event, account_id, name, body)
SELECT timestamptz '2023-01-01' + n * interval '1 second', 'applied', 'gigs.added',
	md5('account ' || n)::uuid, 'bench-' || n % 4 + 1,
	convert_to(format('{"event":"gigs.added","name":"bench-%s","data":{"account":"%s","user":"%s",'
		|| '"available_from":"2016-04-16T05:32:41Z","available_to":"2023-03-03T00:00:00Z","available_count":%s,'
		|| '"added_count":1,"added_from":"2023-03-02T00:00:00Z","added_to":"2023-03-03T00:00:00Z"}}',
		n % 4 + 1, md5('account ' || n)::uuid, md5('user ' || n)::uuid, n), 'UTF8')
FROM generate_series(0, :rows - 1) AS n;
