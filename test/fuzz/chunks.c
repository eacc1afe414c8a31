/*-------------------------------------------------------------------------
 *
 * chunks.c
 *	  Memory whose bounds AddressSanitizer knows, for the code under test.
 *
 *-------------------------------------------------------------------------
 */
#include "chunks.h"

#include "utils/memutils.h"

#include "fuzz.h"

typedef struct Chunk
{
	void *memory;
	Size size;
} Chunk;

static Chunk *chunks = NULL;
static int nchunks = 0;
static int capacity = 0;

static void CheckSize(Size size);
static Chunk *FindChunk(const void *memory);

void *
ChunkAlloc(Size size)
{
	Chunk *chunk;

	CheckSize(size);
	if (nchunks == capacity)
	{
		capacity = Max(64, capacity * 2);
		chunks = realloc(chunks, capacity * sizeof(Chunk));
		if (chunks == NULL)
			abort();
	}
	chunk = &chunks[nchunks++];
	chunk->memory = malloc(size);
	chunk->size = size;
	if (chunk->memory == NULL)
		abort();
	return chunk->memory;
}

void *
ChunkAlloc0(Size size)
{
	return memset(ChunkAlloc(size), 0, size);
}

/* Always moves the chunk, so that the use of an old pointer is detected. */
void *
ChunkRealloc(void *memory, Size size)
{
	Chunk *chunk = FindChunk(memory);
	void *moved;

	CheckSize(size);
	moved = malloc(size);
	if (moved == NULL)
		abort();
	memcpy(moved, memory, Min(size, chunk->size));
	free(memory);
	chunk->memory = moved;
	chunk->size = size;
	return moved;
}

void
ChunkFree(void *memory)
{
	*FindChunk(memory) = chunks[--nchunks];
	free(memory);
}

char *
ChunkStrdup(const char *s)
{
	return ChunkStrndup(s, strlen(s));
}

char *
ChunkStrndup(const char *s, Size len)
{
	char *copy;

	len = strnlen(s, len);
	copy = ChunkAlloc(len + 1);
	memcpy(copy, s, len);
	copy[len] = '\0';
	return copy;
}

/*
 * Frees all chunks.
 */
void
FreeChunks(void)
{
	while (nchunks > 0)
		free(chunks[--nchunks].memory);
}

/* As palloc() would. */
static void
CheckSize(Size size)
{
	if (!AllocSizeIsValid(size))
		elog(ERROR, "invalid memory alloc request size %zu", size);
}

static Chunk *
FindChunk(const void *memory)
{
	for (int i = nchunks - 1; i >= 0; i--)
	{
		if (chunks[i].memory == memory)
			return &chunks[i];
	}
	Finding("memory that was not allocated here is freed or reallocated");
}
