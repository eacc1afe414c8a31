/*-------------------------------------------------------------------------
 *
 * notify.c
 *	  Telling consumers that there are events.
 *
 * A transaction that notifies takes a lock that others that notify wait for, so
 * this is never part of one that ingests.  It has a connection of its own, and
 * many batches share a notification.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "database.h"
#include "log.h"
#include "notify.h"
#include "options.h"

/* Microseconds. */
#define MIN_INTERVAL 50000
#define MAX_WAIT 5000000
#define ANSWER_TIMEOUT 5000000

static pthread_t thread;
static int commit_event = -1;

static void *RunNotify(void *arg);
static void NotifyOfCommits(Database *database);
static void Notify(Database *database);

/*
 * Starts the thread if there is a channel to notify.
 */
void
StartNotify(void)
{
	if (*options.notify == '\0')
		return;
	commit_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (commit_event < 0 || pthread_create(&thread, NULL, RunNotify, NULL) != 0)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not create a thread");
		exit(1);
	}
}

/*
 * Has consumers notified of a commit, soon.
 */
void
NotifyConsumers(void)
{
	uint64_t one = 1;

	if (commit_event >= 0)
		(void) !write(commit_event, &one, sizeof(one));
}

/*
 * Waits for the end of the thread, after StopDatabases().
 */
void
JoinNotify(void)
{
	if (commit_event >= 0)
		pthread_join(thread, NULL);
}

static void *
RunNotify(void *arg)
{
	Database database = {0};

	(void) arg;
	while (!DatabasesAreStopping())
	{
		if (OpenDatabase(&database))
		{
			AcceptDatabase(&database);
			NotifyOfCommits(&database);
		}
		PauseDatabase(&database);
	}
	CloseDatabase(&database);
	return NULL;
}

/*
 * Notifies until the connection is lost or the threads are to end.
 */
static void
NotifyOfCommits(Database *database)
{
	while (database->connection != NULL && !DatabasesAreStopping())
	{
		uint64_t commits;

		if (read(commit_event, &commits, sizeof(commits)) > 0)
		{
			Notify(database);
			usleep(MIN_INTERVAL);
		}
		else if (!WaitForEvent(database, commit_event, MAX_WAIT))
			LoseDatabase(database, NULL);
	}
}

/*
 * Notifications that are lost with the connection do no harm: consumers poll as
 * well.
 */
static void
Notify(Database *database)
{
	const char *values[] = {options.notify};
	PGresult *result = NULL;

	if (PQsendQueryParams(database->connection,
						  "SELECT pg_catalog.pg_notify($1, '')", 1, NULL,
						  values, NULL, NULL, 0))
		result = FinishQuery(database, MonotonicTime() + ANSWER_TIMEOUT);
	if (PQresultStatus(result) == PGRES_TUPLES_OK)
		database->pause = 0;
	else
		LoseDatabase(database, result);
	PQclear(result);
}
