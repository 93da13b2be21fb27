#pragma once
#include <stdint.h>

/* The memory of pools.  All return 0 or -errno, kfs_backing_open() an id. */
int kfs_map(int fd, uint64_t size, char **map);
int kfs_unmap(char *map, uint64_t size);
int kfs_copy(char *map, int64_t offset, const char *data, int64_t size);
int kfs_store(int fd, uint64_t offset, const char *data, uint64_t size);
int kfs_backing_open(int fuse_fd, int fd);
int kfs_backing_close(int fuse_fd, int backing_id);

/* Returns free heap memory to the system, if the C library can. */
void kfs_heap_trim(void);
