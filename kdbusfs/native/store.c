/*
 * Stores what the daemon wrote to a pool in the page cache of its client (FUSE_NOTIFY_STORE), if the kernel does not
 * offer passthrough.
 *
 * The kernel takes the lock of every page that it stores, and a page that waits for the answer to a READ is locked.  So
 * a store may wait for the reader of /dev/fuse, which must never make one (deadlock): the storer has a thread of its
 * own.  That thread waits for nobody else.  The lock of such a page is held for a READ or a WRITE, which the reader
 * answers without waiting for any store, or by the kernel for a moment; no client can hold it.
 *
 * The data are copied under that lock from the mapping of the pool.  So of two stores, or a store and the answer of a
 * READ, the last one has the newest content, in whatever order they were requested (no race).
 */
#define _GNU_SOURCE
#include "store.h"
#include "internal_answer.h"
#include "boost.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_AT_ONCE (1u << 20)

struct job {
	struct job *next;
	uint64_t unique;
	int32_t result;
	uint32_t count, out_len;
	struct kfs_store stores[];
};

struct kfs_storer {
	int fuse_fd, event_fd;
	pthread_mutex_t lock;
	pthread_cond_t work;
	pthread_t thread;
	struct job *first, **last;
	uint64_t submitted, done;
	bool started, ending, announcing;
};

/*
 * The reader of /dev/fuse must not call it.  Returns 0, or -errno of the last failure: ENOENT for an inode that has
 * gone.
 */
int kfs_store_pages(int fuse_fd, const struct kfs_store *stores, uint32_t count)
{
	int result = 0;

	for (uint32_t i = 0; i < count; i++) {
		const struct kfs_store *what = &stores[i];
		uint64_t done = 0;
		int r = 0;

		while (done < what->size && r == 0) {
			uint64_t left = what->size - done;
			uint32_t size = left < MOST_AT_ONCE ? (uint32_t)left : MOST_AT_ONCE;

			r = kfs_notify_store(fuse_fd, what->nodeid, what->offset + done, what->data + done, size);
			done += size;
		}
		if (r < 0 && r != -ENOENT)
			kfs_notify_pages_gone(fuse_fd, what->nodeid, what->offset, what->size);
		if (r < 0)
			result = r;
	}
	return result;
}

static void serve(struct kfs_storer *storer, struct job *job)
{
	kfs_store_pages(storer->fuse_fd, job->stores, job->count);
	kfs_answer_ioctl(storer->fuse_fd, job->unique, job->result, job->stores + job->count, job->out_len);
}

static void *run(void *argument)
{
	struct kfs_storer *storer = argument;
	const uint64_t one = 1;

	kfs_boost_again();
	pthread_mutex_lock(&storer->lock);
	for (;;) {
		struct job *job = storer->first;
		bool announced;

		if (!job && storer->ending)
			break;
		if (!job) {
			pthread_cond_wait(&storer->work, &storer->lock);
			continue;
		}
		storer->first = job->next;
		if (!storer->first)
			storer->last = &storer->first;
		pthread_mutex_unlock(&storer->lock);
		serve(storer, job);
		free(job);
		pthread_mutex_lock(&storer->lock);
		__atomic_fetch_add(&storer->done, 1, __ATOMIC_RELEASE);
		announced = storer->announcing && write(storer->event_fd, &one, sizeof(one)) == sizeof(one);
		(void)announced;
	}
	pthread_mutex_unlock(&storer->lock);
	return NULL;
}

/* With the lock held, or before any other thread knows the storer.  The thread blocks all signals. */
static int start(struct kfs_storer *storer)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&storer->thread, NULL, run, storer);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	storer->started = error == 0;
	return -error;
}

/*
 * NULL: no memory.  The thread is started in advance: later the system may refuse, and a client whose file cannot be
 * swapped depends on it.  If it cannot be started now, the first job tries again.
 */
struct kfs_storer *kfs_storer_new(int fuse_fd, int event_fd)
{
	struct kfs_storer *storer = calloc(1, sizeof(*storer));

	if (!storer)
		return NULL;
	storer->fuse_fd = fuse_fd;
	storer->event_fd = event_fd;
	storer->last = &storer->first;
	pthread_mutex_init(&storer->lock, NULL);
	pthread_cond_init(&storer->work, NULL);
	start(storer);
	return storer;
}

/*
 * Makes the stores, then answers ioctl `unique`.  The stores' data must stay mapped until `kfs_storer_done` has reached
 * the returned number; stores and `out` are copied. -errno: nothing will be done.
 */
int64_t kfs_storer_submit(struct kfs_storer *storer, const struct kfs_store *stores, uint32_t count, uint64_t unique,
			  int32_t result, const void *out, uint32_t out_len)
{
	struct job *job = malloc(sizeof(*job) + count * sizeof(*stores) + out_len);
	int64_t number;

	if (!job)
		return -ENOMEM;
	*job = (struct job){ .unique = unique, .result = result, .count = count, .out_len = out_len };
	memcpy(job->stores, stores, count * sizeof(*stores));
	memcpy(job->stores + count, out, out_len);
	pthread_mutex_lock(&storer->lock);
	if (!storer->started && !storer->ending)
		start(storer);
	if (!storer->started || storer->ending) {
		pthread_mutex_unlock(&storer->lock);
		free(job);
		return -EAGAIN;
	}
	*storer->last = job;
	storer->last = &job->next;
	number = (int64_t)++storer->submitted;
	pthread_cond_signal(&storer->work);
	pthread_mutex_unlock(&storer->lock);
	return number;
}

/* The number of jobs done, in the order of their submission. */
uint64_t kfs_storer_done(struct kfs_storer *storer)
{
	return __atomic_load_n(&storer->done, __ATOMIC_ACQUIRE);
}

/* From now on the event descriptor is written after every job. */
int kfs_storer_announce(struct kfs_storer *storer)
{
	pthread_mutex_lock(&storer->lock);
	storer->announcing = true;
	pthread_mutex_unlock(&storer->lock);
	return 0;
}

/* Ends the thread.  Returns -EBUSY if it has jobs left: it then stays, with all that it uses. */
int kfs_storer_free(struct kfs_storer *storer)
{
	bool busy;

	pthread_mutex_lock(&storer->lock);
	storer->ending = true;
	busy = storer->submitted != storer->done;
	pthread_cond_signal(&storer->work);
	pthread_mutex_unlock(&storer->lock);
	if (busy)
		return -EBUSY;
	if (storer->started)
		pthread_join(storer->thread, NULL);
	pthread_cond_destroy(&storer->work);
	pthread_mutex_destroy(&storer->lock);
	free(storer);
	return 0;
}
