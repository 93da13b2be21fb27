/* Namespaces of client threads. */
#define _GNU_SOURCE
#include "namespaces.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* Kernel interfaces that are newer than the headers this may be compiled with. */
#define KFS_NS_GET_PARENT _IO(0xb7, 0x2)
#define KFS_NS_GET_OWNER_UID _IO(0xb7, 0x4)
#define KFS_NS_GET_PID_FROM_PIDNS _IOR(0xb7, 0x6, int)
#define KFS_NS_GET_ID _IOR(0xb7, 13, uint64_t)

/* From the link's text, "user:[N]": half the cost of stat(2), which would create an inode. */
int kfs_namespace_inode(int tid, const char *name, uint64_t *inode)
{
	char text[64], *end, *number;
	int n = kfs_proc_link(tid, name, text, sizeof(text) - 1);

	if (n < 0)
		return n;
	text[n] = 0;
	number = strchr(text, '[');
	if (!number)
		return -EINVAL;
	*inode = strtoull(number + 1, &end, 10);
	return *end == ']' ? 0 : -EINVAL;
}

int kfs_namespace_open(int tid, const char *name)
{
	char path[64];
	int fd, r;

	r = kfs_proc_path(path, sizeof(path), tid, name);
	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int kfs_namespace_parent(int ns)
{
	int fd = ioctl(ns, KFS_NS_GET_PARENT);

	return fd < 0 ? -errno : fd;
}

/* The uid that made a user namespace, or -errno. */
int64_t kfs_namespace_owner(int user_ns)
{
	uint32_t uid;

	return ioctl(user_ns, KFS_NS_GET_OWNER_UID, &uid) < 0 ? -errno : (int64_t)uid;
}

/* An id that is never reused; -ENOTTY if the kernel has none. */
int kfs_namespace_id(int ns, uint64_t *id)
{
	return ioctl(ns, KFS_NS_GET_ID, id) < 0 ? -errno : 0;
}

/* The id in the daemon's namespace of process `pid` of the pid namespace `pid_ns`. */
int kfs_namespace_pid(int pid_ns, int pid)
{
	int r = ioctl(pid_ns, KFS_NS_GET_PID_FROM_PIDNS, pid);

	return r < 0 ? -errno : r;
}
