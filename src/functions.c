/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  The functions that SQL calls: parse, sign, verify and ingest.
 *
 * In a UTF8 database text and bytea hold the same bytes, so that each function
 * serves the overloads for both.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "ingest.h"
#include "signature.h"

#define MAX_WEBHOOKS 1000000 /* in one call */

/* The columns of a result of ingestion, without "ord". */
#define RESULT_COLUMNS 6

/* A row that is formed of an event. */
typedef struct EventRow
{
	TupleDesc tupdesc;
	Datum *values;
	bool *nulls;
} EventRow;

static Datum ParseBody(FunctionCallInfo fcinfo, int kind);
static bool ParseEvent(const struct varlena *body, bool is_account,
					   GigEvent *event);
static Datum FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event,
						  bool any_kind);
static void SetField(EventRow *row, int column, const GigEvent *event,
					 int field);
static void SetAttribute(EventRow *row, int column, Oid type, Datum value);
static TupleDesc GetResultType(FunctionCallInfo fcinfo);
static bool ComputeSignature(const bytea *body, const bytea *secret,
							 unsigned char signature[SIGNATURE_BYTES]);
static void IngestOne(FunctionCallInfo fcinfo, bool is_authentic,
					  GigResult *result);
static Datum FormResult(FunctionCallInfo fcinfo, const GigResult *result);
static void FillResult(const GigSchema *schema, const GigResult *result,
					   Datum *values, bool *nulls);
static int ReadInputs(FunctionCallInfo fcinfo, GigInput **inputs);
static bool NextValue(ArrayIterator array, Datum *value);

/*
 * parse_gig_event(body bytea or text) returns gig_event
 * parse_gigs_added(body bytea or text) returns gigs_added, and so on
 *
 * Raises an error with the JSON path if the webhook's reference does not allow
 * the body, if the body is null, or if the event is of another kind.
 */
#define ANY_KIND (-1)

#define PARSE_FUNCTION(name, kind)      \
	PG_FUNCTION_INFO_V1(name);          \
	Datum name(PG_FUNCTION_ARGS)        \
	{                                   \
		return ParseBody(fcinfo, kind); \
	}

PARSE_FUNCTION(parse_gig_event, ANY_KIND)
PARSE_FUNCTION(parse_gigs_added, GIGS_ADDED)
PARSE_FUNCTION(parse_gigs_updated, GIGS_UPDATED)
PARSE_FUNCTION(parse_gigs_removed, GIGS_REMOVED)
PARSE_FUNCTION(parse_gigs_partially_synced, GIGS_PARTIALLY_SYNCED)
PARSE_FUNCTION(parse_gigs_fully_synced, GIGS_FULLY_SYNCED)

static Datum
ParseBody(FunctionCallInfo fcinfo, int kind)
{
	const bytea *body = PG_ARGISNULL(0) ? NULL : PG_GETARG_BYTEA_PP(0);
	GigEvent event;
	GigError error;

	if (!CheckGigBodySize(body, &error))
		ThrowGigError(&error);
	ParseEvent(body, false, &event);
	if (kind != ANY_KIND && event.kind != (GigEventKind) kind)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for key \"event\": expected \"%s\", got \"%s\"",
						gig_event_names[kind], gig_event_names[event.kind])));
	return FormEventRow(fcinfo, &event, kind == ANY_KIND);
}

/*
 * parse_logged_gig_event(event gig_event_kind, body bytea) returns gig_event
 *
 * Parses a body of the log.  There is no limit, because it may be larger than
 * those that are accepted now.  Strict.
 */
PG_FUNCTION_INFO_V1(parse_logged_gig_event);
Datum
parse_logged_gig_event(PG_FUNCTION_ARGS)
{
	const GigSchema *schema = GetGigSchema(fcinfo);
	bool is_account =
		PG_GETARG_OID(0) == schema->event_kind.labels[GIGS_RECONCILED];
	GigEvent event;

	if (!ParseEvent(PG_GETARG_BYTEA_PP(1), is_account, &event))
		PG_RETURN_NULL();
	return FormEventRow(fcinfo, &event, true);
}

/*
 * parse_gig_account(account json) returns gig_account
 *
 * Parses an account object of Argyle's API.  Returns null if it says that the
 * account has no gigs to sync.  Strict.
 */
PG_FUNCTION_INFO_V1(parse_gig_account);
Datum
parse_gig_account(PG_FUNCTION_ARGS)
{
	GigEvent event;

	if (!ParseEvent(PG_GETARG_TEXT_PP(0), true, &event))
		PG_RETURN_NULL();
	return FormEventRow(fcinfo, &event, false);
}

