#ifndef KFS_STORE_H
#define KFS_STORE_H
#include <stddef.h>
#include <stdint.h>

/* Inode `nodeid` has the `size` bytes at `data` at `offset`. */
struct kfs_store {
	uint64_t nodeid;
	uint64_t offset;
	uint64_t size;
	const char *data;
};

struct kfs_storer;

int kfs_store_pages(int fuse_fd, const struct kfs_store *stores, uint32_t count);

struct kfs_storer *kfs_storer_new(int fuse_fd, int event_fd);
int64_t kfs_storer_submit(struct kfs_storer *storer, const struct kfs_store *stores, uint32_t count, uint64_t unique,
			  int32_t result, const void *out, uint32_t out_len);
uint64_t kfs_storer_done(struct kfs_storer *storer);
int kfs_storer_announce(struct kfs_storer *storer);
int kfs_storer_free(struct kfs_storer *storer);

#endif
