/*-------------------------------------------------------------------------
 *
 * error.c
 *	  Why an event is refused, as data.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "error.h"

/* What is quoted of the input; enough to recognise it, too little to flood. */
#define MAX_QUOTED_BYTES 80

/*
 * The second byte of U+0080 to U+009F, which are control characters as well;
 * there are terminals that obey U+009B as they do an escape sequence.
 */
#define IS_C1(c) ((unsigned char) (c) >= 0x80 && (unsigned char) (c) <= 0x9f)

/*
 * Fills an error with a message in the caller's memory context, unless nobody
 * wants to know.
 */
bool
SetGigError(GigError *error, int sqlerrcode, const char *fmt, ...)
{
	StringInfoData message;

	if (error == NULL)
		return false;
	initStringInfo(&message);
	for (;;)
	{
		va_list args;
		int needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&message, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&message, needed);
	}

	error->sqlerrcode = sqlerrcode;
	error->message = message.data;
	error->log_detail = NULL;
	return false;
}

/*
 * Raises the error.
 */
void
ThrowGigError(const GigError *error)
{
	ereport(ERROR,
			(errcode(error->sqlerrcode), errmsg_internal("%s", error->message),
			 error->log_detail ? errdetail_log("%s", error->log_detail) : 0));
	pg_unreachable();
}

/*
 * Returns input as a message may quote it: bounded, without control
 * characters, and valid in the server's encoding.
 *
 * The input is what a stranger sent, in UTF-8 or in nothing at all, while the
 * message may end up in a log, in a table and in a dump of it.
 */
char *
QuotableInput(const char *s, size_t len)
{
	int encoding = GetDatabaseEncoding();
	int shown = (int) Min(len, MAX_QUOTED_BYTES);
	StringInfoData quotable;

	if (len > MAX_QUOTED_BYTES)
		shown = pg_encoding_mbcliplen(PG_UTF8, s, shown, shown);

	initStringInfo(&quotable);
	for (int i = 0; i < shown; i++)
	{
		unsigned char c = (unsigned char) s[i];

		if (c == 0xc2 && i + 1 < shown && IS_C1(s[i + 1]))
		{
			c = '?';
			i++;
		}
		else if (c < ' ' || c == 0x7f || (c > 0x7f && encoding != PG_UTF8))
			c = '?';
		appendStringInfoCharMacro(&quotable, c);
	}
	if (encoding == PG_UTF8 &&
		!pg_verify_mbstr(PG_UTF8, quotable.data, quotable.len, true))
	{
		for (int i = 0; i < quotable.len; i++)
		{
			if (IS_HIGHBIT_SET(quotable.data[i]))
				quotable.data[i] = '?';
		}
	}
	if ((size_t) shown < len)
		appendStringInfoString(&quotable, "...");
	return quotable.data;
}
