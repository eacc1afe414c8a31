/*-------------------------------------------------------------------------
 *
 * gigs_receiver.c
 *	  Receives Argyle's webhooks by HTTP and ingests them into PostgreSQL.
 *
 * The way of a webhook: http.c reads the request and passes it to the queue; a
 * session takes what waits there as a batch, ingests it and passes the answers
 * back; http.c sends them.
 *
 *-------------------------------------------------------------------------
 */
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "admin.h"
#include "database.h"
#include "http.h"
#include "log.h"
#include "notify.h"
#include "options.h"
#include "queue.h"
#include "session.h"

#define BACKLOG 4096
#define RESERVED_FILES 64	   /* for all but HTTP clients */
#define SHUTDOWN_TIME 20000000 /* microseconds */
#define MAX_SHUTDOWN_TIME 25   /* seconds */

const char program[] = "gigs_receiver";

static int BlockSignals(void);
static void RaiseFileLimit(void);
static int OpenListener(const char *option, const char *address);
static void LogStart(int listener);
static void Serve(int signals);
static void Shut(void);
static void EndProgram(int signal);

int
main(int argc, char *argv[])
{
	int signals;
	int listener;
	int admin;

	ReadOptions(argc, argv);
	SetLogFormat((LogFormat) options.log_format);
	signals = BlockSignals();
	RaiseFileLimit();
	srandom((unsigned int) time(NULL));

	listener = OpenListener("listen", options.listen);
	admin = *options.admin != '\0' ? OpenListener("admin", options.admin) : -1;
	InitQueue();
	InitDatabases();
	StartSessions();
	StartNotify();
	StartHttp(listener);
	StartAdmin(admin);
	LogStart(listener);
	sd_notify(0, "READY=1");

	Serve(signals);
	sd_notify(0, "STOPPING=1");
	Shut();
	return 0;
}

/*
 * Returns a file descriptor that is readable when the program is to end.
 */
static int
BlockSignals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

/*
 * Takes as many open files as are allowed, and no more clients than that.
 */
static void
RaiseFileLimit(void)
{
	struct rlimit limit;
	int64_t max_connections;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	getrlimit(RLIMIT_NOFILE, &limit);
	max_connections = (int64_t) limit.rlim_cur - RESERVED_FILES;
	if (options.max_connections > max_connections)
	{
		options.max_connections = max_connections > 1 ? max_connections : 1;
		LogMessage(LOG_LEVEL_WARNING,
				   "the limit of open files has room for %lld connections only",
				   (long long) options.max_connections);
	}
}

/*
 * Opens a socket that listens at "host:port" or "[host]:port".  Sockets that
 * systemd has opened are used in the order of the calls.
 */
static int
OpenListener(const char *option, const char *address)
{
	static int activated = 0;
	struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
	struct addrinfo *info;
	char *host = Format("%s", address);
	char *port = strrchr(host, ':');
	int on = 1;
	int error = 0;
	int fd;

	if (activated < sd_listen_fds(0))
	{
		free(host);
		return SD_LISTEN_FDS_START + activated++;
	}
	if (port != NULL)
	{
		*port++ = '\0';
		/* the brackets around an IPv6 address */
		if (*host == '[' && port[-2] == ']')
		{
			port[-2] = '\0';
			memmove(host, host + 1, strlen(host));
		}
		/* getaddrinfo() would take them as other ports */
		if (*port == '\0' || strtol(port, NULL, 10) > UINT16_MAX)
			error = EAI_SERVICE;
		else
			error =
				getaddrinfo(*host != '\0' ? host : NULL, port, &hints, &info);
	}
	if (port == NULL || error != 0)
	{
		LogMessage(LOG_LEVEL_ERROR, "invalid address for \"%s\": \"%s\": %s",
				   option, address,
				   port != NULL ? gai_strerror(error) : "expected HOST:PORT");
		exit(2);
	}
	fd = socket(info->ai_family,
				info->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 ||
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
		bind(fd, info->ai_addr, info->ai_addrlen) != 0 ||
		listen(fd, BACKLOG) != 0)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not listen on \"%s\": %m", address);
		exit(1);
	}
	freeaddrinfo(info);
	free(host);
	return fd;
}

/*
 * Logs the address, which may be another one than the option if systemd has opened
 * the socket.
 */
static void
LogStart(int listener)
{
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);
	char host[NI_MAXHOST] = "";
	char port[NI_MAXSERV] = "";

	if (getsockname(listener, (struct sockaddr *) &address, &len) == 0)
		getnameinfo((struct sockaddr *) &address, len, host, sizeof(host), port,
					sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV);
	LogMessage(LOG_LEVEL_INFO, "version %s receives %s on %s:%s",
			   GIGS_RECEIVER_VERSION, options.path, host, port);
}

/*
 * Serves until a signal arrives.
 */
static void
Serve(int signals)
{
	struct pollfd fds[] = {
		{.fd = signals, .events = POLLIN},
		{.fd = HttpEvent(), .events = POLLIN},
		{.fd = AnsweredEvent(), .events = POLLIN},
		{.fd = AdminEvent(), .events = POLLIN},
	};

	while (fds[0].revents == 0)
	{
		int64_t timeout = RunHttp();

		RunAdmin();
		poll(fds, sizeof(fds) / sizeof(fds[0]), (int) (timeout / 1000));
	}
}

/*
 * Answers the requests that have begun, and ends.
 */
static void
Shut(void)
{
	int64_t deadline = MonotonicTime() + SHUTDOWN_TIME;

	LogMessage(LOG_LEVEL_INFO, "shutting down");
	/* a thread may wait for a server that answers late, or not at all */
	signal(SIGALRM, EndProgram);
	alarm(MAX_SHUTDOWN_TIME);
	QuiesceHttp();
	while (!HttpIsIdle() && MonotonicTime() < deadline)
	{
		struct pollfd fds[] = {
			{.fd = HttpEvent(), .events = POLLIN},
			{.fd = AnsweredEvent(), .events = POLLIN},
		};
		int64_t timeout = RunHttp();

		RunAdmin();
		poll(fds, 2, (int) (timeout / 1000));
	}
	StopDatabases();
	JoinSessions();
	JoinNotify();
	RunHttp();
	StopHttp();
	StopAdmin();
	LogMessage(LOG_LEVEL_INFO, "shut down");
}

/*
 * Ends the program at once.  The system closes the connections.
 */
static void
EndProgram(int signal)
{
	(void) signal;
	_exit(0);
}
