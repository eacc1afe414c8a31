/*-------------------------------------------------------------------------
 *
 * queue.c
 *	  Webhooks on their way: from the HTTP thread to the database sessions,
 *	  and their answers back.
 *
 * There is no timer: a session that is free takes what has arrived while it was
 * busy.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "log.h"
#include "options.h"
#include "queue.h"

/* Of posts that are answered with 200. */
const char *const outcome_names[OUTCOMES] = {"applied", "duplicate", "stale",
											 "ignored", "quarantined"};

typedef struct PostList
{
	Post *first;
	Post **end; /* where the next one goes */
} PostList;

/* Protects all that follows, but for the events. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static PostList waiting;
static PostList answered;
static int64_t nwaiting; /* posts in "waiting", and in calls */
static int64_t reserved; /* bytes of bodies */
static int sessions_up;

static int queue_event;
static int answered_event;

static int MakeEvent(void);
static void SignalEvent(int event);
static void AppendPost(PostList *list, Post *post);
static Post *RemoveFirst(PostList *list);
static void Shed(Post *post);

void
InitQueue(void)
{
	waiting.end = &waiting.first;
	answered.end = &answered.first;
	queue_event = MakeEvent();
	answered_event = MakeEvent();
}

static int
MakeEvent(void)
{
	int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (event < 0)
	{
		LogMessage(LOG_LEVEL_ERROR, "could not create an event: %m");
		exit(1);
	}
	return event;
}

static void
SignalEvent(int event)
{
	uint64_t one = 1;

	/* fails only when the event is signalled already */
	(void) !write(event, &one, sizeof(one));
}

/*
 * Reserves memory for a body.  Returns false if there is too much already.
 */
bool
ReserveBytes(size_t len)
{
	bool fits;

	pthread_mutex_lock(&lock);
	fits = reserved + (int64_t) len <= options.max_waiting;
	if (fits)
		reserved += (int64_t) len;
	pthread_mutex_unlock(&lock);
	return fits;
}

void
ReleaseBytes(size_t len)
{
	pthread_mutex_lock(&lock);
	reserved -= (int64_t) len;
	pthread_mutex_unlock(&lock);
}

/*
 * Passes a post to the sessions.  Returns false if no session is connected.
 */
bool
EnqueuePost(Post *post)
{
	bool is_up;

	pthread_mutex_lock(&lock);
	is_up = sessions_up > 0;
	if (is_up)
	{
		AppendPost(&waiting, post);
		nwaiting++;
	}
	pthread_mutex_unlock(&lock);
	return is_up;
}

/*
 * Wakes the sessions once many posts may have been enqueued, so that they begin
 * with a batch of more than one.
 */
void
WakeSessions(void)
{
	bool work;

	pthread_mutex_lock(&lock);
	work = waiting.first != NULL;
	pthread_mutex_unlock(&lock);
	if (work)
		SignalEvent(queue_event);
}

/*
 * Returns a file descriptor that is readable when there may be posts to take.
 */
int
QueueEvent(void)
{
	return queue_event;
}

/*
 * Takes up to MAX_BATCH_POSTS posts of MAX_BATCH_BYTES together.
 */
int
TakeBatch(Post **posts)
{
	int n = 0;
	size_t bytes = 0;
	uint64_t unused;
	bool more;

	(void) !read(queue_event, &unused, sizeof(unused));
	pthread_mutex_lock(&lock);
	while (waiting.first != NULL && n < MAX_BATCH_POSTS &&
		   (n == 0 || bytes + waiting.first->len <= MAX_BATCH_BYTES))
	{
		posts[n] = RemoveFirst(&waiting);
		bytes += posts[n++]->len;
	}
	more = waiting.first != NULL;
	pthread_mutex_unlock(&lock);
	if (more)
		SignalEvent(queue_event);
	return n;
}

/*
 * Passes posts back that have an answer.
 */
void
AnswerPosts(Post **posts, int nposts)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < nposts; i++)
		AppendPost(&answered, posts[i]);
	nwaiting -= nposts;
	pthread_mutex_unlock(&lock);
	if (nposts > 0)
		SignalEvent(answered_event);
}

/*
 * Returns a file descriptor that is readable when there may be answers.
 */
int
AnsweredEvent(void)
{
	return answered_event;
}

/*
 * Takes all posts that have an answer.
 */
Post *
TakeAnswered(void)
{
	Post *posts;
	uint64_t unused;

	(void) !read(answered_event, &unused, sizeof(unused));
	pthread_mutex_lock(&lock);
	posts = answered.first;
	answered.first = NULL;
	answered.end = &answered.first;
	pthread_mutex_unlock(&lock);
	return posts;
}

/*
 * Answers posts with 503 that have waited too long for a session.
 */
void
ShedExpired(int64_t now)
{
	bool shed = false;

	pthread_mutex_lock(&lock);
	while (waiting.first != NULL && waiting.first->deadline <= now)
	{
		Shed(RemoveFirst(&waiting));
		shed = true;
	}
	pthread_mutex_unlock(&lock);
	if (shed)
		SignalEvent(answered_event);
}

/*
 * Notes that a session has connected or is lost.  When the last one is lost, all
 * posts that wait are answered with 503.
 */
void
SessionIsUp(bool is_up)
{
	pthread_mutex_lock(&lock);
	sessions_up += is_up ? 1 : -1;
	while (sessions_up == 0 && waiting.first != NULL)
		Shed(RemoveFirst(&waiting));
	pthread_mutex_unlock(&lock);
	SignalEvent(answered_event);
}

bool
DatabaseIsUp(void)
{
	bool is_up;

	pthread_mutex_lock(&lock);
	is_up = sessions_up > 0;
	pthread_mutex_unlock(&lock);
	return is_up;
}

/*
 * Gets the number of posts that wait for an answer, and the bytes of bodies.
 */
void
GetWaiting(int64_t *posts, int64_t *bytes)
{
	pthread_mutex_lock(&lock);
	*posts = nwaiting;
	*bytes = reserved;
	pthread_mutex_unlock(&lock);
}

static void
Shed(Post *post)
{
	post->status = 503;
	AppendPost(&answered, post);
	nwaiting--;
}

static void
AppendPost(PostList *list, Post *post)
{
	post->next = NULL;
	*list->end = post;
	list->end = &post->next;
}

static Post *
RemoveFirst(PostList *list)
{
	Post *post = list->first;

	list->first = post->next;
	if (list->first == NULL)
		list->end = &list->first;
	return post;
}
