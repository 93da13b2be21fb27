/*
 * The alarm ends the reader's sleep for events other than requests.
 *
 * The reader sleeps in read(/dev/fuse), which no other descriptor and no deadline can end.  So a thread watches those,
 * and makes a request appear: for FUSE_NOTIFY_RETRIEVE of an inode the kernel queues a FUSE_NOTIFY_REPLY, which nobody
 * waits for and which needs no answer.  It must be the inode of a regular file (Linux 6.18 refuses others) that the
 * kernel knows, which is certain if a file of it is open: its id is the *wake-up node*. A mount without open files has
 * none, and its reader does not sleep in read.
 *
 * Invariant against lost wake-ups, by sequentially consistent atomics: the reader publishes its deadline and that it
 * sleeps, then checks for `news`, then reads; the thread publishes news, then checks whether the reader sleeps.
 */
#define _GNU_SOURCE
#include "internal_alarm.h"
#include "internal_answer.h"
#include "internal_channel.h"
#include "boost.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NEVER UINT64_MAX
#define RETRY_NS 1000000

enum { AWAKE, ASLEEP, CALLED };
enum { NOT_STARTED, STARTED, USELESS };

struct kfs_alarm {
	int fuse_fd, epoll_fd, timer_fd;
	int state;
	pthread_t thread;
	_Atomic int ended;
	_Atomic int news;
	_Atomic int sleeper;
	_Atomic uint64_t wake_node; /* of an open file; 0: none */
	_Atomic uint64_t deadline, armed;
	pthread_mutex_t arming;
};

/* Makes a request appear.  Returns 0 or -errno. */
static int request_wake_up(struct kfs_alarm *a)
{
	uint64_t nodeid = a->wake_node;

	return nodeid ? kfs_notify_retrieve(a->fuse_fd, nodeid) : -ENOENT;
}

static void call_reader(struct kfs_alarm *a)
{
	const struct timespec pause = { 0, RETRY_NS };
	int expected = ASLEEP;

	a->news = 1;
	if (!atomic_compare_exchange_strong(&a->sleeper, &expected, CALLED))
		return;
	/*
	 * It fails for lack of memory, or because a request that wakes the reader exists already: a RELEASE, the end.
	 */
	while (request_wake_up(a) < 0 && a->sleeper == CALLED && !a->ended)
		nanosleep(&pause, NULL);
}

