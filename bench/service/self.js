'use strict';

// Does itself what the extension does: verifies, parses, and writes in a
// transaction.  The tables are those of ../peers/tables.sql, the rules those of
// ../peers/plpgsql.sql.

const { createHash, createHmac, timingSafeEqual } = require('node:crypto');
const { Pool } = require('pg');

const CONNECTIONS = 10;

const states = {
  'gigs.added': 'unknown',
  'gigs.updated': 'unknown',
  'gigs.removed': 'unknown',
  'gigs.partially_synced': 'partially_synced',
  'gigs.fully_synced': 'fully_synced',
};

// A statement whose parameters are members of the object it is run for.
function statement(name, text) {
  const members = [];
  const numbered = text.replace(/(?<!:):([a-z_]+)/g, (match, member) => {
    if (!members.includes(member)) members.push(member);
    return `$${members.indexOf(member) + 1}`;
  });

  return (object) => ({ name, text: numbered, values: members.map((member) => object[member]) });
}

const insertEvent = statement(
  'insert_event',
  `INSERT INTO event_log (received_at, event, account_id, name, body, digest)
   VALUES (:now, :event, :account, :name, :body, :digest)
   ON CONFLICT (digest) DO NOTHING
   RETURNING event_id`,
);

const isStale = `:event::text = 'gigs.partially_synced'
  AND (a.state = 'fully_synced' OR :days_synced::integer < a.days_synced)`;

const upsertAccount = statement(
  'upsert_account',
  `INSERT INTO account_sync AS a (account_id, user_id, state, days_synced,
     available_from, available_to, available_count, added_total,
     updated_total, removed_total, events, first_event_at,
     partially_synced_at, fully_synced_at, refreshed_at, last_event,
     last_event_at)
   VALUES (:account, :user, :state::text::sync_state, :days_synced::integer,
     :available_from, :available_to, :available_count, :added, :updated,
     :removed, 1, :now::timestamptz,
     CASE WHEN :state::text = 'partially_synced' THEN :now::timestamptz END,
     CASE WHEN :state::text = 'fully_synced' THEN :now::timestamptz END,
     CASE WHEN :state::text = 'unknown' THEN :now::timestamptz END,
     :event::text, :now::timestamptz)
   ON CONFLICT (account_id) DO UPDATE SET
     user_id = CASE WHEN ${isStale} THEN a.user_id ELSE excluded.user_id END,
     available_from = CASE WHEN ${isStale} THEN a.available_from ELSE excluded.available_from END,
     available_to = CASE WHEN ${isStale} THEN a.available_to ELSE excluded.available_to END,
     available_count = CASE WHEN ${isStale} THEN a.available_count ELSE excluded.available_count END,
     state = greatest(a.state, excluded.state),
     days_synced = greatest(a.days_synced, excluded.days_synced),
     added_total = a.added_total + excluded.added_total,
     updated_total = a.updated_total + excluded.updated_total,
     removed_total = a.removed_total + excluded.removed_total,
     events = a.events + 1,
     partially_synced_at = CASE
       WHEN a.state = 'unknown' THEN coalesce(a.partially_synced_at, excluded.partially_synced_at)
       ELSE a.partially_synced_at
     END,
     fully_synced_at = coalesce(a.fully_synced_at, excluded.fully_synced_at),
     refreshed_at = coalesce(excluded.refreshed_at, a.refreshed_at),
     last_event = excluded.last_event,
     last_event_at = excluded.last_event_at`,
);

const upsertGigs = statement(
  'upsert_gigs',
  `INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
   SELECT :account::uuid, g, :event, :now, :event_id
   FROM unnest(:gigs::uuid[]) AS g
   ON CONFLICT (account_id, gig_id) DO UPDATE SET
     change = excluded.change,
     changed_at = excluded.changed_at,
     event_id = excluded.event_id`,
);

const countDuplicate = statement(
  'count_duplicate',
  'UPDATE account_sync SET duplicates = duplicates + 1 WHERE account_id = :account',
);

// The first event may have been fetched already: this may be a second one.
const restoreGigs = statement(
  'restore_gigs',
  `INSERT INTO gig_change (account_id, gig_id, change, changed_at, event_id)
   SELECT :account::uuid, g, :event, :now, l.event_id
   FROM event_log AS l, unnest(:gigs::uuid[]) AS g
   WHERE l.digest = :digest
   ON CONFLICT (account_id, gig_id) DO NOTHING`,
);

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

const isUuid = (value) => typeof value === 'string' && uuid.test(value);
const isCount = (value) => Number.isInteger(value) && value >= 0;
const isTime = (value) => value == null || !Number.isNaN(Date.parse(value));

// What is to be written of a webhook, or undefined if it makes no sense.
function read({ event, name, data }, body) {
  if (!(event in states) || typeof data !== 'object' || data === null) return undefined;
  const verb = event.slice('gigs.'.length);
  const changed = data[`${verb}_count`];
  const gigs = data[`${verb}_gigs`];
  const hasGigs = verb === 'updated' || verb === 'removed';

  if (!isUuid(data.account) || !isUuid(data.user) || !isCount(data.available_count)) return undefined;
  if (!isTime(data.available_from) || !isTime(data.available_to)) return undefined;
  if (states[event] === 'unknown' && !isCount(changed)) return undefined;
  if (hasGigs && !(Array.isArray(gigs) && gigs.every(isUuid))) return undefined;
  if (verb === 'partially_synced' && !isCount(data.days_synced)) return undefined;
  return {
    ...data,
    event,
    name,
    body,
    digest: createHash('sha256').update(body).digest(),
    now: new Date(),
    state: states[event],
    added: verb === 'added' ? changed : 0,
    updated: verb === 'updated' ? changed : 0,
    removed: verb === 'removed' ? changed : 0,
    gigs: hasGigs ? gigs : undefined,
  };
}

async function write(client, webhook) {
  const { rows } = await client.query(insertEvent(webhook));

  if (rows.length === 0) {
    await client.query(countDuplicate(webhook));
    if (webhook.gigs) await client.query(restoreGigs(webhook));
    return;
  }
  await client.query(upsertAccount(webhook));
  if (webhook.gigs) await client.query(upsertGigs({ ...webhook, event_id: rows[0].event_id }));
}

exports.open = async () => {
  const pool = new Pool({ max: CONNECTIONS });
  const { rows } = await pool.query('SELECT name, secret FROM subscription_secret');

  function isAuthentic(name, body, signature) {
    const given = Buffer.from(signature, 'hex');

    return rows.some((row) => {
      if (row.name !== name) return false;
      const expected = createHmac('sha512', row.secret).update(body).digest();

      return given.length === expected.length && timingSafeEqual(given, expected);
    });
  }

  return {
    async receive(body, signature) {
      let document;

      try {
        document = JSON.parse(body);
      } catch {
        return 400;
      }
      if (!isAuthentic(document?.name, body, signature)) return 401;
      const webhook = read(document, body);

      if (webhook === undefined) return 400;
      const client = await pool.connect();

      try {
        await client.query('BEGIN');
        await write(client, webhook);
        await client.query('COMMIT');
        client.release();
      } catch (error) {
        client.release(error);
        throw error;
      }
      return 200;
    },
    close: () => pool.end(),
  };
};
