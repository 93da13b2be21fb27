/*
 * Who owns the core: one thread at a time, which cannot be made to wait by a client.  kdbusfs/fuse/ownership.py
 * tells the whole mechanism; this is the part of it that has to work while Python's threads cannot.
 *
 * `access` counts: odd while the owner is in the memory of a client.  The owner ends its access by adding one, the
 * watchdog preempts it by adding one; whoever is first has decided.  Everything else is behind the mutex, which
 * nobody holds while waiting for anything but another reader's turn.
 */
#define _GNU_SOURCE
#include "ownership.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000ull
#define TURN_NS (KFS_TURN_US * 1000ull)
#define ACCOUNTS 128
/* Of a stat file in /proc: longer than any; fields. */
#define STAT_MAX 1024
#define STAT_STATE 3
#define STAT_PENDING 31
/* Of others_until: for a turn that has not begun yet. */
#define A_TURN UINT64_MAX
_Static_assert(ACCOUNTS > 64, "every uid with a stuck thread has an account");

/* What is remembered of a uid whose memory has had a reader preempted. */
struct account {
	uint32_t uid;
	uint32_t stuck;
	uint32_t oldest; /* index of the oldest entry */
	uint64_t times[KFS_PREEMPTIONS_MAX];
	uint64_t last; /* 0: the account is free */
	uint64_t blocked_until;
};

struct kfs_reader {
	struct kfs_ownership *ownership;
	struct kfs_reader *next;
	struct kfs_reader *next_stuck;
	pthread_cond_t turn;
	void (*detach)(void *); /* the reader loses the core */
	void (*answer)(void *);
	void *context;
	int tid;
	/* Of its request; `client` is the thread that made it. */
	uint32_t uid;
	uint32_t client;
	uint64_t unique;
	int is_command; /* rather than a close or whatever is due, which nobody waits for */
	int has_yielded; /* in this turn */
	uint64_t looked; /* when it was looked last whether its client was killed */
	int blocked;
	int abandoned; /* the client was killed and has its answer; set only while the reader is among the stuck */
	int accesses; /* of this turn so far */
	/* What this turn is measured by: its start, and what cpu time the thread had had at some time before. */
	uint64_t began; /* ns, 0: there is no turn */
	uint64_t cpu, cpu_read;
};

struct queue {
	struct kfs_reader *first, **last;
};

struct kfs_ownership {
	_Atomic uint64_t access;
	_Atomic uint32_t asleep;
	_Atomic uint32_t returned; /* readers in `returning` */
	_Atomic uint32_t any_blocked; /* whether anybody may be blocked */
	_Atomic uint32_t ended;
	_Atomic uint32_t starving; /* no further spare can be had now */
	_Atomic uint32_t any_stuck; /* whether there are readers in `stuck` */
	pthread_mutex_t lock;
	pthread_t watchdog;
	int watched;
	int event_fd;
	struct kfs_reader *owner;
	struct queue spare, returning;
	struct kfs_reader *stuck;
	/* ns: until when others are served before who has yielded goes on; 0: not at all */
	uint64_t others_until;
	uint64_t looks; /* for clients that were killed */
	_Atomic uint64_t longest_turn_us; /* the owner writes it, without the lock */
	_Atomic uint32_t has_room; /* who could not begin a command perhaps can now */
	struct kfs_owners count;
	struct account accounts[ACCOUNTS];
};

/* The reader of the calling thread; NULL for threads that never own the core, whose accesses nobody waits for. */
static __thread struct kfs_reader *own_reader;

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static void queue_init(struct queue *queue)
{
	queue->first = NULL;
	queue->last = &queue->first;
}

static void append(struct queue *queue, struct kfs_reader *reader)
{
	reader->next = NULL;
	*queue->last = reader;
	queue->last = &reader->next;
}

static struct kfs_reader *shift(struct queue *queue)
{
	struct kfs_reader *reader = queue->first;

	queue->first = reader->next;
	if (!queue->first)
		queue->last = &queue->first;
	return reader;
}

/* --- accounts --------------------------------------------------------------------------------------- */

static struct account *account_of(struct kfs_ownership *o, uint32_t uid)
{
	for (int i = 0; i < ACCOUNTS; i++)
		if (o->accounts[i].last && o->accounts[i].uid == uid)
			return &o->accounts[i];
	return NULL;
}

