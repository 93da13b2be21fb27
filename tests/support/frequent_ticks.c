/*
 * Has the timers of the program that it is preloaded to fire every KDBUSFS_TEST_TICK nanoseconds, if they repeat at all.
 *
 * A tracer's timer (native/tracer.c) fires every 10 ms, and hardly ever meets a system call that a signal can interrupt;
 * so it meets all of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int timer_settime(timer_t timer, int flags, const struct itimerspec *value, struct itimerspec *old)
{
	int (*real)(timer_t, int, const struct itimerspec *, struct itimerspec *);
	const char *period = getenv("KDBUSFS_TEST_TICK");
	struct itimerspec often = *value;

	*(void **)&real = dlsym(RTLD_NEXT, "timer_settime");
	if (period && (value->it_interval.tv_sec || value->it_interval.tv_nsec)) {
		often.it_interval = (struct timespec){ 0, atol(period) };
		often.it_value = often.it_interval;
	}
	return real(timer, flags, &often, old);
}
