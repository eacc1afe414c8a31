/*-------------------------------------------------------------------------
 *
 * account.c
 *	  What is known of an account, and how an event changes it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/timestamp.h"

#include "account.h"

#define COLUMN(place, name, type) \
	[place] = {#name, type, offsetof(GigAccount, name)}

const GigAccountColumn gig_account_columns[GIG_ACCOUNT_COLUMNS] = {
	COLUMN(ACCOUNT_ID, account_id, COLUMN_UUID),
	COLUMN(ACCOUNT_USER_ID, user_id, COLUMN_UUID),
	COLUMN(ACCOUNT_STATE, state, COLUMN_STATE),
	COLUMN(ACCOUNT_DAYS_SYNCED, days_synced, COLUMN_INT4),
	COLUMN(ACCOUNT_AVAILABLE_FROM, available_from, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_AVAILABLE_TO, available_to, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_AVAILABLE_COUNT, available_count, COLUMN_INT4),
	COLUMN(ACCOUNT_ADDED_TOTAL, added_total, COLUMN_INT8),
	COLUMN(ACCOUNT_UPDATED_TOTAL, updated_total, COLUMN_INT8),
	COLUMN(ACCOUNT_REMOVED_TOTAL, removed_total, COLUMN_INT8),
	COLUMN(ACCOUNT_EVENTS, events, COLUMN_INT8),
	COLUMN(ACCOUNT_DUPLICATES, duplicates, COLUMN_INT8),
	COLUMN(ACCOUNT_FIRST_EVENT_AT, first_event_at, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_PARTIALLY_SYNCED_AT, partially_synced_at, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_FULLY_SYNCED_AT, fully_synced_at, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_REFRESHED_AT, refreshed_at, COLUMN_TIMESTAMPTZ),
	COLUMN(ACCOUNT_LAST_EVENT, last_event, COLUMN_EVENT_KIND),
	COLUMN(ACCOUNT_LAST_EVENT_AT, last_event_at, COLUMN_TIMESTAMPTZ),
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

/*
 * Returns a column's value; a UUID's points into the account.
 */
Datum
GigAccountDatum(const GigSchema *schema, const GigAccount *account, int column,
				bool *isnull)
{
	void *member = Member(account, column);

	*isnull = !IsPresent(account, column);
	if (*isnull)
		return (Datum) 0;
	switch (gig_account_columns[column].type)
	{
		case COLUMN_UUID:
			return UUIDPGetDatum((pg_uuid_t *) member);
		case COLUMN_STATE:
			return ObjectIdGetDatum(
				schema->sync_states[*(GigSyncState *) member]);
		case COLUMN_EVENT_KIND:
			return ObjectIdGetDatum(
				schema->event_kinds[*(GigEventKind *) member]);
		case COLUMN_INT4:
			return Int32GetDatum(*(int32 *) member);
		case COLUMN_INT8:
			return Int64GetDatum(*(int64 *) member);
		case COLUMN_TIMESTAMPTZ:
			return TimestampTzGetDatum(*(TimestampTz *) member);
	}
	pg_unreachable();
}

/*
 * Takes over a column's value.
 */
void
SetGigAccountDatum(const GigSchema *schema, GigAccount *account, int column,
				   Datum value, bool isnull)
{
	void *member = Member(account, column);

	SetPresent(account, column, !isnull);
	if (isnull)
		return;
	switch (gig_account_columns[column].type)
	{
		case COLUMN_UUID:
			*(pg_uuid_t *) member = *DatumGetUUIDP(value);
			break;
		case COLUMN_STATE:
			*(GigSyncState *) member =
				(GigSyncState) FindEnumLabel(schema->sync_states,
											 GIG_SYNC_STATES,
											 DatumGetObjectId(value));
			break;
		case COLUMN_EVENT_KIND:
			*(GigEventKind *) member =
				(GigEventKind) FindEnumLabel(schema->event_kinds,
											 GIG_EVENT_KINDS,
											 DatumGetObjectId(value));
			break;
		case COLUMN_INT4:
			*(int32 *) member = DatumGetInt32(value);
			break;
		case COLUMN_INT8:
			*(int64 *) member = DatumGetInt64(value);
			break;
		case COLUMN_TIMESTAMPTZ:
			*(TimestampTz *) member = DatumGetTimestampTz(value);
			break;
	}
}

/*
 * Returns a column's SQL type.
 */
Oid
GigAccountColumnType(const GigSchema *schema, int column)
{
	switch (gig_account_columns[column].type)
	{
		case COLUMN_UUID:
			return UUIDOID;
		case COLUMN_STATE:
			return schema->sync_state_type;
		case COLUMN_EVENT_KIND:
			return schema->event_kind_type;
		case COLUMN_INT4:
			return INT4OID;
		case COLUMN_INT8:
			return INT8OID;
		case COLUMN_TIMESTAMPTZ:
			return TIMESTAMPTZOID;
	}
	pg_unreachable();
}
