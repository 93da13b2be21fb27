/*
 * Gives open files to a client thread that blocks in a FUSE ioctl.
 *
 * The thread is seized while it still blocks, its ioctl is answered, and it is caught by the stop that follows: before it
 * takes a signal and before it runs an instruction of its own.  From there it is made to run a few system calls
 * (transfer.c, swap.c).  Then everything is put back and the thread goes on.
 *
 * Every thread here is hostile: it may be killed at any moment, and its siblings may change its memory and its
 * descriptors meanwhile.  A tracer waits for a bounded time; a thread that did not stop by then is kept until it does.
 * Access to its memory alone has no bound (userfaultfd, a mapped file of a FUSE server that does not answer): a tracer
 * has to be one user's own.
 */
#define _GNU_SOURCE
#include "answer.h"
#include "internal_tracer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

/* The ioctl fails, though its answer said that it did not.  A thread that was never caught is what it was. */
static void fail_ioctl(struct tracee *tracee)
{
	if (!tracee->abi && kfs_find_ioctl(tracee) < 0)
		return;
	if (!tracee->caught && arch_result(tracee->abi, &tracee->saved) != 0)
		return; /* it has failed already */
	arch_set_result(tracee->abi, &tracee->saved, tracee->failure);
	if (!tracee->caught)
		arch_set(tracee->tid, &tracee->saved);
}

/* Gives the stopped thread back all that is its own, and lets it go. */
static void release(struct kfs_tracer *tracer, struct tracee *tracee)
{
	if (tracee->caught) {
		kfs_remote_close(tracer, tracee, tracee->open, 3);
		if (tracee->map && !tracee->lost) {
			uint64_t map = tracee->map;

			tracee->map = 0;
			kfs_remote_call(tracer, tracee, CALL_MUNMAP, map, SCRATCH_PAGE, 0, 0);
		}
	}
	if (tracee->lost)
		return;
	if (tracee->store && !tracee->abi)
		kfs_find_ioctl(tracee);
	if (tracee->failure)
		fail_ioctl(tracee);
	if (tracee->store && tracee->abi)
		kfs_poke(tracee, tracee->command, tracee->out, tracee->out_len);
	if (tracee->flags_address)
		kfs_poke(tracee, tracee->flags_address, &tracee->flags, sizeof(tracee->flags));
	if (tracee->caught && kfs_restore(tracee) < 0) {
		kfs_reap(tracer, tracee);
		return;
	}
	if (ptrace(PTRACE_DETACH, tracee->tid, NULL, NULL) < 0)
		kfs_reap(tracer, tracee);
	else
		tracee->held = false;
}

static int answer(const struct kfs_injection *job)
{
	kfs_store_pages(job->fuse_fd, job->stores, job->store_count);
	return kfs_answer_ioctl(job->fuse_fd, job->unique, job->result, job->out, job->out_len);
}

/* Entries that have no descriptor get `error`. */
static void fail_rest(struct kfs_injection *job, int error)
{
	for (uint32_t i = job->installed + job->refused; i < job->count; i++)
		*job->slots[i] = error;
}

/*
 * Closes the daemon's own descriptor of the file that was swapped in.  It is done before the client goes on: a close(2)
 * of the client must be the last one, or its connection would outlive it for a moment (CLOSE-1).
 */
static void drop_swap(struct kfs_injection *job)
{
	if (job->swap >= 0)
		close(job->swap);
	job->swap = -1;
}

/* Where the client keeps the file that it has, it finds its pool there before it goes on. */
static void show_unswapped(const struct kfs_injection *job)
{
	if (!job->swapped)
		kfs_store_pages(job->fuse_fd, job->unswapped, job->unswapped_count);
}

/*
 * All or none: where one is missing the client keeps none, its ioctl fails, and its struct is what it was.  The outcome is
 * there before the client goes on: 1, or -errno.
 */
static void conclude(struct kfs_tracer *tracer, struct tracee *tracee, struct kfs_injection *job, int error)
{
	int numbers[FILES_MAX], count = 0;

	if (!job->reply_error && job->installed == job->count) {
		*job->outcome = 1;
		return;
	}
	for (uint32_t i = 0; i < job->count && i < FILES_MAX; i++) {
		if (*job->slots[i] >= 0)
			numbers[count++] = *job->slots[i];
		else if (!error)
			error = *job->slots[i];
	}
	if (tracee->caught && count)
		kfs_remote_close(tracer, tracee, numbers, count);
	memcpy(tracee->out, job->original, tracee->out_len);
	tracee->store = tracee->store || !job->reply_error;
	tracee->failure = error ? error : -EMFILE;
	*job->outcome = (int32_t)tracee->failure;
}

/* The part of a job after SEIZE: answers the ioctl, catches the thread, and lets it go. */
static int serve(struct kfs_tracer *tracer, struct tracee *tracee, struct kfs_injection *job)
{
	int status, error;

	if (job->swap >= 0)
		tracee->first_argument = arch_first_argument_while_blocked(tracee->tid);
	job->answered = 1;
	job->reply_error = -answer(job);
	error = kfs_wait_for_stop(tracer, tracee, &status);
	if (!error && job->reply_error)
		error = -ESRCH; /* its request was gone: it is being killed */
	else if (!error)
		error = kfs_take_control(tracee, job->result);
	if (!error)
		error = kfs_transfer(tracer, tracee, job);
	if (job->installed < job->count) {
		fail_rest(job, error);
		if (!job->reply_error) {
			tracee->flags_address = job->flags_address;
			tracee->flags = job->incomplete_flags;
		}
	}
	if (job->outcome)
		conclude(tracer, tracee, job, error);
	if (job->count)
		kfs_store_pages(job->fuse_fd, job->stores, job->slot_stores);
	drop_swap(job);
	show_unswapped(job);
	release(tracer, tracee);
	return error;
}

