/*-------------------------------------------------------------------------
 *
 * direct.c
 *	  Our tables without the planner and the executor, where they are
 *	  ordinary tables.
 *
 * Starting the executor for a statement costs more than what it then does to a
 * row.  So rows of ordinary tables are found through their primary key and
 * written with the functions that logical replication applies its changes
 * with.  A table that has something of its own to say (triggers, rules, row
 * security, partitions, columns of its own, an access method or a planner
 * that is not PostgreSQL's), and a transaction that must not see later than
 * its snapshot, are left to SQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "nodes/nodeFuncs.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "direct.h"
#include "plan.h"
#include "settings.h"
#include "table.h"

#define MAX_KEYS 2

/* So many rows are inserted together, which fills several pages. */
#define MAX_PENDING 200

typedef struct OpenTable
{
	Relation relation;
	ResultRelInfo *result;	 /* NULL: nothing has been read or written yet */
	TupleTableSlot *found;	 /* what has been read last */
	TupleTableSlot *changed; /* what is written over it */
	Relation key_index;		 /* NULL: nothing has been looked up yet */
	IndexScanDesc scan;		 /* over the key, as of the direct's snapshot */

	TupleTableSlot *pending[MAX_PENDING]; /* rows still to be inserted */
	int npending;
	int nslots; /* of pending, that have been made */
} OpenTable;

struct GigDirect
{
	const GigSchema *schema;
	EState *estate;
	Snapshot snapshot; /* of what is read */
	OpenTable tables[GIG_TABLES];
};

/* Whether the tables are ordinary, as far as that has been looked into. */
static struct
{
	Oid oids[GIG_TABLES];
	bool known;
	bool ordinary;	/* all of them */
	uint64 changes; /* how often they have been, and been looked at */
} tables;

static bool TablesAreOrdinary(const GigSchema *schema);
static bool TableIsOrdinary(const GigSchema *schema, GigTable table);
static void InitKeys(GigDirect *direct, GigTable table, const void *key,
					 ScanKey keys);
static bool HasKey(GigDirect *direct, GigTable table, TupleTableSlot *slot,
				   const void *key);
static bool ColumnsAreOurs(const GigSchema *schema, GigTable table,
						   TupleDesc tupdesc);
static bool IndexesArePlain(Relation relation);
static bool IndexIsPlain(Oid index);
static bool ExpressionIsPlain(HeapTuple index, AttrNumber column);
static bool CallsOthers(Node *node, void *context);
static bool IsOthers(Oid function, void *context);
static bool KeyIsOurs(Relation relation, int nkeys);
static bool OwnerMayWrite(const GigSchema *schema, GigTable table);
static bool PlanIsOrdinary(const GigSchema *schema, GigTable table);
static void ForgetTable(Datum arg, Oid table);
static OpenTable *GetTable(GigDirect *direct, GigTable table);
static void CloseTable(OpenTable *table);
static void EndScans(GigDirect *direct);
static void InsertPending(GigDirect *direct, OpenTable *table);
static void FillSlot(GigDirect *direct, GigTable table, TupleTableSlot *slot,
					 const void *row, uint32 present);

/*
 * Asks to be told when the tables change.
 */
void
InitDirect(void)
{
	CacheRegisterRelcacheCallback(ForgetTable, (Datum) 0);
}

static void
ForgetTable(Datum arg pg_attribute_unused(), Oid table)
{
	for (int i = 0; i < GIG_TABLES; i++)
	{
		if (!OidIsValid(table) || table == tables.oids[i])
		{
			tables.known = false;
			tables.changes++;
		}
	}
}

/*
 * Makes ready to read and write directly.  Returns NULL where SQL has to do it.
 * The tables have been locked.
 */
