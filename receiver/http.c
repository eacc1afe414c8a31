/*-------------------------------------------------------------------------
 *
 * http.c
 *	  Receiving webhooks by HTTP.
 *
 * libmicrohttpd parses requests.  A request that is complete is suspended until
 * a session has an answer for it.  All of this happens in one thread, which calls
 * RunHttp().
 *
 * A client has request_timeout to send a whole request, from the start of the
 * connection or the last answer on, and again to read the answer.  So clients are
 * in a list in the order of their deadlines.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

#include "http.h"
#include "log.h"
#include "metrics.h"
#include "options.h"
#include "queue.h"

#define SIGNATURE_HEADER "X-Argyle-Signature"
#define MAX_SIGNATURE_LEN 256
#define RETRY_AFTER "5" /* seconds */

/* Bytes of max_header_size: for a header field besides its text, for the answer. */
#define FIELD_MEMORY 64
#define ANSWER_MEMORY 256

/* A client.  It is in the list unless a request of it waits for an answer. */
typedef struct Peer
{
	TAILQ_ENTRY(Peer) link;
	int socket;
	bool is_listed;
	int64_t deadline;
} Peer;

/* What is read from the headers of a request. */
typedef struct Headers
{
	int content_lengths;
	uint64_t content_length;
	int transfer_encodings;
	int signatures;
	bool is_chunked;
	bool is_malformed;
	const char *signature;
	const char *end; /* of what has been read */
} Headers;

static struct MHD_Daemon *daemon_handle;
static struct MHD_Response *outcome_responses[OUTCOMES];
static TAILQ_HEAD(PeerList, Peer) peers = TAILQ_HEAD_INITIALIZER(peers);
static int nrequests;	/* begun and not completed */
static bool has_called; /* RunHttp(): the functions below */
static bool quiescing;

static char *ReadWholeFile(const char *path);
static void LogHttp(void *arg, const char *format, va_list args);
static void HandleClient(void *arg, struct MHD_Connection *connection,
						 void **context,
						 enum MHD_ConnectionNotificationCode code);
static void ListPeer(Peer *peer);
static void UnlistPeer(Peer *peer);
static Peer *GetPeer(struct MHD_Connection *connection);
static enum MHD_Result HandleRequest(void *arg,
									 struct MHD_Connection *connection,
									 const char *url, const char *method,
									 const char *version, const char *data,
									 size_t *len, void **context);
static enum MHD_Result StartRequest(Post *post, const char *url,
									const char *method, const char *version);
static enum MHD_Result ReadHeader(void *arg, enum MHD_ValueKind kind,
								  const char *name, size_t name_len,
								  const char *value, size_t value_len);
static bool NameIsToken(const char *name, size_t len);
static bool HasGap(const char *from, const char *to, ptrdiff_t max);
static bool IsFolded(const char *name, size_t name_len, const char *value);
static char *CopySignature(const char *value);
static void AppendBody(Post *post, const char *data, size_t len);
static enum MHD_Result Answer(Post *post);
static struct MHD_Response *MakeResponse(Post *post);
static const char *DescribeStatus(int status);
static void HandleCompletion(void *arg, struct MHD_Connection *connection,
							 void **context,
							 enum MHD_RequestTerminationCode code);

/*
 * Starts to serve a socket that listens.
 */
void
StartHttp(int listen_socket)
{
	unsigned int flags =
		MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
	bool tls = *options.tls_certificate != '\0';
	struct MHD_OptionItem tls_options[] = {
		{MHD_OPTION_HTTPS_MEM_CERT, 0, NULL},
		{MHD_OPTION_HTTPS_MEM_KEY, 0, NULL},
		{MHD_OPTION_END, 0, NULL},
	};

	if (tls)
	{
		flags |= MHD_USE_TLS;
		tls_options[0].ptr_value = ReadWholeFile(options.tls_certificate);
		tls_options[1].ptr_value = ReadWholeFile(options.tls_key);
	}
	daemon_handle =
		MHD_start_daemon(flags, 0, NULL, NULL, HandleRequest, NULL,
						 MHD_OPTION_EXTERNAL_LOGGER, LogHttp, NULL,
						 MHD_OPTION_LISTEN_SOCKET, listen_socket,
						 MHD_OPTION_CONNECTION_LIMIT,
						 (unsigned int) options.max_connections,
						 MHD_OPTION_CONNECTION_MEMORY_LIMIT,
						 (size_t) options.max_header_size,
						 MHD_OPTION_CONNECTION_MEMORY_INCREMENT, (size_t) 1024,
						 MHD_OPTION_CONNECTION_TIMEOUT,
						 (unsigned int) options.request_timeout,
						 MHD_OPTION_STRICT_FOR_CLIENT, 1,
						 MHD_OPTION_NOTIFY_CONNECTION, HandleClient, NULL,
						 MHD_OPTION_NOTIFY_COMPLETED, HandleCompletion, NULL,
						 MHD_OPTION_ARRAY, tls ? tls_options : &tls_options[2],
						 MHD_OPTION_END);
	free(tls_options[0].ptr_value);
	free(tls_options[1].ptr_value);
	if (daemon_handle == NULL)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not start to receive");
		exit(1);
	}
	for (int i = 0; i < OUTCOMES; i++)
	{
		Post post = {.status = 200, .outcome = i};

		outcome_responses[i] = MakeResponse(&post);
	}
}

