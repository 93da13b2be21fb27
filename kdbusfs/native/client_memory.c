/*
 * Accesses to the memory of client threads.  A client may delay each, so each is framed by kfs_access_begin() and
 * kfs_access_end() (access.c).
 */
#define _GNU_SOURCE
#include "client_memory.h"
#include "ownership.h"
#include "pool.h"
#include "thread.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <sys/uio.h>

/* User addresses end below this on every 64-bit machine; above are the kernel and its gate pages. */
#define ADDRESS_END (1ull << 63)

#define BATCH 64

static int check_range(uint64_t address, uint64_t size)
{
	return address >= ADDRESS_END || size >= ADDRESS_END - address ? -EFAULT : 0;
}

static int check_alive(int pidfd, int tid)
{
	int r = kfs_thread_is_alive(pidfd, tid);

	if (r < 0)
		return r;
	return r ? 0 : -ESRCH;
}

int kfs_client_write(int pidfd, int tid, uint64_t address, const char *data, uint64_t size)
{
	struct iovec local = { .iov_base = (void *)data, .iov_len = size };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)address, .iov_len = size };
	uint64_t ticket;
	ssize_t n;
	int error, r;

	r = check_range(address, size);
	if (r == 0)
		r = check_alive(pidfd, tid);
	if (r == 0)
		r = kfs_access_begin(&ticket);
	if (r < 0)
		return r;
	n = process_vm_writev(tid, &local, 1, &remote, 1, 0);
	error = errno;
	r = kfs_access_end(ticket);
	if (r < 0)
		return r;
	if (n < 0)
		return -error;
	return (uint64_t)n == size ? 0 : -EFAULT;
}

static int store_zeros(int fd, uint64_t offset, uint64_t size)
{
	static const char zeros[4096];
	int r = 0;

	while (size > 0 && r == 0) {
		uint64_t part = size < sizeof(zeros) ? size : sizeof(zeros);

		r = kfs_store(fd, offset, zeros, part);
		offset += part;
		size -= part;
	}
	return r;
}

/* After an access to a thread that a pidfd alone does not identify: whether it was the right one. */
static int check_again(int pidfd, int tid)
{
	return kfs_thread_is_of_process(pidfd) ? check_alive(pidfd, tid) : 0;
}

static int read_batch(int tid, const struct iovec *local, const struct iovec *remote, int count, size_t total)
{
	uint64_t ticket;
	ssize_t n;
	int error, r;

	if (count == 0)
		return 0;
	r = kfs_access_begin(&ticket);
	if (r < 0)
		return r;
	n = process_vm_readv(tid, local, count, remote, count, 0);
	error = errno;
	r = kfs_access_end(ticket);
	if (r < 0)
		return r;
	if (n < 0)
		return -error;
	return (size_t)n == total ? 0 : -EFAULT;
}

int kfs_client_read(int pidfd, int tid, uint64_t address, char *to, uint64_t size)
{
	struct iovec local = { to, size };
	struct iovec remote = { (void *)(uintptr_t)address, size };
	int r = check_range(address, size);

	if (r == 0)
		r = check_alive(pidfd, tid);
	if (r == 0)
		r = read_batch(tid, &local, &remote, 1, size);
	return r < 0 ? r : check_again(pidfd, tid);
}

/* One vector of `size` bytes, to `offset` of the mapping `map`. */
int kfs_client_payload_one(int pidfd, int tid, char *map, uint64_t offset, uint64_t address, uint64_t size)
{
	struct iovec local = { map + offset, size };
	struct iovec remote = { (void *)(uintptr_t)address, size };
	int r = check_alive(pidfd, tid);

	if (r == 0)
		r = check_range(address, size);
	if (r == 0)
		r = read_batch(tid, &local, &remote, 1, size);
	return r < 0 ? r : check_again(pidfd, tid);
}

/*
 * vectors: `count` pairs of address and size; address 0 stands for zero bytes. map: a mapping of `memfd` from its
 * start, at least as long as the payload.  Zero bytes are written by pwrite: a store through the mapping would kill the
 * daemon if the kernel cannot provide the page, while process_vm_readv and pwrite return an error.  They come first:
 * after an access to the client's memory others may have owned the core (access.c), and the number `memfd` may refer to
 * another file.
 */
int kfs_client_payload(int pidfd, int tid, int memfd, char *map, uint64_t offset, const uint64_t *vectors, int count)
{
	struct iovec local[BATCH], remote[BATCH];
	uint64_t at = offset;
	size_t total = 0;
	int i, n = 0, r;

	r = check_alive(pidfd, tid);
	for (i = 0; i < count && r == 0; i++) {
		if (vectors[2 * i] == 0)
			r = store_zeros(memfd, at, vectors[2 * i + 1]);
		at += vectors[2 * i + 1];
	}
	for (i = 0; i < count && r == 0; i++) {
		uint64_t address = vectors[2 * i], size = vectors[2 * i + 1];

		if (address != 0) {
			r = check_range(address, size);
			if (r < 0)
				break;
			/* The kernel moves at most INT_MAX bytes, rounded down to pages, in one call. */
			if (n == BATCH || total + size > INT_MAX / 2) {
				r = read_batch(tid, local, remote, n, total);
				n = 0;
				total = 0;
			}
			local[n].iov_base = map + offset;
			local[n].iov_len = size;
			remote[n].iov_base = (void *)(uintptr_t)address;
			remote[n].iov_len = size;
			total += size;
			n++;
		}
		offset += size;
	}
	if (r == 0)
		r = read_batch(tid, local, remote, n, total);
	return r < 0 ? r : check_again(pidfd, tid);
}
