/*-------------------------------------------------------------------------
 *
 * account_table.c
 *	  The rows of gig_account_sync: locked, created, read and written.
 *
 * An account's row serialises its events.  Whoever takes several rows takes
 * them here, in one order, so that no two calls can deadlock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"

#include "account_table.h"
#include "plan.h"

/* How often to create accounts that others keep deleting. */
#define MAX_LOCK_ATTEMPTS 10

static void CreateAccounts(const GigSchema *schema, const GigAccount *accounts,
						   int naccounts);
static Datum MakeColumn(const GigSchema *schema, const GigAccount *accounts,
						int naccounts, int column);
static void AppendColumns(StringInfo query);
static void DescribeReadAccounts(const GigSchema *schema, StringInfo query,
								 Oid *argtypes, int *nargs);
static void DescribeCreateAccounts(const GigSchema *schema, StringInfo query,
								   Oid *argtypes, int *nargs);
static void DescribeWriteAccounts(const GigSchema *schema, StringInfo query,
								  Oid *argtypes, int *nargs);
static int CompareAccounts(const void *a, const void *b);

static SavedPlan read_accounts = {.describe = DescribeReadAccounts};
static SavedPlan create_accounts = {.describe = DescribeCreateAccounts};
static SavedPlan write_accounts = {.describe = DescribeWriteAccounts};

/*
 * Locks accounts until the end of the transaction and reads what is known of
 * them.  Only account_id and user_id are looked at; accounts that don't exist
 * are created with the latter.
 *
 * Several are created first and locked then.  So whoever waits for a lock
 * holds no new row that the lock's holder could be waiting for: he has seen
 * all his accounts exist before he took his first lock.  That and the order
 * within each step leave no room for a deadlock.
 */
void
LockAccounts(const GigSchema *schema, GigAccount *accounts, int naccounts)
{
	if (naccounts == 1 && LockExistingAccounts(schema, accounts, naccounts) == 1)
		return;

	for (int attempt = 0; attempt < MAX_LOCK_ATTEMPTS; attempt++)
	{
		CHECK_FOR_INTERRUPTS();
		CreateAccounts(schema, accounts, naccounts);
		if (LockExistingAccounts(schema, accounts, naccounts) == naccounts)
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not create rows of table \"%s\"", "gig_account_sync"),
			 errdetail("Rows were deleted, or not inserted, at the same time.")));
}

/*
 * Locks and reads those accounts that exist; returns how many do.
 */
int
LockExistingAccounts(const GigSchema *schema, GigAccount *accounts,
					 int naccounts)
{
	Datum values[1];
	uint64 nrows;

	values[0] = MakeColumn(schema, accounts, naccounts, ACCOUNT_ID);
	nrows = RunPlan(schema, &read_accounts, values, NULL, SPI_OK_SELECT);
	for (uint64 row = 0; row < nrows; row++)
	{
		HeapTuple tuple = SPI_tuptable->vals[row];
		TupleDesc tupdesc = SPI_tuptable->tupdesc;
		GigAccount *account;
		bool isnull;
		Datum id = SPI_getbinval(tuple, tupdesc, ACCOUNT_ID + 1, &isnull);

		account = FindAccount(accounts, naccounts, DatumGetUUIDP(id));
		for (int column = 0; column < GIG_ACCOUNT_COLUMNS; column++)
		{
			Datum value = SPI_getbinval(tuple, tupdesc, column + 1, &isnull);

			SetGigAccountDatum(schema, account, column, value, isnull);
		}
	}
	SPI_freetuptable(SPI_tuptable);
	return (int) nrows;
}

static void
CreateAccounts(const GigSchema *schema, const GigAccount *accounts,
			   int naccounts)
{
	Datum values[2];

	values[0] = MakeColumn(schema, accounts, naccounts, ACCOUNT_ID);
	values[1] = MakeColumn(schema, accounts, naccounts, ACCOUNT_USER_ID);
	RunPlan(schema, &create_accounts, values, NULL, SPI_OK_INSERT);
}

/*
 * Writes accounts that have been locked.
 */
void
WriteAccounts(const GigSchema *schema, const GigAccount *accounts, int naccounts)
{
	Datum values[GIG_ACCOUNT_COLUMNS];

	for (int column = 0; column < GIG_ACCOUNT_COLUMNS; column++)
		values[column] = MakeColumn(schema, accounts, naccounts, column);
	RunPlan(schema, &write_accounts, values, NULL, SPI_OK_UPDATE);
}

/* An array of what accounts have in a column. */
static Datum
MakeColumn(const GigSchema *schema, const GigAccount *accounts, int naccounts,
		   int column)
{
	Datum *values = palloc(naccounts * sizeof(Datum));
	bool *nulls = palloc(naccounts * sizeof(bool));

	for (int i = 0; i < naccounts; i++)
		values[i] = GigAccountDatum(schema, &accounts[i], column, &nulls[i]);
	return MakeArray(GigAccountColumnType(schema, column), values, nulls,
					 naccounts);
}

static void
DescribeReadAccounts(const GigSchema *schema, StringInfo query, Oid *argtypes,
					 int *nargs)
{
	appendStringInfoString(query, "SELECT ");
	AppendColumns(query);
	appendStringInfo(query,
					 " FROM %s.gig_account_sync"
					 " WHERE account_id = ANY ($1)"
					 " ORDER BY account_id"
					 " FOR NO KEY UPDATE",
					 schema->name);
	argtypes[(*nargs)++] = UUIDARRAYOID;
}

static void
DescribeCreateAccounts(const GigSchema *schema, StringInfo query, Oid *argtypes,
					   int *nargs)
{
	appendStringInfo(query,
					 "INSERT INTO %s.gig_account_sync (account_id, user_id)"
					 " SELECT n.account_id, n.user_id"
					 " FROM unnest($1, $2) AS n (account_id, user_id)"
					 " WHERE NOT EXISTS (SELECT FROM %s.gig_account_sync AS a"
					 " WHERE a.account_id = n.account_id)"
					 " ORDER BY n.account_id"
					 " ON CONFLICT (account_id) DO NOTHING",
					 schema->name, schema->name);
	argtypes[(*nargs)++] = UUIDARRAYOID;
	argtypes[(*nargs)++] = UUIDARRAYOID;
}

static void
DescribeWriteAccounts(const GigSchema *schema, StringInfo query, Oid *argtypes,
					  int *nargs)
{
	appendStringInfo(query, "UPDATE %s.gig_account_sync AS a SET ",
					 schema->name);
	for (int i = ACCOUNT_USER_ID; i < GIG_ACCOUNT_COLUMNS; i++)
		appendStringInfo(query, "%s%s = n.%s", i > ACCOUNT_USER_ID ? ", " : "",
						 gig_account_columns[i].name,
						 gig_account_columns[i].name);
	appendStringInfoString(query, " FROM unnest(");
	for (int i = 0; i < GIG_ACCOUNT_COLUMNS; i++)
	{
		appendStringInfo(query, "%s$%d", i > 0 ? ", " : "", i + 1);
		argtypes[(*nargs)++] = get_array_type(GigAccountColumnType(schema, i));
	}
	appendStringInfoString(query, ") AS n (");
	AppendColumns(query);
	appendStringInfoString(query, ") WHERE a.account_id = n.account_id");
}

static void
AppendColumns(StringInfo query)
{
	for (int i = 0; i < GIG_ACCOUNT_COLUMNS; i++)
		appendStringInfo(query, "%s%s", i > 0 ? ", " : "",
						 gig_account_columns[i].name);
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
