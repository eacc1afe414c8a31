/*-------------------------------------------------------------------------
 *
 * inbox.c
 *	  The trigger door: raw inbox tables, whatever their columns.
 *
 * The trigger runs as the user who inserts.  Only the pipeline behind it works
 * in the owner's name; the checks of a column's domain, which anyone can have
 * written, never do.
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

#include "encoding.h"
#include "inbox.h"
#include "ingest.h"

/* The largest signature in a char(n), with its header. */
#define MAX_PADDED_SIGNATURE ((int32) VARHDRSZ + 1000)

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
static void ReadInput(const TriggerData *trigger, const AttrNumber *attnums,
					  GigInput *input);

/*
 * gig_inbox_ingest(['body' [, 'signature' [, 'outcome' [, 'error']]]])
 *		returns trigger
 *
 * For BEFORE INSERT FOR EACH ROW.  Ingests the row and notes in it what became
 * of it.  A bad row is kept, marked rejected with its reason; where the table
 * has no outcome column it is refused with the error instead.
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
	TupleDesc tupdesc;
	int replaced[2];
	Datum values[2];
	bool nulls[2];
	int nreplaced = 0;

	CheckTriggerCall(fcinfo);
	schema = GetGigSchema(fcinfo);
	tupdesc = RelationGetDescr(trigger->tg_relation);
	FindColumns(trigger, schema, attnums);
	ReadInput(trigger, attnums, &input);

	IngestGigInputs(schema, &input, &result, 1);

	if (attnums[INBOX_OUTCOME] == InvalidAttrNumber)
	{
		if (result.outcome == OUTCOME_REJECTED)
			ThrowGigError(&result.error);
		return PointerGetDatum(trigger->tg_trigtuple);
	}
	LogGigRefusal(&result.error);

	replaced[nreplaced] = attnums[INBOX_OUTCOME];
	values[nreplaced] =
		OutputDatum(TupleDescAttr(tupdesc, attnums[INBOX_OUTCOME] - 1),
					pstrdup(gig_outcome_names[result.outcome]));
	nulls[nreplaced++] = false;
	if (attnums[INBOX_ERROR] != InvalidAttrNumber)
	{
		bool rejected = result.outcome == OUTCOME_REJECTED;

		replaced[nreplaced] = attnums[INBOX_ERROR];
		values[nreplaced] =
			ErrorDatum(TupleDescAttr(tupdesc, attnums[INBOX_ERROR] - 1),
					   rejected ? &result.error : NULL);
		nulls[nreplaced++] = !rejected;
	}
	return PointerGetDatum(heap_modify_tuple_by_cols(trigger->tg_trigtuple,
													 tupdesc, nreplaced,
													 replaced, values, nulls));
}

static void
CheckTriggerCall(FunctionCallInfo fcinfo)
{
	const TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *problem = NULL;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"gig_inbox_ingest")));

	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		problem = "FOR EACH ROW";
	else if (!TRIGGER_FIRED_BEFORE(trigger->tg_event))
		problem = "BEFORE";
	else if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		problem = "INSERT";
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("trigger \"%s\" on table \"%s\" must be fired %s",
						trigger->tg_trigger->tgname,
						RelationGetRelationName(trigger->tg_relation),
						strcmp(problem, "INSERT") == 0 ? "by INSERT only"
													   : problem),
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
		const char *name = named ? definition->tgargs[column]
								 : inbox_columns[column].default_name;
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
							definition->tgname, table, name,
							inbox_columns[column].default_name),
					 errhint(
						 "The arguments name the columns of body, signature, outcome and error.")));
	}
}

static void
CheckColumn(const TriggerData *trigger, const GigSchema *schema,
			InboxColumn column, Form_pg_attribute attribute)
{
	if (!InboxColumnFits(schema, column, attribute))
		ThrowInboxColumn(psprintf("trigger \"%s\" on table \"%s\"",
								  trigger->tg_trigger->tgname,
								  RelationGetRelationName(trigger->tg_relation)),
						 column, attribute);
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
 * Tells whether a column's type does.  A body is to be kept byte by byte, as
 * char(n) and jsonb don't.
 */
