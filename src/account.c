/*-------------------------------------------------------------------------
 *
 * account.c
 *	  The state of an account, and how an event changes it.
 *
 * Memory is allocated in the current context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "account.h"

const char *const gig_sync_state_names[GIG_SYNC_STATES] = {
	[SYNC_UNKNOWN] = "unknown",
	[SYNC_PARTIALLY] = "partially_synced",
	[SYNC_FULLY] = "fully_synced",
};

const char *const gig_outcome_names[GIG_OUTCOMES] = {
	[OUTCOME_APPLIED] = "applied",
	[OUTCOME_DUPLICATE] = "duplicate",
	[OUTCOME_STALE] = "stale",
	[OUTCOME_IGNORED] = "ignored",
	[OUTCOME_QUARANTINED] = "quarantined",
	[OUTCOME_REJECTED] = "rejected",
};

int gig_dedupe_window;

static void CountChange(GigAccount *account, int64 *total,
						const GigEvent *event, TimestampTz received_at);
static GigOutcome ApplyPartialSync(GigAccount *account, const GigEvent *event,
								   TimestampTz received_at);
static void TakeSnapshot(GigAccount *account, const GigEvent *event);
static void SetEarliest(GigAccount *account, GigAccountNullable column,
						TimestampTz *member, TimestampTz at);
static void ExpireDeliveries(RecentDeliveries *recent, TimestampTz now);
static void RememberDelivery(RecentDeliveries *recent,
							 const GigDelivery *delivery);
static void ForgetDelivery(RecentDeliveries *recent, int index);
static int64 *EnlargeArray(int64 *elements, int capacity);

/*
 * Initializes an account of which only the user is known.
 */
void
InitGigAccount(GigAccount *account, const pg_uuid_t *account_id,
			   const pg_uuid_t *user_id)
{
	memset(account, 0, sizeof(GigAccount));
	account->account_id = *account_id;
	account->user_id = *user_id;
	account->state = SYNC_UNKNOWN;
}

/*
 * Tells whether a delivery is a duplicate, and of which event.
 *
 * Two true events can say the same; only time tells them apart.  So the same
 * event is a duplicate within the window from its first delivery, and a new
 * event after that.  The window reaches into the past as well, because an
 * archive may be ingested after the webhooks that came live.
 */
bool
FindOriginalDelivery(const GigAccount *account, const GigDelivery *delivery,
					 int64 *event_id)
{
	const RecentDeliveries *recent = &account->recent;
	int64 window = gig_dedupe_window * USECS_PER_SEC;

	for (int i = recent->n - 1; i >= 0; i--)
	{
		int64 age = delivery->received_at - recent->received_at[i];

		if (recent->digests[i] == delivery->digest && age < window &&
			-age < window)
		{
			*event_id = recent->event_ids[i];
			return true;
		}
	}
	return false;
}

/*
 * Applies an event that is no duplicate.  Returns applied or stale.
 *
 * The state and days_synced only climb.  The snapshot is that of the event
 * received last, unless that is a partial sync that came late.  An event may be
 * applied long after it was received, so that it is not the last.
 */
GigOutcome
ApplyGigEvent(GigAccount *account, const GigEvent *event,
			  const GigDelivery *delivery)
{
	TimestampTz received_at = delivery->received_at;
	bool is_latest = (account->present & HAS_LAST_EVENT) == 0 ||
					 received_at >= account->last_event_at;
	GigOutcome outcome = OUTCOME_APPLIED;

	switch (event->kind)
	{
		case GIGS_ADDED:
			CountChange(account, &account->added_total, event, received_at);
			break;
		case GIGS_UPDATED:
			CountChange(account, &account->updated_total, event, received_at);
			break;
		case GIGS_REMOVED:
			CountChange(account, &account->removed_total, event, received_at);
			break;
		case GIGS_PARTIALLY_SYNCED:
			outcome = ApplyPartialSync(account, event, received_at);
			break;
		case GIGS_RECONCILED:
			if (!event->is_synced)
				break;
			/* FALLTHROUGH */
		case GIGS_FULLY_SYNCED:
			account->state = SYNC_FULLY;
			SetEarliest(account, HAS_FULLY_SYNCED_AT, &account->fully_synced_at,
						received_at);
			break;
	}

	if (is_latest)
	{
		if (outcome == OUTCOME_APPLIED)
			TakeSnapshot(account, event);
		account->last_event = event->kind;
		account->last_event_at = received_at;
	}
	account->events++;
	account->last_event_id = delivery->event_id;
	account->present |= HAS_LAST_EVENT | HAS_LAST_EVENT_ID;
	SetEarliest(account, HAS_FIRST_EVENT_AT, &account->first_event_at,
				received_at);
	ExpireDeliveries(&account->recent, received_at);
	/* a reconciliation is no delivery, and the same one again is no duplicate */
	if (event->kind != GIGS_RECONCILED)
		RememberDelivery(&account->recent, delivery);
	return outcome;
}

