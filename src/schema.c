/*-------------------------------------------------------------------------
 *
 * schema.c
 *	  The extension's own objects in the database, and in whose name it
 *	  works on them.
 *
 * The user picks the schema.  Ours is the one that the called function lives
 * in, whatever the caller's search_path says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/analyze.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "compat.h"
#include "schema.h"
#include "table.h"

/* It holds nothing that anyone but a superuser could put there. */
#define OWNERS_PATH "pg_catalog, pg_temp"

const char *const gig_sync_state_names[GIG_SYNC_STATES] = {
	[SYNC_UNKNOWN] = "unknown",
	[SYNC_PARTIALLY] = "partially_synced",
	[SYNC_FULLY] = "fully_synced",
};

const char *const gig_outcome_names[GIG_OUTCOMES] = {
	[OUTCOME_APPLIED] = "applied",	 [OUTCOME_DUPLICATE] = "duplicate",
	[OUTCOME_STALE] = "stale",		 [OUTCOME_IGNORED] = "ignored",
	[OUTCOME_REJECTED] = "rejected",
};

static GigSchema cached_schema;
static bool cached_schema_valid = false;
static bool columns_checked = false; /* of the cached schema's tables */
static bool sequence_checked = false;
static bool forgotten_meanwhile = false; /* while it was being looked up */
static MemoryContext schema_context = NULL;
static GigWatch watched;
static post_parse_analyze_hook_type next_post_parse_analyze = NULL;

static Oid FunctionNamespace(Oid function);
static void LoadSchema(Oid namespace_id);
static Oid LookupTable(const char *name, Oid namespace_id);
static Oid LookupEnum(const char *name, Oid namespace_id,
					  const char *const *names, Oid *labels, int nlabels);
static Oid TableOwner(Oid table);
static Oid OthersTable(const GigSchema *schema);
static void CheckColumns(const GigSchema *schema, GigTable table);
static void CheckSequence(const GigSchema *schema);
static int SecurityContext(Oid owner, Oid caller, int security_context);
static Oid GetOwner(const GigSchema *schema);
static void SetOwnersPath(void);
static void ForgetSchema(Datum arg, int cacheid, uint32 hashvalue);
static void ForgetSchemaOfTable(Datum arg, Oid table);
static void CheckParsed(POST_PARSE_PARAMETERS);
static bool NamesOthers(Node *node, void *context);
static bool IsOthersFunction(Oid function, void *context);
static bool IsOurTable(Oid table);

/*
 * Asks to be told when what we remember changes.
 */
void
InitSchema(void)
{
	CacheRegisterSyscacheCallback(TYPEOID, ForgetSchema, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, ForgetSchema, (Datum) 0);
	CacheRegisterSyscacheCallback(SEQRELID, ForgetSchema, (Datum) 0);
	CacheRegisterRelcacheCallback(ForgetSchemaOfTable, (Datum) 0);
	next_post_parse_analyze = post_parse_analyze_hook;
	post_parse_analyze_hook = CheckParsed;
}

/*
 * Returns the objects of the extension that the called function belongs to.
 */
const GigSchema *
GetGigSchema(FunctionCallInfo fcinfo)
{
	Oid namespace_id = FunctionNamespace(fcinfo->flinfo->fn_oid);

	if (!cached_schema_valid || cached_schema.namespace_id != namespace_id)
		LoadSchema(namespace_id);
	return &cached_schema;
}

/*
 * The function may have been dropped while it waited for a table.
 */
static Oid
FunctionNamespace(Oid function)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid namespace_id;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("extension gigs_webhooks has been dropped")));
	namespace_id = ((Form_pg_proc) GETSTRUCT(tuple))->pronamespace;
	ReleaseSysCache(tuple);
	return namespace_id;
}

