// The statements of the receiver that does without the extension.  They are
// prepared once a connection, by their names.

'use strict';

// The unique digest tells redeliveries: what else is written hangs on the new
// row of the log.  None of these returns rows: how many the outermost INSERT has
// written tells whether the event was new, and costs less.
//
// $1 event, $2 account, $3 name, $4 body, $5 user, $6 and $7 available from and
// to, $8 available count, $9 to $11 counts of added, updated and removed gigs,
// $12 days synced, $13 gigs
const LOGGED = `logged AS (
  INSERT INTO event_log (received_at, event, account_id, name, body, digest)
  VALUES (now(), $1::text, $2::uuid, $3::text, $4::bytea, sha256($4::bytea))
  ON CONFLICT (digest) DO NOTHING
  RETURNING event_id
)`;

const LATE = `$1 = 'gigs.partially_synced'
      AND (a.state = 'fully_synced' OR $12 < a.days_synced)`;

const ACCOUNT = `
  INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
    available_from, available_to, available_count, added_total, updated_total,
    removed_total, events, first_event_at, partially_synced_at,
    fully_synced_at, refreshed_at, last_event, last_event_at)
  SELECT $2::uuid, $5::uuid,
    CASE $1::text
      WHEN 'gigs.fully_synced' THEN 'fully_synced'
      WHEN 'gigs.partially_synced' THEN 'partially_synced'
      ELSE 'unknown'
    END::sync_state,
    $12::integer, $6::timestamptz, $7::timestamptz, $8::integer,
    coalesce($9::integer, 0), coalesce($10::integer, 0),
    coalesce($11::integer, 0), 1, now(),
    CASE WHEN $1 = 'gigs.partially_synced' THEN now() END,
    CASE WHEN $1 = 'gigs.fully_synced' THEN now() END,
    CASE WHEN coalesce($9, $10, $11) IS NOT NULL THEN now() END,
    $1, now()
  FROM logged
  ON CONFLICT (account_id) DO UPDATE SET
    user_id = CASE WHEN ${LATE} THEN a.user_id ELSE excluded.user_id END,
    available_from = CASE WHEN ${LATE}
      THEN a.available_from ELSE excluded.available_from END,
    available_to = CASE WHEN ${LATE}
      THEN a.available_to ELSE excluded.available_to END,
    available_count = CASE WHEN ${LATE}
      THEN a.available_count ELSE excluded.available_count END,
    state = greatest(a.state, excluded.state),
    days_synced = greatest(a.days_synced, excluded.days_synced),
    added_total = a.added_total + excluded.added_total,
    updated_total = a.updated_total + excluded.updated_total,
    removed_total = a.removed_total + excluded.removed_total,
    events = a.events + 1,
    partially_synced_at = CASE WHEN a.state = 'unknown'
      THEN coalesce(a.partially_synced_at, excluded.partially_synced_at)
      ELSE a.partially_synced_at END,
    fully_synced_at = coalesce(a.fully_synced_at, excluded.fully_synced_at),
    refreshed_at = coalesce(excluded.refreshed_at, a.refreshed_at),
    last_event = excluded.last_event,
    last_event_at = excluded.last_event_at`;

const APPLY = `WITH ${LOGGED}${ACCOUNT}`;

// The upsert of the account locks it, and so serialises its events; gigs come
// after it because they are joined to the row that it returns.
const APPLY_WITH_GIGS = `
WITH ${LOGGED}, account AS (${ACCOUNT}
  RETURNING account_id
)
INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
SELECT account.account_id, gig, $1, now(), logged.event_id
FROM logged, account, unnest($13::uuid[]) AS gig
ON CONFLICT (account_id, gig_id) DO UPDATE SET
  change = excluded.change,
  changed_at = excluded.changed_at,
  event_id = excluded.event_id`;

// A redelivery is counted, and puts gigs back that have been taken out.
//
// $1 event, $2 account, $3 body, $4 gigs
const REPEAT = `
WITH account AS (
  UPDATE account_sync SET duplicates = duplicates + 1
  WHERE account_id = $2::uuid
  RETURNING account_id
)
INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
SELECT account.account_id, gig, replace($1::text, 'removed', 'updated'), now(), l.event_id
FROM account, event_log AS l, unnest($4::uuid[]) AS gig
WHERE l.digest = sha256($3::bytea)
ON CONFLICT (account_id, gig_id) DO NOTHING`;

module.exports = {
  apply: { name: 'apply', text: APPLY },
  applyWithGigs: { name: 'apply_with_gigs', text: APPLY_WITH_GIGS },
  repeat: { name: 'repeat', text: REPEAT },
};
