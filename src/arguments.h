/*-------------------------------------------------------------------------
 *
 * arguments.h
 *	  How SQL functions take webhook bodies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ARGUMENTS_H
#define GIGS_WEBHOOKS_ARGUMENTS_H

#include "fmgr.h"

/* A body that may be null. */
static inline bytea *
BodyArgument(FunctionCallInfo fcinfo, int argno)
{
	return PG_ARGISNULL(argno) ? NULL : PG_GETARG_BYTEA_PP(argno);
}

/*
 * Calls a function that takes the body as bytea with one that is text.
 *
 * The arguments are copied because they are the executor's: it fills in
 * constants once, for all rows.
 */
static inline Datum
CallWithTextBody(PGFunction function, bytea *(*convert)(text *),
				 FunctionCallInfo fcinfo)
{
	LOCAL_FCINFO(copy, FUNC_MAX_ARGS);
	Datum result;

	memcpy(copy, fcinfo, SizeForFunctionCallInfo(fcinfo->nargs));
	if (!PG_ARGISNULL(0))
		copy->args[0].value = PointerGetDatum(convert(PG_GETARG_TEXT_PP(0)));
	result = function(copy);
	fcinfo->isnull = copy->isnull;
	return result;
}

/* The same function for people at a psql prompt, who have the body as text. */
#define TEXT_BODY_OVERLOAD(name, convert)               \
	PG_FUNCTION_INFO_V1(name##_text);                   \
	Datum name##_text(PG_FUNCTION_ARGS)                 \
	{                                                   \
		return CallWithTextBody(name, convert, fcinfo); \
	}

#endif /* GIGS_WEBHOOKS_ARGUMENTS_H */
