/*-------------------------------------------------------------------------
 *
 * plan.c
 *	  Saved SPI plans, one of each kind a backend.
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

static void PreparePlan(const GigSchema *schema, SavedPlan *saved);
static void MakeGenericPlan(SPIPlanPtr plan);
static void SwitchOff(const char *setting);

/*
 * Runs a saved plan, preparing it first where that has to be done (again).
 *
 * Must be called between BecomeOwner() and BecomeCaller(), connected to SPI.
 * Returns the number of rows; "expected" is the SPI result code.
 */
uint64
RunPlan(const GigSchema *schema, SavedPlan *saved, Datum *values,
		const char *nulls, int expected)
{
	int result;

	if (saved->plan == NULL || saved->generation != schema->generation)
		PreparePlan(schema, saved);
	else if (!SPI_plan_is_valid(saved->plan))
		MakeGenericPlan(saved->plan);

	saved->running++;
	result = SPI_execute_plan(saved->plan, values, nulls, false, 0);
	saved->running--;
	if (result != expected)
		elog(ERROR, "unexpected result of SPI_execute_plan: %s",
			 SPI_result_code_string(result));
	return SPI_processed;
}

static void
PreparePlan(const GigSchema *schema, SavedPlan *saved)
{
	StringInfoData query;
	Oid argtypes[MAX_PLAN_ARGS];
	int nargs = 0;
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

	initStringInfo(&query);
	saved->describe(schema, &query, argtypes, &nargs);
	Assert(nargs <= MAX_PLAN_ARGS);
	plan = SPI_prepare_cursor(query.data, nargs, argtypes,
							  CURSOR_OPT_GENERIC_PLAN);
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
 * Makes an array for a plan's parameter.
 */
Datum
MakeArray(Oid type, Datum *values, bool *nulls, int length)
{
	int16 typlen;
	bool typbyval;
	char typalign;
	int lower_bound = 1;

	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	return PointerGetDatum(construct_md_array(values, nulls, 1, &length,
											  &lower_bound, type, typlen,
											  typbyval, typalign));
}
