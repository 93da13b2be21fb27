/*
 * What is measured over a bus, the same for every transport: PROGRAM WHERE SCENARIO ... COUNT SECONDS
 *
 *   call vec|memfd SIZE [ATTACH_FLAGS [level|edge|poll]]
 *                                        call with SIZE bytes, reply with 8; how the service waits
 *   oneway SIZE                          messages without reply, 16 at a time; time of one
 *   senders N SIZE                       N processes send to one receiver; time of one message
 *   broadcast N [MATCHES]                to N connections that match, with that many matches each; time of one delivery
 *   nonmatching N                        to one that matches, beside N that do not; time of one broadcast
 *   growth KIND LEVEL...                 call of 8 bytes at each level of connections, names, matches or queued
 *   connect                              a connection that is made, and given up
 *   hold connections|queued              makes COUNT of them between two lines, ends with standard input
 *
 * COUNT operations or SECONDS, whichever ends first.  Prints a JSON object of durations in us.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "bench.h"
#include "transport.h"

#define MESSAGE_SIZE 256
#define SENDERS_MAX 32
#define IN_FLIGHT 16 /* messages of all senders together: what kdbus lets one user have in a queue at any time */
#define RECEIVE_BATCH 64
#define NAMES_EACH 250 /* kdbus: at most 256 for each connection */
#define EVENTS 64
#define TOPICS 400

struct run {
	int count;
	double seconds;
	char **arguments;
	int n_arguments;
};

static size_t size_argument(const struct run *run, int index)
{
	must(index < run->n_arguments, "too few arguments");
	return strtoull(run->arguments[index], NULL, 0);
}

/* How a service waits: by level-triggered epoll as sd-event does, by edge-triggered epoll, or by poll(2). */
static enum { LEVEL, EDGE, POLL } waiting = LEVEL;

/* What wait_for() takes. */
static int poller_of(struct connection *c)
{
	struct epoll_event event = { .events = waiting == EDGE ? EPOLLIN | EPOLLET : EPOLLIN };
	int poller;

	if (waiting == POLL)
		return connection_fd(c);
	poller = epoll_create1(EPOLL_CLOEXEC);
	must(epoll_ctl(poller, EPOLL_CTL_ADD, connection_fd(c), &event) == 0, "epoll_ctl");
	return poller;
}

static void wait_for(int poller)
{
	struct epoll_event event;
	struct pollfd fd = { poller, POLLIN, 0 };

	if (waiting == POLL)
		must(poll(&fd, 1, -1) == 1, "poll");
	else
		must(epoll_wait(poller, &event, 1, -1) == 1, "epoll_wait");
}

/* The length of every message is looked at, and the bytes of the first. */
static void check(const struct message *message, size_t size, int first)
{
	struct stat st;

	errno = EPROTO;
	must(message->size == size, "length of a message");
	if (message->memfd >= 0)
		must(!first || (fstat(message->memfd, &st) == 0 && (size_t)st.st_size == size), "memfd");
	else if (first)
		check_bytes(message->data, size);
}

/* --- call and reply --------------------------------------------------------------------------------- */

static void serve_calls(int ready, size_t size, const char *own, unsigned matches)
{
	struct connection *c = connection_open(POOL_SIZE);
	struct address address = connection_address(c);
	struct message message;
	int poller = poller_of(c), first = 1;

	if (own)
		connection_own(c, own);
	for (unsigned topic = 1; topic <= matches; topic++)
		connection_match(c, topic);
	pipe_write(ready, &address, sizeof(address));
	for (int more = 0;;) {
		/* An edge tells of the first of several messages only: there one looks until there are none. */
		if (!more)
			wait_for(poller);
		more = connection_receive(c, &message);
		if (!more)
			continue;
		check(&message, size, first);
		first = 0;
		connection_answer(c, &message);
		more = waiting == EDGE;
	}
}

/* A service in a process of its own; gives its address. */
static struct address start_service(size_t size, const char *own, unsigned matches)
{
	struct address address;
	int ready[2];

	must(pipe(ready) == 0, "pipe");
	if (fork_helper())
		serve_calls(ready[1], size, own, matches);
	pipe_read(ready[0], &address, sizeof(address));
	return address;
}

static int sealed_memfd(size_t size)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	must(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0, "seals");
	return fd;
}

static void time_calls(const struct run *run, const char *part, struct connection *c, const struct address *to,
		       const struct payload *payload)
{
	struct samples s = samples_new(run->count, run->seconds);

	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		connection_call(c, to, payload);
		samples_add(&s, start);
	}
	loop_ended(s.count);
	samples_print(part, &s, 1);
}