bool
InboxColumnFits(const GigSchema *schema, InboxColumn column,
				Form_pg_attribute attribute)
{
	int32 typmod = attribute->atttypmod;
	Oid type = getBaseTypeAndTypmod(attribute->atttypid, &typmod);

	if (type == TEXTOID || type == VARCHAROID)
		return true;
	switch (column)
	{
		case INBOX_BODY:
			return type == BYTEAOID;
		case INBOX_OUTCOME:
			return type == schema->outcome_type;
		case INBOX_SIGNATURE:
			return type == BPCHAROID && typmod <= MAX_PADDED_SIGNATURE;
		case INBOX_ERROR:
			return type == BPCHAROID;
	}
	return false;
}

void
ThrowInboxColumn(const char *where, InboxColumn column,
				 Form_pg_attribute attribute)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("%s: column \"%s\" for the %s has type %s", where,
					NameStr(attribute->attname),
					inbox_columns[column].default_name,
					format_type_be(attribute->atttypid)),
			 errdetail(
				 "A body is bytea or text, a signature and an error are text, an outcome is text or gig_ingest_outcome.")));
	pg_unreachable();
}

static void
ReadInput(const TriggerData *trigger, const AttrNumber *attnums, GigInput *input)
{
	TupleDesc tupdesc = RelationGetDescr(trigger->tg_relation);
	HeapTuple row = trigger->tg_trigtuple;
	bool isnull;
	Datum value = heap_getattr(row, attnums[INBOX_BODY], tupdesc, &isnull);

	memset(input, 0, sizeof(GigInput));
	if (!isnull)
	{
		Oid type = TupleDescAttr(tupdesc, attnums[INBOX_BODY] - 1)->atttypid;

		if (getBaseType(type) == BYTEAOID)
			input->body = (bytea *) DatumGetPointer(value);
		else
			input->body = TextToBody((text *) DatumGetPointer(value));
	}

	value = heap_getattr(row, attnums[INBOX_SIGNATURE], tupdesc, &isnull);
	if (!isnull)
		SetInboxSignature(input,
						  TupleDescAttr(tupdesc, attnums[INBOX_SIGNATURE] - 1),
						  value);
}

/*
 * Takes over a signature, without the blanks that char(n) adds, unless there are
 * more than anyone would want to look at.
 */
void
SetInboxSignature(GigInput *input, const FormData_pg_attribute *attribute,
				  Datum value)
{
	if (getBaseType(attribute->atttypid) == BPCHAROID &&
		toast_raw_datum_size(value) <= MAX_PADDED_SIGNATURE)
		value = DirectFunctionCall1(rtrim1, value);
	SetGigSignature(input, value);
}

/*
 * The reason of a refusal, or null.  One that is too long for the column is
 * cut: it must not cost the row.
 */
Datum
ErrorDatum(Form_pg_attribute attribute, const GigError *error)
{
	int32 typmod = attribute->atttypmod;
	Oid base = getBaseTypeAndTypmod(attribute->atttypid, &typmod);
	char *reason;

	if (error == NULL)
		return OutputDatum(attribute, NULL);
	reason =
		psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
	if ((base == VARCHAROID || base == BPCHAROID) && typmod >= (int32) VARHDRSZ)
		reason[pg_mbcharcliplen(reason, (int) strlen(reason), typmod - VARHDRSZ)] =
			'\0';
	return OutputDatum(attribute, reason);
}

/*
 * Makes a value of the column's type, which may be a domain that has its own
 * opinion of it, even of null.
 */
Datum
OutputDatum(Form_pg_attribute attribute, char *value)
{
	Oid input;
	Oid ioparam;

	getTypeInputInfo(attribute->atttypid, &input, &ioparam);
	return OidInputFunctionCall(input, value, ioparam, attribute->atttypmod);
}
