/*-------------------------------------------------------------------------
 *
 * error.h
 *	  Errors of webhooks, as data.
 *
 * Errors are returned in a struct, so that a batch can go on without a
 * subtransaction.  Only ThrowGigError() raises one.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ERROR_H
#define GIGS_WEBHOOKS_ERROR_H

#include "compat.h"

typedef struct GigError
{
	int sqlerrcode;			/* 0: no error */
	char *message;			/* primary message */
	const char *log_detail; /* for the server log alone, or NULL */
} GigError;

/*
 * Returns false, so that a check can end with it.
 */
extern bool SetGigError(GigError *error, int sqlerrcode, const char *fmt, ...)
	pg_attribute_printf(3, 4);
pg_noreturn extern void ThrowGigError(const GigError *error);

extern char *QuotableInput(const char *s, size_t len);

#endif /* GIGS_WEBHOOKS_ERROR_H */
