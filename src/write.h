/*-------------------------------------------------------------------------
 *
 * write.h
 *	  All that a call writes, by one statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_WRITE_H
#define GIGS_WEBHOOKS_WRITE_H

#include "direct.h"
#include "row.h"
#include "table.h"

/* What becomes of rows.  The one that comes first here counts the rows. */
typedef enum GigWrite
{
	WRITE_EVENTS,			/* GigEventRow: into the log */
	WRITE_ACCOUNTS,			/* GigAccount, locked: over what is there */
	WRITE_NEW_DELIVERIES,	/* GigDelivery: known not to be there */
	WRITE_KNOWN_DELIVERIES, /* GigDelivery: over what may be there */
	WRITE_CHANGES,			/* GigChange: over what may be there */
	RESTORE_CHANGES			/* GigChange: unless one is there */
} GigWrite;

#define GIG_WRITES (RESTORE_CHANGES + 1)

typedef struct GigWriter
{
	const GigSchema *schema;
	GigDirect *direct; /* rows are written directly */
	uint64 ndirect;	   /* events written so */
	GigRows rows[GIG_WRITES];
} GigWriter;

/* These want to be called in the owner's name, connected to SPI. */
extern void BeginWriting(GigWriter *writer, const GigSchema *schema,
						 GigDirect *direct);
extern void WriteRow(GigWriter *writer, GigWrite write, const void *row,
					 uint32 present);
extern uint64 FinishWriting(GigWriter *writer);

#endif /* GIGS_WEBHOOKS_WRITE_H */
