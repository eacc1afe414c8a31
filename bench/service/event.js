// The values of a webhook, checked.

'use strict';

class InvalidEvent extends Error {}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const DATE_TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;
const MAX_INTEGER = 2 ** 31 - 1;

function uuid(value) {
  if (typeof value !== 'string' || !UUID.test(value)) {
    throw new InvalidEvent('expected a UUID');
  }
  return value;
}

function count(value) {
  if (!Number.isInteger(value) || value < 0 || value > MAX_INTEGER) {
    throw new InvalidEvent('expected a count');
  }
  return value;
}

function dateTimeOrNull(value) {
  if (value === null || value === undefined) {
    return null;
  }
  if (typeof value !== 'string' || !DATE_TIME.test(value)) {
    throw new InvalidEvent('expected a date-time');
  }
  return value;
}

// Null if there are none.  An upsert can't take a row twice, so each gig is
// taken once.
function uuidsOrNull(value) {
  if (!Array.isArray(value)) {
    throw new InvalidEvent('expected an array');
  }
  const distinct = new Set(value.map((item) => uuid(item).toLowerCase()));

  return distinct.size > 0 ? [...distinct] : null;
}

// Null if the event is none about gigs.
function readEvent({ event: kind, name, data }) {
  if (typeof kind !== 'string') {
    throw new InvalidEvent('expected the name of an event');
  }
  if (!kind.startsWith('gigs.')) {
    return null;
  }
  if (data === null || typeof data !== 'object') {
    throw new InvalidEvent('expected an object');
  }
  const event = {
    kind,
    name,
    account: uuid(data.account),
    user: uuid(data.user),
    availableFrom: dateTimeOrNull(data.available_from),
    availableTo: dateTimeOrNull(data.available_to),
    availableCount: count(data.available_count),
    addedCount: null,
    updatedCount: null,
    removedCount: null,
    daysSynced: null,
    gigs: null,
  };

  switch (kind) {
    case 'gigs.added':
      event.addedCount = count(data.added_count);
      break;
    case 'gigs.updated':
      event.updatedCount = count(data.updated_count);
      event.gigs = uuidsOrNull(data.updated_gigs);
      break;
    case 'gigs.removed':
      event.removedCount = count(data.removed_count);
      event.gigs = uuidsOrNull(data.removed_gigs);
      break;
    case 'gigs.partially_synced':
      event.daysSynced = count(data.days_synced);
      break;
    case 'gigs.fully_synced':
      break;
    default:
      throw new InvalidEvent('unsupported event');
  }
  return event;
}

module.exports = { InvalidEvent, readEvent };
