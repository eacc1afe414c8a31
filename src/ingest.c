/*-------------------------------------------------------------------------
 *
 * ingest.c
 *	  Ingesting webhooks: verify, parse, apply.
 *
 * The webhooks of a call are applied together: the accounts are locked and
 * read, all events are applied in memory, and the log and the accounts are
 * written.  A single webhook is a batch of one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "ingest.h"
#include "store.h"
#include "subscription.h"

/* A webhook that is authentic. */
typedef struct BatchEvent
{
	GigResult *result;
	bytea *body; /* not toasted */
	text *name;
	GigDelivery delivery;
	GigEvent event; /* without what it points to; not if quarantined */
	GigAccount *account;
} BatchEvent;

typedef struct Batch
{
	const GigSchema *schema;
	BatchEvent *events; /* in the order of the call */
	int nevents;
	List *quarantined;	  /* of BatchEvent, likewise */
	GigAccount *accounts; /* in the order of account_id */
	int naccounts;
} Batch;

int gig_max_body_size;

static bool applying = false;

static void VerifyAndParse(Batch *batch, const GigInput *inputs,
						   GigResult *results, int n);
static bool ReadWebhook(const GigInput *input, TimestampTz now,
						BatchEvent *event);
static void CopyError(GigError *error);
static void ApplyBatch(Batch *batch);
static void GroupByAccount(Batch *batch);
static int CompareBatchEvents(const void *a, const void *b);
static GigLogRow *ApplyEvents(Batch *batch, GigStore *store);
static void ApplyEvent(const BatchEvent *event, GigLogRow *row);
static TimestampTz GetReceivedAt(const BatchEvent *event, TimestampTz now);

/*
 * Ingests webhooks, with the same result as one by one in this order.
 *
 * An error of one is in its result and does not affect the others.
 */
void
IngestWebhooks(const GigSchema *schema, const GigInput *inputs,
			   GigResult *results, int n)
{
	Batch batch = {.schema = schema};

	/* an account that the outer call has read must not change under it */
	if (applying)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("cannot ingest webhooks recursively"),
				 errhint(
					 "A trigger or policy on a table of the extension ingests webhooks.")));

	PreventCommandIfParallelMode("ingestion of webhooks");

	RefreshSubscriptions(schema);
	VerifyAndParse(&batch, inputs, results, n);
	if (batch.nevents == 0 && batch.quarantined == NIL)
		return;
	PG_TRY();
	{
		applying = true;
		ApplyBatch(&batch);
	}
	PG_FINALLY();
	{
		applying = false;
	}
	PG_END_TRY();
}

static void
VerifyAndParse(Batch *batch, const GigInput *inputs, GigResult *results, int n)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch =
		AllocSetContextCreate(context, "gigs_webhooks parser",
							  ALLOCSET_DEFAULT_SIZES);
	TimestampTz now = GetCurrentTimestamp();

	batch->events = palloc_extended(n * sizeof(BatchEvent), MCXT_ALLOC_HUGE);
	for (int i = 0; i < n; i++)
	{
		GigResult *result = &results[i];
		BatchEvent *event = &batch->events[batch->nevents];
		bool kept;

		CHECK_FOR_INTERRUPTS();
		memset(result, 0, sizeof(GigResult));
		result->outcome = OUTCOME_REJECTED;
		event->result = result;
		event->delivery.received_at = inputs[i].received_at;
		event->account = NULL;
		MemoryContextSwitchTo(scratch);
		kept = ReadWebhook(&inputs[i], now, event);
		MemoryContextSwitchTo(context);

		CopyError(&result->error);
		if (kept)
		{
			event->name = cstring_to_text(event->event.name);
			if (event->body != inputs[i].body)
				event->body = (bytea *) DatumGetPointer(
					datumCopy(PointerGetDatum(event->body), false, -1));
			if (result->has_event)
				batch->nevents++;
			else
			{
				BatchEvent *quarantined = palloc(sizeof(BatchEvent));

				*quarantined = *event;
				batch->quarantined = lappend(batch->quarantined, quarantined);
			}
		}
		MemoryContextReset(scratch);
	}
	MemoryContextDelete(scratch);
}

/*
 * Sets the signature to a text that is not null.
 */
void
SetGigSignature(GigInput *input, Datum value)
{
	input->signature = "";
	input->signature_len = 0;
	if (toast_raw_datum_size(value) - VARHDRSZ <= MAX_SIGNATURE_LEN)
	{
		text *signature = DatumGetTextPP(value);

		input->signature = VARDATA_ANY(signature);
		input->signature_len = VARSIZE_ANY_EXHDR(signature);
	}
}

/*
 * Checks that a body is not null and not larger than gigs_webhooks.max_body_size.
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
 * Verifies and parses a webhook.  Returns false if it is not kept, with the
 * outcome and the error.
 *
 * The structure must be parsed first, because the name selects the secrets.
 * Values are checked once the signature is valid.
 */
static bool
ReadWebhook(const GigInput *input, TimestampTz now, BatchEvent *event)
{
	GigResult *result = event->result;
	GigError *error = &result->error;
	GigDocument *document;
	const char *body;
	size_t len;
	bool is_signed = false;

	/* the limit is for what comes from the internet */
	if (!input->is_account && !CheckGigBodySize(input->body, error))
		return false;
	event->body = DatumGetByteaPP(PointerGetDatum(input->body));
	body = VARDATA_ANY(event->body);
	len = VARSIZE_ANY_EXHDR(event->body);
	document = ReadGigDocument(body, len, input->is_account, error);
	if (document == NULL)
		return false;
	if (!input->is_authentic &&
		!VerifySubscription(GigDocumentName(document), body, len,
							input->signature, input->signature_len, now,
							&is_signed, error))
		return false;
	if (!input->is_account && GigDocumentIsForeign(document))
	{
		result->outcome = OUTCOME_IGNORED;
		return false;
	}
	result->has_event = ReadGigEvent(document, &event->event, error);
	if (result->has_event)
		event->delivery.digest = DigestGigEvent(&event->event);
	else if (is_signed)
		result->outcome = OUTCOME_QUARANTINED;
	return result->has_event || is_signed;
}