static void
LoadSchema(Oid namespace_id)
{
	GigSchema schema;
	char *name;

	if (schema_context == NULL)
		schema_context =
			AllocSetContextCreate(TopMemoryContext, "gigs_webhooks schema",
								  ALLOCSET_SMALL_SIZES);

	forgotten_meanwhile = false;
	memset(&schema, 0, sizeof(schema));
	schema.namespace_id = namespace_id;
	for (int i = 0; i < GIG_TABLES; i++)
		schema.tables[i] = LookupTable(gig_tables[i].name, namespace_id);
	schema.subscription_table = LookupTable("gig_subscription", namespace_id);
	schema.secret_table = LookupTable("gig_subscription_secret", namespace_id);
	schema.event_id_sequence =
		LookupTable("gig_event_log_event_id_seq", namespace_id);
	schema.owner = TableOwner(schema.tables[TABLE_ACCOUNT_SYNC]);
	schema.others_table = OthersTable(&schema);
	schema.event_kind_type =
		LookupEnum("gig_event_kind", namespace_id, gig_event_names,
				   schema.event_kinds, GIG_EVENT_KINDS);
	schema.sync_state_type =
		LookupEnum("gig_sync_state", namespace_id, gig_sync_state_names,
				   schema.sync_states, GIG_SYNC_STATES);
	schema.outcome_type =
		LookupEnum("gig_ingest_outcome", namespace_id, gig_outcome_names,
				   schema.outcomes, GIG_OUTCOMES);

	name =
		MemoryContextStrdup(schema_context,
							quote_identifier(get_namespace_name(namespace_id)));

	/*
	 * What has been prepared stays good unless something is different now; if
	 * only padding is, it is prepared once too often.
	 */
	schema.generation = cached_schema.generation;
	schema.name = cached_schema.name;
	if (cached_schema.name == NULL || strcmp(cached_schema.name, name) != 0 ||
		/* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison,cert-*) */
		memcmp(&cached_schema, &schema, sizeof(schema)) != 0)
	{
		schema.generation++;
		schema.name = name;
		if (cached_schema.name != NULL)
			pfree(cached_schema.name);
	}
	else
		pfree(name);
	columns_checked = false;
	sequence_checked = false;
	cached_schema = schema;
	cached_schema_valid = !forgotten_meanwhile;
}

/*
 * Locks one of the schema's tables; "table" points at its OID in there.
 *
 * While the lock is waited for, the table may be dropped, or renamed with
 * another one put in its place.  Then that one is locked, and the schema known
 * anew: whoever worked on the old one would write where nobody looks.
 */
void
LockGigTable(const GigSchema *schema, const Oid *table, LOCKMODE mode)
{
	Assert(schema == &cached_schema);
	for (;;)
	{
		Oid locked = *table;

		LockRelationOid(locked, mode);
		if (!cached_schema_valid)
			LoadSchema(schema->namespace_id);
		if (*table == locked)
			return;
		UnlockRelationOid(locked, mode);
	}
}

/*
 * Locks the tables that events change, in one order: until the transaction ends
 * nobody can change what they are and whose.
 */
void
LockGigTables(const GigSchema *schema, LOCKMODE mode)
{
	for (int i = 0; i < GIG_TABLES; i++)
		LockGigTable(schema, &schema->tables[i], mode);
	if (!columns_checked)
	{
		for (int i = 0; i < GIG_TABLES; i++)
			CheckColumns(schema, (GigTable) i);
		columns_checked = true;
	}
}

/*
 * Locks the sequence that events draw their numbers from.
 */
void
LockGigSequence(const GigSchema *schema)
{
	LockGigTable(schema, &schema->event_id_sequence, RowExclusiveLock);
	if (!sequence_checked)
		CheckSequence(schema);
	sequence_checked = true;
}

/*
 * Locks the tables of subscriptions.
 */
void
LockGigSubscriptions(const GigSchema *schema)
{
	LockGigTable(schema, &schema->subscription_table, AccessShareLock);
	LockGigTable(schema, &schema->secret_table, AccessShareLock);
	(void) GetOwner(schema);
}

/*
 * The owner may have altered a table, so the types of its columns are checked
 * before any value is taken for what it should be.
 */
static void
CheckColumns(const GigSchema *schema, GigTable table)
{
	const GigTableInfo *info = &gig_tables[table];

	for (int i = 0; i < info->ncolumns; i++)
	{
		const char *name = info->columns[i].name;
		Oid type = GigColumnTypeOid(schema, &info->columns[i]);
		AttrNumber attnum = get_attnum(schema->tables[table], name);

		if (attnum <= 0 ||
			getBaseType(get_atttype(schema->tables[table], attnum)) != type)
			ThrowColumnError(name, info->name, type);
	}
}

/*
 * The log's order is that of its event_id, which are drawn under the accounts'
 * locks.  A session that had drawn some beforehand would be out of turn.
 */
