/*-------------------------------------------------------------------------
 *
 * table.h
 *	  The tables that events change: their names, columns and keys.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_TABLE_H
#define GIGS_WEBHOOKS_TABLE_H

#include "account.h"
#include "delivery.h"
#include "row.h"

/* A row of gig_event_log. */
typedef struct GigEventRow
{
	int64 event_id;
	TimestampTz received_at;
	GigEventKind event;
	pg_uuid_t account_id;
	text *name;
	bytea *body;
} GigEventRow;

/* A row of gig_change. */
typedef struct GigChange
{
	pg_uuid_t account_id;
	pg_uuid_t gig_id;
	GigEventKind change;
	TimestampTz changed_at;
	int64 event_id;
} GigChange;

typedef struct GigTableInfo
{
	const char *name;
	const GigColumn *columns; /* all of them, in order */
	int ncolumns;
	int nkeys; /* so many of them are the primary key */
} GigTableInfo;

extern const GigTableInfo gig_tables[GIG_TABLES];

#endif /* GIGS_WEBHOOKS_TABLE_H */
