/*-------------------------------------------------------------------------
 *
 * account.c
 *	  What is known of an account, and how an event changes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "account.h"

const GigColumn gig_account_columns[GIG_ACCOUNT_COLUMNS] = {
	[ACCOUNT_ID] = GIG_COLUMN(GigAccount, account_id, COLUMN_UUID),
	[ACCOUNT_USER_ID] = GIG_COLUMN(GigAccount, user_id, COLUMN_UUID),
	[ACCOUNT_STATE] = GIG_COLUMN(GigAccount, state, COLUMN_STATE),
	[ACCOUNT_DAYS_SYNCED] = GIG_COLUMN(GigAccount, days_synced, COLUMN_INT4),
	[ACCOUNT_AVAILABLE_FROM] =
		GIG_COLUMN(GigAccount, available_from, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_AVAILABLE_TO] =
		GIG_COLUMN(GigAccount, available_to, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_AVAILABLE_COUNT] =
		GIG_COLUMN(GigAccount, available_count, COLUMN_INT4),
	[ACCOUNT_ADDED_TOTAL] = GIG_COLUMN(GigAccount, added_total, COLUMN_INT8),
	[ACCOUNT_UPDATED_TOTAL] = GIG_COLUMN(GigAccount, updated_total, COLUMN_INT8),
	[ACCOUNT_REMOVED_TOTAL] = GIG_COLUMN(GigAccount, removed_total, COLUMN_INT8),
	[ACCOUNT_EVENTS] = GIG_COLUMN(GigAccount, events, COLUMN_INT8),
	[ACCOUNT_DUPLICATES] = GIG_COLUMN(GigAccount, duplicates, COLUMN_INT8),
	[ACCOUNT_FIRST_EVENT_AT] =
		GIG_COLUMN(GigAccount, first_event_at, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_PARTIALLY_SYNCED_AT] =
		GIG_COLUMN(GigAccount, partially_synced_at, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_FULLY_SYNCED_AT] =
		GIG_COLUMN(GigAccount, fully_synced_at, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_REFRESHED_AT] =
		GIG_COLUMN(GigAccount, refreshed_at, COLUMN_TIMESTAMPTZ),
	[ACCOUNT_LAST_EVENT] = GIG_COLUMN(GigAccount, last_event, COLUMN_EVENT_KIND),
	[ACCOUNT_LAST_EVENT_AT] =
		GIG_COLUMN(GigAccount, last_event_at, COLUMN_TIMESTAMPTZ),
};

static void SetPresent(GigAccount *account, int column, bool present);
static bool IsPresent(const GigAccount *account, int column);
static void SetTime(GigAccount *account, int column, TimestampTz at);
static void SetTimeOnce(GigAccount *account, int column, TimestampTz at);
static void TakeSnapshot(GigAccount *account, const GigEvent *event);
static GigOutcome FoldPartialSync(GigAccount *account, const GigEvent *event,
								  TimestampTz received_at);

/*
 * An account of which nothing is known yet but its user.
 */
void
InitGigAccount(GigAccount *account, const pg_uuid_t *account_id,
			   const pg_uuid_t *user_id)
{
	memset(account, 0, sizeof(GigAccount));
	account->account_id = *account_id;
	account->user_id = *user_id;
	account->state = SYNC_UNKNOWN;
	SetPresent(account, ACCOUNT_ID, true);
	SetPresent(account, ACCOUNT_USER_ID, true);
	SetPresent(account, ACCOUNT_STATE, true);
	for (int column = ACCOUNT_ADDED_TOTAL; column <= ACCOUNT_DUPLICATES;
		 column++)
		SetPresent(account, column, true);
}

/*
 * Applies an event that is no redelivery to what is known of its account.
 * Returns applied or stale.
 *
 * The state and days_synced only climb.  The snapshot is the latest event's,
 * unless that is a partial sync that comes late.
 */
GigOutcome
FoldGigEvent(GigAccount *account, const GigEvent *event, TimestampTz received_at)
{
	GigOutcome outcome = OUTCOME_APPLIED;

	switch (event->kind)
	{
		case GIGS_ADDED:
			account->added_total += event->changed_count;
			SetTime(account, ACCOUNT_REFRESHED_AT, received_at);
			break;
		case GIGS_UPDATED:
			account->updated_total += event->changed_count;
			SetTime(account, ACCOUNT_REFRESHED_AT, received_at);
			break;
		case GIGS_REMOVED:
			account->removed_total += event->changed_count;
			SetTime(account, ACCOUNT_REFRESHED_AT, received_at);
			break;
		case GIGS_PARTIALLY_SYNCED:
			outcome = FoldPartialSync(account, event, received_at);
			break;
		case GIGS_FULLY_SYNCED:
			account->state = SYNC_FULLY;
			SetTimeOnce(account, ACCOUNT_FULLY_SYNCED_AT, received_at);
			break;
	}

	if (outcome == OUTCOME_APPLIED)
		TakeSnapshot(account, event);
	account->events++;
	SetTimeOnce(account, ACCOUNT_FIRST_EVENT_AT, received_at);
	SetTime(account, ACCOUNT_LAST_EVENT_AT, received_at);
	account->last_event = event->kind;
	SetPresent(account, ACCOUNT_LAST_EVENT, true);
	return outcome;
}

/*
 * A partial sync is late when all is synced already, or a wider window is.
 */
static GigOutcome
FoldPartialSync(GigAccount *account, const GigEvent *event,
				TimestampTz received_at)
{
	bool late = account->state == SYNC_FULLY ||
				(IsPresent(account, ACCOUNT_DAYS_SYNCED) &&
				 event->days_synced < account->days_synced);

	account->days_synced = Max(account->days_synced, event->days_synced);
	SetPresent(account, ACCOUNT_DAYS_SYNCED, true);
	if (account->state == SYNC_UNKNOWN)
	{
		account->state = SYNC_PARTIALLY;
		SetTimeOnce(account, ACCOUNT_PARTIALLY_SYNCED_AT, received_at);
	}
	return late ? OUTCOME_STALE : OUTCOME_APPLIED;
}

static void
TakeSnapshot(GigAccount *account, const GigEvent *event)
{
	account->user_id = event->user_id;
	account->available_from = event->available_from;
	account->available_to = event->available_to;
	account->available_count = event->available_count;
	SetPresent(account, ACCOUNT_USER_ID, true);
	SetPresent(account, ACCOUNT_AVAILABLE_COUNT, true);
	SetPresent(account, ACCOUNT_AVAILABLE_FROM,
			   GigEventHas(event, GIG_FIELD_AVAILABLE_FROM));
	SetPresent(account, ACCOUNT_AVAILABLE_TO,
			   GigEventHas(event, GIG_FIELD_AVAILABLE_TO));
}

static void *
Member(const GigAccount *account, int column)
{
	return (char *) account + gig_account_columns[column].offset;
}

static void
SetTime(GigAccount *account, int column, TimestampTz at)
{
	*(TimestampTz *) Member(account, column) = at;
	SetPresent(account, column, true);
}

static void
SetTimeOnce(GigAccount *account, int column, TimestampTz at)
{
	if (!IsPresent(account, column))
		SetTime(account, column, at);
}

static bool
IsPresent(const GigAccount *account, int column)
{
	return (account->present & (UINT32_C(1) << column)) != 0;
}

static void
SetPresent(GigAccount *account, int column, bool present)
{
	if (present)
		account->present |= UINT32_C(1) << column;
	else
		account->present &= ~(UINT32_C(1) << column);
}
