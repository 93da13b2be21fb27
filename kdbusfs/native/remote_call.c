/*
 * Has a stopped client thread make system calls, by the instruction that its ioctl was made with.
 *
 * Its siblings may change its memory and its descriptors meanwhile.  What is read of it is only given back to it.
 */
#define _GNU_SOURCE
#include "internal_tracer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

/* Both get all of the bytes or fail: 0 or -errno. */
int kfs_peek(const struct tracee *tracee, uint64_t address, void *buffer, size_t len)
{
	struct iovec local = { buffer, len }, remote = { (void *)(uintptr_t)address, len };
	ssize_t got = process_vm_readv(tracee->tid, &local, 1, &remote, 1, 0);

	return got == (ssize_t)len ? 0 : got < 0 ? -errno : -EFAULT;
}

int kfs_poke(const struct tracee *tracee, uint64_t address, const void *buffer, size_t len)
{
	struct iovec local = { (void *)buffer, len }, remote = { (void *)(uintptr_t)address, len };
	ssize_t put = process_vm_writev(tracee->tid, &local, 1, &remote, 1, 0);

	return put == (ssize_t)len ? 0 : put < 0 ? -errno : -EFAULT;
}

/* Finds out how the caught thread made its ioctl, and where its command struct is. */
int kfs_find_ioctl(struct tracee *tracee)
{
	const struct abi *abi;

	if (arch_get(tracee->tid, &tracee->saved) < 0)
		return -ESRCH;
	abi = arch_abi(tracee->tid, &tracee->saved);
	if (!abi || !arch_is_ioctl(abi, &tracee->saved))
		return -EOPNOTSUPP;
	tracee->abi = abi;
	tracee->command = arch_third_argument(abi, &tracee->saved);
	return 0;
}

/* Prepares the thread for injected calls, provided that its ioctl returns `expected`. */
int kfs_take_control(struct tracee *tracee, long expected)
{
	uint64_t all = UINT64_MAX;
	int error = kfs_find_ioctl(tracee);

	if (error)
		return error;
	if (arch_result(tracee->abi, &tracee->saved) != expected)
		return -EFAULT; /* the answer could not be copied out */
	if (ptrace(PTRACE_GETSIGMASK, tracee->tid, (void *)sizeof(all), &tracee->sigmask) < 0)
		return -ESRCH;
	tracee->caught = true;
	if (ptrace(PTRACE_SETSIGMASK, tracee->tid, (void *)sizeof(all), &all) < 0)
		return -ESRCH;
	return 0;
}

/* Gives the thread its own registers and signal mask back.  0 or -ESRCH. */
int kfs_restore(struct tracee *tracee)
{
	if (arch_restore(tracee->tid, &tracee->saved) < 0 ||
	    ptrace(PTRACE_SETSIGMASK, tracee->tid, (void *)sizeof(tracee->sigmask), &tracee->sigmask) < 0)
		return -ESRCH;
	return 0;
}

/*
 * Takes the injected call to its end, the thread being stopped with `status`, or freshly prepared (0).  SIGSTOP cannot
 * be blocked; it is passed on, and the kernel sees to it that the thread stops once it is detached.
 */
int kfs_finish_remote_call(struct kfs_tracer *tracer, struct tracee *tracee, int status)
{
	for (;;) {
		int signal = 0;

		if (status && status >> 16 == 0) {
			if (WSTOPSIG(status) != (SIGTRAP | 0x80))
				signal = WSTOPSIG(status);
			else if (++tracee->stops == 2)
				break;
		}
		if (ptrace(PTRACE_SYSCALL, tracee->tid, NULL, (void *)(long)signal) < 0)
			return kfs_reap(tracer, tracee);
		if (kfs_wait_for_stop(tracer, tracee, &status) < 0)
			return tracee->lost;
	}
	tracee->calling = false;
	return 0;
}

/* Has the thread make a system call.  Its result, or `lost`. */
long kfs_remote_call(struct kfs_tracer *tracer, struct tracee *tracee, enum call which, uint64_t a, uint64_t b,
		     uint64_t c, uint64_t d)
{
	const uint64_t args[6] = { a, b, c, d, which == CALL_MMAP ? UINT64_MAX : 0, 0 };
	arch_regs regs = tracee->saved;
	long result = 0;

	if (tracee->lost)
		return tracee->lost;
	arch_prepare(tracee->abi, &regs, tracee->abi->numbers[which], args);
	tracee->caught = true;
	if (arch_set(tracee->tid, &regs) < 0)
		return kfs_reap(tracer, tracee);
	tracee->calling = true;
	tracee->stops = 0;
	if (kfs_finish_remote_call(tracer, tracee, 0) < 0)
		return tracee->lost;
	if (arch_read_result(tracee->tid, tracee->abi, &result) < 0)
		return kfs_reap(tracer, tracee);
	return result;
}

/* A call that makes something; what it made is for the caller to keep, or for reclaim() if the thread was lost. */
long kfs_remote_call_with_undo(struct kfs_tracer *tracer, struct tracee *tracee, enum undo undo, enum call which,
			       uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	long result;

	tracee->undo = undo;
	result = kfs_remote_call(tracer, tracee, which, a, b, c, d);
	if (!tracee->lost)
		tracee->undo = UNDO_NOTHING;
	return result;
}

/* They come from the memory of the tracee, and may be any: their difference need not fit. */
static int compare_numbers(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

/* Has the thread close descriptors; -1 stands for none.  By one call if they are neighbours.  They are forgotten before
 * the call: one that ends late must not be made again, for a sibling may have the number by then.  Those of a thread
 * that is lost are kept, in order, until it is found again. */
void kfs_remote_close(struct kfs_tracer *tracer, struct tracee *tracee, int *numbers, int count)
{
	int first = 0, last = count - 1;

	if (tracee->lost)
		return;
	qsort(numbers, (size_t)count, sizeof(numbers[0]), compare_numbers);
	while (first < count && numbers[first] < 0)
		first++;
	if (last > first && numbers[last] - numbers[first] == last - first) {
		int from = numbers[first], to = numbers[last];

		memset(numbers + first, -1, (size_t)(count - first) * sizeof(numbers[0]));
		if (kfs_remote_call(tracer, tracee, CALL_CLOSE_RANGE, (uint64_t)from, (uint64_t)to, 0, 0) == 0 ||
		    tracee->lost)
			return;
		for (int i = first; i < count; i++)
			numbers[i] = from + i - first;
	}
	for (; first < count && !tracee->lost; first++) {
		int number = numbers[first];

		numbers[first] = -1;
		kfs_remote_call(tracer, tracee, CALL_CLOSE, (uint64_t)number, 0, 0, 0);
	}
}
