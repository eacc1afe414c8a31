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
 */
uint64
RunPlan(const GigSchema *schema, SavedPlan *saved, const void *what,
		Arguments *arguments, Snapshot snapshot, int expected)
{
	GigWatch watched = WatchStatement(NULL);
	SPIPlanPtr plan;
	int result;

	RefreshGigSchema(schema);
	if (saved->plan == NULL || saved->generation != schema->generation)
		PreparePlan(schema, saved, what);
	plan = saved->plan;
	WatchStatement(StatementText(plan));
	if (!SPI_plan_is_valid(plan))
		MakeGenericPlan(plan);

	saved->running++;
	result = SPI_execute_snapshot(plan, arguments->values, arguments->nulls,
								  snapshot, InvalidSnapshot, false, true, 0);
	/* a trigger may have had it replaced, by one that isn't running */
	if (saved->plan == plan)
		saved->running--;
	RestoreWatch(watched);
	CheckResult(result, expected);
	return SPI_processed;
}

static const char *
StatementText(SPIPlanPtr plan)
{
	return ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))
		->query_string;
}

/*
 * Runs a statement that is not worth a saved plan; "format" has the schema's
 * name as its argument, for each %1$s of it.  Otherwise as RunPlan().
 */
uint64
RunStatement(const GigSchema *schema, const char *format, Arguments *arguments,
			 bool read_only, int expected)
{
	GigWatch watched = WatchStatement(NULL);
	StringInfoData text;
	int result;

	RefreshGigSchema(schema);
	initStringInfo(&text);
	appendStringInfo(&text, format, schema->name);
	WatchStatement(text.data);
	result = SPI_execute_with_args(text.data, arguments->n, arguments->types,
								   arguments->values, arguments->nulls,
								   read_only, 0);
	RestoreWatch(watched);
	CheckResult(result, expected);
	return SPI_processed;
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

	/*
	 * A trigger on one of the tables may have got us here while the plan runs
	 * further up; then it is left to the end of the session.  So it is when an
	 * error ended it.
	 */
	if (saved->plan != NULL && saved->running == 0)
		SPI_freeplan(saved->plan);
	saved->plan = NULL;
	saved->running = 0;

	initStringInfo(&statement.text);
	saved->describe(&statement, what);
	WatchStatement(statement.text.data);
	plan = SPI_prepare_cursor(statement.text.data, statement.nparameters,
							  statement.types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s",
			 SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	saved->plan = plan;
	saved->generation = schema->generation;
	MakeGenericPlan(plan);
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
