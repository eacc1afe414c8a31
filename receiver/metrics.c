/*-------------------------------------------------------------------------
 *
 * metrics.c
 *	  Counters and histograms, printed for Prometheus.
 *
 * Labels are known in advance, or limited in number.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>
#include <microhttpd.h>

#include "metrics.h"
#include "queue.h"

#define MAX_LABELS 32
#define LABEL_LEN 16
#define BUCKETS 12

/* Counts by the value of a label. */
typedef struct LabelledCounter
{
	const char *name;
	const char *label;
	const char *help;
	int nlabels;
	char labels[MAX_LABELS][LABEL_LEN];
	uint64_t counts[MAX_LABELS];
} LabelledCounter;

typedef struct HistogramData
{
	const char *name;
	const char *help;
	double bounds[BUCKETS];
	uint64_t counts[BUCKETS];
	uint64_t count;
	double sum;
} HistogramData;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static LabelledCounter requests = {
	.name = "gigs_receiver_requests_total",
	.label = "code",
	.help = "Requests by the status code of the answer.",
};
static LabelledCounter outcomes = {
	.name = "gigs_receiver_events_total",
	.label = "outcome",
	.help = "Webhooks that the database has judged, by outcome.",
};
static LabelledCounter rejections = {
	.name = "gigs_receiver_rejections_total",
	.label = "sqlstate",
	.help = "Rejected webhooks by SQLSTATE.",
};

static const struct
{
	const char *name;
	const char *help;
} counter_names[COUNTERS] = {
	[COUNT_SHED] = {"gigs_receiver_shed_total",
					"Requests answered with 503 because too much was waiting."},
	[COUNT_CONNECTS] = {"gigs_receiver_database_connects_total",
						"Database sessions that have been opened."},
	[COUNT_LOST] = {"gigs_receiver_database_lost_total",
					"Database sessions that have been lost."},
	[COUNT_RETRIES] =
		{"gigs_receiver_retries_total",
		 "Batches tried again after a serialization failure or deadlock."},
	[COUNT_FAILED] = {"gigs_receiver_failures_total",
					  "Webhooks that the database refused with an error."},
};
static uint64_t counters[COUNTERS];

#define SECONDS_BOUNDS                                                        \
	{                                                                         \
		0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5 \
	}

static HistogramData histograms[HISTOGRAMS] = {
	[HISTOGRAM_REQUEST_SECONDS] =
		{.name = "gigs_receiver_request_seconds",
		 .help = "Time from a request's header to its answer.",
		 .bounds = SECONDS_BOUNDS},
	[HISTOGRAM_BATCH_SECONDS] =
		{.name = "gigs_receiver_batch_seconds",
		 .help = "Time of a call of ingest_gig_events, commit included.",
		 .bounds = SECONDS_BOUNDS},
	[HISTOGRAM_BATCH_EVENTS] = {.name = "gigs_receiver_batch_events",
								.help =
									"Webhooks in a call of ingest_gig_events.",
								.bounds = {1, 2, 4, 8, 16, 32, 64, 128, 256,
										   512, 768, 1000}},
};

static time_t last_commit;

static void CountLabel(LabelledCounter *counter, const char *label);
static void Observe(Histogram histogram, double value);
static void PrintHead(FILE *out, const char *name, const char *type,
					  const char *help);
static void PrintLabelled(FILE *out, const LabelledCounter *counter);
static void PrintHistogram(FILE *out, const HistogramData *histogram);

void
Count(Counter counter)
{
	pthread_mutex_lock(&lock);
	counters[counter]++;
	pthread_mutex_unlock(&lock);
}

void
CountRequest(int status, int64_t microseconds)
{
	char code[LABEL_LEN];

	snprintf(code, sizeof(code), "%d", status);
	pthread_mutex_lock(&lock);
	CountLabel(&requests, code);
	Observe(HISTOGRAM_REQUEST_SECONDS, (double) microseconds / 1e6);
	pthread_mutex_unlock(&lock);
}

/*
 * Counts a webhook that has been committed, or rejected with an SQLSTATE.
 */
void
CountOutcome(const char *outcome, const char *sqlstate)
{
	pthread_mutex_lock(&lock);
	CountLabel(&outcomes, outcome);
	if (sqlstate != NULL)
		CountLabel(&rejections, sqlstate);
	pthread_mutex_unlock(&lock);
}

/*
 * Counts a batch that has been committed.
 */