GigDirect *
BeginDirect(const GigSchema *schema)
{
	GigDirect *direct;

	if (!gig_direct_writes || IsolationUsesXactSnapshot() ||
		!TablesAreOrdinary(schema))
		return NULL;
	/* from here on nothing runs that isn't ours */
	/* what the calling statement has written so far is to be seen, as by SQL */
	CommandCounterIncrement();
	direct = palloc0(sizeof(GigDirect));
	direct->schema = schema;
	/* who has them open can't be the one who alters them */
	for (int i = 0; i < GIG_TABLES; i++)
		direct->tables[i].relation = table_open(schema->tables[i], NoLock);
	direct->estate = CreateExecutorState();
	InitRangeTable(direct->estate, schema->tables, GIG_TABLES);
	direct->estate->es_output_cid = GetCurrentCommandId(true);
	RefreshDirect(direct);
	return direct;
}

/*
 * From here on, reads what is committed by now.
 */
void
RefreshDirect(GigDirect *direct)
{
	if (direct->snapshot != NULL)
	{
		EndScans(direct);
		PopActiveSnapshot();
	}
	PushActiveSnapshot(GetLatestSnapshot());
	direct->snapshot = GetActiveSnapshot();
	direct->estate->es_snapshot = direct->snapshot;
}

/*
 * Ends it; what has been written can be seen by what comes after.
 */
void
EndDirect(GigDirect *direct)
{
	EndScans(direct);
	for (int i = 0; i < GIG_TABLES; i++)
		CloseTable(&direct->tables[i]);
	PopActiveSnapshot();
	/* before PostgreSQL 14, an update asks for a trigger's slot even if there is none */
	ExecResetTupleTable(direct->estate->es_tupleTable, false);
	FreeExecutorState(direct->estate);
	CommandCounterIncrement();
}

static OpenTable *
GetTable(GigDirect *direct, GigTable table)
{
	OpenTable *open = &direct->tables[table];

	if (open->result == NULL)
	{
		MemoryContext old_context =
			MemoryContextSwitchTo(direct->estate->es_query_cxt);

		open->result = makeNode(ResultRelInfo);
		InitResultRelInfo(open->result, open->relation, table + 1, NULL, 0);
		ExecOpenIndices(open->result, false);
		open->found = table_slot_create(open->relation, NULL);
		open->changed = table_slot_create(open->relation, NULL);
		MemoryContextSwitchTo(old_context);
	}
	return open;
}

static void
CloseTable(OpenTable *table)
{
	if (table->key_index != NULL)
		index_close(table->key_index, NoLock);
	if (table->result != NULL)
	{
		ExecDropSingleTupleTableSlot(table->found);
		ExecDropSingleTupleTableSlot(table->changed);
		for (int i = 0; i < table->nslots; i++)
			ExecDropSingleTupleTableSlot(table->pending[i]);
		ExecCloseIndices(table->result);
	}
	table_close(table->relation, NoLock);
}

static void
EndScans(GigDirect *direct)
{
	for (int i = 0; i < GIG_TABLES; i++)
	{
		OpenTable *table = &direct->tables[i];

		if (table->scan != NULL)
		{
			ExecClearTuple(table->found);
			index_endscan(table->scan);
			table->scan = NULL;
		}
	}
}

/*
 * Finds the row that has the primary key of "key".  Returns NULL, or a slot
 * that is good until the table is next read.
 */
TupleTableSlot *
FindRow(GigDirect *direct, GigTable table, const void *key)
{
	const GigTableInfo *info = &gig_tables[table];
	OpenTable *open = GetTable(direct, table);
	ScanKeyData keys[MAX_KEYS];

	if (open->key_index == NULL)
		open->key_index =
			index_open(PrimaryKeyIndex(open->relation), AccessShareLock);
	if (open->scan == NULL)
		open->scan = BeginIndexScan(open->relation, open->key_index,
									direct->snapshot, info->nkeys);
	InitKeys(direct, table, key, keys);
	index_rescan(open->scan, keys, info->nkeys, NULL, 0);
	if (!index_getnext_slot(open->scan, ForwardScanDirection, open->found))
		return NULL;
	return open->found;
}

