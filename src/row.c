/*-------------------------------------------------------------------------
 *
 * row.c
 *	  Rows of our tables as C structs, one by one and in sets.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/queryenvironment.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "row.h"
#include "signature.h"

static void BeginStore(GigRows *rows);

/*
 * Returns a column's SQL type.
 */
Oid
GigColumnTypeOid(const GigSchema *schema, const GigColumn *column)
{
	switch (column->type)
	{
		case COLUMN_UUID:
			return UUIDOID;
		case COLUMN_STATE:
			return schema->sync_state_type;
		case COLUMN_EVENT_KIND:
			return schema->event_kind_type;
		case COLUMN_INT4:
			return INT4OID;
		case COLUMN_INT8:
			return INT8OID;
		case COLUMN_TIMESTAMPTZ:
			return TIMESTAMPTZOID;
		case COLUMN_TEXT:
			return TEXTOID;
		case COLUMN_BYTEA:
		case COLUMN_DIGEST:
			return BYTEAOID;
	}
	pg_unreachable();
}

/*
 * Returns a column's value; a UUID's points into the row.
 */
Datum
GigColumnDatum(const GigSchema *schema, const GigColumn *column, const void *row)
{
	const void *member = (const char *) row + column->offset;

	switch (column->type)
	{
		case COLUMN_UUID:
			return UUIDPGetDatum((pg_uuid_t *) member);
		case COLUMN_STATE:
			return ObjectIdGetDatum(
				schema->sync_states[*(const GigSyncState *) member]);
		case COLUMN_EVENT_KIND:
			return ObjectIdGetDatum(
				schema->event_kinds[*(const GigEventKind *) member]);
		case COLUMN_INT4:
			return Int32GetDatum(*(const int32 *) member);
		case COLUMN_INT8:
			return Int64GetDatum(*(const int64 *) member);
		case COLUMN_TIMESTAMPTZ:
			return TimestampTzGetDatum(*(const TimestampTz *) member);
		case COLUMN_TEXT:
		case COLUMN_BYTEA:
			return PointerGetDatum(*(void *const *) member);
		case COLUMN_DIGEST:
		{
			bytea *digest = palloc(VARHDRSZ + BODY_DIGEST_BYTES);

			SET_VARSIZE(digest, VARHDRSZ + BODY_DIGEST_BYTES);
			memcpy(VARDATA(digest), ((const BodyDigest *) member)->data,
				   BODY_DIGEST_BYTES);
			return PointerGetDatum(digest);
		}
	}
	pg_unreachable();
}

/*
 * Takes over a column's value that is not null.
 */
void
SetGigColumn(const GigSchema *schema, const GigColumn *column, void *row,
			 Datum value)
{
	void *member = (char *) row + column->offset;

	switch (column->type)
	{
		case COLUMN_UUID:
			*(pg_uuid_t *) member = *DatumGetUUIDP(value);
			return;
		case COLUMN_STATE:
			*(GigSyncState *) member =
				(GigSyncState) FindEnumLabel(schema->sync_states,
											 GIG_SYNC_STATES,
											 DatumGetObjectId(value));
			return;
		case COLUMN_EVENT_KIND:
			*(GigEventKind *) member =
				(GigEventKind) FindEnumLabel(schema->event_kinds,
											 GIG_EVENT_KINDS,
											 DatumGetObjectId(value));
			return;
		case COLUMN_INT4:
			*(int32 *) member = DatumGetInt32(value);
			return;
		case COLUMN_INT8:
			*(int64 *) member = DatumGetInt64(value);
			return;
		case COLUMN_TIMESTAMPTZ:
			*(TimestampTz *) member = DatumGetTimestampTz(value);
			return;
		case COLUMN_TEXT:
		case COLUMN_BYTEA:
		case COLUMN_DIGEST:
			break; /* nobody reads these back */
	}
	elog(ERROR, "column \"%s\" is only written", column->name);
}

