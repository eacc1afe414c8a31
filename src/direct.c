/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  Ordinary tables, read and written without the executor.
 *
 * Starting the executor for a statement costs more than what it then does to a
 * row, and log rows that are inserted a page at a time need a fraction of the
 * WAL.  Tables that are not ordinary (they have triggers, partitions, policies,
 * other columns, ...) are left to the statements in store.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "direct.h"

/* Rows that are inserted together, which fills several pages. */
#define ROWS_PER_INSERT 200

struct DirectTables
{
	const GigSchema *schema;
	EState *estate;
	ResultRelInfo *log;
	ResultRelInfo *accounts;
	Relation account_key;  /* an index of accounts */
	TupleTableSlot *slot;  /* for an account */
	ItemPointerData *tids; /* of accounts that have been found */
};

bool gig_direct_writes;

static ResultRelInfo *OpenTable(Oid table);
static Relation FindAccountKey(const ResultRelInfo *accounts);
static bool TableIsOrdinary(const GigSchema *schema, const ResultRelInfo *table,
							const RowFormat *format);
static void FillSlot(DirectTables *direct, TupleTableSlot *slot,
					 const RowFormat *format, const void *row);

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
	/* the calling statement's own changes must be visible */
	CommandCounterIncrement();
	direct = palloc0(sizeof(DirectTables));
	direct->schema = schema;
	direct->estate = CreateExecutorState();
	direct->log = OpenTable(schema->event_log);
	direct->accounts = OpenTable(schema->account_sync);
	direct->account_key = FindAccountKey(direct->accounts);
	if (direct->account_key == NULL ||
		!TableIsOrdinary(schema, direct->log, &log_format) ||
		!TableIsOrdinary(schema, direct->accounts, &account_format))
	{
		EndDirect(direct);
		return NULL;
	}
	direct->slot = table_slot_create(direct->accounts->ri_RelationDesc,
									 &direct->estate->es_tupleTable);
	return direct;
}

void
EndDirect(DirectTables *direct)
{
	EState *estate = direct->estate;

	if (estate->es_snapshot != NULL)
		PopActiveSnapshot();
	ExecResetTupleTable(estate->es_tupleTable, false);
	ExecCloseIndices(direct->log);
	ExecCloseIndices(direct->accounts);
	table_close(direct->log->ri_RelationDesc, NoLock);
	table_close(direct->accounts->ri_RelationDesc, NoLock);
	FreeExecutorState(estate);
	CommandCounterIncrement();
}

static ResultRelInfo *
OpenTable(Oid table)
{
	ResultRelInfo *result = makeNode(ResultRelInfo);

	InitResultRelInfo(result, table_open(table, NoLock), 0, NULL, 0);
	ExecOpenIndices(result, false);
	return result;
}

/*
 * Returns the primary key if it is the first column alone, or NULL.
 */
static Relation
FindAccountKey(const ResultRelInfo *accounts)
{
	for (int i = 0; i < accounts->ri_NumIndices; i++)
	{
		Relation index = accounts->ri_IndexRelationDescs[i];
		Form_pg_index form = index->rd_index;

		if (form->indisprimary && form->indisvalid && form->indnkeyatts == 1 &&
			form->indkey.values[0] == 1)
			return index;
	}
	return NULL;
}

/*
 * A table is ordinary if statements would do nothing else than this file does.
 */
static bool
TableIsOrdinary(const GigSchema *schema, const ResultRelInfo *table,
				const RowFormat *format)
{
	Relation relation = table->ri_RelationDesc;
	Form_pg_class form = relation->rd_rel;
	TupleDesc tupdesc = RelationGetDescr(relation);

	/* tables distributed by Citus and deferrable constraints have triggers */
	if (form->relkind != RELKIND_RELATION || form->relam != HEAP_TABLE_AM_OID ||
		form->relispartition || form->relhassubclass || form->relhasrules ||
		form->relrowsecurity || relation->trigdesc != NULL ||
		(tupdesc->constr != NULL && tupdesc->constr->num_check > 0) ||
		tupdesc->natts != format->ncolumns)
		return false;
	for (int i = 0; i < tupdesc->natts; i++)
	{
		const Column *column = &format->columns[i];
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);

		if (attribute->atttypid != ColumnTypeOid(schema, column) ||
			strcmp(NameStr(attribute->attname), column->name) != 0 ||
			attribute->attgenerated != '\0' ||
			attribute->attidentity == ATTRIBUTE_IDENTITY_ALWAYS ||
			(column->present != 0 && attribute->attnotnull))
			return false;
	}
	/* their functions would run as the caller */
	for (int i = 0; i < table->ri_NumIndices; i++)
	{
		if (table->ri_IndexRelationInfo[i]->ii_Expressions != NIL ||
			table->ri_IndexRelationInfo[i]->ii_Predicate != NIL)
			return false;
	}
	return true;
}

