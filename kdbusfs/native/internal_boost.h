/* The scheduling boost of a reader; not for Python. */
#pragma once
#include <stdint.h>

/* State of one thread, used by that thread only. */
struct boost {
	int schedstat;
	int is_taken;
	uint32_t requests, stride; /* requests since the last check, and until the next */
	uint32_t long_waits; /* each counts for several short ones, which take off one */
	uint64_t waited; /* ns in all, at the last check */
	uint64_t until, term, given_up_at;
};

void kfs_boost_begin(struct boost *p);
void kfs_boost_end(struct boost *p);
int kfs_boost_look(struct boost *p);

/* A request was read.  Returns whether the thread is boosted. */
static inline int kfs_boost_request(struct boost *p)
{
	return ++p->requests >= p->stride && kfs_boost_look(p);
}
