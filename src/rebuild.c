/*-------------------------------------------------------------------------
 *
 * rebuild.c
 *	  The log folded again into gig_account_sync.
 *
 * The same rules make the same rows: what ingesting folds event by event, this
 * folds from the bodies in the log.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "account_table.h"
#include "event.h"
#include "plan.h"
#include "write.h"

/* How many accounts are written at a time, and events read. */
#define ACCOUNTS_AT_A_TIME 1000
#define EVENTS_AT_A_TIME 1000

typedef struct Rebuild
{
	const GigSchema *schema;
	MemoryContext scratch; /* for what an event is parsed into */
	GigAccount *accounts;  /* folded, in order of account_id */
	int naccounts;
	int64 found; /* accounts in the log; all have a row now */
	int64 rebuilt;
	int64 skipped;
} Rebuild;

static void LockBeforeReading(const Rebuild *rebuild,
							  const pg_uuid_t *account_id);
static void RebuildFromLog(Rebuild *rebuild, const pg_uuid_t *account_id);
static void FoldLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc);
static void WriteRebuilt(Rebuild *rebuild);
static int64 CountAccounts(const GigSchema *schema, const pg_uuid_t *account_id);

/*
 * rebuild_gig_sync(account_id uuid DEFAULT NULL)
 *		returns (accounts_rebuilt bigint, accounts_skipped bigint)
 *
 * One account, or all.  An account is skipped if the log holds fewer events
 * than its row has counted: it doesn't reach back to the first any more.
 * Ingesting waits while all accounts are rebuilt.
 */
PG_FUNCTION_INFO_V1(rebuild_gig_sync);
Datum
rebuild_gig_sync(PG_FUNCTION_ARGS)
{
	const pg_uuid_t *account_id = PG_ARGISNULL(0) ? NULL : PG_GETARG_UUID_P(0);
	Rebuild rebuild = {.schema = GetGigSchema(fcinfo)};
	Caller caller;
	TupleDesc tupdesc;
	Datum values[2];
	bool nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	PreventCommandIfReadOnly("UPDATE");
	/* they stay whose they are now */
	LockGigTables(rebuild.schema, AccessShareLock);
	ConnectAsOwner(rebuild.schema, &caller);

	rebuild.scratch =
		AllocSetContextCreate(CurrentMemoryContext, "gigs_webhooks rebuild",
							  ALLOCSET_DEFAULT_SIZES);
	rebuild.accounts = palloc(ACCOUNTS_AT_A_TIME * sizeof(GigAccount));
	LockBeforeReading(&rebuild, account_id);
	RebuildFromLog(&rebuild, account_id);

	/* accounts of which the log knows nothing any more */
	rebuild.skipped += CountAccounts(rebuild.schema, account_id) - rebuild.found;

	DisconnectAsCaller(&caller);

	values[0] = Int64GetDatum(rebuild.rebuilt);
	values[1] = Int64GetDatum(rebuild.skipped);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * Keeps events from coming in between reading the log and writing accounts.
 * One account's row does for that, if there is one.
 *
 * So one looks first: looking for a row to lock takes a lock of the table that
 * two who find none would keep each other from the whole table with.
 */
static void
LockBeforeReading(const Rebuild *rebuild, const pg_uuid_t *account_id)
{
	GigAccount account;

	if (account_id != NULL && CountAccounts(rebuild->schema, account_id) > 0)
	{
		InitGigAccount(&account, account_id, account_id);
		/* whoever went on would keep the lock that two can't have */
		if (LockExistingAccounts(rebuild->schema, &account, 1) != 1)
			ThrowAccountsVanished();
		return;
	}
	/* keeps everybody else from changing any account */
	LockGigTable(rebuild->schema, &rebuild->schema->tables[TABLE_ACCOUNT_SYNC],
				 ExclusiveLock);
}

/*
 * Folds the log, account by account.
 */
static void
RebuildFromLog(Rebuild *rebuild, const pg_uuid_t *account_id)
{
	StringInfoData query;
	Oid argtypes[1] = {UUIDOID};
	Datum values[1];
	GigWatch watched;
	Portal cursor;

	RefreshGigSchema(rebuild->schema);
	initStringInfo(&query);
	appendStringInfo(&query,
					 "SELECT account_id, received_at, body, event_id"
					 " FROM %s.gig_event_log%s"
					 " ORDER BY account_id, event_id",
					 rebuild->schema->name,
					 account_id ? " WHERE account_id = $1" : "");
	if (account_id)
		values[0] = UUIDPGetDatum((pg_uuid_t *) account_id);
	watched = WatchStatement(query.data);
	cursor = SPI_cursor_open_with_args(NULL, query.data, account_id ? 1 : 0,
									   argtypes, values, NULL, false, 0);
	RestoreWatch(watched);
	for (;;)
	{
		SPITupleTable *rows;
		uint64 nrows;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(cursor, true, EVENTS_AT_A_TIME);
		rows = SPI_tuptable;
		nrows = SPI_processed;
		if (nrows == 0)
			break;
		for (uint64 row = 0; row < nrows; row++)
			FoldLogRow(rebuild, rows->vals[row], rows->tupdesc);
		SPI_freetuptable(rows);
	}
	SPI_cursor_close(cursor);
	WriteRebuilt(rebuild);
}

static void
FoldLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc)
{
	MemoryContext old_context = MemoryContextSwitchTo(rebuild->scratch);
	bool isnull;
	pg_uuid_t *account_id =
		DatumGetUUIDP(SPI_getbinval(tuple, tupdesc, 1, &isnull));
	TimestampTz received_at =
		DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 2, &isnull));
	bytea *body = DatumGetByteaPP(SPI_getbinval(tuple, tupdesc, 3, &isnull));
	GigAccount *account = NULL;
	GigDocument *document;
	GigEvent event;
	GigError error;

	document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), &error);
	if (document == NULL || !ReadGigEvent(document, &event, &error))
	{
		int64 event_id =
			DatumGetInt64(SPI_getbinval(tuple, tupdesc, 4, &isnull));

		SetGigError(&error, error.sqlerrcode,
					"could not read event %lld of table \"%s\": %s",
					(long long) event_id, "gig_event_log", error.message);
		ThrowGigError(&error);
	}
	MemoryContextSwitchTo(old_context);

	if (rebuild->naccounts > 0)
		account = &rebuild->accounts[rebuild->naccounts - 1];
	if (account == NULL || CompareUuids(&account->account_id, account_id) != 0)
	{
		if (rebuild->naccounts == ACCOUNTS_AT_A_TIME)
			WriteRebuilt(rebuild);
		account = &rebuild->accounts[rebuild->naccounts++];
		InitGigAccount(account, account_id, &event.user_id);
	}
	FoldGigEvent(account, &event, received_at);
	MemoryContextReset(rebuild->scratch);
}

