/*-------------------------------------------------------------------------
 *
 * apply.c
 *	  Events onto the tables.
 *
 * A call's events are applied together: their accounts are locked, what has
 * been delivered before is looked up, everything is folded in memory, and then
 * each table is written by one statement.  One event is a batch of one.
 *
 * Writing goes through SQL, so that tables which are partitioned, distributed
 * or carry triggers keep working.  This room knows nothing of JSON or HMAC.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "account_table.h"
#include "apply.h"
#include "plan.h"
#include "settings.h"

/* A row of gig_delivery. */
typedef struct Delivery
{
	pg_uuid_t account_id;
	BodyDigest digest;
	bool known;			   /* has been delivered before */
	int64 event_id;		   /* of the event that it delivers, ... */
	const GigItem *logged; /* ... unless this call logs that event */
	int32 deliveries;
	TimestampTz first_at;
} Delivery;

/* An event on its way, with the rows that it meets. */
typedef struct Step
{
	GigItem *item;
	int ord; /* of arrival */
	GigAccount *account;
	Delivery *delivery;
	bool is_new; /* no redelivery */
} Step;

/* A gig that an event names. */
typedef struct Change
{
	const Step *step;
	const pg_uuid_t *gig_id;
} Change;

/* All that a call works on. */
typedef struct Batch
{
	const GigSchema *schema;
	TimestampTz now;
	Step *steps; /* in order of arrival */
	int nsteps;
	GigAccount *accounts; /* in order of account_id */
	int naccounts;
	Delivery *deliveries; /* in order of account_id and digest */
	int ndeliveries;
} Batch;

static void CollectAccounts(Batch *batch);
static void CollectDeliveries(Batch *batch);
static void ReadDeliveries(Batch *batch);
static void Fold(Batch *batch);
static void WriteLog(Batch *batch);
static void WriteDeliveries(Batch *batch);
static void WriteChanges(Batch *batch);
static int CollectChanges(const Batch *batch, Change **changes);
static void WriteChangesOf(const Batch *batch, SavedPlan *plan,
						   const Change *changes, int nchanges);
static bool WithinWindow(TimestampTz first_at, TimestampTz now);
static int64 EventIdOf(const Delivery *delivery);
static Datum DigestDatum(const BodyDigest *digest);
static int CompareAccountsOfSteps(const void *a, const void *b);
static int CompareDeliveriesOfSteps(const void *a, const void *b);
static int CompareChanges(const void *a, const void *b);
static void DescribeReadDeliveries(const GigSchema *schema, StringInfo query,
								   Oid *argtypes, int *nargs);
static void DescribeWriteLog(const GigSchema *schema, StringInfo query,
							 Oid *argtypes, int *nargs);
static void DescribeWriteDeliveries(const GigSchema *schema, StringInfo query,
									Oid *argtypes, int *nargs);
static void DescribeWriteChanges(const GigSchema *schema, StringInfo query,
								 Oid *argtypes, int *nargs);
static void DescribeRestoreChanges(const GigSchema *schema, StringInfo query,
								   Oid *argtypes, int *nargs);

static SavedPlan read_deliveries = {.describe = DescribeReadDeliveries};
static SavedPlan write_log = {.describe = DescribeWriteLog};
static SavedPlan write_deliveries = {.describe = DescribeWriteDeliveries};
static SavedPlan write_changes = {.describe = DescribeWriteChanges};
static SavedPlan restore_changes = {.describe = DescribeRestoreChanges};

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

	if (nitems == 0)
		return;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	BecomeOwner(schema, &caller);

	batch.steps = palloc0(nitems * sizeof(Step));
	for (int i = 0; i < nitems; i++)
	{
		batch.steps[i].item = items[i];
		batch.steps[i].ord = i;
	}
	CollectAccounts(&batch);
	CollectDeliveries(&batch);

	/* the time is taken under the locks, as the events' order is */
	LockAccounts(schema, batch.accounts, batch.naccounts);
	batch.now = GetCurrentTimestamp();

	ReadDeliveries(&batch);
	Fold(&batch);
	WriteLog(&batch);
	WriteDeliveries(&batch);
	WriteAccounts(schema, batch.accounts, batch.naccounts);
	WriteChanges(&batch);

	BecomeCaller(&caller);
	SPI_finish();
}

/*
 * Gives every step its account.
 */
