/*-------------------------------------------------------------------------
 *
 * drain.c
 *	  Backlogs in inbox tables, taken in by a batch a transaction.
 *
 * It all runs as the caller, but for what the pipeline does on our tables.  A
 * batch's table is locked before it is named, and looked up anew: between two
 * batches anything may have been changed or renamed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "encoding.h"
#include "inbox.h"
#include "ingest.h"
#include "schema.h"

/* So much of bodies is taken in at once, unless one alone is larger. */
#define MAX_BATCH_BYTES (MaxAllocSize / 4)

/* So many rows are fetched at once. */
#define ROWS_AT_A_TIME 1000

/* Where the procedure's arguments name columns. */
#define KEY_ARGUMENT 2
#define COLUMN_ARGUMENTS (KEY_ARGUMENT + 1)
#define LAST_ARGUMENT (KEY_ARGUMENT + INBOX_COLUMNS)

/* What is selected of a row. */
typedef enum SelectedColumn
{
	SELECTED_TABLE = 1,
	SELECTED_PLACE,
	SELECTED_KEY,
	SELECTED_BODY,
	SELECTED_SIGNATURE
} SelectedColumn;

/* The table, as it is for a batch. */
typedef struct Inbox
{
	Oid table;
	const char *name; /* with its schema, quoted */
	FormData_pg_attribute key;
	FormData_pg_attribute columns[INBOX_COLUMNS];
	bool body_is_bytea;
} Inbox;

/* From where a batch goes on. */
typedef struct Position
{
	bool known; /* else from the start, as after a key that is null */
	Oid type;	/* of the key */
	Datum key;
} Position;

/* The rows of a batch. */
typedef struct Rows
{
	int n;
	int capacity;
	Datum *tables;
	Datum *places;
	GigInput *inputs;
	Size bytes;	   /* of the bodies */
	List *fetched; /* what the inputs point into */
} Rows;

static void DrainBatch(FunctionCallInfo fcinfo, Position *position,
					   MemoryContext position_context, int64 *taken,
					   int64 *rejected);
static void LookUpInbox(FunctionCallInfo fcinfo, Inbox *inbox);
static void LookUpColumn(const Inbox *inbox, const char *name,
						 Form_pg_attribute column);
static Oid FindComparison(Oid type);
static void FetchRows(const Inbox *inbox, int batch, const Position *from,
					  Position *to, MemoryContext position_context, Rows *rows);
static void *Grow(void *array, Size size);
static bool AddInboxRow(const Inbox *inbox, Rows *rows, HeapTuple tuple,
						TupleDesc tupdesc);
static int64 MarkRows(const Inbox *inbox, const Rows *rows,
					  const GigResult *results);
static Datum ColumnArray(Oid type, Datum *values, bool *nulls, int n);

/*
 * drain_gig_inbox(inbox regclass, batch integer DEFAULT 10000,
 *		key name DEFAULT 'id', body name, signature name, outcome name,
 *		error name, INOUT drained bigint, INOUT rejected bigint)
 *
 * Takes in the rows that have no outcome yet, in the order of their keys, and
 * commits after each batch.
 */
PG_FUNCTION_INFO_V1(drain_gig_inbox);
Datum
drain_gig_inbox(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext batch_context;
	Position position = {.known = false};
	int64 drained = 0;
	int64 rejected = 0;
	TupleDesc tupdesc;
	Datum values[2];
	bool nulls[2] = {false, false};

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("invalid transaction termination"),
				 errdetail(
					 "Each batch is a transaction: they can't be part of another one.")));
	for (int i = 0; i <= LAST_ARGUMENT; i++)
	{
		if (PG_ARGISNULL(i) || (i == 1 && PG_GETARG_INT32(1) <= 0))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 i == 1
						 ? errmsg("batch must be greater than zero")
						 : errmsg(
							   "inbox and the names of its columns must not be null")));
	}

	/* what is kept from batch to batch is in SPI's context */
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	batch_context =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks drain",
							  ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		bool from_start = !position.known;
		MemoryContext spi_context = MemoryContextSwitchTo(batch_context);
		char *name = NULL;
		int64 taken;
		int64 bad;

		CHECK_FOR_INTERRUPTS();
		DrainBatch(fcinfo, &position, spi_context, &taken, &bad);
		if (taken > 0)
			name = get_rel_name(PG_GETARG_OID(0));
		drained += taken;
		rejected += bad;
		SPI_commit();
		SPI_start_transaction();
		if (name != NULL)
			ereport(NOTICE,
					(errmsg("rows drained from \"%s\": %lld, rejected: %lld",
							name, (long long) drained, (long long) rejected)));
		MemoryContextSwitchTo(spi_context);
		MemoryContextReset(batch_context);

		/* from the start: others may have given up rows that they had locked */
		if (taken == 0)
		{
			if (from_start)
				break;
			position.known = false;
		}
	}
	SPI_finish();

	MemoryContextSwitchTo(context);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(drained);
	values[1] = Int64GetDatum(rejected);
	return HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls));
}

