/* Small stores to pools that are mapped. */
#define _GNU_SOURCE
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

/* Where the thread goes on if its store cannot be done; NULL while it makes none. */
static __thread sigjmp_buf *volatile refuge;
static struct sigaction former;

static void bus_error(int number, siginfo_t *info, void *context)
{
	sigjmp_buf *to = refuge;

	(void)info;
	(void)context;
	if (to)
		siglongjmp(*to, 1);
	/* Not of our making: what happens without us happens when the instruction is tried again. */
	sigaction(number, &former, NULL);
}

static void set_handler(void)
{
	struct sigaction action = { .sa_sigaction = bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &action, &former);
}

/*
 * Stores `size` bytes at `offset` of what is mapped at `map`.  Returns 0, or -ENOMEM when a page is not there and the
 * kernel cannot provide it, for one that was swapped out and cannot be read back.
 */
int kfs_copy(char *map, int64_t offset, const char *data, int64_t size)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	sigjmp_buf here;

	pthread_once(&once, set_handler);
	if (sigsetjmp(here, 0)) {
		refuge = NULL;
		return -ENOMEM;
	}
	refuge = &here;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	memcpy(map + offset, data, (size_t)size);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	refuge = NULL;
	return 0;
}