static char *
ReadWholeFile(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = NULL;
	size_t len = 0;

	if (file == NULL || getdelim(&text, &len, '\0', file) < 0)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not read file \"%s\": %m", path);
		exit(1);
	}
	fclose(file);
	return text;
}

/*
 * Logs what libmicrohttpd has to say before it serves.  Later it speaks of what
 * clients do.
 */
static void
LogHttp(void *arg, const char *format, va_list args)
{
	char message[512];

	(void) arg;
	if (daemon_handle != NULL)
		return;
	vsnprintf(message, sizeof(message), format, args);
	LogMessage(LOG_LEVEL_ERROR, "%s", message);
}

/*
 * Returns a file descriptor that is readable when RunHttp() has something to do.
 */
int
HttpEvent(void)
{
	return MHD_get_daemon_info(daemon_handle, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
}

/*
 * Serves the clients: reads what they have sent, and sends answers.  Returns the
 * microseconds until it wants to be called in any case.
 */
int64_t
RunHttp(void)
{
	int64_t now = MonotonicTime();
	MHD_UNSIGNED_LONG_LONG timeout;
	Peer *peer;

	for (Post *post = TakeAnswered(), *next; post != NULL; post = next)
	{
		next = post->next;
		MHD_resume_connection(post->connection);
	}
	ShedExpired(now);
	while ((peer = TAILQ_FIRST(&peers)) != NULL && peer->deadline <= now)
	{
		UnlistPeer(peer);
		/*
		 * libmicrohttpd finds it closed, but 0.9 not if a trailer has filled its
		 * memory.  Such a connection it closes by MHD_OPTION_CONNECTION_TIMEOUT.
		 */
		shutdown(peer->socket, SHUT_RDWR);
	}
	has_called = false;
	MHD_run(daemon_handle);
	WakeSessions();
	if (MHD_get_timeout(daemon_handle, &timeout) != MHD_YES || timeout > 0)
		return 100000;

	/*
	 * There is more to do.  But libmicrohttpd 0.9 says so as well, without end,
	 * of a request whose chunk extension or trailer has filled its memory.
	 */
	return has_called ? 0 : 1000;
}

/*
 * Stops to accept connections.  Answers close theirs from now on.
 */
void
QuiesceHttp(void)
{
	quiescing = true;
	/* what waits in its backlog is refused rather than left waiting */
	close(MHD_quiesce_daemon(daemon_handle));
}

/*
 * Tells whether no request is under way.
 */
bool
HttpIsIdle(void)
{
	return nrequests == 0;
}

void
StopHttp(void)
{
	MHD_stop_daemon(daemon_handle);
	for (int i = 0; i < OUTCOMES; i++)
		MHD_destroy_response(outcome_responses[i]);
}

/*
 * Called when a client connects, and when its connection is closed.
 */
static void
HandleClient(void *arg, struct MHD_Connection *connection, void **context,
			 enum MHD_ConnectionNotificationCode code)
{
	Peer *peer = *context;

	(void) arg;
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
	{
		peer = Reallocate(NULL, sizeof(Peer));
		peer->socket = MHD_get_connection_info(connection,
											   MHD_CONNECTION_INFO_CONNECTION_FD)
						   ->connect_fd;
		peer->is_listed = false;
		ListPeer(peer);
		*context = peer;
	}
	else
	{
		UnlistPeer(peer);
		free(peer);
	}
}

/*
 * Gives a client request_timeout from now on.
 */
static void
ListPeer(Peer *peer)
{
	UnlistPeer(peer);
	peer->deadline =
		MonotonicTime() + options.request_timeout * INT64_C(1000000);
	TAILQ_INSERT_TAIL(&peers, peer, link);
	peer->is_listed = true;
}

static void
UnlistPeer(Peer *peer)
{
	if (peer->is_listed)
		TAILQ_REMOVE(&peers, peer, link);
	peer->is_listed = false;
}

static Peer *
GetPeer(struct MHD_Connection *connection)
{
	return MHD_get_connection_info(connection,
								   MHD_CONNECTION_INFO_SOCKET_CONTEXT)
		->socket_context;
}

/*
 * Called with a request's header, then with each piece of its body, then with its
 * end, and once more with the end when it has been resumed.
 */
static enum MHD_Result
HandleRequest(void *arg, struct MHD_Connection *connection, const char *url,
			  const char *method, const char *version, const char *data,
			  size_t *len, void **context)
{
	Post *post = *context;

	(void) arg;
	has_called = true;
	if (post == NULL)
	{
		post = Reallocate(NULL, sizeof(Post));
		*post = (Post){.connection = connection,
					   .started_at = MonotonicTime(),
					   .outcome = -1};
		*context = post;
		nrequests++;
		return StartRequest(post, url, method, version);
	}
	if (*len > 0)
	{
		AppendBody(post, data, *len);
		*len = 0;
		return MHD_YES;
	}
	if (post->status == 0)
	{
		UnlistPeer(GetPeer(connection));
		post->deadline =
			MonotonicTime() + options.answer_timeout * INT64_C(1000000);
		if (EnqueuePost(post))
		{
			MHD_suspend_connection(connection);
			return MHD_YES;
		}
		post->status = 503;
	}
	return Answer(post);
}

/*
 * Checks the header of a request.  One that is refused is read to its end, so
 * that the connection can be kept; but one that is ambiguous or too large is
 * answered at once, and its connection closed.
 */
static enum MHD_Result
StartRequest(Post *post, const char *url, const char *method,
			 const char *version)
{
	Headers headers = {.end = version + strlen(version)};
	size_t len = MHD_get_connection_info(post->connection,
										 MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)
					 ->header_size;
	int nfields = MHD_get_connection_values_n(post->connection,
											  MHD_HEADER_KIND | MHD_COOKIE_KIND |
												  MHD_GET_ARGUMENT_KIND,
											  NULL, NULL);
	bool is_ambiguous;

	MHD_get_connection_values_n(post->connection, MHD_HEADER_KIND, ReadHeader,
								&headers);
	is_ambiguous = headers.is_malformed || headers.content_lengths > 1 ||
				   headers.transfer_encodings > 1 || headers.signatures > 1 ||
				   HasGap(headers.end, method + len, 4);
	if (headers.transfer_encodings > 0 &&
		(headers.content_lengths > 0 || !headers.is_chunked ||
		 strcmp(version, MHD_HTTP_VERSION_1_1) != 0))
		is_ambiguous = true;
	if (is_ambiguous ||
		headers.content_length > (uint64_t) options.max_body_size)
	{
		post->status = is_ambiguous ? 400 : 413;
		return Answer(post);
	}

	/* else libmicrohttpd might have no memory to answer what is committed */
	if (len + (size_t) nfields * FIELD_MEMORY + ANSWER_MEMORY >
		(size_t) options.max_header_size)
		post->status = 431;
	else if (strcmp(url, options.path) != 0)
		post->status = 404;
	else if (strcmp(method, MHD_HTTP_METHOD_POST) != 0)
		post->status = 405;
	else if (headers.content_lengths == 0 && headers.transfer_encodings == 0)
		post->status = 411;
	else
	{
		post->content_length = headers.content_lengths > 0
								   ? (size_t) headers.content_length
								   : (size_t) options.max_body_size;
		if (headers.signature != NULL)
			post->signature = CopySignature(headers.signature);
	}
	return MHD_YES;
}

/*
 * Notes what matters of one header.
 */
static enum MHD_Result
ReadHeader(void *arg, enum MHD_ValueKind kind, const char *name,
		   size_t name_len, const char *value, size_t value_len)
{
	Headers *headers = arg;

	(void) kind;
	if (!NameIsToken(name, name_len) || HasGap(headers->end, name, 2) ||
		IsFolded(name, name_len, value))
		headers->is_malformed = true;
	else if (strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0)
	{
		headers->content_lengths++;
		headers->content_length = strtoull(value, NULL, 10);
	}
	else if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0)
	{
		headers->transfer_encodings++;
		headers->is_chunked = strcasecmp(value, "chunked") == 0;
	}
	else if (strcasecmp(name, SIGNATURE_HEADER) == 0)
	{
		headers->signatures++;
		headers->signature = value;
	}
	headers->end = value + value_len;
	return MHD_YES;
}