/*
 * Returns false for an account object without gigs to sync.
 */
static bool
ParseEvent(const struct varlena *body, bool is_account, GigEvent *event)
{
	GigError error;
	GigDocument *document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), is_account,
						&error);

	if (document != NULL && is_account && GigDocumentLacksGigs(document))
		return false;
	if (document == NULL || !ReadGigEvent(document, event, &error))
		ThrowGigError(&error);
	return true;
}

/*
 * Forms a row of gig_event, or of the event's own type.
 */
static Datum
FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event, bool any_kind)
{
	TupleDesc tupdesc = GetResultType(fcinfo);
	EventRow row = {
		.tupdesc = tupdesc,
		.values = palloc0(tupdesc->natts * sizeof(Datum)),
		.nulls = palloc(tupdesc->natts * sizeof(bool)),
	};
	int column = 0;

	memset(row.nulls, true, tupdesc->natts * sizeof(bool));
	if (any_kind)
	{
		const GigSchema *schema = GetGigSchema(fcinfo);

		SetAttribute(&row, column++, schema->event_kind.type,
					 ObjectIdGetDatum(schema->event_kind.labels[event->kind]));
	}
	if (any_kind || event->kind != GIGS_RECONCILED)
		SetAttribute(&row, column++, TEXTOID, CStringGetTextDatum(event->name));
	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		if ((gig_event_fields[i].kinds & GIG_EVENT_BIT(event->kind)) == 0)
			continue;
		if (any_kind)
			column = gig_event_fields[i].column;
		if (column >= 0 && GigEventHas(event, i))
			SetField(&row, column, event, i);
		column++;
	}
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, row.values, row.nulls));
}

static void
SetField(EventRow *row, int column, const GigEvent *event, int field)
{
	void *member = GigEventMember(event, field);

	switch (gig_event_fields[field].type)
	{
		case GIG_UUID:
			SetAttribute(row, column, UUIDOID,
						 UUIDPGetDatum((pg_uuid_t *) member));
			break;
		case GIG_TIMESTAMP:
			SetAttribute(row, column, TIMESTAMPTZOID,
						 TimestampTzGetDatum(*(TimestampTz *) member));
			break;
		case GIG_COUNT:
			SetAttribute(row, column, INT4OID, Int32GetDatum(*(int32 *) member));
			break;
		case GIG_STATUS:
			SetAttribute(row, column, BOOLOID, BoolGetDatum(*(bool *) member));
			break;
		case GIG_UUID_ARRAY:
		{
			const GigUuidArray *array = member;
			Datum *elements = palloc(array->length * sizeof(Datum));

			for (int i = 0; i < array->length; i++)
				elements[i] = UUIDPGetDatum(&array->elements[i]);
			SetAttribute(row, column, UUIDARRAYOID,
						 PointerGetDatum(
							 construct_array(elements, array->length, UUIDOID,
											 UUID_LEN, false, TYPALIGN_CHAR)));
			break;
		}
	}
}

/*
 * Sets an attribute, unless the owner has altered the type so that it is another.
 */
static void
SetAttribute(EventRow *row, int column, Oid type, Datum value)
{
	if (column >= row->tupdesc->natts ||
		TupleDescAttr(row->tupdesc, column)->atttypid != type)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("attributes of type %s have been altered",
							   format_type_be(row->tupdesc->tdtypeid))));
	row->values[column] = value;
	row->nulls[column] = false;
}

/*
 * Returns the row type of the called function's result, which is looked up once
 * a query.
 */
static TupleDesc
GetResultType(FunctionCallInfo fcinfo)
{
	FmgrInfo *function = fcinfo->flinfo;

	if (function->fn_extra == NULL)
	{
		MemoryContext old_context = MemoryContextSwitchTo(function->fn_mcxt);
		TupleDesc tupdesc;

		if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		function->fn_extra = BlessTupleDesc(tupdesc);
		MemoryContextSwitchTo(old_context);
	}
	return function->fn_extra;
}

/*
 * sign_gig_event(body bytea or text, secret text or bytea) returns text
 *
 * Returns the X-Argyle-Signature of a body: HMAC-SHA512 in lower-case
 * hexadecimal digits.  Strict.
 */
