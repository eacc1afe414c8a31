/*-------------------------------------------------------------------------
 *
 * pure.c
 *	  The SQL functions that depend on nothing but their arguments: parse an
 *	  event, sign it, verify a signature.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "compat.h"
#include "encoding.h"
#include "event.h"
#include "ingest.h"
#include "plan.h"
#include "schema.h"
#include "signature.h"

/* Where a column of a result comes from, if from no field of the event. */
#define FROM_EVENT (-1)
#define FROM_NAME (-2)
#define FROM_NOTHING (-3) /* this kind of event has no such field */

/* How an event becomes a row of a composite type; made once a query. */
typedef struct EventRowType
{
	TupleDesc tupdesc;
	int sources[FLEXIBLE_ARRAY_MEMBER]; /* [attribute][event kind] */
} EventRowType;

static Datum ParseAny(FunctionCallInfo fcinfo, const bytea *body);
static Datum ParseTyped(FunctionCallInfo fcinfo, GigEventKind kind);
static void ParseBody(const bytea *body, GigEvent *event);
static Datum FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event);
static EventRowType *GetEventRowType(FunctionCallInfo fcinfo);
static int FindSource(const char *column, GigEventKind kind, bool *known);
static Datum FieldDatum(const GigEvent *event, int field);
static text *SignWith(const bytea *body, const char *secret, size_t len);
static bool VerifyWith(const bytea *body, const text *signature,
					   const char *secret, size_t len);
static bytea *BodyToUtf8(text *body);

/*
 * parse_gig_event(body bytea) returns gig_event
 *
 * Any of the five events.  Raises what the webhook's reference does not allow,
 * with the path of the key at fault; null is bad input too.
 */
PG_FUNCTION_INFO_V1(parse_gig_event);
Datum
parse_gig_event(PG_FUNCTION_ARGS)
{
	const bytea *body = BodyArgument(fcinfo, 0);
	GigError error;

	if (!CheckGigBodySize(body, &error))
		ThrowGigError(&error);
	return ParseAny(fcinfo, body);
}

/*
 * parse_logged_gig_event(body bytea) returns gig_event
 *
 * The same for a body that has been accepted already: it may be larger than
 * those that are accepted today.
 */
PG_FUNCTION_INFO_V1(parse_logged_gig_event);
Datum
parse_logged_gig_event(PG_FUNCTION_ARGS)
{
	return ParseAny(fcinfo, BodyArgument(fcinfo, 0));
}

static Datum
ParseAny(FunctionCallInfo fcinfo, const bytea *body)
{
	GigEvent event;

	ParseBody(body, &event);
	return FormEventRow(fcinfo, &event);
}

/*
 * parse_gigs_added(body bytea) returns gigs_added, and so on
 *
 * One of the events; raises if it is another.
 */
#define PARSE_TYPED(name, kind)          \
	PG_FUNCTION_INFO_V1(name);           \
	Datum name(PG_FUNCTION_ARGS)         \
	{                                    \
		return ParseTyped(fcinfo, kind); \
	}

PARSE_TYPED(parse_gigs_added, GIGS_ADDED)
PARSE_TYPED(parse_gigs_updated, GIGS_UPDATED)
PARSE_TYPED(parse_gigs_removed, GIGS_REMOVED)
PARSE_TYPED(parse_gigs_partially_synced, GIGS_PARTIALLY_SYNCED)
PARSE_TYPED(parse_gigs_fully_synced, GIGS_FULLY_SYNCED)

static Datum
ParseTyped(FunctionCallInfo fcinfo, GigEventKind kind)
{
	const bytea *body = BodyArgument(fcinfo, 0);
	GigEvent event;
	GigError error;

	if (!CheckGigBodySize(body, &error))
		ThrowGigError(&error);
	ParseBody(body, &event);
	if (event.kind != kind)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for key \"event\": expected \"%s\", got \"%s\"",
						gig_event_names[kind], gig_event_names[event.kind])));
	return FormEventRow(fcinfo, &event);
}

static void
ParseBody(const bytea *body, GigEvent *event)
{
	GigError error;
	GigDocument *document;

	if (body == NULL)
	{
		SetGigError(&error, ERRCODE_NULL_VALUE_NOT_ALLOWED,
					"webhook body is null");
		ThrowGigError(&error);
	}
	document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), &error);
	if (document == NULL || !ReadGigEvent(document, event, &error))
		ThrowGigError(&error);
}

