/*-------------------------------------------------------------------------
 *
 * under_test.h
 *	  Included before each source under test (-include), so that it allocates
 *	  memory whose bounds AddressSanitizer knows.
 *
 * The server does not free these chunks, and the sources under test do not free
 * the server's, such as those of a StringInfo or the lexer.  ChunkFree() reports
 * any other chunk.
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
