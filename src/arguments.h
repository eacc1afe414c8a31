/*-------------------------------------------------------------------------
 *
 * arguments.h
 *	  How SQL functions take webhook bodies and secrets.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ARGUMENTS_H
#define GIGS_WEBHOOKS_ARGUMENTS_H

#include "fmgr.h"
#include "mb/pg_wchar.h"

/*
 * A string's UTF-8 bytes.  Where the database knows no encoding they are what
 * they are: a secret need not be characters, and must not be shown by an error
 * that says so.
 */
static inline char *
ServerToUtf8(char *s, int len)
{
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return s;
	return pg_server_to_any(s, len, PG_UTF8);
}

/* The UTF-8 bytes of text: what is signed, whatever the database's encoding. */
static inline bytea *
TextToUtf8(text *t)
{
	int len = (int) VARSIZE_ANY_EXHDR(t);
	char *utf8 = ServerToUtf8(VARDATA_ANY(t), len);
	bytea *result;

	if (utf8 == VARDATA_ANY(t))
		return (bytea *) t;
	len = (int) strlen(utf8);
	result = palloc(VARHDRSZ + len);
	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), utf8, len);
	pfree(utf8);
	return result;
}

static inline bytea *
Utf8Argument(FunctionCallInfo fcinfo, int argno)
{
	return TextToUtf8(PG_GETARG_TEXT_PP(argno));
}

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
CallWithTextBody(PGFunction function, FunctionCallInfo fcinfo)
{
	LOCAL_FCINFO(copy, FUNC_MAX_ARGS);
	Datum result;

	memcpy(copy, fcinfo, SizeForFunctionCallInfo(fcinfo->nargs));
	if (!PG_ARGISNULL(0))
		copy->args[0].value = PointerGetDatum(Utf8Argument(fcinfo, 0));
	result = function(copy);
	fcinfo->isnull = copy->isnull;
	return result;
}

/* The same function for people at a psql prompt, who have the body as text. */
#define TEXT_BODY_OVERLOAD(name)               \
	PG_FUNCTION_INFO_V1(name##_text);          \
	Datum name##_text(PG_FUNCTION_ARGS)        \
	{                                          \
		return CallWithTextBody(name, fcinfo); \
	}

#endif /* GIGS_WEBHOOKS_ARGUMENTS_H */
