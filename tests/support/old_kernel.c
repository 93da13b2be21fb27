/*
 * Takes system calls away from the program that it is preloaded to, as an older kernel would: a call, a flag or an ioctl
 * that this kernel does not have fails with the errno that it fails with there.
 *
 * KDBUSFS_TEST_KERNEL=linux-5.10 and so on says which kernel.  A preloaded library, for with a seccomp filter on the
 * daemon the kernel would refuse it PTRACE_O_SUSPEND_SECCOMP as well; and a filter cannot look at structs.  It sees the
 * calls that are made through libc, which are all that Python and the native modules make.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIDFD_THREAD O_EXCL
#define PIDFD_GET_INFO 0xff0b /* without its size */
#define HANDLE_FID 0x200
#define MNT_ID_UNIQUE 0x4000u
#define STATMOUNT 457
#define NOFLUSH (1u << 5)
#define NOTIFY_PRUNE 9
#define INIT_EXT_FLAG (1u << 30)
#define KERNEL(major, minor) ((major) * 1000 + (minor))
#define OPENS_MAX 256

/* Version of FUSE's protocol by kernel. */
static const struct {
	int kernel;
	uint32_t minor;
} protocols[] = {
	{ KERNEL(5, 10), 32 }, { KERNEL(5, 15), 34 }, { KERNEL(6, 1), 37 }, { KERNEL(6, 6), 39 },
	{ KERNEL(6, 9), 40 },  { KERNEL(6, 12), 41 }, { KERNEL(6, 17), 44 },
};

static int kernel;
static uint64_t opens[OPENS_MAX]; /* OPEN requests by their number, to be known by their answers */

static long (*real_syscall)(long, ...);
static int (*real_ioctl)(int, unsigned long, ...);
static int (*real_statx)(int, const char *, int, unsigned int, struct statx *);
static int (*real_name_to_handle_at)(int, const char *, struct file_handle *, int *, int);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);

__attribute__((constructor)) static void begin(void)
{
	const char *name = getenv("KDBUSFS_TEST_KERNEL");
	int major, minor;

	*(void **)&real_syscall = dlsym(RTLD_NEXT, "syscall");
	*(void **)&real_ioctl = dlsym(RTLD_NEXT, "ioctl");
	*(void **)&real_statx = dlsym(RTLD_NEXT, "statx");
	*(void **)&real_name_to_handle_at = dlsym(RTLD_NEXT, "name_to_handle_at");
	*(void **)&real_read = dlsym(RTLD_NEXT, "read");
	*(void **)&real_write = dlsym(RTLD_NEXT, "write");
	*(void **)&real_writev = dlsym(RTLD_NEXT, "writev");
	if (!name || sscanf(name, "linux-%d.%d", &major, &minor) != 2) {
		static const char complaint[] = "KDBUSFS_TEST_KERNEL has to be linux-MAJOR.MINOR\n";

		real_write(2, complaint, sizeof(complaint) - 1);
		_exit(1);
	}
	kernel = KERNEL(major, minor);
}

/* Libraries that are loaded later can be initialised earlier, and call what is replaced here. */
static void begin_once(void)
{
	if (!kernel)
		begin();
}

static int before(int major, int minor)
{
	return kernel < KERNEL(major, minor);
}

static int fail(int error)
{
	errno = error;
	return -1;
}

long syscall(long number, ...)
{
	long a[6];
	va_list list;

	begin_once();
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_pidfd_open) {
		long fd;

		if (a[1] & PIDFD_THREAD && before(6, 9))
			return fail(EINVAL);
		fd = real_syscall(number, a[0], a[1]);
		/* Of a thread that is not the first of its process, without the flag. */
		if (fd < 0 && errno == ENOENT && before(6, 15))
			errno = EINVAL;
		return fd;
	}
	if (number == STATMOUNT && before(6, 8))
		return fail(ENOSYS);
	if (number == SYS_sched_setattr && before(6, 12)) {
		/* size policy flags nice priority runtime: no slice, it is not looked at. */
		struct {
			uint32_t size, policy;
			uint64_t flags;
			uint32_t nice, priority;
			uint64_t runtime, deadline, period;
		} attributes;

		memcpy(&attributes, (void *)a[1], sizeof(attributes));
		attributes.runtime = 0;
		return real_syscall(number, a[0], &attributes, a[2]);
	}
	return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int ioctl(int fd, unsigned long request, ...)
{
	unsigned number = request & 0xffff;
	void *argument;
	va_list list;

	begin_once();
	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (number == PIDFD_GET_INFO && before(6, 13))
		/* 6.11 and 6.12 know other ioctls of pidfds, which take no argument. */
		return fail(before(6, 11) ? ENOTTY : EINVAL);
	if ((number == 0xe501 || number == 0xe502) && before(6, 9)) /* FUSE_DEV_IOC_BACKING_OPEN, _CLOSE */
		return fail(ENOTTY);
	if (number >= 0xb705 && number <= 0xb709 && before(6, 11)) /* NS_GET_MNTNS_ID, NS_GET_PID_FROM_PIDNS, ... */
		return fail(ENOTTY);
	if (number == 0xb70d && before(6, 18)) /* NS_GET_ID */
		return fail(ENOTTY);
	return real_ioctl(fd, request, argument);
}