static void measure_call(const struct run *run)
{
	size_t size = size_argument(run, 1);
	struct payload payload = { .size = size, .memfd = -1 };
	struct connection *client;
	struct address service;

	if (run->n_arguments > 2)
		bus_want_metadata(size_argument(run, 2));
	if (run->n_arguments > 3)
		waiting = !strcmp(run->arguments[3], "edge") ? EDGE : !strcmp(run->arguments[3], "poll") ? POLL : LEVEL;
	if (!strcmp(run->arguments[0], "memfd"))
		payload.memfd = sealed_memfd(size);
	else
		payload.data = buffer_of(size);
	service = start_service(size, NULL, 0);
	client = connection_open(POOL_SIZE);
	if (run->count == 1) {
		/* The moment when the first call was answered, on the clock of whoever started all this. */
		connection_call(client, &service, &payload);
		print_value("first", "at", now_us());
		return;
	}
	time_calls(run, "time", client, &service, &payload);
}

/* --- messages without reply ------------------------------------------------------------------------- */

static void take_messages(int ready, size_t size)
{
	struct connection *c = connection_open(POOL_SIZE);
	struct address address = connection_address(c);
	int poller = poller_of(c), received = 0;
	struct message message;

	pipe_write(ready, &address, sizeof(address));
	for (;;) {
		if (!connection_receive(c, &message)) {
			wait_for(poller);
			continue;
		}
		check(&message, size, received == 0);
		connection_release(c, &message);
		if (++received % WINDOW == 0)
			pipe_write(ready, "", 1);
	}
}

static void measure_oneway(const struct run *run)
{
	struct samples s = samples_new(run->count / WINDOW, run->seconds);
	size_t size = size_argument(run, 0);
	struct payload payload = { buffer_of(size), size, -1 };
	struct address receiver;
	struct connection *c;
	int ready[2];
	char byte;

	must(pipe(ready) == 0, "pipe");
	if (fork_helper())
		take_messages(ready[1], size);
	pipe_read(ready[0], &receiver, sizeof(receiver));
	c = connection_open(SMALL_POOL_SIZE);
	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		for (int i = 0; i < WINDOW; i++)
			connection_send(c, &receiver, &payload);
		connection_flush(c);
		pipe_read(ready[0], &byte, 1);
		samples_add(&s, start);
	}
	loop_ended(s.count * WINDOW);
	samples_print("time", &s, WINDOW);
}

/* Sends for as long as it gets a byte for every message that may be under way. */
static void send_forever(int credit, const struct address *to, uint8_t number, size_t size)
{
	struct connection *c = connection_open(SMALL_POOL_SIZE);
	uint8_t *data = buffer_of(size);
	struct payload payload = { data, size, -1 };
	char bytes[IN_FLIGHT];

	data[0] = number;
	for (;;) {
		ssize_t n = read(credit, bytes, sizeof(bytes));

		must(n > 0, "credit");
		while (n--)
			connection_send(c, to, &payload);
		connection_flush(c);
	}
}

static void measure_senders(const struct run *run)
{
	struct samples s = samples_new(run->count / RECEIVE_BATCH, run->seconds);
	int senders = (int)size_argument(run, 0), credits[SENDERS_MAX], owed[SENDERS_MAX] = { 0 };
	int share = IN_FLIGHT / senders, poller;
	size_t size = size_argument(run, 1);
	struct connection *c = connection_open(POOL_SIZE);
	struct address address = connection_address(c);
	struct message message;
	char bytes[IN_FLIGHT] = "";

	must(senders <= SENDERS_MAX && share > 0, "number of senders");
	for (int i = 0; i < senders; i++) {
		int credit[2];

		must(pipe(credit) == 0, "pipe");
		if (fork_helper())
			send_forever(credit[0], &address, (uint8_t)i, size);
		credits[i] = credit[1];
		pipe_write(credit[1], bytes, (size_t)share);
	}
	poller = poller_of(c);
	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		for (int i = 0; i < RECEIVE_BATCH;) {
			int sender;

			if (!connection_receive(c, &message)) {
				wait_for(poller);
				continue;
			}
			check(&message, size, 0);
			sender = message.data[0];
			must(sender < senders, "sender");
			connection_release(c, &message);
			if (++owed[sender] == share) {
				pipe_write(credits[sender], bytes, (size_t)share);
				owed[sender] = 0;
			}
			i++;
		}
		samples_add(&s, start);
	}
	loop_ended(s.count * RECEIVE_BATCH);
	samples_print("time", &s, RECEIVE_BATCH);
}

/* --- broadcasts ------------------------------------------------------------------------------------- */

