/*
 * Waits for the next request, in one of three ways, the fastest first:
 *
 * - polling: waking a thread that sleeps on another cpu costs more than most requests.  So the reader reads for a while
 * without sleeping, if the last requests came that soon;
 *
 * - sleeping in read(/dev/fuse), one system call for each request; the alarm (alarm.c) ends it for other events;
 *
 * - ppoll of all descriptors, then a read, while no file is open and the alarm has no wake-up node.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

/* How long to poll. */
#define LOOK_NS 50000
/*
 * Polling is given up after so many times in a row without a request, at first for this long, then for twice as long
 * each time.
 */
#define MISSES_MAX 4
#define PAUSE_FIRST_NS 1000000ull
#define PAUSE_MAX_NS 256000000ull
/* The set of usable cpus is read once in so many waits. */
#define WAITS_BETWEEN_CHECKS 1024

/* --- all descriptors -------------------------------------------------------------------------------- */

static int drain(int fd)
{
	uint8_t buffer[64];

	return read(fd, buffer, sizeof(buffer)) < 0 && errno != EAGAIN && errno != EINTR ? -errno : KFS_EVENT;
}

/* Waits for any descriptor; NULL: without limit.  Returns AGAIN for a request or nothing, a kind, or -errno. */
static int wait_any(struct kfs_channel *ch, const struct timespec *timeout)
{
	struct mount *mount = ch->private_->mount;
	struct pollfd pfds[] = {
		{ mount->fuse_fd, POLLIN, 0 },
		{ mount->event_fd, POLLIN, 0 },
		{ mount->tree_fd, POLLIN, 0 },
	};
	int n = ppoll(pfds, 3, timeout, NULL);

	ch->private_->unpolled = 0;
	if (n < 0)
		return errno == EINTR ? KFS_EVENT : -errno;
	/* One event at a time; the alarm reports each only once. */
	if (pfds[1].revents || pfds[2].revents)
		kfs_alarm_more(mount->alarm);
	if (pfds[1].revents)
		return drain(mount->event_fd);
	if (pfds[2].revents) {
		n = kfs_take_reply(ch, 0);
		return n < 0 ? n : AGAIN;
	}
	return AGAIN;
}

/* Polls the other descriptors without waiting.  Returns AGAIN, a kind, or -errno. */
int kfs_check_descriptors(struct kfs_channel *ch)
{
	const struct timespec none = { 0, 0 };

	kfs_alarm_seen(ch->private_->mount->alarm);
	return wait_any(ch, &none);
}

static int wait_until(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct timespec timeout;
	uint64_t now;

	if (!deadline_ns)
		return wait_any(ch, NULL);
	now = kfs_now_ns();
	if (now >= deadline_ns)
		return KFS_TIMER;
	timeout.tv_sec = (time_t)((deadline_ns - now) / 1000000000u);
	timeout.tv_nsec = (long)((deadline_ns - now) % 1000000000u);
	return wait_any(ch, &timeout);
}

/* --- reading ---------------------------------------------------------------------------------------- */

/* Whether reads of /dev/fuse block belongs to the open file description: it is set only when it changes. */
static void set_waiting(struct mount *mount, int waits)
{
	int flags = waits ? mount->fuse_flags & ~O_NONBLOCK : mount->fuse_flags | O_NONBLOCK;

	if (flags != mount->fuse_flags && fcntl(mount->fuse_fd, F_SETFL, flags) == 0)
		mount->fuse_flags = flags;
}

/* Returns the number of bytes or -errno. */
static ssize_t read_once(struct kfs_channel *ch)
{
	ssize_t n = read(ch->private_->mount->fuse_fd, ch->request, KFS_REQUEST_MAX);

	return n < 0 ? -errno : n;
}

/* --- looking again ---------------------------------------------------------------------------------- */

