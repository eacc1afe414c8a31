/*-------------------------------------------------------------------------
 *
 * event.c
 *	  The table that describes the fields of every event.
 *
 * It drives the JSON parser, the composite types, the checks and the digest:
 * to add a field, add a line (and a member of GigEvent).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "event.h"
#include "signature.h"

#define ADDED GIG_EVENT_BIT(GIGS_ADDED)
#define UPDATED GIG_EVENT_BIT(GIGS_UPDATED)
#define REMOVED GIG_EVENT_BIT(GIGS_REMOVED)
#define PARTIALLY GIG_EVENT_BIT(GIGS_PARTIALLY_SYNCED)
#define WEBHOOKS \
	(ADDED | UPDATED | REMOVED | PARTIALLY | GIG_EVENT_BIT(GIGS_FULLY_SYNCED))
#define RECONCILED GIG_EVENT_BIT(GIGS_RECONCILED)

#define KEY(name) GIG_IN_DATA, name, sizeof(name) - 1, "data." name
#define ACCOUNT_KEY(name) GIG_IN_ACCOUNT, name, sizeof(name) - 1, name
#define GIGS_KEY(name) \
	GIG_IN_GIGS, name, sizeof(name) - 1, "availability.gigs." name
#define MEMBER(name) offsetof(GigEvent, name)

/* Of a field's encoding, with its flag, without the elements of an array. */
#define MAX_FIELD_LEN (1 + sizeof(pg_uuid_t))

const char *const gig_event_names[GIG_EVENT_KINDS] = {
	[GIGS_ADDED] = "gigs.added",
	[GIGS_UPDATED] = "gigs.updated",
	[GIGS_REMOVED] = "gigs.removed",
	[GIGS_PARTIALLY_SYNCED] = "gigs.partially_synced",
	[GIGS_FULLY_SYNCED] = "gigs.fully_synced",
	[GIGS_RECONCILED] = "reconciled",
};

/* clang-format off */
const GigEventField gig_event_fields[GIG_EVENT_FIELDS] = {
	/* scope and key, column of gig_event, type, events, required, member */
	{KEY("account"), 2, GIG_UUID, WEBHOOKS, true, MEMBER(account_id)},
	{KEY("user"), 3, GIG_UUID, WEBHOOKS, true, MEMBER(user_id)},
	{KEY("available_from"), 4, GIG_TIMESTAMP, WEBHOOKS, false, MEMBER(available_from)},
	{KEY("available_to"), 5, GIG_TIMESTAMP, WEBHOOKS, false, MEMBER(available_to)},
	{KEY("available_count"), 6, GIG_COUNT, WEBHOOKS, true, MEMBER(available_count)},
	{KEY("added_count"), 7, GIG_COUNT, ADDED, true, MEMBER(changed_count)},
	{KEY("added_from"), 9, GIG_TIMESTAMP, ADDED, false, MEMBER(changed_from)},
	{KEY("added_to"), 10, GIG_TIMESTAMP, ADDED, false, MEMBER(changed_to)},
	{KEY("updated_count"), 7, GIG_COUNT, UPDATED, true, MEMBER(changed_count)},
	{KEY("updated_gigs"), 8, GIG_UUID_ARRAY, UPDATED, false, MEMBER(changed_gigs)},
	{KEY("updated_from"), 9, GIG_TIMESTAMP, UPDATED, false, MEMBER(changed_from)},
	{KEY("updated_to"), 10, GIG_TIMESTAMP, UPDATED, false, MEMBER(changed_to)},
	{KEY("removed_count"), 7, GIG_COUNT, REMOVED, true, MEMBER(changed_count)},
	{KEY("removed_gigs"), 8, GIG_UUID_ARRAY, REMOVED, false, MEMBER(changed_gigs)},
	{KEY("removed_from"), 9, GIG_TIMESTAMP, REMOVED, false, MEMBER(changed_from)},
	{KEY("removed_to"), 10, GIG_TIMESTAMP, REMOVED, false, MEMBER(changed_to)},
	{KEY("days_synced"), 11, GIG_COUNT, PARTIALLY, true, MEMBER(days_synced)},
	{ACCOUNT_KEY("id"), 2, GIG_UUID, RECONCILED, true, MEMBER(account_id)},
	{ACCOUNT_KEY("user"), 3, GIG_UUID, RECONCILED, true, MEMBER(user_id)},
	{GIGS_KEY("available_from"), 4, GIG_TIMESTAMP, RECONCILED, false, MEMBER(available_from)},
	{GIGS_KEY("available_to"), 5, GIG_TIMESTAMP, RECONCILED, false, MEMBER(available_to)},
	{GIGS_KEY("available_count"), 6, GIG_COUNT, RECONCILED, true, MEMBER(available_count)},
	{GIGS_KEY("status"), -1, GIG_STATUS, RECONCILED, true, MEMBER(is_synced)},
	{GIGS_KEY("updated_at"), -1, GIG_TIMESTAMP, RECONCILED, false, MEMBER(updated_at)},
};
/* clang-format on */

