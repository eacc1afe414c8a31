/*-------------------------------------------------------------------------
 *
 * event_value.c
 *	  Decoding the values of a webhook's JSON.
 *
 * PostgreSQL's input functions raise errors (before 16), and accept more forms
 * than a webhook may use.  So the form is checked here first; what takes more
 * than reading digits is left to PostgreSQL.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "event_value.h"
#include "hex.h"

#define UUID_TEXT_LEN 36
#define DIGITS "0123456789"

static bool UnescapeJson(const char *from, const char *end, char **to);
static bool ReadHex4(const char *s, pg_wchar *unit);
static bool DecodeUuidDigits(const char *s, pg_uuid_t *uuid);
static bool ReadUtcSeconds(const char *s, size_t len, TimestampTz *timestamp);
static bool ReadTwoDigits(const char *s, int *value);
static int ReadIsoDateTime(const char *s, size_t len, TimestampTz *timestamp);
static char *FindZone(char *s);

bool
SetTypeError(GigError *error, const char *path, const char *expected,
			 JsonTokenType got)
{
	static const char *const values[JSON_TOKEN_END + 1] = {
		[JSON_TOKEN_STRING] = "a string",
		[JSON_TOKEN_NUMBER] = "a number",
		[JSON_TOKEN_OBJECT_START] = "an object",
		[JSON_TOKEN_ARRAY_START] = "an array",
		[JSON_TOKEN_TRUE] = "a boolean",
		[JSON_TOKEN_FALSE] = "a boolean",
		[JSON_TOKEN_NULL] = "null",
	};

	if (values[got] == NULL)
		SetGigError(error, ERRCODE_INVALID_PARAMETER_VALUE,
					"missing key \"%s\"", path);
	else
		SetGigError(error, ERRCODE_INVALID_PARAMETER_VALUE,
					"invalid value for key \"%s\": expected %s, got %s", path,
					expected, values[got]);
	return false;
}

/*
 * Decodes a string, with escapes resolved.  The result is not terminated, and
 * points into the body if it has no escapes.
 */
bool
DecodeJsonString(const JsonValue *value, const char *path, const char **s,
				 size_t *len, GigError *error)
{
	const char *first;
	const char *end;
	char *unescaped;
	char *unescaped_end;

	if (value->type != JSON_TOKEN_STRING)
		return SetTypeError(error, path, "a string", value->type);

	first = value->start + 1;
	end = value->start + value->len - 1;
	*s = first;
	*len = end - first;
	if (memchr(first, '\\', end - first) == NULL)
		return true;

	/* no escape sequence is shorter than what it stands for */
	unescaped = palloc(end - first);
	unescaped_end = unescaped;
	if (!UnescapeJson(first, end, &unescaped_end))
		return SetGigError(error, ERRCODE_UNTRANSLATABLE_CHARACTER,
						   "invalid value for key \"%s\": unsupported Unicode escape sequence",
						   path);
	*s = unescaped;
	*len = unescaped_end - unescaped;
	return true;
}

/*
 * Resolves escapes that the lexer has found well-formed, and advances "to".
 * Returns false for \u0000 and for unpaired surrogates.
 *
 * The lexer could resolve escapes itself, but would fail for these even in
 * values that are not read, and copy every string.
 */
static bool
UnescapeJson(const char *from, const char *end, char **to)
{
	static const char escapes[] = "\"\\/bfnrt";
	static const char meanings[] = "\"\\/\b\f\n\r\t";

	while (from < end)
	{
		pg_wchar c;

		if (*from != '\\')
		{
			*(*to)++ = *from++;
			continue;
		}
		from++;
		if (*from != 'u')
		{
			const char *escape = strchr(escapes, *from++);

			*(*to)++ = meanings[escape - escapes];
			continue;
		}
		if (!ReadHex4(from + 1, &c))
			return false;
		from += 5;
		if (is_utf16_surrogate_first(c))
		{
			pg_wchar second;

			if (end - from < 6 || from[0] != '\\' || from[1] != 'u' ||
				!ReadHex4(from + 2, &second) ||
				!is_utf16_surrogate_second(second))
				return false;
			c = surrogate_pair_to_codepoint(c, second);
			from += 6;
		}
		else if (c == 0 || is_utf16_surrogate_second(c))
			return false;
		unicode_to_utf8(c, (unsigned char *) *to);
		*to += pg_utf_mblen((unsigned char *) *to);
	}
	return true;
}

