/*-------------------------------------------------------------------------
 *
 * fuzz.c
 *	  Fuzzes the parser, the digest and the signature check in a server.
 *
 * gig_fuzz(), a SQL function, runs libFuzzer in its backend.  An input is a
 * webhook's body, unless its first byte is one of these, with which no JSON
 * starts:
 *
 *	  S	 the rest is a signature header
 *	  K	 a byte, the length of the key; the key; the body that it signs
 *	  Q	 the rest is quoted in a message
 *
 * An input that fails a check ends the process, and libFuzzer keeps it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>
#include <signal.h>

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "chunks.h"
#include "fuzz.h"
#include "hex.h"
#include "signature.h"

/* The longest message names a key's path and quotes this many bytes. */
#define MAX_QUOTED 80
#define MAX_MESSAGE 200

/* Of a body's arrays and objects. */
#define MAX_DEPTH 256

/* Of the bodies that are not JSON, one in this many is given to jsonb as well. */
#define MALFORMED_SHOWN 8

/* The result of parsing a body. */
typedef struct Reading
{
	bool is_document;
	bool is_event;
	bool foreign;
	const char *name;
	GigEvent event;
	GigError error; /* if it is not an event */
} Reading;

/* Settings of the session, which must not change what a body means. */
typedef struct Session
{
	int date_order;
	const char *zone;
	pg_tz *tz;
} Session;

static Session sessions[] = {
	{DATEORDER_MDY, "UTC", NULL},
	{DATEORDER_DMY, "America/New_York", NULL},
};

/*
 * What a digest is made of, event by event, independently of gig_event_fields:
 * the fields in the order in which they are digested.  "u" is a uuid, "t" a
 * date-time, "c" a count, "a" an array of uuids.
 */
typedef struct DigestedField
{
	char type;
	const char *key;
} DigestedField;

#define DIGESTED_FIELDS 9

/* clang-format off */
static const DigestedField digested_fields[GIG_WEBHOOK_KINDS][DIGESTED_FIELDS] = {
	[GIGS_ADDED] = {{'u', "account"}, {'u', "user"}, {'t', "available_from"}, {'t', "available_to"}, {'c', "available_count"},
		{'c', "added_count"}, {'t', "added_from"}, {'t', "added_to"}},
	[GIGS_UPDATED] = {{'u', "account"}, {'u', "user"}, {'t', "available_from"}, {'t', "available_to"}, {'c', "available_count"},
		{'c', "updated_count"}, {'a', "updated_gigs"}, {'t', "updated_from"}, {'t', "updated_to"}},
	[GIGS_REMOVED] = {{'u', "account"}, {'u', "user"}, {'t', "available_from"}, {'t', "available_to"}, {'c', "available_count"},
		{'c', "removed_count"}, {'a', "removed_gigs"}, {'t', "removed_from"}, {'t', "removed_to"}},
	[GIGS_PARTIALLY_SYNCED] = {{'u', "account"}, {'u', "user"}, {'t', "available_from"}, {'t', "available_to"}, {'c', "available_count"},
		{'c', "days_synced"}},
	[GIGS_FULLY_SYNCED] = {{'u', "account"}, {'u', "user"}, {'t', "available_from"}, {'t', "available_to"}, {'c', "available_count"}},
};
/* clang-format on */

extern int LLVMFuzzerRunDriver(int *argc, char ***argv,
							   int (*fuzz_one)(const uint8_t *, size_t));

static int FuzzOne(const uint8_t *input, size_t len);
static void FuzzBody(const char *body, size_t len);
static void FuzzAccount(const char *account, size_t len);
static void CheckAccount(const GigEvent *event, uint32 chance);
static void ReadBody(const char *body, size_t len, bool is_account,
					 Reading *reading);
static void CheckError(const GigError *error);
static void CheckMessage(const char *message, size_t max_len);
static bool IsQuotable(const char *s, size_t len);
static bool HasPrefix(const char *s, size_t len, const char *prefix);
static void CheckSame(const Reading *a, const Reading *b);
static void CheckSameEvent(const GigEvent *a, const GigEvent *b);
static void CheckPrefix(const Reading *reading, const char *what);
static void CheckAgainstPostgres(const char *body, size_t len,
								 const Reading *reading);
static int NestingDepth(const char *body, size_t len);
static void CheckRefusal(const GigError *error, int sqlerrcode,
						 const char *path);
static void CheckDigest(const GigEvent *event, uint32 chance);
static int64 ExpectedDigest(const GigEvent *event);
static void AppendBigEndian(StringInfo bytes, int64 value);
static void CheckUndigested(const GigEvent *event);
static void CheckChanged(const GigEvent *event, uint32 chance);
static void ChangeUuids(GigUuidArray *array, uint32 chance);
static void CheckRendered(const GigEvent *event, uint32 chance);
static bool RenderEvent(const GigEvent *event, uint32 chance, StringInfo body);
static bool RenderField(const GigEvent *event, int field, uint32 chance,
						StringInfo body);