static void
CopyError(GigError *error)
{
	if (error->sqlerrcode == 0)
		return;
	error->message = pstrdup(error->message);
	if (error->log_detail != NULL)
		error->log_detail = pstrdup(error->log_detail);
}

/*
 * Applies the events and keeps the quarantined webhooks.
 */
static void
ApplyBatch(Batch *batch)
{
	GigStore store;
	ListCell *lc;

	LockTables(batch->schema);
	OpenStore(&store, batch->schema, batch->nevents > 0);
	if (batch->nevents > 0)
	{
		GigLogRow *rows;

		GroupByAccount(batch);
		LockAccounts(&store, batch->accounts, batch->naccounts);
		rows = ApplyEvents(batch, &store);
		StoreEvents(&store, rows, batch->nevents);
		StoreAccounts(&store, batch->accounts, batch->naccounts);
	}
	foreach(lc, batch->quarantined)
	{
		const BatchEvent *event = lfirst(lc);

		StoreQuarantined(&store, GetReceivedAt(event, GetCurrentTimestamp()),
						 event->name, &event->result->error, event->body);
	}
	CloseStore(&store);
}

/*
 * Initializes the accounts of the events.  A new account takes user_id from its
 * first event in the batch.
 */
static void
GroupByAccount(Batch *batch)
{
	BatchEvent **sorted =
		palloc_extended(batch->nevents * sizeof(BatchEvent *), MCXT_ALLOC_HUGE);
	GigAccount *account = NULL;

	for (int i = 0; i < batch->nevents; i++)
		sorted[i] = &batch->events[i];
	qsort(sorted, batch->nevents, sizeof(BatchEvent *), CompareBatchEvents);

	batch->accounts =
		palloc_extended(batch->nevents * sizeof(GigAccount), MCXT_ALLOC_HUGE);
	for (int i = 0; i < batch->nevents; i++)
	{
		const GigEvent *event = &sorted[i]->event;

		if (account == NULL ||
			CompareUuids(&account->account_id, &event->account_id) != 0)
		{
			account = &batch->accounts[batch->naccounts++];
			InitGigAccount(account, &event->account_id, &event->user_id);
		}
		sorted[i]->account = account;
	}
}

static int
CompareBatchEvents(const void *a, const void *b)
{
	const BatchEvent *left = *(BatchEvent *const *) a;
	const BatchEvent *right = *(BatchEvent *const *) b;
	int result = CompareUuids(&left->event.account_id, &right->event.account_id);

	if (result != 0)
		return result;
	return left < right ? -1 : left > right;
}

/*
 * Applies the events to their accounts.  Returns their log rows.
 */
static GigLogRow *
ApplyEvents(Batch *batch, GigStore *store)
{
	GigLogRow *rows =
		palloc_extended(batch->nevents * sizeof(GigLogRow), MCXT_ALLOC_HUGE);
	/* taken under the accounts' locks, as the ids are */
	TimestampTz now = GetCurrentTimestamp();

	for (int i = 0; i < batch->nevents; i++)
	{
		BatchEvent *event = &batch->events[i];

		CHECK_FOR_INTERRUPTS();
		event->delivery.event_id = NextEventId(store);
		event->delivery.received_at = GetReceivedAt(event, now);
		ApplyEvent(event, &rows[i]);
	}
	return rows;
}

static void
ApplyEvent(const BatchEvent *event, GigLogRow *row)
{
	const GigDelivery *delivery = &event->delivery;
	GigResult *result = event->result;

	memset(row, 0, sizeof(GigLogRow));
	row->event_id = delivery->event_id;
	row->received_at = delivery->received_at;
	row->event = event->event.kind;
	row->account_id = event->event.account_id;
	row->name = event->name;
	if (FindOriginalDelivery(event->account, delivery, &row->duplicate_of))
	{
		row->present = HAS_DUPLICATE_OF;
		row->outcome = OUTCOME_DUPLICATE;
		ApplyDuplicate(event->account, delivery);
	}
	else
	{
		row->present = HAS_BODY;
		row->body = event->body;
		row->outcome = ApplyGigEvent(event->account, &event->event, delivery);
	}
	result->outcome = row->outcome;
	result->event_id = row->event_id;
	result->kind = row->event;
	result->account_id = row->account_id;
}

/*
 * Returns the time at which an event was received: now, unless the caller has
 * given an earlier one.
 *
 * If the clock has been set back, an event received now still is the latest of
 * its account.
 */
static TimestampTz
GetReceivedAt(const BatchEvent *event, TimestampTz now)
{
	const GigAccount *account = event->account;

	if (event->delivery.received_at != DT_NOBEGIN)
		return Min(event->delivery.received_at, now);
	if (account != NULL && (account->present & HAS_LAST_EVENT) != 0)
		return Max(account->last_event_at, now);
	return now;
}

/*
 * Reports why a webhook was not authentic, to the server log only.
 *
 * For functions that return a rejection instead of raising it.  The statement
 * may hold a thousand bodies, so it is not logged.
 */
void
LogRejection(const GigError *error)
{
	if (error->log_detail != NULL)
		ereport(LOG_SERVER_ONLY, (errcode(error->sqlerrcode),
								  errmsg_internal("%s", error->message),
								  errdetail_log("%s", error->log_detail),
								  errhidestmt(true), errhidecontext(true)));
}