/*
 * libmicrohttpd 0.9 accepts white space before the colon as a part of the name.
 */
static bool
NameIsToken(const char *name, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) name[i];

		if (!isalnum(c) && (c == '\0' || strchr("!#$%&'*+-.^_`|~", c) == NULL))
			return false;
	}
	return len > 0;
}

/*
 * Tells whether there is more between two lines than a number of bytes that end
 * them.
 *
 * libmicrohttpd 0.9 drops what follows a NUL, and takes a line that begins with a
 * NUL or a colon for the end of the header.
 */
static bool
HasGap(const char *from, const char *to, ptrdiff_t max)
{
#if MHD_VERSION < 0x00097700
	return to <= from || to - from > max;
#else
	(void) from;
	(void) to;
	(void) max;
	return false;
#endif
}

/*
 * Tells whether a header is folded, that is continued on a second line.
 *
 * libmicrohttpd 0.9 appends the second line to the name, and so writes over the
 * value, which else is behind the name.
 */
static bool
IsFolded(const char *name, size_t name_len, const char *value)
{
#if MHD_VERSION < 0x00097700
	const char *after = name + name_len + 1;

	return value < after || strspn(after, " \t") < (size_t) (value - after);
#else
	(void) name;
	(void) name_len;
	(void) value;
	return false;
#endif
}

