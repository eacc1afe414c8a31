/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The SQL statements of ingestion.
 *
 * Statements work unchanged where the tables are partitioned, have triggers, or
 * are distributed by Citus: see doc/scaling.md.  A single event uses statements
 * on one row; a batch passes its rows as an array of records.
 *
 * "@extschema@" stands for the extension's schema, as in the install script.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "store.h"

/* The parameters are a row's columns, or of the types. */
typedef struct Statement
{
	const char *text;
	const RowFormat *row;
	Oid types[6]; /* with an invalid one at the end */
	SPIPlanPtr plan;
	uint64 generation; /* of the schema that it was prepared for */
} Statement;

static Statement lock_account = {
	.text = "SELECT account_id, user_id, state, days_synced,"
			" available_from, available_to, available_count,"
			" last_event, last_event_at, last_event_id,"
			" added_total, updated_total, removed_total, events, duplicates,"
			" first_event_at, partially_synced_at, fully_synced_at, refreshed_at,"
			" recent_digests, recent_event_ids, recent_received_at"
			" FROM @extschema@.gig_account_sync"
			" WHERE account_id = $1"
			" FOR NO KEY UPDATE",
	.types = {UUIDOID},
};

/*
 * Creates accounts, and locks none.
 *
 * A conflict target would leave out the indexes that REINDEX CONCURRENTLY has in
 * the making.  Then these raise unique violations when rows are updated
 * meanwhile.
 */
static Statement create_accounts = {
	.text =
		"INSERT INTO @extschema@.gig_account_sync (account_id, user_id)"
		" SELECT account_id, user_id FROM unnest($1, $2) AS n (account_id, user_id)"
		" ON CONFLICT DO NOTHING",
	.types = {UUIDARRAYOID, UUIDARRAYOID},
};

static Statement lock_accounts = {
	.text = "SELECT account_id, user_id, state, days_synced,"
			" available_from, available_to, available_count,"
			" last_event, last_event_at, last_event_id,"
			" added_total, updated_total, removed_total, events, duplicates,"
			" first_event_at, partially_synced_at, fully_synced_at, refreshed_at,"
			" recent_digests, recent_event_ids, recent_received_at"
			" FROM @extschema@.gig_account_sync"
			" WHERE account_id = ANY ($1)"
			" ORDER BY account_id"
			" FOR NO KEY UPDATE",
	.types = {UUIDARRAYOID},
};

/*
 * Locks accounts that exist.  Citus refuses lock_accounts on several shards, and
 * needs read_accounts after this.
 */
static Statement upsert_accounts = {
	.text =
		"INSERT INTO @extschema@.gig_account_sync (account_id, user_id)"
		" SELECT account_id, user_id FROM unnest($1, $2) AS n (account_id, user_id)"
		" ON CONFLICT (account_id) DO UPDATE SET state = excluded.state WHERE false",
	.types = {UUIDARRAYOID, UUIDARRAYOID},
};

static Statement read_accounts = {
	.text = "SELECT account_id, user_id, state, days_synced,"
			" available_from, available_to, available_count,"
			" last_event, last_event_at, last_event_id,"
			" added_total, updated_total, removed_total, events, duplicates,"
			" first_event_at, partially_synced_at, fully_synced_at, refreshed_at,"
			" recent_digests, recent_event_ids, recent_received_at"
			" FROM @extschema@.gig_account_sync"
			" WHERE account_id = ANY ($1)"
			" ORDER BY account_id",
	.types = {UUIDARRAYOID},
};

static Statement insert_event = {
	.text =
		"INSERT INTO @extschema@.gig_event_log"
		" (event_id, received_at, outcome, event, account_id, name, body, duplicate_of)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
	.row = &log_format,
};

static Statement insert_events = {
	.text =
		"INSERT INTO @extschema@.gig_event_log"
		" (event_id, received_at, outcome, event, account_id, name, body, duplicate_of)"
		" SELECT * FROM unnest($1) AS n (event_id bigint, received_at timestamptz,"
		" outcome @extschema@.gig_ingest_outcome, event @extschema@.gig_event_kind,"
		" account_id uuid, name text, body bytea, duplicate_of bigint)",
	.types = {RECORDARRAYOID},
};

