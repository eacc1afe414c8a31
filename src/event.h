/*-------------------------------------------------------------------------
 *
 * event.h
 *	  A gigs webhook as a C struct, and the table of its fields.
 *
 * This file knows the fields of the five events and how their JSON is parsed.
 * It knows nothing of tables, secrets or SQL functions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_EVENT_H
#define GIGS_WEBHOOKS_EVENT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "error.h"

/* In the order of the labels of the SQL type gig_event_kind. */
typedef enum GigEventKind
{
	GIGS_ADDED,
	GIGS_UPDATED,
	GIGS_REMOVED,
	GIGS_PARTIALLY_SYNCED,
	GIGS_FULLY_SYNCED
} GigEventKind;

#define GIG_EVENT_KINDS (GIGS_FULLY_SYNCED + 1)
#define GIG_EVENT_BIT(kind) (1 << (kind))

typedef enum GigFieldType
{
	GIG_UUID,
	GIG_UUID_ARRAY,
	GIG_TIMESTAMP,
	GIG_COUNT /* an integer that is not negative */
} GigFieldType;

typedef struct GigUuidArray
{
	int length;
	pg_uuid_t *elements;
} GigUuidArray;

/*
 * One webhook.  The members from account_id on are described by
 * gig_event_fields; those that may be null have a flag in "present".
 */
typedef struct GigEvent
{
	GigEventKind kind;
	uint32 present;	  /* bit n: gig_event_fields[n] has a value */
	const char *name; /* of the subscription, in UTF-8 */
	pg_uuid_t account_id;
	pg_uuid_t user_id;
	TimestampTz available_from;
	TimestampTz available_to;
	int32 available_count;
	int32 changed_count;
	GigUuidArray changed_gigs;
	TimestampTz changed_from;
	TimestampTz changed_to;
	int32 days_synced;
} GigEvent;

/*
 * The columns of gig_event are event, name, and the members of GigEvent.  An
 * event's own composite type has its name, and its fields in the order of the
 * table.
 */
typedef struct GigEventField
{
	const char *key; /* in the JSON object "data" */
	size_t key_len;
	const char *path; /* of the key in the body */
	int column;		  /* of gig_event, counted from 0 */
	GigFieldType type;
	int kinds;	   /* GIG_EVENT_BIT() of each event that has the field */
	bool required; /* neither absent nor null */
	size_t offset; /* of the member of GigEvent */
} GigEventField;

#define GIG_EVENT_FIELDS 17

extern const char *const gig_event_names[GIG_EVENT_KINDS];
extern const GigEventField gig_event_fields[GIG_EVENT_FIELDS];

static inline bool
GigEventHas(const GigEvent *event, int field)
{
	return (event->present & (UINT32_C(1) << field)) != 0;
}

static inline void *
GigEventMember(const GigEvent *event, int field)
{
	return (char *) event + gig_event_fields[field].offset;
}

/* The order of the SQL type uuid. */
static inline int
CompareUuids(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a->data, b->data, UUID_LEN);
}

/* Indexes in gig_event_fields of the fields of every event that may be null. */
#define GIG_FIELD_AVAILABLE_FROM 2
#define GIG_FIELD_AVAILABLE_TO 3

extern bool FindGigEventKind(const char *name, size_t len, GigEventKind *kind);
extern int FindGigEventField(const char *key, size_t len);
extern int64 DigestGigEvent(const GigEvent *event);

/*
 * event_json.c
 *
 * A webhook is parsed in two steps: the subscription's name is needed to verify
 * the signature, and values are only checked once the signature is valid.
 */
typedef struct GigDocument GigDocument;

extern GigDocument *ReadGigDocument(const char *body, size_t len,
									GigError *error);
extern const char *GigDocumentName(const GigDocument *document);
extern bool GigDocumentIsForeign(const GigDocument *document);
extern bool ReadGigEvent(const GigDocument *document, GigEvent *event,
						 GigError *error);

#endif /* GIGS_WEBHOOKS_EVENT_H */
