/*-------------------------------------------------------------------------
 *
 * session.c
 *	  The database sessions that ingest.
 *
 * A session takes the posts that wait and ingests them by one call, which is a
 * transaction of its own.  They are answered once it has been committed.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "database.h"
#include "log.h"
#include "metrics.h"
#include "notify.h"
#include "options.h"
#include "queue.h"
#include "session.h"

#define BYTEAOID 17
#define TEXTOID 25
#define BYTEAARRAYOID 1001
#define TEXTARRAYOID 1009

#define STATEMENT "ingest"
#define MAX_ATTEMPTS 3
#define MAX_RETRY_PAUSE 20000  /* microseconds */
#define CHECK_INTERVAL 5000000 /* microseconds */
#define MAX_KEPT_BUFFER (8 << 20)

/* An array in PostgreSQL's binary format. */
typedef struct Buffer
{
	char *data;
	size_t len;
	size_t capacity;
} Buffer;

typedef struct Session
{
	pthread_t thread;
	Database database;
	Post *posts[MAX_BATCH_POSTS];
	Buffer bodies;
	Buffer signatures;
} Session;

typedef enum CallResult
{
	CALL_COMMITTED,
	CALL_CONFLICTED, /* worth another attempt */
	CALL_FAILED,	 /* perhaps for one of the posts alone */
	CALL_UNAVAILABLE /* and the connection is closed */
} CallResult;

static Session *sessions;

static void *RunSession(void *arg);
static bool PrepareSession(Session *session);
static char *FindExtension(Database *database);
static int64_t AnswerDeadline(void);
static void Work(Session *session);
static void IngestPosts(Session *session, Post **posts, int nposts);
static CallResult CallIngest(Session *session, Post **posts, int nposts);
static bool SendPosts(Session *session, Post **posts, int nposts);
static CallResult JudgeResult(const PGresult *result, Post **posts, int nposts);
static void ReadOutcome(const PGresult *result, int row, Post *post);
static int RejectionStatus(const char *sqlstate);
static char *DescribeRejection(const char *sqlstate, const char *message);
static void StartArray(Buffer *buffer, int n, uint32_t element_type);
static void AppendElement(Buffer *buffer, const char *value, size_t len);
static void AppendInt32(Buffer *buffer, uint32_t value);
static void AppendBytes(Buffer *buffer, const void *bytes, size_t len);

void
StartSessions(void)
{
	sessions = Reallocate(NULL, options.sessions * sizeof(Session));
	memset(sessions, 0, options.sessions * sizeof(Session));
	for (int i = 0; i < options.sessions; i++)
	{
		if (pthread_create(&sessions[i].thread, NULL, RunSession,
						   &sessions[i]) != 0)
		{
			LogMessage(LOG_LEVEL_ERROR, "could not create a thread");
			exit(1);
		}
	}
}

/*
 * Waits for the ends of the sessions, after StopDatabases().
 */
void
JoinSessions(void)
{
	for (int i = 0; i < options.sessions; i++)
		pthread_join(sessions[i].thread, NULL);
	free(sessions);
}

static void *
RunSession(void *arg)
{
	Session *session = arg;

	while (!DatabasesAreStopping())
	{
		if (OpenDatabase(&session->database) && PrepareSession(session))
		{
			AcceptDatabase(&session->database);
			SessionIsUp(true);
			Work(session);
			SessionIsUp(false);
		}
		PauseDatabase(&session->database);
	}
	CloseDatabase(&session->database);
	free(session->bodies.data);
	free(session->signatures.data);
	return NULL;
}

/*
 * Prepares the statement that ingests.  If that fails, closes the connection and
 * returns false.
 */
static bool
PrepareSession(Session *session)
{
	Database *database = &session->database;
	const Oid types[] = {BYTEAARRAYOID, TEXTARRAYOID};
	char *schema = FindExtension(database);
	char statement[256];
	PGresult *result = NULL;
	bool prepared;

	if (schema == NULL)
		return false;
	snprintf(statement, sizeof(statement),
			 "SELECT outcome, sqlstate, message FROM %s.ingest_gig_events($1, $2)",
			 schema);
	free(schema);
	if (PQsendPrepare(database->connection, STATEMENT, statement, 2, types))
		result = FinishQuery(database, AnswerDeadline());
	prepared = PQresultStatus(result) == PGRES_COMMAND_OK;
	if (!prepared)
		RejectDatabase(database, PQerrorMessage(database->connection));
	PQclear(result);
	return prepared;
}

/*
 * Returns the schema of the extension, quoted, if the session can ingest.
 * Otherwise closes the connection and returns NULL.
 */