/*
 * The key's columns are the table's first ones, as they are the index's.
 */
static void
InitKeys(GigDirect *direct, GigTable table, const void *key, ScanKey keys)
{
	const GigTableInfo *info = &gig_tables[table];

	for (int i = 0; i < info->nkeys; i++)
	{
		const GigColumn *column = &info->columns[i];

		ScanKeyInit(&keys[i], (AttrNumber) (i + 1), BTEqualStrategyNumber,
					column->type == COLUMN_UUID ? F_UUID_EQ : F_BYTEAEQ,
					GigColumnDatum(direct->schema, column, key));
	}
}

/*
 * Locks the row that has been found where tid says, and reads its latest
 * version.  Returns NULL if it has been deleted meanwhile, or given another
 * key.
 */
TupleTableSlot *
LockRow(GigDirect *direct, GigTable table, const void *key,
		const ItemPointerData *tid)
{
	OpenTable *open = GetTable(direct, table);
	ItemPointerData found = *tid; /* it may be in the slot that is filled */
	TM_FailureData failure;
	TM_Result result;

	result = table_tuple_lock(open->relation, &found, direct->snapshot,
							  open->found, GetCurrentCommandId(false),
							  LockTupleNoKeyExclusive, LockWaitBlock,
							  TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS |
								  TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							  &failure);
	switch (result)
	{
		case TM_Ok:
			if (failure.traversed && !HasKey(direct, table, open->found, key))
				return NULL;
			return open->found;
		case TM_Deleted:
			return NULL;
		default:
			elog(ERROR, "unexpected result of table_tuple_lock: %d",
				 (int) result);
	}
}

static bool
HasKey(GigDirect *direct, GigTable table, TupleTableSlot *slot, const void *key)
{
	ScanKeyData keys[MAX_KEYS];

	InitKeys(direct, table, key, keys);
	for (int i = 0; i < gig_tables[table].nkeys; i++)
	{
		bool isnull; /* never: it is a primary key */
		Datum value = slot_getattr(slot, keys[i].sk_attno, &isnull);

		if (!DatumGetBool(FunctionCall2Coll(&keys[i].sk_func,
											keys[i].sk_collation, value,
											keys[i].sk_argument)))
			return false;
	}
	return true;
}

/*
 * Inserts a row, which has to stay where it is until InsertRows().
 */
void
InsertRow(GigDirect *direct, GigTable table, const void *row, uint32 present)
{
	OpenTable *open = GetTable(direct, table);
	TupleTableSlot *slot;

	if (open->npending == MAX_PENDING)
		InsertPending(direct, open);
	if (open->npending == open->nslots)
	{
		MemoryContext old_context =
			MemoryContextSwitchTo(direct->estate->es_query_cxt);

		open->pending[open->nslots++] = table_slot_create(open->relation, NULL);
		MemoryContextSwitchTo(old_context);
	}
	slot = open->pending[open->npending++];
	FillSlot(direct, table, slot, row, present);
	if (RelationGetDescr(open->relation)->constr != NULL)
		ExecConstraints(open->result, slot, direct->estate);
}

/*
 * Makes sure that all rows are inserted.
 */
void
InsertRows(GigDirect *direct)
{
	for (int i = 0; i < GIG_TABLES; i++)
		InsertPending(direct, &direct->tables[i]);
}

/*
 * Inserts rows page by page, which takes far fewer WAL records, as COPY does.
 */
static void
InsertPending(GigDirect *direct, OpenTable *table)
{
	MemoryContext old_context;

	if (table->npending == 0)
		return;
	CHECK_FOR_INTERRUPTS();
	old_context =
		MemoryContextSwitchTo(GetPerTupleMemoryContext(direct->estate));
	table_multi_insert(table->relation, table->pending, table->npending,
					   GetCurrentCommandId(true), 0, NULL);
	MemoryContextSwitchTo(old_context);
	ResetPerTupleExprContext(direct->estate);
	for (int i = 0; i < table->npending; i++)
	{
		InsertIndexEntries(table->result, direct->estate, table->pending[i]);
		ExecClearTuple(table->pending[i]);
		ResetPerTupleExprContext(direct->estate);
	}
	table->npending = 0;
}

