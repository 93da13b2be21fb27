/*
 * How the daemon is scheduled: before others where it would have to wait for them, and otherwise like them.
 *
 * A reader that runs before its clients takes up each request by itself, and has to be woken for the next; one that
 * waits its turn finds several.  So it runs before others only while it has been kept waiting, which it sees from the
 * time that its thread could have run and did not (/proc/thread-self/schedstat).  As it is not kept waiting while it
 * runs before others, it then tries once in a while how it fares without.
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

/* A thread that is not boosted is looked at after every request at first, and after so many when all is well. */
#define STRIDE_MAX 16
/* It is boosted when it has waited for longer than this in all, and than that for each request. */
#define WAITED_NS 500000ull
#define WAITED_PER_REQUEST_NS 50000ull
/* More than once, as that happens by chance: each long wait weighs as much as so many short ones. */
#define LONG_WAIT_WEIGHT 4
#define LONG_WAITS_MAX 8
/* For so long; twice as long as the last time where it was kept waiting again at once. */
#define TERM_FIRST_NS 1000000000ull
#define TERM_MAX_NS 16000000000ull

/* As sched_setattr(2) takes it; libc has no name for it before 2.41. */
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

/* What the threads of the daemon have; of size 0 if it is not boosted. */
static struct attributes common;

static int set(struct attributes attributes)
{
	return syscall(SYS_sched_setattr, 0, &attributes, 0) < 0 ? -errno : 0;
}

/* Sets nice value and slice of the calling thread, and of all that it starts from now on.  Returns 0 or -errno. */
int kfs_boost(int nice, uint64_t slice_ns)
{
	struct attributes attributes = { .size = sizeof(attributes), .nice = nice, .runtime = slice_ns };
	int r = set(attributes);

	if (r == 0)
		common = attributes;
	return r;
}

/* The same once more, for a thread whose starter may have been without at that moment. */
void kfs_boost_again(void)
{
	if (common.size)
		set(common);
}

static int set_nice(int nice)
{
	return setpriority(PRIO_PROCESS, 0, nice);
}

/* For how many ns in all the thread could have run and did not.  Returns 0 or -1. */
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
 * The calling thread adapts its scheduling boost from now on: between that of the daemon and none.  Not if the daemon has
 * none, or could not take it again, or the kernel does not tell how long threads wait.
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

/* So many requests as `stride` were read since the last look.  Returns whether the thread is boosted now. */
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
