/*-------------------------------------------------------------------------
 *
 * event_json.c
 *	  Parsing a webhook's body into a GigEvent.
 *
 * PostgreSQL's JSON parser reads the body once.  Its semantic actions record
 * where the values of known keys are.  Values are checked afterwards: a later
 * key replaces an earlier one, as in jsonb, and the required fields depend on
 * "event", which may come last.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "compat.h"
#include "event.h"
#include "event_value.h"

/*
 * Maximum nesting depth.  The parser recurses and would raise an error when the
 * stack depth limit is exceeded, which is far deeper.
 */
#define MAX_DEPTH 256

/* Depths of the objects and arrays that have known keys. */
#define ROOT_DEPTH 1
#define DATA_DEPTH 2
#define GIGS_DEPTH 3

/* The elements of a gigs array, as far as they are UUIDs. */
typedef struct GigList
{
	GigUuidArray gigs;
	int capacity;
	JsonValue bad; /* the first element that is none, behind the gigs */
} GigList;

struct GigDocument
{
	JsonLexContext *lex;
	GigError *error; /* filled when an action stops the parser */
	int depth;
	bool in_data;	  /* the root's current key is "data" */
	int current_list; /* the field whose array is being parsed, or -1 */
	const char *before_key;

	JsonValue event;
	JsonValue name;
	JsonValue data;
	JsonValue fields[GIG_EVENT_FIELDS];
	GigList lists[GIG_EVENT_FIELDS];

	const char *name_utf8; /* what "name" spells */
};

static bool CheckEncoding(const char *body, size_t len, GigError *error);
static JSON_ACTION StartNested(void *state);
static JSON_ACTION EndNested(void *state);
static JSON_ACTION StartField(void *state, char *key, bool isnull);
static JSON_ACTION EndField(void *state, char *key, bool isnull);
static JSON_ACTION StartElement(void *state, bool isnull);
static JsonValue CurrentKey(const GigDocument *document);
static JsonValue CurrentValue(const GigDocument *document);
static void NoteRootField(GigDocument *document, const char *key, size_t len);
static void NoteDataField(GigDocument *document, const char *key, size_t len);
static void NoteGig(GigDocument *document);
static void SetJsonError(const GigDocument *document, const char *body,
						 size_t len, JsonParseErrorType result);
static bool ReadField(const GigDocument *document, int field, GigEvent *event,
					  GigError *error);
static bool RefuseGig(const GigList *list, const char *path, GigError *error);

/*
 * Parses a body's structure and the subscription's name.
 *
 * Memory is allocated in the current context, and the document points into the
 * body.  Returns NULL and fills the error if the body is not a JSON object with
 * a name.
 */
GigDocument *
ReadGigDocument(const char *body, size_t len, GigError *error)
{
	GigDocument *document = palloc0(sizeof(GigDocument));
	JsonSemAction actions = {
		.semstate = document,
		.object_start = StartNested,
		.object_end = EndNested,
		.array_start = StartNested,
		.array_end = EndNested,
		.object_field_start = StartField,
		.object_field_end = EndField,
		.array_element_start = StartElement,
	};
	JsonParseErrorType result;
	const char *name;
	size_t name_len;

	error->sqlerrcode = 0;
	if (!CheckEncoding(body, len, error))
		return NULL;

	document->error = error;
	document->current_list = -1;
	document->lex = MakeRawJsonLexer(body, (int) len);
	result = pg_parse_json(document->lex, &actions);
	/* cppcheck-suppress knownConditionTrueFalse ; an action may have set it */
	if (error->sqlerrcode != 0)
		return NULL;
	if (result != JSON_SUCCESS)
	{
		SetJsonError(document, body, len, result);
		return NULL;
	}
	if (body[strspn(body, " \t\n\r")] != '{')
	{
		SetGigError(error, ERRCODE_INVALID_PARAMETER_VALUE,
					"webhook body is not a JSON object");
		return NULL;
	}

	if (!DecodeJsonString(&document->name, "name", &name, &name_len, error))
		return NULL;
	document->name_utf8 = pnstrdup(name, name_len);
	return document;
}

/*
 * Checks that a body is UTF-8, without what the parser would report less clearly.
 */
