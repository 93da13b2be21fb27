/*
 * What ends the reader's sleep besides a request.  The reader sleeps in read(/dev/fuse), which no other descriptor and
 * no deadline can end; so a thread watches those, and makes a request appear: for FUSE_NOTIFY_RETRIEVE of an inode
 * the kernel queues a FUSE_NOTIFY_REPLY, which nobody waits for and which needs no answer.
 *
 * It has to be the inode of a regular file (Linux 6.18 refuses others) that the kernel knows, which is sure of one whose
 * file is open: its id is the *wake-up node*.  A mount of which no file is open has none; its reader does not sleep like that.
 *
 * No wake-up is lost, for all of this is in one order (seq_cst): the reader tells its deadline and that it is asleep,
 * then looks whether there is `news`, then reads; the thread says that there is news, then looks whether it is asleep.
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
	_Atomic uint64_t wake_node; /* an open file's, 0: none */
	_Atomic uint64_t deadline, armed;
	pthread_mutex_t arming;
};

/* Has a request appear.  Returns 0 or -errno. */
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
	/* It fails where memory is short, and where a request that wakes the reader is there already: a RELEASE, the end. */
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

/* The armed time has come.  Returns whether the deadline has; it may have been put off meanwhile. */
static int is_due(struct kfs_alarm *a)
{
	uint64_t ticks, deadline;
	int due = 0;

	pthread_mutex_lock(&a->arming);
	if (read(a->timer_fd, &ticks, sizeof(ticks)) == sizeof(ticks)) {
		/* Either the reader sees that nothing is armed, or its deadline is seen here. */
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
 * Events are told by edge, for it is the reader that takes them.  Of the tree only its end is: answers are waited for by
 * who asks, and it tells nothing unasked.
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

/* No thread may use it any more. */
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

/* Whether the reader's sleep could be ended now.  The first time it is tried, to see whether that works here. */
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

/* Whether the descriptors, or the clock, are to be looked at. */
int kfs_alarm_has_news(struct kfs_alarm *a)
{
	return atomic_load_explicit(&a->news, memory_order_relaxed);
}

/* They are looked at after this. */
void kfs_alarm_seen(struct kfs_alarm *a)
{
	a->news = 0;
}

/* Something was found there, and there may be more. */
void kfs_alarm_more(struct kfs_alarm *a)
{
	a->news = 1;
}

/* The reader is going to sleep until `deadline_ns`, 0: for any time.  Returns 0 if it must not: there is news. */
int kfs_alarm_sleep(struct kfs_alarm *a, uint64_t deadline_ns)
{
	uint64_t deadline = deadline_ns ? deadline_ns : NEVER;

	if (atomic_load_explicit(&a->deadline, memory_order_relaxed) != deadline)
		a->deadline = deadline;
	/* Most deadlines are put off long before they come: what is armed for an earlier one looks then. */
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
