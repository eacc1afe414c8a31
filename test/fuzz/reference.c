/*-------------------------------------------------------------------------
 *
 * reference.c
 *	  Parsing a webhook's body with PostgreSQL's own types.
 *
 * This takes the decisions of src/event_json.c and src/event_value.c by other
 * means: jsonb tells which key counts and what strings spell, regular
 * expressions which forms are allowed, and the types' input functions what they
 * mean.  Only the fields of an event are taken from gig_event_fields.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "fmgr.h"
#include "regex/regex.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "fuzz.h"

#define UUID_FORM "^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$"
#define INTEGER_FORM "^-?[0-9]+$"
#define TIMESTAMP_FORM                 \
	"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]" \
	"[0-9]+:[0-9:.]*[0-9]"             \
	"([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)?$"

static Jsonb *ReadJson(const char *body, Reference *reference);
static int ReadDocument(Jsonb *root, Reference *reference);
static int ReadEvent(const char *body, Jsonb *root, Reference *reference);
static int CallInput(PGFunction function, const char *s, bool typmod,
					 Datum *result, const char **detail);
static bool Matches(const char *s, const char *form);
static JsonbValue *Find(Jsonb *object, const char *key);
static Jsonb *Nested(const JsonbValue *value, uint32 flag);
static char *Spelt(const JsonbValue *value);
static int ReadField(const char *body, Jsonb *data, int field,
					 Reference *reference);
static bool IsRequired(const char *key);
static int ReadUuid(const JsonbValue *value, pg_uuid_t *uuid);
static int ReadTimestamp(const JsonbValue *value, TimestampTz *timestamp,
						 bool *unknown);
static int ReadCount(const char *body, const char *key, const JsonbValue *value,
					 int32 *count);
static int ReadUuids(const JsonbValue *value, const char *path,
					 GigUuidArray *array, Reference *reference);

void
AskPostgres(const char *body, size_t len, Reference *reference)
{
	Jsonb *root;

	memset(reference, 0, sizeof(Reference));
	body = pnstrdup(body, len);
	root = ReadJson(body, reference);
	if (root == NULL)
		return;
	reference->document_error = ReadDocument(root, reference);
	if (reference->document_error != 0)
		return;
	reference->event_error = ReadEvent(body, root, reference);
}

/*
 * Returns the body as jsonb, which also refuses what it cannot store in values
 * that are not read.
 */
static Jsonb *
ReadJson(const char *body, Reference *reference)
{
	const char *detail;
	Datum datum;
	int error = CallInput(jsonb_in, body, false, &datum, &detail);

	switch (error)
	{
		case 0:
			return DatumGetJsonbP(datum);
		case ERRCODE_UNTRANSLATABLE_CHARACTER:	 /* \u0000 */
		case ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE: /* 1e999999 */
			reference->unknown = true;
			return NULL;
		case ERRCODE_INVALID_TEXT_REPRESENTATION:
			if (strstr(detail, "surrogate") != NULL)
				reference->unknown = true;
			else
				reference->malformed = true;
			return NULL;
		default:
			Finding("jsonb fails with SQLSTATE %s", unpack_sql_state(error));
	}
}

static int
ReadDocument(Jsonb *root, Reference *reference)
{
	const JsonbValue *name;
	const JsonbValue *event;

	if (!JB_ROOT_IS_OBJECT(root))
		return ERRCODE_INVALID_PARAMETER_VALUE;
	strcpy(reference->path, "name");
	name = Find(root, "name");
	if (name == NULL || name->type != jbvString)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	reference->name = Spelt(name);
	event = Find(root, "event");
	reference->foreign = event != NULL && event->type == jbvString &&
						 strncmp(Spelt(event), "gigs.", 5) != 0;
	return 0;
}

static int
ReadEvent(const char *body, Jsonb *root, Reference *reference)
{
	const JsonbValue *event = Find(root, "event");
	Jsonb *data = Nested(Find(root, "data"), JB_FOBJECT);
	int kind = 0;

	strcpy(reference->path, "event");
	if (event == NULL || event->type != jbvString)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	while (strcmp(Spelt(event), gig_event_names[kind]) != 0)
	{
		if (++kind == GIG_WEBHOOK_KINDS)
			return ERRCODE_FEATURE_NOT_SUPPORTED;
	}
	reference->event.kind = (GigEventKind) kind;

	strcpy(reference->path, "data");
	if (data == NULL)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	for (int i = 0; i < GIG_WEBHOOK_FIELDS; i++)
	{
		const GigEventField *field = &gig_event_fields[i];
		int error;

		if ((field->kinds & GIG_EVENT_BIT(kind)) == 0)
			continue;
		strcpy(reference->path, field->path);
		error = ReadField(body, data, i, reference);
		if (error != 0 || reference->unknown)
			return error;
	}
	return 0;
}

static int
ReadField(const char *body, Jsonb *data, int field, Reference *reference)
{
	const GigEventField *info = &gig_event_fields[field];
	JsonbValue *value = Find(data, info->key);
	void *member = GigEventMember(&reference->event, field);
	int error = 0;

	if (value == NULL || value->type == jbvNull)
		return IsRequired(info->key) ? ERRCODE_INVALID_PARAMETER_VALUE : 0;
	switch (info->type)
	{
		case GIG_UUID:
			error = ReadUuid(value, member);
			break;
		case GIG_TIMESTAMP:
			error = ReadTimestamp(value, member, &reference->unknown);
			break;
		case GIG_COUNT:
			error = ReadCount(body, info->key, value, member);
			break;
		case GIG_STATUS:
			break;
		case GIG_UUID_ARRAY:
			error = ReadUuids(value, info->path, member, reference);
			break;
	}
	reference->event.present |= UINT32_C(1) << field;
	return error;
}