static bool
CheckEncoding(const char *body, size_t len, GigError *error)
{
	int valid_len = pg_encoding_verifymbstr(PG_UTF8, body, (int) len);

	if (len >= 3 && memcmp(body, "\xef\xbb\xbf", 3) == 0)
		return SetGigError(error, ERRCODE_INVALID_JSON_TEXT,
						   "malformed JSON at byte 0: webhook body begins with a byte order mark");
	if (len >= 2 && memcmp(body, "\x1f\x8b", 2) == 0)
		return SetGigError(error, ERRCODE_INVALID_JSON_TEXT,
						   "malformed JSON at byte 0: webhook body is compressed with gzip");
	if ((size_t) valid_len < len)
		return SetGigError(error, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
						   "invalid byte sequence for encoding \"UTF8\" at byte %d: 0x%02x",
						   valid_len, (unsigned char) body[valid_len]);
	return true;
}

/*
 * Returns the name of the subscription that delivered a document.
 */
const char *
GigDocumentName(const GigDocument *document)
{
	return document->name_utf8;
}

/*
 * Tells whether a document's event belongs to another family than "gigs".
 */
bool
GigDocumentIsForeign(const GigDocument *document)
{
	const char *family = "gigs.";
	const char *event;
	size_t len;

	return DecodeJsonString(&document->event, "event", &event, &len, NULL) &&
		   (len < strlen(family) || memcmp(event, family, strlen(family)) != 0);
}

/*
 * Reads a document's event and checks it against the table of fields.
 */
bool
ReadGigEvent(const GigDocument *document, GigEvent *event, GigError *error)
{
	const char *name;
	size_t len;

	memset(event, 0, sizeof(GigEvent));
	event->name = document->name_utf8;

	if (!DecodeJsonString(&document->event, "event", &name, &len, error))
		return false;
	if (!FindGigEventKind(name, len, &event->kind))
		return SetGigError(error, ERRCODE_FEATURE_NOT_SUPPORTED,
						   "invalid value for key \"event\": unsupported event \"%s\"",
						   QuotableInput(name, len));
	if (document->data.type != JSON_TOKEN_OBJECT_START)
		return SetTypeError(error, "data", "an object", document->data.type);

	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		if ((gig_event_fields[i].kinds & GIG_EVENT_BIT(event->kind)) != 0 &&
			!ReadField(document, i, event, error))
			return false;
	}
	return true;
}

static bool
ReadField(const GigDocument *document, int field, GigEvent *event,
		  GigError *error)
{
	const GigEventField *info = &gig_event_fields[field];
	const JsonValue *value = &document->fields[field];
	const GigList *list = &document->lists[field];
	const char *path = info->path;
	void *member = GigEventMember(event, field);

	if (!info->required &&
		(value->type == JSON_TOKEN_INVALID || value->type == JSON_TOKEN_NULL))
		return true;

	event->present |= UINT32_C(1) << field;
	switch (info->type)
	{
		case GIG_UUID:
			return DecodeUuid(value, path, member, error);
		case GIG_TIMESTAMP:
			return DecodeTimestamp(value, path, member, error);
		case GIG_COUNT:
			return DecodeCount(value, path, member, error);
		case GIG_UUID_ARRAY:
			if (value->type != JSON_TOKEN_ARRAY_START)
				return SetTypeError(error, path, "an array", value->type);
			if (list->bad.type != JSON_TOKEN_INVALID)
				return RefuseGig(list, path, error);
			*(GigUuidArray *) member = list->gigs;
			return true;
	}
	pg_unreachable();
}

/*
 * Fills the error for the first element of a gigs array that is not a UUID.
 */
static bool
RefuseGig(const GigList *list, const char *path, GigError *error)
{
	char element_path[64];
	pg_uuid_t unused;

	snprintf(element_path, sizeof(element_path), "%s[%d]", path,
			 list->gigs.length);
	return DecodeUuid(&list->bad, element_path, &unused, error);
}

/*
 * The parser's semantic actions.
 *
 * When an object field or array element starts, the lexer has just read the
 * value's first token, which is the whole value unless it is an object or array.
 */
static JSON_ACTION
StartNested(void *state)
{
	GigDocument *document = state;

	CHECK_FOR_INTERRUPTS();
	if (++document->depth > MAX_DEPTH)
	{
		SetGigError(document->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
					"webhook body nests deeper than %d levels", MAX_DEPTH);
		JSON_ACTION_STOP(document->lex);
	}
	document->before_key = document->lex->token_terminator;
	JSON_ACTION_CONTINUE();
}

static JSON_ACTION
EndNested(void *state)
{
	GigDocument *document = state;

	document->depth--;
	JSON_ACTION_CONTINUE();
}

