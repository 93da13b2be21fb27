/*
 * Seizes client threads, waits for their stops, and reaps dead ones.
 *
 * A seized thread is hostile: it may be killed at any moment.  A tracer waits for a bounded time.
 */
#define _GNU_SOURCE
#include "internal_tracer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

#define FIRST_TICK_NS 2000000
#define TICK_NS 10000000
#define LIMIT_NS 2000000000ull

static pthread_once_t tick_once = PTHREAD_ONCE_INIT;
static int tick_error;

/* Its only purpose is to interrupt the tracer's waitpid(2), and to get it out of a PTRACE_SEIZE that hangs. */
static void on_tick(int sig, siginfo_t *info, void *context)
{
	struct kfs_tracer *tracer = info->si_value.sival_ptr;

	(void)sig;
	(void)context;
	if (info->si_code == SI_TIMER && tracer->seizing) {
		tracer->seizing = 0;
		siglongjmp(tracer->escape, 1);
	}
}

static int tick_signal(void)
{
	return SIGRTMAX - 2;
}

static void install_tick(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_tick;
	action.sa_flags = SA_SIGINFO | SA_NODEFER;
	if (sigaction(tick_signal(), &action, NULL) < 0)
		tick_error = errno;
}

void kfs_set_ticking(struct kfs_tracer *tracer, bool on)
{
	struct itimerspec ticks = { .it_interval = { 0, 0 }, .it_value = { 0, 0 } };

	if (on) {
		ticks.it_interval.tv_nsec = TICK_NS;
		ticks.it_value.tv_nsec = FIRST_TICK_NS;
		tracer->deadline = kfs_now_ns() + LIMIT_NS;
	}
	timer_settime(tracer->timer, 0, &ticks, NULL);
}

/* Makes the calling thread a tracer.  NULL: errno says why. */
struct kfs_tracer *kfs_tracer_new(void)
{
	struct kfs_tracer *tracer = calloc(1, sizeof(*tracer));
	struct sigevent event;
	sigset_t signals;

	if (!tracer)
		return NULL;
	pthread_once(&tick_once, install_tick);
	sigemptyset(&signals);
	sigaddset(&signals, tick_signal());
	memset(&event, 0, sizeof(event));
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = tick_signal();
	event.sigev_value.sival_ptr = tracer;
#ifdef sigev_notify_thread_id
	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
#else
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
#endif
	errno = tick_error;
	if (tick_error || pthread_sigmask(SIG_UNBLOCK, &signals, NULL) ||
	    timer_create(CLOCK_MONOTONIC, &event, &tracer->timer) < 0) {
		free(tracer);
		return NULL;
	}
	return tracer;
}

/* Of the thread that made it.  The kernel lets go of threads that are left when that thread ends. */
int kfs_tracer_free(struct kfs_tracer *tracer)
{
	struct tracee *tracee;

	timer_delete(tracer->timer);
	while ((tracee = tracer->unreleased)) {
		tracer->unreleased = tracee->next;
		free(tracee);
	}
	free(tracer);
	return 0;
}

/* The first `size` bytes of a file of /proc/TID, as a string.  0 or -errno: ESRCH if there is no such thread. */
int kfs_read_proc(pid_t tid, const char *name, char *text, size_t size)
{
	char path[40];
	ssize_t len;
	int fd, error;

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	len = read(fd, text, size - 1);
	error = len < 0 ? errno : 0;
	close(fd);
	if (error)
		return -error;
	text[len] = '\0';
	return 0;
}

/* Not where that cannot be found out, as the daemon has no descriptor left: the thread may yet stop. */
bool kfs_is_dead(pid_t tid)
{
	char text[128], *state;
	int error = kfs_read_proc(tid, "stat", text, sizeof(text));

	if (error)
		return error == -ESRCH;
	state = strrchr(text, ')');
	return state && state[1] == ' ' && (state[2] == 'Z' || state[2] == 'X');
}

/* Whether the line `name` of /proc/TID/status has a hexadecimal or one-digit value with any bit of `mask`: 1, 0, or
 * -errno. */
static int has_status(pid_t tid, const char *name, unsigned long long mask)
{
	char text[4096], *line;
	int error = kfs_read_proc(tid, "status", text, sizeof(text));

	if (error)
		return error;
	line = strstr(text, name);
	return line && strtoull(line + strlen(name), NULL, 16) & mask;
}

/*
 * An execve(2) of a sibling holds the lock that PTRACE_SEIZE needs until this thread is dead, and this thread can
 * die only when its ioctl is answered: so even this wait has to end.  The kernel restarts the call whenever a signal
 * interrupts it; only a jump out of the handler gets it to return.  -EINTR: it did not succeed before the next tick.
 */
static int try_seize(struct kfs_tracer *tracer, pid_t tid, unsigned long options)
{
	long result;

	if (sigsetjmp(tracer->escape, 0))
		/* It may have succeeded in that moment; then the thread is ours. */
		return ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0 ? -EINTR : 0;
	tracer->seizing = 1;
	result = ptrace(PTRACE_SEIZE, tid, NULL, (void *)options);
	tracer->seizing = 0;
	return result < 0 ? -errno : 0;
}

int kfs_seize(struct kfs_tracer *tracer, pid_t tid)
{
	unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP;
	int error;

	while ((error = try_seize(tracer, tid, options)) < 0) {
		if (error == -EINTR) {
			if (has_status(tid, "\nSigPnd:\t", 1ull << (SIGKILL - 1)) > 0 ||
			    kfs_now_ns() > tracer->deadline)
				return -EBUSY;
		} else if ((error == -EPERM || error == -EINVAL) && options & PTRACE_O_SUSPEND_SECCOMP) {
			/* Not privileged to suspend it: a filter might kill the client for calls that it did not make. */
			if (has_status(tid, "\nSeccomp:\t", 3) != 0)
				return -EPERM;
			options &= ~(unsigned long)PTRACE_O_SUSPEND_SECCOMP;
		} else {
			return error;
		}
	}
	ptrace(PTRACE_INTERRUPT, tid, NULL, NULL);
	return 0;
}

/* Waits for the next stop.  Otherwise sets and returns `lost`. */
int kfs_wait_for_stop(struct kfs_tracer *tracer, struct tracee *tracee, int *status)
{
	int dead = 0;

	for (;;) {
		pid_t pid = waitpid(tracee->tid, status, __WALL | __WNOTHREAD | dead);

		if (pid == tracee->tid && WIFSTOPPED(*status))
			return 0;
		if (pid == tracee->tid || (pid < 0 && errno != EINTR)) {
			tracee->held = false;
			return tracee->lost = -ESRCH;
		}
		/* The death of a group leader is not reported while a sibling lives. */
		if (dead) {
			tracee->zombie = true;
			return tracee->lost = -ESRCH;
		}
		if (kfs_is_dead(tracee->tid))
			dead = WNOHANG; /* it may have died just now */
		else if (kfs_now_ns() > tracer->deadline)
			return tracee->lost = -ETIMEDOUT;
	}
}

/* A request of ptrace(2) failed, thus the thread was killed: reaps it, for others may be waiting for that. */
int kfs_reap(struct kfs_tracer *tracer, struct tracee *tracee)
{
	int status;

	while (!kfs_wait_for_stop(tracer, tracee, &status))
		ptrace(PTRACE_CONT, tracee->tid, NULL, NULL);
	return tracee->lost;
}