static char *
FindExtension(Database *database)
{
	/* search_path stays the role's, for triggers of users */
	const char *query =
		"SELECT pg_catalog.quote_ident(n.nspname),"
		" pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
		" AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE'),"
		" pg_catalog.current_setting('transaction_read_only'),"
		" pg_catalog.set_config('statement_timeout', $1, false)"
		" FROM pg_catalog.pg_extension AS e, pg_catalog.pg_namespace AS n,"
		" pg_catalog.pg_proc AS p"
		" WHERE e.extname OPERATOR(pg_catalog.=) 'gigs_webhooks'"
		" AND n.oid OPERATOR(pg_catalog.=) e.extnamespace"
		" AND p.pronamespace OPERATOR(pg_catalog.=) n.oid"
		" AND p.proname OPERATOR(pg_catalog.=) 'ingest_gig_events'"
		" AND p.proargtypes OPERATOR(pg_catalog.=) '1001 1009'";
	char timeout[32];
	const char *values[] = {timeout};
	PGresult *result = NULL;
	char *schema = NULL;

	snprintf(timeout, sizeof(timeout), "%llds",
			 (long long) options.answer_timeout);
	if (PQsendQueryParams(database->connection, query, 1, NULL, values, NULL,
						  NULL, 0))
		result = FinishQuery(database, AnswerDeadline());
	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		RejectDatabase(database, PQerrorMessage(database->connection));
	else if (PQntuples(result) != 1)
		RejectDatabase(database,
					   "the database has no extension \"gigs_webhooks\"");
	else if (strcmp(PQgetvalue(result, 0, 1), "t") != 0)
		RejectDatabase(database,
					   "the role may not ingest; use grant_gig_receiver()");
	else if (strcmp(PQgetvalue(result, 0, 2), "off") != 0)
		RejectDatabase(database, "the session is read-only");
	else
		schema = strdup(PQgetvalue(result, 0, 0));
	PQclear(result);
	return schema;
}

static int64_t
AnswerDeadline(void)
{
	return MonotonicTime() + options.answer_timeout * INT64_C(1000000);
}

/*
 * Ingests until the connection is lost or the sessions stop.
 */
static void
Work(Session *session)
{
	Database *database = &session->database;
	int64_t checked_at = MonotonicTime();

	while (database->connection != NULL)
	{
		int nposts = TakeBatch(session->posts);

		if (nposts > 0)
		{
			IngestPosts(session, session->posts, nposts);
			AnswerPosts(session->posts, nposts);
		}
		else if (DatabasesAreStopping())
			return;
		else if (!WaitForEvent(database, QueueEvent(), CHECK_INTERVAL))
			LoseDatabase(database, NULL);
		else if (MonotonicTime() - checked_at >= CHECK_INTERVAL)
		{
			/* the privilege may have been revoked, or the server demoted */
			char *schema = FindExtension(database);

			if (schema != NULL)
				database->pause = 0;
			else
				Count(COUNT_LOST);
			free(schema);
			checked_at = MonotonicTime();
		}
	}
}

/*
 * Ingests posts, in halves if all together fail.  Sets the status of each.
 */
static void
IngestPosts(Session *session, Post **posts, int nposts)
{
	CallResult result = CallIngest(session, posts, nposts);

	for (int attempt = 1; result == CALL_CONFLICTED && attempt < MAX_ATTEMPTS;
		 attempt++)
	{
		Count(COUNT_RETRIES);
		usleep(random() % MAX_RETRY_PAUSE);
		result = CallIngest(session, posts, nposts);
	}
	if (result == CALL_COMMITTED)
		return;
	if (nposts > 1 && result != CALL_UNAVAILABLE)
	{
		int half = nposts / 2;

		IngestPosts(session, posts, half);
		IngestPosts(session, posts + half, nposts - half);
		return;
	}
	if (result == CALL_FAILED)
		Count(COUNT_FAILED);
	for (int i = 0; i < nposts; i++)
		posts[i]->status = 503;
}

static CallResult
CallIngest(Session *session, Post **posts, int nposts)
{
	Database *database = &session->database;
	int64_t started_at = MonotonicTime();
	int64_t deadline = posts[nposts - 1]->deadline;
	PGresult *result = NULL;
	CallResult judgement;

	if (database->connection == NULL || started_at >= deadline)
		return CALL_UNAVAILABLE;
	if (SendPosts(session, posts, nposts))
		result = FinishQuery(database, deadline);
	judgement = JudgeResult(result, posts, nposts);
	if (judgement == CALL_COMMITTED)
	{
		database->pause = 0;
		CountBatch(nposts, MonotonicTime() - started_at);
		NotifyConsumers();
	}
	else if (judgement == CALL_UNAVAILABLE)
		LoseDatabase(database, result);
	PQclear(result);
	return judgement;
}