/*
 * Does one job: answers the ioctl `unique` that thread `tid` blocks in with `result` and the struct `out`, and has the
 * thread go on with the files installed.
 *
 * slots[i] gets the number of files[i], or -errno; then `incomplete_flags` are stored at `flags_address` of the client
 * (0: nowhere) too.  `swap` (-1: none) takes the place of the descriptor that the ioctl was made with, but only if that
 * still is of node `swapped_node`; it is closed in every case.  Entries that the kernel refuses to pass on are counted
 * in `refused`; their slots have the -errno.  `unswapped` are stored if nothing was swapped.
 * With an `outcome` it is all or none: that becomes 1, or -errno, which the ioctl returns then; the struct of the client is
 * the `original` one again, of `out_len` bytes.
 * Where the client has copies of its pool, `stores` bring them up to date before the answer; the first `slot_stores` of
 * them are of the pages with the slots, and are made again when those have their numbers.
 * `answered`: the answer was written, and `reply_error` is what that gave; otherwise the thread could not be seized,
 * nothing but closing `swap` was done, and the caller of this function has to answer.  `held`: the thread did not stop
 * in time, and has to be looked after by kfs_tracer_sweep().  Returns 0, or -errno of what went wrong first.
 */
int kfs_inject(struct kfs_tracer *tracer, struct kfs_injection *job)
{
	struct tracee *tracee;
	int error;

	job->installed = 0;
	job->refused = 0;
	job->swapped = 0;
	job->answered = 0;
	job->reply_error = 0;
	job->held = 0;
	tracee = calloc(1, sizeof(*tracee));
	kfs_set_ticking(tracer, true);
	error = tracee ? kfs_seize(tracer, job->tid) : -ENOMEM;
	if (error) {
		drop_swap(job);
	} else {
		tracee->tid = job->tid;
		tracee->held = true;
		memset(tracee->open, -1, sizeof(tracee->open));
		tracee->out_len = job->out_len < OUT_MAX ? job->out_len : OUT_MAX;
		memcpy(tracee->out, job->out, tracee->out_len);
		error = serve(tracer, tracee, job);
		if (tracee->held) {
			tracee->next = tracer->unreleased;
			tracer->unreleased = tracee;
			tracee = NULL;
			job->held = 1;
		}
	}
	kfs_set_ticking(tracer, false);
	free(tracee);
	return error;
}

/* The call that the thread was lost in has ended, and its job is over: nobody would tell the client of what it made. */
static void reclaim(struct kfs_tracer *tracer, struct tracee *tracee)
{
	int numbers[FILES_PER_MESSAGE], got;
	enum undo undo = tracee->undo;
	long result = 0;

	tracee->undo = UNDO_NOTHING;
	if (arch_read_result(tracee->tid, tracee->abi, &result) < 0) {
		kfs_reap(tracer, tracee);
		return;
	}
	if (undo == UNDO_SOCKETS && result == 0 && kfs_peek(tracee, tracee->scratch, numbers, 2 * sizeof(int)) == 0)
		memcpy(tracee->open, numbers, 2 * sizeof(int));
	else if (undo == UNDO_DUPLICATE && result >= 0)
		tracee->open[2] = (int)result;
	else if (undo == UNDO_PAGE && !(result < 0 && result > -4096))
		tracee->map = tracee->abi->compat ? (uint32_t)result : (uint64_t)result;
	else if (undo == UNDO_FILES && result >= 0 &&
		 (got = kfs_received_numbers(tracee, numbers, FILES_PER_MESSAGE)) > 0)
		kfs_remote_close(tracer, tracee, numbers, got);
}

/* A thread has stopped at last, too late for its job: ends the call that it was in, and lets it go. */
static void resume(struct kfs_tracer *tracer, struct tracee *tracee, int status)
{
	tracee->lost = 0;
	kfs_set_ticking(tracer, true);
	if (tracee->calling)
		kfs_finish_remote_call(tracer, tracee, status);
	if (!tracee->lost && tracee->undo != UNDO_NOTHING)
		reclaim(tracer, tracee);
	release(tracer, tracee);
	kfs_set_ticking(tracer, false);
}

/*
 * Lets go of threads that have stopped at last, and reaps dead ones.  Returns how many live ones are left: the calling
 * thread must not end before there are none, for the kernel would let go of them as they are.  `dead`: how many cannot
 * be reaped yet, which nobody has to wait for.
 */
int kfs_tracer_sweep(struct kfs_tracer *tracer, int *dead)
{
	struct tracee **link = &tracer->unreleased, *tracee;
	int living = 0;

	*dead = 0;
	while ((tracee = *link)) {
		int status;
		pid_t pid = waitpid(tracee->tid, &status, WNOHANG | __WALL | __WNOTHREAD);

		if (pid == tracee->tid && WIFSTOPPED(status))
			resume(tracer, tracee, status);
		else if (pid != 0)
			tracee->held = false;
		else
			tracee->zombie = kfs_is_dead(tracee->tid);
		if (tracee->held) {
			*(tracee->zombie ? dead : &living) += 1;
			link = &tracee->next;
		} else {
			*link = tracee->next;
			free(tracee);
		}
	}
	return living;
}
