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
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "rewrite/prs2lock.h"
#include "rewrite/rewriteDefine.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "encoding.h"
#include "inbox.h"
#include "ingest.h"
#include "plan.h"
#include "settings.h"

/* So much of bodies is taken in at once, or of reasons marked, but at least one. */
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
	Oid key_type; /* which the key's own may be a domain over */
	FormData_pg_attribute columns[INBOX_COLUMNS];
	bool body_is_bytea;
} Inbox;

/* From where a batch goes on. */
typedef struct Position
{
	bool known; /* else from the start, as after a key that is null */
	Oid type;	/* of the key */
	bool byval;
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
	Size bytes; /* of the bodies */
} Rows;

static void DrainBatch(FunctionCallInfo fcinfo, Position *position,
					   int64 *taken, int64 *rejected);
static void ForgetPosition(Position *position);
static void LookUpInbox(FunctionCallInfo fcinfo, const GigSchema *schema,
						Inbox *inbox);
static void CheckInbox(Relation relation);
static bool IsInForce(const RewriteRule *rule);
static bool ColumnFits(const GigSchema *schema, InboxColumn column,
					   Form_pg_attribute attribute);
static void LookUpColumn(Relation relation, const char *name,
						 Form_pg_attribute column);
static void CheckNamedOnce(const Inbox *inbox);
static Oid FindComparison(Oid type);
static Portal SelectRows(const Inbox *inbox, int batch, const Position *from);
static void AppendKeyCondition(StringInfo query, const Inbox *inbox,
							   Oid comparison);
static void FetchRows(const Inbox *inbox, int batch, const Position *from,
					  Position *to, MemoryContext position_context, Rows *rows);
static void TakePosition(const Inbox *inbox, HeapTuple tuple, TupleDesc tupdesc,
						 Position *position, MemoryContext position_context);
static void CheckPlaces(const Rows *rows);
static void *Grow(void *array, Size size);
static bool AddInboxRow(const Inbox *inbox, Rows *rows, HeapTuple tuple,
						TupleDesc tupdesc);
static int64 MarkRows(const Inbox *inbox, const Rows *rows,
					  const GigResult *results);
