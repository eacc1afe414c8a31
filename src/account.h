/*-------------------------------------------------------------------------
 *
 * account.h
 *	  What is known of an account, and how an event changes it.
 *
 * The rules of applying stand here and nowhere else.  This room knows nothing
 * of tables but the names and types of gig_account_sync's columns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_WEBHOOKS_ACCOUNT_H
#define GIGS_WEBHOOKS_ACCOUNT_H

#include "datatype/timestamp.h"
#include "storage/itemptr.h"
#include "utils/uuid.h"

#include "event.h"
#include "row.h"

/* A row of gig_account_sync; its columns are in gig_account_columns. */
typedef struct GigAccount
{
	uint32 present; /* bit n: gig_account_columns[n] is not null */
	pg_uuid_t account_id;
	pg_uuid_t user_id;
	GigSyncState state;
	int32 days_synced;
	TimestampTz available_from;
	TimestampTz available_to;
	int32 available_count;
	int64 added_total;
	int64 updated_total;
	int64 removed_total;
	int64 events;
	int64 duplicates;
	TimestampTz first_event_at;
	TimestampTz partially_synced_at;
	TimestampTz fully_synced_at;
	TimestampTz refreshed_at;
	GigEventKind last_event;
	TimestampTz last_event_at;

	ItemPointerData tid; /* of the row, for direct.c */
} GigAccount;

/* The places of columns in gig_account_columns. */
enum
{
	ACCOUNT_ID,
	ACCOUNT_USER_ID,
	ACCOUNT_STATE,
	ACCOUNT_DAYS_SYNCED,
	ACCOUNT_AVAILABLE_FROM,
	ACCOUNT_AVAILABLE_TO,
	ACCOUNT_AVAILABLE_COUNT,
	ACCOUNT_ADDED_TOTAL,
	ACCOUNT_UPDATED_TOTAL,
	ACCOUNT_REMOVED_TOTAL,
	ACCOUNT_EVENTS,
	ACCOUNT_DUPLICATES,
	ACCOUNT_FIRST_EVENT_AT,
	ACCOUNT_PARTIALLY_SYNCED_AT,
	ACCOUNT_FULLY_SYNCED_AT,
	ACCOUNT_REFRESHED_AT,
	ACCOUNT_LAST_EVENT,
	ACCOUNT_LAST_EVENT_AT,
	GIG_ACCOUNT_COLUMNS
};

extern const GigColumn gig_account_columns[GIG_ACCOUNT_COLUMNS];

extern void InitGigAccount(GigAccount *account, const pg_uuid_t *account_id,
						   const pg_uuid_t *user_id);
extern GigOutcome FoldGigEvent(GigAccount *account, const GigEvent *event,
							   TimestampTz received_at);

#endif /* GIGS_WEBHOOKS_ACCOUNT_H */
