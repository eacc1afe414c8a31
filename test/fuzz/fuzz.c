/*-------------------------------------------------------------------------
 *
 * fuzz.c
 *	  Throws inputs at the parser and the signature check, inside a server.
 *
 * gig_fuzz(), a SQL function, hands a process of the server over to libFuzzer.
 * An input is a webhook's body, unless its first byte says otherwise; no JSON
 * starts like that:
 *
 *	  S	 the rest is a signature header
 *	  K	 a byte, the length of the key; the key; the body that it signs
 *	  Q	 the rest is quoted in a message
 *
 * An input that breaks a promise ends the process, and libFuzzer keeps it.
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
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "chunks.h"
#include "fuzz.h"
#include "hex.h"
#include "signature.h"

/* The longest message names a key's path and quotes so many bytes. */
#define MAX_QUOTED 80
#define MAX_MESSAGE 200

/* Of the bodies that are no JSON, one in so many is shown to jsonb as well. */
#define MALFORMED_SHOWN 8

/* What our code makes of a body. */
typedef struct Reading
{
	bool is_document;
	bool is_event;
	bool foreign;
	const char *name;
	GigEvent event;
	GigError error; /* if it is no event */
} Reading;

/* What hangs on the session, and must not change what a body means. */
typedef struct Session
{
	int encoding;
	int date_order;
	const char *zone;
	pg_tz *tz;
} Session;

static Session sessions[] = {
	{PG_UTF8, DATEORDER_MDY, "UTC", NULL},
	{PG_LATIN1, DATEORDER_DMY, "America/New_York", NULL},
};

extern int LLVMFuzzerRunDriver(int *argc, char ***argv,
							   int (*fuzz_one)(const uint8_t *, size_t));

static int FuzzOne(const uint8_t *input, size_t len);
static void FuzzBody(const char *body, size_t len);
static void ReadBody(const char *body, size_t len, Reading *reading);
static void CheckError(const GigError *error);
static void CheckMessage(const char *message, size_t max_len);
static bool IsQuotable(const char *s, size_t len);
static void CheckSame(const Reading *a, const Reading *b);
static void CheckSameEvent(const GigEvent *a, const GigEvent *b);
static void CheckAgainstPostgres(const char *body, size_t len,
								 const Reading *reading);
static void CheckRefusal(const GigError *error, int sqlerrcode,
						 const char *path);
static void FuzzSignature(const char *hex, size_t len);
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
 * Runs libFuzzer with these arguments, the first of which is the name that it
 * goes by.  Whatever it is asked for ends the process.
 */
PG_FUNCTION_INFO_V1(gig_fuzz);
Datum
gig_fuzz(PG_FUNCTION_ARGS)
{
	/* libFuzzer only handles what nobody else does */
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
	SetDatabaseEncoding(session->encoding);
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
 * One input.  None of what is asked here may raise an error: what is wrong with
 * an input is told as data.
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
 * A copy with nothing before it and nothing after it, not even a NUL.
 */
static char *
ExactCopy(const void *bytes, size_t len)
{
	char *copy;

	/* where malloc() gives a byte although none is asked for */
	if (len == 0)
		return (char *) ChunkAlloc(1) + 1;
	copy = ChunkAlloc(len);
	memcpy(copy, bytes, len);
	return copy;
}

/* ---------------------------------------------------------------------------
 * A body
 * ---------------------------------------------------------------------------
 */

static void
FuzzBody(const char *input, size_t len)
{
	const char *body = ExactCopy(input, len);
	Reading reading;
	Reading again;

	ReadBody(body, len, &reading);
	UseSession(&sessions[1]);
	ReadBody(body, len, &again);
	UseSession(&sessions[0]);
	CheckSame(&reading, &again);
	CheckAgainstPostgres(body, len, &reading);
}

static void
ReadBody(const char *body, size_t len, Reading *reading)
{
	GigDocument *document;

	memset(reading, 0, sizeof(Reading));
	document = ReadGigDocument(body, len, &reading->error);
	reading->is_document = (document != NULL);
	if (document != NULL)
	{
		reading->name = GigDocumentName(document);
		reading->foreign = GigDocumentIsForeign(document);
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

/* What may go to a log, to a table and to a client. */
static void
CheckMessage(const char *message, size_t max_len)
{
	size_t len = strlen(message);

	if (len > max_len)
		Finding("a message of %zu bytes: %s", len, message);
	if (!IsQuotable(message, len))
		Finding("a message is not fit for a log: %s", message);
}

/*
 * In the database's encoding (of others than UTF-8, ASCII alone is taken for
 * that), and no control characters.
 */
static bool
IsQuotable(const char *s, size_t len)
{
	bool utf8 = (GetDatabaseEncoding() == PG_UTF8);

	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) s[i];

		if (c < ' ' || c == 0x7f || (c > 0x7f && !utf8) ||
			(c == 0xc2 && i + 1 < len && (unsigned char) s[i + 1] < 0xa0))
			return false;
	}
	return !utf8 || pg_verify_mbstr(PG_UTF8, s, (int) len, true);
}

/*
 * What a body means may hang on nothing but the body.
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
	else
	{
		/* another encoding may show characters as "?" */
		for (const char *c = a->error.message;; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				break;
			if (*c != b->error.message[c - a->error.message])
				Finding("a body has two errors: \"%s\" and \"%s\"",
						a->error.message, b->error.message);
			if (*c == '\0')
				break;
		}
	}
}

