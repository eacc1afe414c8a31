// Connections that are shared by all requests, in turn.  They are pipelined: a
// statement is sent while others of the same connection are under way, each of
// them a transaction of its own.  That is faster than to wait for a connection
// of a pool to be free.

'use strict';

const { Client } = require('pg');

const RECONNECT_AFTER = 1000; // milliseconds

async function openConnections(size) {
  const clients = new Array(size);
  let next = 0;
  let closing = false;

  async function open(place) {
    const client = new Client({ pipeline: true });

    client.on('error', (error) => console.error(error));
    await client.connect();
    clients[place] = client;
    client.on('end', () => reopen(place));
  }

  // Until it succeeds, statements fail, and their requests with them.
  function reopen(place) {
    if (!closing) {
      setTimeout(() => open(place).catch(() => reopen(place)), RECONNECT_AFTER).unref();
    }
  }

  function query(config) {
    next = (next + 1) % size;
    return clients[next].query(config);
  }

  function close() {
    closing = true;
    return Promise.all(clients.map((client) => client.end()));
  }

  await Promise.all(Array.from(clients, (_, place) => open(place)));
  return { query, close };
}

module.exports = { openConnections };
