/*-------------------------------------------------------------------------
 *
 * account_table.c
 *	  The rows of gig_account_sync: locked, created and read.
 *
 * An account's row serialises its events.  Whoever takes several rows takes
 * them here, in one order, so that no two calls can deadlock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

#include "account_table.h"
#include "plan.h"

static bool LockAccountsBySql(const GigSchema *schema, GigAccount *accounts,
							  int naccounts);
static bool LockAccountsDirectly(const GigSchema *schema, GigDirect *direct,
								 GigAccount *accounts, int naccounts);
static bool FindAccounts(GigDirect *direct, GigAccount *accounts, int naccounts);
static void SetAccount(const GigSchema *schema, GigAccount *account,
					   const Datum *values, const bool *nulls);
static void CreateAccounts(const GigSchema *schema, const GigAccount *accounts,
						   int naccounts);
static void DescribeLockAccounts(Statement *statement, const void *what);
static void DescribeCreateAccounts(Statement *statement, const void *what);
static void AppendNewAccount(StringInfo text, const GigSchema *schema);
static int CompareAccounts(const void *a, const void *b);
static int64 Deliveries(const GigAccount *account);
static void ThrowAccountHeld(const GigAccount *account);

static const GigHold *innermost_hold = NULL;

static SavedPlan lock_accounts = {.describe = DescribeLockAccounts};
static SavedPlan create_account = {.describe = DescribeCreateAccounts};
static SavedPlan create_accounts = {.describe = DescribeCreateAccounts};

/*
 * Locks accounts until the end of the transaction and reads what is known of
 * them.  Only account_id and user_id are looked at; accounts that don't exist
 * are created with the latter.  Returns false if somebody has deleted an
 * account meanwhile, or a trigger has dropped it.
 *
 * Several are created first and locked then.  So whoever waits for a lock
 * holds no new row that the lock's holder could be waiting for: he has seen
 * all his accounts exist before he took his first lock.  That and the order
 * within each step leave no room for a deadlock, as long as nobody goes on to
 * create what he has seen vanish: the caller has to give up all locks first.
 */
bool
LockAccounts(const GigSchema *schema, GigDirect *direct, GigAccount *accounts,
			 int naccounts)
{
	/* of a single account nothing is held, when it has been deleted */
	int attempts = naccounts == 1 ? MAX_LOCK_ATTEMPTS : 1;

	for (int attempt = 0; attempt < attempts; attempt++)
	{
		CHECK_FOR_INTERRUPTS();
		if (direct != NULL && attempt > 0)
			RefreshDirect(direct);
		if (direct != NULL
				? LockAccountsDirectly(schema, direct, accounts, naccounts)
				: LockAccountsBySql(schema, accounts, naccounts))
			return true;
	}
	return false;
}

static bool
LockAccountsBySql(const GigSchema *schema, GigAccount *accounts, int naccounts)
{
	/* one account that is there needs no creating */
	if (naccounts == 1 && LockExistingAccounts(schema, accounts, 1) == 1)
		return true;
	CreateAccounts(schema, accounts, naccounts);
	return LockExistingAccounts(schema, accounts, naccounts) == naccounts;
}

static bool
LockAccountsDirectly(const GigSchema *schema, GigDirect *direct,
					 GigAccount *accounts, int naccounts)
{
	if (!FindAccounts(direct, accounts, naccounts))
	{
		CreateAccounts(schema, accounts, naccounts);
		RefreshDirect(direct);
		if (!FindAccounts(direct, accounts, naccounts))
			return false;
	}
	for (int i = 0; i < naccounts; i++)
	{
		TupleTableSlot *row =
			LockRow(direct, TABLE_ACCOUNT_SYNC, &accounts[i], &accounts[i].tid);

		if (row == NULL)
			return false;
		slot_getallattrs(row);
		SetAccount(schema, &accounts[i], row->tts_values, row->tts_isnull);
		accounts[i].tid = row->tts_tid;
	}
	return true;
}

/*
 * Finds where accounts lie; tells whether all of them are there.
 */
static bool
FindAccounts(GigDirect *direct, GigAccount *accounts, int naccounts)
{
	bool all = true;

	for (int i = 0; i < naccounts; i++)
	{
		TupleTableSlot *row = FindRow(direct, TABLE_ACCOUNT_SYNC, &accounts[i]);

		CHECK_FOR_INTERRUPTS();
		if (row != NULL)
			accounts[i].tid = row->tts_tid;
		else
		{
			ItemPointerSetInvalid(&accounts[i].tid);
			all = false;
		}
	}
	return all;
}

