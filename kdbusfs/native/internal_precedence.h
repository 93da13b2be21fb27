/* The precedence of a reader; not for Python. */
#pragma once
#include <stdint.h>

/* Of one thread, which alone uses it. */
struct precedence {
	int schedstat;
	int is_taken;
	uint32_t requests, stride; /* since the last look, and until the next */
	uint32_t long_waits; /* each counts for several short ones, which take off one */
	uint64_t waited; /* ns in all, as of the last look */
	uint64_t until, term, given_up_at;
};

void kfs_precedence_begin(struct precedence *p);
void kfs_precedence_end(struct precedence *p);
int kfs_precedence_look(struct precedence *p);

/* A request was read.  Whether the thread has been kept waiting, and so takes precedence now. */
static inline int kfs_precedence_request(struct precedence *p)
{
	return ++p->requests >= p->stride && kfs_precedence_look(p);
}
