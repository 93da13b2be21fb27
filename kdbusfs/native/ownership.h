#pragma once
#include <stdint.h>

/* Kinds of a step (channel.h has the others): the calling thread owns the core now; it is to end. */
static const int KFS_OWNER = 7;
static const int KFS_END = 8;

/* How long an access to client memory may take before its reader is preempted, and how often the watchdog looks. */
static const int KFS_PATIENCE_MS = 20;
static const int KFS_LOOK_MS = 5;
/* A reader that does not sleep (a big copy, no time on a cpu) gets so many times that. */
static const int KFS_BUSY_FACTOR = 10;
/* How often the watchdog looks whether the client of a stuck reader was killed. */
static const int KFS_DYING_MS = 50;
/* The watchdog goes to sleep when nothing was accessed for this long. */
static const int KFS_DOZE_MS = 100;
/* Bounds: threads that are stuck, in all and for one uid. */
static const int KFS_STUCK_MAX = 64;
static const int KFS_STUCK_PER_UID = 8;
/* A uid that causes PREEMPTIONS_MAX preemptions within PREEMPTIONS_MS, or is at its bound, is blocked. */
enum { KFS_PREEMPTIONS_MAX = 10 };
static const int KFS_PREEMPTIONS_MS = 10000;
static const int KFS_BLOCKED_MS = 60000;
/*
 * Readers that wait to become the owner.  They are started in advance, more than one user can hold up: when they are
 * needed, the system may refuse to start one.  A reader that returns stays as a spare for the next turn that yields,
 * unless there are SPARES_MAX.
 */
static const int KFS_SPARES = 10;
static const int KFS_SPARES_MAX = 20;
/* A turn yields after this time, and other requests, if there are any, are served for as long. */
static const int KFS_TURN_US = 1000;
/* The cpu time of turns shorter than MEASURED is not measured; that of others may be too high by SLACK. */
static const int KFS_MEASURED_US = 500;
static const int KFS_SLACK_US = 200;
/* A turn looks at the clock from this access on. */
static const int KFS_ACCESSES_MIN = 4;
/* Commands of one user that have yielded; one where there are YIELDED_MAX in all.  The user's next ones are held. */
static const int KFS_YIELDED_PER_UID = 4;
static const int KFS_YIELDED_MAX = 64;

struct kfs_ownership;
struct kfs_reader;

struct kfs_owners {
	uint32_t spares;
	uint32_t stuck;
	uint32_t yielded;
	uint32_t held; /* requests that wait unread */
	uint64_t preempted;
	uint64_t blocked;
	uint64_t yields;
	uint64_t longest_turn_us; /* cpu time */
	uint64_t abandoned;
};

struct kfs_ownership *kfs_ownership_new(int event_fd);
void kfs_ownership_free(struct kfs_ownership *o);
void kfs_ownership_look(struct kfs_ownership *o, struct kfs_owners *owners);
void kfs_ownership_starve(struct kfs_ownership *o, int is_starving);

struct kfs_reader *kfs_reader_new(struct kfs_ownership *o, void (*detach)(void *), void (*answer)(void *),
				  void *context);
void kfs_reader_free(struct kfs_reader *reader);
int kfs_reader_take(struct kfs_reader *reader);
int kfs_reader_pass(struct kfs_reader *reader);
int kfs_reader_is_hurried(struct kfs_reader *reader);
void kfs_reader_found_nothing(struct kfs_reader *reader);
void kfs_reader_end(struct kfs_reader *reader);
void kfs_reader_turn_begins(struct kfs_reader *reader);
void kfs_reader_turn_ends(struct kfs_reader *reader);
int kfs_yield(void);
int kfs_reader_may_begin(struct kfs_reader *reader, uint32_t uid);
int kfs_reader_has_had_turn(struct kfs_reader *reader, uint32_t uid);
void kfs_reader_new_round(struct kfs_reader *reader);
void kfs_reader_pays(struct kfs_reader *reader, uint32_t uid);
void kfs_reader_request(struct kfs_reader *reader, uint32_t uid, uint32_t client, uint64_t unique);
int kfs_reader_may_access(struct kfs_reader *reader);
int kfs_reader_request_ends(struct kfs_reader *reader);
int kfs_reader_is_abandoned(struct kfs_reader *reader);
int kfs_reader_interrupt(struct kfs_reader *reader, uint64_t unique);

int kfs_is_dying(uint32_t tid);
int kfs_access_begin(uint64_t *ticket);
int kfs_access_end(uint64_t ticket);
