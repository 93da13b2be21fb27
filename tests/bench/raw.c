/*
 * What lies beneath a call, and the floors beside it: raw WHERE SCENARIO ... COUNT SECONDS
 *
 *   MOUNTPOINT noop       FREE of a wrong offset
 *   MOUNTPOINT poll       poll(2) of a connection
 *   MOUNTPOINT commands   SEND, RECV and FREE of a message of 256 bytes, and a RECV that finds nothing, in turn
 *   MOUNTPOINT open       open and close of an endpoint
 *   MOUNTPOINT copy       SEND of 1 and 2 MiB, beside what copies them once
 *   FILE floor            both of the first two on the file of `floor`, with the same arguments
 *   - call SIZE           SIZE bytes and an answer of 8 by a pair of stream sockets
 *   - oneway SIZE         messages by a pair of packet sockets, 16 at a time; time of one
 *
 * COUNT operations or SECONDS, whichever ends first.  Prints a JSON object of durations in us.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "kdbus_raw.h"

#define POOL_SIZE (16UL << 20)

/* --- round trips ------------------------------------------------------------------------------------ */

static struct samples time_free(int fd, int count, double seconds)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = 8 };
	struct samples s = samples_new(count, seconds);

	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		must(ioctl(fd, KDBUS_CMD_FREE, &cmd) < 0 && errno == ENXIO, "FREE of a wrong offset");
		samples_add(&s, start);
	}
	loop_ended(s.count);
	return s;
}

static struct samples time_poll(int fd, int count, double seconds)
{
	struct samples s = samples_new(count, seconds);

	loop_begins();
	while (samples_more(&s)) {
		struct pollfd pfd = { fd, POLLIN, 0 };
		double start = now_us();

		must(poll(&pfd, 1, 0) == 0, "poll");
		samples_add(&s, start);
	}
	loop_ended(s.count);
	return s;
}

static void measure_floor(const char *path, int count, double seconds)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct samples s;

	must(fd >= 0, path);
	s = time_free(fd, count, seconds);
	samples_print("noop", &s, 1);
	s = time_poll(fd, count, seconds);
	samples_print("poll", &s, 1);
}

static void measure_bare(const char *mountpoint, int polled, int count, double seconds)
{
	char path[BUS_PATH_SIZE];
	struct bus bus;
	struct samples s;

	make_bus(mountpoint, path);
	bus = bus_connect(path, POOL_SIZE, 0);
	s = polled ? time_poll(bus.fd, count, seconds) : time_free(bus.fd, count, seconds);
	samples_print("time", &s, 1);
}

static void measure_commands(const char *mountpoint, int count, double seconds)
{
	static const char *const names[] = { "SEND", "RECV", "FREE", "RECV of nothing" };
	struct samples all[4];
	char path[BUS_PATH_SIZE];
	uint8_t data[256] = "";
	struct bus from, to;

	make_bus(mountpoint, path);
	from = bus_connect(path, POOL_SIZE, 0);
	to = bus_connect(path, POOL_SIZE, 0);
	for (int i = 0; i < 4; i++)
		all[i] = samples_new(count, seconds);
	loop_begins();
	while (samples_more(&all[0])) {
		struct builder b;
		uint64_t offset;
		double start;

		begin_message(&from, &b, to.id, 0);
		add_vec(&b, data, sizeof(data));
		start = now_us();
		send_message(&from, &b, 0);
		samples_add(&all[0], start);
		start = now_us();
		must(receive(&to, &offset) != NULL, "RECV");
		samples_add(&all[1], start);
		start = now_us();
		free_slice(&to, offset);
		samples_add(&all[2], start);
		start = now_us();
		must(receive(&to, &offset) == NULL, "RECV of nothing");
		samples_add(&all[3], start);
	}
	loop_ended(all[0].count);
	for (int i = 0; i < 4; i++)
		samples_print(names[i], &all[i], 1);
}

static void measure_open(const char *mountpoint, int count, double seconds)
{
	struct samples s = samples_new(count, seconds);
	char path[BUS_PATH_SIZE];

	make_bus(mountpoint, path);
	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();
		int fd = open(path, O_RDWR | O_CLOEXEC);

		must(fd >= 0, path);
		close(fd);
		samples_add(&s, start);
	}
	loop_ended(s.count);
	samples_print("time", &s, 1);
}

/* --- sockets ---------------------------------------------------------------------------------------- */

/* Everything or the end of the program. */
static void transfer(int fd, uint8_t *data, size_t size, int out)
{
	while (size) {
		ssize_t n = out ? write(fd, data, size) : read(fd, data, size);

		if (n <= 0)
			_exit(1);
		data += n;
		size -= (size_t)n;
	}
}

static int poller_of(int fd)
{
	struct epoll_event event = { .events = EPOLLIN };
	int poller = epoll_create1(EPOLL_CLOEXEC);

	must(epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
	return poller;
}

static void wait_for(int poller)
{
	struct epoll_event event;

	must(epoll_wait(poller, &event, 1, -1) == 1, "epoll_wait");
}

static void measure_socket_calls(size_t size, int count, double seconds)
{
	struct samples s = samples_new(count, seconds);
	uint8_t *data = buffer_of(size), answer[REPLY_SIZE] = REPLY;
	int pair[2];

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
	if (fork_helper()) {
		int poller = poller_of(pair[1]);

		for (int first = 1;; first = 0) {
			wait_for(poller);
			transfer(pair[1], data, size, 0);
			if (first)
				check_bytes(data, size);
			transfer(pair[1], answer, sizeof(answer), 1);
		}
	}
	close(pair[1]);
	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		transfer(pair[0], data, size, 1);
		transfer(pair[0], answer, sizeof(answer), 0);
		samples_add(&s, start);
	}
	loop_ended(s.count);
	samples_print("time", &s, 1);
}

