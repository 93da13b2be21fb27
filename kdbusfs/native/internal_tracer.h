/*
 * What the files share that give descriptors to client threads; not for Python.
 *
 *   tracer.c       seizes threads, waits for their stops with a bound, reaps dead ones
 *   remote_call.c  has a stopped thread make system calls
 *   transfer.c     moves open files into its descriptor table
 *   swap.c         replaces the descriptor that its ioctl was made with
 *   inject.c       does one job with these, and looks after threads that stop too late
 */
#pragma once
#include "inject.h"
#include "internal_clock.h"

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define FILES_PER_MESSAGE 253 /* SCM_MAX_FD */
#define SCRATCH_PAGE 4096
#define OUT_MAX 256
#define FILES_MAX 256 /* of a job that is all or none */

enum call {
	CALL_SOCKETPAIR,
	CALL_RECVMSG,
	CALL_CLOSE,
	CALL_CLOSE_RANGE,
	CALL_FCNTL,
	CALL_DUP3,
	CALL_MMAP,
	CALL_MUNMAP,
	CALL_COUNT,
};

/* A system call convention.  `compat`: pointers and longs of 32 bits. */
struct abi {
	bool compat;
	int ioctl;
	int numbers[CALL_COUNT];
};

/* The first `size` bytes of a file of /proc/TID, as a string. */
int kfs_read_proc(pid_t tid, const char *name, char *text, size_t size);

#if defined(__x86_64__)
#include "arch_x86_64.h"
#elif defined(__aarch64__)
#include "arch_aarch64.h"
#else
#error "the registers and system calls of this machine are not known"
#endif

/* What has to be undone of a remote call if nobody waits for its end. */
enum undo {
	UNDO_NOTHING,
	UNDO_SOCKETS, /* a pair, whose numbers are in scratch memory */
	UNDO_DUPLICATE, /* of a socket */
	UNDO_PAGE,
	UNDO_FILES, /* those of a message, whose numbers are in scratch memory */
};

/* A client thread that this tracer has seized. */
struct tracee {
	struct tracee *next;
	pid_t tid;
	int lost; /* -ESRCH: dead; -ETIMEDOUT: did not stop in time; no call is made after that */
	bool held; /* has to be detached or reaped */
	bool zombie; /* dead, but not to be reaped before its siblings */
	bool caught; /* its registers and signal mask may differ from the saved ones */
	bool calling; /* in a remote call */
	enum undo undo;
	int stops; /* of the remote call: 1 after its entry, 2 after its end */
	int open[3]; /* sockets of ours among its descriptors, or -1 */
	bool store; /* the command struct has to be stored again */
	const struct abi *abi;
	arch_regs saved;
	uint64_t sigmask;
	uint64_t first_argument; /* of its ioctl, where the registers do not keep it */
	uint64_t command; /* address of the command struct */
	uint64_t map; /* address of the page that was mapped for it, or 0 */
	uint64_t scratch;
	size_t scratch_len;
	size_t control_len; /* of the message being received */
	long failure; /* what its ioctl returns after all; 0: its answer holds */
	uint64_t flags_address, flags; /* of the return flags, and what to store there at the end; 0: nothing */
	size_t out_len;
	unsigned char out[OUT_MAX];
};

struct kfs_tracer {
	timer_t timer;
	volatile sig_atomic_t seizing;
	sigjmp_buf escape;
	uint64_t deadline;
	struct tracee *unreleased; /* did not stop in time: ptrace(2) lets go of stopped threads only */
};

/* tracer.c: 0 or -errno */
void kfs_set_ticking(struct kfs_tracer *tracer, bool on);
bool kfs_is_dead(pid_t tid);
int kfs_seize(struct kfs_tracer *tracer, pid_t tid);
int kfs_wait_for_stop(struct kfs_tracer *tracer, struct tracee *tracee, int *status);
int kfs_reap(struct kfs_tracer *tracer, struct tracee *tracee);

/* remote_call.c */
int kfs_find_ioctl(struct tracee *tracee);
int kfs_take_control(struct tracee *tracee, long expected);
int kfs_restore(struct tracee *tracee);
long kfs_remote_call(struct kfs_tracer *tracer, struct tracee *tracee, enum call which, uint64_t a, uint64_t b,
		     uint64_t c, uint64_t d);
long kfs_remote_call_with_undo(struct kfs_tracer *tracer, struct tracee *tracee, enum undo undo, enum call which,
			       uint64_t a, uint64_t b, uint64_t c, uint64_t d);
int kfs_finish_remote_call(struct kfs_tracer *tracer, struct tracee *tracee, int status);
void kfs_remote_close(struct kfs_tracer *tracer, struct tracee *tracee, int *numbers, int count);
int kfs_peek(const struct tracee *tracee, uint64_t address, void *buffer, size_t len);
int kfs_poke(const struct tracee *tracee, uint64_t address, const void *buffer, size_t len);

/* transfer.c */
uint32_t kfs_transfer_capacity(const struct tracee *tracee);
int kfs_received_numbers(const struct tracee *tracee, int *numbers, uint32_t max);
int kfs_transfer(struct kfs_tracer *tracer, struct tracee *tracee, struct kfs_injection *job);
int kfs_take_descriptor(const struct tracee *tracee, int number);

/* swap.c */
int kfs_swap_descriptor(struct kfs_tracer *tracer, struct tracee *tracee, int number, const struct kfs_injection *job);
