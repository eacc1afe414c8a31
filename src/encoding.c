/*-------------------------------------------------------------------------
 *
 * encoding.c
 *	  Text of the database's encoding as UTF-8, which webhooks are in.
 *
 * PostgreSQL's own conversion raises what has no form in UTF-8, and shows it.
 * But a row of an inbox is to be kept, and a secret not to be shown.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "compat.h"
#include "encoding.h"
#include "settings.h"

/* More could be more than a value may hold, once it has been converted. */
#define MAX_CONVERTED_BYTES ((int) (MaxAllocSize / MAX_CONVERSION_GROWTH))

static bool IsUtf8Already(void);
static char *Convert(const char *s, int len, int *converted);

/*
 * Where the database knows no encoding, bytes are what they are: a secret need
 * not be characters.
 */
static bool
IsUtf8Already(void)
{
	return GetDatabaseEncoding() == PG_UTF8 ||
		   GetDatabaseEncoding() == PG_SQL_ASCII;
}

/*
 * Converts as much of a string as can be; "converted" is how many of its bytes
 * that are.
 */
static char *
Convert(const char *s, int len, int *converted)
{
	int encoding = GetDatabaseEncoding();
	Oid conversion = FindDefaultConversionProc(encoding, PG_UTF8);

	if (!OidIsValid(conversion))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("default conversion function for encoding \"%s\" to \"%s\" does not exist",
						pg_encoding_to_char(encoding),
						pg_encoding_to_char(PG_UTF8))));
	if (len > MAX_CONVERTED_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("text of %d bytes is too long to be converted to UTF-8",
						len)));
	return ConvertPrefix(conversion, encoding, PG_UTF8, s, len, converted);
}

char *
ServerToUtf8(char *s, int len)
{
	int converted;
	char *utf8;

	if (IsUtf8Already())
		return s;
	utf8 = Convert(s, len, &converted);
	if (converted == len)
		return utf8;
	explicit_bzero(utf8, strlen(utf8));
	pfree(utf8);
	return NULL;
}

bytea *
TextToUtf8(text *t, const char *what)
{
	int len = (int) VARSIZE_ANY_EXHDR(t);
	int converted;
	char *utf8;

	if (IsUtf8Already())
		return (bytea *) t;
	utf8 = Convert(VARDATA_ANY(t), len, &converted);
	if (converted < len)
		ereport(ERROR, (errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
						errmsg("%s has no form in UTF-8 from byte %d on", what,
							   converted)));
	return (bytea *) cstring_to_text(utf8);
}

/*
 * What can't be converted ends with the first byte that can't.  No character of
 * UTF-8 ends so, and so whoever reads the body finds it there.
 *
 * A body that will be too large, as no encoding's characters are twice as long
 * as in UTF-8, is left as it is, to be refused for that.
 */
bytea *
TextToBody(text *t)
{
	Size size = toast_raw_datum_size(PointerGetDatum(t)) - VARHDRSZ;
	text *fetched;
	const char *s;
	int converted;
	char *utf8;
	size_t utf8_len;
	bytea *body;

	if (IsUtf8Already() || size / 2 > (Size) gig_max_body_size ||
		size > MAX_CONVERTED_BYTES)
		return (bytea *) t;
	fetched = DatumGetTextPP(PointerGetDatum(t));
	s = VARDATA_ANY(fetched);
	utf8 = Convert(s, (int) size, &converted);
	utf8_len = strlen(utf8);
	body = palloc(VARHDRSZ + utf8_len + 1);
	memcpy(VARDATA(body), utf8, utf8_len);
	if (converted < (int) size)
		VARDATA(body)[utf8_len++] = s[converted];
	SET_VARSIZE(body, VARHDRSZ + utf8_len);

	/* it is four times as large as the text */
	pfree(utf8);
	if (fetched != t)
		pfree(fetched);
	return body;
}
