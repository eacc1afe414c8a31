/*-------------------------------------------------------------------------
 *
 * under_test.h
 *	  Included ahead of each source under test (-include): gives it chunks of
 *	  memory whose bounds AddressSanitizer can see.
 *
 * None of these chunks is given to the server to be freed, nor the other way
 * round: what initStringInfo() and the lexer allocate stays the server's, and
 * whatever else is freed here is a finding.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_FUZZ_UNDER_TEST_H
#define GIGS_FUZZ_UNDER_TEST_H

#include "chunks.h"

#define palloc(size) ChunkAlloc(size)
#define palloc0(size) ChunkAlloc0(size)
#define repalloc(chunk, size) ChunkRealloc(chunk, size)
#define pfree(chunk) ChunkFree(chunk)
#define pstrdup(s) ChunkStrdup(s)
#define pnstrdup(s, len) ChunkStrndup(s, len)

#endif /* GIGS_FUZZ_UNDER_TEST_H */
