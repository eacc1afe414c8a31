/*-------------------------------------------------------------------------
 *
 * prune.c
 *	  Old events deleted from the log, and deliveries past the window.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "plan.h"
#include "settings.h"

/*
 * prune_gig_events(keep interval, batch integer DEFAULT 10000)
 *		returns (events_pruned bigint, deliveries_pruned bigint)
 *
 * Deletes at most a batch of each; rows that somebody has locked are left to
 * the next call.
 */
PG_FUNCTION_INFO_V1(prune_gig_events);
Datum
prune_gig_events(PG_FUNCTION_ARGS)
{
	const GigSchema *schema = GetGigSchema(fcinfo);
	const Interval zero = {0};
	Interval window = {0};
	Arguments arguments = {.n = 0};
	Caller caller;
	TupleDesc tupdesc;
	Datum values[2];
	bool nulls[2] = {false, false};

	if (PG_ARGISNULL(0) ||
		DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(0),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("interval to keep must not be null or negative")));
	if (PG_ARGISNULL(1) || PG_GETARG_INT32(1) <= 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("batch must be greater than zero")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	tupdesc = BlessTupleDesc(tupdesc);

	/* they stay whose they are now */
	LockGigTables(schema, AccessShareLock);
	ConnectAsOwner(schema, &caller);

	AddTypedArgument(&arguments, INTERVALOID, PG_GETARG_DATUM(0), false);
	AddTypedArgument(&arguments, INT4OID, PG_GETARG_DATUM(1), false);
	values[0] = Int64GetDatum(
		(int64)
			RunStatement(schema,
						 "DELETE FROM %1$s.gig_event_log"
						 " WHERE event_id IN (SELECT o.event_id FROM %1$s.gig_event_log AS o"
						 " WHERE o.received_at < now() - $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
						 &arguments, false, SPI_OK_DELETE));

	/* past the window a delivery tells nothing, however long events are kept */
	window.time = gig_dedupe_window * USECS_PER_SEC;
	arguments.values[0] = IntervalPGetDatum(&window);
	values[1] = Int64GetDatum(
		(int64)
			RunStatement(schema,
						 "DELETE FROM %1$s.gig_delivery"
						 " WHERE (account_id, body_digest) IN"
						 " (SELECT o.account_id, o.body_digest FROM %1$s.gig_delivery AS o"
						 " WHERE o.first_at < now() - $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
						 &arguments, false, SPI_OK_DELETE));

	DisconnectAsCaller(&caller);
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls));
}