static void RenderUuid(const pg_uuid_t *uuid, uint32 chance, StringInfo body);
static bool RenderTimestamp(TimestampTz timestamp, StringInfo body);
static void FuzzSignature(const char *hex, size_t len);
static void CheckDescription(const char *s, size_t len);
static void FuzzKey(const char *input, size_t len);
static void CheckSigning(const char *key, size_t key_len, const char *body,
						 size_t len);
static void CheckSigned(const unsigned char signature[SIGNATURE_BYTES],
						bool upper);
static void FuzzQuoted(const char *s, size_t len);
static char *ExactCopy(const void *bytes, size_t len);
static void UseSession(const Session *session);

PG_MODULE_MAGIC;

/* Reset after every input. */
static MemoryContext fuzz_context;

/*
 * gig_fuzz(args text[]) returns void
 *
 * Runs libFuzzer with these arguments; the first one is the program's name.
 * The process ends when libFuzzer does.
 */
PG_FUNCTION_INFO_V1(gig_fuzz);
Datum
gig_fuzz(PG_FUNCTION_ARGS)
{
	/* libFuzzer only handles signals that have no handler */
	static const int signals[] = {SIGALRM, SIGHUP,	SIGINT,	 SIGTERM,
								  SIGQUIT, SIGUSR1, SIGUSR2, SIGFPE};
	Datum *values;
	char **args;
	int nargs;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, NULL, &nargs);
	args = palloc0((nargs + 1) * sizeof(char *));
	for (int i = 0; i < nargs; i++)
		args[i] = TextDatumGetCString(values[i]);
	for (size_t i = 0; i < lengthof(signals); i++)
		signal(signals[i], SIG_DFL);
	for (size_t i = 0; i < lengthof(sessions); i++)
	{
		sessions[i].tz = pg_tzset(sessions[i].zone);
		if (sessions[i].tz == NULL)
			elog(ERROR, "there is no time zone \"%s\"", sessions[i].zone);
	}
	UseSession(&sessions[0]);
	fuzz_context = AllocSetContextCreate(CurrentMemoryContext, "gigs fuzz",
										 ALLOCSET_DEFAULT_SIZES);
	if (LLVMFuzzerRunDriver(&nargs, &args, FuzzOne) != 0)
		elog(ERROR, "libFuzzer did not run");
	PG_RETURN_VOID();
}

static void
UseSession(const Session *session)
{
	DateOrder = session->date_order;
	session_timezone = session->tz;
}

