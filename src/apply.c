/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  Events onto the tables.
 *
 * A call's events are applied together: their accounts are locked, what has
 * been delivered before is looked up, everything is folded in memory, and what
 * has come of it is written by one statement.  One event is a batch of one.
 *
 * Tables which are partitioned, distributed or carry triggers are read and
 * written by SQL, ordinary ones directly, which is faster.  This room knows
 * nothing of JSON or HMAC.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "account_table.h"
#include "apply.h"
#include "delivery.h"
#include "plan.h"
#include "settings.h"
#include "write.h"

/* An event on its way, with the rows that it meets. */
typedef struct Step
{
	GigItem *item;
	uint64 sort_key; /* of the order of account_id, as far as it goes */
	int ord;		 /* of arrival */
	GigAccount *account;
	GigDelivery *delivery;
	bool is_new; /* no redelivery */
} Step;

/* A gig that an event of some account names. */
typedef struct NamedGig
{
	const pg_uuid_t *gig_id;
	const Step *step;
} NamedGig;

/* All that a call works on. */
typedef struct Batch
{
	const GigSchema *schema;
	GigDirect *direct; /* NULL: by SQL */
	TimestampTz now;
	int nsteps;
	Step *steps;   /* in order of arrival */
	Step **sorted; /* the same in order of account, body and arrival */
	int naccounts;
	GigAccount *accounts; /* in order of account_id */
	int ndeliveries;
	GigDelivery *deliveries; /* in order of account_id and digest */
	GigHold hold;			 /* of the accounts */
} Batch;

static void SortSteps(Batch *batch, GigItem **items);
static void GroupSteps(Batch *batch);
static bool Apply(Batch *batch);
static bool ApplyOrUndo(Batch *batch);
static bool Meet(Batch *batch);
static void Hold(Batch *batch);
static bool MeetOne(Batch *batch);
static bool ChangedSince(TransactionId xmin, Snapshot snapshot);
static void Fold(Batch *batch);
static bool WithinWindow(TimestampTz first_at, TimestampTz now);
static void Write(Batch *batch);
static uint64 WriteEvents(const Batch *batch, GigWriter *writer);
static void WriteDeliveries(const Batch *batch, GigWriter *writer);
static void WriteChanges(const Batch *batch, GigWriter *writer);
static int CollectGigs(const Batch *batch, NamedGig **gigs);
static int CompareSteps(const void *a, const void *b);
static int CompareGigs(const void *a, const void *b);
static void DescribeMeetOne(Statement *statement, const void *what);

static SavedPlan meet_one = {.describe = DescribeMeetOne};

/*
 * Applies events, as if one by one in the order given.
 *
 * Fills outcome and event_id of each.  All of it commits, or none.
 */
void
ApplyGigItems(const GigSchema *schema, GigItem **items, int nitems)
{
	Batch batch = {.schema = schema, .nsteps = nitems};
	Caller caller;
	bool applied;

	if (nitems == 0)
		return;
	PreventCommandIfReadOnly("INSERT");
	/* once they are locked nobody can make them anything else */
	LockGigTables(schema, RowExclusiveLock);
	LockGigSequence(schema);
	ConnectAsOwner(schema, &caller);

	SortSteps(&batch, items);
	GroupSteps(&batch);
	if (batch.naccounts == 1)
		applied = Apply(&batch);
	else
	{
		applied = ApplyOrUndo(&batch);
		for (int i = 1; !applied && i < MAX_LOCK_ATTEMPTS; i++)
		{
			/* what was learnt of them has been undone, too */
			LockGigTables(schema, RowExclusiveLock);
			LockGigSequence(schema);
			GroupSteps(&batch);
			applied = ApplyOrUndo(&batch);
		}
	}
	if (!applied)
		ThrowAccountsVanished();

	DisconnectAsCaller(&caller);
}

/*
 * Returns false, with nothing written, if accounts could not be locked.
 */
static bool
Apply(Batch *batch)
{
	volatile bool met = false;

	PG_TRY();
	{
		batch->direct = BeginDirect(batch->schema);
		met = Meet(batch);
		if (met)
		{
			/* the time is taken under the locks, as the events' order is */
			batch->now = GetCurrentTimestamp();
			Fold(batch);
			batch->hold.folded = true;
			Write(batch);
		}
		if (batch->direct != NULL)
			EndDirect(batch->direct);
	}
	PG_CATCH();
	{
		LetGoAccounts(&batch->hold);
		PG_RE_THROW();
	}
	PG_END_TRY();
	LetGoAccounts(&batch->hold);
	return met;
}

