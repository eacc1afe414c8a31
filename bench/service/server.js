// A receiver of webhooks: POST /webhook with a raw body and the header
// X-Argyle-Signature.  It verifies, parses and writes them itself (receiver.js).
//
// The database is what the usual PG* variables name.  Listens on PORT.

'use strict';

const fastify = require('fastify');

const makeReceiver = require('./receiver');

const noBody = Buffer.alloc(0);

function makeApp(receiver) {
  const app = fastify({ logger: false });

  // The signature is of the body's bytes, so nothing may parse them before.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => {
    done(null, body);
  });

  app.post('/webhook', async (request, reply) => {
    const signature = request.headers['x-argyle-signature'] ?? null;
    const { status, outcome } = await receiver.ingest(request.body ?? noBody, signature);

    reply.code(status);
    return outcome;
  });

  // What is nobody's fault but ours is 503: then the sender tries again.
  app.setErrorHandler((error, request, reply) => {
    if (error.statusCode === undefined) {
      console.error(error);
    }
    reply.code(error.statusCode ?? 503).send(error.statusCode ? error.message : 'try again');
  });
  return app;
}

async function main() {
  const receiver = await makeReceiver();
  const app = makeApp(receiver);

  // Requests under way are answered first, and they need the database.
  process.once('SIGTERM', async () => {
    await app.close();
    await receiver.close();
  });
  await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT) });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