void
CountBatch(int nevents, int64_t microseconds)
{
	pthread_mutex_lock(&lock);
	Observe(HISTOGRAM_BATCH_EVENTS, nevents);
	Observe(HISTOGRAM_BATCH_SECONDS, (double) microseconds / 1e6);
	last_commit = time(NULL);
	pthread_mutex_unlock(&lock);
}

/*
 * The last label counts for all that do not fit.
 */
static void
CountLabel(LabelledCounter *counter, const char *label)
{
	int i = 0;

	while (i < counter->nlabels && strcmp(counter->labels[i], label) != 0)
		i++;
	if (i == MAX_LABELS)
		i--;
	else if (i == counter->nlabels)
	{
		counter->nlabels++;
		snprintf(counter->labels[i], LABEL_LEN, "%s",
				 i == MAX_LABELS - 1 ? "other" : label);
	}
	counter->counts[i]++;
}

static void
Observe(Histogram histogram, double value)
{
	HistogramData *data = &histograms[histogram];
	int i = 0;

	while (i < BUCKETS && value > data->bounds[i])
		i++;
	if (i < BUCKETS)
		data->counts[i]++;
	data->count++;
	data->sum += value;
}

void
PrintMetrics(FILE *out)
{
	int64_t posts;
	int64_t bytes;

	GetWaiting(&posts, &bytes);
	pthread_mutex_lock(&lock);
	PrintLabelled(out, &requests);
	PrintLabelled(out, &outcomes);
	PrintLabelled(out, &rejections);
	for (int i = 0; i < COUNTERS; i++)
	{
		PrintHead(out, counter_names[i].name, "counter", counter_names[i].help);
		fprintf(out, "%s %llu\n", counter_names[i].name,
				(unsigned long long) counters[i]);
	}
	for (int i = 0; i < HISTOGRAMS; i++)
		PrintHistogram(out, &histograms[i]);
	PrintHead(out, "gigs_receiver_last_commit_timestamp_seconds", "gauge",
			  "When the last batch was committed.");
	fprintf(out, "gigs_receiver_last_commit_timestamp_seconds %lld\n",
			(long long) last_commit);
	pthread_mutex_unlock(&lock);

	PrintHead(out, "gigs_receiver_waiting_events", "gauge",
			  "Webhooks that wait for an answer of the database.");
	fprintf(out, "gigs_receiver_waiting_events %lld\n", (long long) posts);
	PrintHead(out, "gigs_receiver_waiting_bytes", "gauge",
			  "Memory for bodies that have not been answered.");
	fprintf(out, "gigs_receiver_waiting_bytes %lld\n", (long long) bytes);
	PrintHead(out, "gigs_receiver_database_up", "gauge",
			  "Whether a database session is open.");
	fprintf(out, "gigs_receiver_database_up %d\n", DatabaseIsUp());
	PrintHead(out, "gigs_receiver_build_info", "gauge", "Versions.");
	fprintf(out,
			"gigs_receiver_build_info{version=\"%s\",libmicrohttpd=\"%s\",libpq=\"%d\"} 1\n",
			GIGS_RECEIVER_VERSION, MHD_get_version(), PQlibVersion());
}

static void
PrintHead(FILE *out, const char *name, const char *type, const char *help)
{
	fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void
PrintLabelled(FILE *out, const LabelledCounter *counter)
{
	PrintHead(out, counter->name, "counter", counter->help);
	for (int i = 0; i < counter->nlabels; i++)
		fprintf(out, "%s{%s=\"%s\"} %llu\n", counter->name, counter->label,
				counter->labels[i], (unsigned long long) counter->counts[i]);
}

static void
PrintHistogram(FILE *out, const HistogramData *histogram)
{
	uint64_t count = 0;

	PrintHead(out, histogram->name, "histogram", histogram->help);
	for (int i = 0; i < BUCKETS; i++)
	{
		count += histogram->counts[i];
		fprintf(out, "%s_bucket{le=\"%g\"} %llu\n", histogram->name,
				histogram->bounds[i], (unsigned long long) count);
	}
	fprintf(out, "%s_bucket{le=\"+Inf\"} %llu\n", histogram->name,
			(unsigned long long) histogram->count);
	fprintf(out, "%s_sum %g\n%s_count %llu\n", histogram->name, histogram->sum,
			histogram->name, (unsigned long long) histogram->count);
}
