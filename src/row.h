/*-------------------------------------------------------------------------
 *
 * row.h
 *	  Rows of our tables as C structs, one by one and in sets.
 *
 * A table of columns says which member of the struct is which column.  A set
 * of rows is handed to a statement as if it were a table: one row as
 * parameters, which costs the executor least, several as a named tuplestore.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ROW_H
#define GIGS_WEBHOOKS_ROW_H

#include "utils/tuplestore.h"

#include "plan.h"
#include "schema.h"

/* What a member is, and so which SQL type its column has. */
typedef enum GigColumnType
{
	COLUMN_UUID,		/* pg_uuid_t */
	COLUMN_STATE,		/* GigSyncState */
	COLUMN_EVENT_KIND,	/* GigEventKind */
	COLUMN_INT4,		/* int32 */
	COLUMN_INT8,		/* int64 */
	COLUMN_TIMESTAMPTZ, /* TimestampTz */
	COLUMN_TEXT,		/* text * */
	COLUMN_BYTEA,		/* bytea * */
	COLUMN_DIGEST		/* BodyDigest; a bytea */
} GigColumnType;

typedef struct GigColumn
{
	const char *name;
	GigColumnType type;
	size_t offset; /* of the member */
} GigColumn;

#define GIG_COLUMN(row, member, type)        \
	{                                        \
#member, type, offsetof(row, member) \
	}

#define MAX_ROW_COLUMNS 18

/* Bit n of a row's "present" says that its column n is not null. */
#define ALL_PRESENT PG_UINT32_MAX

typedef struct GigRows
{
	const GigSchema *schema;
	const char *name; /* by which the statement knows them, if several */
	const GigColumn *columns;
	int ncolumns;

	int nrows;
	Datum values[MAX_ROW_COLUMNS]; /* of the first row */
	bool nulls[MAX_ROW_COLUMNS];
	TupleDesc tupdesc; /* of several */
	Tuplestorestate *store;
} GigRows;

extern Oid GigColumnTypeOid(const GigSchema *schema, const GigColumn *column);
extern Datum GigColumnDatum(const GigSchema *schema, const GigColumn *column,
							const void *row);
extern void SetGigColumn(const GigSchema *schema, const GigColumn *column,
						 void *row, Datum value);

extern void InitRows(GigRows *rows, const GigSchema *schema, const char *name,
					 const GigColumn *columns, int ncolumns);
extern void AddRow(GigRows *rows, const void *row, uint32 present);
extern void AppendRows(Statement *statement, const GigRows *rows);
extern void AppendColumnNames(StringInfo text, const GigColumn *columns,
							  int ncolumns);
extern void PutRows(Arguments *arguments, GigRows *rows);
extern void TakeBackRows(GigRows *rows);

#endif /* GIGS_WEBHOOKS_ROW_H */