static int SetMarks(const Inbox *inbox, const Rows *rows,
					const GigResult *results, int first, Arguments *arguments);
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
	MemoryContext commit_context;
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
	commit_context =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks commit",
							  ALLOCSET_SMALL_SIZES);
	for (bool first = true;; first = false)
	{
		bool from_start = !position.known;
		bool may_see_less = first && IsolationUsesXactSnapshot();
		MemoryContext kept_context = CurrentMemoryContext;
		char *name;
		int64 taken;
		int64 bad;

		CHECK_FOR_INTERRUPTS();
		DrainBatch(fcinfo, &position, &taken, &bad);
		/* a commit leaves a little behind, too */
		MemoryContextSwitchTo(commit_context);
		name = taken > 0 ? get_rel_name(PG_GETARG_OID(0)) : NULL;
		drained += taken;
		rejected += bad;
		SPI_commit();
		SPI_start_transaction();
		if (name != NULL)
			ereport(NOTICE,
					(errmsg("rows drained from \"%s\": %lld, rejected: %lld",
							name, (long long) drained, (long long) rejected)));
		MemoryContextSwitchTo(kept_context);
		MemoryContextReset(commit_context);

		/* from the start: others may have given up rows that they had locked */
		if (taken == 0)
		{
			if (from_start && !may_see_less)
				break;
			ForgetPosition(&position);
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

/*
 * Takes in a batch.  All that it allocates goes with a connection to SPI of its
 * own; the position is kept in the caller's context.
 */
static void
DrainBatch(FunctionCallInfo fcinfo, Position *position, int64 *taken,
		   int64 *rejected)
{
	MemoryContext position_context = CurrentMemoryContext;
	const GigSchema *schema = GetGigSchema(fcinfo);
	Inbox inbox;
	Rows rows = {.n = 0};
	GigResult *results;
	Position next = {.known = false};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	/* a snapshot from before the lock might show a table that was rewritten */
	LookUpInbox(fcinfo, schema, &inbox);
	/* bodies are fetched outside of any statement */
	PushActiveSnapshot(GetTransactionSnapshot());
	if (position->type != inbox.key_type)
		ForgetPosition(position);
	FetchRows(&inbox, PG_GETARG_INT32(1), position, &next, position_context,
			  &rows);
	CheckPlaces(&rows);

	results = MemoryContextAllocHuge(CurrentMemoryContext,
									 Max(rows.n, 1) * sizeof(GigResult));
	*taken = rows.n;
	*rejected = 0;
	if (rows.n > 0)
	{
		IngestGigInputs(schema, rows.inputs, results, rows.n);
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
		ForgetPosition(position);
		*position = next;
	}
	PopActiveSnapshot();
	SPI_finish();
}

static void
ForgetPosition(Position *position)
{
	if (position->known && !position->byval)
		pfree(DatumGetPointer(position->key));
	position->known = false;
}

/*
 * Locks the table and looks up what it is now.
 */
static void
LookUpInbox(FunctionCallInfo fcinfo, const GigSchema *schema, Inbox *inbox)
{
	Relation relation;

	inbox->table = PG_GETARG_OID(0);
	relation = try_relation_open(inbox->table, AccessShareLock);
	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", inbox->table)));
	CheckInbox(relation);
	inbox->name = quote_qualified_identifier(get_namespace_name(
												 RelationGetNamespace(relation)),
											 RelationGetRelationName(relation));
	LookUpColumn(relation, NameStr(*PG_GETARG_NAME(KEY_ARGUMENT)), &inbox->key);
	inbox->key_type = getBaseType(inbox->key.atttypid);
	for (int i = 0; i < INBOX_COLUMNS; i++)
	{
		Form_pg_attribute column = &inbox->columns[i];

		LookUpColumn(relation, NameStr(*PG_GETARG_NAME(COLUMN_ARGUMENTS + i)),
					 column);
		if (!ColumnFits(schema, (InboxColumn) i, column))
			ThrowInboxColumn(psprintf("table \"%s\"",
									  RelationGetRelationName(relation)),
							 (InboxColumn) i, column);
	}
	CheckNamedOnce(inbox);
	inbox->body_is_bytea =
		getBaseType(inbox->columns[INBOX_BODY].atttypid) == BYTEAOID;
	relation_close(relation, NoLock);
}

/*
 * Tells whether a column's type does: the trigger's, and what else keeps a body
 * as it came and can say what became of it.
 */
static bool
ColumnFits(const GigSchema *schema, InboxColumn column,
		   Form_pg_attribute attribute)
{
	Oid type = getBaseType(attribute->atttypid);

	if (column == INBOX_BODY && type == JSONOID)
		return true;
	if (column == INBOX_OUTCOME && (type == BPCHAROID || type_is_enum(type)))
		return true;
	return InboxColumnFits(schema, column, attribute);
}

/*
 * Checks that it is a table whose rows can be marked where they are found.
 */
static void
CheckInbox(Relation relation)
{
	char relkind = relation->rd_rel->relkind;

	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table",
						RelationGetRelationName(relation)),
				 errdetail("Views have no rows that could be told apart.")));
	for (int i = 0; relation->rd_rules && i < relation->rd_rules->numLocks; i++)
	{
		const RewriteRule *rule = relation->rd_rules->rules[i];

		if (rule->event == CMD_UPDATE && rule->isInstead && IsInForce(rule))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("table \"%s\" has a rule that replaces updates",
							RelationGetRelationName(relation)),
					 errdetail("Its rows could not be marked as drained.")));
	}
}

static bool
IsInForce(const RewriteRule *rule)
{
	char elsewhere = SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA
						 ? RULE_FIRES_ON_ORIGIN
						 : RULE_FIRES_ON_REPLICA;

	return rule->enabled != RULE_DISABLED && rule->enabled != elsewhere;
}

static void
LookUpColumn(Relation relation, const char *name, Form_pg_attribute column)
{
	HeapTuple tuple = SearchSysCacheAttName(RelationGetRelid(relation), name);

	if (!HeapTupleIsValid(tuple) ||
		((Form_pg_attribute) GETSTRUCT(tuple))->attnum <= 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
						errmsg("column \"%s\" of table \"%s\" does not exist",
							   name, RelationGetRelationName(relation))));
	memcpy(column, GETSTRUCT(tuple), ATTRIBUTE_FIXED_PART_SIZE);
	ReleaseSysCache(tuple);
}

/*
 * Nothing that is read may be written over.
 */
static void
CheckNamedOnce(const Inbox *inbox)
{
	for (int i = INBOX_SIGNATURE; i < INBOX_COLUMNS; i++)
	{
		const FormData_pg_attribute *column = &inbox->columns[i];
		bool twice = i >= INBOX_OUTCOME && column->attnum == inbox->key.attnum;

		for (int j = 0; j < i; j++)
			twice = twice || column->attnum == inbox->columns[j].attnum;
		if (twice)
			ereport(ERROR, (errcode(ERRCODE_DUPLICATE_COLUMN),
							errmsg("table \"%s\": column \"%s\" is named twice",
								   get_rel_name(inbox->table),
								   NameStr(column->attname))));
	}
}

