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
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ingest.h"
#include "signature.h"

#define MAX_WEBHOOKS 1000000 /* in one call */

/* The columns of a result of ingestion, without "ord". */
#define RESULT_COLUMNS 6

/* An array of ingest_gig_events(). */
typedef struct InputArray
{
	int length;
	Datum *values;
	bool *nulls;
} InputArray;

static Datum ParseChecked(FunctionCallInfo fcinfo, int kind);
static Datum ParseBody(FunctionCallInfo fcinfo, const bytea *body, int kind);
static Datum FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event,
						  bool any_kind);
static TupleDesc GetResultType(FunctionCallInfo fcinfo);
pg_noreturn static void ThrowTypeError(TupleDesc tupdesc);
static Oid FieldTypeOid(GigFieldType type);
static Datum FieldDatum(const GigEvent *event, int field);
static bool ComputeSignature(const bytea *body, const bytea *secret,
							 unsigned char signature[SIGNATURE_BYTES]);
static void IngestSigned(FunctionCallInfo fcinfo, GigResult *result);
static void IngestOne(FunctionCallInfo fcinfo, GigInput *input,
					  GigResult *result);
static Datum FormResult(FunctionCallInfo fcinfo, const GigResult *result);
static void FillResult(const GigSchema *schema, const GigResult *result,
					   Datum *values, bool *nulls);
static int ReadInputs(FunctionCallInfo fcinfo, GigInput **inputs);
static InputArray ReadArray(FunctionCallInfo fcinfo, int argno, Oid type);
static TimestampTz CheckReceivedAt(Datum value);

/*
 * parse_gig_event(body bytea or text) returns gig_event
 * parse_gigs_added(body bytea or text) returns gigs_added, and so on
 *
 * Raises an error with the JSON path if the webhook's reference does not allow
 * the body, if the body is null, or if the event is of another kind.
 */
#define ANY_KIND (-1)

#define PARSE_FUNCTION(name, kind)         \
	PG_FUNCTION_INFO_V1(name);             \
	Datum name(PG_FUNCTION_ARGS)           \
	{                                      \
		return ParseChecked(fcinfo, kind); \
	}

PARSE_FUNCTION(parse_gig_event, ANY_KIND)
PARSE_FUNCTION(parse_gigs_added, GIGS_ADDED)
PARSE_FUNCTION(parse_gigs_updated, GIGS_UPDATED)
PARSE_FUNCTION(parse_gigs_removed, GIGS_REMOVED)
PARSE_FUNCTION(parse_gigs_partially_synced, GIGS_PARTIALLY_SYNCED)
PARSE_FUNCTION(parse_gigs_fully_synced, GIGS_FULLY_SYNCED)

static Datum
ParseChecked(FunctionCallInfo fcinfo, int kind)
{
	const bytea *body = PG_ARGISNULL(0) ? NULL : PG_GETARG_BYTEA_PP(0);
	GigError error;

	if (!CheckGigBodySize(body, &error))
		ThrowGigError(&error);
	return ParseBody(fcinfo, body, kind);
}

/*
 * parse_logged_gig_event(body bytea) returns gig_event
 *
 * The same, strict and without a limit, for bodies in the log: they may be
 * larger than those that are accepted now.
 */
PG_FUNCTION_INFO_V1(parse_logged_gig_event);
Datum
parse_logged_gig_event(PG_FUNCTION_ARGS)
{
	return ParseBody(fcinfo, PG_GETARG_BYTEA_PP(0), ANY_KIND);
}

static Datum
ParseBody(FunctionCallInfo fcinfo, const bytea *body, int kind)
{
	GigEvent event;
	GigError error;
	GigDocument *document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), &error);

	if (document == NULL || !ReadGigEvent(document, &event, &error))
		ThrowGigError(&error);
	if (kind != ANY_KIND && event.kind != (GigEventKind) kind)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for key \"event\": expected \"%s\", got \"%s\"",
						gig_event_names[kind], gig_event_names[event.kind])));
	return FormEventRow(fcinfo, &event, kind == ANY_KIND);
}

/*
 * Forms a row of gig_event, or of the event's own type.
 */
