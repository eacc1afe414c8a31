// One-dimensional arrays as PostgreSQL's binary format has them, which pg uses
// for what is a Buffer.  It would make text of an array otherwise, two
// characters for each byte of a bytea.

'use strict';

const BYTEA_OID = 17;
const TEXT_OID = 25;
const HEADER_SIZE = 20;
const LENGTH_SIZE = 4;
const NULL_LENGTH = -1;

function writeHeader(array, elementOid, elements, hasNulls) {
  array.writeInt32BE(1, 0); // dimensions
  array.writeInt32BE(hasNulls ? 1 : 0, 4);
  array.writeInt32BE(elementOid, 8);
  array.writeInt32BE(elements.length, 12);
  array.writeInt32BE(1, 16); // lower bound
}

// The elements are Buffers or null.
function binaryArray(elementOid, elements) {
  const size = elements.reduce(
    (sum, element) => sum + LENGTH_SIZE + (element?.length ?? 0),
    HEADER_SIZE
  );
  const array = Buffer.allocUnsafe(size);
  let at = HEADER_SIZE;

  writeHeader(array, elementOid, elements, elements.includes(null));
  for (const element of elements) {
    at = array.writeInt32BE(element?.length ?? NULL_LENGTH, at);
    at += element?.copy(array, at) ?? 0;
  }
  return array;
}

function byteaArray(buffers) {
  return binaryArray(BYTEA_OID, buffers);
}

function textArray(texts) {
  return binaryArray(
    TEXT_OID,
    texts.map((text) => (text === null ? null : Buffer.from(text)))
  );
}

module.exports = { byteaArray, textArray };