static bool
ReadHex4(const char *s, pg_wchar *unit)
{
	unsigned char bytes[2];

	if (!DecodeHex(s, bytes, sizeof(bytes)))
		return false;
	*unit = (pg_wchar) (bytes[0] << 8 | bytes[1]);
	return true;
}

/*
 * Decodes a UUID in the form of RFC 9562.
 */
bool
DecodeUuid(const JsonValue *value, const char *path, pg_uuid_t *uuid,
		   GigError *error)
{
	const char *s;
	size_t len;

	if (!DecodeJsonString(value, path, &s, &len, error))
		return false;
	if (len != UUID_TEXT_LEN || s[8] != '-' || s[13] != '-' || s[18] != '-' ||
		s[23] != '-' || !DecodeUuidDigits(s, uuid))
		return error != NULL &&
			   SetGigError(error, ERRCODE_INVALID_TEXT_REPRESENTATION,
						   "invalid value for key \"%s\": invalid UUID \"%s\"",
						   path, QuotableInput(s, len));
	return true;
}

static bool
DecodeUuidDigits(const char *s, pg_uuid_t *uuid)
{
	char digits[2 * UUID_LEN];

	memcpy(digits, s, 8);
	memcpy(digits + 8, s + 9, 4);
	memcpy(digits + 12, s + 14, 4);
	memcpy(digits + 16, s + 19, 4);
	memcpy(digits + 20, s + 24, 12);
	return DecodeHex(digits, uuid->data, UUID_LEN);
}

/*
 * Decodes an integer that is not negative.
 */
bool
DecodeCount(const JsonValue *value, const char *path, int32 *count,
			GigError *error)
{
	const char *s = value->start;
	size_t len = value->len;
	size_t negative; /* whether, and so how long the sign is */
	int64 result = 0;

	if (value->type != JSON_TOKEN_NUMBER)
		return SetTypeError(error, path, "an integer", value->type);

	negative = (*s == '-');
	for (size_t i = negative; i < len; i++)
	{
		if (s[i] < '0' || s[i] > '9')
			return SetGigError(error, ERRCODE_INVALID_TEXT_REPRESENTATION,
							   "invalid value for key \"%s\": expected an integer, got \"%s\"",
							   path, QuotableInput(s, len));
		if (result <= PG_INT32_MAX)
			result = result * 10 + (s[i] - '0');
	}
	if ((negative && result != 0) || result > PG_INT32_MAX)
		return SetGigError(error, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
						   "invalid value for key \"%s\": \"%s\" is out of range",
						   path, QuotableInput(s, len));
	*count = (int32) result;
	return true;
}

/*
 * Decodes an ISO 8601 date-time; without a zone it is in UTC.
 */
bool
DecodeTimestamp(const JsonValue *value, const char *path,
				TimestampTz *timestamp, GigError *error)
{
	const char *s;
	size_t len;

	if (!DecodeJsonString(value, path, &s, &len, error))
		return false;
	if (ReadUtcSeconds(s, len, timestamp))
		return true;
	switch (ReadIsoDateTime(s, len, timestamp))
	{
		case 0:
			return true;
		case DTERR_FIELD_OVERFLOW:
		case DTERR_MD_FIELD_OVERFLOW:
		case DTERR_TZDISP_OVERFLOW:
			return SetGigError(error, ERRCODE_DATETIME_FIELD_OVERFLOW,
							   "invalid value for key \"%s\": date-time \"%s\" is out of range",
							   path, QuotableInput(s, len));
		default:
			return SetGigError(error, ERRCODE_INVALID_DATETIME_FORMAT,
							   "invalid value for key \"%s\": invalid date-time \"%s\"",
							   path, QuotableInput(s, len));
	}
}

/*
 * Reads a date-time of the form that Argyle documents, "2023-03-03T00:00:00Z".
 * Other forms are left to PostgreSQL, which takes ten times as long.
 */
