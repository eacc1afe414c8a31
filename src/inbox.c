/*-------------------------------------------------------------------------
 *
 * inbox.c
 *	  The trigger that ingests rows inserted into raw inbox tables.
 *
 * The trigger runs as the user who inserts, and so do input functions and
 * domains of the inbox's columns, which any role may have written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "ingest.h"

/* The columns, in the order of the trigger's arguments. */
typedef enum InboxColumn
{
	INBOX_BODY,
	INBOX_SIGNATURE,
	INBOX_OUTCOME,
	INBOX_ERROR
} InboxColumn;

#define INBOX_COLUMNS (INBOX_ERROR + 1)

static const char *const default_names[INBOX_COLUMNS] = {
	[INBOX_BODY] = "body",
	[INBOX_SIGNATURE] = "signature",
	[INBOX_OUTCOME] = "outcome",
	[INBOX_ERROR] = "error",
};

static void CheckTriggerCall(FunctionCallInfo fcinfo);
static void FindColumns(const TriggerData *trigger, const GigSchema *schema,
						AttrNumber *attnums);
static const char *FindProblem(const GigSchema *schema, TupleDesc tupdesc,
							   const AttrNumber *attnums, InboxColumn column);
static void ReadInput(const TriggerData *trigger, const AttrNumber *attnums,
					  GigInput *input);
static HeapTuple SetOutcome(const TriggerData *trigger,
							const AttrNumber *attnums, const GigResult *result);
static char *FormatError(Form_pg_attribute attribute, const GigError *error);
static Datum InputValue(Form_pg_attribute attribute, char *string);

/*
 * gig_inbox_ingest(['body' [, 'signature' [, 'outcome' [, 'error']]]])
 *		returns trigger
 *
 * For BEFORE INSERT FOR EACH ROW.  Ingests the row and sets its outcome.  A
 * rejected row is kept, with the reason in the error column.  If the table has
 * no outcome column, the error is raised instead.
 */
PG_FUNCTION_INFO_V1(gig_inbox_ingest);
Datum
gig_inbox_ingest(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const GigSchema *schema;
	AttrNumber attnums[INBOX_COLUMNS];
	GigInput input;
	GigResult result;

	CheckTriggerCall(fcinfo);
	schema = GetGigSchema(fcinfo);
	FindColumns(trigger, schema, attnums);
	ReadInput(trigger, attnums, &input);
	IngestWebhooks(schema, &input, &result, 1);
	if (attnums[INBOX_OUTCOME] != InvalidAttrNumber)
		return PointerGetDatum(SetOutcome(trigger, attnums, &result));
	if (result.outcome == OUTCOME_REJECTED)
		ThrowGigError(&result.error);
	return PointerGetDatum(trigger->tg_trigtuple);
}

static void
CheckTriggerCall(FunctionCallInfo fcinfo)
{
	const TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"gig_inbox_ingest")));
	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on table \"%s\" must be fired BEFORE INSERT FOR EACH ROW only",
						trigger->tg_trigger->tgname,
						RelationGetRelationName(trigger->tg_relation))));
}

/*
 * Finds the columns that the trigger's arguments name.  Those for the outcome
 * may be missing where their names are the default ones.
 */
static void
FindColumns(const TriggerData *trigger, const GigSchema *schema,
			AttrNumber *attnums)
{
	const Trigger *definition = trigger->tg_trigger;
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	const char *table = RelationGetRelationName(trigger->tg_relation);

	if (definition->tgnargs > INBOX_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("trigger \"%s\" on table \"%s\" has %d arguments, at most %d are used",
						definition->tgname, table, definition->tgnargs,
						INBOX_COLUMNS)));

	for (int i = 0; i < INBOX_COLUMNS; i++)
	{
		bool named = i < definition->tgnargs;
		const char *name = named ? definition->tgargs[i] : default_names[i];
		int attnum = SPI_fnumber(tupdesc, name);
		const char *problem;

		attnums[i] = (AttrNumber) Max(attnum, InvalidAttrNumber);
		if (attnums[i] == InvalidAttrNumber && !named && i > INBOX_SIGNATURE)
			continue;
		problem = FindProblem(schema, tupdesc, attnums, (InboxColumn) i);
		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("trigger \"%s\" on table \"%s\": column \"%s\" for the %s %s",
							definition->tgname, table, name, default_names[i],
							problem),
					 errhint(
						 "The arguments name the columns of body (bytea or text), signature (text), outcome (text or gig_ingest_outcome) and error (text).")));
	}
}

