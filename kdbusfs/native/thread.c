/*
 * The thread that makes an ioctl, as a pidfd and a thread id.
 *
 * Since Linux 6.9 a pidfd can be of a thread.  Before, pidfd_open(2) refuses PIDFD_THREAD with EINVAL; then it is of
 * the thread's process, and the id tells which of its threads is meant.  Before and after each access both are checked:
 * the kernel does not reuse the id of a thread that waits for the answer to its ioctl.  If the connection is aborted
 * meanwhile, the id can at worst refer to another thread of the same process, which has the same memory.
 */
#define _GNU_SOURCE
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Kernel interfaces that are newer than the headers this may be compiled with. */
#define KFS_PIDFD_THREAD O_EXCL
#define KFS_PIDFD_INFO_CREDS (1u << 1)
struct pidfd_info {
	uint64_t mask;
	uint64_t cgroupid;
	uint32_t pid, tgid, ppid;
	uint32_t ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
	int32_t exit_code;
};
#define KFS_PIDFD_GET_INFO _IOWR(0xFF, 11, struct pidfd_info)
#define KFS_KCMP_FILE 0

/* The processes of pidfds, by the pidfd's number: pages of a table, allocated on demand.  0: it is of a thread. */
#define PROCESSES_PER_PAGE 1024
#define PROCESS_PAGES 1024
static _Atomic(_Atomic int *) processes[PROCESS_PAGES];
static _Atomic int has_no_thread_pidfds;
static _Atomic int has_no_info;

/* The id of the process that `pidfd` is of; 0 if it is of a thread. */
static int process_of(int pidfd)
{
	_Atomic int *page;

	if (!atomic_load_explicit(&has_no_thread_pidfds, memory_order_relaxed) || pidfd < 0 ||
	    pidfd / PROCESSES_PER_PAGE >= PROCESS_PAGES)
		return 0;
	page = processes[pidfd / PROCESSES_PER_PAGE];
	return page ? page[pidfd % PROCESSES_PER_PAGE] : 0;
}

static int set_process(int pidfd, int tgid)
{
	_Atomic int *page, *none = NULL;

	if (pidfd / PROCESSES_PER_PAGE >= PROCESS_PAGES)
		return -EMFILE;
	page = processes[pidfd / PROCESSES_PER_PAGE];
	if (!page) {
		page = calloc(PROCESSES_PER_PAGE, sizeof(*page));
		if (!page)
			return -ENOMEM;
		if (!atomic_compare_exchange_strong(&processes[pidfd / PROCESSES_PER_PAGE], &none, page)) {
			free(page);
			page = none;
		}
	}
	page[pidfd % PROCESSES_PER_PAGE] = tgid;
	return 0;
}

/* Whether thread `tid` is one of process `tgid`.  Signal 0 only tests; EPERM comes after the lookup. */
static int is_thread_of(int tgid, int tid)
{
	return syscall(SYS_tgkill, tgid, tid, 0) == 0 || errno == EPERM;
}

/* The id of the thread's process, or -errno. */
static int find_process(int tid)
{
	char path[32], text[512], *line;
	ssize_t n;
	int fd, tgid;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -ESRCH;
	text[n] = 0;
	/* Newlines in the command's name, which comes first, are escaped. */
	line = strstr(text, "\nTgid:");
	tgid = line ? atoi(line + strlen("\nTgid:")) : 0;
	return tgid > 0 ? tgid : -ESRCH;
}

/* A pidfd of the thread's process. */
static int open_process(int tid)
{
	int tgid = tid, fd, r;

	/* Most clients have one thread, or use their first one. */
	fd = (int)syscall(SYS_pidfd_open, tid, 0);
	if (fd < 0 && (errno == EINVAL || errno == ENOENT)) {
		tgid = find_process(tid);
		if (tgid < 0)
			return tgid;
		fd = (int)syscall(SYS_pidfd_open, tgid, 0);
	}
	if (fd < 0)
		return errno == EINVAL ? -ESRCH : -errno;
	r = set_process(fd, tgid);
	if (r == 0)
		r = kfs_thread_is_alive(fd, tid);
	if (r <= 0) {
		close(fd);
		return r ? r : -ESRCH;
	}
	return fd;
}

