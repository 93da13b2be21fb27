#include "ids.h"

/* Parses the decimal numbers in `text`, separated by anything else: returns their number, at most `limit`. */
int kfs_ids_parse(const char *text, int size, uint32_t *ids, int limit)
{
	int count = 0;
	int i = 0;

	while (i < size && count < limit) {
		uint32_t value = 0;
		int start = i;

		for (; i < size && text[i] >= '0' && text[i] <= '9'; i++)
			value = value * 10 + (uint32_t)(text[i] - '0');
		if (i > start)
			ids[count++] = value;
		else
			i++;
	}
	return count;
}

/*
 * Translates `ids` in place.  The extents are sorted by `first` and do not overlap; other ids become `unmapped`, except
 * the one that stands for "none".
 */
void kfs_ids_map(uint32_t *ids, int count, const struct kfs_extent *extents, int extent_count, uint32_t unmapped)
{
	for (int i = 0; i < count; i++) {
		uint32_t id = ids[i];
		int low = 0;
		int high = extent_count;

		if (id == UINT32_MAX)
			continue;
		while (low < high) {
			int middle = (low + high) / 2;

			if (extents[middle].first <= id)
				low = middle + 1;
			else
				high = middle;
		}
		if (low && id - extents[low - 1].first < extents[low - 1].length)
			ids[i] = extents[low - 1].becomes + (id - extents[low - 1].first);
		else
			ids[i] = unmapped;
	}
}
