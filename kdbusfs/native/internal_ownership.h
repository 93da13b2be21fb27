/* The state of ownership, shared by ownership.c, uid_accounts.c, watchdog.c, turn.c and access.c; not for Python. */
#pragma once
#include "internal_clock.h"
#include "internal_shares.h"
#include "ownership.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define NS_PER_US 1000ull
#define NS_PER_MS 1000000ull
#define TURN_NS (KFS_TURN_US * NS_PER_US)
#define ACCOUNTS 128
/* Sentinel of others_until: it is set when the next turn begins. */
#define A_TURN UINT64_MAX
_Static_assert(ACCOUNTS > 64, "every uid with a stuck thread has an account");

/* The preemptions that a uid has caused. */
struct uid_account {
	uint32_t uid;
	uint32_t stuck;
	uint32_t oldest; /* index in `times` */
	uint64_t times[KFS_PREEMPTIONS_MAX];
	uint64_t last; /* 0: the account is free */
	uint64_t blocked_until;
};

/* A thread that can be the owner, with its current request. */
struct kfs_reader {
	struct kfs_ownership *ownership;
	struct kfs_reader *next;
	struct kfs_reader *next_stuck;
	pthread_cond_t has_core;
	void (*detach)(void *);
	void (*answer)(void *);
	void *context;
	int tid;
	/* The request; `client` is the thread that made it. */
	uint32_t uid;
	uint32_t client;
	uint64_t unique;
	int is_command; /* 0: a close, or a deadline */
	int pays; /* the turn is charged to `uid` */
	uint64_t looked; /* the last of `looks` that checked whether the client was killed */
	int blocked;
	int abandoned; /* the client was killed and has its answer; set only while the reader is among the stuck */
	int accesses; /* in this turn */
	uint64_t began; /* ns, start of the turn; 0: there is none */
	uint64_t cpu, cpu_read; /* cpu time of the thread in ns, and when it was read */
};

struct reader_queue {
	struct kfs_reader *first, **last;
};

struct kfs_ownership {
	/* Odd while the owner is in client memory.  Owner and watchdog compete to increment it: ownership.c, top. */
	_Atomic uint64_t access;
	_Atomic uint32_t asleep; /* the watchdog: a futex */
	_Atomic uint32_t returned; /* readers in `returning` */
	_Atomic uint32_t any_blocked; /* whether a uid may be blocked */
	_Atomic uint32_t ended;
	_Atomic uint32_t starving; /* no further spare can be started */
	_Atomic uint32_t any_stuck; /* whether there are readers in `stuck` */
	pthread_mutex_t lock;
	pthread_t watchdog;
	int watched;
	int event_fd;
	struct kfs_reader *owner;
	struct reader_queue spare, returning;
	struct kfs_reader *stuck;
	uint64_t others_until; /* ns: until then others are served before a reader that has yielded; 0: not at all */
	uint64_t looks; /* of the watchdog for clients that were killed */
	_Atomic uint64_t longest_turn_us; /* written by the owner, without the lock */
	struct shares shares; /* used by the owner alone */
	struct kfs_owners count;
	struct uid_account accounts[ACCOUNTS];
};

/* The calling thread's; NULL for threads that never own the core, whose accesses delay nobody. */
extern __thread struct kfs_reader *kfs_own_reader;

static inline void kfs_append(struct reader_queue *queue, struct kfs_reader *reader)
{
	reader->next = NULL;
	*queue->last = reader;
	queue->last = &reader->next;
}

/* ownership.c; each with the lock held */
void kfs_let_spare_own(struct kfs_ownership *o);
void kfs_let_returning_own(struct kfs_ownership *o);
void kfs_wait_for_core(struct kfs_reader *reader);

/* uid_accounts.c; the first two with the lock held */
void kfs_charge_preemption(struct kfs_ownership *o, uint32_t uid);
void kfs_discharge_stuck(struct kfs_ownership *o, uint32_t uid);
int kfs_is_blocked(struct kfs_ownership *o, uint32_t uid);

/* watchdog.c; the first two with the lock held */
int kfs_start_watchdog(struct kfs_ownership *o);
int kfs_abandon(struct kfs_ownership *o, uint64_t unique);
void kfs_wake_watchdog(struct kfs_ownership *o);

/* turn.c */
void kfs_end_turn(struct kfs_reader *reader);
int kfs_yield_if_due(struct kfs_reader *reader);