/*
 * Counts a duplicate.
 */
void
ApplyDuplicate(GigAccount *account, const GigDelivery *delivery)
{
	account->duplicates++;
	account->last_event_id = delivery->event_id;
	account->present |= HAS_LAST_EVENT_ID;
	ExpireDeliveries(&account->recent, delivery->received_at);
}

static void
CountChange(GigAccount *account, int64 *total, const GigEvent *event,
			TimestampTz received_at)
{
	*total += event->changed_count;
	if ((account->present & HAS_REFRESHED_AT) == 0 ||
		received_at > account->refreshed_at)
		account->refreshed_at = received_at;
	account->present |= HAS_REFRESHED_AT;
}

/*
 * A partial sync is late if the account is fully synced or has synced more
 * days.
 */
static GigOutcome
ApplyPartialSync(GigAccount *account, const GigEvent *event,
				 TimestampTz received_at)
{
	bool late = account->state == SYNC_FULLY ||
				((account->present & HAS_DAYS_SYNCED) != 0 &&
				 event->days_synced < account->days_synced);

	account->days_synced = Max(account->days_synced, event->days_synced);
	account->present |= HAS_DAYS_SYNCED;
	if (account->state == SYNC_UNKNOWN)
		account->state = SYNC_PARTIALLY;
	if (account->state == SYNC_PARTIALLY)
		SetEarliest(account, HAS_PARTIALLY_SYNCED_AT,
					&account->partially_synced_at, received_at);
	return late ? OUTCOME_STALE : OUTCOME_APPLIED;
}

static void
TakeSnapshot(GigAccount *account, const GigEvent *event)
{
	account->user_id = event->user_id;
	account->available_from = event->available_from;
	account->available_to = event->available_to;
	account->available_count = event->available_count;
	account->present &= ~(HAS_AVAILABLE_FROM | HAS_AVAILABLE_TO);
	account->present |= HAS_AVAILABLE_COUNT;
	if (GigEventHas(event, GIG_FIELD_AVAILABLE_FROM) ||
		GigEventHas(event, GIG_FIELD_GIGS_AVAILABLE_FROM))
		account->present |= HAS_AVAILABLE_FROM;
	if (GigEventHas(event, GIG_FIELD_AVAILABLE_TO) ||
		GigEventHas(event, GIG_FIELD_GIGS_AVAILABLE_TO))
		account->present |= HAS_AVAILABLE_TO;
}

static void
SetEarliest(GigAccount *account, GigAccountNullable column, TimestampTz *member,
			TimestampTz at)
{
	if ((account->present & column) == 0 || at < *member)
		*member = at;
	account->present |= column;
}

/*
 * Forgets deliveries whose window has passed.
 */
static void
ExpireDeliveries(RecentDeliveries *recent, TimestampTz now)
{
	int64 window = gig_dedupe_window * USECS_PER_SEC;

	for (int i = recent->n - 1; i >= 0; i--)
	{
		if (now - recent->received_at[i] >= window)
			ForgetDelivery(recent, i);
	}
}

static void
RememberDelivery(RecentDeliveries *recent, const GigDelivery *delivery)
{
	if (recent->n == MAX_RECENT_DELIVERIES)
	{
		/* not always the first: an archive may have been ingested after it */
		int oldest = 0;

		for (int i = 1; i < recent->n; i++)
		{
			if (recent->received_at[i] < recent->received_at[oldest])
				oldest = i;
		}
		ForgetDelivery(recent, oldest);
	}
	if (recent->n == recent->capacity)
	{
		recent->capacity = Max(8, recent->capacity * 2);
		recent->digests = EnlargeArray(recent->digests, recent->capacity);
		recent->event_ids = EnlargeArray(recent->event_ids, recent->capacity);
		recent->received_at =
			EnlargeArray(recent->received_at, recent->capacity);
	}
	recent->digests[recent->n] = delivery->digest;
	recent->event_ids[recent->n] = delivery->event_id;
	recent->received_at[recent->n] = delivery->received_at;
	recent->n++;
}

static void
ForgetDelivery(RecentDeliveries *recent, int index)
{
	size_t after = (recent->n - index - 1) * sizeof(int64);

	memmove(&recent->digests[index], &recent->digests[index + 1], after);
	memmove(&recent->event_ids[index], &recent->event_ids[index + 1], after);
	memmove(&recent->received_at[index], &recent->received_at[index + 1], after);
	recent->n--;
}

static int64 *
EnlargeArray(int64 *elements, int capacity)
{
	Size size = capacity * sizeof(int64);

	return elements == NULL ? palloc(size) : repalloc(elements, size);
}