static void
DrainBatch(FunctionCallInfo fcinfo, Position *position,
		   MemoryContext position_context, int64 *taken, int64 *rejected)
{
	Inbox inbox;
	Rows rows = {.n = 0};
	GigResult *results;
	Position next = {.known = false};

	/* bodies are fetched outside of any statement */
	PushActiveSnapshot(GetTransactionSnapshot());
	LookUpInbox(fcinfo, &inbox);
	if (position->known && position->type != inbox.key.atttypid)
		position->known = false;
	FetchRows(&inbox, PG_GETARG_INT32(1), position, &next, position_context,
			  &rows);

	results = MemoryContextAllocHuge(CurrentMemoryContext,
									 Max(rows.n, 1) * sizeof(GigResult));
	*taken = rows.n;
	*rejected = 0;
	if (rows.n > 0)
	{
		IngestGigInputs(GetGigSchema(fcinfo), rows.inputs, results, rows.n);
		for (int i = 0; i < rows.n; i++)
		{
			LogGigRefusal(&results[i].error);
			if (results[i].outcome == OUTCOME_REJECTED)
				(*rejected)++;
		}
		if (MarkRows(&inbox, &rows, results) != rows.n)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("rows of table \"%s\" could not be marked as drained",
							get_rel_name(inbox.table)),
					 errhint(
						 "A trigger or rule of the table may have kept them from being updated.")));
		if (position->known && !inbox.key.attbyval)
			pfree(DatumGetPointer(position->key));
		*position = next;
	}
	for (int i = 0; i < list_length(rows.fetched); i++)
		SPI_freetuptable((SPITupleTable *) list_nth(rows.fetched, i));
	PopActiveSnapshot();
}

/*
 * Locks the table and looks up what it is now.
 */
static void
LookUpInbox(FunctionCallInfo fcinfo, Inbox *inbox)
{
	char relkind;
	Oid body_type;

	inbox->table = PG_GETARG_OID(0);
	LockRelationOid(inbox->table, AccessShareLock);
	relkind = get_rel_relkind(inbox->table);
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table",
						DatumGetCString(
							DirectFunctionCall1(regclassout,
												ObjectIdGetDatum(inbox->table)))),
				 errdetail("Views have no rows that could be told apart.")));
	inbox->name =
		quote_qualified_identifier(get_namespace_name(
									   get_rel_namespace(inbox->table)),
								   get_rel_name(inbox->table));
	LookUpColumn(inbox, NameStr(*PG_GETARG_NAME(KEY_ARGUMENT)), &inbox->key);
	for (int i = 0; i < INBOX_COLUMNS; i++)
		LookUpColumn(inbox, NameStr(*PG_GETARG_NAME(COLUMN_ARGUMENTS + i)),
					 &inbox->columns[i]);

	body_type = getBaseType(inbox->columns[INBOX_BODY].atttypid);
	inbox->body_is_bytea = body_type == BYTEAOID;
	if (body_type == JSONBOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" for the body has type jsonb",
						NameStr(inbox->columns[INBOX_BODY].attname),
						get_rel_name(inbox->table)),
				 errdetail("It does not keep the bytes that were signed.")));
}

static void
LookUpColumn(const Inbox *inbox, const char *name, Form_pg_attribute column)
{
	HeapTuple tuple = SearchSysCacheAttName(inbox->table, name);

	if (!HeapTupleIsValid(tuple) ||
		((Form_pg_attribute) GETSTRUCT(tuple))->attnum <= 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("column \"%s\" of table \"%s\" does not exist",
							   name, get_rel_name(inbox->table))));
	memcpy(column, GETSTRUCT(tuple), ATTRIBUTE_FIXED_PART_SIZE);
	ReleaseSysCache(tuple);
}

/*
 * Returns what ORDER BY goes by: the operator >= of a type's default class.
 */
static Oid
FindComparison(Oid type)
{
	Oid opclass = GetDefaultOpClass(getBaseType(type), BTREE_AM_OID);
	Oid comparison = InvalidOid;

	if (OidIsValid(opclass))
	{
		Oid input = get_opclass_input_type(opclass);

		comparison = get_opfamily_member(get_opclass_family(opclass), input,
										 input, BTGreaterEqualStrategyNumber);
	}
	if (!OidIsValid(comparison))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify an ordering operator for type %s",
						format_type_be(type))));
	return comparison;
}

