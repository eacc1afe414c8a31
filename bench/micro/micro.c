/*-------------------------------------------------------------------------
 *
 * micro.c
 *	  What verifying and parsing takes, ours and by the usual parts, timed
 *	  inside of the server: SQL has no share in it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "event.h"
#include "signature.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_hmac);
PG_FUNCTION_INFO_V1(bench_hmac_jsonb);
PG_FUNCTION_INFO_V1(bench_verify_parse);

typedef struct Webhook
{
	const char *body;
	size_t len;
	const char *signature; /* hexadecimal, as it comes */
	char *text;			   /* the body, terminated */
} Webhook;

/* What all variants are given: bodies, signatures, the secret, rounds. */
typedef struct Run
{
	int nwebhooks;
	Webhook *webhooks;
	const char *secret;
	size_t secret_len;
	SignatureKey *key;
} Run;

typedef void (*Variant)(const Run *run, const Webhook *webhook);

static void
HmacOnce(const Run *run, const Webhook *webhook)
{
	unsigned char expected[SIGNATURE_BYTES];
	unsigned char given[SIGNATURE_BYTES];

	if (HMAC(EVP_sha512(), run->secret, (int) run->secret_len,
			 (const unsigned char *) webhook->body, webhook->len, expected,
			 NULL) == NULL ||
		!DecodeSignature(webhook->signature, SIGNATURE_HEX_LEN, given) ||
		!SignaturesEqual(expected, given))
		elog(ERROR, "a signature is wrong");
}

static void
HmacAndJsonb(const Run *run, const Webhook *webhook)
{
	HmacOnce(run, webhook);
	DirectFunctionCall1(jsonb_in, CStringGetDatum(webhook->text));
}

/* As ingestion does, to the digest that tells redeliveries. */
static void
VerifyAndParse(const Run *run, const Webhook *webhook)
{
	unsigned char expected[SIGNATURE_BYTES];
	unsigned char given[SIGNATURE_BYTES];
	GigError error;
	GigEvent event;
	GigDocument *document = ReadGigDocument(webhook->body, webhook->len, false, &error);

	if (document == NULL)
		elog(ERROR, "%s", error.message);
	SignBody(run->key, webhook->body, webhook->len, expected);
	if (!DecodeSignature(webhook->signature, SIGNATURE_HEX_LEN, given) ||
		!SignaturesEqual(expected, given))
		elog(ERROR, "a signature is wrong");
	if (!ReadGigEvent(document, &event, &error))
		elog(ERROR, "%s", error.message);
	(void) DigestGigEvent(&event);
}

static Run
ReadRun(FunctionCallInfo fcinfo)
{
	Datum *bodies;
	Datum *signatures;
	bool *nulls;
	text *secret = PG_GETARG_TEXT_PP(2);
	Run run;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), BYTEAOID, -1, false,
					  TYPALIGN_INT, &bodies, &nulls, &run.nwebhooks);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false,
					  TYPALIGN_INT, &signatures, &nulls, &run.nwebhooks);
	run.webhooks = palloc(run.nwebhooks * sizeof(Webhook));
	for (int i = 0; i < run.nwebhooks; i++)
	{
		Webhook *webhook = &run.webhooks[i];
		bytea *body = DatumGetByteaPP(bodies[i]);

		webhook->body = VARDATA_ANY(body);
		webhook->len = VARSIZE_ANY_EXHDR(body);
		webhook->signature = TextDatumGetCString(signatures[i]);
		webhook->text = pnstrdup(webhook->body, webhook->len);
	}
	run.secret = VARDATA_ANY(secret);
	run.secret_len = VARSIZE_ANY_EXHDR(secret);
	run.key = MakeSignatureKey(CurrentMemoryContext, run.secret, run.secret_len);
	return run;
}

/* Returns the seconds that all rounds take. */
static Datum
Time(FunctionCallInfo fcinfo, Variant variant)
{
	Run run = ReadRun(fcinfo);
	int rounds = PG_GETARG_INT32(3);
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "micro",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(scratch);
	instr_time began;
	instr_time ended;

	INSTR_TIME_SET_CURRENT(began);
	for (int round = 0; round < rounds; round++)
	{
		for (int i = 0; i < run.nwebhooks; i++)
		{
			variant(&run, &run.webhooks[i]);
			MemoryContextReset(scratch);
		}
	}
	INSTR_TIME_SET_CURRENT(ended);
	INSTR_TIME_SUBTRACT(ended, began);
	MemoryContextSwitchTo(old_context);
	PG_RETURN_FLOAT8(INSTR_TIME_GET_DOUBLE(ended));
}

Datum
bench_hmac(PG_FUNCTION_ARGS)
{
	return Time(fcinfo, HmacOnce);
}

Datum
bench_hmac_jsonb(PG_FUNCTION_ARGS)
{
	return Time(fcinfo, HmacAndJsonb);
}

Datum
bench_verify_parse(PG_FUNCTION_ARGS)
{
	return Time(fcinfo, VerifyAndParse);
}