/* What a process with all receivers tells after each broadcast: how often it was woken, and for whom. */
struct wakeups {
	uint32_t matching, others;
};

static void take_broadcasts(int ready, int matching, int others, int matches)
{
	int total = matching + others, poller = epoll_create1(EPOLL_CLOEXEC), received = 0, first = 1;
	struct connection **all = calloc((size_t)total, sizeof(struct connection *));
	struct epoll_event events[EVENTS];
	struct wakeups wakeups = { 0, 0 };

	must(all != NULL && poller >= 0, "memory");
	for (int i = 0; i < total; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)i };

		all[i] = connection_open(SMALL_POOL_SIZE);
		for (int j = 1; j < matches; j++)
			connection_match(all[i], (unsigned)j);
		connection_match(all[i], i < matching ? 0 : 1 + (unsigned)i % TOPICS);
		must(epoll_ctl(poller, EPOLL_CTL_ADD, connection_fd(all[i]), &event) == 0, "epoll_ctl");
	}
	pipe_write(ready, &wakeups, sizeof(wakeups));
	for (;;) {
		int n = epoll_wait(poller, events, EVENTS, -1);

		must(n > 0, "epoll_wait");
		for (int i = 0; i < n; i++) {
			int index = (int)events[i].data.u32;
			struct message message;

			*(index < matching ? &wakeups.matching : &wakeups.others) += 1;
			if (!connection_receive(all[index], &message))
				continue;
			must(index < matching, "a broadcast for somebody else");
			check(&message, MESSAGE_SIZE, first);
			connection_release(all[index], &message);
			received++;
		}
		if (received == matching) {
			pipe_write(ready, &wakeups, sizeof(wakeups));
			wakeups = (struct wakeups){ 0, 0 };
			received = first = 0;
		}
		must(received < matching, "too many broadcasts");
	}
}

static void measure_broadcast(const struct run *run, int matching, int others, int matches)
{
	struct payload payload = { buffer_of(MESSAGE_SIZE), MESSAGE_SIZE, -1 };
	struct samples whole, sending;
	struct wakeups told, sum = { 0, 0 };
	struct connection *c;
	int ready[2], count;

	must(pipe(ready) == 0, "pipe");
	if (fork_helper())
		take_broadcasts(ready[1], matching, others, matches);
	pipe_read(ready[0], &told, sizeof(told));
	c = connection_open(SMALL_POOL_SIZE);
	whole = samples_new(run->count, run->seconds);
	sending = samples_new(run->count, run->seconds);
	loop_begins();
	while (samples_more(&whole)) {
		double start = now_us();

		connection_broadcast(c, &payload);
		connection_flush(c);
		samples_add(&sending, start);
		pipe_read(ready[0], &told, sizeof(told));
		samples_add(&whole, start);
		sum.matching += told.matching;
		sum.others += told.others;
	}
	count = whole.count;
	loop_ended((double)count * matching);
	print_value("wakeups", "matching", (double)sum.matching / count / matching);
	print_value("others", "wakeups", (double)sum.others / count);
	samples_print("send", &sending, 1);
	samples_print("time", &whole, matching);
}

/* --- growth ----------------------------------------------------------------------------------------- */

static struct connection **crowd;
static int crowd_size;

static struct connection *crowd_add(void)
{
	crowd = realloc(crowd, (size_t)(crowd_size + 1) * sizeof(struct connection *));
	must(crowd != NULL, "memory");
	return crowd[crowd_size++] = connection_open(SMALL_POOL_SIZE);
}

/* Until there are `level` connections in all, the service's and the client's among them. */
static void grow_connections(struct connection *client, int level)
{
	(void)client;
	while (crowd_size + 2 < level)
		crowd_add();
}

/* Until there are `level` names, the service's among them. */
static void grow_names(struct connection *client, int level)
{
	static int names = 1;
	char name[64];

	(void)client;
	for (; names < level; names++) {
		if (names % NAMES_EACH == 1)
			crowd_add();
		snprintf(name, sizeof(name), "org.kdbusfs.Bench.n%d", names);
		connection_own(crowd[crowd_size - 1], name);
	}
}

/* Until the client has `level` matches; the service has as many as the highest level from the start. */
static void grow_matches(struct connection *client, int level)
{
	static int matches;

	while (matches < level)
		connection_match(client, (unsigned)++matches);
}

/* Until `level` messages lie unread in the queues of others, 16 in each: kdbus lets one user have no more anywhere. */
static void grow_queued(struct connection *client, int level)
{
	static int queued;
	struct payload payload = { buffer_of(MESSAGE_SIZE), MESSAGE_SIZE, -1 };
	struct address to = { 0 };

	for (; queued < level; queued++) {
		if (queued % WINDOW == 0)
			crowd_add();
		to = connection_address(crowd[crowd_size - 1]);
		connection_send(client, &to, &payload);
		connection_flush(client);
	}
	free((void *)(uintptr_t)payload.data);
}

