/*-------------------------------------------------------------------------
 *
 * apply.h
 *	  Events onto the tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_APPLY_H
#define GIGS_WEBHOOKS_APPLY_H

#include "event.h"
#include "schema.h"
#include "signature.h"

/* An event that is authentic and understood, and what became of it. */
typedef struct GigItem
{
	GigEvent event;
	bytea *body;	   /* as received */
	BodyDigest digest; /* of the body */

	GigOutcome outcome;
	int64 event_id; /* in the log; a duplicate's is the original's */
} GigItem;

extern void ApplyGigItems(const GigSchema *schema, GigItem **items, int nitems);

#endif /* GIGS_WEBHOOKS_APPLY_H */
