/*
 * A program of bus1 in C, by nothing but bus1.h: what a peer can do with itself and with others, over the file that is
 * its argument.  It ends with 0, or says which line was not true.
 */
#define _GNU_SOURCE
#include "bus1_program.h"

#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define INVALID BUS1_HANDLE_INVALID

static const char *path;

static struct peer peer_new(void)
{
	return peer_open(path);
}

/* 0 or the errno */
static int command(int fd, unsigned int number, void *argument)
{
	return ioctl(fd, number, argument) < 0 ? errno : 0;
}

static int disconnect(struct peer *peer)
{
	uint64_t zero = 0;

	return command(peer->fd, BUS1_CMD_PEER_DISCONNECT, &zero);
}

static int release(struct peer *peer, uint64_t id)
{
	return command(peer->fd, BUS1_CMD_HANDLE_RELEASE, &id);
}

static int free_slice(struct peer *peer, uint64_t offset)
{
	return command(peer->fd, BUS1_CMD_SLICE_RELEASE, &offset);
}

static int destroy(struct peer *peer, uint64_t id)
{
	struct bus1_cmd_nodes_destroy cmd = { .ptr_nodes = (uintptr_t)&id, .n_nodes = 1 };

	return command(peer->fd, BUS1_CMD_NODES_DESTROY, &cmd);
}

static int transfer(struct peer *from, struct peer *to, uint64_t id, uint64_t *given)
{
	struct bus1_cmd_handle_transfer cmd = { .src_handle = id, .dst_fd = (uint64_t)to->fd, .dst_handle = INVALID };
	int error = command(from->fd, BUS1_CMD_HANDLE_TRANSFER, &cmd);

	*given = cmd.dst_handle;
	return error;
}

static int send_to(struct peer *peer, const uint64_t *destinations, size_t n_destinations, const void *data, size_t size,
		   const uint64_t *handles, size_t n_handles)
{
	struct iovec vec = { (void *)data, size };
	struct bus1_cmd_send cmd = {
		.ptr_destinations = (uintptr_t)destinations, .n_destinations = n_destinations,
		.ptr_vecs = (uintptr_t)&vec, .n_vecs = size ? 1 : 0,
		.ptr_handles = (uintptr_t)handles, .n_handles = n_handles,
	};

	return command(peer->fd, BUS1_CMD_SEND, &cmd);
}

static int receive(struct peer *peer, uint64_t flags, struct bus1_cmd_recv *cmd)
{
	*cmd = (struct bus1_cmd_recv){ .flags = flags, .max_offset = MAP_SIZE };
	return command(peer->fd, BUS1_CMD_RECV, cmd);
}

static int readiness(struct peer *peer)
{
	struct pollfd poll_fd = { .fd = peer->fd, .events = POLLIN | POLLOUT };

	check(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents;
}

static void try_the_file(void)
{
	struct stat st;
	struct peer peer = peer_new();
	char byte;

	check(stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0777) == 0666);
	check(lseek(peer.fd, 0, SEEK_SET) == 0);
	check(command(peer.fd, 0x1234, &byte) == ENOTTY);
	check(command(peer.fd, BUS1_CMD_PEER_QUERY + 1, &st) != 0);
	check(ioctl(peer.fd, BUS1_CMD_PEER_QUERY, NULL) < 0 && errno == EFAULT);
	peer_free(&peer);
}

static void try_to_connect(void)
{
	struct peer peer = peer_new();
	struct bus1_cmd_peer_reset cmd = {
		.peer_flags = -1, .max_slices = -1, .max_handles = -1, .max_inflight_bytes = -1, .max_inflight_fds = -1,
	};
	uint64_t one = 1;

	check(command(peer.fd, BUS1_CMD_PEER_RESET, &cmd) == 0);
	check(command(peer.fd, BUS1_CMD_PEER_QUERY, &cmd) == 0);
	check(cmd.flags == 0 && cmd.peer_flags == 0 && cmd.max_slices == 16384 && cmd.max_handles == 65536);
	check(cmd.max_inflight_bytes == 16 << 20 && cmd.max_inflight_fds == 4096);
	check(command(peer.fd, BUS1_CMD_PEER_DISCONNECT, &one) == EINVAL);
	check(readiness(&peer) == POLLOUT);
	check(disconnect(&peer) == 0);
	check(disconnect(&peer) == ESHUTDOWN);
	check(command(peer.fd, BUS1_CMD_PEER_RESET, &cmd) == ESHUTDOWN);
	check(command(peer.fd, 0x1234, &cmd) == ESHUTDOWN);
	check(readiness(&peer) == POLLHUP);
	peer_free(&peer);
}