static void
CollectAccounts(Batch *batch)
{
	Step **sorted = palloc(batch->nsteps * sizeof(Step *));
	GigAccount *account = NULL;

	for (int i = 0; i < batch->nsteps; i++)
		sorted[i] = &batch->steps[i];
	qsort(sorted, batch->nsteps, sizeof(Step *), CompareAccountsOfSteps);

	batch->accounts = palloc(batch->nsteps * sizeof(GigAccount));
	for (int i = 0; i < batch->nsteps; i++)
	{
		const GigEvent *event = &sorted[i]->item->event;

		if (account == NULL ||
			CompareUuids(&account->account_id, &event->account_id) != 0)
		{
			account = &batch->accounts[batch->naccounts++];
			InitGigAccount(account, &event->account_id, &event->user_id);
		}
		sorted[i]->account = account;
	}
	pfree(sorted);
}

/*
 * Gives every step its delivery.
 */
static void
CollectDeliveries(Batch *batch)
{
	Step **sorted = palloc(batch->nsteps * sizeof(Step *));
	Delivery *delivery = NULL;

	for (int i = 0; i < batch->nsteps; i++)
		sorted[i] = &batch->steps[i];
	qsort(sorted, batch->nsteps, sizeof(Step *), CompareDeliveriesOfSteps);

	batch->deliveries = palloc0(batch->nsteps * sizeof(Delivery));
	for (int i = 0; i < batch->nsteps; i++)
	{
		const GigItem *item = sorted[i]->item;

		if (i == 0 || CompareDeliveriesOfSteps(&sorted[i - 1], &sorted[i]) != 0)
		{
			delivery = &batch->deliveries[batch->ndeliveries++];
			delivery->account_id = item->event.account_id;
			delivery->digest = item->digest;
		}
		sorted[i]->delivery = delivery;
	}
	pfree(sorted);
}

/*
 * Looks up which of the bodies have been delivered before.
 */
static void
ReadDeliveries(Batch *batch)
{
	int n = batch->ndeliveries;
	Datum *places = palloc(n * sizeof(Datum));
	Datum *accounts = palloc(n * sizeof(Datum));
	Datum *digests = palloc(n * sizeof(Datum));
	Datum values[3];
	uint64 nrows;

	for (int i = 0; i < n; i++)
	{
		places[i] = Int32GetDatum(i);
		accounts[i] = UUIDPGetDatum(&batch->deliveries[i].account_id);
		digests[i] = DigestDatum(&batch->deliveries[i].digest);
	}
	values[0] = MakeArray(INT4OID, places, NULL, n);
	values[1] = MakeArray(UUIDOID, accounts, NULL, n);
	values[2] = MakeArray(BYTEAOID, digests, NULL, n);

	nrows =
		RunPlan(batch->schema, &read_deliveries, values, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < nrows; row++)
	{
		HeapTuple tuple = SPI_tuptable->vals[row];
		TupleDesc tupdesc = SPI_tuptable->tupdesc;
		bool isnull;
		int32 place = DatumGetInt32(SPI_getbinval(tuple, tupdesc, 1, &isnull));
		Delivery *delivery = &batch->deliveries[place];

		delivery->known = true;
		delivery->event_id =
			DatumGetInt64(SPI_getbinval(tuple, tupdesc, 2, &isnull));
		delivery->deliveries =
			DatumGetInt32(SPI_getbinval(tuple, tupdesc, 3, &isnull));
		delivery->first_at =
			DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 4, &isnull));
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Tells redeliveries from events, and applies the events to their accounts.
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
		Delivery *delivery = step->delivery;

		if (delivery->known && WithinWindow(delivery->first_at, batch->now))
		{
			if (delivery->deliveries < PG_INT32_MAX)
				delivery->deliveries++;
			step->account->duplicates++;
			item->outcome = OUTCOME_DUPLICATE;
			continue;
		}
		delivery->known = true;
		delivery->logged = item;
		delivery->deliveries = 1;
		delivery->first_at = batch->now;
		step->is_new = true;
		item->outcome = FoldGigEvent(step->account, &item->event, batch->now);
	}
}

static bool
WithinWindow(TimestampTz first_at, TimestampTz now)
{
	return now < TimestampTzPlusMilliseconds(first_at, gig_dedupe_window *
														   INT64CONST(1000));
}

/*
 * Logs what is new, in order of arrival, and learns the events' ids.
 */