static bool
ReadUtcSeconds(const char *s, size_t len, TimestampTz *timestamp)
{
	struct pg_tm tm = {0};
	int century;
	int zone = 0;

	if (len != strlen("YYYY-MM-DDTHH:MM:SSZ") || s[4] != '-' || s[7] != '-' ||
		s[10] != 'T' || s[13] != ':' || s[16] != ':' || s[19] != 'Z' ||
		!ReadTwoDigits(s, &century) || !ReadTwoDigits(s + 2, &tm.tm_year) ||
		!ReadTwoDigits(s + 5, &tm.tm_mon) || !ReadTwoDigits(s + 8, &tm.tm_mday) ||
		!ReadTwoDigits(s + 11, &tm.tm_hour) ||
		!ReadTwoDigits(s + 14, &tm.tm_min) || !ReadTwoDigits(s + 17, &tm.tm_sec))
		return false;
	tm.tm_year += century * 100;
	return tm.tm_year >= 1 && tm.tm_mon >= 1 && tm.tm_mon <= MONTHS_PER_YEAR &&
		   tm.tm_mday >= 1 &&
		   tm.tm_mday <= day_tab[isleap(tm.tm_year)][tm.tm_mon - 1] &&
		   tm.tm_hour < HOURS_PER_DAY && tm.tm_min < MINS_PER_HOUR &&
		   tm.tm_sec < SECS_PER_MINUTE &&
		   tm2timestamp(&tm, 0, &zone, timestamp) == 0;
}

static bool
ReadTwoDigits(const char *s, int *value)
{
	*value = (s[0] - '0') * 10 + (s[1] - '0');
	return s[0] >= '0' && s[0] <= '9' && s[1] >= '0' && s[1] <= '9';
}

/*
 * Reads an ISO 8601 date-time with PostgreSQL's rules.  Returns 0 or a DTERR
 * code.
 */
static int
ReadIsoDateTime(const char *s, size_t len, TimestampTz *timestamp)
{
	char input[MAXDATELEN + sizeof("+00")] = {0};
	char fields_buffer[sizeof(input) + MAXDATEFIELDS];
	char *fields[MAXDATEFIELDS];
	int types[MAXDATEFIELDS];
	int nfields;
	int dtype;
	struct pg_tm tm;
	fsec_t fsec;
	int offset;
	char *zone;
	int dterr;

	if (len > MAXDATELEN)
		return DTERR_BAD_FORMAT;
	memcpy(input, s, len);
	zone = FindZone(input);
	if (zone == NULL)
		return DTERR_BAD_FORMAT;
	/* "Z" means what timezone_abbreviations says, and nothing the session's zone */
	if (*zone != '+' && *zone != '-')
		memcpy(zone, "+00", sizeof("+00"));

	dterr = ParseDateTime(input, fields_buffer, sizeof(fields_buffer), fields,
						  types, MAXDATEFIELDS, &nfields);
	if (dterr == 0)
		dterr = DecodeDateTimeFields(fields, types, nfields, &dtype, &tm, &fsec,
									 &offset);
	if (dterr != 0)
		return dterr;
	if (dtype != DTK_DATE)
		return DTERR_BAD_FORMAT;
	return tm2timestamp(&tm, fsec, &offset, timestamp) == 0
			   ? 0
			   : DTERR_FIELD_OVERFLOW;
}

/*
 * Finds the zone of a string that has the form of an ISO 8601 date-time: "Z", an
 * offset or nothing.  Returns NULL if the string has another form.
 *
 * PostgreSQL accepts more: "now", "infinity", names of months and zones, dates
 * that depend on DateStyle.  The form of the time is left to PostgreSQL, because
 * Argyle's own reference has "2023-01-02T0:000:00Z".
 */
static char *
FindZone(char *s)
{
	char *zone;
	char *end;

	if (strspn(s, DIGITS) != 4 || s[4] != '-' || strspn(s + 5, DIGITS) != 2 ||
		s[7] != '-' || strspn(s + 8, DIGITS) != 2 ||
		(s[10] != 'T' && s[10] != 't' && s[10] != ' ') || s[11] == ':' ||
		s[11 + strspn(s + 11, DIGITS)] != ':')
		return NULL;

	zone = s + 11 + strspn(s + 11, DIGITS ":.");
	if (zone[-1] == ':' || zone[-1] == '.')
		return NULL;
	end = zone;
	if (*zone == 'Z' || *zone == 'z')
		end++;
	else if (*zone == '+' || *zone == '-')
	{
		if (strspn(zone + 1, DIGITS) < 2)
			return NULL;
		end += 3;
		if (*end == '\0')
			return zone;
		end += *end == ':';
		if (strspn(end, DIGITS) != 2)
			return NULL;
		end += 2;
	}
	return *end == '\0' ? zone : NULL;
}
