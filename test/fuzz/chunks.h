/*-------------------------------------------------------------------------
 *
 * chunks.h
 *	  Memory whose bounds AddressSanitizer can see, for the code under test.
 *
 * The server's palloc() carves its chunks out of large blocks, where reading
 * past the end of one goes unseen.  These are made by malloc() one by one, and
 * are gone after the input that they were made for.
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