void
Finding(const char *fmt, ...)
{
	va_list args;

	fputs("FINDING: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

/*
 * Runs one input.  No function under test may raise an error: errors of an input
 * are returned as data.
 */
static int
FuzzOne(const uint8_t *input, size_t len)
{
	MemoryContext old_context = MemoryContextSwitchTo(fuzz_context);

	PG_TRY();
	{
		const char *s = (const char *) input;

		switch (len > 0 ? s[0] : '\0')
		{
			case 'S':
				FuzzSignature(s + 1, len - 1);
				break;
			case 'K':
				FuzzKey(s + 1, len - 1);
				break;
			case 'A':
				FuzzAccount(s + 1, len - 1);
				break;
			case 'Q':
				FuzzQuoted(s + 1, len - 1);
				break;
			default:
				FuzzBody(s, len);
				break;
		}
	}
	PG_CATCH();
	{
		ErrorData *raised;

		MemoryContextSwitchTo(fuzz_context);
		raised = CopyErrorData();
		Finding("%s:%d raises SQLSTATE %s: %s", raised->filename, raised->lineno,
				unpack_sql_state(raised->sqlerrcode), raised->message);
	}
	PG_END_TRY();

	MemoryContextSwitchTo(old_context);
	MemoryContextReset(fuzz_context);
	FreeChunks();
	return 0;
}

/*
 * Returns a copy without a terminator, between addresses that may not be read.
 */
static char *
ExactCopy(const void *bytes, size_t len)
{
	char *copy;

	/* malloc(0) may return a byte that may be read */
	if (len == 0)
		return (char *) ChunkAlloc(1) + 1;
	copy = ChunkAlloc(len);
	memcpy(copy, bytes, len);
	return copy;
}

/* ---------------------------------------------------------------------------
 * Bodies
 * ---------------------------------------------------------------------------
 */

static void
FuzzBody(const char *input, size_t len)
{
	const char *body = ExactCopy(input, len);
	Reading reading;
	Reading again;

	ReadBody(body, len, false, &reading);
	UseSession(&sessions[1]);
	ReadBody(body, len, false, &again);
	UseSession(&sessions[0]);
	CheckSame(&reading, &again);
	if (HasPrefix(body, len, "\xef\xbb\xbf"))
		CheckPrefix(&reading, "a byte order mark");
	else if (HasPrefix(body, len, "\x1f\x8b"))
		CheckPrefix(&reading, "gzip");
	else
		CheckAgainstPostgres(body, len, &reading);
	if (reading.is_event)
		CheckDigest(&reading.event,
					hash_bytes((const unsigned char *) body, (int) len));
}

/*
 * Reads an account object, which is no webhook.
 */
static void
FuzzAccount(const char *input, size_t len)
{
	const char *account = ExactCopy(input, len);
	Reading reading;
	Reading again;

	ReadBody(account, len, true, &reading);
	UseSession(&sessions[1]);
	ReadBody(account, len, true, &again);
	UseSession(&sessions[0]);
	CheckSame(&reading, &again);
	if (reading.is_event && reading.event.kind != GIGS_RECONCILED)
		Finding("an account is an event of kind %d", reading.event.kind);
}

/*
 * Checks that what an event says of its account is read from an account object.
 * The first five fields are the same of both.
 */
static void
CheckAccount(const GigEvent *event, uint32 chance)
{
	bool is_synced = chance % 2 == 0;
	StringInfoData body;
	Reading reading;

	initStringInfo(&body);
	appendStringInfoString(&body, "{\"data\":{\"account\":7},\"id\":");
	RenderUuid(&event->account_id, chance, &body);
	if (!RenderField(event, 1, chance, &body))
		return;
	appendStringInfo(&body,
					 ",\"availability\":{\"gigs\":{\"available_from\":1}},"
					 "\"availability\" :{\"gigs\":7,\"gigs\": {\"status\":\"%s\"",
					 is_synced ? "s\\u0079nced" : "syncedd");
	for (int i = 2; i < 5; i++)
	{
		if (!RenderField(event, i, chance >> i, &body))
			return;
	}
	appendStringInfoString(&body,
						   "},\"shifts\":{\"gigs\":{\"status\":1}}},\"gigs\":1}");

	ReadBody(ExactCopy(body.data, body.len), body.len, true, &reading);
	if (!reading.is_event)
		Finding("an account cannot be read: %s: %s", reading.error.message,
				body.data);
	if (reading.event.is_synced != is_synced)
		Finding("the status of an account differs: %s", body.data);
	for (int i = 0; i < 5; i++)
	{
		int field = GIG_WEBHOOK_FIELDS + i;
		size_t size = gig_event_fields[i].type == GIG_UUID ? sizeof(pg_uuid_t)
					  : gig_event_fields[i].type == GIG_COUNT
						  ? sizeof(int32)
						  : sizeof(TimestampTz);

		if (GigEventHas(&reading.event, field) != GigEventHas(event, i) ||
			(GigEventHas(event, i) &&
			 memcmp(GigEventMember(&reading.event, field),
					GigEventMember(event, i), size) != 0))
			Finding("key \"%s\" of an account differs: %s",
					gig_event_fields[field].path, body.data);
	}
}

static void
ReadBody(const char *body, size_t len, bool is_account, Reading *reading)
{
	GigDocument *document;

	memset(reading, 0, sizeof(Reading));
	document = ReadGigDocument(body, len, is_account, &reading->error);
	reading->is_document = (document != NULL);
	if (document != NULL)
	{
		reading->name = GigDocumentName(document);
		reading->foreign = !is_account && GigDocumentIsForeign(document);
		reading->is_event =
			ReadGigEvent(document, &reading->event, &reading->error);
	}
	if (!reading->is_event)
		CheckError(&reading->error);
}

static void
CheckError(const GigError *error)
{
	static const int documented[] = {
		ERRCODE_INVALID_JSON_TEXT,
		ERRCODE_INVALID_PARAMETER_VALUE,
		ERRCODE_INVALID_TEXT_REPRESENTATION,
		ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
		ERRCODE_INVALID_DATETIME_FORMAT,
		ERRCODE_DATETIME_FIELD_OVERFLOW,
		ERRCODE_UNTRANSLATABLE_CHARACTER,
		ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
		ERRCODE_FEATURE_NOT_SUPPORTED,
		ERRCODE_PROGRAM_LIMIT_EXCEEDED,
	};
	bool found = false;

	for (size_t i = 0; i < lengthof(documented); i++)
		found |= (error->sqlerrcode == documented[i]);
	if (!found)
		Finding("SQLSTATE %s is not documented",
				unpack_sql_state(error->sqlerrcode));
	if (error->log_detail != NULL)
		Finding("a body's error has a detail for the log");
	CheckMessage(error->message, MAX_MESSAGE);
}

/* A message may go to a log, to a table and to a client. */
static void
CheckMessage(const char *message, size_t max_len)
{
	size_t len = strlen(message);

	if (len > max_len)
		Finding("a message of %zu bytes: %s", len, message);
	if (!IsQuotable(message, len))
		Finding("a message cannot be logged: %s", message);
}

/*
 * Tells whether a string is valid UTF-8 without control characters.
 */
static bool
IsQuotable(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) s[i];

		if (c < ' ' || c == 0x7f ||
			(c == 0xc2 && i + 1 < len && (unsigned char) s[i + 1] < 0xa0))
			return false;
	}
	return pg_verify_mbstr(PG_UTF8, s, (int) len, true);
}