/*
 * Finds the rows of accounts, as of now.  Returns how many do not exist, and
 * these accounts.
 */
int
FindAccountsDirectly(DirectTables *direct, const GigAccount *accounts,
					 int naccounts, GigAccount *missing)
{
	EState *estate = direct->estate;
	IndexScanDesc scan;
	int nmissing = 0;

	if (estate->es_snapshot != NULL)
		PopActiveSnapshot();
	PushActiveSnapshot(GetLatestSnapshot());
	estate->es_snapshot = GetActiveSnapshot();
	estate->es_output_cid = GetCurrentCommandId(true);
	if (direct->tids == NULL)
		direct->tids = palloc_extended(naccounts * sizeof(ItemPointerData),
									   MCXT_ALLOC_HUGE);
	scan = BeginIndexScan(direct->accounts->ri_RelationDesc,
						  direct->account_key, estate->es_snapshot, 1);
	for (int i = 0; i < naccounts; i++)
	{
		ScanKeyData key;

		CHECK_FOR_INTERRUPTS();
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ,
					UUIDPGetDatum(&accounts[i].account_id));
		index_rescan(scan, &key, 1, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, direct->slot))
			direct->tids[i] = direct->slot->tts_tid;
		else
			missing[nmissing++] = accounts[i];
	}
	index_endscan(scan);
	return nmissing;
}

/*
 * Locks and reads accounts that have all been found.  Returns false if a row has
 * been deleted, or given another key, meanwhile.
 */
bool
LockAccountsDirectly(DirectTables *direct, GigAccount *accounts, int naccounts)
{
	TupleTableSlot *slot = direct->slot;
	TM_FailureData failure;

	for (int i = 0; i < naccounts; i++)
	{
		if (table_tuple_lock(direct->accounts->ri_RelationDesc,
							 &direct->tids[i], direct->estate->es_snapshot,
							 slot, direct->estate->es_output_cid,
							 LockTupleNoKeyExclusive, LockWaitBlock,
							 TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS |
								 TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							 &failure) != TM_Ok)
			return false;
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
 * Appends rows to the log, a page at a time, as COPY does.
 */
void
StoreEventsDirectly(DirectTables *direct, const GigLogRow *rows, int nrows)
{
	Relation relation = direct->log->ri_RelationDesc;
	EState *estate = direct->estate;
	TupleTableSlot *slots[ROWS_PER_INSERT];
	int nslots = Min(nrows, ROWS_PER_INSERT);
	MemoryContext old_context;

	for (int i = 0; i < nslots; i++)
		slots[i] = table_slot_create(relation, &estate->es_tupleTable);
	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	for (int done = 0, n; done < nrows; done += n)
	{
		CHECK_FOR_INTERRUPTS();
		n = Min(nslots, nrows - done);
		for (int i = 0; i < n; i++)
			FillSlot(direct, slots[i], &log_format, &rows[done + i]);
		table_multi_insert(relation, slots, n, estate->es_output_cid, 0, NULL);
		for (int i = 0; i < n; i++)
			InsertIndexEntries(direct->log, estate, slots[i]);
		ResetPerTupleExprContext(estate);
	}
	MemoryContextSwitchTo(old_context);
}

/*
 * Writes back accounts that have been locked; the slot tells where each row is.
 */
void
StoreAccountsDirectly(DirectTables *direct, const GigAccount *accounts,
					  int naccounts)
{
	EState *estate = direct->estate;
	TupleTableSlot *row = table_slot_create(direct->accounts->ri_RelationDesc,
											&estate->es_tupleTable);
	MemoryContext old_context;

	old_context = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	for (int i = 0; i < naccounts; i++)
	{
		CHECK_FOR_INTERRUPTS();
		FillSlot(direct, row, &account_format, &accounts[i]);
		direct->slot->tts_tid = direct->tids[i];
		ExecSimpleRelationUpdate(direct->accounts, estate, NULL, direct->slot,
								 row);
		ResetPerTupleExprContext(estate);
	}
	MemoryContextSwitchTo(old_context);
}

static void
FillSlot(DirectTables *direct, TupleTableSlot *slot, const RowFormat *format,
		 const void *row)
{
	ExecClearTuple(slot);
	GetRowValues(direct->schema, format, row, slot->tts_values,
				 slot->tts_isnull);
	ExecStoreVirtualTuple(slot);
}
