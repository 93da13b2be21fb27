/*
 * Accesses to client memory, each framed by kfs_access_begin and kfs_access_end: within one, the owner may be
 * preempted.  On the hot path that is two atomic additions.
 */
#include "internal_ownership.h"

#include <errno.h>
#include <unistd.h>

/* Whether a thread can take over the core if this one is held up. */
static int has_successor(struct kfs_ownership *o)
{
	int has = 1;

	if (o->starving) {
		pthread_mutex_lock(&o->lock);
		has = o->spare.first || o->returning.first;
		o->count.blocked += !has;
		pthread_mutex_unlock(&o->lock);
	}
	return has;
}

/* Whether kfs_access_begin would not say EFAULT for the owner's request. */
int kfs_reader_may_access(struct kfs_reader *reader)
{
	return !reader->blocked && has_successor(reader->ownership);
}

/*
 * An access of the calling thread begins, which a client may hold up.  Returns 0; -EFAULT: the user is blocked, or no
 * thread could take over; -ECANCELED: see kfs_access_end.  After an error there is no access to end.
 */
int kfs_access_begin(uint64_t *ticket)
{
	struct kfs_reader *reader = kfs_own_reader;
	struct kfs_ownership *o;

	*ticket = 0;
	if (!reader)
		return 0;
	if (reader->abandoned)
		return -ECANCELED;
	if (reader->blocked || !has_successor(reader->ownership))
		return -EFAULT;
	if (++reader->accesses >= KFS_ACCESSES_MIN)
		kfs_yield_if_due(reader);
	o = reader->ownership;
	*ticket = atomic_fetch_add(&o->access, 1) + 1;
	if (o->asleep)
		kfs_wake_watchdog(o);
	return 0;
}

/* The reader was preempted, and its page has come: it waits until it owns the core. */
static void get_back(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	struct kfs_reader **link = &o->stuck;
	uint64_t one = 1;

	pthread_mutex_lock(&o->lock);
	while (*link != reader)
		link = &(*link)->next_stuck;
	*link = reader->next_stuck;
	o->any_stuck = o->stuck != NULL;
	kfs_discharge_stuck(o, reader->uid);
	if (!o->ended) {
		kfs_append(&o->returning, reader);
		o->returned++;
		/* It fails only where the counter is full: then the owner has not read it yet. */
		if (write(o->event_fd, &one, sizeof(one)) < 0)
			errno = 0;
	}
	kfs_wait_for_core(reader);
	kfs_end_turn(reader);
	kfs_reader_turn_begins(reader);
	pthread_mutex_unlock(&o->lock);
}

/*
 * Returns when the thread owns the core, at once unless it was preempted.  Does not preserve errno.
 *
 * -ECANCELED: the client was killed meanwhile, and its request has been answered.  What was copied is to be discarded,
 * and what was begun to be undone: the client may have ended, and its files may be closed.
 */
int kfs_access_end(uint64_t ticket)
{
	struct kfs_reader *reader = kfs_own_reader;

	if (!reader || atomic_compare_exchange_strong(&reader->ownership->access, &ticket, ticket + 1))
		return 0;
	get_back(reader);
	return reader->abandoned ? -ECANCELED : 0;
}
