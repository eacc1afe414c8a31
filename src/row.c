/*-------------------------------------------------------------------------
 *
 * row.c
 *	  Rows of gig_event_log and gig_account_sync as C structs.
 *
 * A table of columns tells which member of the struct is which column.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "row.h"

/* A batch adds so many deliveries to most accounts at most. */
#define DELIVERIES_TO_ADD 4

/* Both structs begin with their bits. */
StaticAssertDecl(offsetof(GigAccount, present) == 0, "present is not first");
StaticAssertDecl(offsetof(GigLogRow, present) == 0, "present is not first");

/* clang-format off */
#define ACCOUNT(column, type, present) {#column, type, offsetof(GigAccount, column), present}
#define RECENT(column, type) {"recent_" #column, type, offsetof(GigAccount, recent.column), 0}
#define LOGGED(column, type, present) {#column, type, offsetof(GigLogRow, column), present}

static const Column account_columns[] = {
	ACCOUNT(account_id, COLUMN_UUID, 0),
	ACCOUNT(user_id, COLUMN_UUID, 0),
	ACCOUNT(state, COLUMN_STATE, 0),
	ACCOUNT(days_synced, COLUMN_INT4, HAS_DAYS_SYNCED),
	ACCOUNT(available_from, COLUMN_TIMESTAMPTZ, HAS_AVAILABLE_FROM),
	ACCOUNT(available_to, COLUMN_TIMESTAMPTZ, HAS_AVAILABLE_TO),
	ACCOUNT(available_count, COLUMN_INT4, HAS_AVAILABLE_COUNT),
	ACCOUNT(last_event, COLUMN_EVENT_KIND, HAS_LAST_EVENT),
	ACCOUNT(last_event_at, COLUMN_TIMESTAMPTZ, HAS_LAST_EVENT),
	ACCOUNT(last_event_id, COLUMN_INT8, HAS_LAST_EVENT_ID),
	ACCOUNT(added_total, COLUMN_INT8, 0),
	ACCOUNT(updated_total, COLUMN_INT8, 0),
	ACCOUNT(removed_total, COLUMN_INT8, 0),
	ACCOUNT(events, COLUMN_INT8, 0),
	ACCOUNT(duplicates, COLUMN_INT8, 0),
	ACCOUNT(first_event_at, COLUMN_TIMESTAMPTZ, HAS_FIRST_EVENT_AT),
	ACCOUNT(partially_synced_at, COLUMN_TIMESTAMPTZ, HAS_PARTIALLY_SYNCED_AT),
	ACCOUNT(fully_synced_at, COLUMN_TIMESTAMPTZ, HAS_FULLY_SYNCED_AT),
	ACCOUNT(refreshed_at, COLUMN_TIMESTAMPTZ, HAS_REFRESHED_AT),
	RECENT(digests, COLUMN_INT8_ARRAY),
	RECENT(event_ids, COLUMN_INT8_ARRAY),
	RECENT(received_at, COLUMN_TIMESTAMPTZ_ARRAY),
};

static const Column log_columns[] = {
	LOGGED(event_id, COLUMN_INT8, 0),
	LOGGED(received_at, COLUMN_TIMESTAMPTZ, 0),
	LOGGED(outcome, COLUMN_OUTCOME, 0),
	LOGGED(event, COLUMN_EVENT_KIND, 0),
	LOGGED(account_id, COLUMN_UUID, 0),
	LOGGED(name, COLUMN_TEXT, 0),
	LOGGED(body, COLUMN_BYTEA, HAS_BODY),
	LOGGED(duplicate_of, COLUMN_INT8, HAS_DUPLICATE_OF),
};
/* clang-format on */

StaticAssertDecl(lengthof(account_columns) == MAX_COLUMNS, "MAX_COLUMNS");

const RowFormat account_format = {lengthof(account_columns), account_columns,
								  sizeof(GigAccount)};
const RowFormat log_format = {lengthof(log_columns), log_columns,
							  sizeof(GigLogRow)};

static void ReadColumn(const GigSchema *schema, const Column *column,
					   GigAccount *account, Datum value);
static void ReadArray(const Column *column, GigAccount *account, Datum value);
pg_noreturn static void ThrowInconsistent(void);
static Datum ColumnDatum(const GigSchema *schema, const Column *column,
						 const void *row);
static Datum MakeInt8Array(Oid element_type, const int64 *elements, int n);

/*
 * Gets the values of a row's columns; those of UUIDs point into the row.
 */
void
GetRowValues(const GigSchema *schema, const RowFormat *format, const void *row,
			 Datum *values, bool *nulls)
{
	uint32 present = *(const uint32 *) row;

	for (int i = 0; i < format->ncolumns; i++)
	{
		const Column *column = &format->columns[i];

		nulls[i] = column->present != 0 && (present & column->present) == 0;
		values[i] = nulls[i] ? (Datum) 0 : ColumnDatum(schema, column, row);
	}
}

/*
 * Sets an account to the values of all columns.  Its arrays are allocated in
 * the current context.
 */
