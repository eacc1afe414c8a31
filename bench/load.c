/*-------------------------------------------------------------------------
 *
 * load.c
 *	  Posts a stream of webhooks to an HTTP server, and takes the time.
 *
 *	  load [-l] CONNECTIONS HOST PORT FILE
 *
 * FILE is what bench/stream prints.  Every connection is kept alive, and posts
 * its next webhook when the last one has been answered; an event goes to the
 * one that its account falls to, so that the order within an account is kept.
 * An answer other than 2xx is an error.  Prints the seconds from the start to
 * the last answer, or with -l and one connection the median of the requests'
 * seconds, and the time of 99 % of them.
 *
 *-------------------------------------------------------------------------
 */
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "events.h"

#define MAX_CONNECTIONS 1024
#define MAX_ANSWER 4096

typedef struct Request
{
	char *text;
	size_t length;
} Request;

typedef struct Connection
{
	int fd;
	Request *requests;
	int nrequests;
	int next;
	double *latencies; /* of the requests, in seconds */
	double sent_at;
	char answer[MAX_ANSWER + 1];
	size_t answered;
} Connection;

const char program[] = "load";

static Connection connections[MAX_CONNECTIONS];
static int nconnections;

static Request
MakeRequest(const Event *event, const char *host, const char *port)
{
	static const char format[] = "POST /webhook HTTP/1.1\r\n"
								 "Host: %s:%s\r\n"
								 "Content-Type: application/json\r\n"
								 "Content-Length: %zu\r\n"
								 "X-Argyle-Signature: %s\r\n"
								 "\r\n"
								 "%s";
	Request request;
	int length = asprintf(&request.text, format, host, port,
						  strlen(event->columns[BODY]),
						  event->columns[SIGNATURE], event->columns[BODY]);

	if (length < 0)
		Fail("asprintf", "out of memory");
	request.length = (size_t) length;
	return request;
}

static void
DealEvents(const Event *events, int nevents, const char *host, const char *port)
{
	for (int i = 0; i < nconnections; i++)
	{
		connections[i].requests = Allocate(nevents * sizeof(Request));
		connections[i].latencies = Allocate(nevents * sizeof(double));
	}
	for (int i = 0; i < nevents; i++)
	{
		Connection *connection = &connections[PlaceOf(&events[i], nconnections)];

		connection->requests[connection->nrequests++] =
			MakeRequest(&events[i], host, port);
	}
}

static int
Connect(const char *host, const char *port)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *address;
	int on = 1;
	int fd;
	int error = getaddrinfo(host, port, &hints, &address);

	if (error != 0)
		Fail(host, gai_strerror(error));
	fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, address->ai_addr, address->ai_addrlen) != 0 ||
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0)
		Fail(host, "no connection");
	freeaddrinfo(address);
	return fd;
}

/*
 * The socket blocks, but it is empty when a request is due.
 */
static void
SendNext(Connection *connection)
{
	const Request *request = &connection->requests[connection->next++];
	size_t sent = 0;

	connection->sent_at = Now();
	while (sent < request->length)
	{
		ssize_t n = send(connection->fd, request->text + sent,
						 request->length - sent, MSG_NOSIGNAL);

		if (n < 0)
			Fail("send", "the connection broke");
		sent += (size_t) n;
	}
	connection->answered = 0;
}

/*
 * Tells whether an answer is complete, and sees to it that it is a good one.
 */
static bool
IsAnswered(const Connection *connection)
{
	const char *answer = connection->answer;
	const char *end = strstr(answer, "\r\n\r\n");
	const char *length;

	if (end == NULL)
		return false;
	if (strncmp(answer, "HTTP/1.1 2", 10) != 0)
		Fail("answer", answer);
	length = strcasestr(answer, "\r\nContent-Length:");
	if (length == NULL || length > end)
		Fail("answer without a length", answer);
	length += strlen("\r\nContent-Length:");
	return connection->answered >=
		   (size_t) (end + 4 - answer) + strtoul(length, NULL, 10);
}

/* Tells whether the answer is complete now. */
static bool
Receive(Connection *connection)
{
	size_t room = MAX_ANSWER - connection->answered;
	ssize_t n = recv(connection->fd, connection->answer + connection->answered,
					 room, 0);

	if (n <= 0)
		Fail("recv", room == 0 ? "an answer is too long" : "connection broke");
	connection->answered += (size_t) n;
	connection->answer[connection->answered] = '\0';
	return IsAnswered(connection);
}

static int
MakePoll(void)
{
	int poll = epoll_create1(EPOLL_CLOEXEC);

	for (int i = 0; i < nconnections; i++)
	{
		struct epoll_event event = {.events = EPOLLIN,
									.data.ptr = &connections[i]};

		if (epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &event) != 0)
			Fail("epoll", "failed");
	}
	return poll;
}

/* Goes on with a connection that has something to read. */
static int
GoOn(Connection *connection)
{
	if (!Receive(connection))
		return 0;
	connection->latencies[connection->next - 1] = Now() - connection->sent_at;
	if (connection->next < connection->nrequests)
		SendNext(connection);
	return 1;
}

static double
PostAll(int nevents)
{
	struct epoll_event ready[MAX_CONNECTIONS];
	int poll = MakePoll();
	double began = Now();

	for (int i = 0; i < nconnections; i++)
	{
		if (connections[i].nrequests > 0)
			SendNext(&connections[i]);
	}
	while (nevents > 0)
	{
		int n = epoll_wait(poll, ready, nconnections, -1);

		for (int i = 0; i < n; i++)
			nevents -= GoOn(ready[i].data.ptr);
	}
	return Now() - began;
}

int
main(int argc, char **argv)
{
	bool print_latencies = argc > 1 && strcmp(argv[1], "-l") == 0;
	Event *events;
	int nevents;
	double seconds;

	argv += print_latencies;
	if (argc - print_latencies != 5)
		Fail("usage", "load [-l] CONNECTIONS HOST PORT FILE");
	nconnections = atoi(argv[1]);
	if (nconnections < 1 || nconnections > MAX_CONNECTIONS)
		Fail("usage", "too few or too many connections");
	nevents = ReadEvents(argv[4], &events);
	DealEvents(events, nevents, argv[2], argv[3]);
	for (int i = 0; i < nconnections; i++)
		connections[i].fd = Connect(argv[2], argv[3]);
	seconds = PostAll(nevents);
	if (print_latencies)
		PrintLatencies(connections[0].latencies, connections[0].nrequests);
	else
		printf("%.6f\n", seconds);
	for (int i = 0; i < nconnections; i++)
		close(connections[i].fd);
	return 0;
}
