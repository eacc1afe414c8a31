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

#include "access/detoast.h"
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

static const struct
{
	const char *default_name;
	bool is_input;
} inbox_columns[INBOX_COLUMNS] = {
	[INBOX_BODY] = {"body", true},
	[INBOX_SIGNATURE] = {"signature", true},
	[INBOX_OUTCOME] = {"outcome", false},
	[INBOX_ERROR] = {"error", false},
};

static void CheckTriggerCall(FunctionCallInfo fcinfo);
static void FindColumns(const TriggerData *trigger, const GigSchema *schema,
						AttrNumber *attnums);
static void CheckColumn(const TriggerData *trigger, const GigSchema *schema,
						InboxColumn column, Form_pg_attribute attribute);
static bool ColumnTypeFits(const GigSchema *schema, InboxColumn column,
						   Form_pg_attribute attribute);
static void ReadInput(const TriggerData *trigger, const AttrNumber *attnums,
					  GigInput *input);
static HeapTuple SetOutcome(const TriggerData *trigger,
							const AttrNumber *attnums, const GigResult *result);
static char *FormatError(Form_pg_attribute attribute, const GigError *error);
static HeapTuple SetColumn(HeapTuple row, TupleDesc tupdesc, int column,
						   char *string);

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
	const char *expected;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"gig_inbox_ingest")));

	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		expected = "FOR EACH ROW";
	else if (!TRIGGER_FIRED_BEFORE(trigger->tg_event))
		expected = "BEFORE";
	else if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		expected = "by INSERT only";
	else
		return;
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" on table \"%s\" must be fired %s",
					trigger->tg_trigger->tgname,
					RelationGetRelationName(trigger->tg_relation), expected),
			 errhint("Create it BEFORE INSERT ON the table FOR EACH ROW.")));
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
						INBOX_COLUMNS),
				 errhint(
					 "The arguments name the columns of body, signature, outcome and error.")));

	for (int column = 0; column < INBOX_COLUMNS; column++)
	{
		bool named = column < definition->tgnargs;
		const char *role = inbox_columns[column].default_name;
		const char *name = named ? definition->tgargs[column] : role;
		int attnum = SPI_fnumber(tupdesc, name);

		attnums[column] = InvalidAttrNumber;
		if (attnum > 0)
		{
			for (int other = 0; other < column; other++)
			{
				if (attnums[other] == attnum)
					ereport(ERROR,
							(errcode(ERRCODE_DUPLICATE_COLUMN),
							 errmsg("trigger \"%s\" on table \"%s\": column \"%s\" is named twice",
									definition->tgname, table, name)));
			}
			attnums[column] = (AttrNumber) attnum;
			CheckColumn(trigger, schema, (InboxColumn) column,
						TupleDescAttr(tupdesc, attnum - 1));
		}
		else if (named || inbox_columns[column].is_input)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("trigger \"%s\" on table \"%s\": column \"%s\" for the %s does not exist",
							definition->tgname, table, name, role),
					 errhint(
						 "The arguments name the columns of body, signature, outcome and error.")));
	}
}

static void
CheckColumn(const TriggerData *trigger, const GigSchema *schema,
			InboxColumn column, Form_pg_attribute attribute)
{
	if (!ColumnTypeFits(schema, column, attribute))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("trigger \"%s\" on table \"%s\": column \"%s\" for the %s has type %s",
						trigger->tg_trigger->tgname,
						RelationGetRelationName(trigger->tg_relation),
						NameStr(attribute->attname),
						inbox_columns[column].default_name,
						format_type_be(attribute->atttypid)),
				 errdetail(
					 "A body is bytea or text, a signature and an error are text, an outcome is text or gig_ingest_outcome.")));
	if (attribute->attgenerated != '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("trigger \"%s\" on table \"%s\": column \"%s\" for the %s is generated",
						trigger->tg_trigger->tgname,
						RelationGetRelationName(trigger->tg_relation),
						NameStr(attribute->attname),
						inbox_columns[column].default_name),
				 errdetail(
					 "Generated columns are computed after BEFORE triggers.")));
}

/*
 * A body must keep every byte, which char(n) and jsonb do not.
 */
static bool
ColumnTypeFits(const GigSchema *schema, InboxColumn column,
			   Form_pg_attribute attribute)
{
	Oid type = getBaseType(attribute->atttypid);

	if (type == TEXTOID || type == VARCHAROID)
		return true;
	switch (column)
	{
		case INBOX_BODY:
			return type == BYTEAOID;
		case INBOX_OUTCOME:
			return type == schema->outcome_type;
		case INBOX_SIGNATURE:
		case INBOX_ERROR:
			return type == BPCHAROID;
	}
	return false;
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
	{
		Oid type =
			TupleDescAttr(tupdesc, attnums[INBOX_SIGNATURE] - 1)->atttypid;

		/* remove the padding of char(n) */
		if (getBaseType(type) == BPCHAROID &&
			toast_raw_datum_size(value) - VARHDRSZ <= MAX_SIGNATURE_LEN)
			value = DirectFunctionCall1(rtrim1, value);
		SetGigSignature(input, value);
	}
}

/*
 * Returns the row with the outcome and the reason for it.
 */
static HeapTuple
SetOutcome(const TriggerData *trigger, const AttrNumber *attnums,
		   const GigResult *result)
{
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	AttrNumber error_column = attnums[INBOX_ERROR];
	HeapTuple row =
		SetColumn(trigger->tg_trigtuple, tupdesc, attnums[INBOX_OUTCOME],
				  pstrdup(gig_outcome_names[result->outcome]));

	LogRejection(&result->error);
	if (error_column != InvalidAttrNumber)
		row = SetColumn(row, tupdesc, error_column,
						FormatError(TupleDescAttr(tupdesc, error_column - 1),
									&result->error));
	return row;
}

/*
 * Returns the reason for an outcome, or NULL.  A reason that is too long for
 * the column is truncated, so that the row is kept.
 */
static char *
FormatError(Form_pg_attribute attribute, const GigError *error)
{
	int32 typmod = attribute->atttypmod;
	Oid base = getBaseTypeAndTypmod(attribute->atttypid, &typmod);
	char *reason;

	if (error->sqlerrcode == 0)
		return NULL;
	reason =
		psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
	if ((base == VARCHAROID || base == BPCHAROID) && typmod >= (int32) VARHDRSZ)
		reason[pg_mbcharcliplen(reason, (int) strlen(reason), typmod - VARHDRSZ)] =
			'\0';
	return reason;
}

/*
 * Sets a column by its input function, so that a domain can refuse the value,
 * even NULL.
 */
static HeapTuple
SetColumn(HeapTuple row, TupleDesc tupdesc, int column, char *string)
{
	Form_pg_attribute attribute = TupleDescAttr(tupdesc, column - 1);
	bool isnull = string == NULL;
	Oid input;
	Oid ioparam;
	Datum value;

	getTypeInputInfo(attribute->atttypid, &input, &ioparam);
	value = OidInputFunctionCall(input, string, ioparam, attribute->atttypmod);
	return heap_modify_tuple_by_cols(row, tupdesc, 1, &column, &value, &isnull);
}
