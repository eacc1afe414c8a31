/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  What the fuzzer's sources share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_FUZZ_FUZZ_H
#define GIGS_FUZZ_FUZZ_H

#include "event.h"

/* Says what is wrong and ends the process, which keeps the input. */
pg_noreturn extern void Finding(const char *fmt, ...) pg_attribute_printf(1, 2);

/*
 * What PostgreSQL's jsonb, uuid, integer and timestamptz make of a body.
 */
typedef struct Reference
{
	bool malformed;		/* it is no JSON */
	bool unknown;		/* jsonb refuses what we need not */
	int document_error; /* SQLSTATE of what it lacks to be a document, or 0 */
	int event_error;	/* SQLSTATE of what it lacks to be an event, or 0 */
	char path[64];		/* of the key at fault, or empty */
	const char *name;
	bool foreign;
	GigEvent event;
} Reference;

extern void AskPostgres(const char *body, size_t len, Reference *reference);

#endif /* GIGS_FUZZ_FUZZ_H */
