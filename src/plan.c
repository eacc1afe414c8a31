/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  Statements on our tables; saved SPI plans, one of each kind a backend.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "plan.h"

static void ReadyPlan(const GigSchema *schema, SavedPlan *saved,
					  const void *what);
static void PreparePlan(const GigSchema *schema, SavedPlan *saved,
						const void *what);
static void MakeGenericPlan(SPIPlanPtr plan);
static void SwitchOff(const char *setting);
static void CheckResult(int result, int expected);
static const char *StatementText(SPIPlanPtr plan);

/*
 * Begins to run statements in the name of the tables' owner.  The tables have
 * been locked, or he might be another by the time that they are used.
 */
void
ConnectAsOwner(const GigSchema *schema, Caller *caller)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	BecomeOwner(schema, caller);
}

void
DisconnectAsCaller(const Caller *caller)
{
	BecomeCaller(caller);
	SPI_finish();
}

/*
 * Runs a saved plan, preparing it first where that has to be done (again).
 *
 * Must be called between BecomeOwner() and BecomeCaller(), connected to SPI.
 * "what" is for the plan's description; a snapshot is only given where the
 * statement's own won't do.  Returns the number of rows; "expected" is the SPI
 * result code.
 *
 * What is on the tables may call us again, and so come here, as soon as a
 * statement is planned.
 */
uint64
RunPlan(const GigSchema *schema, SavedPlan *saved, const void *what,
		Arguments *arguments, Snapshot snapshot, int expected)
{
	GigWatching watching;
	SPIPlanPtr plan;
	volatile int result = 0;

	ReadyPlan(schema, saved, what);
	plan = saved->plan;
	BeginWatch(&watching, (GigWatch){.text = StatementText(plan)});
	saved->running++;
	PG_TRY();
	{
		result = SPI_execute_snapshot(plan, arguments->values, arguments->nulls,
									  snapshot, InvalidSnapshot, false, true, 0);
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
		/* it may have been replaced, by one that isn't running */
		if (saved->plan == plan)
			saved->running--;
	}
	PG_END_TRY();
	CheckResult(result, expected);
	return SPI_processed;
}

/*
 * Has a saved plan prepared and planned, where that has to be done (again).
 */
static void
ReadyPlan(const GigSchema *schema, SavedPlan *saved, const void *what)
{
	GigWatching watching;
	SPIPlanPtr plan;

	RefreshGigSchema(schema);
	if (saved->plan == NULL || saved->generation != schema->generation)
		PreparePlan(schema, saved, what);
	plan = saved->plan;
	if (SPI_plan_is_valid(plan) && !saved->is_new)
		return;
	BeginWatch(&watching, (GigWatch){.text = StatementText(plan)});
	saved->running++;
	PG_TRY();
	{
		MakeGenericPlan(plan);
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
		if (saved->plan == plan)
			saved->running--;
	}
	PG_END_TRY();

	/* what ran in being planned may have had it made anew */
	if (saved->plan != plan)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("schema was renamed at the same time")));
	saved->is_new = false;
}

static const char *
StatementText(SPIPlanPtr plan)
{
	return ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))
		->query_string;
}

/*
 * Runs a statement that is not worth a saved plan; otherwise as RunPlan().
 */
uint64
RunStatement(const GigSchema *schema, const char *format, Arguments *arguments,
			 bool read_only, int expected)
{
	GigWatch watch = FormatStatement(schema, format);
	SPIPlanPtr plan = PrepareWatched(watch, arguments->n, arguments->types, 0);
	uint64 nrows = ExecuteWatched(watch, plan, arguments, read_only, expected);

	SPI_freeplan(plan);
	return nrows;
}

/*
 * Makes the text of a statement; "format" has the schema's name as its argument,
 * for each %1$s of it.
 */
GigWatch
FormatStatement(const GigSchema *schema, const char *format)
{
	StringInfoData text;

	RefreshGigSchema(schema);
	initStringInfo(&text);
	appendStringInfo(&text, format, schema->name);
	return (GigWatch){.text = text.data};
}

/*
 * Runs a plan that has been prepared for a watch.  Returns the number of rows.
 */
uint64
ExecuteWatched(GigWatch watch, SPIPlanPtr plan, Arguments *arguments,
			   bool read_only, int expected)
{
	GigWatching watching;
	volatile int result = 0;

	BeginWatch(&watching, watch);
	PG_TRY();
	{
		result = SPI_execute_plan(plan, arguments->values, arguments->nulls,
								  read_only, 0);
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
	}
	PG_END_TRY();
	CheckResult(result, expected);
	return SPI_processed;
}

/*
 * Opens a cursor for a statement that is watched.  What runs between two fetches
 * can't close it.
 */
