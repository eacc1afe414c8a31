/*-------------------------------------------------------------------------
 *
 * gigs_webhooks.c
 *	  Module initialization and settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "direct.h"
#include "ingest.h"
#include "subscription.h"

PG_MODULE_MAGIC;

static int gig_stalled_after; /* seconds */

void _PG_init(void);

/*
 * The window and the size decide which events are counted, so that only
 * superusers may set them.
 */
void
_PG_init(void)
{
	DefineCustomBoolVariable("gigs_webhooks.direct_writes",
							 "Reads and writes ordinary tables without the executor.",
							 NULL, &gig_direct_writes, true, PGC_SUSET, 0, NULL,
							 NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.dedupe_window",
							"How long after its first delivery the same event is a duplicate.",
							"After that, it counts as a new event.",
							&gig_dedupe_window, 3 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.max_body_size",
							"Maximum size of a webhook body.", NULL,
							&gig_max_body_size, 8 * 1024 * 1024, 1024,
							MaxAllocSize / 4, PGC_SUSET, GUC_UNIT_BYTE, NULL,
							NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.stalled_after",
							"How long after its first event reports show an account as stalled if it is not fully synced.",
							NULL, &gig_stalled_after, 6 * SECS_PER_HOUR, 0,
							INT_MAX, PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	MarkGUCPrefixReserved("gigs_webhooks");

	InitSchema();
	InitSubscriptions();
}

/*
 * gig_stalled_after() and gig_dedupe_window(), returning interval
 */
#define SECONDS_SETTING(name)                           \
	PG_FUNCTION_INFO_V1(name##_interval);               \
	Datum name##_interval(PG_FUNCTION_ARGS)             \
	{                                                   \
		Interval *interval = palloc0(sizeof(Interval)); \
		(void) fcinfo;                                  \
		interval->time = USECS_PER_SEC * (name);        \
		PG_RETURN_INTERVAL_P(interval);                 \
	}

SECONDS_SETTING(gig_stalled_after)
SECONDS_SETTING(gig_dedupe_window)
