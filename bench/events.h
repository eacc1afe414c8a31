/*-------------------------------------------------------------------------
 *
 * events.h
 *	  What the benchmark's clients share: the stream, and the clock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef EVENTS_H
#define EVENTS_H

#include <stddef.h>

#define COLUMNS 12

/* Columns of the stream. */
enum
{
	ACCOUNT,
	BODY,
	SIGNATURE
};

typedef struct Event
{
	char *columns[COLUMNS];
} Event;

/* The name of the program, for messages; defined by each. */
extern const char program[];

extern void Fail(const char *what, const char *why) __attribute__((noreturn));
extern void *Allocate(size_t size);
extern int ReadEvents(const char *path, Event **events);
extern int PlaceOf(const Event *event, int places);
extern double Now(void);
extern void PrintLatencies(double *latencies, int n);

#endif
