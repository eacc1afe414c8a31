// Fetches from Argyle's API the gigs that webhooks announce, and stores them in
// the table of gig.sql.  SIGTERM ends it after the batches at hand.
//
//   PG*              the database; PGOPTIONS may set search_path
//   ARGYLE_ID, ARGYLE_SECRET, ARGYLE_URL (https://api.argyle.com)
//   GIG_CONSUMER     the consumer, which must exist (fetcher)
//   GIG_WORKERS      workers; more than the consumer has parts are idle (4)
//   GIG_EVENTS, GIG_LEASE    of a batch: events at most, and how long it may take (100, 5 minutes)
//   GIG_CHANNEL      the channel of NOTIFY that tells of new events, if any
//   GIG_POLL         seconds after which to look for work without that (2)

'use strict';

const { setTimeout: sleep } = require('node:timers/promises');
const pg = require('pg');

const env = { ARGYLE_URL: 'https://api.argyle.com', GIG_CONSUMER: 'fetcher', GIG_WORKERS: 4,
  GIG_EVENTS: 100, GIG_LEASE: '5 minutes', GIG_POLL: 2, ...process.env };
if (!env.ARGYLE_ID || !env.ARGYLE_SECRET) throw new Error('ARGYLE_ID and ARGYLE_SECRET must be set');
// At most 20 requests are sent at a time, by all workers together.
const http = require(env.ARGYLE_URL.startsWith('https:') ? 'node:https' : 'node:http');
const agent = new http.Agent({ keepAlive: true, maxSockets: 20 });
const authorization = 'Basic ' + Buffer.from(`${env.ARGYLE_ID}:${env.ARGYLE_SECRET}`).toString('base64');

// Fetched gigs are kept in temporary tables until all of a batch is there, so that
// neither memory nor a long transaction is needed.
const prepareSession = `
  SET TimeZone = 'UTC';
  CREATE TEMP TABLE work (account_id uuid PRIMARY KEY, windows tstzmultirange, removed_gigs uuid[]);
  CREATE TEMP TABLE fetched (gig_id uuid PRIMARY KEY, account_id uuid, start_datetime timestamptz, gig jsonb)`;
const readWork = `
  WITH read AS MATERIALIZED (SELECT * FROM read_gig_work($1, $2, $3)),
    kept AS (INSERT INTO work SELECT account_id, windows, removed_gigs FROM read)
  SELECT batch, account_id,
    (SELECT json_agg(json_build_array(lower(w), upper(w))) FROM unnest(windows) AS w) AS windows
  FROM read`;
// A gig whose start changes meanwhile can be on two pages: the later one counts.  An
// answer without results is an error, so that it does not look like no gigs.
const keepPage = `
  WITH page AS MATERIALIZED (SELECT $2::jsonb AS page), kept AS (
    INSERT INTO fetched
    SELECT (g->>'id')::uuid, $1, (g->>'start_datetime')::timestamptz, g
    FROM page, jsonb_path_query(page, 'strict $.results[*]') AS g
    ON CONFLICT (gig_id) DO UPDATE SET start_datetime = excluded.start_datetime, gig = excluded.gig
  )
  SELECT page->>'next' AS next FROM page`;
// Without ANALYZE, all gigs would be read.  The window '{(,)}' has gigs without a start, too.
const finishWork = (batch) => `
  BEGIN;
  ANALYZE work;
  DELETE FROM gig USING work
  WHERE gig.account_id = work.account_id
    AND (work.windows @> gig.start_datetime OR work.windows = '{(,)}' OR gig.gig_id = ANY (work.removed_gigs))
    AND NOT EXISTS (SELECT FROM fetched WHERE fetched.gig_id = gig.gig_id);
  INSERT INTO gig (gig_id, account_id, start_datetime, gig)
  SELECT gig_id, account_id, start_datetime, gig FROM fetched
  ON CONFLICT (gig_id) DO UPDATE SET start_datetime = excluded.start_datetime, gig = excluded.gig
  WHERE gig.gig <> excluded.gig;
  SELECT finish_gig_work(${batch});
  TRUNCATE work, fetched;
  COMMIT`;

