/*-------------------------------------------------------------------------
 *
 * client.c
 *	  Sends a stream of webhooks to a PostgreSQL server, and takes the time.
 *
 *	  client [-c CLIENTS] [-b BATCH] [-s] [-p] [-l] [-i SQL] CONNINFO SQL FILE
 *
 * FILE is what bench/stream prints.  Every client has a connection and a
 * thread; an event goes to the one that its account falls to, so that the
 * order within an account is kept, or with -s to the next one in turn.  The
 * statement SQL is prepared, and executed once an event with the body as $1
 * (bytea) and the signature as $2 (text); with -b, once for so many events, as
 * arrays of these types; with -p, with the parsed values (see SetParsed()).
 * "-i SQL" is executed first by every client.  Prints the seconds from the
 * start to the last answer, or with -l and one client the median of the calls'
 * seconds, and the time of 99 % of them.
 *
 *-------------------------------------------------------------------------
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "events.h"

#define BYTEAOID 17
#define TEXTOID 25
#define MAX_CLIENTS 64
#define PARSED_PARAMETERS (COLUMNS - 1) /* all but the signature */

/* The parameters of one execution. */
typedef struct Call
{
	int n;
	const char *values[PARSED_PARAMETERS];
	int lengths[PARSED_PARAMETERS];
	int formats[PARSED_PARAMETERS]; /* 1: binary */
} Call;

typedef struct Client
{
	pthread_t thread;
	PGconn *connection;
	Event **events;
	int nevents;
	Call *calls;
	double *latencies; /* of the calls, in seconds */
	int ncalls;
} Client;

const char program[] = "client";

static int nclients = 1;
static int batch = 1;
static bool spread = false;
static bool print_latencies = false;
static bool parsed = false;
static const char *first_statement = NULL;
static Client clients[MAX_CLIENTS];
static pthread_barrier_t start;

static void
DealEvents(Event *events, int nevents)
{
	for (int i = 0; i < nclients; i++)
		clients[i].events = Allocate(nevents * sizeof(Event *));
	for (int i = 0; i < nevents; i++)
	{
		int place = spread ? i % nclients : PlaceOf(&events[i], nclients);
		Client *client = &clients[place];

		client->events[client->nevents++] = &events[i];
	}
}

static void
AddParameter(Call *call, const char *value, int length, int format)
{
	call->values[call->n] = value;
	call->lengths[call->n] = length;
	call->formats[call->n++] = format;
}

static void
SetBody(Call *call, const Event *event)
{
	AddParameter(call, event->columns[BODY], (int) strlen(event->columns[BODY]),
				 1);
	AddParameter(call, event->columns[SIGNATURE], 0, 0);
}

/* All columns in their order, but for the signature. */
static void
SetParsed(Call *call, const Event *event)
{
	for (int i = 0; i < COLUMNS; i++)
	{
		const char *value = event->columns[i];

		if (i == BODY)
			AddParameter(call, value, (int) strlen(value), 1);
		else if (i != SIGNATURE)
			AddParameter(call, *value != '\0' ? value : NULL, 0, 0);
	}
}

static char *
PutInt32(char *at, int32_t value)
{
	uint32_t bytes = htonl((uint32_t) value);

	memcpy(at, &bytes, sizeof(bytes));
	return at + sizeof(bytes);
}

/* A column of events as an array, in binary. */
static void
SetArray(Call *call, Event *const *events, int n, int column, int32_t type)
{
	size_t size = 5 * sizeof(int32_t);
	char *value;
	char *at;

	for (int i = 0; i < n; i++)
		size += sizeof(int32_t) + strlen(events[i]->columns[column]);
	at = value = Allocate(size);
	at = PutInt32(at, 1); /* dimensions */
	at = PutInt32(at, 0); /* no nulls */
	at = PutInt32(at, type);
	at = PutInt32(at, n);
	at = PutInt32(at, 1); /* lower bound */
	for (int i = 0; i < n; i++)
	{
		size_t length = strlen(events[i]->columns[column]);

		at = PutInt32(at, (int32_t) length);
		memcpy(at, events[i]->columns[column], length);
		at += length;
	}
	AddParameter(call, value, (int) size, 1);
}