static void
WriteLog(Batch *batch)
{
	const GigSchema *schema = batch->schema;
	GigItem **items = palloc(batch->nsteps * sizeof(GigItem *));
	Datum *kinds = palloc(batch->nsteps * sizeof(Datum));
	Datum *accounts = palloc(batch->nsteps * sizeof(Datum));
	Datum *names = palloc(batch->nsteps * sizeof(Datum));
	Datum *bodies = palloc(batch->nsteps * sizeof(Datum));
	Datum values[5];
	int n = 0;

	for (int i = 0; i < batch->nsteps; i++)
	{
		GigItem *item = batch->steps[i].item;
		const GigEvent *event = &item->event;

		if (!batch->steps[i].is_new)
			continue;
		items[n] = item;
		kinds[n] = ObjectIdGetDatum(schema->event_kinds[event->kind]);
		accounts[n] = UUIDPGetDatum(&event->account_id);
		names[n] = CStringGetTextDatum(
			pg_any_to_server(event->name, (int) strlen(event->name), PG_UTF8));
		bodies[n] = PointerGetDatum(item->body);
		n++;
	}
	if (n > 0)
	{
		values[0] = TimestampTzGetDatum(batch->now);
		values[1] = MakeArray(schema->event_kind_type, kinds, NULL, n);
		values[2] = MakeArray(UUIDOID, accounts, NULL, n);
		values[3] = MakeArray(TEXTOID, names, NULL, n);
		values[4] = MakeArray(BYTEAOID, bodies, NULL, n);
		if (RunPlan(schema, &write_log, values, NULL,
					SPI_OK_INSERT_RETURNING) != (uint64) n)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("table \"%s\" did not take all events",
							"gig_event_log"),
					 errhint(
						 "A trigger or rule of the table may have dropped some.")));
		for (int i = 0; i < n; i++)
		{
			bool isnull;

			items[i]->event_id =
				DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
											SPI_tuptable->tupdesc, 1, &isnull));
		}
		SPI_freetuptable(SPI_tuptable);
	}

	for (int i = 0; i < batch->nsteps; i++)
	{
		Step *step = &batch->steps[i];

		if (!step->is_new)
			step->item->event_id = EventIdOf(step->delivery);
	}
}

static int64
EventIdOf(const Delivery *delivery)
{
	return delivery->logged ? delivery->logged->event_id : delivery->event_id;
}

/*
 * Remembers the deliveries.
 */
static void
WriteDeliveries(Batch *batch)
{
	int n = batch->ndeliveries;
	Datum *accounts = palloc(n * sizeof(Datum));
	Datum *digests = palloc(n * sizeof(Datum));
	Datum *event_ids = palloc(n * sizeof(Datum));
	Datum *counts = palloc(n * sizeof(Datum));
	Datum *first_ats = palloc(n * sizeof(Datum));
	Datum values[6];

	for (int i = 0; i < n; i++)
	{
		Delivery *delivery = &batch->deliveries[i];

		accounts[i] = UUIDPGetDatum(&delivery->account_id);
		digests[i] = DigestDatum(&delivery->digest);
		event_ids[i] = Int64GetDatum(EventIdOf(delivery));
		counts[i] = Int32GetDatum(delivery->deliveries);
		first_ats[i] = TimestampTzGetDatum(delivery->first_at);
	}
	values[0] = MakeArray(UUIDOID, accounts, NULL, n);
	values[1] = MakeArray(BYTEAOID, digests, NULL, n);
	values[2] = MakeArray(INT8OID, event_ids, NULL, n);
	values[3] = MakeArray(INT4OID, counts, NULL, n);
	values[4] = MakeArray(TIMESTAMPTZOID, first_ats, NULL, n);
	values[5] = TimestampTzGetDatum(batch->now);
	RunPlan(batch->schema, &write_deliveries, values, NULL, SPI_OK_INSERT);
}

static Datum
DigestDatum(const BodyDigest *digest)
{
	bytea *datum = palloc(VARHDRSZ + BODY_DIGEST_BYTES);

	SET_VARSIZE(datum, VARHDRSZ + BODY_DIGEST_BYTES);
	memcpy(VARDATA(datum), digest->data, BODY_DIGEST_BYTES);
	return PointerGetDatum(datum);
}

/*
 * Tells the consumer which gigs to fetch or delete.
 *
 * Of several events that name a gig the last one counts.  A redelivery counts
 * only where no event does, and only brings back a gig that the consumer has
 * taken out: it may have been a second event with the same body.
 */