/*
 * Locks the next rows and reads them: their latest versions, which somebody may
 * have made meanwhile.  Keys may be null, and the same in several rows, so rows
 * are told apart by where they lie.
 */
static void
FetchRows(const Inbox *inbox, int batch, const Position *from, Position *to,
		  MemoryContext position_context, Rows *rows)
{
	const FormData_pg_attribute *key = &inbox->key;
	const char *key_name = quote_identifier(NameStr(key->attname));
	Oid comparison = FindComparison(key->atttypid);
	HeapTuple operator_tuple =
		SearchSysCache1(OPEROID, ObjectIdGetDatum(comparison));
	Form_pg_operator operator_form;
	StringInfoData query;
	Oid types[2] = {key->atttypid, INT4OID};
	Datum values[2] = {from->key, Int32GetDatum(batch)};
	char nulls[2] = {from->known ? ' ' : 'n', ' '};
	GigWatching watching;
	Portal cursor;
	HeapTuple last = NULL;
	TupleDesc last_tupdesc = NULL;
	bool more = true;

	if (!HeapTupleIsValid(operator_tuple))
		elog(ERROR, "cache lookup failed for operator %u", comparison);
	operator_form = (Form_pg_operator) GETSTRUCT(operator_tuple);
	initStringInfo(&query);
	appendStringInfo(&query,
					 "SELECT i.tableoid, i.ctid, i.%s, i.%s::pg_catalog.%s,",
					 key_name,
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_BODY].attname)),
					 inbox->body_is_bytea ? "bytea" : "text");
	appendStringInfo(&query, " i.%s::pg_catalog.text FROM %s AS i",
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_SIGNATURE].attname)),
					 inbox->name);
	appendStringInfo(&query,
					 " WHERE i.%s IS NULL AND ($1 IS NULL OR i.%s OPERATOR(%s.%s) $1)",
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_OUTCOME].attname)),
					 key_name,
					 quote_identifier(
						 get_namespace_name(operator_form->oprnamespace)),
					 NameStr(operator_form->oprname));
	appendStringInfo(&query, " ORDER BY i.%s LIMIT $2 FOR UPDATE SKIP LOCKED",
					 key_name);
	ReleaseSysCache(operator_tuple);

	BeginWatch(&watching, (GigWatch){query.data, inbox->table, comparison});
	cursor = SPI_cursor_open_with_args(NULL, query.data, 2, types, values,
									   nulls, false, 0);
	EndWatch(&watching);
	while (more)
	{
		SPITupleTable *fetched;

		SPI_cursor_fetch(cursor, true, ROWS_AT_A_TIME);
		fetched = SPI_tuptable;
		rows->fetched = lappend(rows->fetched, fetched);
		more = SPI_processed > 0;
		for (uint64 i = 0; more && i < SPI_processed; i++)
		{
			more = AddInboxRow(inbox, rows, fetched->vals[i], fetched->tupdesc);
			if (more)
			{
				last = fetched->vals[i];
				last_tupdesc = fetched->tupdesc;
			}
		}
	}
	SPI_cursor_close(cursor);

	if (last != NULL)
	{
		bool isnull;
		Datum value = SPI_getbinval(last, last_tupdesc, SELECTED_KEY, &isnull);

		to->known = !isnull;
		to->type = key->atttypid;
		if (!isnull)
		{
			MemoryContext old_context;

			if (key->attlen == -1)
				value = PointerGetDatum(PG_DETOAST_DATUM(value));
			old_context = MemoryContextSwitchTo(position_context);
			to->key = datumCopy(value, key->attbyval, key->attlen);
			MemoryContextSwitchTo(old_context);
		}
	}
}

static void *
Grow(void *array, Size size)
{
	return array != NULL ? repalloc_huge(array, size)
						 : MemoryContextAllocHuge(CurrentMemoryContext, size);
}

/*
 * Takes a row, unless the batch is full.
 */