/*
 * The same in a subtransaction, with which the locks go that have been taken.
 * All of it is in there, because a row that the subtransaction locks and the
 * transaction writes would get a MultiXact.
 */
static bool
ApplyOrUndo(Batch *batch)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner resource_owner = CurrentResourceOwner;
	volatile bool applied = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		applied = Apply(batch);
		if (applied)
			ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ReThrowError(error);
	}
	PG_END_TRY();
	if (!applied)
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = resource_owner;
	return applied;
}

static void
SortSteps(Batch *batch, GigItem **items)
{
	int n = batch->nsteps;

	batch->steps =
		MemoryContextAllocExtended(CurrentMemoryContext, n * sizeof(Step),
								   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	batch->sorted =
		MemoryContextAllocHuge(CurrentMemoryContext, n * sizeof(Step *));
	for (int i = 0; i < n; i++)
	{
		Step *step = &batch->steps[i];

		step->item = items[i];
		step->ord = i;
		memcpy(&step->sort_key, items[i]->event.account_id.data,
			   sizeof(step->sort_key));
		step->sort_key = pg_ntoh64(step->sort_key);
		batch->sorted[i] = step;
	}
	if (n > 1)
		qsort(batch->sorted, n, sizeof(Step *), CompareSteps);
}

/*
 * Gives every step its account and its delivery.
 */
static void
GroupSteps(Batch *batch)
{
	GigAccount *account = NULL;
	GigDelivery *delivery = NULL;
	const Step *first = NULL; /* to arrive of the account */

	/* an array of a gigabyte holds more events than palloc() has room for */
	batch->accounts = MemoryContextAllocHuge(CurrentMemoryContext,
											 batch->nsteps * sizeof(GigAccount));
	batch->deliveries =
		MemoryContextAllocHuge(CurrentMemoryContext,
							   batch->nsteps * sizeof(GigDelivery));
	batch->naccounts = 0;
	batch->ndeliveries = 0;
	for (int i = 0; i < batch->nsteps; i++)
	{
		Step *step = batch->sorted[i];
		const GigEvent *event = &step->item->event;
		const BodyDigest *digest = &step->item->digest;

		if (account == NULL ||
			CompareUuids(&account->account_id, &event->account_id) != 0)
		{
			account = &batch->accounts[batch->naccounts++];
			InitGigAccount(account, &event->account_id, &event->user_id);
			delivery = NULL;
			first = step;
		}
		else if (step->ord < first->ord)
		{
			/* an account that is new has the user that it came with */
			account->user_id = event->user_id;
			first = step;
		}
		if (delivery == NULL ||
			memcmp(&delivery->body_digest, digest, sizeof(BodyDigest)) != 0)
		{
			delivery = &batch->deliveries[batch->ndeliveries++];
			InitDelivery(delivery, &event->account_id, digest);
		}
		step->account = account;
		step->delivery = delivery;
	}
}

/*
 * Locks the accounts, creating those that are new, and reads what is there of
 * them and of the deliveries.
 */
static bool
Meet(Batch *batch)
{
	if (batch->direct == NULL && batch->nsteps == 1 && MeetOne(batch))
	{
		Hold(batch);
		return true;
	}
	if (!LockAccounts(batch->schema, batch->direct, batch->accounts,
					  batch->naccounts))
		return false;
	Hold(batch);
	/* having waited for a lock, one has to look again */
	if (batch->direct != NULL)
		RefreshDirect(batch->direct);
	ReadDeliveries(batch->schema, batch->direct, batch->deliveries,
				   batch->ndeliveries);
	return true;
}

static void
Hold(Batch *batch)
{
	CheckAccountsFree(batch->accounts, batch->naccounts);
	HoldAccounts(&batch->hold, batch->accounts, batch->naccounts);
}

/*
 * Does the same for one event by one statement, if that can be done: if the
 * account exists, and if nobody has changed it since the statement began.
 * Then the statement has waited for a lock, and what it has seen of
 * deliveries is what was there before.
 */
static bool
MeetOne(Batch *batch)
{
	const GigSchema *schema = batch->schema;
	Snapshot snapshot = RegisterSnapshot(GetTransactionSnapshot());
	GigRows key;
	Arguments arguments = {.n = 0};
	bool met = false;

	InitRows(&key, schema, "key", gig_delivery_columns, DELIVERY_EVENT_ID);
	AddRow(&key, batch->deliveries, ALL_PRESENT);
	PutRows(&arguments, &key);
	if (RunPlan(schema, &meet_one, &key, &arguments, snapshot, SPI_OK_SELECT) ==
		1)
	{
		HeapTuple tuple = SPI_tuptable->vals[0];
		TupleDesc tupdesc = SPI_tuptable->tupdesc;
		bool isnull;
		Datum xmin =
			GetResult(tuple, tupdesc, GIG_ACCOUNT_COLUMNS + 1, XIDOID, &isnull);

		met = !ChangedSince(DatumGetTransactionId(xmin), snapshot);
		if (met)
		{
			TakeAccount(schema, batch->accounts, tuple, tupdesc);
			TakeDelivery(schema, batch->deliveries, tuple, tupdesc,
						 GIG_ACCOUNT_COLUMNS + 2);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	UnregisterSnapshot(snapshot);
	return met;
}

/*
 * Tells whether the row version that xmin has made is later than a snapshot.
 */
static bool
ChangedSince(TransactionId xmin, Snapshot snapshot)
{
	return !TransactionIdIsCurrentTransactionId(xmin) &&
		   XidInMVCCSnapshot(xmin, snapshot);
}

static void
DescribeMeetOne(Statement *statement, const void *what)
{
	const char *schema = statement->schema->name;
	StringInfo text = &statement->text;

	appendStringInfoString(text, "SELECT ");
	for (int i = 0; i < GIG_ACCOUNT_COLUMNS; i++)
		appendStringInfo(text, "a.%s, ", gig_account_columns[i].name);
	appendStringInfoString(text, "a.xmin, ");
	AppendDeliveryColumns(text);
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, what);
	appendStringInfo(text,
					 " AS k JOIN %s.gig_account_sync AS a"
					 " ON a.account_id = k.account_id"
					 " LEFT JOIN %s.gig_delivery AS d"
					 " ON d.account_id = k.account_id"
					 " AND d.body_digest = k.body_digest"
					 " FOR NO KEY UPDATE OF a",
					 schema, schema);
}

/*
 * Tells redeliveries from events, gives the events their ids, and applies them
 * to their accounts.
 *
 * Two true events can have the same body; only time tells them apart.  So a
 * body counts as a redelivery within the window from its first delivery, and
 * as a new event after that.
 */
static void
Fold(Batch *batch)
{
	for (int i = 0; i < batch->nsteps; i++)
	{
		Step *step = &batch->steps[i];
		GigItem *item = step->item;
		GigDelivery *delivery = step->delivery;

		delivery->last_at = batch->now;
		if (delivery->deliveries > 0 &&
			WithinWindow(delivery->first_at, batch->now))
		{
			if (delivery->deliveries < PG_INT32_MAX)
				delivery->deliveries++;
			step->account->duplicates++;
			item->event_id = delivery->event_id;
			item->outcome = OUTCOME_DUPLICATE;
			continue;
		}
		step->is_new = true;
		item->event_id =
			nextval_internal(batch->schema->event_id_sequence, false);
		item->outcome = FoldGigEvent(step->account, &item->event, batch->now);
		delivery->event_id = item->event_id;
		delivery->deliveries = 1;
		delivery->first_at = batch->now;
	}
}

static bool
WithinWindow(TimestampTz first_at, TimestampTz now)
{
	/* without a window nothing is, not even if the clock has been set back */
	return gig_dedupe_window > 0 &&
		   now < TimestampTzPlusMilliseconds(first_at, gig_dedupe_window *
														   INT64CONST(1000));
}

static void
Write(Batch *batch)
{
	GigWriter writer;
	uint64 nevents;
	uint64 nwritten;

	BeginWriting(&writer, batch->schema, batch->direct);
	nevents = WriteEvents(batch, &writer);
	for (int i = 0; i < batch->naccounts; i++)
		WriteRow(&writer, WRITE_ACCOUNTS, &batch->accounts[i],
				 batch->accounts[i].present);
	WriteDeliveries(batch, &writer);
	WriteChanges(batch, &writer);

	nwritten = FinishWriting(&writer);
	if (nevents > 0 && nwritten != nevents)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("table \"%s\" did not take all events", "gig_event_log"),
				 errhint(
					 "A trigger or rule of the table may have dropped some.")));
}

