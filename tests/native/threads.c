/*
 * threads SECONDS: drives what several threads share in kdbusfs/native (readers, alarm.c, store.c) as the daemon
 * does, for `make tsan`.  ThreadSanitizer tells of data races and of locks in changing order; the program itself fails
 * if a request is done twice or never, or if it takes longer than it may.
 */
#define _GNU_SOURCE
#include "internal_alarm.h"
#include "internal_channel.h"
#include "ownership.h"
#include "store.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define READERS 6
#define UIDS 24
#define STORES 3
#define NODE 7

static uint64_t limit;

static void fail(const char *what)
{
	fprintf(stderr, "threads: %s\n", what);
	exit(1);
}

static int is_over(void)
{
	return kfs_now_ns() >= limit;
}

static void pause_us(long us)
{
	const struct timespec time = { 0, us * 1000 };

	nanosleep(&time, NULL);
}

static void start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	if (pthread_create(thread, NULL, run, argument))
		fail("no thread");
}

/* --- ownership: `core` belongs to the owner alone, and is no atomic: ThreadSanitizer watches it ------------ */

static struct kfs_ownership *ownership;
static uint64_t core, handed_over;
static atomic_int left, answered;

static void detach(void *context)
{
	(void)context;
	handed_over++;
}

static void answer(void *context)
{
	(void)context;
	atomic_fetch_add(&answered, 1);
}

/* One request: an access to the memory of a client, which sometimes is held up for longer than is waited for. */
static void serve(struct kfs_reader *reader, unsigned *seed, uint64_t number)
{
	uint64_t ticket;
	int how = rand_r(seed) % 64, r;

	kfs_reader_turn_begins(reader);
	if (!kfs_reader_may_begin(reader, number % UIDS) || kfs_reader_has_had_turn(reader, number % UIDS))
		kfs_reader_new_round(reader);
	/* Pid 1 lives, and a number that no thread has is that of a client that was killed. */
	kfs_reader_request(reader, (uint32_t)rand_r(seed) % UIDS, how == 1 ? 0x7ffffff0 : 1, number);
	core++;
	if (kfs_access_begin(&ticket) == 0) {
		pause_us(how < 2 ? 60000 : how < 4 ? 1500 : 10);
		r = kfs_access_end(ticket);
		if (r != 0 && r != -ECANCELED)
			fail("an access ended otherwise");
	}
	core++;
	if (how == 5)
		kfs_reader_interrupt(reader, number - 3);
	if (how == 6)
		for (uint64_t end = kfs_now_ns() + 3000000; kfs_now_ns() < end;)
			kfs_yield();
	kfs_reader_is_abandoned(reader);
	kfs_reader_request_ends(reader);
	kfs_reader_turn_ends(reader);
}

static void *reader(void *argument)
{
	struct kfs_reader *reader = kfs_reader_new(ownership, detach, answer, NULL);
	unsigned seed = (unsigned)(uintptr_t)argument;
	int kind;

	if (!reader)
		fail("no memory");
	kind = kfs_reader_take(reader);
	while (kind == KFS_OWNER && !is_over()) {
		serve(reader, &seed, ++core);
		kind = kfs_reader_pass(reader);
		if (!kind)
			kind = KFS_OWNER;
		if (kfs_reader_is_hurried(reader))
			kfs_reader_found_nothing(reader);
	}
	if (kind == KFS_OWNER)
		kfs_reader_end(reader);
	else if (kind != KFS_END)
		fail("no turn");
	kfs_reader_free(reader);
	atomic_fetch_add(&left, 1);
	return NULL;
}

static void *onlooker(void *argument)
{
	struct kfs_owners owners;

	(void)argument;
	for (int i = 0; !is_over(); i++) {
		kfs_ownership_look(ownership, &owners);
		kfs_ownership_starve(ownership, i % 64 == 0);
		pause_us(500);
	}
	return NULL;
}

/* A reader whose owner has ended the service stays stuck for ever by design, so the threads are not waited for. */
static void own_together(int event_fd)
{
	struct kfs_owners owners;
	pthread_t thread;

	ownership = kfs_ownership_new(event_fd);
	if (!ownership)
		fail("no memory");
	for (uintptr_t i = 0; i < READERS; i++)
		start(&thread, reader, (void *)(i + 1));
	start(&thread, onlooker, NULL);
	while (!is_over())
		pause_us(10000);
	for (int i = 0; i < 500 && atomic_load(&left) == 0; i++)
		pause_us(10000);
	if (!atomic_load(&left))
		fail("no reader has ended");
	kfs_ownership_look(ownership, &owners);
	printf("ownership: %llu preempted, %llu abandoned, %llu yielded, %d answered by others\n",
	       (unsigned long long)owners.preempted, (unsigned long long)owners.abandoned,
	       (unsigned long long)owners.yields, atomic_load(&answered));
	if (!owners.preempted || !owners.yields)
		fail("nobody was preempted, or nobody has yielded: that was no test");
}

/* --- alarm ------------------------------------------------------------------------------------------- */

static atomic_int rings;