/*
 * Notes that accounts, or all, are read and will be written back, which has to
 * end with LetGoAccounts(), even in an error.
 *
 * What is on our tables may call us again meanwhile, and for other accounts it
 * may, and for these, too, once they are written.  But what it did to them
 * before would be written over.
 */
void
HoldAccounts(GigHold *hold, GigAccount *accounts, int naccounts)
{
	hold->accounts = accounts;
	hold->naccounts = naccounts;
	hold->folded = false;
	hold->outer = innermost_hold;
	innermost_hold = hold;
}

/*
 * Raises if accounts, which have been read, are held further up and not written
 * yet.
 */
void
CheckAccountsFree(const GigAccount *accounts, int naccounts)
{
	for (const GigHold *outer = innermost_hold; outer; outer = outer->outer)
	{
		for (int i = 0; i < naccounts; i++)
		{
			const GigAccount *held;

			if (outer->accounts == NULL)
				ThrowAccountHeld(&accounts[i]);
			held = FindAccount(outer->accounts, outer->naccounts,
							   &accounts[i].account_id);
			if (held != NULL &&
				(!outer->folded || Deliveries(&accounts[i]) < Deliveries(held)))
				ThrowAccountHeld(held);
		}
	}
}

/*
 * Ends what HoldAccounts() began, if it did.
 */
void
LetGoAccounts(const GigHold *hold)
{
	if (innermost_hold == hold)
		innermost_hold = hold->outer;
}

/*
 * How many an account has had: more with every one that is folded into it.
 */
static int64
Deliveries(const GigAccount *account)
{
	return account->events + account->duplicates;
}

static void
ThrowAccountHeld(const GigAccount *account)
{
	char *account_id = DatumGetCString(
		DirectFunctionCall1(uuid_out, UUIDPGetDatum(&account->account_id)));

	ereport(ERROR,
			(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
			 errmsg("account %s is just being changed", account_id),
			 errhint(
				 "What is on a table of gigs_webhooks may take in webhooks of the same account in an AFTER trigger only, and none while it is rebuilt.")));
}

/*
 * Raises that accounts could not be locked, however often that was tried.
 */
void
ThrowAccountsVanished(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not create rows of table \"%s\"", "gig_account_sync"),
			 errdetail("Rows were deleted, or not inserted, at the same time.")));
	pg_unreachable();
}

/*
 * Locks and reads those accounts that exist; returns how many do.
 */
int
LockExistingAccounts(const GigSchema *schema, GigAccount *accounts,
					 int naccounts)
{
	Datum *ids = palloc(naccounts * sizeof(Datum));
	Arguments arguments = {.n = 0};
	GigHold hold;
	volatile uint64 nrows = 0;

	for (int i = 0; i < naccounts; i++)
		ids[i] = UUIDPGetDatum(&accounts[i].account_id);
	AddArgument(&arguments, MakeArray(UUIDOID, ids, naccounts), false);

	/* one may have been read when the next one is looked at */
	HoldAccounts(&hold, accounts, naccounts);
	PG_TRY();
	{
		nrows = RunPlan(schema, &lock_accounts, NULL, &arguments,
						InvalidSnapshot, SPI_OK_SELECT);
	}
	PG_FINALLY();
	{
		LetGoAccounts(&hold);
	}
	PG_END_TRY();
	for (uint64 row = 0; row < nrows; row++)
	{
		HeapTuple tuple = SPI_tuptable->vals[row];
		TupleDesc tupdesc = SPI_tuptable->tupdesc;
		bool isnull;
		Datum id = GetResult(tuple, tupdesc, ACCOUNT_ID + 1, UUIDOID, &isnull);
		GigAccount *account =
			FindAccount(accounts, naccounts, DatumGetUUIDP(id));

		if (account == NULL)
			elog(ERROR, "an account was read that was not asked for");
		TakeAccount(schema, account, tuple, tupdesc);
	}
	SPI_freetuptable(SPI_tuptable);
	return (int) nrows;
}

/*
 * Takes over an account's row, which begins with all its columns.
 */
void
TakeAccount(const GigSchema *schema, GigAccount *account, HeapTuple tuple,
			TupleDesc tupdesc)
{
	Datum values[GIG_ACCOUNT_COLUMNS];
	bool nulls[GIG_ACCOUNT_COLUMNS];

	for (int i = 0; i < GIG_ACCOUNT_COLUMNS; i++)
		values[i] = GetResult(tuple, tupdesc, i + 1,
							  GigColumnTypeOid(schema, &gig_account_columns[i]),
							  &nulls[i]);
	SetAccount(schema, account, values, nulls);
}

