/*-------------------------------------------------------------------------
 *
 * row.h
 *	  Rows of gig_event_log and gig_account_sync as C structs.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ROW_H
#define GIGS_WEBHOOKS_ROW_H

#include "access/tupdesc.h"

#include "schema.h"

/* The columns of gig_event_log that may be null. */
typedef enum GigLogNullable
{
	HAS_BODY = 1 << 0,
	HAS_DUPLICATE_OF = 1 << 1
} GigLogNullable;

/* A row of gig_event_log. */
typedef struct GigLogRow
{
	uint32 present; /* GigLogNullable */
	int64 event_id;
	TimestampTz received_at;
	GigOutcome outcome;
	GigEventKind event;
	pg_uuid_t account_id;
	text *name;
	bytea *body;
	int64 duplicate_of;
} GigLogRow;

/* A column, and the member of the row's struct that holds its value. */
typedef struct Column
{
	const char *name;
	Oid type;			/* InvalidOid: an enum */
	size_t enum_offset; /* of the enum in GigSchema */
	size_t offset;		/* of the member in the row's struct */
	uint32 present; /* the bit in the struct's "present", or 0: never null */
} Column;

#define MAX_COLUMNS 22

/* The columns of a table. */
typedef struct RowFormat
{
	int ncolumns;
	const Column *columns;
	size_t size; /* of the row's struct */
} RowFormat;

extern const RowFormat account_format;
extern const RowFormat log_format;

extern Oid ColumnTypeOid(const GigSchema *schema, const Column *column);
extern void GetRowValues(const GigSchema *schema, const RowFormat *format,
						 const void *row, Datum *values, bool *nulls);
extern void SetAccountValues(const GigSchema *schema, GigAccount *account,
							 const Datum *values, const bool *nulls);

#endif /* GIGS_WEBHOOKS_ROW_H */
