#ifndef KFS_IDS_H
#define KFS_IDS_H
#include <stdint.h>

/* Lists of user or group ids, of which a thread may have 65536. */

/* The ids [first, first + length) are [becomes, becomes + length) in the other namespace. */
struct kfs_extent {
	uint32_t first;
	uint32_t becomes;
	uint32_t length;
};

int kfs_ids_parse(const char *text, int size, uint32_t *ids, int limit);
void kfs_ids_map(uint32_t *ids, int count, const struct kfs_extent *extents, int extent_count, uint32_t unmapped);
#endif