Portal
OpenWatched(GigWatch watch, Arguments *arguments)
{
	SPIPlanPtr plan = PrepareWatched(watch, arguments->n, arguments->types, 0);
	GigWatching watching;
	Portal volatile cursor = NULL;

	BeginWatch(&watching, watch);
	PG_TRY();
	{
		cursor = SPI_cursor_open(NULL, plan, arguments->values,
								 arguments->nulls, false);
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
	}
	PG_END_TRY();
	SPI_freeplan(plan);
	PinPortal(cursor);
	return cursor;
}

void
CloseWatched(Portal cursor)
{
	UnpinPortal(cursor);
	SPI_cursor_close(cursor);
}

/*
 * Prepares a statement that is watched, and that will have to be whenever it is
 * planned.
 */
SPIPlanPtr
PrepareWatched(GigWatch watch, int nparameters, Oid *types, int cursor_options)
{
	GigWatching watching;
	SPIPlanPtr volatile plan = NULL;

	BeginWatch(&watching, watch);
	PG_TRY();
	{
		plan =
			SPI_prepare_cursor(watch.text, nparameters, types, cursor_options);
	}
	PG_FINALLY();
	{
		EndWatch(&watching);
	}
	PG_END_TRY();
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	return plan;
}

/*
 * Returns a column of a result, which may be of a domain over its type.
 *
 * When the call began, the tables' columns were of the types that they should
 * be, but what is on them may have changed that.
 */
Datum
GetResult(HeapTuple tuple, TupleDesc tupdesc, int column, Oid type, bool *isnull)
{
	Oid actual = SPI_gettypeid(tupdesc, column);

	if (actual != type && getBaseType(actual) != type)
		ereport(ERROR, (errcode(ERRCODE_DATATYPE_MISMATCH),
						errmsg("column \"%s\" has type %s, not %s",
							   SPI_fname(tupdesc, column),
							   format_type_be(actual), format_type_be(type)),
						errdetail("It has been changed while it was used.")));
	return SPI_getbinval(tuple, tupdesc, column, isnull);
}

static void
CheckResult(int result, int expected)
{
	if (result == SPI_OK_REWRITTEN)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("a rule has replaced a statement of gigs_webhooks"),
				 errhint("Use triggers on its tables instead of rules.")));
	if (result != expected)
		elog(ERROR, "unexpected result of SPI: %s",
			 SPI_result_code_string(result));
}

static void
PreparePlan(const GigSchema *schema, SavedPlan *saved, const void *what)
{
	Statement statement = {.schema = schema};
	SPIPlanPtr plan;

	/* one that runs further up is left to the end of the session */
	if (saved->plan != NULL && saved->running == 0)
		SPI_freeplan(saved->plan);
	saved->plan = NULL;
	saved->running = 0;

	initStringInfo(&statement.text);
	saved->describe(&statement, what);
	plan = PrepareWatched((GigWatch){.text = statement.text.data},
						  statement.nparameters, statement.types,
						  CURSOR_OPT_GENERIC_PLAN);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	saved->plan = plan;
	saved->generation = schema->generation;
	saved->is_new = true;
}

/*
 * Writes a statement's next parameter.
 */
void
AppendParameter(Statement *statement, Oid type)
{
	Assert(statement->nparameters < MAX_ARGUMENTS);
	statement->types[statement->nparameters++] = type;
	appendStringInfo(&statement->text, "$%d", statement->nparameters);
}

void
AddArgument(Arguments *arguments, Datum value, bool isnull)
{
	Assert(arguments->n < MAX_ARGUMENTS);
	arguments->values[arguments->n] = value;
	arguments->nulls[arguments->n] = isnull ? 'n' : ' ';
	arguments->n++;
}

/* The same where the statement has no parameters described. */
void
AddTypedArgument(Arguments *arguments, Oid type, Datum value, bool isnull)
{
	arguments->types[arguments->n] = type;
	AddArgument(arguments, value, isnull);
}

/*
 * Plans a statement once for all its parameters.
 *
 * Custom plans would fold whole arrays into constants, five times over.  And
 * the plan has to stay good when the tables grow by a million rows before they
 * are next analyzed: every access is by primary key, so what would scan or
 * hash a whole table, because it is small today, is out of the question.
 */
static void
MakeGenericPlan(SPIPlanPtr plan)
{
	int guc_nest_level = NewGUCNestLevel();
	CachedPlan *generic_plan;

	SwitchOff("enable_seqscan");
	SwitchOff("enable_hashjoin");
	SwitchOff("enable_mergejoin");
	SwitchOff("jit");
	generic_plan = SPI_plan_get_cached_plan(plan);
	if (generic_plan != NULL)
		ReleasePlan(generic_plan);
	AtEOXact_GUC(true, guc_nest_level);
}

static void
SwitchOff(const char *setting)
{
	(void) set_config_option(setting, "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Makes an array for a statement's parameter.
 */
Datum
MakeArray(Oid type, Datum *values, int length)
{
	int16 typlen;
	bool typbyval;
	char typalign;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(
		construct_array(values, length, type, typlen, typbyval, typalign));
}