static void *kernel(void *argument)
{
	int fd = *(int *)argument;
	char notice[256];

	while (recv(fd, notice, sizeof(notice), 0) > 0) {
		atomic_fetch_add(&rings, 1);
		if (send(fd, "a request", 9, MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static void *teller(void *argument)
{
	const uint64_t one = 1;

	while (!is_over()) {
		if (write(*(int *)argument, &one, sizeof(one)) != sizeof(one))
			fail("no news");
		pause_us(700);
	}
	return NULL;
}

static void sleep_and_wake(void)
{
	int fuse[2], tree[2], event = eventfd(0, EFD_NONBLOCK), slept = 0, news = 0;
	pthread_t threads[2];
	struct kfs_alarm *alarm;
	char request[64];
	uint64_t count;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fuse) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, tree) || event < 0)
		fail("no sockets");
	alarm = kfs_alarm_new(fuse[0], tree[0], event);
	if (!alarm)
		fail("no memory");
	start(&threads[0], kernel, &fuse[1]);
	start(&threads[1], teller, &event);
	kfs_alarm_opened(alarm, NODE);
	while (!is_over()) {
		if (!kfs_alarm_watches(alarm))
			fail("the alarm does not watch");
		if (kfs_alarm_has_news(alarm)) {
			kfs_alarm_seen(alarm);
			news += read(event, &count, sizeof(count)) == sizeof(count);
		}
		if (!kfs_alarm_sleep(alarm, kfs_now_ns() + (slept % 3 ? 2000000 : 300000)))
			continue;
		/* Nothing but the alarm ends this: a wake-up that was lost would be a hang. */
		if (recv(fuse[0], request, sizeof(request), 0) <= 0)
			fail("no request");
		slept++;
		kfs_alarm_awake(alarm);
		if (slept % 16 == 0) {
			kfs_alarm_released(alarm, NODE);
			kfs_alarm_opened(alarm, NODE);
		}
		kfs_alarm_more(alarm);
	}
	pthread_join(threads[1], NULL);
	shutdown(fuse[0], SHUT_RDWR);
	pthread_join(threads[0], NULL);
	kfs_alarm_free(alarm);
	printf("alarm: %d sleeps, %d rings, %d news\n", slept, atomic_load(&rings), news);
	if (!slept || !news)
		fail("the reader has not slept, or had no news: that was no test");
	for (int i = 0; i < 2; i++) {
		close(fuse[i]);
		close(tree[i]);
	}
	close(event);
}

/* --- store ------------------------------------------------------------------------------------------- */

static struct kfs_storer *storer;
static char pages[STORES][4096];
static atomic_int submitted;

static void *swallow(void *argument)
{
	static char notice[8192];

	while (recv(*(int *)argument, notice, sizeof(notice), 0) > 0)
		;
	return NULL;
}

static void *submitter(void *argument)
{
	int number = (int)(uintptr_t)argument;
	const struct kfs_store what[2] = {
		{ NODE, 0, 4096, pages[number] },
		{ NODE, 4096, 100, pages[number] },
	};
	int64_t ticket;

	while (!is_over()) {
		memset(pages[number], number, sizeof(pages[number]));
		ticket = kfs_storer_submit(storer, what, 2, 2, 0, "an answer", 9);
		if (ticket < 0)
			fail("not taken");
		atomic_fetch_add(&submitted, 1);
		/* The data belong to the storer until it says that they were written. */
		while (kfs_storer_done(storer) < (uint64_t)ticket)
			pause_us(20);
	}
	return NULL;
}

static void store_together(void)
{
	int fuse[2], event = eventfd(0, EFD_NONBLOCK);
	pthread_t threads[STORES], kernel_thread;
	uint64_t done;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fuse) || event < 0)
		fail("no sockets");
	storer = kfs_storer_new(fuse[0], event);
	if (!storer)
		fail("no memory");
	start(&kernel_thread, swallow, &fuse[1]);
	for (uintptr_t i = 0; i < STORES; i++)
		start(&threads[i], submitter, (void *)i);
	pause_us(1000);
	kfs_storer_announce(storer);
	for (int i = 0; i < STORES; i++)
		pthread_join(threads[i], NULL);
	done = kfs_storer_done(storer);
	printf("store: %d submitted, %llu done\n", atomic_load(&submitted), (unsigned long long)done);
	if (done != (uint64_t)atomic_load(&submitted) || !done)
		fail("not all was done");
	if (kfs_storer_free(storer) != 0)
		fail("the storer is busy with nothing");
	shutdown(fuse[0], SHUT_RDWR);
	pthread_join(kernel_thread, NULL);
	for (int i = 0; i < 2; i++)
		close(fuse[i]);
	close(event);
}

int main(int argc, char **argv)
{
	const uint64_t part = (uint64_t)(argc > 1 ? atof(argv[1]) * 1e9 : 1e9) / 3;
	int event = eventfd(0, EFD_NONBLOCK);

	alarm((unsigned)(part / 1000000000u * 3 + 60));
	setvbuf(stdout, NULL, _IOLBF, 0);
	limit = kfs_now_ns() + part;
	sleep_and_wake();
	limit = kfs_now_ns() + part;
	store_together();
	limit = kfs_now_ns() + part;
	own_together(event);
	return 0;
}
