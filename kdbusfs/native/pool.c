/* The memory of pools: memfds, mapped into the daemon, that clients map by FUSE passthrough. */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define KFS_BACKING_OPEN _IOW(229, 1, struct backing_map)
#define KFS_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* Where the thread continues if its store fails; NULL while it does not store. */
static __thread sigjmp_buf *volatile refuge;
static struct sigaction former;

static void bus_error(int number, siginfo_t *info, void *context)
{
	sigjmp_buf *to = refuge;

	(void)info;
	(void)context;
	if (to)
		siglongjmp(*to, 1);
	/* Not our fault: the instruction is retried, and fails again as it would have. */
	sigaction(number, &former, NULL);
}

static void set_handler(void)
{
	struct sigaction action = { .sa_sigaction = bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &action, &former);
}

/*
 * Stores `size` bytes at `offset` of the mapping `map`.  Returns 0, or -ENOMEM if the kernel cannot provide a page,
 * such as one that was swapped out and cannot be read back.
 */
int kfs_copy(char *map, int64_t offset, const char *data, int64_t size)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	sigjmp_buf here;

	pthread_once(&once, set_handler);
	if (sigsetjmp(here, 0)) {
		refuge = NULL;
		return -ENOMEM;
	}
	refuge = &here;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	memcpy(map + offset, data, (size_t)size);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	refuge = NULL;
	return 0;
}

int kfs_store(int fd, uint64_t offset, const char *data, uint64_t size)
{
	while (size > 0) {
		ssize_t n = pwrite(fd, data, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOSPC;
		offset += n;
		data += n;
		size -= n;
	}
	return 0;
}

int kfs_map(int fd, uint64_t size, char **map)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	*map = p;
	return 0;
}

int kfs_unmap(char *map, uint64_t size)
{
	return munmap(map, size) < 0 ? -errno : 0;
}

int kfs_backing_open(int fuse_fd, int fd)
{
	struct backing_map map = { .fd = fd };
	int id = ioctl(fuse_fd, KFS_BACKING_OPEN, &map);

	return id < 0 ? -errno : id;
}

int kfs_backing_close(int fuse_fd, int backing_id)
{
	uint32_t id = backing_id;

	return ioctl(fuse_fd, KFS_BACKING_CLOSE, &id) < 0 ? -errno : 0;
}

void kfs_heap_trim(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
#endif
}
