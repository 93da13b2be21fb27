/*
 * Who owns the core: one reader at a time, which no client can delay for long.  kdbusfs/fuse/ownership.py describes the
 * mechanism; this is the part that has to work while Python's threads cannot.
 *
 * Invariant of `access`: it is odd while the owner is in client memory.  The owner ends its access by incrementing it,
 * the watchdog preempts the owner by incrementing it; whoever is first decides.  Everything else is protected by the
 * mutex, which nobody holds while waiting for anything but the core.
 */
#define _GNU_SOURCE
#include "internal_ownership.h"

#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread struct kfs_reader *kfs_own_reader;

static void queue_init(struct reader_queue *queue)
{
	queue->first = NULL;
	queue->last = &queue->first;
}

static struct kfs_reader *shift(struct reader_queue *queue)
{
	struct kfs_reader *reader = queue->first;

	queue->first = reader->next;
	if (!queue->first)
		queue->last = &queue->first;
	return reader;
}

/* `event_fd`: an eventfd that ends the owner's wait; a reader that returns writes it.  NULL: no memory. */
struct kfs_ownership *kfs_ownership_new(int event_fd)
{
	struct kfs_ownership *o = calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->event_fd = event_fd;
	pthread_mutex_init(&o->lock, NULL);
	queue_init(&o->spare);
	queue_init(&o->returning);
	return o;
}

/* All its readers must have been freed. */
void kfs_ownership_free(struct kfs_ownership *o)
{
	o->ended = 1;
	if (o->watched) {
		kfs_wake_watchdog(o);
		pthread_join(o->watchdog, NULL);
	}
	pthread_mutex_destroy(&o->lock);
	free(o);
}

void kfs_ownership_look(struct kfs_ownership *o, struct kfs_owners *owners)
{
	pthread_mutex_lock(&o->lock);
	*owners = o->count;
	owners->longest_turn_us = o->longest_turn_us;
	pthread_mutex_unlock(&o->lock);
}

/* Whether no further thread can be started now: then an owner without a successor must not access client memory. */
void kfs_ownership_starve(struct kfs_ownership *o, int is_starving)
{
	o->starving = (uint32_t)is_starving;
}

/*
 * detach: called while the reader loses the core and nobody owns it.  answer: called by any thread while the reader is
 * stuck and its client was killed; answers the request and must not wait.  NULL: no memory.
 */
struct kfs_reader *kfs_reader_new(struct kfs_ownership *o, void (*detach)(void *), void (*answer)(void *),
				  void *context)
{
	struct kfs_reader *reader = calloc(1, sizeof(*reader));

	if (!reader)
		return NULL;
	reader->ownership = o;
	reader->detach = detach;
	reader->answer = answer;
	reader->context = context;
	pthread_cond_init(&reader->has_core, NULL);
	return reader;
}

void kfs_reader_free(struct kfs_reader *reader)
{
	if (kfs_own_reader == reader)
		kfs_own_reader = NULL;
	pthread_cond_destroy(&reader->has_core);
	free(reader);
}

/* With the lock held: the first spare becomes the owner; there is one. */
void kfs_let_spare_own(struct kfs_ownership *o)
{
	o->owner = shift(&o->spare);
	o->count.spares--;
	pthread_cond_signal(&o->owner->has_core);
}

/* With the lock held: the first reader that waits to return becomes the owner; there is one. */
void kfs_let_returning_own(struct kfs_ownership *o)
{
	o->owner = shift(&o->returning);
	o->returned--;
	o->others_until = 0;
	pthread_cond_signal(&o->owner->has_core);
}

/* With the lock held: waits until `reader` is the owner.  After the end of the service it never returns. */
void kfs_wait_for_core(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	while (o->owner != reader || o->ended)
		pthread_cond_wait(&reader->has_core, &o->lock);
}

