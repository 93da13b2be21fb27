/*
 * Messages of bus1, beside pairs of packet sockets: bus1 WHERE RECEIVERS SIZE COUNT SECONDS
 *
 * WHERE: a mount point; `-` for sockets.  One message of SIZE bytes to that many, each of which takes it and gives its
 * slice back: all in one process, so nobody waits and nobody is woken.  Time of a round.
 *
 * COUNT rounds or SECONDS, whichever ends first.  Prints a JSON object of durations in us.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "bench.h"
#include "bus1.h"

#define MAP_SIZE (16UL << 20)
#define RECEIVERS_MAX 1000
#define NODE 0x100

static int fds[RECEIVERS_MAX + 1], peer_fds[RECEIVERS_MAX];
static const uint8_t *maps[RECEIVERS_MAX + 1];
static uint64_t handles[RECEIVERS_MAX];

static void open_peers(const char *mountpoint, int receivers)
{
	double limit = now_us() + START_PATIENCE_US;
	char path[4096];

	snprintf(path, sizeof(path), "%s/bus1", mountpoint);
	while (access(path, F_OK) < 0 && now_us() < limit)
		usleep(1000);
	/* The last one sends. */
	for (int i = 0; i <= receivers; i++) {
		fds[i] = open(path, O_RDWR | O_CLOEXEC);
		must(fds[i] >= 0, path);
		maps[i] = mmap(NULL, MAP_SIZE, PROT_READ, MAP_SHARED, fds[i], 0);
		must(maps[i] != MAP_FAILED, "mmap");
	}
	for (int i = 0; i < receivers; i++) {
		struct bus1_cmd_handle_transfer cmd = { .src_handle = NODE, .dst_fd = (uint64_t)fds[receivers] };

		must(ioctl(fds[i], BUS1_CMD_HANDLE_TRANSFER, &cmd) == 0, "HANDLE_TRANSFER");
		handles[i] = cmd.dst_handle;
	}
}

static void round_of_peers(int receivers, uint8_t *data, size_t size, int first)
{
	struct iovec vec = { data, size };
	struct bus1_cmd_send send = {
		.ptr_destinations = (uintptr_t)handles,
		.n_destinations = (uint64_t)receivers,
		.ptr_vecs = (uintptr_t)&vec,
		.n_vecs = size ? 1 : 0,
	};

	must(ioctl(fds[receivers], BUS1_CMD_SEND, &send) == 0, "SEND");
	for (int i = 0; i < receivers; i++) {
		struct bus1_cmd_recv recv = { .max_offset = MAP_SIZE };

		must(ioctl(fds[i], BUS1_CMD_RECV, &recv) == 0 && recv.msg.n_bytes == size, "RECV");
		if (first)
			check_bytes(maps[i] + recv.msg.offset, size);
		must(ioctl(fds[i], BUS1_CMD_SLICE_RELEASE, &recv.msg.offset) == 0, "SLICE_RELEASE");
	}
}

static void open_sockets(int receivers)
{
	int pair[2], room = 4 * (int)MIB;

	for (int i = 0; i < receivers; i++) {
		must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
		must(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) == 0, "SO_SNDBUFFORCE");
		fds[i] = pair[0];
		peer_fds[i] = pair[1];
	}
}

static void round_of_sockets(int receivers, uint8_t *data, uint8_t *taken, size_t size, int first)
{
	for (int i = 0; i < receivers; i++)
		must(send(fds[i], data, size, 0) == (ssize_t)size, "send");
	for (int i = 0; i < receivers; i++) {
		must(recv(peer_fds[i], taken, size, 0) == (ssize_t)size, "recv");
		if (first)
			check_bytes(taken, size);
	}
}

int main(int argc, char **argv)
{
	int receivers = argc == 6 ? atoi(argv[2]) : 0, is_sockets;
	uint8_t *data, *taken;
	struct samples s;
	size_t size;

	if (receivers < 1 || receivers > RECEIVERS_MAX) {
		fprintf(stderr, "usage: %s WHERE RECEIVERS SIZE COUNT SECONDS\n", argv[0]);
		return 2;
	}
	is_sockets = !strcmp(argv[1], "-");
	size = strtoull(argv[3], NULL, 10);
	data = buffer_of(size + 1);
	taken = buffer_of(size + 1);
	s = samples_new(atoi(argv[4]), atof(argv[5]));
	if (is_sockets)
		open_sockets(receivers);
	else
		open_peers(argv[1], receivers);
	loop_begins();
	while (samples_more(&s)) {
		int first = s.count == 0;
		double start = now_us();

		if (is_sockets)
			round_of_sockets(receivers, data, taken, size, first);
		else
			round_of_peers(receivers, data, size, first);
		samples_add(&s, start);
	}
	loop_ended(s.count);
	samples_print("time", &s, 1);
	print_operations();
	return 0;
}