static Statement update_account = {
	.text =
		"UPDATE @extschema@.gig_account_sync SET"
		" user_id = $2, state = $3, days_synced = $4,"
		" available_from = $5, available_to = $6, available_count = $7,"
		" last_event = $8, last_event_at = $9, last_event_id = $10,"
		" added_total = $11, updated_total = $12, removed_total = $13,"
		" events = $14, duplicates = $15,"
		" first_event_at = $16, partially_synced_at = $17,"
		" fully_synced_at = $18, refreshed_at = $19,"
		" recent_digests = $20, recent_event_ids = $21, recent_received_at = $22"
		" WHERE account_id = $1",
	.row = &account_format,
};

/* The rows exist and are locked. */
static Statement write_accounts = {
	.text =
		"INSERT INTO @extschema@.gig_account_sync AS a"
		" (account_id, user_id, state, days_synced,"
		" available_from, available_to, available_count,"
		" last_event, last_event_at, last_event_id,"
		" added_total, updated_total, removed_total, events, duplicates,"
		" first_event_at, partially_synced_at, fully_synced_at, refreshed_at,"
		" recent_digests, recent_event_ids, recent_received_at)"
		" SELECT * FROM unnest($1) AS n (account_id uuid, user_id uuid,"
		" state @extschema@.gig_sync_state, days_synced integer,"
		" available_from timestamptz, available_to timestamptz,"
		" available_count integer, last_event @extschema@.gig_event_kind,"
		" last_event_at timestamptz, last_event_id bigint,"
		" added_total bigint, updated_total bigint, removed_total bigint,"
		" events bigint, duplicates bigint,"
		" first_event_at timestamptz, partially_synced_at timestamptz,"
		" fully_synced_at timestamptz, refreshed_at timestamptz,"
		" recent_digests bigint[], recent_event_ids bigint[],"
		" recent_received_at timestamptz[])"
		" ON CONFLICT (account_id) DO UPDATE SET"
		" user_id = excluded.user_id, state = excluded.state,"
		" days_synced = excluded.days_synced,"
		" available_from = excluded.available_from,"
		" available_to = excluded.available_to,"
		" available_count = excluded.available_count,"
		" last_event = excluded.last_event, last_event_at = excluded.last_event_at,"
		" last_event_id = excluded.last_event_id,"
		" added_total = excluded.added_total,"
		" updated_total = excluded.updated_total,"
		" removed_total = excluded.removed_total,"
		" events = excluded.events, duplicates = excluded.duplicates,"
		" first_event_at = excluded.first_event_at,"
		" partially_synced_at = excluded.partially_synced_at,"
		" fully_synced_at = excluded.fully_synced_at,"
		" refreshed_at = excluded.refreshed_at,"
		" recent_digests = excluded.recent_digests,"
		" recent_event_ids = excluded.recent_event_ids,"
		" recent_received_at = excluded.recent_received_at",
	.types = {RECORDARRAYOID},
};

static Statement insert_quarantined = {
	.text = "INSERT INTO @extschema@.gig_quarantine"
			" (received_at, name, sqlstate, message, body)"
			" VALUES ($1, $2, $3, $4, $5)",
	.types = {TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, BYTEAOID},
};

static void BecomeOwner(GigStore *store);
static bool LockDirectly(GigStore *store, GigAccount *accounts, int naccounts);
static bool LockBySql(const GigSchema *schema, GigAccount *accounts,
					  int naccounts);
static bool ReadAccounts(const GigSchema *schema, Statement *statement,
						 Datum key, GigAccount *accounts, int naccounts);
static void ExecuteForAccounts(const GigSchema *schema, Statement *statement,
							   const GigAccount *accounts, int naccounts);
static Datum MakeUuidArray(const GigAccount *accounts, int naccounts,
						   size_t offset);
static void CheckStored(uint64 stored, int nrows, const char *table);
static uint64 ExecuteForRow(const GigSchema *schema, Statement *statement,
							const void *row);
static uint64 ExecuteForRows(const GigSchema *schema, Statement *statement,
							 const RowFormat *format, const void *rows,
							 int nrows);
static uint64 Execute(const GigSchema *schema, Statement *statement,
					  Datum *values, const char *nulls);
static void PrepareStatement(const GigSchema *schema, Statement *statement);
static bool CitusIsLoaded(void);
static void MakeGenericPlan(SPIPlanPtr plan);

/*
 * Locks the log and the accounts' table until the end of the transaction.
 *
 * Consumers take the ids drawn so far for complete once no transaction holds
 * this lock on the log, so it must be held before an id is drawn.
 */