static void
SetAccount(const GigSchema *schema, GigAccount *account, const Datum *values,
		   const bool *nulls)
{
	account->present = 0;
	for (int i = 0; i < GIG_ACCOUNT_COLUMNS; i++)
	{
		if (nulls[i])
			continue;
		SetGigColumn(schema, &gig_account_columns[i], account, values[i]);
		account->present |= UINT32_C(1) << i;
	}
}

/*
 * Creates accounts, but those that have been found and may still be there.
 */
static void
CreateAccounts(const GigSchema *schema, const GigAccount *accounts,
			   int naccounts)
{
	GigRows rows;
	Arguments arguments = {.n = 0};

	InitRows(&rows, schema, "accounts", gig_account_columns,
			 ACCOUNT_USER_ID + 1);
	for (int i = 0; i < naccounts; i++)
	{
		if (!ItemPointerIsValid(&accounts[i].tid))
			AddRow(&rows, &accounts[i], ALL_PRESENT);
	}
	PutRows(&arguments, &rows);
	RunPlan(schema, rows.nrows == 1 ? &create_account : &create_accounts, &rows,
			&arguments, InvalidSnapshot, SPI_OK_INSERT);
	TakeBackRows(&rows);
}

static void
DescribeLockAccounts(Statement *statement,
					 const void *what pg_attribute_unused())
{
	StringInfo text = &statement->text;

	appendStringInfoString(text, "SELECT ");
	AppendColumnNames(text, gig_account_columns, GIG_ACCOUNT_COLUMNS);
	appendStringInfo(text, " FROM %s.gig_account_sync WHERE account_id = ANY (",
					 statement->schema->name);
	AppendParameter(statement, UUIDARRAYOID);
	appendStringInfoString(text, ") ORDER BY account_id FOR NO KEY UPDATE");
}

static void
DescribeCreateAccounts(Statement *statement, const void *what)
{
	const char *schema = statement->schema->name;
	StringInfo text = &statement->text;

	appendStringInfo(text, "INSERT INTO %s.gig_account_sync (", schema);
	AppendColumnNames(text, gig_account_columns, GIG_ACCOUNT_COLUMNS);
	appendStringInfoString(text, ") SELECT n.account_id, n.user_id");
	AppendNewAccount(text, statement->schema);
	appendStringInfoString(text, " FROM ");
	AppendRows(statement, what);
	appendStringInfo(text,
					 " AS n"
					 " WHERE NOT EXISTS (SELECT FROM %s.gig_account_sync AS a"
					 " WHERE a.account_id = n.account_id)"
					 " ORDER BY n.account_id"
					 " ON CONFLICT (account_id) DO NOTHING",
					 schema);
}

/*
 * All that a new account's row begins with but its key and its user.  The
 * columns' defaults won't do: they are the owner's to change.
 */
static void
AppendNewAccount(StringInfo text, const GigSchema *schema)
{
	const pg_uuid_t nobody = {{0}};
	GigAccount account;

	InitGigAccount(&account, &nobody, &nobody);
	for (int i = ACCOUNT_USER_ID + 1; i < GIG_ACCOUNT_COLUMNS; i++)
	{
		const GigColumn *column = &gig_account_columns[i];
		Oid output;
		bool is_varlena;
		char *value;

		if ((account.present & UINT32_C(1) << i) == 0)
		{
			appendStringInfoString(text, ", NULL");
			continue;
		}
		getTypeOutputInfo(GigColumnTypeOid(schema, column), &output,
						  &is_varlena);
		value = OidOutputFunctionCall(output,
									  GigColumnDatum(schema, column, &account));
		appendStringInfo(text, ", %s", quote_literal_cstr(value));
	}
}

GigAccount *
FindAccount(GigAccount *accounts, int naccounts, const pg_uuid_t *account_id)
{
	GigAccount key = {.account_id = *account_id};

	return bsearch(&key, accounts, naccounts, sizeof(GigAccount),
				   CompareAccounts);
}

static int
CompareAccounts(const void *a, const void *b)
{
	return CompareUuids(&((const GigAccount *) a)->account_id,
						&((const GigAccount *) b)->account_id);
}

/* The order of the SQL type. */
int
CompareUuids(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a->data, b->data, UUID_LEN);
}
