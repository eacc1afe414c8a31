/*-------------------------------------------------------------------------
 *
 * event.c
 *	  The table that describes every event's fields.
 *
 * Reading JSON, the composite types and what is required of an event are all
 * driven by it: adding a field is adding a line (and a member of GigEvent).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "event.h"

#define ADDED GIG_EVENT_BIT(GIGS_ADDED)
#define UPDATED GIG_EVENT_BIT(GIGS_UPDATED)
#define REMOVED GIG_EVENT_BIT(GIGS_REMOVED)
#define PARTIALLY GIG_EVENT_BIT(GIGS_PARTIALLY_SYNCED)
#define ALL \
	(ADDED | UPDATED | REMOVED | PARTIALLY | GIG_EVENT_BIT(GIGS_FULLY_SYNCED))

#define KEY(name) name, sizeof(name) - 1, "data." name
#define MEMBER(name) offsetof(GigEvent, name)

const char *const gig_event_names[GIG_EVENT_KINDS] = {
	[GIGS_ADDED] = "gigs.added",
	[GIGS_UPDATED] = "gigs.updated",
	[GIGS_REMOVED] = "gigs.removed",
	[GIGS_PARTIALLY_SYNCED] = "gigs.partially_synced",
	[GIGS_FULLY_SYNCED] = "gigs.fully_synced",
};

/* clang-format off */
const GigEventField gig_event_fields[GIG_EVENT_FIELDS] = {
	/* key, column, column of gig_event, type, events, required, member */
	{KEY("account"), "account_id", "account_id", GIG_UUID, ALL, true, MEMBER(account_id)},
	{KEY("user"), "user_id", "user_id", GIG_UUID, ALL, true, MEMBER(user_id)},
	{KEY("available_from"), "available_from", "available_from", GIG_TIMESTAMP, ALL, false, MEMBER(available_from)},
	{KEY("available_to"), "available_to", "available_to", GIG_TIMESTAMP, ALL, false, MEMBER(available_to)},
	{KEY("available_count"), "available_count", "available_count", GIG_COUNT, ALL, true, MEMBER(available_count)},
	{KEY("added_count"), "added_count", "changed_count", GIG_COUNT, ADDED, true, MEMBER(changed_count)},
	{KEY("added_from"), "added_from", "changed_from", GIG_TIMESTAMP, ADDED, false, MEMBER(changed_from)},
	{KEY("added_to"), "added_to", "changed_to", GIG_TIMESTAMP, ADDED, false, MEMBER(changed_to)},
	{KEY("updated_count"), "updated_count", "changed_count", GIG_COUNT, UPDATED, true, MEMBER(changed_count)},
	{KEY("updated_gigs"), "updated_gigs", "changed_gigs", GIG_UUID_ARRAY, UPDATED, true, MEMBER(changed_gigs)},
	{KEY("updated_from"), "updated_from", "changed_from", GIG_TIMESTAMP, UPDATED, false, MEMBER(changed_from)},
	{KEY("updated_to"), "updated_to", "changed_to", GIG_TIMESTAMP, UPDATED, false, MEMBER(changed_to)},
	{KEY("removed_count"), "removed_count", "changed_count", GIG_COUNT, REMOVED, true, MEMBER(changed_count)},
	{KEY("removed_gigs"), "removed_gigs", "changed_gigs", GIG_UUID_ARRAY, REMOVED, true, MEMBER(changed_gigs)},
	{KEY("removed_from"), "removed_from", "changed_from", GIG_TIMESTAMP, REMOVED, false, MEMBER(changed_from)},
	{KEY("removed_to"), "removed_to", "changed_to", GIG_TIMESTAMP, REMOVED, false, MEMBER(changed_to)},
	{KEY("days_synced"), "days_synced", "days_synced", GIG_COUNT, PARTIALLY, true, MEMBER(days_synced)},
};
/* clang-format on */

/*
 * Finds one of the five events by its name.
 */
bool
FindGigEventKind(const char *name, size_t len, GigEventKind *kind)
{
	for (int i = 0; i < GIG_EVENT_KINDS; i++)
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
 * Finds a field by its key in "data".  Returns its place in the table, or -1.
 */
int
FindGigEventField(const char *key, size_t len)
{
	for (int i = 0; i < GIG_EVENT_FIELDS; i++)
	{
		if (gig_event_fields[i].key_len == len &&
			memcmp(gig_event_fields[i].key, key, len) == 0)
			return i;
	}
	return -1;
}
