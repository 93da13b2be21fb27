/*
 * The watchdog: a thread that preempts an owner whose access to client memory takes too long, and has the requests of
 * killed clients answered whose readers are stuck.  It is C, so that it never waits for the lock of Python.
 */
#define _GNU_SOURCE
#include "internal_ownership.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of /proc/PID/task/TID/stat: bytes, longer than any, and numbers of fields as in proc(5). */
#define STAT_MAX 1024
#define STAT_STATE 3
#define STAT_PENDING 31

static void futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout)
{
	syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

void kfs_wake_watchdog(struct kfs_ownership *o)
{
	o->asleep = 0;
	futex(&o->asleep, FUTEX_WAKE, 1, NULL);
}

/*
 * Field number `field`, 3 or above, of a stat file of /proc; it lies in `text`.  NULL: the thread has ended.
 * The file is short, whatever the thread is, and reading it never waits for the thread.
 */
static const char *read_stat(const char *path, int field, char *text, size_t size)
{
	char *at;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	n = read(fd, text, size - 1);
	close(fd);
	if (n <= 0)
		return NULL;
	text[n] = 0;
	/* Field 2, the name of the program, may contain blanks and parentheses. */
	at = strrchr(text, ')');
	for (; at && field > 2; field--)
		at = strchr(at + 1, ' ');
	return at ? at + 1 : NULL;
}

/* Whether the thread sleeps, rather than being runnable. */
static int is_sleeping(int tid)
{
	char path[64], text[STAT_MAX];
	const char *state;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	state = read_stat(path, STAT_STATE, text, sizeof(text));
	return !state || *state != 'R';
}

/*
 * Whether a fatal signal is pending for a client's thread, so that it ends as soon as its request is answered.  The
 * kernel turns every fatal signal into a SIGKILL of each thread of the process, also an exit and an execve of a sibling.
 */
int kfs_is_dying(uint32_t tid)
{
	char path[64], text[STAT_MAX];
	const char *pending;

	snprintf(path, sizeof(path), "/proc/%u/task/%u/stat", tid, tid);
	pending = read_stat(path, STAT_PENDING, text, sizeof(text));
	return !pending || strtoull(pending, NULL, 10) & 1ull << (SIGKILL - 1);
}

/* With the lock held: answers request `unique` of a killed client, if its reader is stuck.  Whether it did. */
int kfs_abandon(struct kfs_ownership *o, uint64_t unique)
{
	for (struct kfs_reader *reader = o->stuck; reader; reader = reader->next_stuck) {
		if (reader->unique != unique || reader->abandoned || o->ended)
			continue;
		reader->abandoned = 1;
		o->count.abandoned++;
		reader->answer(reader->context);
		return 1;
	}
	return 0;
}

/* The kernel tells of the first signal only; a client may be killed long after that. */
static void look_for_dying(struct kfs_ownership *o)
{
	struct kfs_reader *reader;
	uint64_t unique;
	uint32_t client;
	int is_dying;

	pthread_mutex_lock(&o->lock);
	o->looks++;
	for (;;) {
		/* From the start: the list may have changed while the lock was not held. */
		reader = o->stuck;
		while (reader && (reader->abandoned || reader->looked == o->looks))
			reader = reader->next_stuck;
		if (!reader)
			break;
		reader->looked = o->looks;
		unique = reader->unique;
		client = reader->client;
		pthread_mutex_unlock(&o->lock);
		is_dying = kfs_is_dying(client);
		pthread_mutex_lock(&o->lock);
		if (is_dying)
			kfs_abandon(o, unique);
	}
	pthread_mutex_unlock(&o->lock);
}

/* The access `ticket` has lasted for `age` ns.  Without a successor it is not preempted: one is being started. */
static void preempt(struct kfs_ownership *o, uint64_t ticket, uint64_t age)
{
	struct kfs_reader *owner;

	pthread_mutex_lock(&o->lock);
	owner = o->owner;
	if (owner && (o->returning.first || o->spare.first) &&
	    (age >= KFS_PATIENCE_MS * KFS_BUSY_FACTOR * NS_PER_MS || is_sleeping(owner->tid)) &&
	    atomic_compare_exchange_strong(&o->access, &ticket, ticket + 1)) {
		kfs_charge_preemption(o, owner->uid);
		owner->next_stuck = o->stuck;
		o->stuck = owner;
		o->any_stuck = 1;
		owner->detach(owner->context);
		if (o->returning.first)
			kfs_let_returning_own(o);
		else
			kfs_let_spare_own(o);
	}
	pthread_mutex_unlock(&o->lock);
}

static void *watch(void *argument)
{
	const struct timespec look = { 0, KFS_LOOK_MS * NS_PER_MS }, dying = { 0, KFS_DYING_MS * NS_PER_MS };
	struct kfs_ownership *o = argument;
	uint64_t seen = 0, since = kfs_now_ns(), looked = since;

	while (!o->ended) {
		uint64_t access = o->access, now = kfs_now_ns();

		if (o->any_stuck && now - looked >= KFS_DYING_MS * NS_PER_MS) {
			look_for_dying(o);
			looked = now;
		}
		if (access != seen) {
			seen = access;
			since = now;
		} else if (access & 1) {
			if (now - since >= KFS_PATIENCE_MS * NS_PER_MS)
				preempt(o, access, now - since);
		} else if (now - since >= KFS_DOZE_MS * NS_PER_MS) {
			o->asleep = 1;
			/* Invariant against a lost wake-up: the owner sees `asleep`, or this thread sees its access. */
			if (o->any_stuck && o->access == seen && !o->ended)
				futex(&o->asleep, FUTEX_WAIT, 1, &dying);
			while (!o->any_stuck && o->asleep && o->access == seen && !o->ended)
				futex(&o->asleep, FUTEX_WAIT, 1, NULL);
			o->asleep = 0;
			continue;
		}
		nanosleep(&look, NULL);
	}
	return NULL;
}

/* With the lock held.  Idempotent.  Returns 0 or -errno; without a watchdog nobody may own the core. */
int kfs_start_watchdog(struct kfs_ownership *o)
{
	sigset_t all, before;
	int r;

	if (o->watched)
		return 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&o->watchdog, NULL, watch, o);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	o->watched = !r;
	return -r;
}