/*
 * A signature that is too long, or that PostgreSQL could refuse as text, becomes
 * an empty one, which is as invalid.
 */
static char *
CopySignature(const char *value)
{
	size_t len = strlen(value);
	char *copy;

	if (len > MAX_SIGNATURE_LEN)
		len = 0;
	for (size_t i = 0; i < len; i++)
	{
		if ((unsigned char) value[i] > '~')
			len = 0;
	}
	copy = Reallocate(NULL, len + 1);
	memcpy(copy, value, len);
	copy[len] = '\0';
	return copy;
}

/*
 * Appends to a body, or reads over it if the request is refused.
 */
static void
AppendBody(Post *post, const char *data, size_t len)
{
	if (post->status != 0)
		return;
	if (post->len + len > (size_t) options.max_body_size)
	{
		post->status = 413;
		return;
	}
	if (post->len + len > post->capacity)
	{
		size_t capacity = post->capacity * 2;

		if (capacity > post->content_length)
			capacity = post->content_length;
		if (capacity < post->len + len)
			capacity = post->len + len;
		if (!ReserveBytes(capacity - post->capacity))
		{
			Count(COUNT_SHED);
			post->status = 503;
			return;
		}
		post->capacity = capacity;
		post->body = Reallocate(post->body, capacity);
	}
	memcpy(post->body + post->len, data, len);
	post->len += len;
}

/*
 * Sends the answer to a post, which has a status.
 */
static enum MHD_Result
Answer(Post *post)
{
	unsigned int status = (unsigned int) post->status;
	struct MHD_Response *response;
	enum MHD_Result result;

	/* one that does not read its answer would keep its connection forever */
	ListPeer(GetPeer(post->connection));
	if (post->outcome >= 0 && !quiescing)
		return MHD_queue_response(post->connection, status,
								  outcome_responses[post->outcome]);
	response = MakeResponse(post);
	if (quiescing)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	result = MHD_queue_response(post->connection, status, response);
	MHD_destroy_response(response);
	return result;
}

static struct MHD_Response *
MakeResponse(Post *post)
{
	char *text = post->text;
	struct MHD_Response *response;

	post->text = NULL;
	if (text == NULL && post->outcome >= 0)
		text = Format("{\"outcome\": \"%s\"}\n", outcome_names[post->outcome]);
	if (text == NULL)
		text = Format("{\"error\": \"%s\"}\n", DescribeStatus(post->status));
	response = MHD_create_response_from_buffer(strlen(text), text,
											   MHD_RESPMEM_MUST_FREE);
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
							"application/json");
	if (post->status == 405)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "POST");
	if (post->status == 503)
		MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER,
								RETRY_AFTER);
	return response;
}

static const char *
DescribeStatus(int status)
{
	switch (status)
	{
		case 400:
			return "malformed header";
		case 404:
			return "no such path";
		case 405:
			return "method is not POST";
		case 411:
			return "length of body is missing";
		case 413:
			return "body is too large";
		case 431:
			return "header is too large";
		case 503:
			return "try again later";
		default:
			return "could not ingest";
	}
}

/*
 * Called when a request has been answered, or its connection closed before.
 */
static void
HandleCompletion(void *arg, struct MHD_Connection *connection, void **context,
				 enum MHD_RequestTerminationCode code)
{
	Post *post = *context;
	Peer *peer = GetPeer(connection);

	(void) arg;
	(void) code;
	has_called = true;
	if (post == NULL)
		return;
	if (post->status != 0)
		CountRequest(post->status, MonotonicTime() - post->started_at);
	ReleaseBytes(post->capacity);
	free(post->signature);
	free(post->body);
	free(post->text);
	free(post);
	*context = NULL;
	nrequests--;
	ListPeer(peer);
}