static bool
HasPrefix(const char *s, size_t len, const char *prefix)
{
	return len >= strlen(prefix) && memcmp(s, prefix, strlen(prefix)) == 0;
}

/*
 * Checks that a body means the same in both sessions.
 */
static void
CheckSame(const Reading *a, const Reading *b)
{
	if (a->is_document != b->is_document || a->is_event != b->is_event ||
		a->foreign != b->foreign || a->error.sqlerrcode != b->error.sqlerrcode)
		Finding("a body is read in two ways");
	if (a->is_document && strcmp(a->name, b->name) != 0)
		Finding("a body has two names: \"%s\" and \"%s\"", a->name, b->name);
	if (a->is_event)
		CheckSameEvent(&a->event, &b->event);
	else if (strcmp(a->error.message, b->error.message) != 0)
		Finding("a body has two errors: \"%s\" and \"%s\"", a->error.message,
				b->error.message);
}

static void
CheckSameEvent(const GigEvent *a, const GigEvent *b)
{
	if (a->kind != b->kind)
		Finding("kind %d and %d", a->kind, b->kind);
	if (a->present != b->present)
		Finding("fields 0x%x and 0x%x", a->present, b->present);
	for (int i = 0; i < GIG_WEBHOOK_FIELDS; i++)
	{
		const void *x = GigEventMember(a, i);
		const void *y = GigEventMember(b, i);
		const GigUuidArray *xs = x;
		const GigUuidArray *ys = y;
		bool same = true;

		if (!GigEventHas(a, i))
			continue;
		switch (gig_event_fields[i].type)
		{
			case GIG_UUID:
				same = memcmp(x, y, sizeof(pg_uuid_t)) == 0;
				break;
			case GIG_TIMESTAMP:
				same = *(const TimestampTz *) x == *(const TimestampTz *) y;
				break;
			case GIG_COUNT:
				same = *(const int32 *) x == *(const int32 *) y;
				break;
			case GIG_STATUS:
				break;
			case GIG_UUID_ARRAY:
				same = xs->length == ys->length &&
					   (xs->length == 0 ||
						memcmp(xs->elements, ys->elements,
							   xs->length * sizeof(pg_uuid_t)) == 0);
				break;
		}
		if (!same)
			Finding("key \"%s\" has two values", gig_event_fields[i].path);
	}
	if (DigestGigEvent(a) != DigestGigEvent(b))
		Finding("the same event has two digests");
}

/*
 * Checks the error for a body that starts with what is not JSON.
 */
static void
CheckPrefix(const Reading *reading, const char *what)
{
	if (reading->is_document ||
		reading->error.sqlerrcode != ERRCODE_INVALID_JSON_TEXT ||
		strstr(reading->error.message, what) == NULL)
		Finding("a body with %s is not refused as such", what);
}

/*
 * Compares a reading with that of PostgreSQL's own types.  They must agree on the
 * name first of all, because it picks the secrets that verify a body, and keys
 * may be escaped or repeated.
 */