/*
 * Writes over a row that has been locked; tid is that of its latest version.
 */
void
UpdateRow(GigDirect *direct, GigTable table, const ItemPointerData *tid,
		  const void *row, uint32 present)
{
	OpenTable *open = GetTable(direct, table);

	FillSlot(direct, table, open->changed, row, present);
	open->found->tts_tid = *tid;
	SimpleRelationUpdate(open->result, direct->estate, open->found,
						 open->changed);
	ResetPerTupleExprContext(direct->estate);
}

static void
FillSlot(GigDirect *direct, GigTable table, TupleTableSlot *slot,
		 const void *row, uint32 present)
{
	const GigTableInfo *info = &gig_tables[table];

	ExecClearTuple(slot);
	for (int i = 0; i < info->ncolumns; i++)
	{
		slot->tts_isnull[i] = (present & (UINT32_C(1) << i)) == 0;
		slot->tts_values[i] =
			slot->tts_isnull[i]
				? (Datum) 0
				: GigColumnDatum(direct->schema, &info->columns[i], row);
	}
	ExecStoreVirtualTuple(slot);
}

/*
 * Tells whether all tables are ordinary; looks only when something changed.
 */
static bool
TablesAreOrdinary(const GigSchema *schema)
{
	uint64 changes;
	bool ordinary = true;

	if (tables.known &&
		memcmp(tables.oids, schema->tables, sizeof(tables.oids)) == 0)
		return tables.ordinary;

	memcpy(tables.oids, schema->tables, sizeof(tables.oids));
	tables.known = false;
	changes = ++tables.changes;
	for (int i = 0; ordinary && i < GIG_TABLES; i++)
		ordinary = TableIsOrdinary(schema, (GigTable) i);

	/* having the last of them planned may have changed the first again */
	if (changes != tables.changes)
		return false;
	tables.known = true;
	tables.ordinary = ordinary;
	return ordinary;
}

static bool
TableIsOrdinary(const GigSchema *schema, GigTable table)
{
	Relation relation = table_open(schema->tables[table], AccessShareLock);
	TupleDesc tupdesc = RelationGetDescr(relation);
	bool ordinary =
		relation->rd_rel->relkind == RELKIND_RELATION &&
		relation->rd_rel->relam == HEAP_TABLE_AM_OID &&
		!relation->rd_rel->relispartition && !relation->rd_rel->relhassubclass &&
		!relation->rd_rel->relrowsecurity && relation->rd_rules == NULL &&
		relation->trigdesc == NULL &&
		(tupdesc->constr == NULL || (!tupdesc->constr->has_generated_stored &&
									 tupdesc->constr->num_check == 0)) &&
		ColumnsAreOurs(schema, table, tupdesc) && IndexesArePlain(relation) &&
		KeyIsOurs(relation, gig_tables[table].nkeys) &&
		OwnerMayWrite(schema, table);

	table_close(relation, AccessShareLock);
	return ordinary && PlanIsOrdinary(schema, table);
}

static bool
ColumnsAreOurs(const GigSchema *schema, GigTable table, TupleDesc tupdesc)
{
	const GigTableInfo *info = &gig_tables[table];

	if (tupdesc->natts != info->ncolumns)
		return false;
	for (int i = 0; i < info->ncolumns; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(tupdesc, i);

		if (attribute->attisdropped ||
			strcmp(NameStr(attribute->attname), info->columns[i].name) != 0 ||
			attribute->atttypid != GigColumnTypeOid(schema, &info->columns[i]) ||
			attribute->atttypmod != -1)
			return false;
	}
	return true;
}

/*
 * Tells whether a table's indexes call nothing but PostgreSQL's own functions.
 */
