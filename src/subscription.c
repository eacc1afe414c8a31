/*-------------------------------------------------------------------------
 *
 * subscription.c
 *	  What we subscribed to, and whether a body was signed for it.
 *
 * Every backend keeps the subscriptions with their keys ready to sign.  A
 * trigger on their tables invalidates the tables' relcache entries, which
 * reaches every backend with the commit, and drops what it kept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "encoding.h"
#include "signature.h"
#include "subscription.h"

typedef struct Secret
{
	SignatureKey *key;		/* NULL: nobody is to sign with it */
	TimestampTz retired_at; /* DT_NOEND: not retired */
} Secret;

typedef struct Subscription
{
	char *name;		/* in UTF-8 */
	bool is_signed; /* whatever secrets there are or were */
	int nsecrets;	/* retired ones too */
	int capacity;
	Secret *secrets;
} Subscription;

static MemoryContext subscription_context = NULL;
static Subscription *subscriptions = NULL;
static int nsubscriptions = 0;
static bool subscriptions_valid = false;
static bool subscriptions_changed = false; /* while they are being read */
static bool uncommitted_loaded = false; /* what an abort would undo, perhaps */
static Oid loaded_tables[2] = {InvalidOid, InvalidOid};

typedef void (*RowReader)(Relation table, TupleTableSlot *slot);

static void LoadSubscriptions(const GigSchema *schema);
static void ReadTable(Relation table, Snapshot snapshot, RowReader read);
static void ReadSubscription(Relation table, TupleTableSlot *slot);
static void ReadSecret(Relation table, TupleTableSlot *slot);
static Datum GetColumn(Relation table, TupleTableSlot *slot, const char *name,
					   Oid type, bool *isnull);
static char *GetUtf8Column(Relation table, TupleTableSlot *slot,
						   const char *name, size_t *len);
static void SortSubscriptions(void);
static Subscription *FindSubscription(const char *name);
static int CompareNames(const void *a, const void *b);
static void ForgetSubscriptions(Datum arg, Oid table);
static void EndTransaction(XactEvent event, void *arg);
static void EndSubtransaction(SubXactEvent event, SubTransactionId id,
							  SubTransactionId parent, void *arg);
static bool Refuse(GigError *error, const char *log_detail);

PG_FUNCTION_INFO_V1(gig_subscription_changed);

/*
 * Asks to be told when the tables change.
 */
void
InitSubscriptions(void)
{
	CacheRegisterRelcacheCallback(ForgetSubscriptions, (Datum) 0);
	RegisterXactCallback(EndTransaction, NULL);
	RegisterSubXactCallback(EndSubtransaction, NULL);
}

static void
ForgetSubscriptions(Datum arg pg_attribute_unused(), Oid table)
{
	if (!OidIsValid(table) || table == loaded_tables[0] ||
		table == loaded_tables[1])
	{
		subscriptions_valid = false;
		subscriptions_changed = true;
	}
}

/*
 * What a transaction has read of its own doing ends with it, unless it commits.
 *
 * The trigger would see to that, but another one before it may have had the
 * subscriptions read, and then raised.
 */
static void
EndTransaction(XactEvent event, void *arg pg_attribute_unused())
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			uncommitted_loaded = false;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			if (uncommitted_loaded)
				subscriptions_valid = false;
			uncommitted_loaded = false;
			break;
		default:
			break;
	}
}

static void
EndSubtransaction(SubXactEvent event, SubTransactionId id pg_attribute_unused(),
				  SubTransactionId parent pg_attribute_unused(),
				  void *arg pg_attribute_unused())
{
	if (event == SUBXACT_EVENT_ABORT_SUB && uncommitted_loaded)
		subscriptions_valid = false;
}

/*
 * gig_subscription_changed() returns trigger
 *
 * Makes every backend forget what it knows of the table, once and if the
 * change commits (and this one at once).
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
 * Takes notice of what other sessions have committed.  Called once for every
 * statement that ingests, so that a retired secret is refused from the next
 * statement on.
 */
