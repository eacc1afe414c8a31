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

/* What is read of an event, in this order. */
typedef enum LogColumn
{
	LOGGED_ACCOUNT_ID = 1,
	LOGGED_RECEIVED_AT,
	LOGGED_BODY,
	LOGGED_EVENT_ID
} LogColumn;

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

static void RebuildHolding(Rebuild *rebuild, const pg_uuid_t *account_id);
static void LockBeforeReading(const Rebuild *rebuild,
							  const pg_uuid_t *account_id);
static void RebuildFromLog(Rebuild *rebuild, const pg_uuid_t *account_id);
static void FoldLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc);
static Datum GetLogged(HeapTuple tuple, TupleDesc tupdesc, LogColumn column,
					   Oid type, int64 event_id);
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
	RebuildHolding(&rebuild, account_id);

	DisconnectAsCaller(&caller);

	values[0] = Int64GetDatum(rebuild.rebuilt);
	values[1] = Int64GetDatum(rebuild.skipped);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}

/*
 * No event of the accounts may come in from what is on the tables, either: it
 * would be in the log, and not in what has been read of it.
 */
static void
RebuildHolding(Rebuild *rebuild, const pg_uuid_t *account_id)
{
	GigAccount account;
	GigHold hold;

	if (account_id != NULL)
		InitGigAccount(&account, account_id, account_id);
	HoldAccounts(&hold, account_id ? &account : NULL, account_id ? 1 : 0);
	PG_TRY();
	{
		LockBeforeReading(rebuild, account_id);
		RebuildFromLog(rebuild, account_id);

		/* accounts of which the log knows nothing any more */
		rebuild->skipped +=
			CountAccounts(rebuild->schema, account_id) - rebuild->found;
	}
	PG_CATCH();
	{
		LetGoAccounts(&hold);
		PG_RE_THROW();
	}
	PG_END_TRY();
	LetGoAccounts(&hold);
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
	GigWatch watch =
		FormatStatement(rebuild->schema,
						account_id
							? "SELECT account_id, received_at, body, event_id"
							  " FROM %1$s.gig_event_log WHERE account_id = $1"
							  " ORDER BY account_id, event_id"
							: "SELECT account_id, received_at, body, event_id"
							  " FROM %1$s.gig_event_log"
							  " ORDER BY account_id, event_id");
	Arguments arguments = {.n = 0};
	Portal cursor;

	if (account_id)
		AddTypedArgument(&arguments, UUIDOID,
						 UUIDPGetDatum((pg_uuid_t *) account_id), false);
	cursor = OpenWatched(watch, &arguments);
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
	CloseWatched(cursor);
	WriteRebuilt(rebuild);
}

static void
FoldLogRow(Rebuild *rebuild, HeapTuple tuple, TupleDesc tupdesc)
{
	MemoryContext old_context = MemoryContextSwitchTo(rebuild->scratch);
	int64 event_id =
		DatumGetInt64(GetLogged(tuple, tupdesc, LOGGED_EVENT_ID, INT8OID, 0));
	pg_uuid_t *account_id = DatumGetUUIDP(
		GetLogged(tuple, tupdesc, LOGGED_ACCOUNT_ID, UUIDOID, event_id));
	TimestampTz received_at = DatumGetTimestampTz(
		GetLogged(tuple, tupdesc, LOGGED_RECEIVED_AT, TIMESTAMPTZOID, event_id));
	bytea *body = DatumGetByteaPP(
		GetLogged(tuple, tupdesc, LOGGED_BODY, BYTEAOID, event_id));
	GigAccount *account = NULL;
	GigDocument *document;
	GigEvent event;
	GigError error;

	document =
		ReadGigDocument(VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body), &error);
	if (document == NULL || !ReadGigEvent(document, &event, &error))
	{
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
 * Returns a column of the log, which the owner may have let be null.
 */
static Datum
GetLogged(HeapTuple tuple, TupleDesc tupdesc, LogColumn column, Oid type,
		  int64 event_id)
{
	bool isnull;
	Datum value = GetResult(tuple, tupdesc, column, type, &isnull);

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("column \"%s\" of event %lld of table \"%s\" is null",
						SPI_fname(tupdesc, column), (long long) event_id,
						"gig_event_log")));
	return value;
}

/*
 * Writes the accounts folded so far, but for those that would lose by it.
 */
static void
WriteRebuilt(Rebuild *rebuild)
{
	const GigSchema *schema = rebuild->schema;
	int n = rebuild->naccounts;
	GigAccount *present;
	GigWriter writer;

	if (n == 0)
		return;
	present = palloc(n * sizeof(GigAccount));
	for (int i = 0; i < n; i++)
		InitGigAccount(&present[i], &rebuild->accounts[i].account_id,
					   &rebuild->accounts[i].user_id);
	/* of several, the table is locked as well */
	if (!LockAccounts(schema, NULL, present, n))
		ThrowAccountsVanished();
	rebuild->found += n;
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
	return DatumGetInt64(GetResult(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
								   1, INT8OID, &isnull));
}
