/*-------------------------------------------------------------------------
 *
 * report.c
 *	  Events counted by time.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "plan.h"
#include "result_set.h"

#define COLUMNS 4

static int64 BucketLength(FunctionCallInfo fcinfo, int argno);

/*
 * gig_event_counts(bucket interval, "from" timestamptz, "to" timestamptz)
 *		returns setof (bucket_start timestamptz, event gig_event_kind,
 *		events bigint, gigs bigint)
 *
 * Buckets begin at multiples of their length since 1970, in UTC.
 */
PG_FUNCTION_INFO_V1(gig_event_counts);
Datum
gig_event_counts(PG_FUNCTION_ARGS)
{
	const GigSchema *schema = GetGigSchema(fcinfo);
	int64 length = BucketLength(fcinfo, 0);
	Arguments arguments = {.n = 0};
	TupleDesc tupdesc;
	Tuplestorestate *rows = BeginResultSet(fcinfo, &tupdesc);
	const Oid types[COLUMNS] = {TIMESTAMPTZOID, schema->event_kind_type,
								INT8OID, INT8OID};
	Caller caller;
	uint64 n;

	/* they stay whose they are now */
	LockGigTables(schema, AccessShareLock);
	ConnectAsOwner(schema, &caller);

	AddTypedArgument(&arguments, INT8OID, Int64GetDatum(length), false);
	AddTypedArgument(&arguments, TIMESTAMPTZOID, PG_GETARG_DATUM(1),
					 PG_ARGISNULL(1));
	AddTypedArgument(&arguments, TIMESTAMPTZOID, PG_GETARG_DATUM(2),
					 PG_ARGISNULL(2));
	n = RunStatement(schema,
					 "SELECT CASE WHEN isfinite(t.received_at)"
					 " THEN t.received_at - t.since * interval '1 microsecond'"
					 " ELSE t.received_at END,"
					 " t.event, count(*),"
					 " coalesce(sum((%1$s.parse_logged_gig_event(t.body::bytea)).changed_count), 0)::bigint"
					 " FROM (SELECT l.received_at, l.event, l.body,"
					 " mod(mod(m.moment, $1) + $1, $1)::bigint AS since"
					 " FROM %1$s.gig_event_log AS l,"
					 " LATERAL (SELECT CASE WHEN isfinite(l.received_at) THEN"
					 " EXTRACT(epoch FROM date_trunc('second', l.received_at))::numeric * 1000000"
					 " + mod(EXTRACT(microseconds FROM l.received_at)::bigint, 1000000)"
					 " END) AS m (moment)"
					 " WHERE l.received_at >= $2 AND l.received_at < $3) AS t"
					 " GROUP BY 1, 2 ORDER BY 1, 2",
					 &arguments, true, SPI_OK_SELECT);
	for (uint64 i = 0; i < n; i++)
	{
		Datum values[COLUMNS];
		bool nulls[COLUMNS];

		CHECK_FOR_INTERRUPTS();
		for (int column = 0; column < COLUMNS; column++)
			values[column] =
				GetResult(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
						  column + 1, types[column], &nulls[column]);
		tuplestore_putvalues(rows, tupdesc, values, nulls);
	}
	DisconnectAsCaller(&caller);
	return (Datum) 0;
}

/*
 * In microseconds.
 */
static int64
BucketLength(FunctionCallInfo fcinfo, int argno)
{
	const Interval zero = {0};
	const Interval *bucket;
	int64 length;

	if (PG_ARGISNULL(argno) ||
		DatumGetBool(DirectFunctionCall2(interval_le, PG_GETARG_DATUM(argno),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("bucket must be greater than zero")));
	bucket = PG_GETARG_INTERVAL_P(argno);
	if (bucket->month != 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("buckets of months or years are not supported")));
	if (pg_mul_s64_overflow(bucket->day, USECS_PER_DAY, &length) ||
		pg_add_s64_overflow(length, bucket->time, &length) ||
		length > PG_INT64_MAX / 2)
		ereport(ERROR, (errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
						errmsg("bucket is too large")));
	return length;
}