void
LockTables(const GigSchema *schema)
{
	LockGigTable(schema, &schema->event_log, RowExclusiveLock);
	LockGigTable(schema, &schema->account_sync, RowExclusiveLock);
}

/*
 * Connects to SPI, until CloseStore().  With "directly", ordinary tables are
 * accessed without the executor.
 *
 * Statements run as the tables' owner.  Direct access runs no code of users, so
 * that the switch, which costs a single event 2 %, waits for a statement.
 */
void
OpenStore(GigStore *store, const GigSchema *schema, bool directly)
{
	RefreshGigSchema(schema);
	store->schema = schema;
	store->is_owner = false;
	SPI_connect();
	store->direct = directly ? BeginDirect(schema) : NULL;
	if (store->direct == NULL)
		BecomeOwner(store);
}

static void
BecomeOwner(GigStore *store)
{
	if (!store->is_owner)
		SwitchToOwner(store->schema, &store->caller);
	store->is_owner = true;
}

void
CloseStore(GigStore *store)
{
	if (store->direct != NULL)
		EndDirect(store->direct);
	if (store->is_owner)
		SwitchToCaller(&store->caller);
	SPI_finish();
}

/*
 * Draws an event_id.  Caller must have called LockTables() and hold the
 * account's lock, so that the ids of an account are in order of application.
 */
int64
NextEventId(GigStore *store)
{
	return nextval_internal(store->schema->event_id_sequence, false);
}

/*
 * Locks accounts until the end of the transaction and reads them.  Those that
 * do not exist are created.
 *
 * All transactions lock in the order of account_id, and create accounts in this
 * order before they lock any, so that they cannot deadlock.
 */
void
LockAccounts(GigStore *store, GigAccount *accounts, int naccounts)
{
	bool locked = store->direct != NULL
					  ? LockDirectly(store, accounts, naccounts)
					  : LockBySql(store->schema, accounts, naccounts);

	if (!locked)
	{
		/* raises the error of another unique index that has kept rows out */
		BecomeOwner(store);
		ExecuteForAccounts(store->schema, &upsert_accounts, accounts, naccounts);
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("could not lock rows of table \"%s\"",
							   "gig_account_sync"),
						errdetail("Rows were deleted at the same time.")));
	}
}

static bool
LockDirectly(GigStore *store, GigAccount *accounts, int naccounts)
{
	GigAccount *missing =
		palloc_extended(naccounts * sizeof(GigAccount), MCXT_ALLOC_HUGE);
	int nmissing =
		FindAccountsDirectly(store->direct, accounts, naccounts, missing);

	if (nmissing > 0)
	{
		BecomeOwner(store);
		ExecuteForAccounts(store->schema, &create_accounts, missing, nmissing);
		nmissing =
			FindAccountsDirectly(store->direct, accounts, naccounts, missing);
	}
	pfree(missing);
	return nmissing == 0 &&
		   LockAccountsDirectly(store->direct, accounts, naccounts);
}

static bool
LockBySql(const GigSchema *schema, GigAccount *accounts, int naccounts)
{
	Datum ids;

	if (naccounts == 1)
	{
		Datum account_id = UUIDPGetDatum(&accounts->account_id);

		if (ReadAccounts(schema, &lock_account, account_id, accounts, 1))
			return true;
		ExecuteForAccounts(schema, &create_accounts, accounts, 1);
		return ReadAccounts(schema, &lock_account, account_id, accounts, 1);
	}
	ids = MakeUuidArray(accounts, naccounts, offsetof(GigAccount, account_id));
	/* lock none before all are created, as LockDirectly() */
	ExecuteForAccounts(schema, &create_accounts, accounts, naccounts);
	if (!CitusIsLoaded())
		return ReadAccounts(schema, &lock_accounts, ids, accounts, naccounts);
	ExecuteForAccounts(schema, &upsert_accounts, accounts, naccounts);
	return ReadAccounts(schema, &read_accounts, ids, accounts, naccounts);
}

/*
 * Reads accounts by a statement that returns them in the order of account_id.
 * Returns false if some do not exist.
 */
