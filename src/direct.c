/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  Ordinary tables, read and written without the executor.
 *
 * Starting the executor for a statement costs more than what it then does to a
 * row, and log rows that are inserted a page at a time need a fraction of the
 * WAL.  This file knows gig_event_log and gig_account_sync only, and does what
 * the statements in store.c do.  A table that is not ordinary (it has triggers,
 * partitions, policies, other columns, ...) is left to them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "direct.h"

/* Rows that are inserted together, which fills several pages. */
#define ROWS_PER_INSERT 200

typedef struct DirectTable
{
	Relation relation;
	const RowFormat *format;
	ResultRelInfo *result;
	TupleTableSlot *slot;
} DirectTable;

struct DirectTables
{
	const GigSchema *schema;
	EState *estate;
	Snapshot snapshot;
	DirectTable log;
	DirectTable accounts;
	Relation account_key;
	ItemPointerData *tids; /* of accounts that have been found */
};

bool gig_direct_writes;

static bool TableIsOrdinary(const GigSchema *schema, const DirectTable *table);
static bool KeyIsAccountId(Relation accounts);
static void OpenTable(DirectTable *table);
static void CloseTable(DirectTable *table);
static void FillSlot(DirectTables *direct, DirectTable *table,
					 TupleTableSlot *slot, const void *row);
static void InsertRows(DirectTables *direct, TupleTableSlot **slots,
					   const GigLogRow *rows, int n);

/*
 * Opens the tables, which must be locked.
 *
 * Returns NULL if statements must be used: for tables that are not ordinary, and
 * for transactions that statements would refuse or in which they would see an
 * older snapshot.
 */
DirectTables *
BeginDirect(const GigSchema *schema)
{
	DirectTables *direct;

	if (!gig_direct_writes || IsolationUsesXactSnapshot() || XactReadOnly)
		return NULL;
	direct = palloc0(sizeof(DirectTables));
	direct->schema = schema;
	direct->log.format = &log_format;
	direct->log.relation = table_open(schema->event_log, NoLock);
	direct->accounts.format = &account_format;
	direct->accounts.relation = table_open(schema->account_sync, NoLock);
	if (!TableIsOrdinary(schema, &direct->log) ||
		!TableIsOrdinary(schema, &direct->accounts) ||
		!KeyIsAccountId(direct->accounts.relation))
	{
		table_close(direct->log.relation, NoLock);
		table_close(direct->accounts.relation, NoLock);
		return NULL;
	}
	CheckCmdReplicaIdentity(direct->accounts.relation, CMD_UPDATE);

	/* the calling statement's own changes must be visible */
	CommandCounterIncrement();
	direct->estate = CreateExecutorState();
	OpenTable(&direct->log);
	OpenTable(&direct->accounts);
	direct->account_key =
		index_open(GetPrimaryKey(direct->accounts.relation), RowExclusiveLock);
	return direct;
}

void
EndDirect(DirectTables *direct)
{
	PopActiveSnapshot();
	index_close(direct->account_key, NoLock);
	CloseTable(&direct->log);
	CloseTable(&direct->accounts);
	FreeExecutorState(direct->estate);
	CommandCounterIncrement();
}

/*
 * A table is ordinary if statements would do nothing else than this file does.
 */
static bool
TableIsOrdinary(const GigSchema *schema, const DirectTable *table)
{
	Relation relation = table->relation;
	Form_pg_class form = relation->rd_rel;
	TupleDesc tupdesc = RelationGetDescr(relation);

	/* tables distributed by Citus and deferrable constraints have triggers */
	if (form->relkind != RELKIND_RELATION || form->relam != HEAP_TABLE_AM_OID ||
		form->relispartition || form->relhassubclass || form->relhasrules ||
		form->relrowsecurity || relation->trigdesc != NULL ||
		(tupdesc->constr != NULL && tupdesc->constr->num_check > 0) ||
		tupdesc->natts != table->format->ncolumns)
		return false;
	for (int i = 0; i < tupdesc->natts; i++)
	{
		const Column *column = &table->format->columns[i];
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);

		if (!ColumnMatches(schema, column, attribute) ||
			attribute->attgenerated != '\0' ||
			attribute->attidentity == ATTRIBUTE_IDENTITY_ALWAYS ||
			(column->present != 0 && attribute->attnotnull))
			return false;
	}
	return true;
}

/*
 * Tells whether the primary key is the first column alone.
 */
static bool
KeyIsAccountId(Relation accounts)
{
	Bitmapset *key =
		RelationGetIndexAttrBitmap(accounts, INDEX_ATTR_BITMAP_PRIMARY_KEY);

	return bms_membership(key) == BMS_SINGLETON &&
		   bms_is_member(1 - FirstLowInvalidHeapAttributeNumber, key);
}

static void
OpenTable(DirectTable *table)
{
	table->result = makeNode(ResultRelInfo);
	InitResultRelInfo(table->result, table->relation, 0, NULL, 0);
	ExecOpenIndices(table->result, false);
	table->slot = table_slot_create(table->relation, NULL);
}

static void
CloseTable(DirectTable *table)
{
	ExecDropSingleTupleTableSlot(table->slot);
	ExecCloseIndices(table->result);
	table_close(table->relation, NoLock);
}

/*
 * Finds the rows of accounts, as of now.  Returns false if some do not exist.
 */
