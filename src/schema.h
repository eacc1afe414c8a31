/*-------------------------------------------------------------------------
 *
 * schema.h
 *	  The extension's own objects in the database, and in whose name it
 *	  works on them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SCHEMA_H
#define GIGS_WEBHOOKS_SCHEMA_H

#include "fmgr.h"
#include "storage/lockdefs.h"

#include "event.h"

/* In the order of the labels of the SQL type gig_sync_state. */
typedef enum GigSyncState
{
	SYNC_UNKNOWN,
	SYNC_PARTIALLY,
	SYNC_FULLY
} GigSyncState;

#define GIG_SYNC_STATES (SYNC_FULLY + 1)

/* In the order of the labels of the SQL type gig_ingest_outcome. */
typedef enum GigOutcome
{
	OUTCOME_APPLIED,
	OUTCOME_DUPLICATE,
	OUTCOME_STALE,
	OUTCOME_IGNORED,
	OUTCOME_REJECTED
} GigOutcome;

#define GIG_OUTCOMES (OUTCOME_REJECTED + 1)

/* The tables that events change; gig_tables describes them. */
typedef enum GigTable
{
	TABLE_EVENT_LOG,
	TABLE_ACCOUNT_SYNC,
	TABLE_DELIVERY,
	TABLE_CHANGE
} GigTable;

#define GIG_TABLES (TABLE_CHANGE + 1)

extern const char *const gig_sync_state_names[GIG_SYNC_STATES];
extern const char *const gig_outcome_names[GIG_OUTCOMES];

typedef struct GigSchema
{
	uint64 generation; /* another one: prepare what depends on it anew */
	Oid namespace_id;
	char *name;		  /* quoted where needed */
	Oid owner;		  /* of the tables */
	Oid others_table; /* one that is not the owner's, or InvalidOid */
	Oid tables[GIG_TABLES];
	Oid subscription_table;
	Oid secret_table;
	Oid event_id_sequence; /* of gig_event_log */

	/* the enums, and the OIDs of their labels */
	Oid event_kind_type;
	Oid sync_state_type;
	Oid outcome_type;
	Oid event_kinds[GIG_EVENT_KINDS];
	Oid sync_states[GIG_SYNC_STATES];
	Oid outcomes[GIG_OUTCOMES];
} GigSchema;

extern const GigSchema *GetGigSchema(FunctionCallInfo fcinfo);
extern void LockGigTable(const GigSchema *schema, const Oid *table,
						 LOCKMODE mode);
extern void LockGigTables(const GigSchema *schema, LOCKMODE mode);
extern void LockGigSequence(const GigSchema *schema);
extern void LockGigSubscriptions(const GigSchema *schema);
pg_noreturn extern void ThrowColumnError(const char *column, const char *table,
										 Oid type);
extern int FindEnumLabel(const Oid *labels, int nlabels, Oid label);

/* Who called us, while we work in the owner's name. */
typedef struct Caller
{
	Oid user;
	int security_context;
	int guc_nest_level;
	bool is_owner;
} Caller;

extern void BecomeOwner(const GigSchema *schema, Caller *caller);
extern void BecomeCaller(const Caller *caller);
extern void RefreshGigSchema(const GigSchema *schema);

/* What a statement is to mean, whenever it is parsed. */
typedef struct GigWatch
{
	const char *text; /* NULL: none */
	Oid table;		  /* an inbox, or InvalidOid: ours */
	Oid comparison;	  /* the one operator that need not be PostgreSQL's own */
} GigWatch;

/* What there was before one was watched. */
typedef struct GigWatching
{
	GigWatch before;
	int guc_nest_level; /* 0: none of its own */
} GigWatching;

extern void BeginWatch(GigWatching *watching, GigWatch watch);
extern void EndWatch(const GigWatching *watching);

extern void InitSchema(void);

#endif /* GIGS_WEBHOOKS_SCHEMA_H */