static Datum
FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event, bool any_kind)
{
	TupleDesc tupdesc = GetResultType(fcinfo);
	Datum values[GIG_EVENT_COLUMNS] = {0};
	bool nulls[GIG_EVENT_COLUMNS];
	Oid types[GIG_EVENT_COLUMNS];
	int ncolumns = 0;

	memset(nulls, true, sizeof(nulls));
	if (any_kind)
	{
		const GigSchema *schema = GetGigSchema(fcinfo);

		nulls[ncolumns] = false;
		types[ncolumns] = schema->event_kind_type;
		values[ncolumns++] = ObjectIdGetDatum(schema->event_kinds[event->kind]);
	}
	nulls[ncolumns] = false;
	types[ncolumns] = TEXTOID;
	values[ncolumns++] = CStringGetTextDatum(event->name);
	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		const GigEventField *field = &gig_event_fields[i];
		int column;

		if ((field->kinds & GIG_EVENT_BIT(event->kind)) == 0)
			continue;
		column = any_kind ? field->column : ncolumns++;
		types[column] = FieldTypeOid(field->type);
		nulls[column] = !GigEventHas(event, i);
		if (!nulls[column])
			values[column] = FieldDatum(event, i);
	}
	/* the owner may have altered the type */
	if (tupdesc->natts != (any_kind ? GIG_EVENT_COLUMNS : ncolumns))
		ThrowTypeError(tupdesc);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		if (!nulls[i] && TupleDescAttr(tupdesc, i)->atttypid != types[i])
			ThrowTypeError(tupdesc);
	}
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
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

static void
ThrowTypeError(TupleDesc tupdesc)
{
	ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
					errmsg("attributes of type %s have been altered",
						   format_type_be(tupdesc->tdtypeid))));
}

static Oid
FieldTypeOid(GigFieldType type)
{
	switch (type)
	{
		case GIG_UUID:
			return UUIDOID;
		case GIG_TIMESTAMP:
			return TIMESTAMPTZOID;
		case GIG_COUNT:
			return INT4OID;
		case GIG_UUID_ARRAY:
			return UUIDARRAYOID;
	}
	pg_unreachable();
}

static Datum
FieldDatum(const GigEvent *event, int field)
{
	void *member = GigEventMember(event, field);

	switch (gig_event_fields[field].type)
	{
		case GIG_UUID:
			return UUIDPGetDatum((pg_uuid_t *) member);
		case GIG_TIMESTAMP:
			return TimestampTzGetDatum(*(TimestampTz *) member);
		case GIG_COUNT:
			return Int32GetDatum(*(int32 *) member);
		case GIG_UUID_ARRAY:
		{
			const GigUuidArray *array = member;
			Datum *values;

			values = palloc(array->length * sizeof(Datum));
			for (int i = 0; i < array->length; i++)
				values[i] = UUIDPGetDatum(&array->elements[i]);
			return PointerGetDatum(construct_array(values, array->length,
												   UUIDOID, UUID_LEN, false,
												   TYPALIGN_CHAR));
		}
	}
	pg_unreachable();
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
	size_t len = VARSIZE_ANY_EXHDR(secret);
	MemoryContext context;
	SignatureKey *key;

	if (len == 0)
		return false;
	context = AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks key",
									ALLOCSET_SMALL_SIZES);
	key = MakeSignatureKey(context, VARDATA_ANY(secret), len);
	if (key != NULL)
		SignBody(key, VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), signature);
	MemoryContextDelete(context);
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

	IngestSigned(fcinfo, &result);
	if (result.outcome == OUTCOME_REJECTED)
		ThrowGigError(&result.error);
	PG_RETURN_OID(GetGigSchema(fcinfo)->outcomes[result.outcome]);
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

	IngestSigned(fcinfo, &result);
	return FormResult(fcinfo, &result);
}

/*
 * Ingests the webhook whose body and signature are the arguments.
 */
static void
IngestSigned(FunctionCallInfo fcinfo, GigResult *result)
{
	GigInput input = {.received_at = DT_NOBEGIN};

	if (!PG_ARGISNULL(1))
		SetGigSignature(&input, PG_GETARG_DATUM(1));
	IngestOne(fcinfo, &input, result);
}

