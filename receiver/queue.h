/*-------------------------------------------------------------------------
 *
 * queue.h
 *	  Webhooks on their way: from the HTTP thread to the database sessions,
 *	  and their answers back.
 *
 *-------------------------------------------------------------------------
 */
#ifndef GIGS_RECEIVER_QUEUE_H
#define GIGS_RECEIVER_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_BATCH_POSTS 1000
#define MAX_BATCH_BYTES (4 << 20)

struct MHD_Connection;

/* A request.  It belongs to the queue between EnqueuePost() and TakeAnswered(). */
typedef struct Post
{
	struct Post *next;
	struct MHD_Connection *connection;
	char *signature; /* NULL: the request has none */
	char *body;
	size_t len;
	size_t capacity;	   /* of body, and reserved for it */
	size_t content_length; /* len at most */
	int64_t started_at;	   /* monotonic, in microseconds */
	int64_t deadline;	   /* to be answered by, likewise */

	int status;	 /* of HTTP; 0: no answer yet */
	int outcome; /* in outcome_names, or -1 */
	char *text;	 /* of the answer, or NULL */
} Post;

#define OUTCOMES 5

extern const char *const outcome_names[OUTCOMES];

extern void InitQueue(void);
extern bool ReserveBytes(size_t len);
extern void ReleaseBytes(size_t len);
extern bool EnqueuePost(Post *post);
extern void WakeSessions(void);
extern int QueueEvent(void);
extern int TakeBatch(Post **posts);
extern void AnswerPosts(Post **posts, int nposts);
extern int AnsweredEvent(void);
extern Post *TakeAnswered(void);
extern void ShedExpired(int64_t now);
extern void SessionIsUp(bool is_up);
extern bool DatabaseIsUp(void);
extern void GetWaiting(int64_t *posts, int64_t *bytes);

#endif /* GIGS_RECEIVER_QUEUE_H */
