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

/* A secret of a subscription.  One without secrets has one that signs nothing. */
typedef struct Secret
{
	char *name;				/* of the subscription */
	bool is_signed;			/* even if all secrets are retired */
	SignatureKey *key;		/* NULL: signs nothing */
	TimestampTz retired_at; /* DT_NOEND: not retired */
} Secret;

static MemoryContext secrets_context = NULL;
static Secret *secrets = NULL; /* in the order of names; NULL: not read */
static uint64 nsecrets = 0;
static bool secrets_changed = false;
static Oid subscription_table = InvalidOid;

static void InvalidateSubscriptions(Datum arg, Oid table);
static void LoadSubscriptions(const GigSchema *schema);
static Secret *ReadSecrets(const SPITupleTable *rows);
static SignatureKey *MakeKey(const char *name, char *secret);
static const Secret *FindSecrets(const char *name);

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
	if (!OidIsValid(table) || table == subscription_table)
		secrets_changed = true;
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
	RefreshGigSchema(schema);
	if (secrets == NULL || secrets_changed ||
		subscription_table != schema->subscription)
		LoadSubscriptions(schema);
}

/*
 * Reads the table with a new snapshot: in REPEATABLE READ the transaction's
 * snapshot would still show a secret that has been retired since.
 */
static void
LoadSubscriptions(const GigSchema *schema)
{
	GigStore store;
	char *query;

	if (secrets_context == NULL)
		secrets_context =
			AllocSetContextCreate(TopMemoryContext, "gigs_webhooks secrets",
								  ALLOCSET_DEFAULT_SIZES);
	secrets = NULL;
	MemoryContextReset(secrets_context);
	LockGigTable(schema, &schema->subscription, AccessShareLock);

	/*
	 * An invalidation from here on makes the next statement read again, but not
	 * this one, which sees all that had been committed when it began.
	 */
	subscription_table = schema->subscription;
	secrets_changed = false;
	OpenStore(&store, schema, false);
	query = QualifyStatement(schema,
							 "SELECT s.name, s.secrets IS NOT NULL, k.secret,"
							 " coalesce(k.retired_at, 'infinity')"
							 " FROM @extschema@.gig_subscription AS s"
							 " LEFT JOIN LATERAL unnest(s.secrets) AS k ON true"
							 " ORDER BY s.name COLLATE \"C\"");
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute(query, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read table \"%s\"", "gig_subscription");
	nsecrets = SPI_processed;
	secrets = ReadSecrets(SPI_tuptable);
	PopActiveSnapshot();
	CloseStore(&store);
}

/*
 * Reads rows of name, is_signed, secret and retired_at.
 */
static Secret *
ReadSecrets(const SPITupleTable *rows)
{
	MemoryContext old_context = MemoryContextSwitchTo(secrets_context);
	Secret *read = palloc(rows->numvals * sizeof(Secret));

	for (uint64 i = 0; i < rows->numvals; i++)
	{
		HeapTuple tuple = rows->vals[i];
		TupleDesc tupdesc = rows->tupdesc;
		char *secret = SPI_getvalue(tuple, tupdesc, 3);
		bool isnull;

		read[i].name = SPI_getvalue(tuple, tupdesc, 1);
		read[i].is_signed =
			DatumGetBool(SPI_getbinval(tuple, tupdesc, 2, &isnull));
		read[i].key = secret == NULL ? NULL : MakeKey(read[i].name, secret);
		read[i].retired_at =
			DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 4, &isnull));
	}
	MemoryContextSwitchTo(old_context);
	return read;
}

static SignatureKey *
MakeKey(const char *name, char *secret)
{
	SignatureKey *key =
		MakeSignatureKey(secrets_context, secret, strlen(secret));

	if (key == NULL)
		ereport(LOG,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("OpenSSL does not accept a secret of subscription \"%s\"",
						name)));
	pfree(secret);
	return key;
}

/*
 * Returns the first secret of a subscription, or NULL if there is no such
 * subscription.
 */
static const Secret *
FindSecrets(const char *name)
{
	uint64 low = 0;
	uint64 high = nsecrets;

	while (low < high)
	{
		uint64 middle = low + (high - low) / 2;

		if (strcmp(secrets[middle].name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == nsecrets || strcmp(secrets[low].name, name) != 0)
		return NULL;
	return &secrets[low];
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
	const Secret *secret = FindSecrets(name);
	const char *reason =
		"The signature matches none of the subscription's valid secrets.";
	unsigned char given[SIGNATURE_BYTES];
	unsigned char expected[SIGNATURE_BYTES];

	*is_signed = secret != NULL && secret->is_signed;
	if (secret == NULL)
		reason = psprintf("No subscription is named \"%s\".",
						  QuotableInput(name, strlen(name)));
	else if (!secret->is_signed && signature == NULL)
		return true;
	else if (!secret->is_signed)
		reason = "The subscription has no secret, but there is a signature.";
	else if (signature == NULL)
		reason = "The signature is missing.";
	else if (!DecodeSignature(signature, signature_len, given))
		reason = DescribeBadSignature(signature, signature_len);
	else
	{
		for (; secret < secrets + nsecrets && strcmp(secret->name, name) == 0;
			 secret++)
		{
			if (secret->key == NULL || secret->retired_at <= now)
				continue;
			SignBody(secret->key, body, len, expected);
			if (SignaturesEqual(expected, given))
				return true;
		}
	}

	SetGigError(error, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
				"could not authenticate webhook");
	error->log_detail = reason;
	return false;
}
