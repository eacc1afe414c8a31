/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The SQL statements of ingestion.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_STORE_H
#define GIGS_WEBHOOKS_STORE_H

#include "direct.h"

/* The tables, opened. */
typedef struct GigStore
{
	const GigSchema *schema;
	bool is_owner; /* of the tables, until SwitchToCaller() */
	Caller caller;
	DirectTables *direct; /* NULL: by SQL */
} GigStore;

extern void LockTables(const GigSchema *schema);
extern void OpenStore(GigStore *store, const GigSchema *schema, bool directly);
extern void CloseStore(GigStore *store);
extern int64 NextEventId(GigStore *store);

/* Accounts must be in the order of account_id, without duplicates. */
extern void LockAccounts(GigStore *store, GigAccount *accounts, int naccounts);
extern void StoreEvents(GigStore *store, const GigLogRow *rows, int nrows);
extern void StoreAccounts(GigStore *store, const GigAccount *accounts,
						  int naccounts);
extern void StoreQuarantined(GigStore *store, TimestampTz received_at,
							 const text *name, const GigError *error,
							 const bytea *body);
extern char *QualifyStatement(const GigSchema *schema, const char *sql);

#endif /* GIGS_WEBHOOKS_STORE_H */