static bool
IndexesArePlain(Relation relation)
{
	List *oids = RelationGetIndexList(relation);
	bool plain = true;
	ListCell *cell;

	foreach(cell, oids)
		plain = plain && IndexIsPlain(lfirst_oid(cell));
	list_free(oids);
	return plain;
}

/*
 * Expressions are read as they are stored: the relation cache would evaluate
 * what is constant in them.
 */
static bool
IndexIsPlain(Oid index)
{
	HeapTuple tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool isnull;
	oidvector *classes;
	bool plain = true;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	classes = (oidvector *) DatumGetPointer(
		SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indclass, &isnull));
	for (int i = 0; i < classes->dim1; i++)
		plain = plain && classes->values[i] < FirstNormalObjectId;
	plain = plain && ExpressionIsPlain(tuple, Anum_pg_index_indexprs) &&
			ExpressionIsPlain(tuple, Anum_pg_index_indpred);
	ReleaseSysCache(tuple);
	return plain;
}

static bool
ExpressionIsPlain(HeapTuple index, AttrNumber column)
{
	bool isnull;
	Datum stored = SysCacheGetAttr(INDEXRELID, index, column, &isnull);

	return isnull ||
		   !CallsOthers(stringToNode(TextDatumGetCString(stored)), NULL);
}

static bool
CallsOthers(Node *node, void *context)
{
	if (node == NULL)
		return false;
	/* these call what their types say */
	if (IsA(node, CoerceToDomain) || IsA(node, MinMaxExpr) ||
		check_functions_in_node(node, IsOthers, context))
		return true;
	return expression_tree_walker(node, CallsOthers, context);
}

static bool
IsOthers(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstNormalObjectId;
}

/*
 * Tells whether a table's primary key is a usable B-tree over its first
 * columns.
 */
static bool
KeyIsOurs(Relation relation, int nkeys)
{
	Oid oid = PrimaryKeyIndex(relation);
	Relation index;
	bool ours;

	if (!OidIsValid(oid))
		return false;
	index = index_open(oid, AccessShareLock);
	ours = index->rd_rel->relam == BTREE_AM_OID &&
		   index->rd_index->indisvalid && index->rd_index->indimmediate &&
		   index->rd_index->indnkeyatts == nkeys;
	for (int i = 0; ours && i < nkeys; i++)
		ours = index->rd_index->indkey.values[i] == i + 1;
	index_close(index, AccessShareLock);
	return ours;
}

/*
 * Tells whether the owner has kept the privileges that SQL would ask him for.
 */
static bool
OwnerMayWrite(const GigSchema *schema, GigTable table)
{
	AclMode needed = ACL_SELECT | ACL_INSERT | ACL_UPDATE;

	return pg_class_aclmask(schema->tables[table], schema->owner, needed,
							ACLMASK_ALL) == needed;
}

/*
 * Tells whether the planner would do with the table what PostgreSQL does.
 * Extensions that distribute tables, or store them in ways of their own, plan
 * for them differently.
 */
static bool
PlanIsOrdinary(const GigSchema *schema, GigTable table)
{
	GigWatch watch;
	GigWatching watching;
	SPIPlanPtr plan;
	volatile bool ordinary = false;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	/* it is never run */
	watch = FormatStatement(schema, psprintf("DELETE FROM %%1$s.%s",
											 gig_tables[table].name));
	plan = PrepareWatched(watch, 0, NULL, 0);
	SPI_keepplan(plan); /* only a plan that is kept can be looked into */
	BeginWatch(&watching, watch);
	PG_TRY();
	{
		CachedPlan *cached = SPI_plan_get_cached_plan(plan);

		if (cached != NULL)
		{
			ordinary =
				list_length(cached->stmt_list) == 1 &&
				IsA(linitial_node(PlannedStmt, cached->stmt_list)->planTree,
					ModifyTable);
			ReleasePlan(cached);
		}
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
		SPI_freeplan(plan);
	}
	PG_END_TRY();
	SPI_finish();
	return ordinary;
}
