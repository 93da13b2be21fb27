/*
 * One measurement; prints a JSON object of durations in us.
 *
 *   measure noop MOUNTPOINT COUNT              FREE of a wrong offset
 *   measure poll MOUNTPOINT COUNT              poll(2) of a connection
 *   measure floor FILE COUNT                   both of the file of `floor`, with the same arguments
 *   measure call MOUNTPOINT vec|memfd SIZE COUNT   call with SIZE bytes, reply with 8
 *   measure socket SIZE COUNT                  the same by a pair of stream sockets
 *   measure oneway MOUNTPOINT SIZE COUNT       messages without reply, 16 at a time; time of one
 *   measure broadcast MOUNTPOINT RECEIVERS COUNT   to all of them; time of one delivery with its RECV and FREE
 *   measure copy MOUNTPOINT COUNT              SEND of 1 and 2 MiB, beside what copies them once
 *   measure connect MOUNTPOINT COUNT           open and close, HELLO
 *   measure idle MOUNTPOINT COUNT              makes COUNT connections, prints a line, waits for the end of stdin
 */
#define _GNU_SOURCE
#include "bench.h"

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define REPLY_SIZE 8
#define WINDOW 16 /* what one user may have in a queue before it is accounted */
#define MIB (1UL << 20)
#define TIMEOUT_NS 20000000000ULL

static pid_t helper;

/* A process beside this one that never outlives it. */
static int fork_helper(void)
{
	pid_t parent = getpid();

	helper = fork();
	must(helper >= 0, "fork");
	if (helper == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return helper == 0;
}

static void end_helper(void)
{
	kill(helper, SIGKILL);
	waitpid(helper, NULL, 0);
}

static void *buffer_of(size_t size)
{
	void *data = aligned_alloc(4096, (size + 4095) & ~4095UL);

	must(data != NULL, "memory");
	memset(data, 'x', size);
	return data;
}

static uint64_t read_id(int fd)
{
	uint64_t id;

	must(read(fd, &id, sizeof(id)) == sizeof(id), "helper");
	return id;
}

static void write_id(int fd, uint64_t id)
{
	must(write(fd, &id, sizeof(id)) == sizeof(id), "helper");
}

/* --- round trips ------------------------------------------------------------------------------------ */

static struct samples time_free(int fd, int count)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = 8 };
	struct samples s = samples_new(count);

	for (s.count = 0; s.count < count; s.count++) {
		double start = now_us();

		must(ioctl(fd, KDBUS_CMD_FREE, &cmd) < 0 && errno == ENXIO, "FREE of a wrong offset");
		s.us[s.count] = now_us() - start;
	}
	return s;
}

static struct samples time_poll(int fd, int count)
{
	struct samples s = samples_new(count);

	for (s.count = 0; s.count < count; s.count++) {
		struct pollfd pfd = { fd, POLLIN, 0 };
		double start = now_us();

		must(poll(&pfd, 1, 0) == 0, "poll");
		s.us[s.count] = now_us() - start;
	}
	return s;
}

static void measure_floor(const char *path, int count)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct samples s;

	must(fd >= 0, path);
	s = time_free(fd, count);
	samples_print("noop", &s, 1, 0);
	s = time_poll(fd, count);
	samples_print("poll", &s, 1, 1);
}

static void measure_bare(const char *mountpoint, int polled, int count)
{
	char path[512];
	struct bus bus;
	struct samples s;

	make_bus(mountpoint, path);
	bus = bus_connect(path);
	s = polled ? time_poll(bus.fd, count) : time_free(bus.fd, count);
	samples_print("time", &s, 1, 1);
}

/* --- call and reply --------------------------------------------------------------------------------- */