/*
 * Returns what ORDER BY goes by: the operator >= of a type's default class.
 */
static Oid
FindComparison(Oid type)
{
	Oid opclass = GetDefaultOpClass(type, BTREE_AM_OID);
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
 * Opens a cursor over the next rows, which it locks.  Keys may be null, and the
 * same in several rows, so rows are told apart by where they lie.
 */
static Portal
SelectRows(const Inbox *inbox, int batch, const Position *from)
{
	const char *key_name = quote_identifier(NameStr(inbox->key.attname));
	GigWatch watch = {.table = inbox->table,
					  .comparison = FindComparison(inbox->key_type)};
	Arguments arguments = {.n = 0};
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "SELECT i.tableoid, i.ctid, i.%s, i.%s,", key_name,
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_BODY].attname)));
	appendStringInfo(&query, " i.%s FROM %s AS i",
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_SIGNATURE].attname)),
					 inbox->name);
	appendStringInfo(&query, " WHERE i.%s IS NULL",
					 quote_identifier(
						 NameStr(inbox->columns[INBOX_OUTCOME].attname)));
	AddTypedArgument(&arguments, INT4OID, Int32GetDatum(batch), false);
	if (from->known)
	{
		AppendKeyCondition(&query, inbox, watch.comparison);
		AddTypedArgument(&arguments, inbox->key_type, from->key, false);
	}
	appendStringInfo(&query,
					 " ORDER BY i.%s LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED",
					 key_name);
	watch.text = query.data;
	return OpenWatched(watch, &arguments);
}

/*
 * Writes that a key is not before $2, in the order of the column.  Of a domain
 * an operator of its own, or none, might be found, and of two collations none
 * would be right.
 */
static void
AppendKeyCondition(StringInfo query, const Inbox *inbox, Oid comparison)
{
	const FormData_pg_attribute *key = &inbox->key;
	HeapTuple tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(comparison));
	Form_pg_operator operator_form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", comparison);
	operator_form = (Form_pg_operator) GETSTRUCT(tuple);
	appendStringInfo(query, " AND i.%s",
					 quote_identifier(NameStr(key->attname)));
	if (key->atttypid != inbox->key_type)
		appendStringInfo(query, "::%s",
						 format_type_be_qualified(inbox->key_type));
	appendStringInfo(query, " OPERATOR(%s.%s) $2",
					 quote_identifier(
						 get_namespace_name(operator_form->oprnamespace)),
					 NameStr(operator_form->oprname));
	ReleaseSysCache(tuple);

	if (OidIsValid(key->attcollation))
	{
		Form_pg_collation collation;

		tuple = SearchSysCache1(COLLOID, ObjectIdGetDatum(key->attcollation));
		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for collation %u",
				 key->attcollation);
		collation = (Form_pg_collation) GETSTRUCT(tuple);
		appendStringInfo(query, " COLLATE %s",
						 quote_qualified_identifier(get_namespace_name(
														collation->collnamespace),
													NameStr(
														collation->collname)));
		ReleaseSysCache(tuple);
	}
}

/*
 * Locks the next rows and reads them: their latest versions, which somebody may
 * have made meanwhile.
 */