static void
WriteChanges(Batch *batch)
{
	Change *changes;
	int nchanges = CollectChanges(batch, &changes);
	Change *redelivered;
	int nnew = 0;
	int nredelivered = 0;

	if (nchanges == 0)
		return;
	redelivered = palloc(nchanges * sizeof(Change));
	for (int i = 0; i < nchanges;)
	{
		Change first = changes[i];
		Change last_new = {NULL, NULL};

		for (; i < nchanges &&
			   CompareUuids(&first.step->account->account_id,
							&changes[i].step->account->account_id) == 0 &&
			   CompareUuids(first.gig_id, changes[i].gig_id) == 0;
			 i++)
		{
			if (changes[i].step->is_new)
				last_new = changes[i];
		}
		if (last_new.step != NULL)
			changes[nnew++] = last_new;
		else
			redelivered[nredelivered++] = first;
	}
	WriteChangesOf(batch, &write_changes, changes, nnew);
	WriteChangesOf(batch, &restore_changes, redelivered, nredelivered);
}

/* All gigs named, in order of account, gig and arrival. */
static int
CollectChanges(const Batch *batch, Change **changes)
{
	int64 total = 0;
	int n = 0;

	for (int i = 0; i < batch->nsteps; i++)
		total += batch->steps[i].item->event.changed_gigs.length;
	if (total == 0)
		return 0;
	if (total > PG_INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("too many gigs in one call")));

	*changes =
		MemoryContextAllocHuge(CurrentMemoryContext, total * sizeof(Change));
	for (int i = 0; i < batch->nsteps; i++)
	{
		const Step *step = &batch->steps[i];
		const GigUuidArray *gigs = &step->item->event.changed_gigs;

		for (int j = 0; j < gigs->length; j++)
		{
			(*changes)[n].step = step;
			(*changes)[n].gig_id = &gigs->elements[j];
			n++;
		}
	}
	qsort(*changes, n, sizeof(Change), CompareChanges);
	return n;
}

static void
WriteChangesOf(const Batch *batch, SavedPlan *plan, const Change *changes,
			   int nchanges)
{
	const GigSchema *schema = batch->schema;
	Datum *accounts;
	Datum *gigs;
	Datum *kinds;
	Datum *event_ids;
	Datum values[5];

	if (nchanges == 0)
		return;
	accounts = palloc(nchanges * sizeof(Datum));
	gigs = palloc(nchanges * sizeof(Datum));
	kinds = palloc(nchanges * sizeof(Datum));
	event_ids = palloc(nchanges * sizeof(Datum));
	for (int i = 0; i < nchanges; i++)
	{
		const GigItem *item = changes[i].step->item;

		accounts[i] = UUIDPGetDatum(&item->event.account_id);
		gigs[i] = UUIDPGetDatum(changes[i].gig_id);
		kinds[i] = ObjectIdGetDatum(schema->event_kinds[item->event.kind]);
		event_ids[i] = Int64GetDatum(item->event_id);
	}
	values[0] = MakeArray(UUIDOID, accounts, NULL, nchanges);
	values[1] = MakeArray(UUIDOID, gigs, NULL, nchanges);
	values[2] = MakeArray(schema->event_kind_type, kinds, NULL, nchanges);
	values[3] = MakeArray(INT8OID, event_ids, NULL, nchanges);
	values[4] = TimestampTzGetDatum(batch->now);
	RunPlan(schema, plan, values, NULL, SPI_OK_INSERT);
}

static int
CompareAccountsOfSteps(const void *a, const void *b)
{
	const Step *left = *(Step *const *) a;
	const Step *right = *(Step *const *) b;
	int result = CompareUuids(&left->item->event.account_id,
							  &right->item->event.account_id);

	/* the first event of an account that is new names its user */
	return result != 0 ? result : left->ord - right->ord;
}

static int
CompareDeliveriesOfSteps(const void *a, const void *b)
{
	const Step *left = *(Step *const *) a;
	const Step *right = *(Step *const *) b;
	int result = CompareUuids(&left->item->event.account_id,
							  &right->item->event.account_id);

	return result != 0 ? result
					   : memcmp(left->item->digest.data,
								right->item->digest.data, BODY_DIGEST_BYTES);
}

