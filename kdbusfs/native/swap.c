/* Replaces the descriptor that a client's ioctl was made with by one of its private file. */
#define _GNU_SOURCE
#include "internal_tracer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif

/* The mount's device and the FUSE node id of an open file, which the kernel knows without asking its server; 0 or
 * -errno. */
static int identify_file(int file, struct statx *mount, uint64_t *nodeid)
{
	uint32_t fuse[3]; /* node id, high half first, and generation */
	union {
		struct file_handle head;
		char bytes[sizeof(struct file_handle) + sizeof(fuse)];
	} handle = { .head = { .handle_bytes = sizeof(fuse) } };
	int unused;

	if (statx(file, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, mount) < 0 ||
	    (name_to_handle_at(file, "", &handle.head, &unused, AT_EMPTY_PATH | AT_HANDLE_FID) < 0 &&
	     name_to_handle_at(file, "", &handle.head, &unused, AT_EMPTY_PATH) < 0))
		return -errno;
	memcpy(fuse, handle.bytes + offsetof(struct file_handle, f_handle), sizeof(fuse));
	*nodeid = (uint64_t)fuse[0] << 32 | fuse[1];
	return 0;
}

/* Whether the client's descriptor `number` is one of node `nodeid` on the mount of `swap`: a sibling may have closed that
 * meanwhile, and opened something else.  Where the kernel does not tell, it is believed. */
static bool is_of_node(const struct tracee *tracee, int number, int swap, uint64_t nodeid)
{
	struct statx mount, other;
	uint64_t found = 0, unused;
	int file = kfs_take_descriptor(tracee, number);
	bool same;

	if (file < 0)
		return file != -EBADF;
	if (identify_file(swap, &mount, &unused) < 0)
		same = true;
	else
		same = identify_file(file, &other, &found) == 0 && found == nodeid &&
		       other.stx_dev_major == mount.stx_dev_major && other.stx_dev_minor == mount.stx_dev_minor;
	close(file);
	return same;
}

/* Replaces the descriptor that the ioctl was made with by `number`, and keeps its close-on-exec flag. */
int kfs_swap_descriptor(struct kfs_tracer *tracer, struct tracee *tracee, int number, const struct kfs_injection *job)
{
	int old = arch_first_argument(tracee->abi, &tracee->saved, tracee->first_argument);
	long flags = -EBADF;
	long result = -EBADF;

	if (old >= 0 && old != tracee->open[0] && old != tracee->open[1] && old != tracee->open[2])
		flags = kfs_remote_call(tracer, tracee, CALL_FCNTL, (uint64_t)old, F_GETFD, 0, 0);
	if (flags >= 0 && is_of_node(tracee, old, job->swap, job->swapped_node))
		result = kfs_remote_call(tracer, tracee, CALL_DUP3, (uint64_t)number, (uint64_t)old,
					 flags & FD_CLOEXEC ? O_CLOEXEC : 0, 0);
	return result < 0 ? (int)result : 0;
}
