/*-------------------------------------------------------------------------
 *
 * rebuild.c
 *	  Rebuilding gig_account_sync from the log.
 *
 * The rules that applied the events when they were ingested are applied to the
 * log's bodies again, so that the rows come out identical.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"

#define ACCOUNTS_PER_WRITE 1000
#define EVENTS_PER_FETCH 1000

typedef struct Rebuild
{
	GigStore store;
	MemoryContext scratch; /* for a log row */
	MemoryContext context; /* for the accounts */
	GigAccount *accounts;  /* not written yet, in the order of account_id */
	int naccounts;
	int64 rebuilt;
} Rebuild;

static void LockBeforeReading(Rebuild *rebuild, const pg_uuid_t *account_id);
static void ReadLog(Rebuild *rebuild, const pg_uuid_t *account_id);
static void ApplyLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc);
static Datum GetLogColumn(HeapTuple tuple, TupleDesc tupdesc, const char *name);
static void ParseLoggedBody(bytea *body, bool is_account, int64 event_id,
							GigEvent *event);
static void WriteAccounts(Rebuild *rebuild);
static int64 CountAccounts(Rebuild *rebuild, const pg_uuid_t *account_id);

/*
 * rebuild_gig_sync(account_id uuid DEFAULT NULL)
 *		returns (accounts_rebuilt bigint, accounts_skipped bigint)
 *
 * Rebuilds one account or all.  Accounts whose first events have been pruned
 * are skipped, because their totals would shrink.
 */
PG_FUNCTION_INFO_V1(rebuild_gig_sync);
Datum
rebuild_gig_sync(PG_FUNCTION_ARGS)
{
	const pg_uuid_t *account_id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	Rebuild rebuild = {0};
	TupleDesc tupdesc;
	Datum values[2];
	bool nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	OpenStore(&rebuild.store, GetGigSchema(fcinfo), false);
	rebuild.scratch =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks log row",
							  ALLOCSET_DEFAULT_SIZES);
	rebuild.context =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks rebuild",
							  ALLOCSET_DEFAULT_SIZES);
	rebuild.accounts = palloc(ACCOUNTS_PER_WRITE * sizeof(GigAccount));

	LockBeforeReading(&rebuild, account_id);
	ReadLog(&rebuild, account_id);
	values[0] = Int64GetDatum(rebuild.rebuilt);
	values[1] =
		Int64GetDatum(CountAccounts(&rebuild, account_id) - rebuild.rebuilt);
	CloseStore(&rebuild.store);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * Keeps events from being applied between reading the log and writing accounts.
 * For one account that exists, its row lock does.
 *
 * Check for the row first: two sessions that hold ROW SHARE, which looking for
 * a row to lock takes, would deadlock when both upgrade to EXCLUSIVE.
 */
static void
LockBeforeReading(Rebuild *rebuild, const pg_uuid_t *account_id)
{
	if (account_id != NULL && CountAccounts(rebuild, account_id) > 0)
	{
		GigAccount account;

		InitGigAccount(&account, account_id, account_id);
		LockAccounts(&rebuild->store, &account, 1);
		return;
	}
	SPI_execute(QualifyStatement(rebuild->store.schema,
								 "LOCK TABLE @extschema@.gig_account_sync IN EXCLUSIVE MODE"),
				false, 0);
}

/*
 * Applies the log, account by account.
 */
static void
ReadLog(Rebuild *rebuild, const pg_uuid_t *account_id)
{
	Oid type = UUIDOID;
	Datum value = UUIDPGetDatum((pg_uuid_t *) account_id);
	const char *text =
		"SELECT event_id::bigint, account_id::uuid, received_at::timestamptz,"
		" outcome::@extschema@.gig_ingest_outcome,"
		" event::@extschema@.gig_event_kind, body::bytea"
		" FROM @extschema@.gig_event_log WHERE $1 IS NULL OR account_id = $1"
		" ORDER BY account_id, event_id";
	Portal cursor =
		SPI_cursor_open_with_args(NULL,
								  QualifyStatement(rebuild->store.schema, text),
								  1, &type, &value,
								  account_id == NULL ? "n" : NULL, false, 0);
	uint64 nrows;

	do
	{
		SPITupleTable *rows;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(cursor, true, EVENTS_PER_FETCH);
		rows = SPI_tuptable;
		nrows = SPI_processed;
		for (uint64 row = 0; row < nrows; row++)
			ApplyLogRow(rebuild, rows->vals[row], rows->tupdesc);
		SPI_freetuptable(rows);
	} while (nrows > 0);
	SPI_cursor_close(cursor);
	WriteAccounts(rebuild);
}

