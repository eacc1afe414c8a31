/*-------------------------------------------------------------------------
 *
 * options.h
 *	  What gigs_receiver has been told to do.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_OPTIONS_H
#define GIGS_RECEIVER_OPTIONS_H

#include <stdint.h>

#include "log.h"

/* Texts that have not been given are empty. */
typedef struct Options
{
	const char *database;
	const char *listen;
	const char *path;
	const char *admin;
	const char *notify;
	const char *tls_certificate;
	const char *tls_key;
	int64_t max_body_size;	 /* bytes */
	int64_t max_header_size; /* bytes */
	int64_t max_waiting;	 /* bytes */
	int64_t max_connections; /* of HTTP clients */
	int64_t request_timeout; /* seconds */
	int64_t answer_timeout;	 /* seconds */
	int64_t sessions;
	int64_t log_format; /* LogFormat */
} Options;

extern Options options;

extern void ReadOptions(int argc, char *argv[]);

#endif /* GIGS_RECEIVER_OPTIONS_H */
