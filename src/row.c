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
#define ACCOUNT(column, type, present) {#column, type, 0, offsetof(GigAccount, column), present}
#define ACCOUNT_ENUM(column, type, present) {#column, InvalidOid, offsetof(GigSchema, type), offsetof(GigAccount, column), present}
#define RECENT(column, type) {"recent_" #column, type, 0, offsetof(GigAccount, recent.column), 0}
#define LOGGED(column, type, present) {#column, type, 0, offsetof(GigLogRow, column), present}
#define LOGGED_ENUM(column, type) {#column, InvalidOid, offsetof(GigSchema, type), offsetof(GigLogRow, column), 0}

static const Column account_columns[] = {
	ACCOUNT(account_id, UUIDOID, 0),
	ACCOUNT(user_id, UUIDOID, 0),
	ACCOUNT_ENUM(state, sync_state, 0),
	ACCOUNT(days_synced, INT4OID, HAS_DAYS_SYNCED),
	ACCOUNT(available_from, TIMESTAMPTZOID, HAS_AVAILABLE_FROM),
	ACCOUNT(available_to, TIMESTAMPTZOID, HAS_AVAILABLE_TO),
	ACCOUNT(available_count, INT4OID, HAS_AVAILABLE_COUNT),
	ACCOUNT_ENUM(last_event, event_kind, HAS_LAST_EVENT),
	ACCOUNT(last_event_at, TIMESTAMPTZOID, HAS_LAST_EVENT),
	ACCOUNT(last_event_id, INT8OID, HAS_LAST_EVENT_ID),
	ACCOUNT(added_total, INT8OID, 0),
	ACCOUNT(updated_total, INT8OID, 0),
	ACCOUNT(removed_total, INT8OID, 0),
	ACCOUNT(events, INT8OID, 0),
	ACCOUNT(duplicates, INT8OID, 0),
	ACCOUNT(first_event_at, TIMESTAMPTZOID, HAS_FIRST_EVENT_AT),
	ACCOUNT(partially_synced_at, TIMESTAMPTZOID, HAS_PARTIALLY_SYNCED_AT),
	ACCOUNT(fully_synced_at, TIMESTAMPTZOID, HAS_FULLY_SYNCED_AT),
	ACCOUNT(refreshed_at, TIMESTAMPTZOID, HAS_REFRESHED_AT),
	RECENT(digests, INT8ARRAYOID),
	RECENT(event_ids, INT8ARRAYOID),
	RECENT(received_at, TIMESTAMPTZARRAYOID),
};

static const Column log_columns[] = {
	LOGGED(event_id, INT8OID, 0),
	LOGGED(received_at, TIMESTAMPTZOID, 0),
	LOGGED_ENUM(outcome, outcome),
	LOGGED_ENUM(event, event_kind),
	LOGGED(account_id, UUIDOID, 0),
	LOGGED(name, TEXTOID, 0),
	LOGGED(body, BYTEAOID, HAS_BODY),
	LOGGED(duplicate_of, INT8OID, HAS_DUPLICATE_OF),
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
static const GigEnum *ColumnEnum(const GigSchema *schema, const Column *column);
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
		case InvalidOid:
			*(int *) member = FindEnumLabel(ColumnEnum(schema, column),
											DatumGetObjectId(value));
			break;
		case UUIDOID:
			*(pg_uuid_t *) member = *DatumGetUUIDP(value);
			break;
		case INT4OID:
			*(int32 *) member = DatumGetInt32(value);
			break;
		case INT8OID:
		case TIMESTAMPTZOID:
			*(int64 *) member = DatumGetInt64(value);
			break;
		default:
			ReadArray(column, account, value);
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
 * Returns a column's value; a UUID's points into the row.
 */
static Datum
ColumnDatum(const GigSchema *schema, const Column *column, const void *row)
{
	const void *member = (const char *) row + column->offset;

	switch (column->type)
	{
		case InvalidOid:
			return ObjectIdGetDatum(
				ColumnEnum(schema, column)->labels[*(const int *) member]);
		case UUIDOID:
			return UUIDPGetDatum((pg_uuid_t *) member);
		case INT4OID:
			return Int32GetDatum(*(const int32 *) member);
		case INT8OID:
		case TIMESTAMPTZOID:
			return Int64GetDatum(*(const int64 *) member);
		case INT8ARRAYOID:
			return MakeInt8Array(INT8OID, *(int64 *const *) member,
								 ((const GigAccount *) row)->recent.n);
		case TIMESTAMPTZARRAYOID:
			return MakeInt8Array(TIMESTAMPTZOID, *(int64 *const *) member,
								 ((const GigAccount *) row)->recent.n);
		default: /* text and bytea */
			return PointerGetDatum(*(void *const *) member);
	}
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
ColumnTypeOid(const GigSchema *schema, const Column *column)
{
	return OidIsValid(column->type) ? column->type
									: ColumnEnum(schema, column)->type;
}

static const GigEnum *
ColumnEnum(const GigSchema *schema, const Column *column)
{
	return (const GigEnum *) ((const char *) schema + column->enum_offset);
}
