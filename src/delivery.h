/*-------------------------------------------------------------------------
 *
 * delivery.h
 *	  The memory of what has been delivered: rows of gig_delivery.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_DELIVERY_H
#define GIGS_WEBHOOKS_DELIVERY_H

#include "direct.h"
#include "row.h"
#include "signature.h"

/* A row of gig_delivery; its columns are in gig_delivery_columns. */
typedef struct GigDelivery
{
	pg_uuid_t account_id;
	BodyDigest body_digest;
	int64 event_id;
	int32 deliveries; /* 0: the body has not been delivered yet */
	TimestampTz first_at;
	TimestampTz last_at;

	bool stored; /* there is such a row */
	int32 place; /* among those that are read together */
} GigDelivery;

/* The places of columns in gig_delivery_columns. */
enum
{
	DELIVERY_ACCOUNT_ID,
	DELIVERY_BODY_DIGEST,
	DELIVERY_EVENT_ID, /* from here on no part of the key */
	DELIVERY_DELIVERIES,
	DELIVERY_FIRST_AT,
	DELIVERY_LAST_AT,
	GIG_DELIVERY_COLUMNS
};

extern const GigColumn gig_delivery_columns[GIG_DELIVERY_COLUMNS];

extern void InitDelivery(GigDelivery *delivery, const pg_uuid_t *account_id,
						 const BodyDigest *digest);
extern void AppendDeliveryColumns(StringInfo text);
extern void TakeDelivery(const GigSchema *schema, GigDelivery *delivery,
						 HeapTuple tuple, TupleDesc tupdesc, int column);

/* Wants to be called in the owner's name, connected to SPI. */
extern void ReadDeliveries(const GigSchema *schema, GigDirect *direct,
						   GigDelivery *deliveries, int ndeliveries);

#endif /* GIGS_WEBHOOKS_DELIVERY_H */
