/*-------------------------------------------------------------------------
 *
 * event_value.h
 *	  Tokens of a webhook's JSON, and what they mean.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_EVENT_VALUE_H
#define GIGS_WEBHOOKS_EVENT_VALUE_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "error.h"

/*
 * A value as the lexer met it: the token, quotes and escapes included.  Of an
 * object or an array only the opening bracket is kept.
 */
typedef struct JsonValue
{
	JsonTokenType type; /* JSON_TOKEN_INVALID: the key is absent */
	const char *start;
	size_t len;
} JsonValue;

/*
 * Each takes a value and the path of its key, and gives what it means or says
 * why it means nothing.  The first two are asked for values by the thousand,
 * before a signature is checked: without an error they fail without a word,
 * which costs no memory.
 */
extern bool DecodeJsonString(const JsonValue *value, const char *path,
							 const char **s, size_t *len, GigError *error);
extern bool DecodeUuid(const JsonValue *value, const char *path,
					   pg_uuid_t *uuid, GigError *error);
extern bool DecodeTimestamp(const JsonValue *value, const char *path,
							TimestampTz *timestamp, GigError *error);
extern bool DecodeCount(const JsonValue *value, const char *path, int32 *count,
						GigError *error);
extern bool SetTypeError(GigError *error, const char *path,
						 const char *expected, JsonTokenType got);

#endif /* GIGS_WEBHOOKS_EVENT_VALUE_H */