static void
CheckAgainstPostgres(const char *body, size_t len, const Reading *reading)
{
	bool utf8 = pg_verify_mbstr(PG_UTF8, body, (int) len, true);
	int sqlerrcode = reading->is_document ? 0 : reading->error.sqlerrcode;
	int depth;
	Reference reference;

	if (utf8 == (sqlerrcode == ERRCODE_CHARACTER_NOT_IN_REPERTOIRE))
		Finding("UTF-8: %d, SQLSTATE %s", utf8, unpack_sql_state(sqlerrcode));
	if (!utf8)
		return;
	depth = NestingDepth(body, len);
	if (depth > MAX_DEPTH && reading->is_document)
		Finding("a depth of %d is accepted", depth);
	if (sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
	{
		if (depth <= MAX_DEPTH)
			Finding("a depth of %d is refused", depth);
		return;
	}
	if (sqlerrcode == ERRCODE_INVALID_JSON_TEXT &&
		hash_bytes((const unsigned char *) body, (int) len) % MALFORMED_SHOWN !=
			0)
		return;

	AskPostgres(body, len, &reference);
	if (reference.malformed || sqlerrcode == ERRCODE_INVALID_JSON_TEXT)
	{
		if (!reference.malformed && reference.unknown)
			return;
		CheckRefusal(reading->is_document ? NULL : &reading->error,
					 reference.malformed ? ERRCODE_INVALID_JSON_TEXT
										 : reference.document_error,
					 "");
		return;
	}
	if (reference.unknown && reference.name == NULL)
		return;
	if (reference.document_error != 0)
	{
		CheckRefusal(reading->is_document ? NULL : &reading->error,
					 reference.document_error, reference.path);
		return;
	}
	if (!reading->is_document)
		Finding("a document is refused: %s", reading->error.message);
	if (strcmp(reading->name, reference.name) != 0)
		Finding("name is \"%s\", not \"%s\"", reference.name, reading->name);
	if (reading->foreign != reference.foreign)
		Finding("an event's family is mistaken");
	if (reference.unknown)
		return;
	if (reference.event_error != 0)
	{
		CheckRefusal(reading->is_event ? NULL : &reading->error,
					 reference.event_error, reference.path);
		return;
	}
	if (!reading->is_event)
		Finding("an event is refused: %s", reading->error.message);
	CheckSameEvent(&reading->event, &reference.event);
}

/*
 * Returns how deep arrays and objects nest, up to where a body is not JSON.
 */
static int
NestingDepth(const char *body, size_t len)
{
	int depth = 0;
	int max_depth = 0;
	bool in_string = false;

	for (size_t i = 0; i < len; i++)
	{
		if (body[i] == '"')
			in_string = !in_string;
		else if (in_string)
			i += (body[i] == '\\');
		else if (body[i] == '[' || body[i] == '{')
		{
			depth++;
			max_depth = Max(max_depth, depth);
		}
		else if (body[i] == ']' || body[i] == '}')
			depth--;
	}
	return max_depth;
}

/* The error is NULL if there was none. */
static void
CheckRefusal(const GigError *error, int sqlerrcode, const char *path)
{
	char quoted[80];

	if (error == NULL)
		Finding("accepted, though PostgreSQL gives SQLSTATE %s for key \"%s\"",
				unpack_sql_state(sqlerrcode), path);
	snprintf(quoted, sizeof(quoted), "key \"%s\"", path);
	if (error->sqlerrcode != sqlerrcode ||
		(path[0] != '\0' && strstr(error->message, quoted) == NULL))
		Finding("refused, though PostgreSQL gives SQLSTATE %s for key \"%s\": %s",
				unpack_sql_state(sqlerrcode), path, error->message);
}

/* ---------------------------------------------------------------------------
 * Digests
 * ---------------------------------------------------------------------------
 */

/*
 * Checks that the digest of an event depends on each of its fields, and on
 * nothing else.
 */
static void
CheckDigest(const GigEvent *event, uint32 chance)
{
	if (DigestGigEvent(event) != ExpectedDigest(event))
		Finding("the digest is not that of the event's fields");
	CheckUndigested(event);
	CheckChanged(event, chance);
	CheckRendered(event, chance);
	CheckAccount(event, chance);
}

/*
 * Computes a digest by the format in which digests are stored: SHA-256 of the
 * kind and the fields.  Changing it would make stored digests useless.
 */
static int64
ExpectedDigest(const GigEvent *event)
{
	StringInfoData bytes;
	unsigned char sha[SHA256_DIGEST_LENGTH];
	uint64 first = 0;

	initStringInfo(&bytes);
	AppendBigEndian(&bytes, event->kind);
	for (int i = 0; i < DIGESTED_FIELDS; i++)
	{
		DigestedField digested = digested_fields[event->kind][i];
		int field;
		const void *member;

		if (digested.key == NULL)
			break;
		field =
			FindGigEventField(GIG_IN_DATA, digested.key, strlen(digested.key));
		member = GigEventMember(event, field);
		if (!GigEventHas(event, field))
		{
			appendStringInfoChar(&bytes, '\0');
			continue;
		}
		appendStringInfoChar(&bytes, '\1');
		if (digested.type == 'u')
			appendBinaryStringInfo(&bytes, member, 16);
		else if (digested.type == 't')
			AppendBigEndian(&bytes, *(const TimestampTz *) member);
		else if (digested.type == 'c')
			AppendBigEndian(&bytes, *(const int32 *) member);
		else
		{
			const GigUuidArray *array = member;

			AppendBigEndian(&bytes, array->length);
			for (int j = 0; j < array->length; j++)
				appendBinaryStringInfo(&bytes,
									   (const char *) array->elements[j].data,
									   16);
		}
	}
	SHA256((const unsigned char *) bytes.data, bytes.len, sha);
	for (int i = 0; i < 8; i++)
		first = first << 8 | sha[i];
	return (int64) first;
}

static void
AppendBigEndian(StringInfo bytes, int64 value)
{
	for (int shift = 56; shift >= 0; shift -= 8)
		appendStringInfoChar(bytes, (char) ((uint64) value >> shift));
}

/*
 * Checks that the subscription's name and members without a value are not
 * digested.
 */
static void
CheckUndigested(const GigEvent *event)
{
	GigEvent other;

	memset(&other, 0x5a, sizeof(other));
	other.kind = event->kind;
	other.present = event->present;
	other.name = "another";
	/* sizes the buffer, even if it is not digested */
	other.changed_gigs.length = 0;
	for (int i = 0; i < GIG_WEBHOOK_FIELDS; i++)
	{
		size_t size = 0;

		if (!GigEventHas(event, i))
			continue;
		switch (gig_event_fields[i].type)
		{
			case GIG_UUID:
				size = sizeof(pg_uuid_t);
				break;
			case GIG_TIMESTAMP:
				size = sizeof(TimestampTz);
				break;
			case GIG_COUNT:
				size = sizeof(int32);
				break;
			case GIG_STATUS:
				break;
			case GIG_UUID_ARRAY:
				size = sizeof(GigUuidArray);
				break;
		}
		memcpy(GigEventMember(&other, i), GigEventMember(event, i), size);
	}
	if (DigestGigEvent(&other) != DigestGigEvent(event))
		Finding("a digest depends on what is not a field of the event");
}

/*
 * Checks that a change of one field, picked at random, or of the kind gives
 * another digest.
 */
static void
CheckChanged(const GigEvent *event, uint32 chance)
{
	GigEvent other = *event;
	int field;
	void *member;

	other.kind = (GigEventKind) ((event->kind + 1 + chance % 4) % 5);
	if (DigestGigEvent(&other) == DigestGigEvent(event))
		Finding("the kind is not digested");
	other.kind = event->kind;

	field = (int) (chance % GIG_WEBHOOK_FIELDS);
	while ((gig_event_fields[field].kinds & GIG_EVENT_BIT(event->kind)) == 0)
		field = (field + 1) % GIG_WEBHOOK_FIELDS;
	member = GigEventMember(&other, field);
	chance >>= 8;
	if (!GigEventHas(event, field) ||
		(!gig_event_fields[field].required && chance % 4 == 0))
		other.present ^= UINT32_C(1) << field;
	else
	{
		switch (gig_event_fields[field].type)
		{
			case GIG_UUID:
				((pg_uuid_t *) member)->data[chance % UUID_LEN] ^=
					1 << (chance >> 8) % 8;
				break;
			case GIG_TIMESTAMP:
				*(uint64 *) member ^= UINT64_C(1) << chance % 64;
				break;
			case GIG_COUNT:
				*(int32 *) member ^= 1 << chance % 31;
				break;
			case GIG_STATUS:
				break;
			case GIG_UUID_ARRAY:
				ChangeUuids(member, chance);
				break;
		}
	}
	if (DigestGigEvent(&other) == DigestGigEvent(event))
		Finding("key \"%s\" is not digested", gig_event_fields[field].path);
}

/*
 * Replaces an array by one that has one element more or less, or in which one
 * element differs.
 */
static void
ChangeUuids(GigUuidArray *array, uint32 chance)
{
	int length = array->length;
	pg_uuid_t *elements = ChunkAlloc0((length + 1) * sizeof(pg_uuid_t));

	if (length > 0)
		memcpy(elements, array->elements, length * sizeof(pg_uuid_t));
	array->elements = elements;
	if (length == 0 || chance % 3 == 0)
		array->length++;
	else if (chance % 3 == 1)
		array->length--;
	else
		elements[(chance >> 2) % length].data[(chance >> 8) % UUID_LEN] ^= 1;
}

/*
 * Checks that an event is read back from a body that says the same otherwise.
 */
static void
CheckRendered(const GigEvent *event, uint32 chance)
{
	StringInfoData body;
	Reading reading;

	initStringInfo(&body);
	if (!RenderEvent(event, chance, &body))
		return;
	ReadBody(ExactCopy(body.data, body.len), body.len, false, &reading);
	if (!reading.is_event)
		Finding("an event cannot be read back: %s: %s", reading.error.message,
				body.data);
	CheckSameEvent(event, &reading.event);
}

/*
 * Makes a body of an event: with another name, keys in another order, keys that
 * mean nothing, and values written differently.  Returns false for date-times
 * that four digits of a year cannot express.
 */
static bool
RenderEvent(const GigEvent *event, uint32 chance, StringInfo body)
{
	appendStringInfoString(body, "\n{\"data\": {\"resource\":{\"account\":1}");
	for (int i = 0; i < GIG_WEBHOOK_FIELDS; i++)
	{
		int field = (int) ((i * 5 + chance) % GIG_WEBHOOK_FIELDS);

		/* the fields of other events mean nothing */
		if ((gig_event_fields[field].kinds & GIG_EVENT_BIT(event->kind)) == 0)
			appendStringInfo(body, ",\"%s\":[7]", gig_event_fields[field].key);
		else if (!RenderField(event, field, chance >> field % 8, body))
			return false;
	}
	appendStringInfo(body,
					 ",\"item_id\":\"i\"},\t\"name\":\"other\",\"event\":\"%s\"}",
					 gig_event_names[event->kind]);
	return true;
}

static bool
RenderField(const GigEvent *event, int field, uint32 chance, StringInfo body)
{
	const GigUuidArray *array = GigEventMember(event, field);

	if (!GigEventHas(event, field))
	{
		if (chance % 2 == 0)
			appendStringInfo(body, ", \"%s\":null", gig_event_fields[field].key);
		return true;
	}
	appendStringInfo(body, ", \"\\u%04x%s\" :", gig_event_fields[field].key[0],
					 gig_event_fields[field].key + 1);
	switch (gig_event_fields[field].type)
	{
		case GIG_UUID:
			RenderUuid(GigEventMember(event, field), chance, body);
			break;
		case GIG_TIMESTAMP:
			return RenderTimestamp(*(const TimestampTz *) GigEventMember(event,
																		 field),
								   body);
		case GIG_COUNT:
			appendStringInfo(body, "%d",
							 *(const int32 *) GigEventMember(event, field));
			break;
		case GIG_STATUS:
			break;
		case GIG_UUID_ARRAY:
			appendStringInfoChar(body, '[');
			for (int i = 0; i < array->length; i++)
			{
				if (i > 0)
					appendStringInfoString(body, " ,");
				RenderUuid(&array->elements[i], chance + i, body);
			}
			appendStringInfoChar(body, ']');
			break;
	}
	return true;
}

static void
RenderUuid(const pg_uuid_t *uuid, uint32 chance, StringInfo body)
{
	const char *format = chance % 2 == 0 ? "%02X" : "%02x";

	appendStringInfoChar(body, '"');
	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			appendStringInfoString(body, chance % 3 == 0 ? "\\u002d" : "-");
		appendStringInfo(body, format, uuid->data[i]);
	}
	appendStringInfoChar(body, '"');
}

