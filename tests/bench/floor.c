/*
 * The floor: floor MOUNTPOINT
 *
 * A FUSE server of one thread with one file, `file`, that does nothing but answer: what it costs to get a request
 * through FUSE at all.  Unknown requests are refused; it ends when it is unmounted.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NODE 2
#define FOREVER 1000000

static uint8_t request[1 << 18] __attribute__((aligned(8)));
static struct {
	struct fuse_out_header header;
	union {
		struct fuse_init_out init;
		struct fuse_entry_out entry;
		struct fuse_attr_out attr;
		struct fuse_open_out open;
		struct fuse_ioctl_out ioctl;
		struct fuse_poll_out poll;
	} u;
	uint8_t data[4096];
} answer;

static void describe(struct fuse_attr *attr, uint64_t node)
{
	attr->ino = node;
	attr->mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0666;
	attr->nlink = 1;
}

/* Gives the length of the answer's body, or -errno. */
static int serve(const struct fuse_in_header *in)
{
	const void *body = in + 1;

	switch (in->opcode) {
	case FUSE_INIT:
		answer.u.init.major = FUSE_KERNEL_VERSION;
		answer.u.init.minor = ((const struct fuse_init_in *)body)->minor;
		answer.u.init.max_write = 4096;
		answer.u.init.max_background = 64;
		answer.u.init.congestion_threshold = 64;
		return sizeof(answer.u.init);
	case FUSE_LOOKUP:
		if (in->nodeid != FUSE_ROOT_ID || strcmp(body, "file"))
			return -ENOENT;
		answer.u.entry.nodeid = FILE_NODE;
		answer.u.entry.entry_valid = answer.u.entry.attr_valid = FOREVER;
		describe(&answer.u.entry.attr, FILE_NODE);
		return sizeof(answer.u.entry);
	case FUSE_GETATTR:
		answer.u.attr.attr_valid = FOREVER;
		describe(&answer.u.attr.attr, in->nodeid);
		return sizeof(answer.u.attr);
	case FUSE_OPEN:
		return sizeof(answer.u.open);
	case FUSE_IOCTL:
		answer.u.ioctl.result = -ENXIO;
		return (int)(sizeof(answer.u.ioctl) + ((const struct fuse_ioctl_in *)body)->out_size);
	case FUSE_POLL:
		answer.u.poll.revents = POLLOUT;
		return sizeof(answer.u.poll);
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		return 0;
	default:
		return -ENOSYS;
	}
}

int main(int argc, char **argv)
{
	const struct fuse_in_header *in = (const void *)request;
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC), size;
	char options[128];

	if (argc != 2 || fd < 0)
		return 1;
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=%u,group_id=%u,allow_other", fd,
		 (unsigned)getuid(), (unsigned)getgid());
	if (mount("floor", argv[1], "fuse.floor", MS_NOSUID | MS_NODEV, options) < 0) {
		perror(argv[1]);
		return 1;
	}
	for (;;) {
		ssize_t n = read(fd, request, sizeof(request));

		if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
			continue;
		if (n < 0)
			return errno == ENODEV ? 0 : 1;
		if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET || in->opcode == FUSE_INTERRUPT)
			continue;
		memset(&answer.u, 0, sizeof(answer.u));
		size = serve(in);
		answer.header.len = (uint32_t)(sizeof(answer.header) + (size_t)(size > 0 ? size : 0));
		answer.header.error = size < 0 ? size : 0;
		answer.header.unique = in->unique;
		if (write(fd, &answer, answer.header.len) < 0 && errno != ENOENT)
			return 1;
	}
}
