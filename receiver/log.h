/*-------------------------------------------------------------------------
 *
 * log.h
 *	  Messages on standard error, as lines or as JSON.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_LOG_H
#define GIGS_RECEIVER_LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum LogLevel
{
	LOG_LEVEL_INFO,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_ERROR
} LogLevel;

typedef enum LogFormat
{
	LOG_LINES,
	LOG_JSON
} LogFormat;

/* A message that may come often; zero at first. */
typedef struct LogLimit
{
	_Atomic int64_t next_at; /* monotonic, in microseconds */
} LogLimit;

extern const char program[];

extern void SetLogFormat(LogFormat format);
extern void LogMessage(LogLevel level, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
extern bool LogIsDue(LogLimit *limit);
extern void PrintJsonString(FILE *out, const char *s);
extern int64_t MonotonicTime(void);
extern void *Reallocate(void *data, size_t size);
extern FILE *OpenText(char **text, size_t *len);
extern char *Format(const char *format, ...)
	__attribute__((format(printf, 1, 2)));

#endif /* GIGS_RECEIVER_LOG_H */