/*
 * Makes an event a row of the calling function's result type.
 */
static Datum
FormEventRow(FunctionCallInfo fcinfo, const GigEvent *event)
{
	const GigSchema *schema = GetGigSchema(fcinfo);
	EventRowType *row_type = fcinfo->flinfo->fn_extra;
	TupleDesc tupdesc;
	Datum values[MaxTupleAttributeNumber];
	bool nulls[MaxTupleAttributeNumber];

	if (row_type == NULL)
		row_type = fcinfo->flinfo->fn_extra = GetEventRowType(fcinfo);
	tupdesc = row_type->tupdesc;

	for (int i = 0; i < tupdesc->natts; i++)
	{
		int source = row_type->sources[i * GIG_EVENT_KINDS + event->kind];

		values[i] = (Datum) 0;
		nulls[i] = false;
		switch (source)
		{
			case FROM_EVENT:
				values[i] = ObjectIdGetDatum(schema->event_kinds[event->kind]);
				break;
			case FROM_NAME:
				values[i] = CStringGetTextDatum(
					pg_any_to_server(event->name, (int) strlen(event->name),
									 PG_UTF8));
				break;
			case FROM_NOTHING:
				nulls[i] = true;
				break;
			default:
				nulls[i] = !GigEventHas(event, source);
				if (!nulls[i])
					values[i] = FieldDatum(event, source);
				break;
		}
	}
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * Matches the result type's columns with the fields of events.
 */
static EventRowType *
GetEventRowType(FunctionCallInfo fcinfo)
{
	TupleDesc tupdesc;
	EventRowType *row_type;
	MemoryContext old_context;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	old_context = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	row_type = palloc(offsetof(EventRowType, sources) +
					  sizeof(int) * tupdesc->natts * GIG_EVENT_KINDS);
	row_type->tupdesc = BlessTupleDesc(CreateTupleDescCopy(tupdesc));
	MemoryContextSwitchTo(old_context);

	for (int i = 0; i < tupdesc->natts; i++)
	{
		const char *column = NameStr(TupleDescAttr(tupdesc, i)->attname);
		bool known = false;

		for (int kind = 0; kind < GIG_EVENT_KINDS; kind++)
			row_type->sources[i * GIG_EVENT_KINDS + kind] =
				FindSource(column, (GigEventKind) kind, &known);
		if (!known)
			elog(ERROR, "no event has a field for column \"%s\"", column);
	}
	return row_type;
}

static int
FindSource(const char *column, GigEventKind kind, bool *known)
{
	int source = FROM_NOTHING;

	if (strcmp(column, "event") == 0)
		source = FROM_EVENT;
	else if (strcmp(column, "name") == 0)
		source = FROM_NAME;
	else
	{
		for (int i = 0; i < GIG_EVENT_FIELDS; i++)
		{
			const GigEventField *field = &gig_event_fields[i];

			if ((field->kinds & GIG_EVENT_BIT(kind)) != 0 &&
				(strcmp(column, field->column) == 0 ||
				 strcmp(column, field->any_column) == 0))
				source = i;
		}
	}
	if (source != FROM_NOTHING)
		*known = true;
	return source;
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

			if (array->length == 0)
				return PointerGetDatum(construct_empty_array(UUIDOID));
			values = palloc(array->length * sizeof(Datum));
			for (int i = 0; i < array->length; i++)
				values[i] = UUIDPGetDatum(&array->elements[i]);
			return MakeArray(UUIDOID, values, array->length);
		}
	}
	pg_unreachable();
}

/*
 * sign_gig_event(body bytea, secret text or bytea) returns text
 *
 * The signature that Argyle would send: HMAC-SHA512 of the body, in lower-case
 * hexadecimal digits.  Strict.
 */
PG_FUNCTION_INFO_V1(sign_gig_event);
Datum
sign_gig_event(PG_FUNCTION_ARGS)
{
	bytea *secret = TextToUtf8(PG_GETARG_TEXT_PP(1), "secret");

	PG_RETURN_TEXT_P(SignWith(PG_GETARG_BYTEA_PP(0), VARDATA_ANY(secret),
							  VARSIZE_ANY_EXHDR(secret)));
}

