/* Small files and links below /proc/TID. */
#define _GNU_SOURCE
#include "proc.h"
#include "internal_statx.h"
#include "ownership.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int kfs_proc_path(char *path, size_t size, int tid, const char *name)
{
	int n;

	if (tid <= 0)
		return -ESRCH;
	n = snprintf(path, size, "/proc/%d/%s", tid, name);
	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static int read_all(const char *path, char *buffer, int size)
{
	int fd, error = 0, done = 0;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (done < size) {
		ssize_t n = read(fd, buffer + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			error = errno;
		if (n <= 0)
			break;
		done += n;
	}
	close(fd);
	return error ? -error : done;
}

/*
 * Bytes read; `size` of them mean that there may be more.
 *
 * For cmdline the kernel takes the lock of the process' memory map.  A process can hold that for as long as it likes,
 * by a page fault in a file whose system does not answer and a mmap in another thread.
 */
int kfs_proc_read(int tid, const char *name, char *buffer, int size)
{
	uint64_t ticket;
	char path[64];
	int r;

	r = kfs_proc_path(path, sizeof(path), tid, name);
	if (r < 0 || strcmp(name, "cmdline") != 0)
		return r < 0 ? r : read_all(path, buffer, size);
	r = kfs_access_begin(&ticket);
	if (r < 0)
		return r;
	r = read_all(path, buffer, size);
	return kfs_access_end(ticket) < 0 ? -ECANCELED : r;
}

int kfs_proc_link(int tid, const char *name, char *buffer, int size)
{
	char path[64];
	ssize_t n;
	int r;

	r = kfs_proc_path(path, sizeof(path), tid, name);
	if (r < 0)
		return r;
	n = readlink(path, buffer, size);
	return n < 0 ? -errno : (int)n;
}

/* Device, inode and mount of the root directory, without asking its file system. */
int kfs_proc_root(int tid, uint64_t *identity)
{
	unsigned int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
	union kfs_statx buf;
	char path[64];
	int r;

	r = kfs_proc_path(path, sizeof(path), tid, "root");
	if (r < 0)
		return r;
	memset(&buf, 0, sizeof(buf));
	if (statx(AT_FDCWD, path, flags, STATX_INO | STATX_MNT_ID | KFS_STATX_MNT_ID_UNIQUE, &buf.stx) < 0)
		return -errno;
	identity[0] = makedev(buf.stx.stx_dev_major, buf.stx.stx_dev_minor);
	identity[1] = buf.stx.stx_ino;
	identity[2] = buf.more.mnt_id;
	return 0;
}
