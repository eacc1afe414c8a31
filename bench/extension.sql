-- The extension, and its end state in the form that is compared.

CREATE EXTENSION gigs_webhooks;

SELECT create_gig_subscription('bench-' || i, 'https://example.com', 'the secret of bench-' || i)
FROM generate_series(1, 4) AS i;

CREATE VIEW bench_account AS
SELECT account_id, user_id, state::text, days_synced, available_from,
	available_to, available_count, added_total, updated_total, removed_total,
	events, duplicates, last_event::text
FROM gig_account_sync;

CREATE VIEW bench_log AS
SELECT account_id, event::text, body FROM gig_event_log
WHERE outcome <> 'duplicate';
