/*-------------------------------------------------------------------------
 *
 * error.c
 *	  Errors of webhooks, as data.
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
 * The second byte of U+0080 to U+009F, which are control characters: some
 * terminals interpret U+009B like an escape sequence.
 */
#define IS_C1(c) ((unsigned char) (c) >= 0x80 && (unsigned char) (c) <= 0x9f)

/*
 * Fills an error, unless it is NULL, with a message in the current memory
 * context.  Returns false.
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
 * Raises an error.
 */
void
ThrowGigError(const GigError *error)
{
	ereport(ERROR,
			(errcode(error->sqlerrcode), errmsg_internal("%s", error->message),
			 error->log_detail ? errdetail_log("%s", error->log_detail) : 0));
}

/*
 * Returns untrusted input in a form that a message can quote: truncated,
 * without control characters, and valid UTF-8.
 */
char *
QuotableInput(const char *s, size_t len)
{
	int shown = (int) Min(len, MAX_QUOTED_BYTES);
	StringInfoData quotable;
	bool is_valid;

	if (len > MAX_QUOTED_BYTES)
		shown = pg_encoding_mbcliplen(PG_UTF8, s, shown, shown);
	is_valid = pg_verify_mbstr(PG_UTF8, s, shown, true);

	initStringInfo(&quotable);
	for (int i = 0; i < shown; i++)
	{
		unsigned char c = (unsigned char) s[i];

		if (is_valid && c == 0xc2 && IS_C1(s[i + 1]))
		{
			c = '?';
			i++;
		}
		else if (c < ' ' || c == 0x7f || (!is_valid && IS_HIGHBIT_SET(c)))
			c = '?';
		appendStringInfoCharMacro(&quotable, c);
	}
	if ((size_t) shown < len)
		appendStringInfoString(&quotable, "...");
	return quotable.data;
}
