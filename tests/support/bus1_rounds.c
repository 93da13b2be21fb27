/*
 * How long messages of bus1 take, beside a pair of sockets: to none and to 1, 2, 4, ... 256 of 256 peers, each of
 * which receives its message and gives the slice back.
 *
 *     bus1_rounds FILE ROUNDS
 *
 * ROUNDS: of an empty message to nobody; a tenth as many go to one, fewer to more.  A line for each measure: receivers,
 * bytes, and ns of cpu time of this process for a round.
 */
#define _GNU_SOURCE
#include "bus1_program.h"

#include <sys/socket.h>
#include <time.h>

#define RECEIVERS 256
#define BYTES_MAX 1024

/* The sender is the last one, and handles are what it has of the others. */
struct crowd {
	struct peer peers[RECEIVERS + 1];
	uint64_t handles[RECEIVERS];
};

static char payload[BYTES_MAX];

static uint64_t cpu_ns(void)
{
	struct timespec now;

	check(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void gather(struct crowd *crowd, const char *path)
{
	for (int i = 0; i <= RECEIVERS; i++)
		crowd->peers[i] = peer_open(path);
	for (int i = 0; i < RECEIVERS; i++) {
		struct bus1_cmd_handle_transfer cmd = {
			.src_handle = 0x100, .dst_fd = (uint64_t)crowd->peers[RECEIVERS].fd, .dst_handle = BUS1_HANDLE_INVALID,
		};

		check(ioctl(crowd->peers[i].fd, BUS1_CMD_HANDLE_TRANSFER, &cmd) == 0);
		crowd->handles[i] = cmd.dst_handle;
	}
}

static void disperse(struct crowd *crowd)
{
	for (int i = 0; i <= RECEIVERS; i++)
		peer_free(&crowd->peers[i]);
}

/* One message, received by each; a vector without a byte is one all the same. */
static void round_of(struct crowd *crowd, int receivers, size_t bytes)
{
	struct iovec vec = { payload, bytes };
	struct bus1_cmd_send send = {
		.ptr_destinations = (uintptr_t)crowd->handles, .n_destinations = (uint64_t)receivers,
		.ptr_vecs = (uintptr_t)&vec, .n_vecs = 1,
	};

	check(ioctl(crowd->peers[RECEIVERS].fd, BUS1_CMD_SEND, &send) == 0);
	for (int i = 0; i < receivers; i++) {
		struct bus1_cmd_recv recv = { .max_offset = BUS1_OFFSET_INVALID };
		uint64_t offset;

		check(ioctl(crowd->peers[i].fd, BUS1_CMD_RECV, &recv) == 0);
		check(recv.msg.type == BUS1_MSG_DATA && recv.msg.n_bytes == bytes && recv.msg.destination == 0x100);
		offset = recv.msg.offset;
		check(ioctl(crowd->peers[i].fd, BUS1_CMD_SLICE_RELEASE, &offset) == 0);
	}
}

static void measure(const char *path, long rounds, int receivers, size_t bytes)
{
	struct crowd crowd;
	uint64_t before;

	gather(&crowd, path);
	round_of(&crowd, receivers, bytes);
	before = cpu_ns();
	for (long i = 0; i < rounds; i++)
		round_of(&crowd, receivers, bytes);
	printf("%d %zu %llu\n", receivers, bytes, (unsigned long long)((cpu_ns() - before) / (uint64_t)rounds));
	fflush(stdout);
	disperse(&crowd);
}

static void measure_sockets(long rounds, size_t bytes)
{
	uint64_t before;
	int pair[2];

	check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
	before = cpu_ns();
	for (long i = 0; i < rounds; i++)
		check(write(pair[0], payload, bytes) == (ssize_t)bytes &&
		      recv(pair[1], payload, BYTES_MAX, 0) == (ssize_t)bytes);
	printf("sockets %zu %llu\n", bytes, (unsigned long long)((cpu_ns() - before) / (uint64_t)rounds));
	close(pair[0]);
	close(pair[1]);
}

int main(int argc, char **argv)
{
	long rounds = argc == 3 ? atol(argv[2]) : 0;

	if (rounds < 1) {
		fprintf(stderr, "usage: %s FILE ROUNDS\n", argv[0]);
		return 2;
	}
	measure_sockets(rounds, 0);
	measure_sockets(rounds, BYTES_MAX);
	measure(argv[1], rounds, 0, BYTES_MAX);
	rounds = (rounds + 9) / 10;
	measure(argv[1], rounds, 1, 0);
	measure(argv[1], rounds, 1, BYTES_MAX);
	for (int receivers = 2; receivers <= RECEIVERS; receivers *= 2)
		measure(argv[1], (rounds + receivers - 1) / receivers, receivers, BYTES_MAX);
	return 0;
}
