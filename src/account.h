/*-------------------------------------------------------------------------
 *
 * account.h
 *	  The state of an account, and how an event changes it.
 *
 * The rules of applying stand here and nowhere else.  This file knows nothing
 * of tables, SQL or JSON.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ACCOUNT_H
#define GIGS_WEBHOOKS_ACCOUNT_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "event.h"

/* In the order of the labels of the SQL type gig_sync_state. */
typedef enum GigSyncState
{
	SYNC_UNKNOWN,
	SYNC_PARTIALLY,
	SYNC_FULLY
} GigSyncState;

#define GIG_SYNC_STATES (SYNC_FULLY + 1)

/* In the order of the labels of the SQL type gig_ingest_outcome. */
typedef enum GigOutcome
{
	OUTCOME_APPLIED,
	OUTCOME_DUPLICATE,
	OUTCOME_STALE,
	OUTCOME_IGNORED,
	OUTCOME_QUARANTINED,
	OUTCOME_REJECTED
} GigOutcome;

#define GIG_OUTCOMES (OUTCOME_REJECTED + 1)

extern const char *const gig_sync_state_names[GIG_SYNC_STATES];
extern const char *const gig_outcome_names[GIG_OUTCOMES];

extern int gig_dedupe_window; /* gigs_webhooks.dedupe_window, in seconds */

/* An account remembers this many deliveries, and forgets the oldest first. */
#define MAX_RECENT_DELIVERIES 1000

/*
 * The events of the last dedupe window, in the order of application: parallel
 * arrays, as gig_account_sync stores them.
 */
typedef struct RecentDeliveries
{
	int n;
	int capacity;
	int64 *digests;
	int64 *event_ids;
	TimestampTz *received_at;
} RecentDeliveries;

/* The columns of gig_account_sync that may be null. */
typedef enum GigAccountNullable
{
	HAS_DAYS_SYNCED = 1 << 0,
	HAS_AVAILABLE_FROM = 1 << 1,
	HAS_AVAILABLE_TO = 1 << 2,
	HAS_AVAILABLE_COUNT = 1 << 3,
	HAS_LAST_EVENT = 1 << 4, /* its kind and time */
	HAS_LAST_EVENT_ID = 1 << 5,
	HAS_FIRST_EVENT_AT = 1 << 6,
	HAS_PARTIALLY_SYNCED_AT = 1 << 7,
	HAS_FULLY_SYNCED_AT = 1 << 8,
	HAS_REFRESHED_AT = 1 << 9
} GigAccountNullable;

/* A row of gig_account_sync. */
typedef struct GigAccount
{
	uint32 present; /* GigAccountNullable */
	pg_uuid_t account_id;
	pg_uuid_t user_id;
	GigSyncState state;
	int32 days_synced;
	TimestampTz available_from;
	TimestampTz available_to;
	int32 available_count;
	GigEventKind last_event;
	TimestampTz last_event_at;
	int64 last_event_id;
	int64 added_total;
	int64 updated_total;
	int64 removed_total;
	int64 events;
	int64 duplicates;
	TimestampTz first_event_at;
	TimestampTz partially_synced_at;
	TimestampTz fully_synced_at;
	TimestampTz refreshed_at;
	RecentDeliveries recent;
} GigAccount;

/* A delivery of an event, as it is logged. */
typedef struct GigDelivery
{
	int64 event_id;
	TimestampTz received_at;
	int64 digest; /* of the event: see DigestGigEvent() */
} GigDelivery;

extern void InitGigAccount(GigAccount *account, const pg_uuid_t *account_id,
						   const pg_uuid_t *user_id);
extern bool FindOriginalDelivery(const GigAccount *account,
								 const GigDelivery *delivery, int64 *event_id);
extern GigOutcome ApplyGigEvent(GigAccount *account, const GigEvent *event,
								const GigDelivery *delivery);
extern void ApplyDuplicate(GigAccount *account, const GigDelivery *delivery);

#endif /* GIGS_WEBHOOKS_ACCOUNT_H */