/* An account for `uid`: its own, or in the place of the one that has done nothing for longest. */
static struct account *make_account(struct kfs_ownership *o, uint32_t uid)
{
	struct account *account = account_of(o, uid);

	if (account)
		return account;
	for (int i = 0; i < ACCOUNTS; i++) {
		struct account *other = &o->accounts[i];

		if (!other->stuck && (!account || other->last < account->last))
			account = other;
	}
	if (account)
		*account = (struct account){ .uid = uid };
	return account;
}

static void charge(struct kfs_ownership *o, uint32_t uid)
{
	struct account *account = make_account(o, uid);
	uint64_t now = now_ns(), *oldest;

	o->count.stuck++;
	o->count.preempted++;
	if (o->count.stuck >= (uint32_t)KFS_STUCK_MAX)
		o->any_blocked = 1;
	if (!account)
		return;
	oldest = &account->times[account->oldest];
	account->stuck++;
	if (account->stuck >= (uint32_t)KFS_STUCK_PER_UID || (*oldest && now - *oldest < KFS_PREEMPTIONS_MS * NS_PER_MS)) {
		account->blocked_until = now + KFS_BLOCKED_MS * NS_PER_MS;
		o->any_blocked = 1;
	}
	account->last = *oldest = now;
	account->oldest = (account->oldest + 1) % KFS_PREEMPTIONS_MAX;
}

static void discharge(struct kfs_ownership *o, uint32_t uid)
{
	struct account *account = account_of(o, uid);

	o->count.stuck--;
	if (account && account->stuck)
		account->stuck--;
}

static int is_blocked(struct kfs_ownership *o, uint32_t uid)
{
	uint64_t now = now_ns();
	int blocked, any;

	pthread_mutex_lock(&o->lock);
	blocked = any = o->count.stuck >= (uint32_t)KFS_STUCK_MAX;
	for (int i = 0; i < ACCOUNTS; i++) {
		struct account *account = &o->accounts[i];

		if (account->stuck < (uint32_t)KFS_STUCK_PER_UID && now >= account->blocked_until)
			continue;
		any = 1;
		if (account->uid == uid)
			blocked = 1;
	}
	if (!any)
		o->any_blocked = 0;
	o->count.blocked += blocked;
	pthread_mutex_unlock(&o->lock);
	return blocked;
}

/* --- the watchdog ----------------------------------------------------------------------------------- */

static void futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout)
{
	syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static void wake_watchdog(struct kfs_ownership *o)
{
	o->asleep = 0;
	futex(&o->asleep, FUTEX_WAKE, 1, NULL);
}

/*
 * A field of a stat file of /proc, counted as in proc(5), from 3 on; it lies in `text`.  NULL: the thread is no more.
 * Such a file is short, whatever the thread is, and reading it waits for nothing of the thread's.
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
	/* The name of the program before it may hold anything. */
	at = strrchr(text, ')');
	for (; at && field > 2; field--)
		at = strchr(at + 1, ' ');
	return at ? at + 1 : NULL;
}

/* Whether the thread waits for something, rather than for its turn on a cpu. */
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
 * kernel makes every fatal signal a SIGKILL of each thread of the process, also an exit and an execve of a sibling.
 */
int kfs_is_dying(uint32_t tid)
{
	char path[64], text[STAT_MAX];
	const char *pending;

	snprintf(path, sizeof(path), "/proc/%u/task/%u/stat", tid, tid);
	pending = read_stat(path, STAT_PENDING, text, sizeof(text));
	return !pending || strtoull(pending, NULL, 10) & 1ull << (SIGKILL - 1);
}

/* With the lock held: the killed client of `unique`, whose reader is stuck, gets its answer.  Whether it did. */
static int abandon(struct kfs_ownership *o, uint64_t unique)
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

/* A client may be killed long after the signal that the kernel tells of, and that it tells of but once. */
static void look_for_dying(struct kfs_ownership *o)
{
	struct kfs_reader *reader;
	uint64_t unique;
	uint32_t client;
	int is_dying;

	pthread_mutex_lock(&o->lock);
	o->looks++;
	for (;;) {
		/* From the start: while the lock was not held they may have gone. */
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
			abandon(o, unique);
	}
	pthread_mutex_unlock(&o->lock);
}

