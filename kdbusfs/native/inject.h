#ifndef KFS_INJECT_H
#define KFS_INJECT_H
#include <stddef.h>
#include <stdint.h>

#include "store.h"

struct kfs_tracer;

struct kfs_injection {
	int tid;
	int fuse_fd;
	uint64_t unique;
	int32_t result;
	const unsigned char *out;
	uint32_t out_len;
	uint32_t count;
	const int *files;
	int32_t **slots;
	int swap;
	uint64_t swapped_node;
	uint64_t flags_address;
	uint64_t incomplete_flags;
	int32_t *outcome; /* NULL: the client gets as many as it can */
	const unsigned char *original;
	const struct kfs_store *stores;
	uint32_t store_count;
	uint32_t slot_stores;
	const struct kfs_store *unswapped;
	uint32_t unswapped_count;
	uint32_t installed;
	uint32_t refused;
	int swapped;
	int answered;
	int reply_error;
	int held;
};

struct kfs_tracer *kfs_tracer_new(void);
int kfs_tracer_free(struct kfs_tracer *tracer);
int kfs_tracer_sweep(struct kfs_tracer *tracer, int *dead);
int kfs_inject(struct kfs_tracer *tracer, struct kfs_injection *job);

#endif