static void
CheckSequence(const GigSchema *schema)
{
	HeapTuple tuple =
		SearchSysCache1(SEQRELID, ObjectIdGetDatum(schema->event_id_sequence));
	Form_pg_sequence sequence;
	bool in_order;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u",
			 schema->event_id_sequence);
	sequence = (Form_pg_sequence) GETSTRUCT(tuple);
	in_order = sequence->seqcache == 1 && sequence->seqincrement > 0 &&
			   !sequence->seqcycle;
	ReleaseSysCache(tuple);
	if (!in_order)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("sequence \"%s\" of extension gigs_webhooks caches values, counts down, or cycles",
						"gig_event_log_event_id_seq"),
				 errdetail("Events are in the order of their numbers."),
				 errhint(
					 "Use ALTER SEQUENCE ... INCREMENT 1 CACHE 1 NO CYCLE.")));
}

/*
 * Raises that a column is not what it should be.
 */
void
ThrowColumnError(const char *column, const char *table, Oid type)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATATYPE_MISMATCH),
			 errmsg("column \"%s\" of table \"%s\" is missing or not of type %s",
					column, table, format_type_be(type)),
			 errhint(
				 "If the extension has been upgraded, run ALTER EXTENSION gigs_webhooks UPDATE.")));
}

static Oid
LookupTable(const char *name, Oid namespace_id)
{
	Oid table = get_relname_relid(name, namespace_id);

	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s\" of extension gigs_webhooks does not exist",
						name)));
	return table;
}

static Oid
LookupEnum(const char *name, Oid namespace_id, const char *const *names,
		   Oid *labels, int nlabels)
{
	Oid type =
		GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						ObjectIdGetDatum(namespace_id));

	for (int i = 0; i < nlabels; i++)
	{
		labels[i] =
			GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
							ObjectIdGetDatum(type), CStringGetDatum(names[i]));
		if (!OidIsValid(labels[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("type \"%s\" of extension gigs_webhooks has no label \"%s\"",
							name, names[i])));
	}
	return type;
}

static Oid
TableOwner(Oid table)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(table));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", table);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * Returns a table that doesn't belong to the owner of the others, if there is
 * one.
 */
static Oid
OthersTable(const GigSchema *schema)
{
	for (int i = 0; i < GIG_TABLES; i++)
	{
		if (TableOwner(schema->tables[i]) != schema->owner)
			return schema->tables[i];
	}
	if (TableOwner(schema->subscription_table) != schema->owner)
		return schema->subscription_table;
	if (TableOwner(schema->secret_table) != schema->owner)
		return schema->secret_table;
	return InvalidOid;
}

/*
 * Returns the one owner of all tables.  If there were another, what he has put
 * on his table, a trigger or a policy, would run in a name that isn't his.
 */
static Oid
GetOwner(const GigSchema *schema)
{
	if (OidIsValid(schema->others_table))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tables \"%s\" and \"%s\" of extension gigs_webhooks have different owners",
						gig_tables[TABLE_ACCOUNT_SYNC].name,
						get_rel_name(schema->others_table)),
				 errhint("Give all tables of the extension to one role.")));
	return schema->owner;
}

static void
ForgetSchema(Datum arg pg_attribute_unused(), int cacheid pg_attribute_unused(),
			 uint32 hashvalue pg_attribute_unused())
{
	cached_schema_valid = false;
	forgotten_meanwhile = true;
}

static void
ForgetSchemaOfTable(Datum arg pg_attribute_unused(), Oid table)
{
	/* which tables are going to be ours is not known yet */
	forgotten_meanwhile = true;
	for (int i = 0; i < GIG_TABLES; i++)
	{
		if (table == cached_schema.tables[i])
			cached_schema_valid = false;
	}
	if (!OidIsValid(table) || table == cached_schema.subscription_table ||
		table == cached_schema.secret_table ||
		table == cached_schema.event_id_sequence)
		cached_schema_valid = false;
}

/*
 * Returns which of an enum's labels an OID is, as its place.
 */
int
FindEnumLabel(const Oid *labels, int nlabels, Oid label)
{
	for (int i = 0; i < nlabels; i++)
	{
		if (labels[i] == label)
			return i;
	}
	elog(ERROR, "unexpected enum label %u", label);
}

/*
 * Where the owner is somebody else, what his triggers do must end with them: a
 * cursor or a trigger that is left for the commit would run as the session's
 * user, and a temporary table stay in his way.
 */
static int
SecurityContext(Oid owner, Oid caller, int security_context)
{
	security_context |= SECURITY_LOCAL_USERID_CHANGE;
	if (owner != caller)
		security_context |= SECURITY_RESTRICTED_OPERATION;
	return security_context;
}

