/*-------------------------------------------------------------------------
 *
 * schema.c
 *	  The extension's objects in the catalogs, and their owner.
 *
 * The user picks the schema.  It is that of the called function, whatever the
 * caller's search_path is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "schema.h"

static GigSchema cached_schema;
static bool cached_schema_valid = false;
static uint64 invalidations = 0;

static void LoadSchema(Oid namespace_id);
static Oid LookupTable(const char *name, Oid namespace_id, Oid *owner);
static void LookupEnum(const char *name, Oid namespace_id,
					   const char *const *names, int nlabels, GigEnum *result);
static void InvalidateSchema(Datum arg, int cacheid, uint32 hashvalue);

/*
 * Registers for invalidations of what is cached.  Whatever replaces, renames or
 * gives away a table changes its row type as well.
 */
void
InitSchema(void)
{
	CacheRegisterSyscacheCallback(TYPEOID, InvalidateSchema, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, InvalidateSchema, (Datum) 0);
}

static void
InvalidateSchema(Datum arg pg_attribute_unused(),
				 int cacheid pg_attribute_unused(),
				 uint32 hashvalue pg_attribute_unused())
{
	cached_schema_valid = false;
	invalidations++;
}

/*
 * Returns the objects of the extension that the called function belongs to.
 */
const GigSchema *
GetGigSchema(FunctionCallInfo fcinfo)
{
	Oid namespace_id = get_func_namespace(fcinfo->flinfo->fn_oid);

	if (!cached_schema_valid || cached_schema.namespace_id != namespace_id)
		LoadSchema(namespace_id);
	return &cached_schema;
}

/*
 * Looks up the objects again if they have changed.
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
 * Locks the table of a member of the schema until the end of the transaction.
 *
 * The table may be replaced, renamed or given away while its lock is waited for.
 */
void
LockGigTable(const GigSchema *schema, const Oid *table, LOCKMODE mode)
{
	Oid locked;

	do
	{
		locked = *table;
		LockRelationOid(locked, mode);
		RefreshGigSchema(schema);
	} while (locked != *table);
}

static void
LoadSchema(Oid namespace_id)
{
	uint64 invalidations_before = invalidations;
	char *namespace_name = get_namespace_name(namespace_id);
	GigSchema schema;
	Oid owner;

	if (namespace_name == NULL)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_SCHEMA),
						errmsg("schema of extension \"%s\" does not exist",
							   "gigs_webhooks")));

	memset(&schema, 0, sizeof(schema));
	schema.namespace_id = namespace_id;
	strlcpy(schema.name, quote_identifier(namespace_name), sizeof(schema.name));
	schema.event_log = LookupTable("gig_event_log", namespace_id, &owner);
	schema.event_id_sequence =
		LookupTable("gig_event_log_event_id_seq", namespace_id, &owner);
	schema.subscription = LookupTable("gig_subscription", namespace_id, &owner);
	schema.account_sync =
		LookupTable("gig_account_sync", namespace_id, &schema.owner);
	LookupEnum("gig_event_kind", namespace_id, gig_event_names, GIG_EVENT_KINDS,
			   &schema.event_kind);
	LookupEnum("gig_sync_state", namespace_id, gig_sync_state_names,
			   GIG_SYNC_STATES, &schema.sync_state);
	LookupEnum("gig_ingest_outcome", namespace_id, gig_outcome_names,
			   GIG_OUTCOMES, &schema.outcome);

	/* prepared statements stay valid unless something has changed */
	schema.generation = cached_schema.generation;
	/* NOLINTNEXTLINE(bugprone-suspicious-memory-comparison,cert-*) */
	if (memcmp(&cached_schema, &schema, sizeof(schema)) != 0)
		schema.generation++;
	cached_schema = schema;
	cached_schema_valid = invalidations == invalidations_before;
}

static Oid
LookupTable(const char *name, Oid namespace_id, Oid *owner)
{
	HeapTuple tuple = SearchSysCache2(RELNAMENSP, CStringGetDatum(name),
									  ObjectIdGetDatum(namespace_id));
	Form_pg_class form;
	Oid table;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("table \"%s\" of extension \"%s\" does not exist",
							   name, "gigs_webhooks")));
	form = (Form_pg_class) GETSTRUCT(tuple);
	table = form->oid;
	*owner = form->relowner;
	ReleaseSysCache(tuple);
	return table;
}

static void
LookupEnum(const char *name, Oid namespace_id, const char *const *names,
		   int nlabels, GigEnum *result)
{
	result->type =
		GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						ObjectIdGetDatum(namespace_id));
	result->nlabels = nlabels;
	for (int i = 0; i < nlabels; i++)
	{
		result->labels[i] = GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
											ObjectIdGetDatum(result->type),
											CStringGetDatum(names[i]));
		if (!OidIsValid(result->labels[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("type \"%s\" of extension \"%s\" has no label \"%s\"",
							name, "gigs_webhooks", names[i])));
	}
}

/*
 * Returns the index of a label among an enum's.
 */
int
FindEnumLabel(const GigEnum *labels, Oid label)
{
	for (int i = 0; i < labels->nlabels; i++)
	{
		if (labels->labels[i] == label)
			return i;
	}
	elog(ERROR, "unexpected enum label %u", label);
}

/*
 * Switches to the tables' owner, with a search_path without the caller's
 * schemas.
 *
 * SECURITY DEFINER and a SET clause would do that for the whole function.  This
 * does it for statements on the extension's tables alone, so that input
 * functions and domains of an inbox table run as the user who inserts.  An
 * error undoes it with the (sub)transaction.
 *
 * Triggers of another owner must leave nothing behind that later runs as the
 * session's user, such as a cursor or a temporary table.
 */
void
SwitchToOwner(const GigSchema *schema, Caller *caller)
{
	int security_context = SECURITY_LOCAL_USERID_CHANGE;

	GetUserIdAndSecContext(&caller->user, &caller->security_context);
	if (schema->owner != caller->user)
		security_context |= SECURITY_RESTRICTED_OPERATION;
	SetUserIdAndSecContext(schema->owner,
						   caller->security_context | security_context);
	caller->guc_nest_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
SwitchToCaller(const Caller *caller)
{
	AtEOXact_GUC(true, caller->guc_nest_level);
	SetUserIdAndSecContext(caller->user, caller->security_context);
}
