/*-------------------------------------------------------------------------
 *
 * event_value.h
 *	  Decoding the values of a webhook's JSON.
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
 * A value's token, including quotes and escapes.  For an object or array it is
 * the opening bracket.
 */
typedef struct JsonValue
{
	JsonTokenType type; /* JSON_TOKEN_INVALID: the key is absent */
	const char *start;
	size_t len;
} JsonValue;

/*
 * Each decodes a value, or returns false and fills the error with the path of
 * its key.  The first two accept a NULL error and then allocate no message: they
 * are called for thousands of values before the signature is verified.
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