static void close_files(const struct kdbus_msg *msg)
{
	const struct kdbus_item *item = msg->items;
	const uint8_t *end = (const uint8_t *)msg + msg->size;

	for (; (const uint8_t *)item + ITEM_HEADER <= end;
	     item = (const void *)((const uint8_t *)item + ALIGN8(item->size)))
		if (item->type == KDBUS_ITEM_PAYLOAD_MEMFD) {
			must(item->memfd.fd >= 0, "descriptor of a memfd");
			close(item->memfd.fd);
		}
}

static void serve_calls(const char *path, int ready)
{
	struct epoll_event event = { .events = EPOLLIN };
	uint8_t answer[REPLY_SIZE] = "reply";
	struct bus bus = bus_connect(path);
	int poller = epoll_create1(EPOLL_CLOEXEC);

	must(epoll_ctl(poller, EPOLL_CTL_ADD, bus.fd, &event) == 0, "epoll_ctl");
	write_id(ready, bus.id);
	for (;;) {
		const struct kdbus_msg *msg;
		struct kdbus_msg *reply;
		uint64_t offset, source, cookie;
		struct builder b;

		must(epoll_wait(poller, &event, 1, -1) == 1, "epoll_wait");
		msg = receive(&bus, &offset);
		if (!msg)
			continue;
		source = msg->src_id;
		cookie = msg->cookie;
		close_files(msg);
		free_slice(&bus, offset);
		reply = begin_message(&bus, &b, source, 0);
		reply->cookie_reply = cookie;
		add_vec(&b, answer, sizeof(answer));
		send_message(&bus, &b, 0);
	}
}

