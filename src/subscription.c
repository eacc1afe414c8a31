/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  The subscriptions, and verifying that a body was signed for one.
 *
 * Every backend caches the subscriptions with initialized HMAC keys.  A trigger
 * on gig_subscription invalidates the table's relcache entry, which reaches
 * every backend at the commit and drops the cache.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "signature.h"
#include "store.h"
#include "subscription.h"

typedef struct Secret
{
	SignatureKey *key;		/* NULL: signs nothing */
	TimestampTz retired_at; /* DT_NOEND: not retired */
} Secret;

typedef struct Subscription
{
	char *name;
	bool is_signed; /* even if all secrets are retired */
	int nsecrets;
	Secret *secrets;
} Subscription;

/* The columns that are read of a secret and its subscription. */
typedef enum SecretColumn
{
	SECRET_NAME = 1,
	SECRET_IS_SIGNED,
	SECRET_SECRET,
	SECRET_RETIRED_AT
} SecretColumn;

static MemoryContext subscription_context = NULL;
static Subscription *subscriptions = NULL; /* in the order of names */
static int nsubscriptions = 0;
static bool subscriptions_valid = false;
static uint64 invalidations = 0;
static Oid loaded_table = InvalidOid;

static void InvalidateSubscriptions(Datum arg, Oid table);
static void LoadSubscriptions(const GigSchema *schema);
static void ReadSubscriptions(const SPITupleTable *rows);
static SignatureKey *ReadKey(HeapTuple tuple, TupleDesc tupdesc);
static const Subscription *FindSubscription(const char *name);
static int CompareNames(const void *a, const void *b);
static bool RefuseSignature(GigError *error, const char *log_detail);

PG_FUNCTION_INFO_V1(gig_subscription_changed);

/*
 * Registers for invalidations of the table.
 */
void
InitSubscriptions(void)
{
	CacheRegisterRelcacheCallback(InvalidateSubscriptions, (Datum) 0);
}

static void
InvalidateSubscriptions(Datum arg pg_attribute_unused(), Oid table)
{
	if (!OidIsValid(table) || table == loaded_table)
	{
		subscriptions_valid = false;
		invalidations++;
	}
}

/*
 * gig_subscription_changed() returns trigger
 *
 * Invalidates the subscriptions cached by all backends, when the change
 * commits.
 */
Datum
gig_subscription_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager",
						"gig_subscription_changed")));
	CacheInvalidateRelcache(trigger->tg_relation);
	return PointerGetDatum(NULL);
}

/*
 * Reads the subscriptions if they have changed.
 *
 * Every statement that ingests calls this, so that a retired secret is refused
 * from the next statement on.
 */
void
RefreshSubscriptions(const GigSchema *schema)
{
	AcceptInvalidationMessages();
	if (!subscriptions_valid || loaded_table != schema->subscription)
		LoadSubscriptions(schema);
}

/*
 * Reads the table with a new snapshot: in REPEATABLE READ the transaction's
 * snapshot would still show a secret that has been retired since.
 */
static void
LoadSubscriptions(const GigSchema *schema)
{
	uint64 invalidations_before;
	GigStore store;
	char *query;

	if (subscription_context == NULL)
		subscription_context =
			AllocSetContextCreate(TopMemoryContext, "gigs_webhooks secrets",
								  ALLOCSET_DEFAULT_SIZES);
	subscriptions_valid = false;
	subscriptions = NULL;
	nsubscriptions = 0;
	MemoryContextReset(subscription_context);

	LockGigTable(schema, &schema->subscription, AccessShareLock);

	/*
	 * An invalidation from here on makes the next statement read again, but not
	 * this one, which sees all that had been committed when it began.
	 */
	loaded_table = schema->subscription;
	invalidations_before = invalidations;
	OpenStore(&store, schema, false);
	query =
		QualifyStatement(schema,
						 "SELECT s.name, s.secrets IS NOT NULL, k.secret, k.retired_at"
						 " FROM @extschema@.gig_subscription AS s"
						 " LEFT JOIN LATERAL unnest(s.secrets) AS k ON true"
						 " ORDER BY s.name COLLATE \"C\"");
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read table \"%s\"", "gig_subscription");
	ReadSubscriptions(SPI_tuptable);
	PopActiveSnapshot();
	CloseStore(&store);
	subscriptions_valid = invalidations == invalidations_before;
}