static int
CompareChanges(const void *a, const void *b)
{
	const Change *left = a;
	const Change *right = b;
	int result = CompareUuids(&left->step->item->event.account_id,
							  &right->step->item->event.account_id);

	if (result == 0)
		result = CompareUuids(left->gig_id, right->gig_id);
	return result != 0 ? result : left->step->ord - right->step->ord;
}

/*
 * The statements.  Arrays are the columns of rows, side by side; unnest()
 * keeps the rows' order.
 */

static void
DescribeReadDeliveries(const GigSchema *schema, StringInfo query, Oid *argtypes,
					   int *nargs)
{
	appendStringInfo(query,
					 "SELECT k.place, d.event_id, d.deliveries, d.first_at"
					 " FROM unnest($1, $2, $3)"
					 " AS k (place, account_id, body_digest)"
					 " JOIN %s.gig_delivery AS d"
					 " ON d.account_id = k.account_id"
					 " AND d.body_digest = k.body_digest",
					 schema->name);
	argtypes[(*nargs)++] = INT4ARRAYOID;
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = BYTEAARRAYOID;
}

static void
DescribeWriteLog(const GigSchema *schema, StringInfo query, Oid *argtypes,
				 int *nargs)
{
	appendStringInfo(query,
					 "INSERT INTO %s.gig_event_log"
					 " (received_at, event, account_id, name, body)"
					 " SELECT $1, e.event, e.account_id, e.name, e.body"
					 " FROM unnest($2, $3, $4, $5)"
					 " AS e (event, account_id, name, body)"
					 " RETURNING event_id",
					 schema->name);
	argtypes[(*nargs)++] = TIMESTAMPTZOID;
	argtypes[(*nargs)++] = get_array_type(schema->event_kind_type);
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = TEXTARRAYOID;
	argtypes[(*nargs)++] = BYTEAARRAYOID;
}

static void
DescribeWriteDeliveries(const GigSchema *schema, StringInfo query,
						Oid *argtypes, int *nargs)
{
	appendStringInfo(query,
					 "INSERT INTO %s.gig_delivery AS d (account_id,"
					 " body_digest, event_id, deliveries, first_at, last_at)"
					 " SELECT n.account_id, n.body_digest, n.event_id,"
					 " n.deliveries, n.first_at, $6"
					 " FROM unnest($1, $2, $3, $4, $5) AS n (account_id,"
					 " body_digest, event_id, deliveries, first_at)"
					 " ON CONFLICT (account_id, body_digest) DO UPDATE SET"
					 " event_id = excluded.event_id,"
					 " deliveries = excluded.deliveries,"
					 " first_at = excluded.first_at,"
					 " last_at = excluded.last_at",
					 schema->name);
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = BYTEAARRAYOID;
	argtypes[(*nargs)++] = INT8ARRAYOID;
	argtypes[(*nargs)++] = INT4ARRAYOID;
	argtypes[(*nargs)++] = get_array_type(TIMESTAMPTZOID);
	argtypes[(*nargs)++] = TIMESTAMPTZOID;
}

static void
DescribeChanges(const GigSchema *schema, StringInfo query, Oid *argtypes,
				int *nargs)
{
	appendStringInfo(query,
					 "INSERT INTO %s.gig_change"
					 " (account_id, gig_id, change, changed_at, event_id)"
					 " SELECT n.account_id, n.gig_id, n.change, $5, n.event_id"
					 " FROM unnest($1, $2, $3, $4)"
					 " AS n (account_id, gig_id, change, event_id)"
					 " ON CONFLICT (account_id, gig_id) DO ",
					 schema->name);
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = get_array_type(schema->event_kind_type);
	argtypes[(*nargs)++] = INT8ARRAYOID;
	argtypes[(*nargs)++] = TIMESTAMPTZOID;
}

static void
DescribeWriteChanges(const GigSchema *schema, StringInfo query, Oid *argtypes,
					 int *nargs)
{
	DescribeChanges(schema, query, argtypes, nargs);
	appendStringInfoString(query, "UPDATE SET change = excluded.change,"
								  " changed_at = excluded.changed_at,"
								  " event_id = excluded.event_id");
}

static void
DescribeRestoreChanges(const GigSchema *schema, StringInfo query, Oid *argtypes,
					   int *nargs)
{
	DescribeChanges(schema, query, argtypes, nargs);
	appendStringInfoString(query, "NOTHING");
}
