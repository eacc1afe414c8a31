'use strict';

// A webhook receiver over HTTP.  MODE says who does the work:
//
//   self         this process verifies and parses, and writes in a transaction
//   extension    ingest_gig_events() does all of it
//
// The database is what PGHOST, PGDATABASE and so on name.  Prints "ready PORT
// PID" once it listens; SIGTERM ends it.

const makeFastify = require('fastify');

const modes = { self: './self.js', extension: './extension.js' };

async function main() {
  const receiver = await require(modes[process.env.MODE]).open();
  const fastify = makeFastify({ logger: false });

  // the signature is of the bytes, so they are kept as they came
  fastify.removeAllContentTypeParsers();
  fastify.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));
  fastify.post('/webhook', async (request, reply) => {
    const signature = request.headers['x-argyle-signature'] ?? '';

    reply.code(await receiver.receive(request.body, signature));
    return '';
  });

  await fastify.listen({ host: '127.0.0.1', port: 0 });
  console.log(`ready ${fastify.server.address().port} ${process.pid}`);
  process.once('SIGTERM', async () => {
    await fastify.close();
    await receiver.close();
  });
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
