/*-------------------------------------------------------------------------
 *
 * ingest.c
 *	  The one pipeline behind every door: verify, parse, apply.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apply.h"
#include "compat.h"
#include "ingest.h"
#include "settings.h"
#include "signature.h"
#include "subscription.h"

static bool ReceiveBody(const GigInput *input, bytea **body, GigError *error);
static bool UnderstandBody(const GigInput *input, TimestampTz now,
						   GigItem *item, bool *foreign, GigError *error);
static void KeepEvent(GigEvent *event);
static void KeepError(GigError *error);

/*
 * Takes webhooks in, as if one by one in the order given.
 *
 * What is wrong with one is told in its result, and harms no other.
 */
void
IngestGigInputs(const GigSchema *schema, const GigInput *inputs,
				GigResult *results, int n)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch =
		AllocSetContextCreate(context, "gigs_webhooks parser",
							  ALLOCSET_DEFAULT_SIZES);
	GigItem **items =
		MemoryContextAllocHuge(context, Max(n, 1) * sizeof(GigItem *));
	int *places = MemoryContextAllocHuge(context, Max(n, 1) * sizeof(int));
	int nitems = 0;
	TimestampTz now = GetCurrentTimestamp();

	PreventCommandIfParallelMode("INSERT");
	RefreshSubscriptions(schema);
	for (int i = 0; i < n; i++)
	{
		GigResult *result = &results[i];
		GigItem item;
		bool foreign = false;
		bool good;

		CHECK_FOR_INTERRUPTS();
		memset(result, 0, sizeof(GigResult));
		good = ReceiveBody(&inputs[i], &item.body, &result->error);
		if (good)
		{
			MemoryContextSwitchTo(scratch);
			good = UnderstandBody(&inputs[i], now, &item, &foreign,
								  &result->error);
			MemoryContextSwitchTo(context);
			if (good && !foreign)
				KeepEvent(&item.event);
			else
			{
				KeepError(&result->error);
				if (item.body != inputs[i].body)
					pfree(item.body);
			}
			MemoryContextReset(scratch);
		}

		if (!good)
			result->outcome = OUTCOME_REJECTED;
		else if (foreign)
			result->outcome = OUTCOME_IGNORED;
		else
		{
			places[nitems] = i;
			items[nitems] = palloc(sizeof(GigItem));
			*items[nitems] = item;
			nitems++;
		}
	}
	MemoryContextDelete(scratch);

	ApplyGigItems(schema, items, nitems);
	for (int i = 0; i < nitems; i++)
	{
		GigResult *result = &results[places[i]];

		result->outcome = items[i]->outcome;
		result->understood = true;
		result->kind = items[i]->event.kind;
		result->account_id = items[i]->event.account_id;
		result->event_id = items[i]->event_id;
	}
}

/*
 * Takes over a signature, a text that is not null.  One that is too long is not
 * even fetched: a gigabyte would be, just to be refused.
 */
void
SetGigSignature(GigInput *input, Datum value)
{
	input->signature = "";
	input->signature_len = 0;
	if (toast_raw_datum_size(value) - VARHDRSZ <= SIGNATURE_HEX_LEN)
	{
		text *signature = DatumGetTextPP(value);

		input->signature = VARDATA_ANY(signature);
		input->signature_len = VARSIZE_ANY_EXHDR(signature);
	}
}

/*
 * Fetches a body, unless it is too large.
 */
static bool
ReceiveBody(const GigInput *input, bytea **body, GigError *error)
{
	if (!CheckGigBodySize(input->body, error))
		return false;
	*body = (bytea *) PG_DETOAST_DATUM_PACKED(PointerGetDatum(input->body));
	return true;
}

/*
 * Checks that a body is there, and not larger than we accept.
 */
bool
CheckGigBodySize(const bytea *body, GigError *error)
{
	Size size;

	if (body == NULL)
		return SetGigError(error, ERRCODE_NULL_VALUE_NOT_ALLOWED,
						   "webhook body is null");
	size = toast_raw_datum_size(PointerGetDatum(body)) - VARHDRSZ;
	if (size > (Size) gig_max_body_size)
		return SetGigError(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
						   "webhook body of %zu bytes exceeds gigs_webhooks.max_body_size (%d bytes)",
						   size, gig_max_body_size);
	return true;
}

/*
 * Verifies and parses a webhook.
 *
 * Its structure has to be read first, for the name that picks the secrets; but
 * nothing else of it is looked at before the signature is found good.
 */
static bool
UnderstandBody(const GigInput *input, TimestampTz now, GigItem *item,
			   bool *foreign, GigError *error)
{
	const char *body = VARDATA_ANY(item->body);
	size_t len = VARSIZE_ANY_EXHDR(item->body);
	GigDocument *document = ReadGigDocument(body, len, error);

	if (document == NULL)
		return false;
	if (!VerifySubscription(GigDocumentName(document), body, len,
							input->signature, input->signature_len, now, error))
		return false;
	*foreign = GigDocumentIsForeign(document);
	if (*foreign)
		return true;
	if (!ReadGigEvent(document, &item->event, error))
		return false;
	DigestBody(body, len, &item->digest);
	return true;
}

/*
 * Moves what an event points to into the current context.
 */
static void
KeepEvent(GigEvent *event)
{
	GigUuidArray *gigs = &event->changed_gigs;

	event->name = pstrdup(event->name);
	if (gigs->length > 0)
	{
		Size size = gigs->length * sizeof(pg_uuid_t);

		gigs->elements = memcpy(palloc(size), gigs->elements, size);
	}
}

static void
KeepError(GigError *error)
{
	if (error->sqlerrcode == 0)
		return;
	error->message = pstrdup(error->message);
	if (error->log_detail != NULL)
		error->log_detail = pstrdup(error->log_detail);
}

/*
 * Tells the server log, and it alone, why a webhook was not authentic.
 *
 * For doors that tell their caller of a refusal without raising it.
 */
void
LogGigRefusal(const GigError *error)
{
	if (error->log_detail != NULL)
		ereport(LOG_SERVER_ONLY, (errcode(error->sqlerrcode),
								  errmsg_internal("%s", error->message),
								  errdetail_log("%s", error->log_detail)));
}