static void
PrepareCalls(Client *client)
{
	client->calls = Allocate(client->nevents * sizeof(Call));
	client->latencies = Allocate(client->nevents * sizeof(double));
	for (int i = 0; i < client->nevents; i += batch)
	{
		Call *call = &client->calls[client->ncalls++];
		int n = client->nevents - i < batch ? client->nevents - i : batch;

		if (parsed)
			SetParsed(call, client->events[i]);
		else if (batch == 1)
			SetBody(call, client->events[i]);
		else
		{
			SetArray(call, &client->events[i], n, BODY, BYTEAOID);
			SetArray(call, &client->events[i], n, SIGNATURE, TEXTOID);
		}
	}
}

static void
CheckResult(PGconn *connection, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		Fail("statement failed", PQerrorMessage(connection));
	PQclear(result);
}

static void
Connect(Client *client, const char *conninfo, const char *statement)
{
	client->connection = PQconnectdb(conninfo);
	if (PQstatus(client->connection) != CONNECTION_OK)
		Fail("no connection", PQerrorMessage(client->connection));
	if (first_statement != NULL)
		CheckResult(client->connection,
					PQexec(client->connection, first_statement));
	CheckResult(client->connection,
				PQprepare(client->connection, "call", statement, 0, NULL));
}

static void *
RunClient(void *argument)
{
	Client *client = argument;

	pthread_barrier_wait(&start);
	for (int i = 0; i < client->ncalls; i++)
	{
		const Call *call = &client->calls[i];
		double began = Now();

		CheckResult(client->connection,
					PQexecPrepared(client->connection, "call", call->n,
								   call->values, call->lengths, call->formats,
								   1));
		client->latencies[i] = Now() - began;
	}
	return NULL;
}

static double
RunClients(void)
{
	double began;

	pthread_barrier_init(&start, NULL, (unsigned) nclients + 1);
	for (int i = 0; i < nclients; i++)
	{
		if (pthread_create(&clients[i].thread, NULL, RunClient, &clients[i]) != 0)
			Fail("pthread_create", "failed");
	}
	began = Now();
	pthread_barrier_wait(&start);
	for (int i = 0; i < nclients; i++)
		pthread_join(clients[i].thread, NULL);
	return Now() - began;
}

static void
ReadOptions(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "+c:b:spli:")) != -1)
	{
		if (option == 'c')
			nclients = atoi(optarg);
		else if (option == 'b')
			batch = atoi(optarg);
		else if (option == 's')
			spread = true;
		else if (option == 'p')
			parsed = true;
		else if (option == 'l')
			print_latencies = true;
		else if (option == 'i')
			first_statement = optarg;
		else
			exit(2);
	}
	if (argc - optind != 3 || nclients < 1 || nclients > MAX_CLIENTS ||
		batch < 1 || (parsed && batch > 1))
		Fail("usage",
			 "client [-c CLIENTS] [-b BATCH] [-s] [-p] [-l] [-i SQL] CONNINFO SQL FILE");
}

int
main(int argc, char **argv)
{
	Event *events;
	int nevents;
	double seconds;

	ReadOptions(argc, argv);
	nevents = ReadEvents(argv[optind + 2], &events);
	DealEvents(events, nevents);
	for (int i = 0; i < nclients; i++)
	{
		PrepareCalls(&clients[i]);
		Connect(&clients[i], argv[optind], argv[optind + 1]);
	}
	seconds = RunClients();
	if (print_latencies)
		PrintLatencies(clients[0].latencies, clients[0].ncalls);
	else
		printf("%.6f\n", seconds);
	for (int i = 0; i < nclients; i++)
		PQfinish(clients[i].connection);
	return 0;
}
