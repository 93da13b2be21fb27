/* Turns: how long the owner has worked since others could be served, and when it yields to them (ownership.h). */
#include "internal_ownership.h"

static uint64_t cpu_ns(void)
{
	struct timespec used;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/*
 * The owner begins a request, or what is due without one.  Reading the thread's cpu time takes a system call, so it is
 * read only once in SLACK_US, and cpu time since then counts for this turn.  Idempotent.
 */
void kfs_reader_turn_begins(struct kfs_reader *reader)
{
	uint64_t now;

	if (reader->began)
		return;
	now = kfs_now_ns();
	reader->accesses = 0;
	reader->began = now;
	if (now - reader->cpu_read >= KFS_SLACK_US * NS_PER_US) {
		reader->cpu = cpu_ns();
		reader->cpu_read = now;
	}
}

/* The turn ends, with the request or because others get the core.  Idempotent. */
void kfs_end_turn(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	uint64_t now, cpu, used_us;

	if (!reader->began)
		return;
	now = kfs_now_ns();
	if (reader->pays)
		kfs_share_charge(&o->shares, reader->uid, now - reader->began);
	if (now - reader->began >= KFS_MEASURED_US * NS_PER_US) {
		cpu = cpu_ns();
		used_us = (cpu - reader->cpu) / NS_PER_US;
		if (used_us > o->longest_turn_us)
			o->longest_turn_us = used_us;
		reader->cpu = cpu;
		reader->cpu_read = now;
	}
	reader->began = 0;
}

/* The owner has finished what it began. */
void kfs_reader_turn_ends(struct kfs_reader *reader)
{
	kfs_end_turn(reader);
	reader->is_command = reader->pays = 0;
}

/*
 * For the owner: whether `uid` may begin a command.  Its commands that have yielded are counted in `returning`; those
 * that are stuck have a bound of their own.
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

/* The current turn is charged to `uid`. */
void kfs_reader_pays(struct kfs_reader *reader, uint32_t uid)
{
	reader->uid = uid;
	reader->pays = 1;
}

/* For the owner: whether `uid` has had the core for as long as a turn in this round. */
int kfs_reader_has_had_turn(struct kfs_reader *reader, uint32_t uid)
{
	return kfs_share_used(&reader->ownership->shares, uid) >= TURN_NS;
}

/* Every uid may have the core for a turn again. */
void kfs_reader_new_round(struct kfs_reader *reader)
{
	reader->ownership->shares.round++;
}

/*
 * A spare serves others for a while; then this thread is the owner again.  As after an access, they may have changed
 * anything.  Returns 0 if there is no spare.
 */
static int yield_to_spare(struct kfs_reader *reader)
{
	struct kfs_ownership *o = reader->ownership;
	int has_yielded = 0;

	pthread_mutex_lock(&o->lock);
	if (o->owner == reader && o->spare.first && !o->ended) {
		has_yielded = 1;
		kfs_end_turn(reader);
		o->count.yielded++;
		o->count.yields++;
		reader->detach(reader->context);
		kfs_append(&o->returning, reader);
		o->returned++;
		o->others_until = A_TURN;
		kfs_let_spare_own(o);
		kfs_wait_for_core(reader);
		o->count.yielded--;
		kfs_reader_turn_begins(reader);
	}
	pthread_mutex_unlock(&o->lock);
	return has_yielded;
}

/* Yields if the turn has been long.  Whether others have owned the core meanwhile. */
int kfs_yield_if_due(struct kfs_reader *reader)
{
	return kfs_now_ns() - reader->began >= TURN_NS && yield_to_spare(reader);
}

/*
 * The owner has done a part of something that may be long, and is not in an access.  Returns whether others have owned
 * the core meanwhile.  Threads that never own it have no turn.
 */
int kfs_yield(void)
{
	struct kfs_reader *reader = kfs_own_reader;

	return reader && reader->began && kfs_yield_if_due(reader);
}
