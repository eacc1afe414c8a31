/*-------------------------------------------------------------------------
 *
 * chunks.h
 *	  Memory whose bounds AddressSanitizer knows, for the code under test.
 *
 * The server's palloc() takes chunks from large blocks, so that reading past the
 * end of a chunk is not detected.  These chunks are allocated by malloc(), and
 * freed after each input.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_FUZZ_CHUNKS_H
#define GIGS_FUZZ_CHUNKS_H

#include "postgres.h"

extern void *ChunkAlloc(Size size);
extern void *ChunkAlloc0(Size size);
extern void *ChunkRealloc(void *chunk, Size size);
extern void ChunkFree(void *chunk);
extern char *ChunkStrdup(const char *s);
extern char *ChunkStrndup(const char *s, Size len);
extern void FreeChunks(void);

#endif /* GIGS_FUZZ_CHUNKS_H */