/* With the mutex held. */
static void arm(struct kfs_alarm *a, uint64_t deadline_ns)
{
	const struct itimerspec when = {
		.it_value = { (time_t)(deadline_ns / 1000000000u), (long)(deadline_ns % 1000000000u) },
	};

	a->armed = deadline_ns;
	timerfd_settime(a->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* The armed time has come.  Returns whether the deadline has; it may have been postponed meanwhile. */
static int is_due(struct kfs_alarm *a)
{
	uint64_t ticks, deadline;
	int due = 0;

	pthread_mutex_lock(&a->arming);
	if (read(a->timer_fd, &ticks, sizeof(ticks)) == sizeof(ticks)) {
		/* Invariant: the reader sees that nothing is armed, or its deadline is seen here. */
		a->armed = NEVER;
		deadline = a->deadline;
		due = deadline <= kfs_now_ns();
		if (!due && deadline != NEVER)
			arm(a, deadline);
	}
	pthread_mutex_unlock(&a->arming);
	return due;
}

static void *watch(void *argument)
{
	struct kfs_alarm *a = argument;
	struct epoll_event event;

	kfs_boost_again();
	while (!a->ended)
		if (epoll_wait(a->epoll_fd, &event, 1, -1) == 1 && !a->ended &&
		    (event.data.fd != a->timer_fd || is_due(a)))
			call_reader(a);
	return NULL;
}

static int add(struct kfs_alarm *a, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	return epoll_ctl(a->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static int start_thread(struct kfs_alarm *a)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&a->thread, NULL, watch, a);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -r;
}

/*
 * Edge-triggered, because the reader consumes the events.  Of the tree only the end is watched: a reader that asks it
 * waits for the answer itself, and it sends nothing unasked.
 */
struct kfs_alarm *kfs_alarm_new(int fuse_fd, int tree_fd, int event_fd)
{
	struct kfs_alarm *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->fuse_fd = fuse_fd;
	a->deadline = a->armed = NEVER;
	pthread_mutex_init(&a->arming, NULL);
	a->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	a->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (a->epoll_fd < 0 || a->timer_fd < 0 || add(a, event_fd, EPOLLIN | EPOLLET) < 0 ||
	    add(a, tree_fd, EPOLLRDHUP | EPOLLET) < 0 || add(a, a->timer_fd, EPOLLIN) < 0)
		a->state = USELESS;
	return a;
}

/* No thread may use it afterwards. */
void kfs_alarm_free(struct kfs_alarm *a)
{
	if (a->state == STARTED) {
		a->ended = 1;
		pthread_mutex_lock(&a->arming);
		arm(a, 1);
		pthread_mutex_unlock(&a->arming);
		pthread_join(a->thread, NULL);
	}
	if (a->timer_fd >= 0)
		close(a->timer_fd);
	if (a->epoll_fd >= 0)
		close(a->epoll_fd);
	pthread_mutex_destroy(&a->arming);
	free(a);
}

/* A regular file of `nodeid` is open. */
void kfs_alarm_opened(struct kfs_alarm *a, uint64_t nodeid)
{
	if (atomic_load_explicit(&a->wake_node, memory_order_relaxed) != nodeid)
		a->wake_node = nodeid;
}

/* A file of `nodeid` was closed; others of that inode may still be open. */
void kfs_alarm_released(struct kfs_alarm *a, uint64_t nodeid)
{
	if (atomic_load_explicit(&a->wake_node, memory_order_relaxed) == nodeid)
		a->wake_node = 0;
}

/* Whether the reader's sleep can be ended now.  The first call tries whether that works on this kernel. */
int kfs_alarm_watches(struct kfs_alarm *a)
{
	if (!atomic_load_explicit(&a->wake_node, memory_order_relaxed) || a->state == USELESS)
		return 0;
	if (a->state == NOT_STARTED) {
		int r = request_wake_up(a);

		/* The file may have been closed just now. */
		if (r == -ENOENT)
			return 0;
		a->state = r == 0 && start_thread(a) == 0 ? STARTED : USELESS;
	}
	return a->state == STARTED;
}

/* Whether the descriptors or the clock have to be checked. */
int kfs_alarm_has_news(struct kfs_alarm *a)
{
	return atomic_load_explicit(&a->news, memory_order_relaxed);
}

/* The caller checks them after this. */
void kfs_alarm_seen(struct kfs_alarm *a)
{
	a->news = 0;
}

/* The caller found an event, and there may be more. */
void kfs_alarm_more(struct kfs_alarm *a)
{
	a->news = 1;
}

/* The reader is about to sleep until `deadline_ns`, 0: without limit.  Returns 0 if it must not: there is news. */
int kfs_alarm_sleep(struct kfs_alarm *a, uint64_t deadline_ns)
{
	uint64_t deadline = deadline_ns ? deadline_ns : NEVER;

	if (atomic_load_explicit(&a->deadline, memory_order_relaxed) != deadline)
		a->deadline = deadline;
	/* Most deadlines are postponed long before they come, so a timer that is armed for an earlier time stays. */
	if (deadline < a->armed) {
		pthread_mutex_lock(&a->arming);
		if (deadline < a->armed)
			arm(a, deadline);
		pthread_mutex_unlock(&a->arming);
	}
	a->sleeper = ASLEEP;
	if (!a->news)
		return 1;
	a->sleeper = AWAKE;
	return 0;
}

void kfs_alarm_awake(struct kfs_alarm *a)
{
	atomic_store_explicit(&a->sleeper, AWAKE, memory_order_release);
}