static bool
SendPosts(Session *session, Post **posts, int nposts)
{
	Buffer *bodies = &session->bodies;
	Buffer *signatures = &session->signatures;
	const char *values[2];
	int lengths[2];
	int formats[2] = {1, 1};
	bool sent;

	StartArray(bodies, nposts, BYTEAOID);
	StartArray(signatures, nposts, TEXTOID);
	for (int i = 0; i < nposts; i++)
	{
		const char *signature = posts[i]->signature;

		AppendElement(bodies, posts[i]->body != NULL ? posts[i]->body : "",
					  posts[i]->len);
		AppendElement(signatures, signature,
					  signature != NULL ? strlen(signature) : 0);
	}
	values[0] = bodies->data;
	values[1] = signatures->data;
	lengths[0] = (int) bodies->len;
	lengths[1] = (int) signatures->len;
	sent = PQsendQueryPrepared(session->database.connection, STATEMENT, 2,
							   values, lengths, formats, 0) == 1;
	if (bodies->capacity > MAX_KEPT_BUFFER)
	{
		free(bodies->data);
		*bodies = (Buffer){NULL, 0, 0};
	}
	return sent;
}

/*
 * Reads the outcomes of a call that has been committed, or tells by its error
 * what to do.
 */
static CallResult
JudgeResult(const PGresult *result, Post **posts, int nposts)
{
	/* classes of errors that no single post can cause */
	static const char unavailable[] = "08 25 26 28 3D 42 53 57 58";
	static LogLimit limit;
	const char *sqlstate;
	char class[3] = "";

	if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == nposts)
	{
		for (int i = 0; i < nposts; i++)
			ReadOutcome(result, i, posts[i]);
		return CALL_COMMITTED;
	}
	sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	if (sqlstate == NULL)
		return CALL_UNAVAILABLE;
	if (strcmp(sqlstate, "40001") == 0 || strcmp(sqlstate, "40P01") == 0)
		return CALL_CONFLICTED;
	memcpy(class, sqlstate, 2);
	if (strstr(unavailable, class) != NULL)
		return CALL_UNAVAILABLE;
	/* the message might quote the body */
	if (LogIsDue(&limit))
		LogMessage(LOG_LEVEL_ERROR,
				   "could not ingest: SQLSTATE %s, see the server's log",
				   sqlstate);
	return CALL_FAILED;
}

static void
ReadOutcome(const PGresult *result, int row, Post *post)
{
	const char *outcome = PQgetvalue(result, row, 0);
	const char *sqlstate = PQgetvalue(result, row, 1);
	bool rejected = strcmp(outcome, "rejected") == 0;
	static LogLimit limit;

	CountOutcome(outcome, rejected ? sqlstate : NULL);
	if (rejected)
	{
		if (LogIsDue(&limit))
			LogMessage(LOG_LEVEL_WARNING, "rejected a webhook: SQLSTATE %s",
					   sqlstate);
		post->status = RejectionStatus(sqlstate);
		post->text = DescribeRejection(sqlstate, PQgetvalue(result, row, 2));
		return;
	}
	post->status = 200;
	for (int i = 0; i < OUTCOMES; i++)
	{
		if (strcmp(outcome, outcome_names[i]) == 0)
			post->outcome = i;
	}
}

/*
 * Returns the HTTP status of a rejection: not authentic, too large, or else bad.
 */
static int
RejectionStatus(const char *sqlstate)
{
	if (strcmp(sqlstate, "28000") == 0)
		return 401;
	if (strcmp(sqlstate, "54000") == 0)
		return 413;
	return 400;
}

static char *
DescribeRejection(const char *sqlstate, const char *message)
{
	char *text = NULL;
	size_t len;
	FILE *out = OpenText(&text, &len);

	fputs("{\"outcome\": \"rejected\", \"sqlstate\": ", out);
	PrintJsonString(out, sqlstate);
	fputs(", \"message\": ", out);
	PrintJsonString(out, message);
	fputs("}\n", out);
	fclose(out);
	return text;
}

/*
 * Starts a one-dimensional array, whose elements may be null.
 */
static void
StartArray(Buffer *buffer, int n, uint32_t element_type)
{
	buffer->len = 0;
	AppendInt32(buffer, 1); /* dimension */
	AppendInt32(buffer, 1); /* there may be nulls */
	AppendInt32(buffer, element_type);
	AppendInt32(buffer, (uint32_t) n);
	AppendInt32(buffer, 1); /* lower bound */
}

static void
AppendElement(Buffer *buffer, const char *value, size_t len)
{
	AppendInt32(buffer, value == NULL ? UINT32_MAX : (uint32_t) len);
	if (value != NULL)
		AppendBytes(buffer, value, len);
}

static void
AppendInt32(Buffer *buffer, uint32_t value)
{
	uint32_t swapped = htonl(value);

	AppendBytes(buffer, &swapped, sizeof(swapped));
}

static void
AppendBytes(Buffer *buffer, const void *bytes, size_t len)
{
	if (buffer->len + len > buffer->capacity)
	{
		buffer->capacity = (buffer->len + len) * 2;
		buffer->data = Reallocate(buffer->data, buffer->capacity);
	}
	memcpy(buffer->data + buffer->len, bytes, len);
	buffer->len += len;
}
