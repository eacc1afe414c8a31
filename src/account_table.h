/*-------------------------------------------------------------------------
 *
 * account_table.h
 *	  The rows of gig_account_sync: locked, created and read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ACCOUNT_TABLE_H
#define GIGS_WEBHOOKS_ACCOUNT_TABLE_H

#include "account.h"
#include "direct.h"

/* How often to create accounts that others keep deleting. */
#define MAX_LOCK_ATTEMPTS 10

/* Accounts that are read to be changed. */
typedef struct GigHold
{
	GigAccount *accounts; /* in order of account_id; NULL: all that there are */
	int naccounts;
	bool folded;				 /* they are what will be written */
	const struct GigHold *outer; /* of the call within which this one is */
} GigHold;

extern void HoldAccounts(GigHold *hold, GigAccount *accounts, int naccounts);
extern void CheckAccountsFree(const GigAccount *accounts, int naccounts);
extern void LetGoAccounts(const GigHold *hold);

/*
 * These want to be called in the owner's name, connected to SPI, with the
 * accounts in order of account_id and none of them twice.
 */
extern bool LockAccounts(const GigSchema *schema, GigDirect *direct,
						 GigAccount *accounts, int naccounts);
pg_noreturn extern void ThrowAccountsVanished(void);
extern int LockExistingAccounts(const GigSchema *schema, GigAccount *accounts,
								int naccounts);
extern void TakeAccount(const GigSchema *schema, GigAccount *account,
						HeapTuple tuple, TupleDesc tupdesc);

extern int CompareUuids(const pg_uuid_t *a, const pg_uuid_t *b);
extern GigAccount *FindAccount(GigAccount *accounts, int naccounts,
							   const pg_uuid_t *account_id);

#endif /* GIGS_WEBHOOKS_ACCOUNT_TABLE_H */
