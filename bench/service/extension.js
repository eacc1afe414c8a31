'use strict';

// Hands webhooks to ingest_gig_events().  Those that arrive while a call is
// under way make up the next one, so that calls grow with the load.

const { Pool } = require('pg');

const MAX_BATCH = 1000;
const MAX_CALLS = 2;

const call = {
  name: 'ingest',
  text: 'SELECT ord, outcome, sqlstate FROM ingest_gig_events($1::bytea[], $2::text[])',
  rowMode: 'array',
};

function statusOf(outcome, sqlstate) {
  if (outcome !== 'rejected') return 200;
  return sqlstate === '28000' ? 401 : 400;
}

exports.open = async () => {
  const pool = new Pool({ max: MAX_CALLS });
  let waiting = [];
  let calls = 0;
  let scheduled = false;

  async function ingest(batch) {
    calls++;
    try {
      const { rows } = await pool.query({
        ...call,
        values: [batch.map((webhook) => webhook.body), batch.map((webhook) => webhook.signature)],
      });

      for (const [ord, outcome, sqlstate] of rows) batch[ord - 1].resolve(statusOf(outcome, sqlstate));
    } catch (error) {
      for (const webhook of batch) webhook.reject(error);
    }
    calls--;
    schedule();
  }

  function next() {
    scheduled = false;
    if (calls === MAX_CALLS || waiting.length === 0) return;
    const batch = waiting.slice(0, MAX_BATCH);

    waiting = waiting.slice(MAX_BATCH);
    ingest(batch);
    schedule();
  }

  // not before all that has come in by now has been read
  function schedule() {
    if (scheduled) return;
    scheduled = true;
    setImmediate(next);
  }

  return {
    receive(body, signature) {
      return new Promise((resolve, reject) => {
        waiting.push({ body, signature, resolve, reject });
        schedule();
      });
    },
    close: () => pool.end(),
  };
};