static void measure_socket_oneway(size_t size, int count, double seconds)
{
	struct samples s = samples_new(count / WINDOW, seconds);
	uint8_t *data = buffer_of(size);
	int pair[2], ready[2];
	char byte;

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0 && pipe(ready) == 0, "socketpair");
	if (fork_helper()) {
		int poller = poller_of(pair[1]);

		for (int received = 0;;) {
			ssize_t n = recv(pair[1], data, size, MSG_DONTWAIT);

			if (n < 0) {
				wait_for(poller);
				continue;
			}
			must((size_t)n == size, "length of a message");
			if (++received % WINDOW == 0)
				pipe_write(ready[1], "", 1);
		}
	}
	loop_begins();
	while (samples_more(&s)) {
		double start = now_us();

		for (int i = 0; i < WINDOW; i++)
			must(send(pair[0], data, size, 0) == (ssize_t)size, "send");
		pipe_read(ready[0], &byte, 1);
		samples_add(&s, start);
	}
	loop_ended(s.count * WINDOW);
	samples_print("time", &s, WINDOW);
}

/* --- copies ----------------------------------------------------------------------------------------- */

static void time_send(struct bus *bus, const struct bus *to, const void *data, uint64_t size, struct samples *s)
{
	struct builder b;
	uint64_t offset;
	double start;

	begin_message(bus, &b, to->id, 0);
	add_vec(&b, data, size);
	start = now_us();
	send_message(bus, &b, 0);
	samples_add(s, start);
	must(receive(to, &offset) != NULL, "RECV");
	free_slice(to, offset);
}

static void time_readv(void *to, void *from, size_t size, struct samples *s)
{
	struct iovec local = { to, size }, remote = { from, size };
	double start = now_us();

	must(process_vm_readv(helpers[0], &local, 1, &remote, 1, 0) == (ssize_t)size, "process_vm_readv");
	samples_add(s, start);
}

static void measure_copy(const char *mountpoint, int count, double seconds)
{
	struct samples send1 = samples_new(count, seconds), send2 = samples_new(count, seconds);
	struct samples read1 = samples_new(count, seconds), read2 = samples_new(count, seconds);
	struct samples copied = samples_new(count, seconds);
	uint8_t *data = buffer_of(2 * MIB), *target;
	int memfd = memfd_create("bench", MFD_CLOEXEC);
	char path[BUS_PATH_SIZE];
	struct bus source, sink;

	make_bus(mountpoint, path);
	source = bus_connect(path, POOL_SIZE, 0);
	sink = bus_connect(path, POOL_SIZE, 0);
	must(ftruncate(memfd, (off_t)(2 * MIB)) == 0, "memfd");
	target = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	must(target != MAP_FAILED, "mmap");
	if (fork_helper())
		for (;;)
			pause();
	loop_begins();
	for (int i = 0; samples_more(&send1); i++) {
		double start;

		/* In turn, because what comes second finds bytes of the first in the cache. */
		for (int j = 0; j < 2; j++) {
			int two = (i + j) % 2;

			time_send(&source, &sink, data, two ? 2 * MIB : MIB, two ? &send2 : &send1);
			time_readv(target, data, two ? 2 * MIB : MIB, two ? &read2 : &read1);
		}
		start = now_us();
		memcpy(target, data, 2 * MIB);
		__asm__ volatile("" : : "r"(target) : "memory");
		samples_add(&copied, start);
	}
	loop_ended(2 * send1.count);
	samples_print("send 1 MiB", &send1, 1);
	samples_print("send 2 MiB", &send2, 1);
	samples_print("readv 1 MiB", &read1, 1);
	samples_print("readv 2 MiB", &read2, 1);
	samples_print("memcpy 2 MiB", &copied, 1);
}

int main(int argc, char **argv)
{
	const char *what, *where;
	double seconds;
	int count;

	if (argc < 5) {
		fprintf(stderr, "usage: %s WHERE SCENARIO ... COUNT SECONDS\n", argv[0]);
		return 2;
	}
	where = argv[1];
	what = argv[2];
	count = atoi(argv[argc - 2]);
	seconds = atof(argv[argc - 1]);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!strcmp(what, "noop") || !strcmp(what, "poll"))
		measure_bare(where, *what == 'p', count, seconds);
	else if (!strcmp(what, "floor"))
		measure_floor(where, count, seconds);
	else if (!strcmp(what, "call") && argc == 6)
		measure_socket_calls(strtoull(argv[3], NULL, 10), count, seconds);
	else if (!strcmp(what, "oneway") && argc == 6)
		measure_socket_oneway(strtoull(argv[3], NULL, 10), count, seconds);
	else if (!strcmp(what, "copy"))
		measure_copy(where, count, seconds);
	else if (!strcmp(what, "commands"))
		measure_commands(where, count, seconds);
	else if (!strcmp(what, "open"))
		measure_open(where, count, seconds);
	else
		return 2;
	print_operations();
	end_helpers();
	return 0;
}