static void
ApplyLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc)
{
	MemoryContext old_context = MemoryContextSwitchTo(rebuild->scratch);
	GigAccount *account = rebuild->naccounts == 0
							  ? NULL
							  : &rebuild->accounts[rebuild->naccounts - 1];
	pg_uuid_t *account_id =
		DatumGetUUIDP(GetLogColumn(tuple, tupdesc, "account_id"));
	GigDelivery delivery = {
		.event_id = DatumGetInt64(GetLogColumn(tuple, tupdesc, "event_id")),
		.received_at =
			DatumGetTimestampTz(GetLogColumn(tuple, tupdesc, "received_at")),
	};
	const GigSchema *schema = rebuild->store.schema;
	bool is_duplicate =
		DatumGetObjectId(GetLogColumn(tuple, tupdesc, "outcome")) ==
		schema->outcome.labels[OUTCOME_DUPLICATE];
	bool is_account = DatumGetObjectId(GetLogColumn(tuple, tupdesc, "event")) ==
					  schema->event_kind.labels[GIGS_RECONCILED];
	bool is_first =
		account == NULL || CompareUuids(&account->account_id, account_id) != 0;

	/* a duplicate that comes first has lost its original to pruning */
	if (is_duplicate && !is_first)
		ApplyDuplicate(account, &delivery);
	else if (!is_duplicate)
	{
		GigEvent event;

		ParseLoggedBody(DatumGetByteaPP(GetLogColumn(tuple, tupdesc, "body")),
						is_account, delivery.event_id, &event);
		delivery.digest = DigestGigEvent(&event);
		MemoryContextSwitchTo(rebuild->context);
		if (is_first)
		{
			if (rebuild->naccounts == ACCOUNTS_PER_WRITE)
				WriteAccounts(rebuild);
			account = &rebuild->accounts[rebuild->naccounts++];
			InitGigAccount(account, account_id, &event.user_id);
		}
		ApplyGigEvent(account, &event, &delivery);
	}
	MemoryContextSwitchTo(old_context);
	MemoryContextReset(rebuild->scratch);
}

static Datum
GetLogColumn(HeapTuple tuple, TupleDesc tupdesc, const char *name)
{
	bool isnull;
	Datum value =
		SPI_getbinval(tuple, tupdesc, SPI_fnumber(tupdesc, name), &isnull);

	if (isnull)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("column \"%s\" of table \"%s\" is null", name,
							   "gig_event_log")));
	return value;
}

static void
ParseLoggedBody(bytea *body, bool is_account, int64 event_id, GigEvent *event)
{
	GigError error;
	GigDocument *document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), is_account,
						&error);

	if (document == NULL || !ReadGigEvent(document, event, &error))
		ereport(ERROR,
				(errcode(error.sqlerrcode),
				 errmsg("could not parse event %lld of table \"%s\": %s",
						(long long) event_id, "gig_event_log", error.message)));
}

/*
 * Writes the accounts that have been rebuilt, except those of which the log has
 * fewer events than have been applied.
 */
static void
WriteAccounts(Rebuild *rebuild)
{
	GigAccount *accounts = rebuild->accounts;
	int n = rebuild->naccounts;
	GigAccount *stored;
	int kept = 0;

	if (n == 0)
		return;
	MemoryContextSwitchTo(rebuild->context);
	stored = palloc(n * sizeof(GigAccount));
	for (int i = 0; i < n; i++)
		InitGigAccount(&stored[i], &accounts[i].account_id,
					   &accounts[i].user_id);
	LockAccounts(&rebuild->store, stored, n);
	SPI_freetuptable(SPI_tuptable);
	for (int i = 0; i < n; i++)
	{
		if (accounts[i].events + accounts[i].duplicates >=
			stored[i].events + stored[i].duplicates)
			accounts[kept++] = accounts[i];
	}
	if (kept > 0)
		StoreAccounts(&rebuild->store, accounts, kept);
	rebuild->rebuilt += kept;
	rebuild->naccounts = 0;
	MemoryContextReset(rebuild->context);
}

/*
 * Counts all accounts, or tells whether one exists.
 */
static int64
CountAccounts(Rebuild *rebuild, const pg_uuid_t *account_id)
{
	Oid type = UUIDOID;
	Datum value = UUIDPGetDatum((pg_uuid_t *) account_id);
	const char *text = "SELECT count(*) FROM @extschema@.gig_account_sync"
					   " WHERE $1 IS NULL OR account_id = $1";
	bool isnull;

	if (SPI_execute_with_args(QualifyStatement(rebuild->store.schema, text), 1,
							  &type, &value, account_id == NULL ? "n" : NULL,
							  false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not count rows of table \"%s\"", "gig_account_sync");
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}