static bool
ReadAccounts(const GigSchema *schema, Statement *statement, Datum key,
			 GigAccount *accounts, int naccounts)
{
	TupleDesc tupdesc;

	if (Execute(schema, statement, &key, NULL) != (uint64) naccounts)
		return false;
	tupdesc = SPI_tuptable->tupdesc;
	for (int i = 0; i < account_format.ncolumns; i++)
	{
		if (SPI_gettypeid(tupdesc, i + 1) !=
			ColumnTypeOid(schema, &account_format.columns[i]))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" has an unexpected type",
							account_format.columns[i].name, "gig_account_sync")));
	}
	for (int i = 0; i < naccounts; i++)
	{
		Datum values[MAX_COLUMNS];
		bool nulls[MAX_COLUMNS];

		heap_deform_tuple(SPI_tuptable->vals[i], tupdesc, values, nulls);
		SetAccountValues(schema, &accounts[i], values, nulls);
	}
	return true;
}

/*
 * Executes a statement whose parameters are arrays of account_id and user_id.
 */
static void
ExecuteForAccounts(const GigSchema *schema, Statement *statement,
				   const GigAccount *accounts, int naccounts)
{
	Datum ids[2];

	ids[0] =
		MakeUuidArray(accounts, naccounts, offsetof(GigAccount, account_id));
	ids[1] = MakeUuidArray(accounts, naccounts, offsetof(GigAccount, user_id));
	Execute(schema, statement, ids, NULL);
}

/*
 * Makes an array of one of the accounts' UUIDs, whose offset is given.
 */
static Datum
MakeUuidArray(const GigAccount *accounts, int naccounts, size_t offset)
{
	Datum *elements = palloc(naccounts * sizeof(Datum));
	ArrayType *array;

	for (int i = 0; i < naccounts; i++)
		elements[i] = PointerGetDatum((const char *) &accounts[i] + offset);
	array = construct_array(elements, naccounts, UUIDOID, UUID_LEN, false,
							TYPALIGN_CHAR);
	pfree(elements);
	return PointerGetDatum(array);
}

/*
 * Appends rows to the log.
 */
void
StoreEvents(GigStore *store, const GigLogRow *rows, int nrows)
{
	uint64 stored;

	if (store->direct != NULL)
	{
		StoreEventsDirectly(store->direct, rows, nrows);
		return;
	}
	stored = nrows == 1 ? ExecuteForRow(store->schema, &insert_event, rows)
						: ExecuteForRows(store->schema, &insert_events,
										 &log_format, rows, nrows);
	CheckStored(stored, nrows, "gig_event_log");
}

/*
 * Checks that rows have been inserted, so that none is acknowledged and lost.
 */
static void
CheckStored(uint64 stored, int nrows, const char *table)
{
	if (stored != (uint64) nrows)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("could not insert all rows into table \"%s\"", table),
				 errhint("A trigger or rule of the table may drop rows.")));
}

/*
 * Writes back accounts that are locked.
 */
void
StoreAccounts(GigStore *store, const GigAccount *accounts, int naccounts)
{
	if (store->direct != NULL)
		StoreAccountsDirectly(store->direct, accounts, naccounts);
	else if (naccounts > 1)
		ExecuteForRows(store->schema, &write_accounts, &account_format,
					   accounts, naccounts);
	else if (ExecuteForRow(store->schema, &update_account, accounts) != 1)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("could not update row of table \"%s\"",
							   "gig_account_sync")));
}

/*
 * Keeps an authentic webhook that could not be parsed.
 */
void
StoreQuarantined(GigStore *store, TimestampTz received_at, const text *name,
				 const GigError *error, const bytea *body)
{
	Datum values[] = {
		TimestampTzGetDatum(received_at),
		PointerGetDatum(name),
		CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
		CStringGetTextDatum(error->message),
		PointerGetDatum(body),
	};

	BecomeOwner(store);
	CheckStored(Execute(store->schema, &insert_quarantined, values, NULL), 1,
				"gig_quarantine");
}

/*
 * Executes a statement whose parameters are the columns of a row.
 */
static uint64
ExecuteForRow(const GigSchema *schema, Statement *statement, const void *row)
{
	Datum values[MAX_COLUMNS];
	bool isnull[MAX_COLUMNS];
	char nulls[MAX_COLUMNS];

	GetRowValues(schema, statement->row, row, values, isnull);
	for (int i = 0; i < statement->row->ncolumns; i++)
		nulls[i] = isnull[i] ? 'n' : ' ';
	return Execute(schema, statement, values, nulls);
}

/*
 * Executes a statement whose parameter is an array of rows.
 */