static void
CheckSameEvent(const GigEvent *a, const GigEvent *b)
{
	if (a->kind != b->kind)
		Finding("kind %d and %d", a->kind, b->kind);
	if (a->present != b->present)
		Finding("fields 0x%x and 0x%x", a->present, b->present);
	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
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
}

/*
 * Holds a reading against what PostgreSQL's own types say.  Above all they have
 * to agree on the name, which picks the secret that a body must be signed with,
 * where keys are escaped or come twice.
 */
static void
CheckAgainstPostgres(const char *body, size_t len, const Reading *reading)
{
	bool utf8 = pg_verify_mbstr(PG_UTF8, body, (int) len, true);
	int sqlerrcode = reading->is_document ? 0 : reading->error.sqlerrcode;
	Reference reference;

	if (utf8 == (sqlerrcode == ERRCODE_CHARACTER_NOT_IN_REPERTOIRE))
		Finding("UTF-8: %d, SQLSTATE %s", utf8, unpack_sql_state(sqlerrcode));
	if (!utf8)
		return;
	if (sqlerrcode == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
	{
		int brackets = 0;

		for (size_t i = 0; i < len; i++)
			brackets += (body[i] == '[' || body[i] == '{');
		if (brackets <= 256)
			Finding("too deep, with %d brackets", brackets);
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

/* The error is NULL where there was none. */
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
 * A signature
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
	for (size_t i = 0; good && i < SIGNATURE_BYTES; i++)
	{
		char digits[3] = {hex[2 * i], hex[2 * i + 1], '\0'};

		if (signature[i] != strtoul(digits, NULL, 16))
			Finding("byte %zu of a signature is mistaken", i);
	}
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
 * What a key has signed verifies with it, and with nothing changed only.
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
	BodyDigest *digest = ChunkAlloc(sizeof(BodyDigest));

	SignBody(signer, body, len, signature);
	if (HMAC(EVP_sha512(), key, (int) key_len, (const unsigned char *) body,
			 len, expected, &expected_len) == NULL ||
		expected_len != SIGNATURE_BYTES ||
		memcmp(signature, expected, SIGNATURE_BYTES) != 0)
		Finding("a signature is no HMAC-SHA512");
	CheckSigned(signature, false);
	CheckSigned(signature, true);

	/* a key keeps nothing of what it has signed */
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

	DigestBody(body, len, digest);
	SHA256((const unsigned char *) body, len, expected);
	if (memcmp(digest->data, expected, BODY_DIGEST_BYTES) != 0)
		Finding("a digest is no half of SHA-256");

	ForgetKey(forged, len);
	for (size_t i = 0; i < len; i++)
	{
		if (forged[i] != '\0')
			Finding("a key is not forgotten");
	}
}

/* Such as it comes in a header. */
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
 * A quotation
 * ---------------------------------------------------------------------------
 */

/*
 * Whatever is quoted, the quotation is fit for a message, and of what was fit
 * for one already it has all, or all characters that there is room for.
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

	UseSession(&sessions[1]);
	CheckMessage(QuotableInput(s, len), MAX_QUOTED + strlen("..."));
	UseSession(&sessions[0]);
}