int statx(int fd, const char *path, int flags, unsigned int mask, struct statx *found)
{
	begin_once();
	return real_statx(fd, path, flags, before(6, 8) ? mask & ~MNT_ID_UNIQUE : mask, found);
}

int name_to_handle_at(int fd, const char *path, struct file_handle *handle, int *mount, int flags)
{
	begin_once();
	if (flags & HANDLE_FID && before(6, 5))
		return fail(EINVAL);
	return real_name_to_handle_at(fd, path, handle, mount, flags);
}

/* --- what is spoken on /dev/fuse ------------------------------------------------------------------------ */

static int is_fuse(int fd)
{
	struct stat found;
	int error = errno, is = fstat(fd, &found) == 0 && S_ISCHR(found.st_mode) && found.st_rdev == 0xae5;

	errno = error;
	return is;
}

/* A request: what the kernel offers, and which are to open something. */
static ssize_t amend_request(char *buffer, ssize_t size)
{
	struct fuse_in_header *in = (void *)buffer;
	struct fuse_init_in *init = (void *)(in + 1);

	if (size < (ssize_t)sizeof(*in) || in->len != size)
		return size;
	if (in->opcode == FUSE_OPEN)
		opens[in->unique / 2 % OPENS_MAX] = in->unique;
	if (in->opcode != FUSE_INIT)
		return size;
	for (size_t i = 0; i < sizeof(protocols) / sizeof(protocols[0]); i++)
		if (kernel >= protocols[i].kernel && init->minor > protocols[i].minor &&
		    (i + 1 == sizeof(protocols) / sizeof(protocols[0]) || kernel < protocols[i + 1].kernel))
			init->minor = protocols[i].minor;
	if (init->minor < 36) {
		/* There is no second word of flags. */
		in->len = size = sizeof(*in) + 16;
		init->flags &= ~INIT_EXT_FLAG & 0x3fffffffu;
	} else if (init->minor < 40) {
		uint32_t flags2;

		memcpy(&flags2, buffer + sizeof(*in) + 16, sizeof(flags2));
		flags2 &= ~(1u << 5); /* passthrough */
		memcpy(buffer + sizeof(*in) + 16, &flags2, sizeof(flags2));
	}
	return size;
}

ssize_t read(int fd, void *buffer, size_t size)
{
	ssize_t n = real_read(fd, buffer, size);

	begin_once();
	return n > 0 && is_fuse(fd) ? amend_request(buffer, n) : n;
}

/* An answer or a notification: 0, or the errno that the kernel would refuse it with. */
static int amend_answer(int fd, struct fuse_out_header *out, size_t size)
{
	struct fuse_open_out *opened = (void *)(out + 1);

	if (size < sizeof(*out) || !is_fuse(fd))
		return 0;
	if (!out->unique && out->error == NOTIFY_PRUNE && before(6, 18))
		return EINVAL;
	if (out->unique && opens[out->unique / 2 % OPENS_MAX] == out->unique) {
		opens[out->unique / 2 % OPENS_MAX] = 0;
		/* Flags that the kernel does not know it does not look at. */
		if (size == sizeof(*out) + sizeof(*opened) && before(5, 16))
			opened->open_flags &= ~NOFLUSH;
	}
	return 0;
}

ssize_t write(int fd, const void *buffer, size_t size)
{
	begin_once();
	char copy[sizeof(struct fuse_out_header) + sizeof(struct fuse_open_out)];
	int error;

	if (size < sizeof(struct fuse_out_header))
		return real_write(fd, buffer, size);
	if (size != sizeof(copy)) {
		memcpy(copy, buffer, sizeof(struct fuse_out_header));
		error = amend_answer(fd, (void *)copy, size);
		return error ? fail(error) : real_write(fd, buffer, size);
	}
	memcpy(copy, buffer, size);
	error = amend_answer(fd, (void *)copy, size);
	return error ? fail(error) : real_write(fd, copy, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	begin_once();
	return real_writev(fd, parts, count);
}
