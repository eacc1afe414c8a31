// Receives Argyle's webhooks with Fastify and node-postgres.
//
//   npm ci && PGDATABASE=gigs PGUSER=receiver PORT=8080 node receiver.js

'use strict';

const fastify = require('fastify');
const { DatabaseError, Pool } = require('pg');

const PATH = '/webhooks/argyle';
const INGEST = `SELECT outcome, event_id, sqlstate, message
  FROM try_ingest_gig_event($1::bytea, $2::text)`;
const STATUS = { 28000: 401, 54000: 413 };
// Serialization failure, deadlock, lost connection, shutdown.
const REPEAT = /^(40001|40P01|08|57P)/;

const pool = new Pool({ max: 10, connectionTimeoutMillis: 5000 });
pool.on('error', () => {}); // else an idle connection that breaks ends the process

// query() resolves after the commit.  To repeat it is safe: what was committed is a
// duplicate then.
async function ingest(body, signature) {
  for (let attempt = 1; ; attempt++) {
    try {
      return (await pool.query(INGEST, [body, signature])).rows[0];
    } catch (error) {
      const repeat = !(error instanceof DatabaseError) || REPEAT.test(error.code);
      if (attempt === 4 || !repeat) throw error;
    }
  }
}

const app = fastify({ bodyLimit: 8 * 1024 * 1024 });

// The signature covers the bytes of the body, so nothing may parse them.
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));

app.post(PATH, async (request, reply) => {
  const signature = request.headers['x-argyle-signature'] ?? null;
  const { outcome, event_id, sqlstate, message } = await ingest(request.body ?? '', signature);
  // A bigint arrives as a string.
  if (outcome !== 'rejected') return { outcome, event_id: event_id && Number(event_id) };
  return reply.code(STATUS[sqlstate] ?? 400).send({ outcome, message });
});

app.setNotFoundHandler((request, reply) => {
  if (request.url.split('?')[0] !== PATH) return reply.code(404).send({ message: 'not found' });
  return reply.code(405).header('Allow', 'POST').send({ message: 'method not allowed' });
});

app.setErrorHandler((error, request, reply) => {
  if (error.statusCode) return reply.code(error.statusCode).send({ message: error.message });
  console.error(`cannot ingest webhook: ${error.code ?? error.message}`);
  return reply.code(503).header('Retry-After', '5').send({ message: 'try again later' });
});

app.listen({ host: process.env.HOST ?? '127.0.0.1', port: Number(process.env.PORT ?? 8080) });