PG_FUNCTION_INFO_V1(sign_gig_event);
Datum
sign_gig_event(PG_FUNCTION_ARGS)
{
	const bytea *secret = PG_GETARG_BYTEA_PP(1);
	unsigned char signature[SIGNATURE_BYTES];
	text *hex = palloc(VARHDRSZ + SIGNATURE_HEX_LEN);

	if (VARSIZE_ANY_EXHDR(secret) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("secret must not be empty")));
	if (!ComputeSignature(PG_GETARG_BYTEA_PP(0), secret, signature))
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("OpenSSL does not accept the secret as a key"),
				 errhint("In FIPS mode a secret must have at least 14 bytes.")));
	SET_VARSIZE(hex, VARHDRSZ + SIGNATURE_HEX_LEN);
	hex_encode((char *) signature, SIGNATURE_BYTES, VARDATA(hex));
	PG_RETURN_TEXT_P(hex);
}

/*
 * verify_gig_signature(body bytea or text, sig text, secret text or bytea)
 *		returns boolean
 *
 * False if an argument is null or the secret is empty: an empty key is public.
 */
PG_FUNCTION_INFO_V1(verify_gig_signature);
Datum
verify_gig_signature(PG_FUNCTION_ARGS)
{
	unsigned char given[SIGNATURE_BYTES];
	unsigned char expected[SIGNATURE_BYTES];
	const text *signature;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	signature = PG_GETARG_TEXT_PP(1);
	PG_RETURN_BOOL(DecodeSignature(VARDATA_ANY(signature),
								   VARSIZE_ANY_EXHDR(signature), given) &&
				   ComputeSignature(PG_GETARG_BYTEA_PP(0),
									PG_GETARG_BYTEA_PP(2), expected) &&
				   SignaturesEqual(expected, given));
}

static bool
ComputeSignature(const bytea *body, const bytea *secret,
				 unsigned char signature[SIGNATURE_BYTES])
{
	SignatureKey *key =
		MakeSignatureKey(CurrentMemoryContext, VARDATA_ANY(secret),
						 VARSIZE_ANY_EXHDR(secret));

	if (key != NULL)
		SignBody(key, VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), signature);
	return key != NULL;
}

/*
 * ingest_gig_event(body bytea or text, sig text) returns gig_ingest_outcome
 *
 * Raises an error if the webhook is rejected, so that a careless caller cannot
 * take it for accepted; 28000 if it is not authentic.
 */
PG_FUNCTION_INFO_V1(ingest_gig_event);
Datum
ingest_gig_event(PG_FUNCTION_ARGS)
{
	GigResult result;

	IngestOne(fcinfo, false, &result);
	if (result.outcome == OUTCOME_REJECTED)
		ThrowGigError(&result.error);
	PG_RETURN_OID(GetGigSchema(fcinfo)->outcome.labels[result.outcome]);
}

/*
 * try_ingest_gig_event(body bytea or text, sig text)
 *		returns (outcome, event_id, event, account_id, sqlstate, message)
 *
 * The same, but a rejected webhook is returned with the reason.
 */
PG_FUNCTION_INFO_V1(try_ingest_gig_event);
Datum
try_ingest_gig_event(PG_FUNCTION_ARGS)
{
	GigResult result;

	IngestOne(fcinfo, false, &result);
	return FormResult(fcinfo, &result);
}

/*
 * ingest_authentic_gig_event(body bytea, received_at timestamptz,
 *		is_account boolean)
 *		returns (outcome, event_id, event, account_id, sqlstate, message)
 *
 * The same for a webhook of the quarantine, whose signature has been verified,
 * and for an account object.  What cannot be parsed is rejected.  Strict.
 */
PG_FUNCTION_INFO_V1(ingest_authentic_gig_event);
Datum
ingest_authentic_gig_event(PG_FUNCTION_ARGS)
{
	GigResult result;

	IngestOne(fcinfo, true, &result);
	return FormResult(fcinfo, &result);
}

/*
 * Ingests the webhook whose body is the first argument.  The second one is its
 * signature or, if it is authentic, the time at which it was received.
 */
static void
IngestOne(FunctionCallInfo fcinfo, bool is_authentic, GigResult *result)
{
	GigInput input = {
		.is_authentic = is_authentic,
		.is_account = is_authentic && PG_GETARG_BOOL(2),
		.received_at = DT_NOBEGIN,
	};

	if (!PG_ARGISNULL(0))
		input.body = (bytea *) PG_GETARG_RAW_VARLENA_P(0);
	if (!PG_ARGISNULL(1) && is_authentic)
		input.received_at = PG_GETARG_TIMESTAMPTZ(1);
	else if (!PG_ARGISNULL(1))
		SetGigSignature(&input, PG_GETARG_DATUM(1));
	IngestWebhooks(GetGigSchema(fcinfo), &input, result, 1);
}