/* Stop polling, for a time that doubles. */
static void pause_looking(struct looking *looking, uint64_t now)
{
	looking->pause_ns = looking->pause_ns ? looking->pause_ns * 2 : PAUSE_FIRST_NS;
	if (looking->pause_ns > PAUSE_MAX_NS)
		looking->pause_ns = PAUSE_MAX_NS;
	looking->paused_until = now + looking->pause_ns;
	/* The next miss is enough. */
	looking->misses = MISSES_MAX - 1;
}

/* Whether the thread that makes the next request may run on another cpu, rather than wait for this one. */
static int has_other_cpus(void)
{
	cpu_set_t cpus;

	/* More cpus than fit are more than one. */
	return sched_getaffinity(0, sizeof(cpus), &cpus) < 0 || CPU_COUNT(&cpus) > 1;
}

static int pays_to_look(struct looking *looking)
{
	if (looking->waits++ % WAITS_BETWEEN_CHECKS == 0)
		looking->has_others = has_other_cpus();
	return looking->has_others && (!looking->paused_until || kfs_now_ns() >= looking->paused_until);
}

static int was_switched_out(struct looking *looking)
{
	struct rusage usage;
	long before = looking->switches;

	if (getrusage(RUSAGE_THREAD, &usage) < 0)
		return 0;
	looking->switches = usage.ru_nivcsw;
	return usage.ru_nivcsw != before;
}

/* As read_once; -EAGAIN: no request for a while, or there is news. */
static ssize_t look_again(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct mount *mount = ch->private_->mount;
	struct looking *looking = &mount->looking;
	uint64_t now, until;
	ssize_t n;

	set_waiting(mount, 0);
	n = read_once(ch);
	if (n != -EAGAIN)
		return n;
	now = kfs_now_ns();
	until = now + LOOK_NS;
	if (deadline_ns && deadline_ns < until)
		until = deadline_ns;
	for (; now < until; now = kfs_now_ns()) {
		if (kfs_alarm_has_news(mount->alarm))
			return n;
		n = read_once(ch);
		if (n != -EAGAIN) {
			looking->misses = 0;
			looking->pause_ns = looking->paused_until = 0;
			return n;
		}
	}
	if (++looking->misses >= MISSES_MAX || was_switched_out(looking))
		pause_looking(looking, now);
	return n;
}

/* --- the next request ------------------------------------------------------------------------------- */

static ssize_t sleep_for_request(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct mount *mount = ch->private_->mount;
	ssize_t n;

	set_waiting(mount, 1);
	if (!kfs_alarm_sleep(mount->alarm, deadline_ns))
		return -EAGAIN;
	n = read_once(ch);
	kfs_alarm_awake(mount->alarm);
	return n;
}

/* Waits for a request or another event: AGAIN with or without a request (request_len), a kind, or -errno. */
int kfs_read_request(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct mount *mount = ch->private_->mount;
	int can_sleep = kfs_alarm_watches(mount->alarm);
	ssize_t n = -EAGAIN;

	ch->request_len = 0;
	if (kfs_reader_is_hurried(ch->private_->reader) || kfs_anybody_waits(mount)) {
		set_waiting(mount, 0);
		n = read_once(ch);
		if (n == -EAGAIN)
			return AGAIN;
	} else if (!can_sleep) {
		set_waiting(mount, 0);
		n = read_once(ch);
	} else if (pays_to_look(&mount->looking))
		n = look_again(ch, deadline_ns);
	if (n == -EAGAIN && !can_sleep)
		return wait_until(ch, deadline_ns);
	if (n == -EAGAIN)
		n = sleep_for_request(ch, deadline_ns);
	if (n >= 0 && (size_t)n < sizeof(struct fuse_in_header))
		return -EPROTO;
	switch (n) {
	case -EAGAIN: /* there is news */
	case -ENOENT: /* its client was killed meanwhile */
		return AGAIN;
	case -EINTR:
		return KFS_EVENT;
	case -ENODEV:
	case -ECONNABORTED:
		return KFS_GONE;
	}
	if (n < 0)
		return (int)n;
	ch->request_len = n;
	return AGAIN;
}