static void try_transfer_and_notices(void)
{
	struct peer one = peer_new(), two = peer_new();
	struct bus1_cmd_recv recv;
	uint64_t handle, again;

	check(transfer(&one, &two, 0x100, &handle) == 0);
	check(handle == (1 << 3 | BUS1_HANDLE_FLAG_MANAGED | BUS1_HANDLE_FLAG_REMOTE));
	check(transfer(&one, &two, 0x100, &again) == 0 && again == handle);
	check(transfer(&one, &two, 0x103, &again) == ENXIO);
	check(release(&one, 0x100) == EBUSY);
	check(release(&two, handle) == 0 && receive(&one, 0, &recv) == EAGAIN);
	check(release(&two, handle) == 0 && release(&two, handle) == ENXIO);
	check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_RELEASE && recv.msg.destination == 0x100);
	check(recv.msg.uid == UINT32_MAX && recv.msg.offset == BUS1_OFFSET_INVALID && recv.msg.n_bytes == 0);
	check(receive(&one, 0, &recv) == EAGAIN);

	check(transfer(&one, &two, 0x100, &handle) == 0);
	check(destroy(&two, handle) == EREMOTE);
	check(destroy(&one, 0x100) == 0 && destroy(&one, 0x100) == ESTALE);
	check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_DESTROY && recv.msg.destination == 0x100);
	check(recv.msg.flags == 0);
	check(receive(&two, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_DESTROY && recv.msg.destination == handle);
	check(recv.msg.flags == 0);
	check(transfer(&one, &two, 0x100, &again) == 0 && again == INVALID);
	check(release(&one, 0x100) == 0 && release(&two, handle) == 0);
	peer_free(&one);
	peer_free(&two);
}

static void try_messages(void)
{
	struct peer one = peer_new(), two = peer_new();
	struct bus1_cmd_recv recv;
	uint64_t ids[2], handle, back, received[2];
	uint8_t data[104];

	memset(data, 0x5a, sizeof(data));
	/* To itself, without a byte. */
	ids[0] = 0x100;
	check(send_to(&one, ids, 1, NULL, 0, NULL, 0) == 0);
	check(readiness(&one) == (POLLIN | POLLOUT));
	check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_DATA && recv.msg.destination == 0x100);
	check(recv.msg.n_bytes == 0 && recv.msg.uid == getuid() && recv.msg.gid == getgid());
	check(recv.msg.pid == (uint32_t)getpid() && recv.msg.tid == (uint32_t)gettid());
	check(recv.msg.flags == 0 && recv.flags == 0 && recv.max_offset == MAP_SIZE && receive(&one, 0, &recv) == EAGAIN);
	check(free_slice(&one, recv.msg.offset) == 0 && free_slice(&one, recv.msg.offset) == ENXIO);
	/* To two nodes at once. */
	ids[1] = 0x200;
	check(send_to(&one, ids, 2, data, sizeof(data), NULL, 0) == 0);
	for (int i = 0; i < 2; i++) {
		check(receive(&one, 0, &recv) == 0 && recv.msg.destination == ids[i]);
		check(recv.msg.n_bytes == sizeof(data) && memcmp(one.map + recv.msg.offset, data, sizeof(data)) == 0);
		check(!(recv.msg.flags & BUS1_MSG_FLAG_CONTINUE) == (i == 1));
		check(free_slice(&one, recv.msg.offset) == 0);
	}
	/* To somebody else, with a handle that is used then. */
	check(transfer(&one, &two, 0x100, &handle) == 0);
	ids[0] = handle;
	ids[1] = 0x300;
	check(send_to(&two, ids, 1, "ping", 4, ids, 2) == 0);
	check(receive(&one, 0, &recv) == 0 && recv.msg.destination == 0x100 && recv.msg.n_handles == 2);
	memcpy(received, one.map + recv.msg.offset + 8, sizeof(received));
	check(received[0] == 0x100 && received[1] & BUS1_HANDLE_FLAG_REMOTE);
	back = received[1];
	check(send_to(&one, &back, 1, "pong", 4, NULL, 0) == 0);
	check(receive(&two, 0, &recv) == 0 && recv.msg.destination == 0x300);
	check(memcmp(two.map + recv.msg.offset, "pong", 4) == 0);
	ids[0] = ids[1] = back;
	check(send_to(&one, ids, 2, NULL, 0, NULL, 0) == ENOTUNIQ);
	check(release(&one, back) == 0);
	check(receive(&two, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_RELEASE);
	peer_free(&one);
	check(receive(&two, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_DESTROY && recv.msg.destination == handle);
	check(send_to(&two, &handle, 1, NULL, 0, NULL, 0) == ESHUTDOWN);
	peer_free(&two);
}

/* A peer may have references to its own nodes: by a transfer to itself, and by a message. */
static void try_own_handles(void)
{
	struct peer one = peer_new();
	struct bus1_cmd_recv recv;
	struct bus1_cmd_handle_transfer cmd;
	uint64_t id = 0x100, received;

	for (int i = 0; i < 2; i++) {
		cmd = (struct bus1_cmd_handle_transfer){ .src_handle = id, .dst_fd = -1, .dst_handle = INVALID };
		check(command(one.fd, BUS1_CMD_HANDLE_TRANSFER, &cmd) == 0 && cmd.dst_handle == id);
		check(receive(&one, 0, &recv) == EAGAIN);
		check(release(&one, id) == 0);
		check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_RELEASE);
		check(recv.msg.flags == 0 && recv.msg.destination == id);
		check(receive(&one, 0, &recv) == EAGAIN);
	}
	check(send_to(&one, &id, 1, NULL, 0, &id, 1) == 0);
	check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_DATA && recv.msg.flags == 0);
	check(recv.msg.destination == id && recv.msg.n_bytes == 0 && recv.msg.n_handles == 1 && recv.msg.n_fds == 0);
	memcpy(&received, one.map + recv.msg.offset, sizeof(received));
	check(received == id && receive(&one, 0, &recv) == EAGAIN);
	check(release(&one, id) == 0);
	check(receive(&one, 0, &recv) == 0 && recv.msg.type == BUS1_MSG_NODE_RELEASE && recv.msg.destination == id);
	check(release(&one, id) == EBUSY && receive(&one, 0, &recv) == EAGAIN);
	peer_free(&one);
}

