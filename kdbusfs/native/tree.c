/* Requests that pyfuse3 answers: they go to it over a socket, and the reader waits for each answer. */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/socket.h>

/* Waits until the socket is ready for `events`.  Returns 0 or -errno (ETIMEDOUT, EPIPE). */
static int wait_tree(struct kfs_channel *ch, short events, uint64_t limit_ns)
{
	for (;;) {
		struct pollfd pfd = { ch->private_->mount->tree_fd, events, 0 };
		uint64_t now = kfs_now_ns();
		int n;

		if (now >= limit_ns)
			return -ETIMEDOUT;
		n = poll(&pfd, 1, (int)((limit_ns - now + 999999) / 1000000));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && pfd.revents & events)
			return 0;
		if (n > 0)
			return -EPIPE;
	}
}

/* Receives one message of the tree; passes a notification on.  Returns whether it answers `unique`, or -errno. */
int kfs_take_reply(struct kfs_channel *ch, uint64_t unique)
{
	const struct fuse_out_header *out = (void *)ch->reply;
	ssize_t n = recv(ch->private_->mount->tree_fd, ch->reply, KFS_REQUEST_MAX, MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	if ((size_t)n < sizeof(*out) || n > KFS_REQUEST_MAX)
		return -EPROTO;
	ch->reply_len = n;
	if (out->unique == unique && unique)
		return 1;
	if (out->unique == 0)
		kfs_pass_reply(ch);
	ch->reply_len = 0;
	return 0;
}

/* Answers that Python amends before they are sent. */
static int is_amended(uint32_t opcode)
{
	return opcode == FUSE_INIT || opcode == FUSE_LOOKUP || opcode == FUSE_OPEN || opcode == FUSE_READDIRPLUS;
}

static int ask_tree(struct kfs_channel *ch, uint64_t unique)
{
	uint64_t limit_ns = kfs_now_ns() + ch->tree_timeout_ms * 1000000ull;
	int r;

	while (send(ch->private_->mount->tree_fd, ch->request, ch->request_len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != ENOBUFS)
			return -errno;
		r = wait_tree(ch, POLLOUT, limit_ns);
		if (r < 0)
			return r;
	}
	for (;;) {
		r = wait_tree(ch, POLLIN, limit_ns);
		if (r < 0)
			return r;
		r = kfs_take_reply(ch, unique);
		if (r)
			return r < 0 ? r : 0;
	}
}

int kfs_serve_tree(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_out_header *out = (void *)ch->reply;
	int r;

	ch->counts->tree++;
	ch->opcode = in->opcode;
	r = ask_tree(ch, in->unique);
	if (r < 0) {
		ch->reply_len = 0;
		kfs_put_error(ch, in->unique, -EIO);
		return r;
	}
	if (out->error || !is_amended(in->opcode))
		kfs_pass_reply(ch);
	return KFS_TREE;
}