/* With the lock held. */
static int wait_as_spare(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	kfs_append(&o->spare, reader);
	o->count.spares++;
	while (o->owner != reader && !o->ended)
		pthread_cond_wait(&reader->has_core, &o->lock);
	return o->ended ? KFS_END : KFS_OWNER;
}

/* The calling thread takes `reader`, and waits until it owns the core: KFS_OWNER, KFS_END or -errno. */
int kfs_reader_take(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int r;

	kfs_own_reader = reader;
	reader->tid = (int)syscall(SYS_gettid);
	pthread_mutex_lock(&o->lock);
	r = kfs_start_watchdog(o);
	if (r == 0 && o->ended)
		r = KFS_END;
	else if (r == 0 && !o->owner) {
		o->owner = reader;
		r = KFS_OWNER;
	} else if (r == 0)
		r = wait_as_spare(reader);
	pthread_mutex_unlock(&o->lock);
	return r;
}

/*
 * For the owner, between two requests: a reader that waits to return gets the core.  Returns KFS_OWNER when this thread
 * has it again, or KFS_END; 0 at once if none waits.
 */
int kfs_reader_pass(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int r = 0;

	if (!o->returned)
		return 0;
	if (o->others_until == A_TURN)
		o->others_until = kfs_now_ns() + TURN_NS;
	if (o->others_until > kfs_now_ns())
		return 0;
	pthread_mutex_lock(&o->lock);
	if (o->owner == reader && o->returning.first) {
		kfs_let_returning_own(o);
		r = o->count.spares >= (uint32_t)KFS_SPARES_MAX ? KFS_END : wait_as_spare(reader);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

/* Whether a reader waits to return, so that the owner must not wait for a request. */
int kfs_reader_is_hurried(struct kfs_reader *reader)
{
	return reader->ownership->returned != 0;
}

/* The owner has found no request: readers that wait to return are served next. */
void kfs_reader_found_nothing(struct kfs_reader *reader)
{
	reader->ownership->others_until = 0;
}

/* The owner ends the service: spares get KFS_END, and a stuck reader never continues. */
void kfs_reader_end(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	pthread_mutex_lock(&o->lock);
	o->ended = 1;
	for (struct kfs_reader *each = o->spare.first; each; each = each->next)
		pthread_cond_signal(&each->has_core);
	pthread_mutex_unlock(&o->lock);
	kfs_wake_watchdog(o);
}

/* The owner begins request `unique`, which thread `client` of `uid` has made. */
void kfs_reader_request(struct kfs_reader *reader, uint32_t uid, uint32_t client, uint64_t unique)
{
	kfs_reader_pays(reader, uid);
	reader->client = client;
	reader->unique = unique;
	reader->is_command = 1;
	reader->abandoned = 0;
	reader->blocked = reader->ownership->any_blocked && kfs_is_blocked(reader->ownership, uid);
}

/* The owner has finished its request.  Whether it was abandoned, and must not be answered again. */
int kfs_reader_request_ends(struct kfs_reader *reader)
{
	int abandoned = reader->abandoned;

	reader->abandoned = 0;
	return abandoned;
}

/* Whether the client of the owner's request was killed, and answered, while the reader was stuck. */
int kfs_reader_is_abandoned(struct kfs_reader *reader)
{
	return reader->abandoned;
}

/* FUSE_INTERRUPT: a signal came for request `unique`.  Whether its reader is stuck, and it is answered now. */
int kfs_reader_interrupt(struct kfs_reader *reader, uint64_t unique)
{
	struct kfs_ownership *o = reader->ownership;
	int answered = 0;

	if (!o->any_stuck)
		return 0;
	pthread_mutex_lock(&o->lock);
	for (struct kfs_reader *each = o->stuck; each; each = each->next_stuck)
		if (each->unique == unique && kfs_is_dying(each->client))
			answered = kfs_abandon(o, unique);
	pthread_mutex_unlock(&o->lock);
	return answered;
}
