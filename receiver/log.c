/*-------------------------------------------------------------------------
 *
 * log.c
 *	  Messages on standard error, as lines or as JSON.
 *
 * No message has a webhook's body, its signature or a password in it.
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

#define LIMIT_INTERVAL 1000000 /* microseconds between messages of one kind */

static LogFormat log_format = LOG_LINES;

static void FailForMemory(void) __attribute__((noreturn));

void
SetLogFormat(LogFormat format)
{
	log_format = format;
}

void
LogMessage(LogLevel level, const char *format, ...)
{
	static const char *const levels[] = {"info", "warning", "error"};
	char *message;
	char time_text[64];
	struct timespec now;
	struct tm utc;
	va_list args;
	size_t len;

	va_start(args, format);
	if (vasprintf(&message, format, args) < 0)
		message = NULL;
	va_end(args);
	if (message == NULL)
		return;
	/* libpq's messages end with a newline and may have several lines */
	len = strlen(message);
	while (len > 0 && message[len - 1] == '\n')
		message[--len] = '\0';
	for (char *newline; (newline = strchr(message, '\n')) != NULL;)
		*newline = ' ';

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(time_text, sizeof(time_text), "%Y-%m-%dT%H:%M:%S", &utc);

	/* several threads write messages */
	flockfile(stderr);
	if (log_format == LOG_JSON)
	{
		fprintf(stderr,
				"{\"time\": \"%s.%03ldZ\", \"level\": \"%s\", \"message\": ",
				time_text, now.tv_nsec / 1000000, levels[level]);
		PrintJsonString(stderr, message);
		fputs("}\n", stderr);
	}
	else
		fprintf(stderr, "%s.%03ldZ %s: %s: %s\n", time_text,
				now.tv_nsec / 1000000, program, levels[level], message);
	funlockfile(stderr);
	free(message);
}

/*
 * Tells whether a message is due that clients can cause: one a second.
 */
bool
LogIsDue(LogLimit *limit)
{
	int64_t now = MonotonicTime();
	int64_t next_at = atomic_load(&limit->next_at);

	return now >= next_at &&
		   atomic_compare_exchange_strong(&limit->next_at, &next_at,
										  now + LIMIT_INTERVAL);
}

/*
 * Prints a string as JSON.
 */
void
PrintJsonString(FILE *out, const char *s)
{
	putc('"', out);
	for (; *s != '\0'; s++)
	{
		if (*s == '"' || *s == '\\')
			putc('\\', out);
		if ((unsigned char) *s < ' ')
			fprintf(out, "\\u%04x", (unsigned char) *s);
		else
			putc(*s, out);
	}
	putc('"', out);
}

/*
 * Returns microseconds of a clock that is never set.
 */
int64_t
MonotonicTime(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

/*
 * Like realloc(), but ends the program when there is no memory.
 */
void *
Reallocate(void *data, size_t size)
{
	void *result = realloc(data, size);

	if (result == NULL)
		FailForMemory();
	return result;
}

char *
Format(const char *format, ...)
{
	va_list args;
	char *text;
	int len;

	va_start(args, format);
	len = vasprintf(&text, format, args);
	va_end(args);
	if (len < 0)
		FailForMemory();
	return text;
}

/*
 * Opens a stream that writes into memory, which the caller must free after
 * closing the stream.
 */
FILE *
OpenText(char **text, size_t *len)
{
	FILE *out = open_memstream(text, len);

	if (out == NULL)
		FailForMemory();
	return out;
}

static void
FailForMemory(void)
{
	fprintf(stderr, "%s: out of memory\n", program);
	exit(1);
}
