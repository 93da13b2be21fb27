/* The answers and notifications that C alone writes; not for Python. */
#pragma once
#include "answer.h"

#include <linux/fuse.h>
#include <stddef.h>

/* The headers in front of the struct that an ioctl returns. */
#define KFS_IOCTL_ANSWER_SIZE (sizeof(struct fuse_out_header) + sizeof(struct fuse_ioctl_out))

int kfs_write_message(int fuse_fd, const void *message, size_t len);
int kfs_answer_ioctl_in_place(int fuse_fd, uint64_t unique, int32_t result, uint8_t *out, uint32_t out_len);
int kfs_answer_poll(int fuse_fd, uint64_t unique, uint32_t revents);
int kfs_answer_write(int fuse_fd, uint64_t unique, uint32_t size);
int kfs_notify_poll(int fuse_fd, uint64_t kh);
int kfs_notify_store(int fuse_fd, uint64_t nodeid, uint64_t offset, const void *data, uint32_t size);
int kfs_notify_pages_gone(int fuse_fd, uint64_t nodeid, uint64_t offset, uint64_t size);
int kfs_notify_retrieve(int fuse_fd, uint64_t nodeid);