/* Date-times and lists of gigs may be absent or null. */
static bool
IsRequired(const char *key)
{
	return strcmp(key, "account") == 0 || strcmp(key, "user") == 0 ||
		   strstr(key, "_count") != NULL || strcmp(key, "days_synced") == 0;
}

static int
ReadUuid(const JsonbValue *value, pg_uuid_t *uuid)
{
	Datum datum;
	char *s;

	if (value->type != jbvString)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	s = Spelt(value);
	if (!Matches(s, UUID_FORM))
		return ERRCODE_INVALID_TEXT_REPRESENTATION;
	if (CallInput(uuid_in, s, false, &datum, NULL) != 0)
		Finding("uuid does not take \"%s\"", s);
	*uuid = *DatumGetUUIDP(datum);
	return 0;
}

static int
ReadTimestamp(const JsonbValue *value, TimestampTz *timestamp, bool *unknown)
{
	Datum datum;
	char *s;
	int error;

	if (value->type != jbvString)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	s = Spelt(value);
	if (!Matches(s, TIMESTAMP_FORM))
		return ERRCODE_INVALID_DATETIME_FORMAT;
	/* PostgreSQL accepts some that are longer than MAXDATELEN */
	if (strlen(s) > MAXDATELEN)
	{
		*unknown = true;
		return 0;
	}
	error = CallInput(timestamptz_in, s, true, &datum, NULL);
	if (error == ERRCODE_INVALID_TIME_ZONE_DISPLACEMENT_VALUE)
		return ERRCODE_DATETIME_FIELD_OVERFLOW;
	if (error == 0)
		*timestamp = DatumGetTimestampTz(datum);
	return error;
}

/* Unlike jsonb, json keeps how a number is written. */
static int
ReadCount(const char *body, const char *key, const JsonbValue *value,
		  int32 *count)
{
	Datum number;
	Datum datum;
	char *s;

	if (value->type != jbvNumeric)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	number = DirectFunctionCall2(json_object_field, CStringGetTextDatum(body),
								 CStringGetTextDatum("data"));
	number = DirectFunctionCall2(json_object_field, number,
								 CStringGetTextDatum(key));
	s = TextDatumGetCString(number);
	if (!Matches(s, INTEGER_FORM))
		return ERRCODE_INVALID_TEXT_REPRESENTATION;
	if (CallInput(int4in, s, false, &datum, NULL) != 0 ||
		DatumGetInt32(datum) < 0)
		return ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE;
	*count = DatumGetInt32(datum);
	return 0;
}

static int
ReadUuids(const JsonbValue *value, const char *path, GigUuidArray *array,
		  Reference *reference)
{
	Jsonb *elements = Nested(value, JB_FARRAY);
	int n;

	if (elements == NULL)
		return ERRCODE_INVALID_PARAMETER_VALUE;
	n = JsonContainerSize(&elements->root);
	array->elements = palloc(n * sizeof(pg_uuid_t));
	array->length = n;
	for (int i = 0; i < n; i++)
	{
		int error = ReadUuid(getIthJsonbValueFromContainer(&elements->root, i),
							 &array->elements[i]);

		if (error != 0)
		{
			snprintf(reference->path, sizeof(reference->path), "%s[%d]", path,
					 i);
			return error;
		}
	}
	return 0;
}

/* The object or array that a value is, or NULL. */
static Jsonb *
Nested(const JsonbValue *value, uint32 flag)
{
	Jsonb *nested;

	if (value == NULL || value->type != jbvBinary)
		return NULL;
	nested = JsonbValueToJsonb((JsonbValue *) value);
	return (nested->root.header & flag) != 0 ? nested : NULL;
}

static JsonbValue *
Find(Jsonb *object, const char *key)
{
	JsonbValue wanted;

	wanted.type = jbvString;
	wanted.val.string.val = (char *) key;
	wanted.val.string.len = (int) strlen(key);
	return findJsonbValueFromContainer(&object->root, JB_FOBJECT, &wanted);
}

static char *
Spelt(const JsonbValue *value)
{
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static bool
Matches(const char *s, const char *form)
{
	return RE_compile_and_execute(cstring_to_text(form), (char *) s,
								  (int) strlen(s), REG_ADVANCED,
								  C_COLLATION_OID, 0, NULL);
}

/*
 * Calls a type's input function.  Returns the SQLSTATE of what it raised, or 0.
 */
static int
CallInput(PGFunction function, const char *s, bool typmod, Datum *result,
		  const char **detail)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int error = 0;

	PG_TRY();
	{
		if (typmod)
			*result = DirectFunctionCall3(function, CStringGetDatum(s),
										  ObjectIdGetDatum(InvalidOid),
										  Int32GetDatum(-1));
		else
			*result = DirectFunctionCall1(function, CStringGetDatum(s));
	}
	PG_CATCH();
	{
		ErrorData *raised;

		MemoryContextSwitchTo(context);
		raised = CopyErrorData();
		FlushErrorState();
		error = raised->sqlerrcode;
		if (detail != NULL)
			*detail = raised->detail ? raised->detail : "";
	}
	PG_END_TRY();
	return error;
}
