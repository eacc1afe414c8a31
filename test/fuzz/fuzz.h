/*-------------------------------------------------------------------------
 *
 * fuzz.h
 *	  Declarations of the fuzzer.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_FUZZ_FUZZ_H
#define GIGS_FUZZ_FUZZ_H

#include "event.h"

/* Prints what is wrong and ends the process, so that libFuzzer keeps the input. */
pg_noreturn extern void Finding(const char *fmt, ...) pg_attribute_printf(1, 2);

/*
 * A body as parsed by PostgreSQL's jsonb, uuid, integer and timestamptz.
 */
typedef struct Reference
{
	bool malformed;		/* it is not JSON */
	bool unknown;		/* refused by PostgreSQL, perhaps not by us */
	int document_error; /* SQLSTATE of why it is not a document, or 0 */
	int event_error;	/* SQLSTATE of why it is not an event, or 0 */
	char path[64];		/* of the key with the error, or empty */
	const char *name;
	bool foreign;
	GigEvent event;
} Reference;

extern void AskPostgres(const char *body, size_t len, Reference *reference);

#endif /* GIGS_FUZZ_FUZZ_H */