/*
 * Returns what is wrong with a column, or NULL; checks it against those before.
 *
 * A body must keep every byte, which char(n) and jsonb do not.  Generated columns
 * are computed after BEFORE triggers.
 */
static const char *
FindProblem(const GigSchema *schema, TupleDesc tupdesc,
			const AttrNumber *attnums, InboxColumn column)
{
	Form_pg_attribute attribute;
	Oid type;

	if (attnums[column] == InvalidAttrNumber)
		return "does not exist";
	for (int i = 0; i < (int) column; i++)
	{
		if (attnums[i] == attnums[column])
			return "is named twice";
	}
	attribute = TupleDescAttr(tupdesc, attnums[column] - 1);
	type = getBaseType(attribute->atttypid);
	if (type != TEXTOID && type != VARCHAROID &&
		!(column == INBOX_BODY && type == BYTEAOID) &&
		!(column == INBOX_OUTCOME && type == schema->outcome.type))
		return psprintf("has type %s", format_type_be(attribute->atttypid));
	return attribute->attgenerated != '\0' ? "is generated" : NULL;
}

static void
ReadInput(const TriggerData *trigger, const AttrNumber *attnums, GigInput *input)
{
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	HeapTuple row = trigger->tg_trigtuple;
	bool isnull;
	Datum value;

	*input = (GigInput){.received_at = DT_NOBEGIN};
	/* text is UTF-8 */
	value = heap_getattr(row, attnums[INBOX_BODY], tupdesc, &isnull);
	if (!isnull)
		input->body = (bytea *) DatumGetPointer(value);
	value = heap_getattr(row, attnums[INBOX_SIGNATURE], tupdesc, &isnull);
	if (!isnull)
		SetGigSignature(input, value);
}

/*
 * Returns the row with the outcome and the reason for it.
 */
static HeapTuple
SetOutcome(const TriggerData *trigger, const AttrNumber *attnums,
		   const GigResult *result)
{
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	int columns[] = {attnums[INBOX_OUTCOME], attnums[INBOX_ERROR]};
	Datum values[2];
	bool nulls[2] = {false};
	int ncolumns = 1;

	LogRejection(&result->error);
	values[0] = InputValue(TupleDescAttr(tupdesc, columns[0] - 1),
						   pstrdup(gig_outcome_names[result->outcome]));
	if (columns[1] != InvalidAttrNumber)
	{
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, columns[1] - 1);
		char *reason = FormatError(attribute, &result->error);

		values[1] = InputValue(attribute, reason);
		nulls[1] = reason == NULL;
		ncolumns = 2;
	}
	return heap_modify_tuple_by_cols(trigger->tg_trigtuple, tupdesc, ncolumns,
									 columns, values, nulls);
}

/*
 * Returns the reason for an outcome, or NULL.  A reason that is too long for
 * varchar(n) is truncated, so that the row is kept.
 */
static char *
FormatError(Form_pg_attribute attribute, const GigError *error)
{
	int32 typmod = attribute->atttypmod;
	char *reason;

	if (error->sqlerrcode == 0)
		return NULL;
	reason =
		psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
	(void) getBaseTypeAndTypmod(attribute->atttypid, &typmod);
	if (typmod >= (int32) VARHDRSZ)
		reason[pg_mbcharcliplen(reason, (int) strlen(reason), typmod - VARHDRSZ)] =
			'\0';
	return reason;
}

/*
 * Calls a column's input function, so that a domain can refuse the value, even
 * NULL.
 */
static Datum
InputValue(Form_pg_attribute attribute, char *string)
{
	Oid function;
	Oid ioparam;

	getTypeInputInfo(attribute->atttypid, &function, &ioparam);
	return OidInputFunctionCall(function, string, ioparam, attribute->atttypmod);
}
