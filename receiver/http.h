/*-------------------------------------------------------------------------
 *
 * http.h
 *	  Receiving webhooks by HTTP.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_HTTP_H
#define GIGS_RECEIVER_HTTP_H

#include <stdbool.h>
#include <stdint.h>

extern void StartHttp(int listen_socket);
extern int HttpEvent(void);
extern int64_t RunHttp(void);
extern void QuiesceHttp(void);
extern bool HttpIsIdle(void);
extern void StopHttp(void);

#endif /* GIGS_RECEIVER_HTTP_H */
