/*-------------------------------------------------------------------------
 *
 * result_set.c
 *	  The rows that a set-returning function returns.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"

#include "result_set.h"

/*
 * Makes the set of a function that returns all its rows at once.
 */
Tuplestorestate *
BeginResultSet(FunctionCallInfo fcinfo, TupleDesc *tupdesc)
{
	ReturnSetInfo *result_set = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old_context;
	Tuplestorestate *rows;

	if (result_set == NULL || !IsA(result_set, ReturnSetInfo) ||
		(result_set->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg(
					 "set-valued function called in context that cannot accept a set")));

	old_context =
		MemoryContextSwitchTo(result_set->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rows = tuplestore_begin_heap((result_set->allowedModes &
								  SFRM_Materialize_Random) != 0,
								 false, work_mem);
	MemoryContextSwitchTo(old_context);

	result_set->returnMode = SFRM_Materialize;
	result_set->setResult = rows;
	result_set->setDesc = *tupdesc;
	return rows;
}
