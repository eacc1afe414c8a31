/*-------------------------------------------------------------------------
 *
 * event_json.c
 *	  Parsing a webhook's body, or an account object, into a GigEvent.
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

/* Depths of the root's keys, and of the elements of a webhook's gigs arrays. */
#define ROOT_DEPTH 1
#define GIGS_DEPTH 3

/* The keys that lead from the root to the object with an event's fields. */
static const char *const webhook_path[] = {"data", NULL};
static const char *const account_path[] = {"availability", "gigs", NULL};

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
	bool is_account;
	int depth;
	int known_depth;  /* keys at this depth and above are read */
	int current_list; /* the field whose array is being parsed, or -1 */
	const char *before_key;

	JsonValue event;
	JsonValue name;
	JsonValue data; /* the object with the event's fields */
	JsonValue fields[GIG_EVENT_FIELDS];
	GigList lists[GIG_EVENT_FIELDS];

	const char *name_utf8; /* what "name" spells */
};

static const char *DescribeBody(const GigDocument *document);
static bool CheckEncoding(const char *body, size_t len, GigError *error);
static JSON_ACTION StartNested(void *state);
static JSON_ACTION EndNested(void *state);
static JSON_ACTION StartField(void *state, char *key, bool isnull);
static JSON_ACTION EndField(void *state, char *key, bool isnull);
static JSON_ACTION StartElement(void *state, bool isnull);
static JsonValue CurrentKey(const GigDocument *document);
static JsonValue CurrentValue(const GigDocument *document);
static void NoteField(GigDocument *document, const char *key, size_t len);
static void NoteEventField(GigDocument *document, GigFieldScope scope,
						   const char *key, size_t len);
static bool KeyEquals(const char *key, size_t len, const char *expected);
static void NoteGig(GigDocument *document);
static void SetJsonError(const GigDocument *document, const char *body,
						 size_t len, JsonParseErrorType result);
static bool ReadField(const GigDocument *document, int field, GigEvent *event,
					  GigError *error);
static bool RefuseGig(const GigList *list, const char *path, GigError *error);

/*
 * Parses a body's structure and, of a webhook, the subscription's name.
 *
 * Memory is allocated in the current context, and the document points into the
 * body.  Returns NULL and fills the error if the body is not a JSON object, or
 * is a webhook without a name.
 */
GigDocument *
ReadGigDocument(const char *body, size_t len, bool is_account, GigError *error)
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
	document->is_account = is_account;
	document->known_depth = ROOT_DEPTH;
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
					"%s is not a JSON object", DescribeBody(document));
		return NULL;
	}

	document->name_utf8 = "";
	if (is_account)
		return document;
	if (!DecodeJsonString(&document->name, "name", &name, &name_len, error))
		return NULL;
	document->name_utf8 = pnstrdup(name, name_len);
	return document;
}

static const char *
DescribeBody(const GigDocument *document)
{
	return document->is_account ? "account" : "webhook body";
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
 * Tells whether an account object says that the account has no gigs to sync:
 * "availability" or "availability.gigs" is null.
 */
bool
GigDocumentLacksGigs(const GigDocument *document)
{
	return document->data.type == JSON_TOKEN_NULL;
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

	if (document->is_account)
		event->kind = GIGS_RECONCILED;
	else if (!DecodeJsonString(&document->event, "event", &name, &len, error))
		return false;
	else if (!FindGigEventKind(name, len, &event->kind))
		return SetGigError(error, ERRCODE_FEATURE_NOT_SUPPORTED,
						   "invalid value for key \"event\": unsupported event \"%s\"",
						   QuotableInput(name, len));
	if (document->data.type != JSON_TOKEN_OBJECT_START)
		return SetTypeError(error,
							document->is_account ? "availability.gigs" : "data",
							"an object", document->data.type);

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
	const char *status;
	size_t len;

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
		case GIG_STATUS:
			if (!DecodeJsonString(value, path, &status, &len, error))
				return false;
			*(bool *) member = KeyEquals(status, len, "synced");
			return true;
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
					"%s nests deeper than %d levels", DescribeBody(document),
					MAX_DEPTH);
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

	if (document->depth <= document->known_depth)
	{
		JsonValue token = CurrentKey(document);
		const char *name;
		size_t len;

		/* a key with invalid escapes is an unknown key */
		if (!DecodeJsonString(&token, "", &name, &len, NULL))
			len = 0;
		NoteField(document, name, len);
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

/*
 * Notes the value of a key at the root, or in an object on the way from there to
 * the event's fields.
 */
static void
NoteField(GigDocument *document, const char *key, size_t len)
{
	int depth = document->depth;
	const char *const *next = &(
		document->is_account ? account_path : webhook_path)[depth - ROOT_DEPTH];

	document->current_list = -1;
	document->known_depth = depth;
	if (next[0] == NULL)
		NoteEventField(document,
					   document->is_account ? GIG_IN_GIGS : GIG_IN_DATA, key,
					   len);
	else if (KeyEquals(key, len, next[0]))
	{
		document->known_depth++;
		document->data = CurrentValue(document);
		if (next[1] != NULL && document->data.type == JSON_TOKEN_OBJECT_START)
			document->data.type = JSON_TOKEN_INVALID;
		/* a second "data" replaces all of the first */
		for (int i = 0; i < GIG_EVENT_FIELDS; i++)
		{
			if (gig_event_fields[i].scope != GIG_IN_ACCOUNT)
				document->fields[i].type = JSON_TOKEN_INVALID;
		}
	}
	else if (depth > ROOT_DEPTH)
		return;
	else if (document->is_account)
		NoteEventField(document, GIG_IN_ACCOUNT, key, len);
	else if (KeyEquals(key, len, "event"))
		document->event = CurrentValue(document);
	else if (KeyEquals(key, len, "name"))
		document->name = CurrentValue(document);
}

static void
NoteEventField(GigDocument *document, GigFieldScope scope, const char *key,
			   size_t len)
{
	int field = FindGigEventField(scope, key, len);

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

static bool
KeyEquals(const char *key, size_t len, const char *expected)
{
	return strlen(expected) == len && memcmp(key, expected, len) == 0;
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
