/*-------------------------------------------------------------------------
 *
 * ingest.h
 *	  The one pipeline behind every door: verify, parse, apply.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_INGEST_H
#define GIGS_WEBHOOKS_INGEST_H

#include "event.h"
#include "schema.h"

/* What came through a door. */
typedef struct GigInput
{
	bytea *body;		   /* as stored, perhaps toasted; NULL: null */
	const char *signature; /* not terminated; NULL: null */
	size_t signature_len;
} GigInput;

/* What became of it. */
typedef struct GigResult
{
	GigOutcome outcome;
	bool understood; /* kind and account_id are known */
	GigEventKind kind;
	pg_uuid_t account_id;
	int64 event_id; /* of applied, stale and duplicate ones */
	GigError error; /* of rejected ones */
} GigResult;

extern void IngestGigInputs(const GigSchema *schema, const GigInput *inputs,
							GigResult *results, int n);
extern void SetGigSignature(GigInput *input, Datum value);
extern bool CheckGigBodySize(const bytea *body, GigError *error);
extern void LogGigRefusal(const GigError *error);

#endif /* GIGS_WEBHOOKS_INGEST_H */