let stopping = false;
let alarm = new AbortController();

// Waits until there may be work, or the program is to end.
const wait = (seconds) => sleep(stopping ? 0 : seconds * 1000, null, { signal: alarm.signal }).catch(() => {});
const wake = () => { alarm.abort(); alarm = new AbortController(); };

// Returns a function that runs queries one after the other.
function serialize(db, last = Promise.resolve()) {
  return (...query) => (last = last.catch(() => {}).then(() => db.query(...query)));
}

// Returns the body of an answer.  The API may have closed a connection that was kept alive.
function get(url) {
  return new Promise((resolve, reject) => {
    const request = http.get(url, { agent, headers: { authorization }, timeout: 30_000 }, (response) => {
      const { statusCode: status, statusMessage, headers } = response;
      let text = '';
      response.setEncoding('utf8').on('error', reject).on('data', (chunk) => { text += chunk; }).on('end', () => {
        if (status === 200) resolve(text);
        else reject(Object.assign(new Error(`${status} ${statusMessage}`), { status, after: headers['retry-after'] }));
      });
    });
    request.on('timeout', () => request.destroy(new Error('no answer within 30 seconds')));
    request.on('error', (error) => (
      request.reusedSocket && error.code === 'ECONNRESET' ? resolve(get(url)) : reject(error)));
  });
}

// Fetches the windows of an account.  If that fails, the account comes again
// later: after the seconds that a 429 answer names, or after a growing pause.
async function fetchAccount(query, { batch, account_id: account, windows }) {
  try {
    for (const [from, to] of windows) {
      const first = new URL(`/v2/gigs?account=${account}&limit=200`, env.ARGYLE_URL);
      if (from !== null) first.searchParams.set('from_start_datetime', from);
      if (to !== null) first.searchParams.set('to_start_datetime', to);
      for (let url = first; url !== null;) {
        const page = await get(url);
        const { rows: [{ next }] } = await query({ name: 'keepPage', text: keepPage, values: [account, page] });
        url = next && new URL(next, first);
        if (url && url.origin !== first.origin) throw new Error(`refusing to follow ${next}`);
      }
    }
  } catch (error) {
    if (error.status === 404) {
      // The account is gone, and so are all of its gigs.
      await query('DELETE FROM fetched WHERE account_id = $1', [account]);
      await query("UPDATE work SET windows = '{(,)}' WHERE account_id = $1", [account]);
    } else {
      const after = /^\d+$/.test(error.after) ? error.after : null;
      await query('SELECT retry_gig_work($1, $2, $3, make_interval(secs => $4))',
        [batch, account, String(error), after]);
      await query('DELETE FROM work WHERE account_id = $1', [account]);
    }
  }
}

// Works until SIGTERM.  Whatever the database refuses, such as to finish a batch that
// another worker has by now (40001), is rolled back with the session.
async function work() {
  for (let pause = 0.1; !stopping; pause = Math.min(pause * 2, 30)) {
    const db = new pg.Client({ keepAlive: true, connectionTimeoutMillis: 10_000 });
    const query = serialize(db.on('notification', wake).on('error', () => {}));
    try {
      await db.connect();
      await query(prepareSession);
      if (env.GIG_CHANNEL) await query(`LISTEN ${db.escapeIdentifier(env.GIG_CHANNEL)}`);
      // A wrong ARGYLE_URL must not look like accounts that are gone.
      await get(new URL('/v2/accounts?limit=1', env.ARGYLE_URL));
      while (!stopping) {
        const { rows } = await query(readWork, [env.GIG_CONSUMER, env.GIG_EVENTS, env.GIG_LEASE]);
        await Promise.all(rows.map((row) => fetchAccount(query, row)));
        if (rows.length === 0) { await wait(env.GIG_POLL); continue; }
        await query(finishWork(rows[0].batch));
        pause = 0.1;
      }
    } catch (error) {
      console.error(`consumer: ${error}`);
      await wait(pause);
    }
    await db.end().catch(() => {});
  }
}

process.on('SIGTERM', () => { stopping = true; wake(); });
for (let n = 0; n < env.GIG_WORKERS; n++) work();