bool
FindAccountsDirectly(DirectTables *direct, const GigAccount *accounts,
					 int naccounts)
{
	DirectTable *table = &direct->accounts;
	IndexScanDesc scan;
	bool all = true;

	if (direct->snapshot != NULL)
		PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
	direct->snapshot = GetActiveSnapshot();
	direct->estate->es_output_cid = GetCurrentCommandId(true);
	if (direct->tids == NULL)
		direct->tids = palloc_extended(naccounts * sizeof(ItemPointerData),
									   MCXT_ALLOC_HUGE);
	scan = BeginIndexScan(table->relation, direct->account_key,
						  direct->snapshot, 1);
	for (int i = 0; i < naccounts; i++)
	{
		ScanKeyData key;

		CHECK_FOR_INTERRUPTS();
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ,
					UUIDPGetDatum(&accounts[i].account_id));
		index_rescan(scan, &key, 1, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, table->slot))
			direct->tids[i] = table->slot->tts_tid;
		else
		{
			ItemPointerSetInvalid(&direct->tids[i]);
			all = false;
		}
	}
	ExecClearTuple(table->slot);
	index_endscan(scan);
	return all;
}

/*
 * Tells whether FindAccountsDirectly() has found an account.
 */
bool
AccountIsFound(const DirectTables *direct, int i)
{
	return ItemPointerIsValid(&direct->tids[i]);
}

/*
 * Locks and reads accounts that have been found.  Returns false if a row has been
 * deleted, or given another key, meanwhile.
 */
bool
LockAccountsDirectly(DirectTables *direct, GigAccount *accounts, int naccounts)
{
	DirectTable *table = &direct->accounts;
	TupleTableSlot *slot = table->slot;

	for (int i = 0; i < naccounts; i++)
	{
		TM_FailureData failure;
		TM_Result result =
			table_tuple_lock(table->relation, &direct->tids[i], direct->snapshot,
							 slot, direct->estate->es_output_cid,
							 LockTupleNoKeyExclusive, LockWaitBlock,
							 TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS |
								 TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							 &failure);

		if (result == TM_Deleted)
			return false;
		if (result != TM_Ok)
			elog(ERROR, "unexpected result of table_tuple_lock: %d",
				 (int) result);
		slot_getallattrs(slot);
		if (CompareUuids(DatumGetUUIDP(slot->tts_values[0]),
						 &accounts[i].account_id) != 0)
			return false;
		SetAccountValues(direct->schema, &accounts[i], slot->tts_values,
						 slot->tts_isnull);
		direct->tids[i] = slot->tts_tid;
	}
	ExecClearTuple(slot);
	return true;
}

/*
 * Appends rows to the log.
 */
void
StoreEventsDirectly(DirectTables *direct, const GigLogRow *rows, int nrows)
{
	TupleTableSlot *slots[ROWS_PER_INSERT];
	int nslots = Min(nrows, ROWS_PER_INSERT);

	for (int i = 0; i < nslots; i++)
		slots[i] = table_slot_create(direct->log.relation, NULL);
	for (int i = 0; i < nrows; i += nslots)
		InsertRows(direct, slots, &rows[i], Min(nslots, nrows - i));
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
}

/*
 * Inserts rows a page at a time, as COPY does.
 */
static void
InsertRows(DirectTables *direct, TupleTableSlot **slots, const GigLogRow *rows,
		   int n)
{
	DirectTable *table = &direct->log;
	EState *estate = direct->estate;
	MemoryContext old_context;

	CHECK_FOR_INTERRUPTS();
	for (int i = 0; i < n; i++)
		FillSlot(direct, table, slots[i], &rows[i]);
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	table_multi_insert(table->relation, slots, n, estate->es_output_cid, 0,
					   NULL);
	MemoryContextSwitchTo(old_context);
	for (int i = 0; i < n; i++)
		InsertIndexEntries(table->result, estate, slots[i], false, TU_All);
	ResetPerTupleExprContext(estate);
}

/*
 * Writes back accounts that have been locked.
 */
void
StoreAccountsDirectly(DirectTables *direct, const GigAccount *accounts,
					  int naccounts)
{
	DirectTable *table = &direct->accounts;
	EState *estate = direct->estate;
	TupleTableSlot *slot = table->slot;

	for (int i = 0; i < naccounts; i++)
	{
		TU_UpdateIndexes indexes;

		CHECK_FOR_INTERRUPTS();
		FillSlot(direct, table, slot, &accounts[i]);
		simple_table_tuple_update(table->relation, &direct->tids[i], slot,
								  direct->snapshot, &indexes);
		if (indexes != TU_None)
			InsertIndexEntries(table->result, estate, slot, true, indexes);
		ResetPerTupleExprContext(estate);
	}
	ExecClearTuple(slot);
}

static void
FillSlot(DirectTables *direct, DirectTable *table, TupleTableSlot *slot,
		 const void *row)
{
	MemoryContext old_context =
		MemoryContextSwitchTo(GetPerTupleMemoryContext(direct->estate));

	ExecClearTuple(slot);
	GetRowValues(direct->schema, table->format, row, slot->tts_values,
				 slot->tts_isnull);
	ExecStoreVirtualTuple(slot);
	MemoryContextSwitchTo(old_context);
}
