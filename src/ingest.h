/*-------------------------------------------------------------------------
 *
 * ingest.h
 *	  Ingesting webhooks: verify, parse, apply.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_INGEST_H
#define GIGS_WEBHOOKS_INGEST_H

#include "schema.h"

extern int gig_max_body_size; /* gigs_webhooks.max_body_size, in bytes */

/* A longer signature is not read: it could be a gigabyte. */
#define MAX_SIGNATURE_LEN 1024

typedef struct GigInput
{
	bytea *body;		   /* as stored, perhaps toasted; NULL: null */
	const char *signature; /* not terminated; NULL: null */
	size_t signature_len;
	bool is_authentic;		 /* the signature has been verified before */
	bool is_account;		 /* authentic, and an account object */
	TimestampTz received_at; /* DT_NOBEGIN: now */
} GigInput;

typedef struct GigResult
{
	GigOutcome outcome;
	bool has_event; /* event_id, kind and account_id are set */
	int64 event_id;
	GigEventKind kind;
	pg_uuid_t account_id;
	GigError error; /* if rejected or quarantined */
} GigResult;

extern void SetGigSignature(GigInput *input, Datum value);
extern bool CheckGigBodySize(const bytea *body, GigError *error);
extern void IngestWebhooks(const GigSchema *schema, const GigInput *inputs,
						   GigResult *results, int n);
extern void LogRejection(const GigError *error);

#endif /* GIGS_WEBHOOKS_INGEST_H */
