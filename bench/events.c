/*-------------------------------------------------------------------------
 *
 * events.c
 *	  What the benchmark's clients share: the stream, and the clock.
 *
 *-------------------------------------------------------------------------
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "events.h"

void
Fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s: %s\n", program, what, why);
	exit(1);
}

void *
Allocate(size_t size)
{
	void *memory = calloc(1, size > 0 ? size : 1);

	if (memory == NULL)
		Fail("calloc", "out of memory");
	return memory;
}

static char *
ReadFile(const char *path)
{
	FILE *file = fopen(path, "rb");
	char *content;
	long size;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0)
		Fail(path, "cannot be read");
	size = ftell(file);
	rewind(file);
	content = Allocate((size_t) size + 1);
	if (fread(content, 1, (size_t) size, file) != (size_t) size)
		Fail(path, "cannot be read");
	fclose(file);
	return content;
}

/* Reads what bench/stream has printed.  Returns how many events that is. */
int
ReadEvents(const char *path, Event **events)
{
	char *content = ReadFile(path);
	int capacity = 1024;
	int n = 0;

	*events = Allocate(capacity * sizeof(Event));
	for (char *line = strtok(content, "\n"); line; line = strtok(NULL, "\n"))
	{
		if (n == capacity)
		{
			capacity *= 2;
			*events = realloc(*events, capacity * sizeof(Event));
			if (*events == NULL)
				Fail("realloc", "out of memory");
		}
		for (int i = 0; i < COLUMNS; i++)
			(*events)[n].columns[i] = strsep(&line, "\t");
		if ((*events)[n].columns[COLUMNS - 1] == NULL)
			Fail("stream", "a line has too few columns");
		n++;
	}
	return n;
}

/* Which of so many connections the event's account falls to. */
int
PlaceOf(const Event *event, int places)
{
	uint32_t hash = 2166136261u;

	for (const char *c = event->columns[ACCOUNT]; *c != '\0'; c++)
		hash = (hash ^ (unsigned char) *c) * 16777619u;
	return (int) (hash % (uint32_t) places);
}

/* Seconds since some time in the past. */
double
Now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

static int
CompareDoubles(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

/* Prints the median of the seconds of calls, and the time of 99 % of them. */
void
PrintLatencies(double *latencies, int n)
{
	qsort(latencies, (size_t) n, sizeof(double), CompareDoubles);
	printf("%.6f %.6f\n", latencies[n / 2], latencies[n / 100 * 99]);
}
