/*-------------------------------------------------------------------------
 *
 * gigs_webhooks.c
 *	  The module: what happens when it is loaded, and its settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "direct.h"
#include "schema.h"
#include "settings.h"
#include "subscription.h"

PG_MODULE_MAGIC;

bool gig_direct_writes;
int gig_dedupe_window;
int gig_max_body_size;
int gig_stalled_after;

void _PG_init(void);

static void DefineSettings(void);


void
_PG_init(void)
{
	DefineSettings();
	InitSchema();
	InitDirect();
	InitSubscriptions();
}

/*
 * Whoever could set the window or the size could have events counted twice, or refused.
 */
static void
DefineSettings(void)
{
	DefineCustomBoolVariable("gigs_webhooks.direct_writes",
							 "Reads and writes tables without starting the executor, where they are ordinary tables.",
							 NULL, &gig_direct_writes, true, PGC_SUSET, 0, NULL,
							 NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.dedupe_window",
							"How long after its first delivery a webhook that comes again is a redelivery.",
							"After that, the same body counts as a new event.",
							&gig_dedupe_window, 3 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.max_body_size",
							"The largest webhook body that is accepted.", NULL,
							&gig_max_body_size, 1024 * 1024, 1024,
							MaxAllocSize / 4, PGC_SUSET, GUC_UNIT_BYTE, NULL,
							NULL, NULL);
	DefineCustomIntVariable("gigs_webhooks.stalled_after",
							"How long an account may be partially synced before reports call it stalled.",
							NULL, &gig_stalled_after, 6 * SECS_PER_HOUR, 0,
							INT_MAX, PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	MarkGUCPrefixReserved("gigs_webhooks");
}

/*
 * gig_stalled_after() and gig_dedupe_window(), returning interval
 *
 * The settings, for views and functions in SQL: current_setting() doesn't know
 * them in a session that hasn't loaded this module yet.
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
