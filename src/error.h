/*-------------------------------------------------------------------------
 *
 * error.h
 *	  Why an event is refused, as data.
 *
 * A reason travels in a struct, so that a batch or an inbox can keep the row
 * it belongs to without a subtransaction; only ThrowGigError() raises it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ERROR_H
#define GIGS_WEBHOOKS_ERROR_H

#include "compat.h"

typedef struct GigError
{
	int sqlerrcode;	  /* 0: no error */
	char *message;	  /* primary message */
	char *log_detail; /* for the server log alone, or NULL */
} GigError;

/*
 * Fills the error, unless that is NULL; returns false, so that a check can end
 * with it.
 */
extern bool SetGigError(GigError *error, int sqlerrcode, const char *fmt, ...)
	pg_attribute_printf(3, 4);
pg_noreturn extern void ThrowGigError(const GigError *error);

/* Input made fit to be quoted in a message. */
extern char *QuotableInput(const char *s, size_t len);

#endif /* GIGS_WEBHOOKS_ERROR_H */