static char *PutField(char *bytes, GigFieldType type, const void *member);
static char *PutInt64(char *bytes, int64 value);
static char *PutBytes(char *bytes, const void *from, size_t len);

/*
 * Finds one of the five webhooks by its name.
 */
bool
FindGigEventKind(const char *name, size_t len, GigEventKind *kind)
{
	for (int i = 0; i < GIG_WEBHOOK_KINDS; i++)
	{
		if (strlen(gig_event_names[i]) == len &&
			memcmp(gig_event_names[i], name, len) == 0)
		{
			*kind = (GigEventKind) i;
			return true;
		}
	}
	return false;
}

/*
 * Finds a field by its key.  Returns its index, or -1.
 */
int
FindGigEventField(GigFieldScope scope, const char *key, size_t len)
{
	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		if (gig_event_fields[i].scope == scope &&
			gig_event_fields[i].key_len == len &&
			memcmp(gig_event_fields[i].key, key, len) == 0)
			return i;
	}
	return -1;
}

/*
 * Digests what an event says: its kind and every field, but not the name of the
 * subscription that delivered it.
 *
 * The encoding is unambiguous, because the kind determines the fields and their
 * order, and byte-order independent, because digests are stored.
 */
int64
DigestGigEvent(const GigEvent *event)
{
	size_t max_len = sizeof(int64) + GIG_EVENT_FIELDS * MAX_FIELD_LEN +
					 event->changed_gigs.length * sizeof(pg_uuid_t);
	char *bytes = palloc(max_len);
	char *end = PutInt64(bytes, event->kind);

	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		if ((gig_event_fields[i].kinds & GIG_EVENT_BIT(event->kind)) == 0)
			continue;
		*end++ = GigEventHas(event, i) ? 1 : 0;
		if (GigEventHas(event, i))
			end = PutField(end, gig_event_fields[i].type,
						   GigEventMember(event, i));
	}
	return DigestBytes(bytes, end - bytes);
}

/*
 * Writes a field and returns the end of what has been written.
 */
static char *
PutField(char *bytes, GigFieldType type, const void *member)
{
	const GigUuidArray *array = member;

	switch (type)
	{
		case GIG_UUID:
			return PutBytes(bytes, member, UUID_LEN);
		case GIG_TIMESTAMP:
			return PutInt64(bytes, *(const TimestampTz *) member);
		case GIG_COUNT:
			return PutInt64(bytes, *(const int32 *) member);
		case GIG_STATUS:
			return PutInt64(bytes, *(const bool *) member);
		case GIG_UUID_ARRAY:
			bytes = PutInt64(bytes, array->length);
			return PutBytes(bytes, array->elements,
							array->length * sizeof(pg_uuid_t));
	}
	pg_unreachable();
}

static char *
PutInt64(char *bytes, int64 value)
{
	uint64 swapped = pg_hton64((uint64) value);

	return PutBytes(bytes, &swapped, sizeof(swapped));
}

static char *
PutBytes(char *bytes, const void *from, size_t len)
{
	if (len > 0)
		memcpy(bytes, from, len);
	return bytes + len;
}