/*
 * Writes the accounts folded so far, but for those that would lose by it.
 */
static void
WriteRebuilt(Rebuild *rebuild)
{
	const GigSchema *schema = rebuild->schema;
	int n = rebuild->naccounts;
	GigAccount *present = palloc(Max(n, 1) * sizeof(GigAccount));
	GigWriter writer;

	for (int i = 0; i < n; i++)
		InitGigAccount(&present[i], &rebuild->accounts[i].account_id,
					   &rebuild->accounts[i].user_id);
	if (n > 0)
	{
		/* of several, the table is locked as well */
		if (!LockAccounts(schema, NULL, present, n))
			ThrowAccountsVanished();
		rebuild->found += n;
	}
	BeginWriting(&writer, schema, NULL);
	for (int i = 0; i < n; i++)
	{
		GigAccount *account = &rebuild->accounts[i];

		if (account->events < present[i].events)
		{
			rebuild->skipped++;
			continue;
		}
		account->duplicates = present[i].duplicates;
		WriteRow(&writer, WRITE_ACCOUNTS, account, account->present);
		rebuild->rebuilt++;
	}
	FinishWriting(&writer);
	rebuild->naccounts = 0;
	pfree(present);
}

/*
 * Counts all accounts that have a row, or tells whether one has.
 */
static int64
CountAccounts(const GigSchema *schema, const pg_uuid_t *account_id)
{
	Arguments arguments = {.n = 0};
	bool isnull;

	AddTypedArgument(&arguments, UUIDOID,
					 account_id ? UUIDPGetDatum((pg_uuid_t *) account_id)
								: (Datum) 0,
					 account_id == NULL);
	RunStatement(schema,
				 account_id ? "SELECT count(*) FROM %1$s.gig_account_sync"
							  " WHERE account_id = $1"
							: "SELECT count(*) FROM %1$s.gig_account_sync",
				 &arguments, false, SPI_OK_SELECT);
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
									   SPI_tuptable->tupdesc, 1, &isnull));
}
