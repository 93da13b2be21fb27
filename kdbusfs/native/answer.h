#pragma once
#include <stdint.h>

/* Answers and notifications on /dev/fuse.  All return 0 or -errno; ENOENT: the request or the inode has gone. */
int kfs_answer_error(int fuse_fd, uint64_t unique, int error);
int kfs_answer_ioctl(int fuse_fd, uint64_t unique, int32_t result, const void *out, uint32_t out_len);
int kfs_notify_entry_gone(int fuse_fd, uint64_t parent, const char *name, uint32_t name_len);
