/*-------------------------------------------------------------------------
 *
 * session.h
 *	  The sessions that ingest.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_SESSION_H
#define GIGS_RECEIVER_SESSION_H

extern void StartSessions(void);
extern void JoinSessions(void);

#endif /* GIGS_RECEIVER_SESSION_H */