static JSON_ACTION
StartField(void *state, char *key pg_attribute_unused(),
		   bool isnull pg_attribute_unused())
{
	GigDocument *document = state;

	if (document->depth == ROOT_DEPTH ||
		(document->depth == DATA_DEPTH && document->in_data))
	{
		JsonValue token = CurrentKey(document);
		const char *name;
		size_t len;

		/* a key with invalid escapes is an unknown key */
		if (!DecodeJsonString(&token, "", &name, &len, NULL))
			len = 0;
		if (document->depth == ROOT_DEPTH)
			NoteRootField(document, name, len);
		else
			NoteDataField(document, name, len);
	}
	JSON_ACTION_CONTINUE();
}

static JSON_ACTION
EndField(void *state, char *key pg_attribute_unused(),
		 bool isnull pg_attribute_unused())
{
	GigDocument *document = state;

	document->before_key = document->lex->prev_token_terminator;
	JSON_ACTION_CONTINUE();
}

static JSON_ACTION
StartElement(void *state, bool isnull pg_attribute_unused())
{
	GigDocument *document = state;

	if (document->depth == GIGS_DEPTH && document->current_list >= 0)
		NoteGig(document);
	JSON_ACTION_CONTINUE();
}

/*
 * Returns the token of the key whose value starts.
 *
 * A lexer that does not resolve escapes passes no key.  But it is the only token
 * with quotation marks after the last "{" or value.
 */
static JsonValue
CurrentKey(const GigDocument *document)
{
	const char *start = document->before_key;
	const char *end = document->lex->prev_token_terminator;
	JsonValue token = {.type = JSON_TOKEN_STRING};

	while (*start != '"')
		start++;
	while (end[-1] != '"')
		end--;
	token.start = start;
	token.len = end - start;
	return token;
}

static JsonValue
CurrentValue(const GigDocument *document)
{
	const JsonLexContext *lex = document->lex;

	return (JsonValue){.type = lex->token_type,
					   .start = lex->token_start,
					   .len = lex->token_terminator - lex->token_start};
}

static void
NoteRootField(GigDocument *document, const char *key, size_t len)
{
	document->current_list = -1;
	document->in_data = false;
	if (len == 5 && memcmp(key, "event", 5) == 0)
		document->event = CurrentValue(document);
	else if (len == 4 && memcmp(key, "name", 4) == 0)
		document->name = CurrentValue(document);
	else if (len == 4 && memcmp(key, "data", 4) == 0)
	{
		document->data = CurrentValue(document);
		document->in_data = true;
		/* a second "data" replaces all of the first */
		for (int i = 0; i < GIG_EVENT_FIELDS; i++)
			document->fields[i].type = JSON_TOKEN_INVALID;
	}
}

static void
NoteDataField(GigDocument *document, const char *key, size_t len)
{
	int field = FindGigEventField(key, len);

	document->current_list = -1;
	if (field < 0)
		return;
	document->fields[field] = CurrentValue(document);
	if (gig_event_fields[field].type == GIG_UUID_ARRAY &&
		document->fields[field].type == JSON_TOKEN_ARRAY_START)
	{
		document->current_list = field;
		document->lists[field].gigs.length = 0;
		document->lists[field].bad.type = JSON_TOKEN_INVALID;
	}
}

static void
NoteGig(GigDocument *document)
{
	GigList *list = &document->lists[document->current_list];
	GigUuidArray *gigs = &list->gigs;
	JsonValue value = CurrentValue(document);

	if (list->bad.type != JSON_TOKEN_INVALID)
		return;
	if (gigs->length == list->capacity)
	{
		list->capacity = Max(8, list->capacity * 2);
		gigs->elements =
			gigs->elements
				? repalloc(gigs->elements, list->capacity * sizeof(pg_uuid_t))
				: palloc(list->capacity * sizeof(pg_uuid_t));
	}
	/* the error is set by RefuseGig(), once the signature is valid */
	if (DecodeUuid(&value, "", &gigs->elements[gigs->length], NULL))
		gigs->length++;
	else
		list->bad = value;
}

/*
 * Fills the error with the parser's error and its position.
 */
static void
SetJsonError(const GigDocument *document, const char *body, size_t len,
			 JsonParseErrorType result)
{
	const JsonLexContext *lex = document->lex;
	const char *detail = json_errdetail(result, document->lex);
	size_t detail_len = strlen(detail);
	size_t at = lex->token_start ? (size_t) (lex->token_start - body) : len;

	if (detail_len > 0 && detail[detail_len - 1] == '.')
		detail_len--;
	SetGigError(document->error, ERRCODE_INVALID_JSON_TEXT,
				"malformed JSON at byte %zu: %s", at,
				QuotableInput(detail, detail_len));
}