static int sealed_memfd(uint64_t size)
{
	int fd = memfd_create("bench", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	must(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
	must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0, "seals");
	return fd;
}

static void measure_call(const char *mountpoint, int by_memfd, uint64_t size, int count)
{
	struct samples s = samples_new(count);
	struct bus bus;
	char path[512];
	void *data = NULL;
	int ids[2], memfd = -1;
	uint64_t service;

	make_bus(mountpoint, path);
	must(pipe(ids) == 0, "pipe");
	if (fork_helper())
		serve_calls(path, ids[1]);
	service = read_id(ids[0]);
	bus = bus_connect(path);
	if (by_memfd)
		memfd = sealed_memfd(size);
	else
		data = buffer_of(size);
	for (s.count = 0; s.count < count; s.count++) {
		double start = now_us();
		struct timespec now;
		struct kdbus_msg *msg;
		struct builder b;
		uint64_t offset;

		msg = begin_message(&bus, &b, service, KDBUS_MSG_EXPECT_REPLY);
		clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
		msg->timeout_ns = (uint64_t)now.tv_sec * 1000000000 + TIMEOUT_NS;
		if (by_memfd) {
			struct kdbus_memfd *item = add_item(&b, KDBUS_ITEM_PAYLOAD_MEMFD, sizeof(*item));

			item->size = size;
			item->fd = memfd;
		} else {
			add_vec(&b, data, size);
		}
		offset = send_message(&bus, &b, KDBUS_SEND_SYNC_REPLY);
		free_slice(&bus, offset);
		s.us[s.count] = now_us() - start;
	}
	samples_print("time", &s, 1, 1);
	end_helper();
}

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

static void measure_socket(size_t size, int count)
{
	struct samples s = samples_new(count);
	uint8_t *data = buffer_of(size), answer[REPLY_SIZE] = "reply";
	int pair[2];

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
	if (fork_helper()) {
		struct epoll_event event = { .events = EPOLLIN };
		int poller = epoll_create1(EPOLL_CLOEXEC);

		must(epoll_ctl(poller, EPOLL_CTL_ADD, pair[1], &event) == 0, "epoll_ctl");
		for (;;) {
			must(epoll_wait(poller, &event, 1, -1) == 1, "epoll_wait");
			transfer(pair[1], data, size, 0);
			transfer(pair[1], answer, sizeof(answer), 1);
		}
	}
	close(pair[1]);
	for (s.count = 0; s.count < count; s.count++) {
		double start = now_us();

		transfer(pair[0], data, size, 1);
		transfer(pair[0], answer, sizeof(answer), 0);
		s.us[s.count] = now_us() - start;
	}
	samples_print("time", &s, 1, 1);
	end_helper();
}

/* --- messages without reply ------------------------------------------------------------------------- */

static void serve_oneway(const char *path, int ready)
{
	struct bus bus = bus_connect(path);
	struct pollfd pfd = { bus.fd, POLLIN, 0 };
	int received = 0;

	write_id(ready, bus.id);
	for (;;) {
		uint64_t offset;

		if (!receive(&bus, &offset)) {
			must(poll(&pfd, 1, -1) == 1, "poll");
			continue;
		}
		free_slice(&bus, offset);
		if (++received % WINDOW == 0)
			write_id(ready, 0);
	}
}

static void measure_oneway(const char *mountpoint, uint64_t size, int count)
{
	struct samples s = samples_new(count / WINDOW);
	void *data = buffer_of(size);
	struct bus bus;
	char path[512];
	uint64_t receiver;
	int ids[2];

	make_bus(mountpoint, path);
	must(pipe(ids) == 0, "pipe");
	if (fork_helper())
		serve_oneway(path, ids[1]);
	receiver = read_id(ids[0]);
	bus = bus_connect(path);
	for (s.count = 0; s.count < count / WINDOW; s.count++) {
		double start = now_us();

		for (int i = 0; i < WINDOW; i++) {
			struct builder b;

			begin_message(&bus, &b, receiver, 0);
			add_vec(&b, data, size);
			send_message(&bus, &b, 0);
		}
		read_id(ids[0]);
		s.us[s.count] = now_us() - start;
	}
	samples_print("time", &s, WINDOW, 1);
	end_helper();
}

static void add_match(const struct bus *bus)
{
	struct kdbus_cmd_match *cmd;
	struct builder b;

	cmd = begin(&b, sizeof(*cmd));
	memset(add_item(&b, KDBUS_ITEM_BLOOM_MASK, BLOOM_SIZE), 1, BLOOM_SIZE);
	cmd->size = b.size;
	must(ioctl(bus->fd, KDBUS_CMD_MATCH_ADD, cmd) == 0, "MATCH_ADD");
}

static void measure_broadcast(const char *mountpoint, int receivers, int count)
{
	struct samples whole = samples_new(count), sending = samples_new(count);
	struct bus *buses = calloc((size_t)receivers, sizeof(*buses)), sender;
	uint8_t data[256] = "news";
	char path[512];

	make_bus(mountpoint, path);
	sender = bus_connect(path);
	for (int i = 0; i < receivers; i++) {
		buses[i] = bus_connect(path);
		add_match(&buses[i]);
	}
	for (int i = 0; i < count; i++) {
		struct kdbus_bloom_filter *filter;
		double start = now_us();
		struct builder b;

		begin_message(&sender, &b, KDBUS_DST_ID_BROADCAST, KDBUS_MSG_SIGNAL);
		add_vec(&b, data, sizeof(data));
		filter = add_item(&b, KDBUS_ITEM_BLOOM_FILTER, sizeof(*filter) + BLOOM_SIZE);
		memset(filter->data, 1, BLOOM_SIZE);
		send_message(&sender, &b, 0);
		sending.us[sending.count++] = now_us() - start;
		for (int j = 0; j < receivers; j++) {
			uint64_t offset;

			must(receive(&buses[j], &offset) != NULL, "broadcast");
			free_slice(&buses[j], offset);
		}
		whole.us[whole.count++] = now_us() - start;
	}
	samples_print("send", &sending, receivers, 0);
	samples_print("time", &whole, receivers, 1);
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
	s->us[s->count++] = now_us() - start;
	must(receive(to, &offset) != NULL, "RECV");
	free_slice(to, offset);
}

static void time_readv(void *to, void *from, size_t size, struct samples *s)
{
	struct iovec local = { to, size }, remote = { from, size };
	double start = now_us();

	must(process_vm_readv(helper, &local, 1, &remote, 1, 0) == (ssize_t)size, "process_vm_readv");
	s->us[s->count++] = now_us() - start;
}

static void measure_copy(const char *mountpoint, int count)
{
	struct samples send1 = samples_new(count), send2 = samples_new(count);
	struct samples read1 = samples_new(count), read2 = samples_new(count), copied = samples_new(count);
	uint8_t *data = buffer_of(2 * MIB), *target;
	int memfd = memfd_create("bench", MFD_CLOEXEC);
	struct bus source, sink;
	char path[512];

	make_bus(mountpoint, path);
	source = bus_connect(path);
	sink = bus_connect(path);
	must(ftruncate(memfd, (off_t)(2 * MIB)) == 0, "memfd");
	target = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	must(target != MAP_FAILED, "mmap");
	if (fork_helper())
		for (;;)
			pause();
	for (int i = 0; i < count; i++) {
		double start;

		time_send(&source, &sink, data, MIB, &send1);
		time_send(&source, &sink, data, 2 * MIB, &send2);
		time_readv(target, data, MIB, &read1);
		time_readv(target, data, 2 * MIB, &read2);
		start = now_us();
		memcpy(target, data, 2 * MIB);
		__asm__ volatile("" : : "r"(target) : "memory");
		copied.us[copied.count++] = now_us() - start;
	}
	samples_print("send_1_mib", &send1, 1, 0);
	samples_print("send_2_mib", &send2, 1, 0);
	samples_print("readv_1_mib", &read1, 1, 0);
	samples_print("readv_2_mib", &read2, 1, 0);
	samples_print("memcpy_2_mib", &copied, 1, 1);
	end_helper();
}

/* --- connections ------------------------------------------------------------------------------------ */

static void measure_connect(const char *mountpoint, int count)
{
	struct samples opens = samples_new(count), hellos = samples_new(count);
	char path[512];

	make_bus(mountpoint, path);
	for (int i = 0; i < count; i++) {
		double start = now_us();
		int fd = open(path, O_RDWR | O_CLOEXEC);

		must(fd >= 0, path);
		close(fd);
		opens.us[opens.count++] = now_us() - start;
		start = now_us();
		close(bus_hello(path).fd);
		hellos.us[hellos.count++] = now_us() - start;
	}
	samples_print("open_close", &opens, 1, 0);
	samples_print("open_hello_free_close", &hellos, 1, 1);
}

static void measure_idle(const char *mountpoint, int count)
{
	char path[512], byte;

	make_bus(mountpoint, path);
	for (int i = 0; i < count; i++)
		bus_hello(path);
	printf("\"connections\": %d}\n", count);
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	exit(0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 3 ? argv[1] : "", *where = argc > 3 ? argv[2] : "";
	int count = argc > 3 ? atoi(argv[argc - 1]) : 0;
	uint64_t size = argc > 4 ? strtoull(argv[argc - 2], NULL, 10) : 0;

	if (count < 10)
		what = "";
	printf("{");
	if (!strcmp(what, "noop") || !strcmp(what, "poll"))
		measure_bare(where, *what == 'p', count);
	else if (!strcmp(what, "floor"))
		measure_floor(where, count);
	else if (!strcmp(what, "call") && argc == 6)
		measure_call(where, !strcmp(argv[3], "memfd"), size, count);
	else if (!strcmp(what, "socket"))
		measure_socket(strtoull(where, NULL, 10), count);
	else if (!strcmp(what, "oneway") && size)
		measure_oneway(where, size, count);
	else if (!strcmp(what, "broadcast") && size)
		measure_broadcast(where, (int)size, count);
	else if (!strcmp(what, "copy"))
		measure_copy(where, count);
	else if (!strcmp(what, "connect"))
		measure_connect(where, count);
	else if (!strcmp(what, "idle"))
		measure_idle(where, count);
	else
		return 2;
	printf("}\n");
	return 0;
}
