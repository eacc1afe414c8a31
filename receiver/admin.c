/*-------------------------------------------------------------------------
 *
 * admin.c
 *	  The address for those who run the receiver: /live, /ready, /metrics.
 *
 *-------------------------------------------------------------------------
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <microhttpd.h>

#include "admin.h"
#include "log.h"
#include "metrics.h"
#include "queue.h"

#define MAX_CONNECTIONS 32
#define TIMEOUT 10 /* seconds */

static struct MHD_Daemon *daemon_handle;

static enum MHD_Result HandleRequest(void *arg,
									 struct MHD_Connection *connection,
									 const char *url, const char *method,
									 const char *version, const char *data,
									 size_t *len, void **context);

/*
 * Starts to serve a socket that listens; -1: there is none.
 */
void
StartAdmin(int listen_socket)
{
	if (listen_socket < 0)
		return;
	daemon_handle =
		MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, HandleRequest, NULL,
						 MHD_OPTION_LISTEN_SOCKET, listen_socket,
						 MHD_OPTION_CONNECTION_LIMIT, MAX_CONNECTIONS,
						 MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT, MHD_OPTION_END);
	if (daemon_handle == NULL)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not start the admin address");
		exit(1);
	}
}

/*
 * Returns a file descriptor that is readable when RunAdmin() has something to do,
 * or -1.
 */
int
AdminEvent(void)
{
	return daemon_handle == NULL
			   ? -1
			   : MHD_get_daemon_info(daemon_handle, MHD_DAEMON_INFO_EPOLL_FD)
					 ->epoll_fd;
}

void
RunAdmin(void)
{
	if (daemon_handle != NULL)
		MHD_run(daemon_handle);
}

void
StopAdmin(void)
{
	if (daemon_handle != NULL)
		MHD_stop_daemon(daemon_handle);
}

static enum MHD_Result
HandleRequest(void *arg, struct MHD_Connection *connection, const char *url,
			  const char *method, const char *version, const char *data,
			  size_t *len, void **context)
{
	unsigned int status = 200;
	char *text = NULL;
	size_t text_len;
	FILE *out = OpenText(&text, &text_len);
	struct MHD_Response *response;
	enum MHD_Result result;

	(void) arg;
	(void) version;
	(void) data;
	(void) len;
	(void) context;
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0)
		status = 405;
	else if (strcmp(url, "/live") == 0)
		fputs("live\n", out);
	else if (strcmp(url, "/ready") == 0)
	{
		status = DatabaseIsUp() ? 200 : 503;
		fputs(DatabaseIsUp() ? "ready\n" : "no database session\n", out);
	}
	else if (strcmp(url, "/metrics") == 0)
		PrintMetrics(out);
	else
		status = 404;
	fclose(out);
	response =
		MHD_create_response_from_buffer(text_len, text, MHD_RESPMEM_MUST_FREE);
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
							"text/plain; version=0.0.4; charset=utf-8");
	result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}
