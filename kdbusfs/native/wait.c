/*
 * Waiting for the next request.  Two ways, the cheap one and the one that always goes:
 *
 * - sleeping in read(/dev/fuse), one system call for a request; the alarm (alarm.c) sees to everything else;
 * - ppoll of all descriptors, then another read, as long as no file is open and the alarm has no bell.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

/* --- all descriptors -------------------------------------------------------------------------------- */

static int drain(int fd)
{
	uint8_t buffer[64];

	return read(fd, buffer, sizeof(buffer)) < 0 && errno != EAGAIN && errno != EINTR ? -errno : KFS_EVENT;
}

/* Waits for anything; NULL: for ever.  Returns AGAIN for a request or nothing, a kind, or -errno. */
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
	/* One thing at a time; the alarm tells of each but once. */
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

/* Looks at the other descriptors without waiting.  Returns AGAIN, a kind, or -errno. */
int kfs_look_around(struct kfs_channel *ch)
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

/* Whether reads of /dev/fuse wait belongs to the open file: it is said only when it changes. */
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

/* Waits for a request, or anything else to do: AGAIN with or without one (request_len), a kind, or -errno. */
int kfs_read_request(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct mount *mount = ch->private_->mount;
	int can_sleep = kfs_alarm_watches(mount->alarm);
	ssize_t n = -EAGAIN;

	ch->request_len = 0;
	if (!can_sleep) {
		set_waiting(mount, 0);
		n = read_once(ch);
	}
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
