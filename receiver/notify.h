/*-------------------------------------------------------------------------
 *
 * notify.h
 *	  Telling consumers that there are events.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_NOTIFY_H
#define GIGS_RECEIVER_NOTIFY_H

extern void StartNotify(void);
extern void NotifyConsumers(void);
extern void JoinNotify(void);

#endif /* GIGS_RECEIVER_NOTIFY_H */
