/*-------------------------------------------------------------------------
 *
 * metrics.h
 *	  Counters and histograms, printed for Prometheus.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_METRICS_H
#define GIGS_RECEIVER_METRICS_H

#include <stdint.h>
#include <stdio.h>

/* In the order in which they are printed. */
typedef enum Counter
{
	COUNT_SHED,
	COUNT_CONNECTS,
	COUNT_LOST,
	COUNT_RETRIES,
	COUNT_FAILED,
	COUNTERS
} Counter;

typedef enum Histogram
{
	HISTOGRAM_REQUEST_SECONDS,
	HISTOGRAM_BATCH_SECONDS,
	HISTOGRAM_BATCH_EVENTS,
	HISTOGRAMS
} Histogram;

extern void Count(Counter counter);
extern void CountRequest(int status, int64_t microseconds);
extern void CountOutcome(const char *outcome, const char *sqlstate);
extern void CountBatch(int nevents, int64_t microseconds);
extern void PrintMetrics(FILE *out);

#endif /* GIGS_RECEIVER_METRICS_H */