static const struct {
	const char *kind;
	void (*grow)(struct connection *client, int level);
} growths[] = {
	{ "connections", grow_connections },
	{ "names", grow_names },
	{ "matches", grow_matches },
	{ "queued", grow_queued },
	{ NULL, NULL },
};

static void measure_growth(const struct run *run)
{
	const char *kind = run->arguments[0], *own = NULL;
	struct payload payload = { buffer_of(8), 8, -1 };
	unsigned matches = 0;
	struct connection *client;
	struct address service;
	int k = 0;

	while (growths[k].kind && strcmp(growths[k].kind, kind))
		k++;
	must(growths[k].kind != NULL, kind);
	if (!strcmp(kind, "names"))
		own = "org.kdbusfs.Bench.service";
	for (int i = 1; i < run->n_arguments; i++) {
		/* A service whose matches grow would have to be told to; one for each level does as well. */
		int level = (int)size_argument(run, i);
		char part[32];

		if (i == 1 || !strcmp(kind, "matches")) {
			matches = strcmp(kind, "matches") ? 0 : (unsigned)level;
			service = start_service(8, own, matches);
		}
		if (own)
			service = (struct address){ .name = "org.kdbusfs.Bench.service" };
		if (i == 1)
			client = connection_open(POOL_SIZE);
		growths[k].grow(client, level);
		snprintf(part, sizeof(part), "%d", level);
		time_calls(run, part, client, &service, &payload);
	}
}

/* --- connections ------------------------------------------------------------------------------------ */

static void measure_connect(const struct run *run)
{
	struct samples opens = samples_new(run->count, run->seconds), closes = samples_new(run->count, run->seconds);

	loop_begins();
	while (samples_more(&opens)) {
		double start = now_us();
		struct connection *c = connection_open(SMALL_POOL_SIZE);

		samples_add(&opens, start);
		start = now_us();
		connection_close(c);
		samples_add(&closes, start);
	}
	loop_ended(opens.count);
	samples_print("connect", &opens, 1);
	samples_print("disconnect", &closes, 1);
}

/* Says a line before and after the daemon has got something to hold, and stays until somebody has looked. */
static void measure_hold(const struct run *run)
{
	int queued = !strcmp(run->arguments[0], "queued");
	struct connection *client = connection_open(SMALL_POOL_SIZE);
	char byte;

	for (int i = 0; queued && i < run->count / WINDOW; i++)
		crowd_add();
	puts("before");
	fflush(stdout);
	must(read(0, &byte, 1) == 1, "standard input");
	if (queued) {
		struct payload payload = { buffer_of(MESSAGE_SIZE), MESSAGE_SIZE, -1 };

		for (int i = 0; i < run->count / WINDOW * WINDOW; i++) {
			struct address to = connection_address(crowd[i / WINDOW]);

			connection_send(client, &to, &payload);
		}
		connection_flush(client);
	} else {
		grow_connections(client, run->count + 2);
	}
	puts("after");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	exit(0);
}

int main(int argc, char **argv)
{
	struct run run;
	const char *what;

	if (argc < 5) {
		fprintf(stderr, "usage: %s WHERE SCENARIO ... COUNT SECONDS\n", argv[0]);
		return 2;
	}
	what = argv[2];
	run.arguments = argv + 3;
	run.n_arguments = argc - 5;
	run.count = atoi(argv[argc - 2]);
	run.seconds = atof(argv[argc - 1]);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	bus_begin(argv[1]);
	if (!strcmp(what, "call") && run.n_arguments >= 2)
		measure_call(&run);
	else if (!strcmp(what, "oneway"))
		measure_oneway(&run);
	else if (!strcmp(what, "senders"))
		measure_senders(&run);
	else if (!strcmp(what, "broadcast"))
		measure_broadcast(&run, (int)size_argument(&run, 0), 0,
				  run.n_arguments > 1 ? (int)size_argument(&run, 1) : 1);
	else if (!strcmp(what, "nonmatching"))
		measure_broadcast(&run, 1, (int)size_argument(&run, 0), 1);
	else if (!strcmp(what, "growth") && run.n_arguments >= 2)
		measure_growth(&run);
	else if (!strcmp(what, "connect"))
		measure_connect(&run);
	else if (!strcmp(what, "hold") && run.n_arguments == 1)
		measure_hold(&run);
	else
		return 2;
	print_operations();
	end_helpers();
	return 0;
}