/* In a form that ReadUtcSeconds() does not read. */
static bool
RenderTimestamp(TimestampTz timestamp, StringInfo body)
{
	struct pg_tm tm;
	fsec_t fsec;

	if (timestamp2tm(timestamp, NULL, &tm, &fsec, NULL, NULL) != 0)
		Finding("a date-time is out of range: " INT64_FORMAT, timestamp);
	if (tm.tm_year < 1 || tm.tm_year > 9999)
		return false;
	appendStringInfo(body, "\"%04d-%02d-%02d %02d:%02d:%02d.%06d+00\"",
					 tm.tm_year, tm.tm_mon, tm.tm_mday, tm.tm_hour, tm.tm_min,
					 tm.tm_sec, (int) fsec);
	return true;
}

/* ---------------------------------------------------------------------------
 * Signatures
 * ---------------------------------------------------------------------------
 */

/*
 * Exactly 128 hexadecimal digits are a signature.
 */
static void
FuzzSignature(const char *input, size_t len)
{
	const char *hex = ExactCopy(input, len);
	unsigned char *signature = ChunkAlloc(SIGNATURE_BYTES);
	bool good = (len == SIGNATURE_HEX_LEN);

	for (size_t i = 0; i < len; i++)
		good = good && strchr("0123456789abcdefABCDEF", hex[i]) != NULL &&
			   hex[i] != '\0';
	if (DecodeSignature(hex, len, signature) != good)
		Finding("a signature is mistaken");
	CheckDescription(hex, len);
	for (size_t i = 0; good && i < SIGNATURE_BYTES; i++)
	{
		char digits[3] = {hex[2 * i], hex[2 * i + 1], '\0'};

		if (signature[i] != strtoul(digits, NULL, 16))
			Finding("byte %zu of a signature is mistaken", i);
	}
}