static uint64
ExecuteForRows(const GigSchema *schema, Statement *statement,
			   const RowFormat *format, const void *rows, int nrows)
{
	TupleDesc tupdesc = CreateTemplateTupleDesc(format->ncolumns);
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(context, "gigs_webhooks rows",
												  ALLOCSET_DEFAULT_SIZES);
	Datum *tuples;
	Datum array;

	for (int i = 0; i < format->ncolumns; i++)
		TupleDescInitEntry(tupdesc, (AttrNumber) (i + 1),
						   format->columns[i].name,
						   ColumnTypeOid(schema, &format->columns[i]), -1, 0);
	BlessTupleDesc(tupdesc);

	MemoryContextSwitchTo(scratch);
	tuples = palloc_extended(nrows * sizeof(Datum), MCXT_ALLOC_HUGE);
	for (int i = 0; i < nrows; i++)
	{
		Datum values[MAX_COLUMNS];
		bool nulls[MAX_COLUMNS];

		CHECK_FOR_INTERRUPTS();
		GetRowValues(schema, format, (const char *) rows + i * format->size,
					 values, nulls);
		tuples[i] = HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
	}
	MemoryContextSwitchTo(context);
	array = PointerGetDatum(
		construct_array(tuples, nrows, RECORDOID, -1, false, TYPALIGN_DOUBLE));
	MemoryContextDelete(scratch);
	return Execute(schema, statement, &array, NULL);
}

/*
 * Executes a statement; prepares it first if necessary.  Returns the number of
 * rows.
 */
static uint64
Execute(const GigSchema *schema, Statement *statement, Datum *values,
		const char *nulls)
{
	int result;

	RefreshGigSchema(schema);
	if (statement->plan == NULL || statement->generation != schema->generation)
		PrepareStatement(schema, statement);
	if (!SPI_plan_is_valid(statement->plan) && !CitusIsLoaded())
		MakeGenericPlan(statement->plan);

	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s",
			 SPI_result_code_string(result));
	return SPI_processed;
}

static void
PrepareStatement(const GigSchema *schema, Statement *statement)
{
	Oid types[MAX_COLUMNS];
	int ntypes = 0;
	SPIPlanPtr plan;

	if (statement->plan != NULL)
		SPI_freeplan(statement->plan);
	statement->plan = NULL;

	if (statement->row != NULL)
	{
		for (; ntypes < statement->row->ncolumns; ntypes++)
			types[ntypes] =
				ColumnTypeOid(schema, &statement->row->columns[ntypes]);
	}
	else
	{
		for (; OidIsValid(statement->types[ntypes]); ntypes++)
			types[ntypes] = statement->types[ntypes];
	}
	plan = SPI_prepare_cursor(QualifyStatement(schema, statement->text), ntypes,
							  types,
							  CitusIsLoaded() ? 0 : CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	statement->plan = plan;
	statement->generation = schema->generation;
	if (!CitusIsLoaded())
		MakeGenericPlan(plan);
}

/*
 * Returns a statement with the extension's schema for "@extschema@".
 */
char *
QualifyStatement(const GigSchema *schema, const char *sql)
{
	Datum qualified =
		DirectFunctionCall3Coll(replace_text, C_COLLATION_OID,
								CStringGetTextDatum(sql),
								CStringGetTextDatum("@extschema@"),
								CStringGetTextDatum(schema->name));

	return TextDatumGetCString(qualified);
}

static bool
CitusIsLoaded(void)
{
	return GetConfigOption("citus.version", true, false) != NULL;
}

/*
 * Makes the plan that is used until the statement is invalidated.  Custom plans
 * would fold whole arrays into constants, five times over.  Only Citus needs
 * them: it cannot plan a statement on several shards without its parameters.
 *
 * It must stay good when the tables grow by a million rows before they are
 * analyzed again.  Rows are looked up by primary key, so a plan that scans or
 * hashes a whole table, because the table is small now, is never right.
 */
static void
MakeGenericPlan(SPIPlanPtr plan)
{
	static const char *const settings[] = {"enable_seqscan", "enable_hashjoin",
										   "enable_mergejoin", "jit"};
	int guc_nest_level = NewGUCNestLevel();
	CachedPlan *generic_plan;

	for (size_t i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i], "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	generic_plan = SPI_plan_get_cached_plan(plan);
	if (generic_plan != NULL)
		ReleaseCachedPlan(generic_plan, CurrentResourceOwner);
	AtEOXact_GUC(true, guc_nest_level);
}