static bool
AddInboxRow(const Inbox *inbox, Rows *rows, HeapTuple tuple, TupleDesc tupdesc)
{
	GigInput *input;
	bool isnull;
	Datum value = SPI_getbinval(tuple, tupdesc, SELECTED_BODY, &isnull);
	bytea *body = NULL;

	if (!isnull)
	{
		Size size = toast_raw_datum_size(value) - VARHDRSZ;

		if (rows->n > 0 && rows->bytes + size > MAX_BATCH_BYTES)
			return false;
		body = (bytea *) DatumGetPointer(value);
		if (!inbox->body_is_bytea && GetDatabaseEncoding() != PG_UTF8)
			body = TextToBody(DatumGetTextPP(value));
		rows->bytes += size;
	}

	if (rows->n == rows->capacity)
	{
		Size capacity = Max(ROWS_AT_A_TIME, 2 * (Size) rows->capacity);

		rows->tables = Grow(rows->tables, capacity * sizeof(Datum));
		rows->places = Grow(rows->places, capacity * sizeof(Datum));
		rows->inputs = Grow(rows->inputs, capacity * sizeof(GigInput));
		rows->capacity = (int) capacity;
	}
	rows->tables[rows->n] =
		SPI_getbinval(tuple, tupdesc, SELECTED_TABLE, &isnull);
	rows->places[rows->n] =
		SPI_getbinval(tuple, tupdesc, SELECTED_PLACE, &isnull);
	input = &rows->inputs[rows->n++];
	memset(input, 0, sizeof(GigInput));
	input->body = body;
	value = SPI_getbinval(tuple, tupdesc, SELECTED_SIGNATURE, &isnull);
	if (!isnull)
		SetGigSignature(input, value);
	return true;
}

/*
 * Notes in the rows what became of them; returns how many show it now.
 */
static int64
MarkRows(const Inbox *inbox, const Rows *rows, const GigResult *results)
{
	const FormData_pg_attribute *outcome = &inbox->columns[INBOX_OUTCOME];
	const FormData_pg_attribute *error = &inbox->columns[INBOX_ERROR];
	Size size = rows->n * sizeof(Datum);
	Datum *outcomes = MemoryContextAllocHuge(CurrentMemoryContext, size);
	Datum *errors = MemoryContextAllocHuge(CurrentMemoryContext, size);
	bool *no_error =
		MemoryContextAllocHuge(CurrentMemoryContext, rows->n * sizeof(bool));
	Oid types[4] = {OIDARRAYOID, get_array_type(TIDOID),
					get_array_type(outcome->atttypid),
					get_array_type(error->atttypid)};
	Datum values[4];
	StringInfoData query;
	GigWatching watching;
	int64 marked = 0;
	int result;

	for (int i = 0; i < rows->n; i++)
	{
		bool rejected = results[i].outcome == OUTCOME_REJECTED;

		CHECK_FOR_INTERRUPTS();
		outcomes[i] =
			OutputDatum((Form_pg_attribute) outcome,
						pstrdup(gig_outcome_names[results[i].outcome]));
		no_error[i] = !rejected;
		errors[i] = ErrorDatum((Form_pg_attribute) error,
							   rejected ? &results[i].error : NULL);
	}
	values[0] = ColumnArray(OIDOID, rows->tables, NULL, rows->n);
	values[1] = ColumnArray(TIDOID, rows->places, NULL, rows->n);
	values[2] = ColumnArray(outcome->atttypid, outcomes, NULL, rows->n);
	values[3] = ColumnArray(error->atttypid, errors, no_error, rows->n);

	/*
	 * How many rows there are is hidden from the planner: it would read the
	 * table to find them, and not where they lie.
	 */
	initStringInfo(&query);
	appendStringInfo(&query, "UPDATE %s AS i SET %s = m.outcome", inbox->name,
					 quote_identifier(NameStr(outcome->attname)));
	appendStringInfo(&query,
					 ", %s = m.error FROM ROWS FROM ("
					 "pg_catalog.unnest((SELECT $1)), pg_catalog.unnest((SELECT $2)), "
					 "pg_catalog.unnest((SELECT $3)), pg_catalog.unnest((SELECT $4))"
					 ") AS m (in_table, at, outcome, error)"
					 " WHERE i.tableoid OPERATOR(pg_catalog.=) m.in_table"
					 " AND i.ctid OPERATOR(pg_catalog.=) m.at",
					 quote_identifier(NameStr(error->attname)));
	appendStringInfo(&query, " RETURNING i.%s IS NOT NULL",
					 quote_identifier(NameStr(outcome->attname)));

	BeginWatch(&watching, (GigWatch){query.data, inbox->table, InvalidOid});
	result = SPI_execute_with_args(query.data, 4, types, values, NULL, false, 0);
	EndWatch(&watching);
	if (result != SPI_OK_UPDATE_RETURNING)
		return 0; /* a rule has replaced it */
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;

		if (DatumGetBool(SPI_getbinval(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, 1, &isnull)))
			marked++;
	}
	SPI_freetuptable(SPI_tuptable);
	return marked;
}

static Datum
ColumnArray(Oid type, Datum *values, bool *nulls, int n)
{
	int lower_bound = 1;
	int16 typlen;
	bool typbyval;
	char typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &n, &lower_bound,
											  type, typlen, typbyval, typalign));
}