/*
 * Checks what the server log says of a signature that is not accepted.
 */
static void
CheckDescription(const char *s, size_t len)
{
	const char *description = DescribeBadSignature(s, len);
	size_t digits = 0;
	bool prefix =
		len > 7 && s[6] == '=' && pg_strcasecmp(pnstrdup(s, 6), "sha512") == 0;
	bool space = len > 0 &&
				 (strchr(" \t\n\v\f\r", s[0] ? s[0] : 'x') != NULL ||
				  strchr(" \t\n\v\f\r", s[len - 1] ? s[len - 1] : 'x') != NULL);
	const char *expected = "The signature is not hexadecimal.";

	for (size_t i = 0; i < len; i++)
		digits += s[i] != '\0' && strchr("0123456789abcdefABCDEF", s[i]) != NULL;
	if (len == 0)
		expected = "The signature is empty, or too long to be read.";
	else if (space)
		expected = "The signature begins or ends with white space.";
	else if (prefix)
		expected = "The signature has a prefix \"sha512=\".";
	else if (digits == len)
		expected =
			psprintf("The signature has %zu hexadecimal digits instead of 128.",
					 len);
	else if (len == 88 && s[len - 1] == '=')
		expected = "The signature is base64 instead of hexadecimal.";
	if (strcmp(description, expected) != 0)
		Finding("a signature is described as: %s", description);
}

