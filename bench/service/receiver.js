// What one writes without the extension: verify, parse and check here, then
// write an event in a transaction.

'use strict';

const crypto = require('node:crypto');

const { openConnections } = require('./connections');
const { InvalidEvent, readEvent } = require('./event');
const statements = require('./statements');

// More of them let more commits share a flush, but take turns on the processors.
const CONNECTIONS = 8;
const SIGNATURE_BYTES = 64;
const SECRETS_RELOADED_EVERY = 60_000; // milliseconds

const applied = { status: 200, outcome: 'applied' };
const duplicate = { status: 200, outcome: 'duplicate' };
const ignored = { status: 200, outcome: 'ignored' };
const notAuthentic = { status: 401, outcome: 'rejected' };
const notUnderstood = { status: 400, outcome: 'rejected' };

function parse(body) {
  try {
    return JSON.parse(body.toString());
  } catch {
    return undefined;
  }
}

// Keys by the name of their subscription, which may have several.
async function loadKeys(connections) {
  const { rows } = await connections.query('SELECT name, secret FROM subscription_secret');
  const keys = new Map();

  for (const { name, secret } of rows) {
    const key = crypto.createSecretKey(secret, 'utf8');

    keys.set(name, [...(keys.get(name) ?? []), key]);
  }
  return keys;
}

function isAuthentic(body, signature, keys) {
  // Buffer.from() stops at what is no hex, and makes too short a buffer of it.
  const claimed = Buffer.from(signature ?? '', 'hex');

  if (claimed.length !== SIGNATURE_BYTES || signature.length !== 2 * SIGNATURE_BYTES) {
    return false;
  }
  return keys.some((key) =>
    crypto.timingSafeEqual(claimed, crypto.createHmac('sha512', key).update(body).digest())
  );
}

// Values that PostgreSQL can't read, a 30th of February say, are the sender's.
function isDataException(error) {
  return error.code !== undefined && error.code.startsWith('22');
}

// One statement is one transaction and one round trip.  A redelivery takes a
// second one: the first has written nothing then, and what it had to wait for
// is seen only by a later one.
async function write(connections, event, body) {
  const withGigs = event.gigs !== null;
  const values = [
    event.kind,
    event.account,
    event.name,
    body,
    event.user,
    event.availableFrom,
    event.availableTo,
    event.availableCount,
    event.addedCount,
    event.updatedCount,
    event.removedCount,
    event.daysSynced,
  ];

  if (withGigs) {
    values.push(event.gigs);
  }
  const { rowCount } = await connections.query({
    ...(withGigs ? statements.applyWithGigs : statements.apply),
    values,
  });
  if (rowCount > 0) {
    return applied;
  }
  await connections.query({
    ...statements.repeat,
    values: [event.kind, event.account, body, event.gigs],
  });
  return duplicate;
}

async function makeReceiver() {
  const connections = await openConnections(CONNECTIONS);
  let keys = await loadKeys(connections);

  const reloading = setInterval(() => {
    loadKeys(connections).then(
      (loaded) => {
        keys = loaded;
      },
      (error) => console.error(error)
    );
  }, SECRETS_RELOADED_EVERY);

  async function ingest(body, signature) {
    const document = parse(body);

    if (document === null || typeof document !== 'object') {
      return notUnderstood;
    }
    if (!isAuthentic(body, signature, keys.get(document.name) ?? [])) {
      return notAuthentic;
    }
    try {
      const event = readEvent(document);

      return event === null ? ignored : await write(connections, event, body);
    } catch (error) {
      if (error instanceof InvalidEvent || isDataException(error)) {
        return notUnderstood;
      }
      throw error;
    }
  }

  async function close() {
    clearInterval(reloading);
    await connections.close();
  }

  return { ingest, close };
}

module.exports = makeReceiver;