/* With the lock held: the core goes to a spare, which there is. */
static void let_spare_own(struct kfs_ownership *o)
{
	o->owner = shift(&o->spare);
	o->count.spares--;
	pthread_cond_signal(&o->owner->turn);
}

/* With the lock held: the core goes to the first who wants it back. */
static void let_returning_own(struct kfs_ownership *o)
{
	o->owner = shift(&o->returning);
	o->returned--;
	o->others_until = 0;
	pthread_cond_signal(&o->owner->turn);
}

/* The access `ticket` has lasted for `age` ns.  Without a successor nothing happens: one is on its way. */
static void preempt(struct kfs_ownership *o, uint64_t ticket, uint64_t age)
{
	struct kfs_reader *owner;

	pthread_mutex_lock(&o->lock);
	owner = o->owner;
	if (owner && (o->returning.first || o->spare.first) &&
	    (age >= KFS_PATIENCE_MS * KFS_BUSY_FACTOR * NS_PER_MS || is_sleeping(owner->tid)) &&
	    atomic_compare_exchange_strong(&o->access, &ticket, ticket + 1)) {
		charge(o, owner->uid);
		owner->next_stuck = o->stuck;
		o->stuck = owner;
		o->any_stuck = 1;
		owner->detach(owner->context);
		o->has_room = 1;
		if (o->returning.first)
			let_returning_own(o);
		else
			let_spare_own(o);
	}
	pthread_mutex_unlock(&o->lock);
}

