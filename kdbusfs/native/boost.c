/*
 * The scheduling boost of readers: priority over other threads where it avoids waiting, and none otherwise.
 *
 * A reader with priority over its clients takes up each request by itself, and has to be woken for the next; one
 * without finds several at once.  So it has priority only while it is kept waiting, which it measures by the time that
 * its thread was runnable and did not run (/proc/thread-self/schedstat).  A boosted thread is not kept waiting, so from
 * time to time it tries without.
 */
#define _GNU_SOURCE
#include "boost.h"
#include "internal_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Requests between two checks of a thread that is not boosted: at first, and when it has not been kept waiting. */
#define STRIDE_MAX 16
/* A thread is boosted when it has waited for longer than this in all, and longer than that for each request. */
#define WAITED_NS 500000ull
#define WAITED_PER_REQUEST_NS 50000ull
/* More than once, because a single wait may be chance: each long wait counts like so many short ones. */
#define LONG_WAIT_WEIGHT 4
#define LONG_WAITS_MAX 8
/* Duration of a boost; doubled when the thread is kept waiting again at once. */
#define TERM_FIRST_NS 1000000000ull
#define TERM_MAX_NS 16000000000ull

/* As sched_setattr(2) takes it; libc declares it since 2.41. */
struct attributes {
	uint32_t size;
	uint32_t policy; /* 0: SCHED_OTHER */
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime; /* of SCHED_OTHER: the slice, since Linux 6.12; ignored before */
	uint64_t deadline;
	uint64_t period;
};

/* The attributes of the daemon's threads; size 0: the daemon is not boosted. */
static struct attributes common;

static int set(struct attributes attributes)
{
	return syscall(SYS_sched_setattr, 0, &attributes, 0) < 0 ? -errno : 0;
}

/*
 * Sets nice value and slice of the calling thread, and of all threads that it starts afterwards.  Returns 0 or -errno.
 */
int kfs_boost(int nice, uint64_t slice_ns)
{
	struct attributes attributes = { .size = sizeof(attributes), .nice = nice, .runtime = slice_ns };
	int r = set(attributes);

	if (r == 0)
		common = attributes;
	return r;
}

/* Sets them again, for a thread whose starter may have been without boost at that moment. */
void kfs_boost_again(void)
{
	if (common.size)
		set(common);
}

static int set_nice(int nice)
{
	return setpriority(PRIO_PROCESS, 0, nice);
}

/* Time in ns that the thread was runnable and did not run.  Returns 0 or -1. */
static int read_waited(const struct boost *p, uint64_t *waited)
{
	char text[64], *end;
	ssize_t n = pread(p->schedstat, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return -1;
	text[n] = 0;
	strtoull(text, &end, 10); /* for how long it ran */
	*waited = strtoull(end, NULL, 10);
	return 0;
}

static void begin_without(struct boost *p, uint64_t now)
{
	p->is_taken = 0;
	p->given_up_at = now;
	p->stride = 1;
	p->requests = 0;
	p->long_waits = 0;
}

/*
 * The calling thread adapts its boost from now on, between the daemon's and none.  No effect if the daemon has none, or
 * could not set it again, or the kernel does not report how long threads wait.
 */
void kfs_boost_begin(struct boost *p)
{
	if (common.nice >= 0 || set_nice(common.nice - 1) < 0)
		return;
	p->schedstat = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	if (p->schedstat >= 0 && read_waited(p, &p->waited) == 0 && set_nice(0) == 0)
		begin_without(p, kfs_now_ns());
	else
		set_nice(common.nice);
}

void kfs_boost_end(struct boost *p)
{
	if (p->schedstat >= 0)
		close(p->schedstat);
	p->schedstat = -1;
}

static void take(struct boost *p, uint64_t now)
{
	uint64_t term = p->term && now - p->given_up_at < p->term ? p->term * 2 : TERM_FIRST_NS;

	p->term = term < TERM_MAX_NS ? term : TERM_MAX_NS;
	p->until = now + p->term;
	p->is_taken = 1;
	p->stride = STRIDE_MAX;
	set_nice(common.nice);
}

/* So many requests as `stride` were read since the last check.  Returns whether the thread is boosted now. */
int kfs_boost_look(struct boost *p)
{
	uint64_t now = kfs_now_ns(), before = p->waited;
	uint32_t requests = p->requests;

	p->requests = 0;
	if (p->is_taken && now < p->until)
		return 0;
	if (read_waited(p, &p->waited) < 0) {
		p->stride = UINT32_MAX;
		return 0;
	}
	if (p->is_taken) {
		if (set_nice(0) == 0)
			begin_without(p, now);
		return 0;
	}
	if (p->waited - before <= WAITED_NS + requests * WAITED_PER_REQUEST_NS) {
		if (p->long_waits)
			p->long_waits--;
		if (p->stride < STRIDE_MAX)
			p->stride *= 2;
		return 0;
	}
	p->long_waits += LONG_WAIT_WEIGHT;
	if (p->long_waits <= LONG_WAITS_MAX)
		return 0;
	take(p, now);
	return 1;
}