static void
FetchRows(const Inbox *inbox, int batch, const Position *from, Position *to,
		  MemoryContext position_context, Rows *rows)
{
	Portal cursor = SelectRows(inbox, batch, from);
	HeapTuple last = NULL;
	TupleDesc last_tupdesc = NULL;
	bool more = true;

	while (more)
	{
		SPITupleTable *fetched;

		/* what is fetched stays: the inputs point into it */
		SPI_cursor_fetch(cursor, true, ROWS_AT_A_TIME);
		fetched = SPI_tuptable;
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
	CloseWatched(cursor);
	if (last != NULL)
		TakePosition(inbox, last, last_tupdesc, to, position_context);
}

static void
TakePosition(const Inbox *inbox, HeapTuple tuple, TupleDesc tupdesc,
			 Position *position, MemoryContext position_context)
{
	const FormData_pg_attribute *key = &inbox->key;
	bool isnull;
	Datum value = SPI_getbinval(tuple, tupdesc, SELECTED_KEY, &isnull);
	MemoryContext old_context;

	position->known = !isnull;
	position->type = inbox->key_type;
	position->byval = key->attbyval;
	if (isnull)
		return;
	if (key->attlen == -1)
		value = PointerGetDatum(PG_DETOAST_DATUM(value));
	old_context = MemoryContextSwitchTo(position_context);
	position->key = datumCopy(value, key->attbyval, key->attlen);
	MemoryContextSwitchTo(old_context);
}

/*
 * Checks that no row is in a partition that is a foreign table.
 */
static void
CheckPlaces(const Rows *rows)
{
	for (int i = 0; i < rows->n; i++)
	{
		Oid table = DatumGetObjectId(rows->tables[i]);

		if (i > 0 && table == DatumGetObjectId(rows->tables[i - 1]))
			continue;
		if (get_rel_relkind(table) == RELKIND_FOREIGN_TABLE)
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is a foreign table", get_rel_name(table)),
					 errdetail(
						 "Its rows would be marked even if the events failed to be committed.")));
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
		if (!inbox->body_is_bytea)
			body = TextToBody((text *) body);
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
		SetInboxSignature(input, &inbox->columns[INBOX_SIGNATURE], value);
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
	Arguments arguments = {.types = {OIDARRAYOID, get_array_type(TIDOID),
									 get_array_type(outcome->atttypid),
									 get_array_type(error->atttypid)}};
	GigWatch watch = {.table = inbox->table};
	MemoryContext marks_context =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks marks",
							  ALLOCSET_DEFAULT_SIZES);
	StringInfoData query;
	SPIPlanPtr plan;
	int64 marked = 0;
	int n;

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
	watch.text = query.data;
	plan = PrepareWatched(watch, 4, arguments.types, 0);

	for (int first = 0; first < rows->n; first += n)
	{
		MemoryContext old_context = MemoryContextSwitchTo(marks_context);

		CHECK_FOR_INTERRUPTS();
		n = SetMarks(inbox, rows, results, first, &arguments);
		MemoryContextSwitchTo(old_context);
		ExecuteWatched(watch, plan, &arguments, false, SPI_OK_UPDATE_RETURNING);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool isnull;

			if (DatumGetBool(GetResult(SPI_tuptable->vals[i],
									   SPI_tuptable->tupdesc, 1, BOOLOID,
									   &isnull)))
				marked++;
		}
		SPI_freetuptable(SPI_tuptable);
		MemoryContextReset(marks_context);
	}
	return marked;
}

/*
 * Makes the arguments for rows from the first that is not marked yet; returns
 * for how many: all that are left, unless what is to be noted of them is more
 * than fits into a value.
 */
static int
SetMarks(const Inbox *inbox, const Rows *rows, const GigResult *results,
		 int first, Arguments *arguments)
{
	const FormData_pg_attribute *outcome = &inbox->columns[INBOX_OUTCOME];
	const FormData_pg_attribute *error = &inbox->columns[INBOX_ERROR];
	Size left = rows->n - first;
	Datum *outcomes =
		MemoryContextAllocHuge(CurrentMemoryContext, left * sizeof(Datum));
	Datum *errors =
		MemoryContextAllocHuge(CurrentMemoryContext, left * sizeof(Datum));
	bool *no_error =
		MemoryContextAllocHuge(CurrentMemoryContext, left * sizeof(bool));
	Size bytes = 0;
	int n = 0;

	while (n < (int) left && bytes < MAX_BATCH_BYTES)
	{
		const GigResult *result = &results[first + n];
		bool rejected = result->outcome == OUTCOME_REJECTED;

		CHECK_FOR_INTERRUPTS();
		outcomes[n] = OutputDatum((Form_pg_attribute) outcome,
								  pstrdup(gig_outcome_names[result->outcome]));
		no_error[n] = !rejected;
		errors[n] = ErrorDatum((Form_pg_attribute) error,
							   rejected ? &result->error : NULL);
		bytes += datumGetSize(outcomes[n], outcome->attbyval, outcome->attlen);
		if (rejected)
			bytes += datumGetSize(errors[n], error->attbyval, error->attlen);
		n++;
	}
	arguments->n = 0;
	AddArgument(arguments, ColumnArray(OIDOID, rows->tables + first, NULL, n),
				false);
	AddArgument(arguments, ColumnArray(TIDOID, rows->places + first, NULL, n),
				false);
	AddArgument(arguments, ColumnArray(outcome->atttypid, outcomes, NULL, n),
				false);
	AddArgument(arguments, ColumnArray(error->atttypid, errors, no_error, n),
				false);
	return n;
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
