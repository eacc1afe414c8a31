// Hands what comes in to the extension, many webhooks a call: those that arrive
// while calls are under way form the next one.  A batch commits as a whole, and
// only then are its webhooks answered.

'use strict';

const { Pool } = require('pg');

const { byteaArray, textArray } = require('./binary_array');

const CALLS_AT_ONCE = 2;
const MAX_BATCH = 1000;
const NOT_AUTHENTIC = '28000';

const ingestBatch = {
  name: 'ingest',
  text: 'SELECT ord, outcome, sqlstate FROM ingest_gig_events($1::bytea[], $2::text[])',
  rowMode: 'array',
};

function answer(outcome, sqlstate) {
  if (outcome !== 'rejected') {
    return { status: 200, outcome };
  }
  return { status: sqlstate === NOT_AUTHENTIC ? 401 : 400, outcome };
}

async function makeReceiver() {
  const pool = new Pool({ max: CALLS_AT_ONCE });
  const waiting = [];
  let calls = 0;
  let scheduled = false;

  // An idle connection that breaks is replaced; without this it would end us.
  pool.on('error', (error) => console.error(error));

  async function call(batch) {
    try {
      const { rows } = await pool.query({
        ...ingestBatch,
        values: [
          byteaArray(batch.map((item) => item.body)),
          textArray(batch.map((item) => item.signature)),
        ],
      });

      for (const [ord, outcome, sqlstate] of rows) {
        batch[ord - 1].resolve(answer(outcome, sqlstate));
      }
    } catch (error) {
      for (const { reject } of batch) {
        reject(error);
      }
    }
    calls--;
    schedule();
  }

  function callWithWaiting() {
    scheduled = false;
    while (waiting.length > 0 && calls < CALLS_AT_ONCE) {
      const batch = waiting.splice(0, MAX_BATCH);

      calls++;
      call(batch);
    }
  }

  // Not at once: what else has been received in this turn of the event loop is
  // to come along.
  function schedule() {
    if (!scheduled && waiting.length > 0 && calls < CALLS_AT_ONCE) {
      scheduled = true;
      setImmediate(callWithWaiting);
    }
  }

  function ingest(body, signature) {
    return new Promise((resolve, reject) => {
      waiting.push({ body, signature, resolve, reject });
      schedule();
    });
  }

  return { ingest, close: () => pool.end() };
}

module.exports = makeReceiver;
