/*
 * Builds all messages that the daemon writes to /dev/fuse: answers and notifications.  (The answers of pyfuse3 arrive
 * complete, over the socket of the tree.)
 */
#define _GNU_SOURCE
#include "internal_answer.h"

#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

struct ioctl_answer {
	struct fuse_out_header header;
	struct fuse_ioctl_out out;
};

_Static_assert(sizeof(struct ioctl_answer) == KFS_IOCTL_ANSWER_SIZE, "no padding between the structs of FUSE");

static struct ioctl_answer ioctl_answer(uint64_t unique, int32_t result, uint32_t out_len)
{
	return (struct ioctl_answer){
		.header = { .len = sizeof(struct ioctl_answer) + out_len, .unique = unique },
		.out = { .result = result },
	};
}

static int write_parts(int fuse_fd, const struct iovec *parts, int count)
{
	ssize_t n;

	do
		n = writev(fuse_fd, parts, count);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* Writes a whole message, header included. */
int kfs_write_message(int fuse_fd, const void *message, size_t len)
{
	ssize_t n;

	do
		n = write(fuse_fd, message, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

/* error: 0 or -errno; 0 also answers requests whose answer has no body. */
int kfs_answer_error(int fuse_fd, uint64_t unique, int error)
{
	const struct fuse_out_header header = { .len = sizeof(header), .unique = unique, .error = error };

	return kfs_write_message(fuse_fd, &header, sizeof(header));
}

int kfs_answer_ioctl(int fuse_fd, uint64_t unique, int32_t result, const void *out, uint32_t out_len)
{
	struct ioctl_answer answer = ioctl_answer(unique, result, out_len);
	const struct iovec parts[] = { { &answer, sizeof(answer) }, { (void *)out, out_len } };

	return write_parts(fuse_fd, parts, 2);
}

/* The same in one piece: overwrites the KFS_IOCTL_ANSWER_SIZE bytes in front of `out`. */
int kfs_answer_ioctl_in_place(int fuse_fd, uint64_t unique, int32_t result, uint8_t *out, uint32_t out_len)
{
	struct ioctl_answer *answer = (void *)(out - sizeof(*answer));

	*answer = ioctl_answer(unique, result, out_len);
	return kfs_write_message(fuse_fd, answer, answer->header.len);
}

int kfs_answer_poll(int fuse_fd, uint64_t unique, uint32_t revents)
{
	const struct {
		struct fuse_out_header header;
		struct fuse_poll_out out;
	} answer = {
		.header = { .len = sizeof(answer), .unique = unique },
		.out = { .revents = revents },
	};

	return kfs_write_message(fuse_fd, &answer, sizeof(answer));
}

/* `size` bytes were written. */
int kfs_answer_write(int fuse_fd, uint64_t unique, uint32_t size)
{
	const struct {
		struct fuse_out_header header;
		struct fuse_write_out out;
	} answer = {
		.header = { .len = sizeof(answer), .unique = unique },
		.out = { .size = size },
	};

	return kfs_write_message(fuse_fd, &answer, sizeof(answer));
}

/* Wakes the pollers of a file, by the handle that its FUSE_POLL contained. */
int kfs_notify_poll(int fuse_fd, uint64_t kh)
{
	const struct {
		struct fuse_out_header header;
		struct fuse_notify_poll_wakeup_out wakeup;
	} notice = {
		.header = { .len = sizeof(notice), .error = FUSE_NOTIFY_POLL },
		.wakeup = { .kh = kh },
	};

	return kfs_write_message(fuse_fd, &notice, sizeof(notice));
}

/* Stores data in the page cache of an inode. */
int kfs_notify_store(int fuse_fd, uint64_t nodeid, uint64_t offset, const void *data, uint32_t size)
{
	struct {
		struct fuse_out_header header;
		struct fuse_notify_store_out out;
	} head = {
		.header = { .len = sizeof(head) + size, .error = FUSE_NOTIFY_STORE },
		.out = { .nodeid = nodeid, .offset = offset, .size = size },
	};
	const struct iovec parts[] = { { &head, sizeof(head) }, { (void *)data, size } };

	return write_parts(fuse_fd, parts, 2);
}

/* Makes the kernel drop pages of an inode; it requests them by READ when they are accessed. */
int kfs_notify_pages_gone(int fuse_fd, uint64_t nodeid, uint64_t offset, uint64_t size)
{
	const struct {
		struct fuse_out_header header;
		struct fuse_notify_inval_inode_out out;
	} notice = {
		.header = { .len = sizeof(notice), .error = FUSE_NOTIFY_INVAL_INODE },
		.out = { .ino = nodeid, .off = (int64_t)offset, .len = (int64_t)size },
	};

	return kfs_write_message(fuse_fd, &notice, sizeof(notice));
}

/*
 * Makes the kernel forget name `name` of directory `parent`.  This takes the lock of the directory, whose holder may
 * wait for the reader: the reader must not call it (deadlock).
 */
int kfs_notify_entry_gone(int fuse_fd, uint64_t parent, const char *name, uint32_t name_len)
{
	struct {
		struct fuse_out_header header;
		struct fuse_notify_inval_entry_out out;
	} head = {
		.header = { .len = sizeof(head) + name_len + 1, .error = FUSE_NOTIFY_INVAL_ENTRY },
		.out = { .parent = parent, .namelen = name_len },
	};
	const struct iovec parts[] = { { &head, sizeof(head) }, { (void *)name, name_len }, { (void *)"", 1 } };

	return write_parts(fuse_fd, parts, 3);
}

/* Makes the kernel queue a FUSE_NOTIFY_REPLY without data of an inode, which needs no answer. */
int kfs_notify_retrieve(int fuse_fd, uint64_t nodeid)
{
	const struct {
		struct fuse_out_header header;
		struct fuse_notify_retrieve_out retrieve;
	} notice = {
		.header = { .len = sizeof(notice), .error = FUSE_NOTIFY_RETRIEVE },
		.retrieve = { .nodeid = nodeid },
	};

	return write(fuse_fd, &notice, sizeof(notice)) < 0 ? -errno : 0;
}