void
RefreshSubscriptions(const GigSchema *schema)
{
	AcceptInvalidationMessages();
	if (!subscriptions_valid)
		LoadSubscriptions(schema);
}

/*
 * Reads both tables.
 *
 * They are read as of now, and not as of the transaction's snapshot: in
 * REPEATABLE READ that would still show a secret that has been retired since.
 */
static void
LoadSubscriptions(const GigSchema *schema)
{
	Relation subscription_table;
	Relation secret_table;
	Snapshot snapshot;

	if (subscription_context == NULL)
		subscription_context =
			AllocSetContextCreate(TopMemoryContext, "gigs_webhooks secrets",
								  ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(subscription_context);
	subscriptions = NULL;
	nsubscriptions = 0;

	LockGigSubscriptions(schema);
	subscription_table = table_open(schema->subscription_table, NoLock);
	secret_table = table_open(schema->secret_table, NoLock);
	loaded_tables[0] = schema->subscription_table;
	loaded_tables[1] = schema->secret_table;

	/*
	 * What changes from here on makes the next statement read again, but not
	 * this one: it sees all that had been committed when it began, and
	 * invalidations may never cease.
	 */
	subscriptions_changed = false;
	uncommitted_loaded = TransactionIdIsValid(GetTopTransactionIdIfAny());
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ReadTable(subscription_table, snapshot, ReadSubscription);
	SortSubscriptions();
	ReadTable(secret_table, snapshot, ReadSecret);
	UnregisterSnapshot(snapshot);

	table_close(secret_table, AccessShareLock);
	table_close(subscription_table, AccessShareLock);
	subscriptions_valid = !subscriptions_changed;
}

static void
ReadTable(Relation table, Snapshot snapshot, RowReader read)
{
	TupleTableSlot *slot;
	TableScanDesc scan;

	/* the owner may have put anything in its place */
	if (table->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" of extension gigs_webhooks is not an ordinary table",
						RelationGetRelationName(table))));
	slot = table_slot_create(table, NULL);
	scan = table_beginscan(table, snapshot, 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		read(table, slot);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
}

static void
ReadSubscription(Relation table, TupleTableSlot *slot)
{
	static int capacity;
	Subscription *added;
	char *name;
	size_t len;
	bool isnull;
	MemoryContext old_context = MemoryContextSwitchTo(subscription_context);

	name = GetUtf8Column(table, slot, "name", &len);
	MemoryContextSwitchTo(old_context);
	if (name == NULL) /* no webhook can spell it */
		return;
	if (subscriptions == NULL)
	{
		capacity = 16;
		subscriptions = MemoryContextAlloc(subscription_context,
										   capacity * sizeof(Subscription));
	}
	else if (nsubscriptions == capacity)
	{
		capacity *= 2;
		subscriptions = repalloc(subscriptions, capacity * sizeof(Subscription));
	}
	added = &subscriptions[nsubscriptions];
	memset(added, 0, sizeof(Subscription));
	added->name = name;
	added->is_signed =
		DatumGetBool(GetColumn(table, slot, "signed", BOOLOID, &isnull)) ||
		isnull;
	nsubscriptions++;
}

static void
ReadSecret(Relation table, TupleTableSlot *slot)
{
	size_t name_len;
	size_t secret_len;
	bool isnull;
	char *name = GetUtf8Column(table, slot, "name", &name_len);
	char *secret = GetUtf8Column(table, slot, "secret", &secret_len);
	Datum retired_at =
		GetColumn(table, slot, "retired_at", TIMESTAMPTZOID, &isnull);
	Subscription *subscription = name != NULL ? FindSubscription(name) : NULL;

	/* no constraint keeps a secret from being there without its subscription */
	if (subscription != NULL)
	{
		Secret *added;

		if (subscription->nsecrets == subscription->capacity)
		{
			subscription->capacity = Max(2, subscription->capacity * 2);
			subscription->secrets =
				subscription->secrets
					? repalloc(subscription->secrets,
							   subscription->capacity * sizeof(Secret))
					: MemoryContextAlloc(subscription_context,
										 subscription->capacity * sizeof(Secret));
		}
		added = &subscription->secrets[subscription->nsecrets];
		added->retired_at = isnull ? DT_NOEND : DatumGetTimestampTz(retired_at);

		/* one that is empty anyone could sign with, one without UTF-8 nobody */
		if (secret != NULL && secret_len > 0)
			added->key =
				MakeSignatureKey(subscription_context, secret, secret_len);
		else
			added->key = NULL;
		subscription->nsecrets++;
	}
	if (secret != NULL)
	{
		ForgetKey(secret, secret_len);
		pfree(secret);
	}
	if (name != NULL)
		pfree(name);
}