static void
ReadSubscriptions(const SPITupleTable *rows)
{
	MemoryContext old_context = MemoryContextSwitchTo(subscription_context);
	Secret *secrets = palloc0(rows->numvals * sizeof(Secret));
	TupleDesc tupdesc = rows->tupdesc;

	subscriptions = palloc0(rows->numvals * sizeof(Subscription));
	for (uint64 i = 0; i < rows->numvals; i++)
	{
		HeapTuple tuple = rows->vals[i];
		char *name = SPI_getvalue(tuple, tupdesc, SECRET_NAME);
		Subscription *subscription = &subscriptions[Max(nsubscriptions, 1) - 1];
		bool isnull;
		Datum retired_at;

		if (nsubscriptions == 0 || strcmp(subscription->name, name) != 0)
		{
			subscription = &subscriptions[nsubscriptions++];
			subscription->name = name;
			subscription->is_signed = DatumGetBool(
				SPI_getbinval(tuple, tupdesc, SECRET_IS_SIGNED, &isnull));
			subscription->secrets = &secrets[i];
		}
		if (!subscription->is_signed)
			continue;
		retired_at = SPI_getbinval(tuple, tupdesc, SECRET_RETIRED_AT, &isnull);
		secrets[i].retired_at =
			isnull ? DT_NOEND : DatumGetTimestampTz(retired_at);
		secrets[i].key = ReadKey(tuple, tupdesc);
		subscription->nsecrets++;
	}
	MemoryContextSwitchTo(old_context);
}

/*
 * Returns NULL for a secret that is missing, empty (an empty key is public) or
 * not accepted by OpenSSL.
 */
static SignatureKey *
ReadKey(HeapTuple tuple, TupleDesc tupdesc)
{
	char *secret = SPI_getvalue(tuple, tupdesc, SECRET_SECRET);
	SignatureKey *key = NULL;

	if (secret == NULL)
		return NULL;
	if (secret[0] != '\0')
	{
		key = MakeSignatureKey(subscription_context, secret, strlen(secret));
		if (key == NULL)
			ereport(LOG,
					(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
					 errmsg("OpenSSL does not accept a secret of subscription \"%s\"",
							SPI_getvalue(tuple, tupdesc, SECRET_NAME))));
		CleanseSecret(secret, strlen(secret));
	}
	pfree(secret);
	return key;
}

static const Subscription *
FindSubscription(const char *name)
{
	Subscription key = {.name = (char *) name};

	if (nsubscriptions == 0)
		return NULL;
	return bsearch(&key, subscriptions, nsubscriptions, sizeof(Subscription),
				   CompareNames);
}

static int
CompareNames(const void *a, const void *b)
{
	return strcmp(((const Subscription *) a)->name,
				  ((const Subscription *) b)->name);
}

/*
 * Verifies that a body was signed with a valid secret of the subscription that
 * it names, or that the subscription is unsigned; "signature" is the header as
 * received, or NULL.
 *
 * The sender cannot tell the reasons for refusal apart.  The server log can.
 */
bool
VerifySubscription(const char *name, const char *body, size_t len,
				   const char *signature, size_t signature_len, TimestampTz now,
				   bool *is_signed, GigError *error)
{
	const Subscription *subscription = FindSubscription(name);
	unsigned char given[SIGNATURE_BYTES];
	unsigned char expected[SIGNATURE_BYTES];

	*is_signed = subscription != NULL && subscription->is_signed;
	if (subscription == NULL)
		return RefuseSignature(error,
							   psprintf("No subscription is named \"%s\".",
										QuotableInput(name, strlen(name))));
	if (!subscription->is_signed)
		return signature == NULL ||
			   RefuseSignature(error,
							   "The subscription has no secret, but there is a signature.");
	if (signature == NULL)
		return RefuseSignature(error, "The signature is missing.");
	if (!DecodeSignature(signature, signature_len, given))
		return RefuseSignature(error,
							   DescribeBadSignature(signature, signature_len));

	for (int i = 0; i < subscription->nsecrets; i++)
	{
		const Secret *secret = &subscription->secrets[i];

		if (secret->key == NULL || secret->retired_at <= now)
			continue;
		SignBody(secret->key, body, len, expected);
		if (SignaturesEqual(expected, given))
			return true;
	}
	return RefuseSignature(error,
						   "The signature matches none of the subscription's valid secrets.");
}

static bool
RefuseSignature(GigError *error, const char *log_detail)
{
	SetGigError(error, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
				"could not authenticate webhook");
	error->log_detail = log_detail;
	return false;
}
