/*-------------------------------------------------------------------------
 *
 * doors.c
 *	  The SQL functions that take webhooks in.
 *
 * They differ in what they do with a bad one, and in nothing else.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "arguments.h"
#include "encoding.h"
#include "ingest.h"
#include "result_set.h"

/* The columns that tell what became of an event, from the first. */
#define RESULT_COLUMNS 6

static void IngestOne(FunctionCallInfo fcinfo, GigResult *result);
static void FillResult(const GigSchema *schema, const GigResult *result,
					   Datum *values, bool *nulls);
static int ReadInputs(FunctionCallInfo fcinfo, GigInput **inputs);
static int ReadArray(FunctionCallInfo fcinfo, int argno, Oid type,
					 Datum **values, bool **nulls);

/*
 * ingest_gig_event(body bytea, sig text) returns gig_ingest_outcome
 *
 * The single way in.  Raises on a bad event, so that a careless caller can't
 * take it for accepted; 28000 where it isn't authentic.
 */
PG_FUNCTION_INFO_V1(ingest_gig_event);
Datum
ingest_gig_event(PG_FUNCTION_ARGS)
{
	GigResult result;

	IngestOne(fcinfo, &result);
	if (result.outcome == OUTCOME_REJECTED)
		ThrowGigError(&result.error);
	PG_RETURN_OID(GetGigSchema(fcinfo)->outcomes[result.outcome]);
}

/*
 * try_ingest_gig_event(body bytea, sig text)
 *		returns (outcome, event_id, event, account_id, sqlstate, message)
 *
 * The same, but a bad event comes back as rejected, with the reason.
 */
PG_FUNCTION_INFO_V1(try_ingest_gig_event);
Datum
try_ingest_gig_event(PG_FUNCTION_ARGS)
{
	GigResult result;
	const GigSchema *schema;
	TupleDesc tupdesc;
	Datum values[RESULT_COLUMNS];
	bool nulls[RESULT_COLUMNS];

	IngestOne(fcinfo, &result);
	LogGigRefusal(&result.error);

	schema = GetGigSchema(fcinfo);
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	FillResult(schema, &result, values, nulls);
	return HeapTupleGetDatum(
		heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls));
}

static void
IngestOne(FunctionCallInfo fcinfo, GigResult *result)
{
	GigInput input = {NULL, NULL, 0};

	if (!PG_ARGISNULL(0))
		input.body = (bytea *) PG_GETARG_RAW_VARLENA_P(0);
	if (!PG_ARGISNULL(1))
		SetGigSignature(&input, PG_GETARG_DATUM(1));
	IngestGigInputs(GetGigSchema(fcinfo), &input, result, 1);
}

/*
 * ingest_gig_events(bodies bytea[], sigs text[])
 *		returns setof (ord, outcome, event_id, event, account_id, sqlstate,
 *		message)
 *
 * Many at once; "ord" counts from 1.  A bad event harms no other.  The end
 * state is that of ingesting them one by one in this order.
 */
PG_FUNCTION_INFO_V1(ingest_gig_events);
Datum
ingest_gig_events(PG_FUNCTION_ARGS)
{
	const GigSchema *schema = GetGigSchema(fcinfo);
	GigInput *inputs;
	int n = ReadInputs(fcinfo, &inputs);
	GigResult *results = MemoryContextAllocHuge(CurrentMemoryContext,
												Max(n, 1) * sizeof(GigResult));
	TupleDesc tupdesc;
	Tuplestorestate *rows = BeginResultSet(fcinfo, &tupdesc);

	IngestGigInputs(schema, inputs, results, n);

	schema = GetGigSchema(fcinfo);
	for (int i = 0; i < n; i++)
	{
		Datum values[1 + RESULT_COLUMNS];
		bool nulls[1 + RESULT_COLUMNS];

		LogGigRefusal(&results[i].error);
		values[0] = Int32GetDatum(i + 1);
		nulls[0] = false;
		FillResult(schema, &results[i], values + 1, nulls + 1);
		tuplestore_putvalues(rows, tupdesc, values, nulls);
	}
	return (Datum) 0;
}

static void
FillResult(const GigSchema *schema, const GigResult *result, Datum *values,
		   bool *nulls)
{
	bool rejected = result->outcome == OUTCOME_REJECTED;

	memset(values, 0, RESULT_COLUMNS * sizeof(Datum));
	nulls[0] = false;
	nulls[1] = nulls[2] = nulls[3] = !result->understood;
	nulls[4] = nulls[5] = !rejected;

	values[0] = ObjectIdGetDatum(schema->outcomes[result->outcome]);
	if (result->understood)
	{
		values[1] = Int64GetDatum(result->event_id);
		values[2] = ObjectIdGetDatum(schema->event_kinds[result->kind]);
		values[3] = UUIDPGetDatum((pg_uuid_t *) &result->account_id);
	}
	if (rejected)
	{
		values[4] =
			CStringGetTextDatum(unpack_sql_state(result->error.sqlerrcode));
		values[5] = CStringGetTextDatum(result->error.message);
	}
}

/*
 * Reads the two arrays; that of signatures may be null as a whole.
 */
static int
ReadInputs(FunctionCallInfo fcinfo, GigInput **inputs)
{
	Datum *bodies;
	Datum *signatures = NULL;
	bool *null_bodies;
	bool *null_signatures = NULL;
	int n;

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array of webhook bodies is null")));
	n = ReadArray(fcinfo, 0, BYTEAOID, &bodies, &null_bodies);
	if (!PG_ARGISNULL(1) &&
		ReadArray(fcinfo, 1, TEXTOID, &signatures, &null_signatures) != n)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg(
					 "arrays of webhook bodies and signatures differ in length")));

	*inputs = MemoryContextAllocHuge(CurrentMemoryContext,
									 Max(n, 1) * sizeof(GigInput));
	for (int i = 0; i < n; i++)
	{
		GigInput *input = &(*inputs)[i];

		memset(input, 0, sizeof(GigInput));
		if (!null_bodies[i])
			input->body = (bytea *) DatumGetPointer(bodies[i]);
		if (signatures != NULL && !null_signatures[i])
			SetGigSignature(input, signatures[i]);
	}
	return n;
}

static int
ReadArray(FunctionCallInfo fcinfo, int argno, Oid type, Datum **values,
		  bool **nulls)
{
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(argno);
	int n;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
						errmsg("arrays of webhooks must have one dimension")));
	deconstruct_array(array, type, -1, false, TYPALIGN_INT, values, nulls, &n);
	return n;
}

TEXT_BODY_OVERLOAD(ingest_gig_event, TextToBody)
TEXT_BODY_OVERLOAD(try_ingest_gig_event, TextToBody)