/*
 * Returns a column by its name.  The owner may have altered the table, so its
 * type is checked before it is trusted.
 */
static Datum
GetColumn(Relation table, TupleTableSlot *slot, const char *name, Oid type,
		  bool *isnull)
{
	AttrNumber attnum = get_attnum(RelationGetRelid(table), name);

	if (attnum <= 0 ||
		TupleDescAttr(RelationGetDescr(table), attnum - 1)->atttypid != type)
		ThrowColumnError(name, RelationGetRelationName(table), type);
	return slot_getattr(slot, attnum, isnull);
}

/*
 * Returns a text column's UTF-8 bytes, terminated and in memory of their own;
 * NULL if it has none.
 */
static char *
GetUtf8Column(Relation table, TupleTableSlot *slot, const char *name,
			  size_t *len)
{
	bool isnull;
	Datum value = GetColumn(table, slot, name, TEXTOID, &isnull);
	char *s;
	char *utf8;

	if (isnull)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("column \"%s\" of table \"%s\" is null", name,
							   RelationGetRelationName(table))));
	s = TextDatumGetCString(value);
	utf8 = ServerToUtf8(s, (int) strlen(s));
	*len = utf8 != NULL ? strlen(utf8) : 0;
	if (utf8 != s)
	{
		ForgetKey(s, strlen(s));
		pfree(s);
	}
	return utf8;
}

static void
SortSubscriptions(void)
{
	if (nsubscriptions > 1)
		qsort(subscriptions, nsubscriptions, sizeof(Subscription), CompareNames);
}

static Subscription *
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
 * Checks that a body was signed with a secret of the subscription that it
 * names; "signature" is the header as received, or NULL.
 *
 * The sender can't tell the reasons for refusal apart: only the server log's
 * detail does.
 */
bool
VerifySubscription(const char *name, const char *body, size_t len,
				   const char *signature, size_t signature_len, TimestampTz now,
				   GigError *error)
{
	const Subscription *subscription = FindSubscription(name);
	unsigned char given[SIGNATURE_BYTES];
	unsigned char expected[SIGNATURE_BYTES];

	if (subscription == NULL)
		return Refuse(error, psprintf("No subscription is named \"%s\".",
									  QuotableInput(name, strlen(name))));
	if (!subscription->is_signed && subscription->nsecrets == 0)
	{
		if (signature == NULL)
			return true;
		return Refuse(error,
					  "The subscription has no secret, but there is a signature.");
	}
	if (signature == NULL)
		return Refuse(error, "The signature is missing.");
	if (!DecodeSignature(signature, signature_len, given))
		return Refuse(error,
					  psprintf("The signature is not %d hexadecimal digits.",
							   SIGNATURE_HEX_LEN));

	for (int i = 0; i < subscription->nsecrets; i++)
	{
		const Secret *secret = &subscription->secrets[i];

		if (secret->key == NULL || secret->retired_at <= now)
			continue;
		SignBody(secret->key, body, len, expected);
		if (SignaturesEqual(expected, given))
			return true;
	}
	return Refuse(error,
				  "The signature was made with none of the subscription's valid secrets.");
}

static bool
Refuse(GigError *error, const char *log_detail)
{
	SetGigError(error, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
				"could not authenticate webhook");
	error->log_detail = pstrdup(log_detail);
	return false;
}
