/* How the daemon is scheduled. */
#define _GNU_SOURCE
#include "precedence.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As sched_setattr(2) takes it; libc has no name for it before 2.41. */
struct attributes {
	uint32_t size;
	uint32_t policy; /* 0: SCHED_OTHER */
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime; /* of SCHED_OTHER: the slice, since Linux 6.12; ignored before */
	uint64_t deadline;
	uint64_t period;
};

/* Sets nice value and slice of the calling thread, and of all that it starts from now on.  Returns 0 or -errno. */
int kfs_precedence(int nice, uint64_t slice_ns)
{
	struct attributes attributes = { .size = sizeof(attributes), .nice = nice, .runtime = slice_ns };

	return syscall(SYS_sched_setattr, 0, &attributes, 0) < 0 ? -errno : 0;
}