/*
 * Logs what is new, in order of arrival.  Returns how many events that is.
 */
static uint64
WriteEvents(const Batch *batch, GigWriter *writer)
{
	GigEventRow *rows =
		MemoryContextAllocHuge(CurrentMemoryContext,
							   batch->nsteps * sizeof(GigEventRow));
	uint64 n = 0;

	for (int i = 0; i < batch->nsteps; i++)
	{
		const GigItem *item = batch->steps[i].item;
		const GigEvent *event = &item->event;
		GigEventRow *row = &rows[n];

		if (!batch->steps[i].is_new)
			continue;
		row->event_id = item->event_id;
		row->received_at = batch->now;
		row->event = event->kind;
		row->account_id = event->account_id;
		row->name = cstring_to_text(
			pg_any_to_server(event->name, (int) strlen(event->name), PG_UTF8));
		row->body = item->body;
		WriteRow(writer, WRITE_EVENTS, row, ALL_PRESENT);
		n++;
	}
	return n;
}

static void
WriteDeliveries(const Batch *batch, GigWriter *writer)
{
	for (int i = 0; i < batch->ndeliveries; i++)
	{
		const GigDelivery *delivery = &batch->deliveries[i];

		WriteRow(writer,
				 delivery->stored ? WRITE_KNOWN_DELIVERIES
								  : WRITE_NEW_DELIVERIES,
				 delivery, ALL_PRESENT);
	}
}