PG_FUNCTION_INFO_V1(sign_gig_event_with_bytes);
Datum
sign_gig_event_with_bytes(PG_FUNCTION_ARGS)
{
	bytea *secret = PG_GETARG_BYTEA_PP(1);

	PG_RETURN_TEXT_P(SignWith(PG_GETARG_BYTEA_PP(0), VARDATA_ANY(secret),
							  VARSIZE_ANY_EXHDR(secret)));
}

static text *
SignWith(const bytea *body, const char *secret, size_t len)
{
	MemoryContext context;
	unsigned char signature[SIGNATURE_BYTES];
	text *hex = palloc(VARHDRSZ + SIGNATURE_HEX_LEN);

	if (len == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("secret must not be empty")));
	context = AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks key",
									ALLOCSET_SMALL_SIZES);
	SignBody(MakeSignatureKey(context, secret, len), VARDATA_ANY(body),
			 VARSIZE_ANY_EXHDR(body), signature);
	MemoryContextDelete(context);

	SET_VARSIZE(hex, VARHDRSZ + SIGNATURE_HEX_LEN);
	hex_encode((char *) signature, SIGNATURE_BYTES, VARDATA(hex));
	return hex;
}

/*
 * verify_gig_signature(body bytea, sig text, secret text or bytea)
 *		returns boolean
 *
 * Never null: where anything is missing, nothing has been verified.
 */
PG_FUNCTION_INFO_V1(verify_gig_signature);
Datum
verify_gig_signature(PG_FUNCTION_ARGS)
{
	bytea *secret;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	secret = TextToUtf8(PG_GETARG_TEXT_PP(2), "secret");
	PG_RETURN_BOOL(VerifyWith(PG_GETARG_BYTEA_PP(0), PG_GETARG_TEXT_PP(1),
							  VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret)));
}

PG_FUNCTION_INFO_V1(verify_gig_signature_with_bytes);
Datum
verify_gig_signature_with_bytes(PG_FUNCTION_ARGS)
{
	bytea *secret;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_BOOL(false);
	secret = PG_GETARG_BYTEA_PP(2);
	PG_RETURN_BOOL(VerifyWith(PG_GETARG_BYTEA_PP(0), PG_GETARG_TEXT_PP(1),
							  VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret)));
}

static bool
VerifyWith(const bytea *body, const text *signature, const char *secret,
		   size_t len)
{
	MemoryContext context;
	unsigned char given[SIGNATURE_BYTES];
	unsigned char expected[SIGNATURE_BYTES];

	/* whoever knows that there is no secret can sign with it */
	if (len == 0 || !DecodeSignature(VARDATA_ANY(signature),
									 VARSIZE_ANY_EXHDR(signature), given))
		return false;
	context = AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks key",
									ALLOCSET_SMALL_SIZES);
	SignBody(MakeSignatureKey(context, secret, len), VARDATA_ANY(body),
			 VARSIZE_ANY_EXHDR(body), expected);
	MemoryContextDelete(context);
	return SignaturesEqual(expected, given);
}

static bytea *
BodyToUtf8(text *body)
{
	return TextToUtf8(body, "webhook body");
}

TEXT_BODY_OVERLOAD(parse_gig_event, TextToBody)
TEXT_BODY_OVERLOAD(parse_gigs_added, TextToBody)
TEXT_BODY_OVERLOAD(parse_gigs_updated, TextToBody)
TEXT_BODY_OVERLOAD(parse_gigs_removed, TextToBody)
TEXT_BODY_OVERLOAD(parse_gigs_partially_synced, TextToBody)
TEXT_BODY_OVERLOAD(parse_gigs_fully_synced, TextToBody)
TEXT_BODY_OVERLOAD(sign_gig_event, BodyToUtf8)
TEXT_BODY_OVERLOAD(sign_gig_event_with_bytes, BodyToUtf8)
TEXT_BODY_OVERLOAD(verify_gig_signature, BodyToUtf8)
TEXT_BODY_OVERLOAD(verify_gig_signature_with_bytes, BodyToUtf8)