/* A pidfd to be used together with `tid`, or -errno. -ESRCH: no such thread, or one of another pid namespace (0). */
int kfs_thread_open(int tid)
{
	int fd;

	if (tid <= 0)
		return -ESRCH;
	if (has_no_thread_pidfds)
		return open_process(tid);
	fd = (int)syscall(SYS_pidfd_open, tid, KFS_PIDFD_THREAD);
	if (fd >= 0 || errno != EINVAL)
		return fd < 0 ? -errno : fd;
	/* The same errno is returned for a thread that has just ended, whose id only a process group still has. */
	fd = (int)syscall(SYS_pidfd_open, syscall(SYS_gettid), KFS_PIDFD_THREAD);
	if (fd >= 0) {
		close(fd);
		return -ESRCH;
	}
	if (errno != EINVAL)
		return -errno;
	has_no_thread_pidfds = 1;
	return open_process(tid);
}

/* 1 while the thread lives, 0 when it has exited, or -errno. */
int kfs_thread_is_alive(int pidfd, int tid)
{
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };
	int tgid = process_of(pidfd);
	int n;

	/* The process has its id as long as it lives, so that is checked last. */
	if (tgid && tgid != tid && !is_thread_of(tgid, tid))
		return 0;
	/* A signal, such as a tracer's tick, interrupts even a poll(2) that does not wait. */
	do
		n = poll(&pfd, 1, 0);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n == 0;
}

/* Whether the pidfd is of the thread's process, and is valid for its other threads as well. */
int kfs_thread_is_of_process(int pidfd)
{
	return process_of(pidfd) != 0;
}

/*
 * uid euid suid fsuid gid egid sgid fsgid, then tgid tid ppid. -ENOTTY if the kernel does not report it: before Linux
 * 6.13 (in 6.12 pidfds have other ioctls, and refuse any argument with EINVAL), and by the pidfd of a process for
 * another of its threads.
 */
int kfs_thread_ids(int pidfd, int tid, uint32_t *ids)
{
	struct pidfd_info info = { .mask = KFS_PIDFD_INFO_CREDS };
	int tgid = process_of(pidfd);

	if (has_no_info || (tgid && tgid != tid))
		return -ENOTTY;
	if (ioctl(pidfd, KFS_PIDFD_GET_INFO, &info) < 0) {
		if (errno != EINVAL && errno != ENOTTY)
			return -errno;
		has_no_info = 1;
		return -ENOTTY;
	}
	if (!(info.mask & KFS_PIDFD_INFO_CREDS))
		return -ESRCH;
	ids[0] = info.ruid;
	ids[1] = info.euid;
	ids[2] = info.suid;
	ids[3] = info.fsuid;
	ids[4] = info.rgid;
	ids[5] = info.egid;
	ids[6] = info.sgid;
	ids[7] = info.fsgid;
	ids[8] = info.tgid;
	ids[9] = info.pid;
	ids[10] = info.ppid;
	return 0;
}

/* Whether two links of /proc are equal: of a pipe or a socket, or the path of a file. */
static int is_same_link(int tgid, int tid, int fd)
{
	char path[64], first[256], second[256];
	ssize_t n, m;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tgid, fd);
	n = readlink(path, first, sizeof(first));
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, fd);
	m = readlink(path, second, sizeof(second));
	return n > 0 && n == m && memcmp(first, second, (size_t)n) == 0;
}

/*
 * A descriptor of the daemon for the file that the thread has at number `fd`, or -errno.  By the pidfd of a process the
 * kernel returns the first thread's file.  Threads nearly always share their table; if they do not, the file is
 * unreachable: -EBADF. It is compared before it is taken, because closing a wrong one might block in a file system.
 */
int kfs_thread_take(int pidfd, int tid, int fd)
{
	int tgid = process_of(pidfd);
	long r;

	if (tgid && tgid != tid) {
		r = syscall(SYS_kcmp, tgid, tid, KFS_KCMP_FILE, fd, fd);
		if (r < 0 && errno != ENOSYS && errno != EPERM)
			return -errno;
		if (r > 0 || (r < 0 && !is_same_link(tgid, tid, fd)))
			return -EBADF;
	}
	r = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	return r < 0 ? -errno : (int)r;
}