void
SetAccountValues(const GigSchema *schema, GigAccount *account,
				 const Datum *values, const bool *nulls)
{
	memset(account, 0, sizeof(GigAccount));
	account->recent.n = -1;
	for (int i = 0; i < account_format.ncolumns; i++)
	{
		if (nulls[i] && account_columns[i].present == 0)
			ThrowInconsistent();
		if (nulls[i])
			continue;
		ReadColumn(schema, &account_columns[i], account, values[i]);
		account->present |= account_columns[i].present;
	}
}

static void
ReadColumn(const GigSchema *schema, const Column *column, GigAccount *account,
		   Datum value)
{
	void *member = (char *) account + column->offset;

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
		case COLUMN_INT8_ARRAY:
		case COLUMN_TIMESTAMPTZ_ARRAY:
			ReadArray(column, account, value);
			return;
		default:
			elog(ERROR, "column \"%s\" is only written", column->name);
	}
}

/*
 * Both element types are 64 bits wide.
 */
static void
ReadArray(const Column *column, GigAccount *account, Datum value)
{
	ArrayType *array = DatumGetArrayTypeP(value);
	int n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	int64 *elements;

	if (ARR_HASNULL(array) || (account->recent.n >= 0 && account->recent.n != n))
		ThrowInconsistent();
	account->recent.n = n;
	account->recent.capacity = n + DELIVERIES_TO_ADD;
	elements = palloc(account->recent.capacity * sizeof(int64));
	memcpy(elements, ARR_DATA_PTR(array), n * sizeof(int64));
	*(int64 **) ((char *) account + column->offset) = elements;
}

static void
ThrowInconsistent(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("a row of table \"%s\" is inconsistent", "gig_account_sync"),
			 errhint(
				 "Delete the row and use rebuild_gig_sync() for the account.")));
}

/*
 * Tells whether an attribute has a column's name and type.
 */
bool
ColumnMatches(const GigSchema *schema, const Column *column,
			  Form_pg_attribute attribute)
{
	return !attribute->attisdropped &&
		   attribute->atttypid == ColumnTypeOid(schema, column->type) &&
		   strcmp(NameStr(attribute->attname), column->name) == 0;
}

/*
 * Returns a column's value; a UUID's points into the row.
 */
static Datum
ColumnDatum(const GigSchema *schema, const Column *column, const void *row)
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
		case COLUMN_OUTCOME:
			return ObjectIdGetDatum(
				schema->outcomes[*(const GigOutcome *) member]);
		case COLUMN_INT4:
			return Int32GetDatum(*(const int32 *) member);
		case COLUMN_INT8:
			return Int64GetDatum(*(const int64 *) member);
		case COLUMN_TIMESTAMPTZ:
			return TimestampTzGetDatum(*(const TimestampTz *) member);
		case COLUMN_TEXT:
		case COLUMN_BYTEA:
			return PointerGetDatum(*(void *const *) member);
		case COLUMN_INT8_ARRAY:
			return MakeInt8Array(INT8OID, *(int64 *const *) member,
								 ((const GigAccount *) row)->recent.n);
		case COLUMN_TIMESTAMPTZ_ARRAY:
			return MakeInt8Array(TIMESTAMPTZOID, *(int64 *const *) member,
								 ((const GigAccount *) row)->recent.n);
	}
	pg_unreachable();
}

/*
 * Makes an array of a type whose values are 64 bits wide.
 */
static Datum
MakeInt8Array(Oid element_type, const int64 *elements, int n)
{
	Size size = ARR_OVERHEAD_NONULLS(1) + n * sizeof(int64);
	ArrayType *array;

	if (n == 0)
		return PointerGetDatum(construct_empty_array(element_type));
	array = palloc0(size);
	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->dataoffset = 0;
	array->elemtype = element_type;
	ARR_DIMS(array)[0] = n;
	ARR_LBOUND(array)[0] = 1;
	memcpy(ARR_DATA_PTR(array), elements, n * sizeof(int64));
	return PointerGetDatum(array);
}

Oid
ColumnTypeOid(const GigSchema *schema, ColumnType type)
{
	switch (type)
	{
		case COLUMN_UUID:
			return UUIDOID;
		case COLUMN_STATE:
			return schema->sync_state_type;
		case COLUMN_EVENT_KIND:
			return schema->event_kind_type;
		case COLUMN_OUTCOME:
			return schema->outcome_type;
		case COLUMN_INT4:
			return INT4OID;
		case COLUMN_INT8:
			return INT8OID;
		case COLUMN_TIMESTAMPTZ:
			return TIMESTAMPTZOID;
		case COLUMN_TEXT:
			return TEXTOID;
		case COLUMN_BYTEA:
			return BYTEAOID;
		case COLUMN_INT8_ARRAY:
			return INT8ARRAYOID;
		case COLUMN_TIMESTAMPTZ_ARRAY:
			return TIMESTAMPTZARRAYOID;
	}
	pg_unreachable();
}