void
InitRows(GigRows *rows, const GigSchema *schema, const char *name,
		 const GigColumn *columns, int ncolumns)
{
	Assert(ncolumns <= MAX_ROW_COLUMNS);
	rows->schema = schema;
	rows->name = name;
	rows->columns = columns;
	rows->ncolumns = ncolumns;
	rows->nrows = 0;
	rows->store = NULL;
}

/*
 * Adds a row, which has to stay where it is until the statement has run.
 */
void
AddRow(GigRows *rows, const void *row, uint32 present)
{
	Datum values[MAX_ROW_COLUMNS];
	bool nulls[MAX_ROW_COLUMNS];

	if (rows->nrows == 1)
		BeginStore(rows);
	for (int i = 0; i < rows->ncolumns; i++)
	{
		nulls[i] = (present & (UINT32_C(1) << i)) == 0;
		values[i] = nulls[i]
						? (Datum) 0
						: GigColumnDatum(rows->schema, &rows->columns[i], row);
	}
	if (rows->nrows++ > 0)
	{
		tuplestore_putvalues(rows->store, rows->tupdesc, values, nulls);
		return;
	}
	memcpy(rows->values, values, rows->ncolumns * sizeof(Datum));
	memcpy(rows->nulls, nulls, rows->ncolumns * sizeof(bool));
}

/*
 * Goes over from one row to several.  All are kept in memory: they are no
 * more than what the caller has handed in.
 */
static void
BeginStore(GigRows *rows)
{
	rows->tupdesc = CreateTemplateTupleDesc(rows->ncolumns);
	for (int i = 0; i < rows->ncolumns; i++)
		TupleDescInitEntry(rows->tupdesc, (AttrNumber) (i + 1),
						   rows->columns[i].name,
						   GigColumnTypeOid(rows->schema, &rows->columns[i]),
						   -1, 0);
	rows->store = tuplestore_begin_heap(false, false, MAX_KILOBYTES);
	tuplestore_putvalues(rows->store, rows->tupdesc, rows->values, rows->nulls);
}

/*
 * Writes rows into a statement, as an item for FROM.
 */
void
AppendRows(Statement *statement, const GigRows *rows)
{
	StringInfo text = &statement->text;

	if (rows->store != NULL)
	{
		appendStringInfoString(text, rows->name);
		return;
	}
	appendStringInfoString(text, "(SELECT ");
	for (int i = 0; i < rows->ncolumns; i++)
	{
		AppendParameter(statement,
						GigColumnTypeOid(rows->schema, &rows->columns[i]));
		appendStringInfo(text, " AS %s%s", rows->columns[i].name,
						 i + 1 < rows->ncolumns ? ", " : ")");
	}
}

void
AppendColumnNames(StringInfo text, const GigColumn *columns, int ncolumns)
{
	for (int i = 0; i < ncolumns; i++)
		appendStringInfo(text, "%s%s", i > 0 ? ", " : "", columns[i].name);
}

/*
 * Hands rows to the statement that is run next.
 */
void
PutRows(Arguments *arguments, GigRows *rows)
{
	EphemeralNamedRelation relation;

	if (rows->store == NULL)
	{
		for (int i = 0; i < rows->ncolumns; i++)
			AddArgument(arguments, rows->values[i], rows->nulls[i]);
		return;
	}
	relation = palloc0(sizeof(EphemeralNamedRelationData));
	relation->md.name = pstrdup(rows->name);
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = rows->tupdesc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = -1; /* unknown: plans are kept */
	relation->reldata = rows->store;
	if (SPI_register_relation(relation) != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register rows \"%s\"", rows->name);
}

/*
 * Ends what PutRows() began, and frees the rows.
 */
void
TakeBackRows(GigRows *rows)
{
	if (rows->store == NULL)
		return;
	if (SPI_unregister_relation(rows->name) != SPI_OK_REL_UNREGISTER)
		elog(ERROR, "could not unregister rows \"%s\"", rows->name);
	tuplestore_end(rows->store);
	rows->store = NULL;
}
