/*-------------------------------------------------------------------------
 *
 * schema.h
 *	  The extension's objects in the catalogs, and their owner.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_SCHEMA_H
#define GIGS_WEBHOOKS_SCHEMA_H

#include "fmgr.h"
#include "storage/lockdefs.h"

#include "account.h"

/* A name that is all quotation marks doubles, and gets two more. */
#define MAX_QUOTED_NAME (2 * NAMEDATALEN + 1)

/* An enum, and the OIDs of its labels. */
typedef struct GigEnum
{
	Oid type;
	int nlabels;
	Oid labels[GIG_OUTCOMES]; /* the most that one has */
} GigEnum;

typedef struct GigSchema
{
	uint64 generation; /* changes whenever a member does */
	Oid namespace_id;
	Oid owner; /* of gig_account_sync */
	Oid event_log;
	Oid event_id_sequence; /* of gig_event_log */
	Oid account_sync;
	Oid subscription;

	GigEnum event_kind;
	GigEnum sync_state;
	GigEnum outcome;
	char name[MAX_QUOTED_NAME]; /* quoted where needed */
} GigSchema;

/* The caller of a function, while statements run as the tables' owner. */
typedef struct Caller
{
	Oid user;
	int security_context;
	int guc_nest_level;
} Caller;

extern void InitSchema(void);
extern const GigSchema *GetGigSchema(FunctionCallInfo fcinfo);
extern void RefreshGigSchema(const GigSchema *schema);
extern void LockGigTable(const GigSchema *schema, const Oid *table,
						 LOCKMODE mode);
extern int FindEnumLabel(const GigEnum *labels, Oid label);
extern void SwitchToOwner(const GigSchema *schema, Caller *caller);
extern void SwitchToCaller(const Caller *caller);

#endif /* GIGS_WEBHOOKS_SCHEMA_H */