static void
FuzzKey(const char *input, size_t len)
{
	size_t key_len = 0;

	if (len > 0)
	{
		key_len = Min((unsigned char) *input, len - 1);
		input++;
		len--;
	}
	CheckSigning(ExactCopy(input, key_len), key_len,
				 ExactCopy(input + key_len, len - key_len), len - key_len);
}

/*
 * Checks that a signature verifies the body that it was computed for, and that
 * a change of either is detected.
 */
static void
CheckSigning(const char *key, size_t key_len, const char *body, size_t len)
{
	static const unsigned char other_body[] = "another";
	uint32 chance =
		DatumGetUInt32(hash_any((const unsigned char *) body, (int) len));
	SignatureKey *signer = MakeSignatureKey(CurrentMemoryContext, key, key_len);
	unsigned char *signature = ChunkAlloc(SIGNATURE_BYTES);
	unsigned char *again = ChunkAlloc(SIGNATURE_BYTES);
	unsigned char expected[EVP_MAX_MD_SIZE];
	unsigned int expected_len;
	char *forged = ExactCopy(body, len);
	uint64 digest = 0;

	if ((signer == NULL) != (key_len == 0))
		Finding("a key is not accepted, or an empty one is");
	if (signer == NULL)
		return;
	SignBody(signer, body, len, signature);
	if (HMAC(EVP_sha512(), key, (int) key_len, (const unsigned char *) body,
			 len, expected, &expected_len) == NULL ||
		expected_len != SIGNATURE_BYTES ||
		memcmp(signature, expected, SIGNATURE_BYTES) != 0)
		Finding("a signature is not HMAC-SHA512");
	CheckSigned(signature, false);
	CheckSigned(signature, true);

	/* what was signed before makes no difference */
	SignBody(signer, other_body, sizeof(other_body), again);
	SignBody(signer, body, len, again);
	if (!SignaturesEqual(signature, again))
		Finding("a key signs the same body differently");

	again[chance % SIGNATURE_BYTES] ^= 1 << (chance >> 16) % 8;
	if (SignaturesEqual(signature, again))
		Finding("a forged signature verifies");
	if (len > 0)
	{
		forged[chance % len] ^= 1 << (chance >> 16) % 8;
		SignBody(signer, forged, len, again);
		if (SignaturesEqual(signature, again))
			Finding("a forged body verifies");
	}

	SHA256((const unsigned char *) body, len, expected);
	for (int i = 0; i < 8; i++)
		digest = digest << 8 | expected[i];
	if ((uint64) DigestBytes(body, len) != digest)
		Finding("a digest is not the first 64 bits of SHA-256");
}

/* In both forms of a header. */
static void
CheckSigned(const unsigned char signature[SIGNATURE_BYTES], bool upper)
{
	const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
	char *hex = ChunkAlloc(SIGNATURE_HEX_LEN);
	unsigned char *given = ChunkAlloc(SIGNATURE_BYTES);

	for (int i = 0; i < SIGNATURE_BYTES; i++)
	{
		hex[2 * i] = digits[signature[i] >> 4];
		hex[2 * i + 1] = digits[signature[i] & 0xf];
	}
	if (!DecodeSignature(hex, SIGNATURE_HEX_LEN, given) ||
		!SignaturesEqual(signature, given))
		Finding("a body that was signed does not verify");
}

/* ---------------------------------------------------------------------------
 * Quotations
 * ---------------------------------------------------------------------------
 */

/*
 * Checks that any input is quoted such that it can be logged, and that valid
 * input is not changed except for being truncated between characters.
 */
static void
FuzzQuoted(const char *input, size_t len)
{
	const char *s = ExactCopy(input, len);
	bool quotable = IsQuotable(s, len);
	size_t expected_len = len;
	char *quoted;

	if (len > MAX_QUOTED)
	{
		expected_len = MAX_QUOTED;
		while (expected_len > 0 && (s[expected_len] & 0xc0) == 0x80)
			expected_len--;
	}

	quoted = QuotableInput(s, len);
	CheckMessage(quoted, MAX_QUOTED + strlen("..."));
	if (quotable &&
		(strncmp(quoted, s, expected_len) != 0 ||
		 strcmp(quoted + expected_len, expected_len < len ? "..." : "") != 0))
		Finding("\"%s\" is not what was to be quoted", quoted);
}
