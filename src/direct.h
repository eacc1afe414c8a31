/*-------------------------------------------------------------------------
 *
 * direct.h
 *	  Ordinary tables, read and written without the executor.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_DIRECT_H
#define GIGS_WEBHOOKS_DIRECT_H

#include "row.h"

extern bool gig_direct_writes; /* gigs_webhooks.direct_writes */

typedef struct DirectTables DirectTables;

/*
 * Accounts are in the order of account_id, without duplicates, and must be
 * locked before they are stored.
 */
extern DirectTables *BeginDirect(const GigSchema *schema);
extern int FindAccountsDirectly(DirectTables *direct, const GigAccount *accounts,
								int naccounts, GigAccount *missing);
extern bool LockAccountsDirectly(DirectTables *direct, GigAccount *accounts,
								 int naccounts);
extern void StoreEventsDirectly(DirectTables *direct, const GigLogRow *rows,
								int nrows);
extern void StoreAccountsDirectly(DirectTables *direct,
								  const GigAccount *accounts, int naccounts);
extern void EndDirect(DirectTables *direct);

#endif /* GIGS_WEBHOOKS_DIRECT_H */
