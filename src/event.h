/*-------------------------------------------------------------------------
 *
 * event.h
 *	  A gigs event as a C struct, and the table of its fields.
 *
 * This file knows the fields of the five webhooks and of Argyle's account
 * objects, and how their JSON is parsed.  It knows nothing of tables, secrets or
 * SQL functions.
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
	GIGS_FULLY_SYNCED,
	GIGS_RECONCILED /* no webhook: an account object of Argyle's API */
} GigEventKind;

#define GIG_WEBHOOK_KINDS (GIGS_FULLY_SYNCED + 1)
#define GIG_EVENT_KINDS (GIGS_RECONCILED + 1)
#define GIG_EVENT_BIT(kind) (1 << (kind))

typedef enum GigFieldType
{
	GIG_UUID,
	GIG_UUID_ARRAY,
	GIG_TIMESTAMP,
	GIG_COUNT, /* an integer that is not negative */
	GIG_STATUS /* a string; true if it is "synced" */
} GigFieldType;

/* The object that has a key. */
typedef enum GigFieldScope
{
	GIG_IN_DATA,	/* "data" of a webhook */
	GIG_IN_ACCOUNT, /* an account object */
	GIG_IN_GIGS		/* "availability.gigs" of an account object */
} GigFieldScope;

typedef struct GigUuidArray
{
	int length;
	pg_uuid_t *elements;
} GigUuidArray;

/*
 * One webhook or account object.  The members from account_id on are described by
 * gig_event_fields; those that may be null have a flag in "present".
 */
typedef struct GigEvent
{
	GigEventKind kind;
	uint32 present;	  /* bit n: gig_event_fields[n] has a value */
	const char *name; /* of the subscription, in UTF-8; empty if reconciled */
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
	bool is_synced;
	TimestampTz updated_at;
} GigEvent;

/*
 * The columns of gig_event are event, name, and the members of GigEvent.  An
 * event's own composite type has its name, and its fields in the order of the
 * table.
 */
typedef struct GigEventField
{
	GigFieldScope scope;
	const char *key;
	size_t key_len;
	const char *path; /* of the key in the body */
	int column;		  /* of gig_event, counted from 0; -1: none */
	GigFieldType type;
	int kinds;	   /* GIG_EVENT_BIT() of each event that has the field */
	bool required; /* neither absent nor null */
	size_t offset; /* of the member of GigEvent */
} GigEventField;

#define GIG_WEBHOOK_FIELDS 17 /* come first */
#define GIG_EVENT_FIELDS 24

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

/* Indexes in gig_event_fields: of every webhook, and of account objects. */
#define GIG_FIELD_AVAILABLE_FROM 2
#define GIG_FIELD_AVAILABLE_TO 3
#define GIG_FIELD_GIGS_AVAILABLE_FROM 19
#define GIG_FIELD_GIGS_AVAILABLE_TO 20

extern bool FindGigEventKind(const char *name, size_t len, GigEventKind *kind);
extern int FindGigEventField(GigFieldScope scope, const char *key, size_t len);
extern int64 DigestGigEvent(const GigEvent *event);

/*
 * event_json.c
 *
 * A webhook is parsed in two steps: the subscription's name is needed to verify
 * the signature, and values are only checked once the signature is valid.  The
 * caller says whether a body is a webhook or an account object.
 */
typedef struct GigDocument GigDocument;

extern GigDocument *ReadGigDocument(const char *body, size_t len,
									bool is_account, GigError *error);
extern const char *GigDocumentName(const GigDocument *document);
extern bool GigDocumentIsForeign(const GigDocument *document);
extern bool GigDocumentLacksGigs(const GigDocument *document);
extern bool ReadGigEvent(const GigDocument *document, GigEvent *event,
						 GigError *error);

#endif /* GIGS_WEBHOOKS_EVENT_H */
