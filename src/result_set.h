/*-------------------------------------------------------------------------
 *
 * result_set.h
 *	  The rows that a set-returning function returns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_RESULT_SET_H
#define GIGS_WEBHOOKS_RESULT_SET_H

#include "fmgr.h"
#include "utils/tuplestore.h"

extern Tuplestorestate *BeginResultSet(FunctionCallInfo fcinfo,
									   TupleDesc *tupdesc);

#endif /* GIGS_WEBHOOKS_RESULT_SET_H */
