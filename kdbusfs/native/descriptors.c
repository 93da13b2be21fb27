/* Facts about a descriptor that a client has passed, without asking its file system. */
#define _GNU_SOURCE
#include "descriptors.h"
#include "internal_statx.h"
#include "namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif

/* Kernel interfaces that are newer than the headers this may be compiled with. */
#define KFS_NS_GET_MNTNS_ID _IOR(0xb7, 0x5, uint64_t)
#define KFS_SYS_STATMOUNT 457
#define KFS_STATMOUNT_FS_TYPE 0x20u
#define KFS_STATMOUNT_FS_SUBTYPE 0x100u
struct mnt_id_request {
	uint32_t size;
	uint32_t spare;
	uint64_t mnt_id;
	uint64_t param;
	uint64_t mnt_ns_id;
};
struct mount_status {
	uint32_t size;
	uint32_t mnt_opts;
	uint64_t mask;
	uint32_t sb_dev_major, sb_dev_minor;
	uint64_t sb_magic;
	uint32_t sb_flags;
	uint32_t fs_type;
	uint64_t mnt_id, mnt_parent_id;
	uint32_t mnt_id_old, mnt_parent_id_old;
	uint64_t mnt_attr, mnt_propagation, mnt_peer_group, mnt_master, propagate_from;
	uint32_t mnt_root, mnt_point;
	uint64_t mnt_ns_id;
	uint32_t fs_subtype;
	uint32_t sb_source;
	char spare[512 - 128];
	char text[512];
};
_Static_assert(offsetof(struct mount_status, text) == 512, "layout of struct statmount");

/*
 * Fills in what the kernel knows without the file system: with AT_STATX_DONT_SYNC FUSE answers from its cache.
 * `domain` is that of a socket, -1 for any other file, O_PATH descriptors included.
 */
int kfs_file_look(int fd, struct kfs_file *file)
{
	unsigned int flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
	socklen_t length = sizeof(file->domain);
	struct statx stx;
	int r;

	r = fcntl(fd, F_GETFL);
	if (r < 0)
		return -errno;
	file->flags = r;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &file->domain, &length) < 0)
		file->domain = -1;
	memset(&stx, 0, sizeof(stx));
	if (statx(fd, "", flags, STATX_TYPE | STATX_INO, &stx) < 0) {
		/* A FUSE file system that denies access to the daemon: only the device is known then. */
		memset(&stx, 0, sizeof(stx));
		if (statx(fd, "", flags, 0, &stx) < 0)
			return -errno;
		stx.stx_mode = 0;
		stx.stx_ino = 0;
	}
	file->mode = stx.stx_mode;
	file->major = stx.stx_dev_major;
	file->minor = stx.stx_dev_minor;
	file->inode = stx.stx_ino;
	return 0;
}

int kfs_file_seals(int fd)
{
	int r = fcntl(fd, F_GET_SEALS);

	return r < 0 ? -errno : r;
}

/* The mount that `fd` was opened on, numbered as in mountinfo; fdinfo has it too, but for an epoll takes its lock. */
int kfs_file_mount_id(int fd, uint64_t *id)
{
	union kfs_statx buf;

	memset(&buf, 0, sizeof(buf));
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &buf.stx) < 0)
		return -errno;
	*id = buf.more.mnt_id;
	return buf.stx.stx_mask & STATX_MNT_ID ? 0 : -ENOSYS;
}

/*
 * The type of the mount that `fd` was opened on, as in /proc/PID/mountinfo, looked up in the mount namespace of thread
 * `tid`.  1: complete; 0: without the subtype.
 */
int kfs_file_mount(int fd, int tid, char *type, int size)
{
	struct mnt_id_request req = { .size = sizeof(req) };
	struct mount_status buf, *sm = &buf;
	union kfs_statx stx;
	int known, n, ns, r;

	memset(&stx, 0, sizeof(stx));
	memset(&buf, 0, sizeof(buf));
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, KFS_STATX_MNT_ID_UNIQUE, &stx.stx) < 0)
		return -errno;
	if (!(stx.stx.stx_mask & KFS_STATX_MNT_ID_UNIQUE))
		return -ENOSYS;
	ns = kfs_namespace_open(tid, "ns/mnt");
	if (ns < 0)
		return ns;
	r = ioctl(ns, KFS_NS_GET_MNTNS_ID, &req.mnt_ns_id) < 0 ? -errno : 0;
	close(ns);
	if (r < 0)
		return r;
	req.mnt_id = stx.more.mnt_id;
	req.param = KFS_STATMOUNT_FS_TYPE | KFS_STATMOUNT_FS_SUBTYPE;
	if (syscall(KFS_SYS_STATMOUNT, &req, sm, sizeof(*sm), 0) < 0)
		return -errno;
	sm->text[sizeof(sm->text) - 1] = 0;
	if (!(sm->mask & KFS_STATMOUNT_FS_TYPE) || sm->fs_type >= sizeof(sm->text))
		return -ENOSYS;
	known = !!(sm->mask & KFS_STATMOUNT_FS_SUBTYPE) && sm->fs_subtype < sizeof(sm->text);
	if (known && sm->text[sm->fs_subtype])
		n = snprintf(type, size, "%s.%s", sm->text + sm->fs_type, sm->text + sm->fs_subtype);
	else
		n = snprintf(type, size, "%s", sm->text + sm->fs_type);
	return n < 0 || n >= size ? -ENAMETOOLONG : known;
}

/*
 * The file that descriptor `fd` of thread `tid` refers to, as far as the kernel knows it without asking its server; the
 * node id has a meaning for FUSE only.  0 or -errno: ENOENT if it is not open.
 */
int kfs_file_node(int tid, int fd, struct kfs_file_node *node)
{
	uint32_t fuse[3]; /* node id, high half first, and generation */
	union {
		struct file_handle head;
		char bytes[sizeof(struct file_handle) + sizeof(fuse)];
	} handle = { .head = { .handle_bytes = sizeof(fuse) } };
	char path[64];
	struct statx stx;
	int unused;

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, fd);
	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &stx) < 0)
		return -errno;
	*node = (struct kfs_file_node){ .major = stx.stx_dev_major, .minor = stx.stx_dev_minor };
	if (name_to_handle_at(AT_FDCWD, path, &handle.head, &unused, AT_SYMLINK_FOLLOW | AT_HANDLE_FID) < 0 &&
	    name_to_handle_at(AT_FDCWD, path, &handle.head, &unused, AT_SYMLINK_FOLLOW) < 0)
		return errno == EOPNOTSUPP || errno == EOVERFLOW ? 0 : -errno;
	memcpy(fuse, handle.bytes + offsetof(struct file_handle, f_handle), sizeof(fuse));
	node->nodeid = (uint64_t)fuse[0] << 32 | fuse[1];
	return 0;
}
