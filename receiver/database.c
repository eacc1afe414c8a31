/*-------------------------------------------------------------------------
 *
 * database.c
 *	  Connections to the database.
 *
 * Each belongs to one thread, which may wait for it, but never without end.
 *
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "database.h"
#include "log.h"
#include "metrics.h"
#include "options.h"

/* Microseconds between attempts to connect. */
#define MIN_PAUSE 100000
#define MAX_PAUSE 10000000

static atomic_bool stopping;
static int stop_event;

static bool WaitForResult(Database *database, int64_t deadline);
static void IgnoreNotice(void *arg, const PGresult *result);

/*
 * Sets the defaults of connections, which the environment, a service file and
 * the connection string override.
 */
void
InitDatabases(void)
{
	setenv("PGTARGETSESSIONATTRS", "read-write", 0);
	setenv("PGCONNECT_TIMEOUT", "5", 0);
	setenv("PGAPPNAME", program, 0);
	stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

/*
 * Has all threads come to their end once they have nothing to do.
 */
void
StopDatabases(void)
{
	uint64_t one = 1;

	stopping = true;
	(void) !write(stop_event, &one, sizeof(one));
}

bool
DatabasesAreStopping(void)
{
	return stopping;
}

/*
 * Connects.  Returns false if that fails.
 */
bool
OpenDatabase(Database *database)
{
	const char *keywords[] = {"dbname", "client_encoding", NULL};
	const char *values[] = {options.database, "UTF8", NULL};

	database->connection = PQconnectdbParams(keywords, values, 1);
	if (PQstatus(database->connection) != CONNECTION_OK)
	{
		RejectDatabase(database, PQerrorMessage(database->connection));
		return false;
	}
	PQsetnonblocking(database->connection, 1);
	/* users' triggers could write what must not be logged */
	PQsetNoticeReceiver(database->connection, IgnoreNotice, NULL);
	return true;
}

void
CloseDatabase(Database *database)
{
	PQfinish(database->connection);
	database->connection = NULL;
}

/*
 * Closes a connection that cannot be used, and says why, unless it said so the
 * last time.
 */
void
RejectDatabase(Database *database, const char *message)
{
	char failure[sizeof(database->failure)];

	snprintf(failure, sizeof(failure), "%s", message);
	if (strcmp(failure, database->failure) != 0)
		LogMessage(LOG_LEVEL_ERROR, "%s", message);
	memcpy(database->failure, failure, sizeof(failure));
	CloseDatabase(database);
}

/*
 * Notes that a connection can be used.
 */
void
AcceptDatabase(Database *database)
{
	database->failure[0] = '\0';
	Count(COUNT_CONNECTS);
	LogMessage(LOG_LEVEL_INFO, "connected to database \"%s\" at \"%s\"",
			   PQdb(database->connection), PQhost(database->connection));
}

/*
 * Closes a connection that was in use, and says why: with the result, which is
 * an error, or NULL if the connection is lost or the server too slow.
 */
void
LoseDatabase(Database *database, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);

	Count(COUNT_LOST);
	LogMessage(LOG_LEVEL_WARNING, "closed the connection to the database: %s",
			   message != NULL ? message
			   : PQstatus(database->connection) == CONNECTION_BAD
				   ? PQerrorMessage(database->connection)
				   : "it did not answer in time");
	CloseDatabase(database);
}

/*
 * Waits before the next attempt to connect: longer each time, until a connection
 * has worked and the caller has set the pause to 0.
 */
void
PauseDatabase(Database *database)
{
	int64_t pause = database->pause * 2;

	if (pause < MIN_PAUSE)
		pause = MIN_PAUSE;
	if (pause > MAX_PAUSE)
		pause = MAX_PAUSE;
	database->pause = pause;
	WaitForEvent(database, -1, pause);
}

/*
 * Waits for the results of a query that has been sent.  Returns the last one, or
 * NULL if the connection is lost or the deadline has passed.
 *
 * Results end once the transaction has ended, so the last one is an error if the
 * commit failed.
 */
PGresult *
FinishQuery(Database *database, int64_t deadline)
{
	PGconn *connection = database->connection;
	PGresult *last = NULL;

	while (WaitForResult(database, deadline))
	{
		PGresult *result = PQgetResult(connection);

		if (result == NULL && PQstatus(connection) == CONNECTION_OK)
			return last;
		PQclear(last);
		last = result;
		if (result == NULL)
			break;
	}
	PQclear(last);
	return NULL;
}

/*
 * Waits until a result can be taken without waiting.
 */
static bool
WaitForResult(Database *database, int64_t deadline)
{
	PGconn *connection = database->connection;

	for (;;)
	{
		int unsent = PQflush(connection);
		int64_t remaining = deadline - MonotonicTime();
		struct pollfd fd = {.fd = PQsocket(connection), .events = POLLIN};

		if (unsent < 0)
			return false;
		if (unsent == 0 && !PQisBusy(connection))
			return true;
		if (unsent > 0)
			fd.events |= POLLOUT;
		if (remaining <= 0)
			return false;
		poll(&fd, 1, (int) (remaining / 1000) + 1);
		if ((fd.revents & ~POLLOUT) != 0 && !PQconsumeInput(connection))
			return false;
	}
}

/*
 * Waits for an event, but no longer than a number of microseconds.  Returns false
 * if the connection is lost meanwhile.
 */
bool
WaitForEvent(Database *database, int event, int64_t timeout)
{
	PGconn *connection = database->connection;
	struct pollfd fds[] = {
		{.fd = stop_event, .events = POLLIN},
		{.fd = event, .events = POLLIN},
		{.fd = connection != NULL ? PQsocket(connection) : -1, .events = POLLIN},
	};

	poll(fds, 3, (int) (timeout / 1000));
	if (fds[2].revents != 0)
		return PQconsumeInput(connection) != 0;
	return true;
}

static void
IgnoreNotice(void *arg, const PGresult *result)
{
	(void) arg;
	(void) result;
}