/*
 * Goes on in the name of the tables' owner, with a search_path that holds
 * nothing of the caller's.
 *
 * This is what SECURITY DEFINER and a SET clause would do for a whole
 * function.  Done here it covers the statements on our tables alone: input
 * functions and domain checks of an inbox table's columns still run as the
 * user who inserts.  An error undoes it with the (sub)transaction.
 */
void
BecomeOwner(const GigSchema *schema, Caller *caller)
{
	Oid owner = GetOwner(schema);

	GetUserIdAndSecContext(&caller->user, &caller->security_context);
	caller->is_owner = owner == caller->user;
	SetUserIdAndSecContext(owner, SecurityContext(owner, caller->user,
												  caller->security_context));
	caller->guc_nest_level = NewGUCNestLevel();
	SetOwnersPath();
}

static void
SetOwnersPath(void)
{
	(void) set_config_option("search_path", OWNERS_PATH, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
BecomeCaller(const Caller *caller)
{
	/* what somebody else's triggers have set goes with their name */
	AtEOXact_GUC(caller->is_owner, caller->guc_nest_level);
	SetUserIdAndSecContext(caller->user, caller->security_context);
}

/*
 * Takes notice of what has been changed meanwhile, above all of the schema's
 * name.
 */
void
RefreshGigSchema(const GigSchema *schema)
{
	Assert(schema == &cached_schema);
	AcceptInvalidationMessages();
	if (!cached_schema_valid)
		LoadSchema(schema->namespace_id);
}

/*
 * Has a statement checked, whenever it is parsed, to mean what it should, until
 * EndWatch(), which an error must not pass by.
 *
 * Nothing keeps a schema from being renamed, not even while its tables are
 * locked, nor somebody else from giving another one the old name then, with
 * tables of his own, which the statement would be about.  What is on those,
 * triggers, policies and views, would run in the owner's name, and some of it
 * as soon as the statement is planned.
 *
 * What is on our own tables runs, too, and may have set another search_path.
 */
void
BeginWatch(GigWatching *watching, GigWatch watch)
{
	watching->before = watched;
	watching->guc_nest_level = 0;
	if (!OidIsValid(watch.table) &&
		strcmp(namespace_search_path, OWNERS_PATH) != 0)
	{
		watching->guc_nest_level = NewGUCNestLevel();
		SetOwnersPath();
	}
	watched = watch;
}

void
EndWatch(const GigWatching *watching)
{
	watched = watching->before;
	if (watching->guc_nest_level > 0)
		AtEOXact_GUC(true, watching->guc_nest_level);
}

static void
CheckParsed(POST_PARSE_PARAMETERS)
{
	if (watched.text != NULL && pstate->p_sourcetext != NULL &&
		strcmp(pstate->p_sourcetext, watched.text) == 0 &&
		NamesOthers((Node *) query, NULL))
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("schema was renamed at the same time")));
	if (next_post_parse_analyze)
		next_post_parse_analyze(POST_PARSE_ARGUMENTS);
}

/*
 * Tells whether a parsed statement names a table that it should not; raises if
 * it names such a function or operator.
 */
static bool
NamesOthers(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		const RangeTblEntry *entry = (RangeTblEntry *) node;

		if (entry->rtekind != RTE_RELATION)
			return false;
		return OidIsValid(watched.table) ? entry->relid != watched.table
										 : !IsOurTable(entry->relid);
	}
	if (check_functions_in_node(node, IsOthersFunction, node))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, NamesOthers, context,
								 QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, NamesOthers, context);
}

/*
 * What puts an inbox's key in order may be its type's own.
 */
static bool
IsOthersFunction(Oid function, void *context)
{
	const Node *node = context;

	if (function < FirstNormalObjectId)
		return false;
	if (OidIsValid(watched.table))
		return IsA(node, OpExpr) &&
			   ((const OpExpr *) node)->opno != watched.comparison;
	if (get_func_namespace(function) == cached_schema.namespace_id)
		return false;
	/* it has been taken for ours, by its schema's name */
	if (IsA(node, FuncExpr) &&
		((const FuncExpr *) node)->funcformat == COERCE_EXPLICIT_CALL)
		return true;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a statement of extension gigs_webhooks would call function %s",
					format_procedure(function)),
			 errdetail(
				 "Only PostgreSQL's own functions and the extension's are called there."),
			 errhint("The type of a column may have been changed.")));
}

static bool
IsOurTable(Oid table)
{
	for (int i = 0; i < GIG_TABLES; i++)
	{
		if (table == cached_schema.tables[i])
			return true;
	}
	return table == cached_schema.subscription_table ||
		   table == cached_schema.secret_table;
}