/*
 * Tells the consumer which gigs to fetch or delete.
 *
 * Of several events that name a gig the last one counts.  A redelivery counts
 * only where no event does, and only brings back a gig that the consumer has
 * taken out: it may have been a second event with the same body.  It brings it
 * back to be fetched, even where it says that the gig is gone: since the first
 * time another event may have said that it isn't.
 */
static void
WriteChanges(const Batch *batch, GigWriter *writer)
{
	NamedGig *gigs;
	int ngigs = CollectGigs(batch, &gigs);
	GigChange *rows = MemoryContextAllocHuge(CurrentMemoryContext,
											 Max(ngigs, 1) * sizeof(GigChange));
	int n = 0;

	for (int i = 0; i < ngigs; n++)
	{
		const NamedGig *first = &gigs[i];
		const Step *step = first->step;
		GigChange *row = &rows[n];

		for (; i < ngigs && gigs[i].step->account == first->step->account &&
			   CompareUuids(gigs[i].gig_id, first->gig_id) == 0;
			 i++)
		{
			if (gigs[i].step->is_new)
				step = gigs[i].step;
		}
		row->account_id = step->account->account_id;
		row->gig_id = *first->gig_id;
		row->change = step->is_new ? step->item->event.kind : GIGS_UPDATED;
		row->changed_at = batch->now;
		row->event_id = step->item->event_id;
		WriteRow(writer, step->is_new ? WRITE_CHANGES : RESTORE_CHANGES, row,
				 ALL_PRESENT);
	}
}

/*
 * Collects all gigs that are named, in order of account, gig and arrival.
 */
static int
CollectGigs(const Batch *batch, NamedGig **gigs)
{
	int64 total = 0;
	int n = 0;
	int account_start = 0;

	for (int i = 0; i < batch->nsteps; i++)
		total += batch->steps[i].item->event.changed_gigs.length;
	if (total > PG_INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many gigs in one call")));

	*gigs = MemoryContextAllocHuge(CurrentMemoryContext,
								   Max(total, 1) * sizeof(NamedGig));
	for (int i = 0; i < batch->nsteps; i++)
	{
		const Step *step = batch->sorted[i];
		const GigUuidArray *named = &step->item->event.changed_gigs;

		CHECK_FOR_INTERRUPTS();
		for (int j = 0; j < named->length; j++)
		{
			(*gigs)[n].gig_id = &named->elements[j];
			(*gigs)[n].step = step;
			n++;
		}
		if (i + 1 == batch->nsteps ||
			batch->sorted[i + 1]->account != step->account)
		{
			if (n - account_start > 1)
				qsort(*gigs + account_start, n - account_start,
					  sizeof(NamedGig), CompareGigs);
			account_start = n;
		}
	}
	return n;
}

static int
CompareSteps(const void *a, const void *b)
{
	const Step *left = *(Step *const *) a;
	const Step *right = *(Step *const *) b;
	int result;

	if (left->sort_key != right->sort_key)
		return left->sort_key < right->sort_key ? -1 : 1;
	result = CompareUuids(&left->item->event.account_id,
						  &right->item->event.account_id);
	if (result == 0)
		result = memcmp(left->item->digest.data, right->item->digest.data,
						BODY_DIGEST_BYTES);
	return result != 0 ? result : left->ord - right->ord;
}

static int
CompareGigs(const void *a, const void *b)
{
	const NamedGig *left = a;
	const NamedGig *right = b;
	int result = CompareUuids(left->gig_id, right->gig_id);

	return result != 0 ? result : left->step->ord - right->step->ord;
}