/*
 * ingest_authentic_gig_event(body bytea, received_at timestamptz)
 *		returns (outcome, event_id, event, account_id, sqlstate, message)
 *
 * The same for a webhook of the quarantine, whose signature has been verified.
 * A webhook that still cannot be parsed is rejected.
 */
PG_FUNCTION_INFO_V1(ingest_authentic_gig_event);
Datum
ingest_authentic_gig_event(PG_FUNCTION_ARGS)
{
	GigInput input = {.received_at = DT_NOBEGIN};
	GigResult result;

	input.is_authentic = true;
	if (!PG_ARGISNULL(1))
		input.received_at = CheckReceivedAt(PG_GETARG_DATUM(1));
	IngestOne(fcinfo, &input, &result);
	return FormResult(fcinfo, &result);
}

static void
IngestOne(FunctionCallInfo fcinfo, GigInput *input, GigResult *result)
{
	if (!PG_ARGISNULL(0))
		input->body = (bytea *) PG_GETARG_RAW_VARLENA_P(0);
	IngestWebhooks(GetGigSchema(fcinfo), input, result, 1);
}

static Datum
FormResult(FunctionCallInfo fcinfo, const GigResult *result)
{
	TupleDesc tupdesc = GetResultType(fcinfo);
	Datum values[RESULT_COLUMNS];
	bool nulls[RESULT_COLUMNS];

	LogRejection(&result->error);
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

		LogRejection(&results[i].error);
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

	nulls[0] = false;
	nulls[1] = nulls[2] = nulls[3] = !result->has_event;
	nulls[4] = nulls[5] = error->sqlerrcode == 0;

	values[0] = ObjectIdGetDatum(schema->outcomes[result->outcome]);
	values[1] = Int64GetDatum(result->event_id);
	values[2] = ObjectIdGetDatum(schema->event_kinds[result->kind]);
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
	InputArray bodies = ReadArray(fcinfo, 0, BYTEAOID);
	InputArray signatures = ReadArray(fcinfo, 1, TEXTOID);
	InputArray times = ReadArray(fcinfo, 2, TIMESTAMPTZOID);
	int n = bodies.length;

	if (bodies.values == NULL)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array of webhook bodies is null")));
	if ((signatures.values != NULL && signatures.length != n) ||
		(times.values != NULL && times.length != n))
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("arrays of webhooks must have the same length")));

	/* an array of nulls is small, but not what is returned of them */
	if (n > MAX_WEBHOOKS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d webhooks in one call", MAX_WEBHOOKS)));

	*inputs = palloc_extended(n * sizeof(GigInput), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
	{
		GigInput *input = &(*inputs)[i];

		*input = (GigInput){.received_at = DT_NOBEGIN};
		if (!bodies.nulls[i])
			input->body = (bytea *) DatumGetPointer(bodies.values[i]);
		if (signatures.values != NULL && !signatures.nulls[i])
			SetGigSignature(input, signatures.values[i]);
		if (times.values != NULL && !times.nulls[i])
			input->received_at = CheckReceivedAt(times.values[i]);
	}
	return n;
}

/*
 * Reads an array that is an argument.  It has no values if it is null or missing.
 */
static InputArray
ReadArray(FunctionCallInfo fcinfo, int argno, Oid type)
{
	InputArray result = {0};
	ArrayType *array;
	int16 len;
	bool byval;
	char align;

	if (argno >= PG_NARGS() || PG_ARGISNULL(argno))
		return result;
	array = PG_GETARG_ARRAYTYPE_P(argno);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("arrays of webhooks must have one dimension")));
	get_typlenbyvalalign(type, &len, &byval, &align);
	deconstruct_array(array, type, len, byval, align, &result.values,
					  &result.nulls, &result.length);
	return result;
}

static TimestampTz
CheckReceivedAt(Datum value)
{
	TimestampTz received_at = DatumGetTimestampTz(value);

	if (TIMESTAMP_NOT_FINITE(received_at))
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
						errmsg("time of receipt must be finite")));
	return received_at;
}