static void *watch(void *argument)
{
	const struct timespec look = { 0, KFS_LOOK_MS * NS_PER_MS }, dying = { 0, KFS_DYING_MS * NS_PER_MS };
	struct kfs_ownership *o = argument;
	uint64_t seen = 0, since = now_ns(), looked = since;

	while (!o->ended) {
		uint64_t access = o->access, now = now_ns();

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
			/* Either the owner sees that we sleep, or we see its access. */
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

/* --- ownership -------------------------------------------------------------------------------------- */

/* `event_fd`: an eventfd that ends the owner's wait; a thread that wants to go on writes it. */
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

/* No reader of it may be left. */
void kfs_ownership_free(struct kfs_ownership *o)
{
	o->ended = 1;
	if (o->watched) {
		wake_watchdog(o);
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

/* Whether the system gives no further thread now: without a successor nobody may access memory of clients then. */
void kfs_ownership_starve(struct kfs_ownership *o, int is_starving)
{
	o->starving = (uint32_t)is_starving;
}

/*
 * `detach` is called while the thread of the reader is stuck and nobody owns the core.  `answer` is called, by any thread,
 * while that one is stuck and its client was killed: it gives the request an answer, and may not wait.
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
	pthread_cond_init(&reader->turn, NULL);
	return reader;
}

void kfs_reader_free(struct kfs_reader *reader)
{
	if (own_reader == reader)
		own_reader = NULL;
	pthread_cond_destroy(&reader->turn);
	free(reader);
}

/* With the lock held: without the watchdog there is no guard, so that nobody may own the core. */
static int start_watchdog(struct kfs_ownership *o)
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

/* With the lock held. */
static int wait_as_spare(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	append(&o->spare, reader);
	o->count.spares++;
	while (o->owner != reader && !o->ended)
		pthread_cond_wait(&reader->turn, &o->lock);
	return o->ended ? KFS_END : KFS_OWNER;
}

/* Let the calling thread have `reader`, and wait until it owns the core: KFS_OWNER, or KFS_END, or -errno. */
int kfs_reader_take(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int r;

	own_reader = reader;
	reader->tid = (int)syscall(SYS_gettid);
	pthread_mutex_lock(&o->lock);
	r = start_watchdog(o);
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
 * The owner is between two requests.  If a thread wants to go on with its own it gets the core: then KFS_OWNER
 * once it is given back, or KFS_END; else 0 at once.
 */
int kfs_reader_pass(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int r = 0;

	if (!o->returned)
		return 0;
	if (o->others_until == A_TURN)
		o->others_until = now_ns() + TURN_NS;
	if (o->others_until > now_ns())
		return 0;
	pthread_mutex_lock(&o->lock);
	if (o->owner == reader && o->returning.first) {
		let_returning_own(o);
		r = o->count.spares >= (uint32_t)KFS_SPARES_MAX ? KFS_END : wait_as_spare(reader);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

/* Whether somebody waits for the owner to find no further request, which then must not wait for one. */
int kfs_reader_is_hurried(struct kfs_reader *reader)
{
	return reader->ownership->returned != 0;
}

/* There is no request. */
void kfs_reader_found_nothing(struct kfs_reader *reader)
{
	reader->ownership->others_until = 0;
}

/* The owner ends it all: spares get KFS_END, and who is stuck never goes on. */
void kfs_reader_end(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	pthread_mutex_lock(&o->lock);
	o->ended = 1;
	for (struct kfs_reader *each = o->spare.first; each; each = each->next)
		pthread_cond_signal(&each->turn);
	pthread_mutex_unlock(&o->lock);
	wake_watchdog(o);
}

/* --- turns ------------------------------------------------------------------------------------------ */

/*
 * The owner begins with something: a request, or what is due without one.  The thread's cpu time costs a system call, so
 * it is read anew only once in SLACK_US; what the thread did since then counts for the turn.  Idempotent.
 */
void kfs_reader_turn_begins(struct kfs_reader *reader)
{
	uint64_t now;

	if (reader->began)
		return;
	now = now_ns();
	reader->accesses = 0;
	reader->began = now;
	if (now - reader->cpu_read >= KFS_SLACK_US * 1000ull) {
		reader->cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
		reader->cpu_read = now;
	}
}

/* Others get the core, or it is through. */
static void end_turn(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	uint64_t now, cpu, used_us;

	if (!reader->began)
		return;
	now = now_ns();
	if (now - reader->began >= KFS_MEASURED_US * 1000ull) {
		cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
		used_us = (cpu - reader->cpu) / 1000;
		if (used_us > o->longest_turn_us)
			o->longest_turn_us = used_us;
		reader->cpu = cpu;
		reader->cpu_read = now;
	}
	reader->began = 0;
}

/* The owner is through with what it began. */
void kfs_reader_turn_ends(struct kfs_reader *reader)
{
	end_turn(reader);
	if (reader->has_yielded)
		reader->ownership->has_room = 1;
	reader->has_yielded = reader->is_command = 0;
}

/*
 * Whether `uid` may begin a command, for the owner to ask.  The threads of those that have yielded wait to return,
 * or they are stuck, and count there.
 */
int kfs_reader_may_begin(struct kfs_reader *reader, uint32_t uid)
{
	struct kfs_ownership *o = reader->ownership;
	uint32_t count = 0, limit;

	if (o->count.yielded < (uint32_t)KFS_YIELDED_PER_UID)
		return 1;
	pthread_mutex_lock(&o->lock);
	for (struct kfs_reader *each = o->returning.first; each; each = each->next)
		count += each->is_command && each->uid == uid;
	limit = o->count.yielded < (uint32_t)KFS_YIELDED_MAX ? (uint32_t)KFS_YIELDED_PER_UID : 1;
	pthread_mutex_unlock(&o->lock);
	return count < limit;
}

/* Whether a command that had yielded has come to its end since `kfs_reader_is_full`. */
int kfs_reader_has_room(struct kfs_reader *reader)
{
	return reader->ownership->has_room != 0;
}

/* None of those who wait may begin. */
void kfs_reader_is_full(struct kfs_reader *reader)
{
	reader->ownership->has_room = 0;
}

/* The owner takes up request `unique`, which thread `client` of `uid` has made. */
void kfs_reader_request(struct kfs_reader *reader, uint32_t uid, uint32_t client, uint64_t unique)
{
	reader->uid = uid;
	reader->client = client;
	reader->unique = unique;
	reader->is_command = 1;
	reader->abandoned = 0;
	reader->blocked = reader->ownership->any_blocked && is_blocked(reader->ownership, uid);
}

/* The owner is through with its request.  Whether that was abandoned, and must not be answered once more. */
int kfs_reader_request_ends(struct kfs_reader *reader)
{
	int abandoned = reader->abandoned;

	reader->abandoned = 0;
	return abandoned;
}

/* Whether the client of the owner's request was killed, and answered, while the thread was stuck. */
int kfs_reader_is_abandoned(struct kfs_reader *reader)
{
	return reader->abandoned;
}

/* FUSE_INTERRUPT: a signal came for request `unique`.  Whether that is one of a stuck reader's, and answered by now. */
int kfs_reader_interrupt(struct kfs_reader *reader, uint64_t unique)
{
	struct kfs_ownership *o = reader->ownership;
	int answered = 0;

	if (!o->any_stuck)
		return 0;
	pthread_mutex_lock(&o->lock);
	for (struct kfs_reader *each = o->stuck; each; each = each->next_stuck)
		if (each->unique == unique && kfs_is_dying(each->client))
			answered = abandon(o, unique);
	pthread_mutex_unlock(&o->lock);
	return answered;
}

/* --- accesses --------------------------------------------------------------------------------------- */

/* With the lock held: waits for the turn of `reader`.  At the end of the service that never comes. */
static void wait_for_turn(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;

	while (o->owner != reader || o->ended)
		pthread_cond_wait(&reader->turn, &o->lock);
}

/*
 * The owner's turn has been long, as of a broadcast to a thousand: it lets a spare serve others for a while, and goes
 * on.  As after an access, they may have changed anything.  Returns 0 if there is nobody to let.
 */
static int yield_to_spare(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int has_yielded = 0;

	pthread_mutex_lock(&o->lock);
	if (o->owner == reader && o->spare.first && !o->ended) {
		has_yielded = reader->has_yielded = 1;
		end_turn(reader);
		o->count.yielded++;
		o->count.yields++;
		reader->detach(reader->context);
		append(&o->returning, reader);
		o->returned++;
		o->others_until = A_TURN;
		let_spare_own(o);
		wait_for_turn(reader);
		o->count.yielded--;
		kfs_reader_turn_begins(reader);
	}
	pthread_mutex_unlock(&o->lock);
	return has_yielded;
}

/* Yields if the turn has been long. */
static int yield_if_due(struct kfs_reader *reader)
{
	return now_ns() - reader->began >= TURN_NS && yield_to_spare(reader);
}

/*
 * The owner has done a part of something that may be long, and is not in an access.  Returns whether others have owned
 * the core meanwhile.  Threads that never own it have no turn.
 */
int kfs_yield(void)
{
	struct kfs_reader *reader = own_reader;

	return reader && reader->began && yield_if_due(reader);
}

/* Whether there is somebody to have the core if this thread is held up, or will be. */
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

/*
 * What follows may be held up by a client.  Otherwise it must not be done: -EFAULT, the client has done that too often, or
 * nobody could have the core then; -ECANCELED, it was killed, see kfs_access_end.
 */
/* Whether memory of the client of the owner's request may be accessed now; kfs_access_begin() would say EFAULT. */
int kfs_reader_may_access(struct kfs_reader *reader)
{
	return !reader->blocked && has_successor(reader->ownership);
}

int kfs_access_begin(uint64_t *ticket)
{
	struct kfs_reader *reader = own_reader;
	struct kfs_ownership *o;

	*ticket = 0;
	if (!reader)
		return 0;
	if (reader->abandoned)
		return -ECANCELED;
	if (reader->blocked || !has_successor(reader->ownership))
		return -EFAULT;
	if (++reader->accesses >= KFS_ACCESSES_MIN)
		yield_if_due(reader);
	o = reader->ownership;
	*ticket = atomic_fetch_add(&o->access, 1) + 1;
	if (o->asleep)
		wake_watchdog(o);
	return 0;
}

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
	discharge(o, reader->uid);
	if (!o->ended) {
		append(&o->returning, reader);
		o->returned++;
		/* It fails only when it is about to be read anyway. */
		if (write(o->event_fd, &one, sizeof(one)) < 0)
			errno = 0;
	}
	wait_for_turn(reader);
	end_turn(reader);
	kfs_reader_turn_begins(reader);
	pthread_mutex_unlock(&o->lock);
}

/*
 * Returns when the thread owns the core, which is at once unless it was preempted.  Does not keep errno.
 *
 * -ECANCELED: the client was killed meanwhile, and its request has been answered.  What was copied is worth nothing, and
 * what was begun must be given up: the client may be gone, and its files closed.
 */
int kfs_access_end(uint64_t ticket)
{
	struct kfs_reader *reader = own_reader;

	if (!reader || atomic_compare_exchange_strong(&reader->ownership->access, &ticket, ticket + 1))
		return 0;
	get_back(reader);
	return reader->abandoned ? -ECANCELED : 0;
}