static Datum
FormResult(FunctionCallInfo fcinfo, const GigResult *result)
{
	TupleDesc tupdesc = GetResultType(fcinfo);
	Datum values[RESULT_COLUMNS];
	bool nulls[RESULT_COLUMNS];

	FillResult(GetGigSchema(fcinfo), result, values, nulls);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * ingest_gig_events(bodies bytea[], sigs text[] [, received_at timestamptz[]])
 *		returns setof (ord, outcome, event_id, event, account_id, sqlstate,
 *		message)
 *
 * Ingests many webhooks; "ord" counts from 1.  A rejected one does not affect
 * the others.  The end state is that of ingesting them one by one in this
 * order.  A webhook without a time has been received now.
 */
PG_FUNCTION_INFO_V1(ingest_gig_events);
Datum
ingest_gig_events(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result_set = (ReturnSetInfo *) fcinfo->resultinfo;
	GigInput *inputs;
	int n = ReadInputs(fcinfo, &inputs);
	GigResult *results = palloc_extended(n * sizeof(GigResult), MCXT_ALLOC_HUGE);

	InitMaterializedSRF(fcinfo, 0);
	IngestWebhooks(GetGigSchema(fcinfo), inputs, results, n);
	for (int i = 0; i < n; i++)
	{
		Datum values[1 + RESULT_COLUMNS];
		bool nulls[1 + RESULT_COLUMNS];

		values[0] = Int32GetDatum(i + 1);
		nulls[0] = false;
		FillResult(GetGigSchema(fcinfo), &results[i], values + 1, nulls + 1);
		tuplestore_putvalues(result_set->setResult, result_set->setDesc, values,
							 nulls);
	}
	return (Datum) 0;
}

static void
FillResult(const GigSchema *schema, const GigResult *result, Datum *values,
		   bool *nulls)
{
	const GigError *error = &result->error;

	LogRejection(error);
	nulls[0] = false;
	nulls[1] = nulls[2] = nulls[3] = !result->has_event;
	nulls[4] = nulls[5] = error->sqlerrcode == 0;

	values[0] = ObjectIdGetDatum(schema->outcome.labels[result->outcome]);
	values[1] = Int64GetDatum(result->event_id);
	values[2] = ObjectIdGetDatum(schema->event_kind.labels[result->kind]);
	values[3] = UUIDPGetDatum((pg_uuid_t *) &result->account_id);
	if (error->sqlerrcode != 0)
	{
		values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
		values[5] = CStringGetTextDatum(error->message);
	}
}

/*
 * Reads the arrays.  All but the bodies may be null.
 */
static int
ReadInputs(FunctionCallInfo fcinfo, GigInput **inputs)
{
	ArrayIterator arrays[3] = {NULL};
	int n = 0;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array of webhook bodies is null")));
	for (int i = 0; i < PG_NARGS(); i++)
	{
		ArrayType *array;
		int length;

		if (PG_ARGISNULL(i))
			continue;
		array = PG_GETARG_ARRAYTYPE_P(i);
		length = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
		if (ARR_NDIM(array) > 1 || (i > 0 && length != n))
			ereport(ERROR,
					(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
					 errmsg(
						 "arrays of webhooks must have one dimension and the same length")));
		n = length;
		arrays[i] = array_create_iterator(array, 0, NULL);
	}

	/* an array of nulls is small, but not what is returned of them */
	if (n > MAX_WEBHOOKS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d webhooks in one call", MAX_WEBHOOKS)));

	*inputs = palloc_extended(n * sizeof(GigInput), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
	{
		GigInput *input = &(*inputs)[i];
		Datum value;

		*input = (GigInput){.received_at = DT_NOBEGIN};
		if (NextValue(arrays[0], &value))
			input->body = (bytea *) DatumGetPointer(value);
		if (NextValue(arrays[1], &value))
			SetGigSignature(input, value);
		if (!NextValue(arrays[2], &value))
			continue;
		input->received_at = DatumGetTimestampTz(value);
		if (TIMESTAMP_NOT_FINITE(input->received_at))
			ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
							errmsg("time of receipt must be finite")));
	}
	return n;
}

/*
 * Returns false for a null, and for an array that is null or missing.
 */
static bool
NextValue(ArrayIterator array, Datum *value)
{
	bool isnull;

	return array != NULL && array_iterate(array, value, &isnull) && !isnull;
}
