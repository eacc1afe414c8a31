/*-------------------------------------------------------------------------
 *
 * admin.h
 *	  The address for those who run the receiver: /live, /ready, /metrics.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_ADMIN_H
#define GIGS_RECEIVER_ADMIN_H

extern void StartAdmin(int listen_socket);
extern int AdminEvent(void);
extern void RunAdmin(void);
extern void StopAdmin(void);

#endif /* GIGS_RECEIVER_ADMIN_H */