/* One registration, made before anything else, tells of all. */
static void try_epoll(void)
{
	struct peer one = peer_new(), two = peer_new();
	struct epoll_event event = { .events = EPOLLIN }, found;
	struct bus1_cmd_recv recv;
	uint64_t handle;
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

	check(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, one.fd, &event) == 0);
	check(epoll_wait(epoll_fd, &found, 1, 0) == 0);
	check(transfer(&one, &two, 8, &handle) == 0);
	for (int i = 0; i < 3; i++) {
		check(send_to(&two, &handle, 1, NULL, 0, NULL, 0) == 0);
		check(epoll_wait(epoll_fd, &found, 1, 10000) == 1 && found.events == EPOLLIN);
		check(receive(&one, 0, &recv) == 0);
		check(epoll_wait(epoll_fd, &found, 1, 0) == 0);
	}
	check(disconnect(&one) == 0);
	check(epoll_wait(epoll_fd, &found, 1, 10000) == 1 && found.events == EPOLLHUP);
	close(epoll_fd);
	peer_free(&one);
	peer_free(&two);
}

static void try_descriptors(void)
{
	struct peer one = peer_new();
	struct bus1_cmd_recv recv;
	uint64_t id = 8;
	int pipes[2], numbers[2], bad;
	struct bus1_cmd_send cmd = {
		.ptr_destinations = (uintptr_t)&id, .n_destinations = 1, .ptr_fds = (uintptr_t)pipes, .n_fds = 2,
	};
	char byte = 0;

	check(pipe2(pipes, O_CLOEXEC) == 0);
	for (int i = 0; i < 2; i++)
		check(command(one.fd, BUS1_CMD_SEND, &cmd) == 0);
	check(receive(&one, BUS1_RECV_FLAG_INSTALL_FDS, &recv) == 0 && recv.msg.n_fds == 2);
	memcpy(numbers, one.map + recv.msg.offset, sizeof(numbers));
	check(fcntl(numbers[0], F_GETFD) == FD_CLOEXEC && fcntl(numbers[1], F_GETFD) == FD_CLOEXEC);
	check(write(numbers[1], "x", 1) == 1 && read(pipes[0], &byte, 1) == 1 && byte == 'x');
	check(close(numbers[0]) == 0 && close(numbers[1]) == 0);
	check(receive(&one, 0, &recv) == 0 && recv.msg.n_fds == 2);
	memcpy(numbers, one.map + recv.msg.offset, sizeof(numbers));
	check(numbers[0] == -1 && numbers[1] == -1);
	bad = one.fd;
	cmd.ptr_fds = (uintptr_t)&bad;
	cmd.n_fds = 1;
	check(command(one.fd, BUS1_CMD_SEND, &cmd) == EOPNOTSUPP);
	bad = 9999;
	check(command(one.fd, BUS1_CMD_SEND, &cmd) == EBADF);
	check(close(pipes[0]) == 0 && close(pipes[1]) == 0);
	peer_free(&one);
}

/* A descriptor that a child has is the same peer, and closing it there ends nothing. */
static void try_fork(void)
{
	struct peer one = peer_new();
	struct bus1_cmd_recv recv;
	uint64_t id = 8;
	int status;
	pid_t child = fork();

	check(child >= 0);
	if (child == 0) {
		check(send_to(&one, &id, 1, "child", 5, NULL, 0) == 0);
		exit(0);
	}
	check(waitpid(child, &status, 0) == child && status == 0);
	check(receive(&one, 0, &recv) == 0 && recv.msg.pid == (uint32_t)child);
	check(memcmp(one.map + recv.msg.offset, "child", 5) == 0);
	peer_free(&one);
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	path = argv[1];
	try_the_file();
	try_to_connect();
	try_transfer_and_notices();
	try_messages();
	try_own_handles();
	try_epoll();
	try_descriptors();
	try_fork();
	return 0;
}
