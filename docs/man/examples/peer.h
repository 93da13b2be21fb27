/* peer.h: what the programs below have in common. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bus1.h"

#define MAP_SIZE (1UL << 20)
#define ALIGN8(n) (((n) + 7) & ~(uint64_t)7)

struct peer {
	int fd;
	const char *pool;
};

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

static inline void run(const struct peer *peer, unsigned long command, void *argument, const char *what)
{
	if (ioctl(peer->fd, command, argument) < 0)
		die(what);
}

static inline struct peer peer_open(const char *path)
{
	struct peer peer = { .fd = open(path, O_RDWR | O_CLOEXEC) };

	if (peer.fd < 0)
		die(path);
	peer.pool = mmap(NULL, MAP_SIZE, PROT_READ, MAP_SHARED, peer.fd, 0);
	if (peer.pool == MAP_FAILED)
		die("mmap");
	return peer;
}

/* Gives `to` a handle of `from`'s; the id that `to` has for it. */
static inline uint64_t give(const struct peer *from, uint64_t handle, const struct peer *to)
{
	struct bus1_cmd_handle_transfer cmd = { .src_handle = handle, .dst_fd = (uint64_t)to->fd };

	run(from, BUS1_CMD_HANDLE_TRANSFER, &cmd, "HANDLE_TRANSFER");
	return cmd.dst_handle;
}

static inline void release(const struct peer *peer, uint64_t handle)
{
	run(peer, BUS1_CMD_HANDLE_RELEASE, &handle, "HANDLE_RELEASE");
}

static inline void destroy(const struct peer *peer, uint64_t node)
{
	struct bus1_cmd_nodes_destroy cmd = { .ptr_nodes = (uintptr_t)&node, .n_nodes = 1 };

	run(peer, BUS1_CMD_NODES_DESTROY, &cmd, "NODES_DESTROY");
}

/* Text for all of `to`, with a handle or without (NULL). Returns 0 or the errno. */
static inline int send_text(const struct peer *peer, const uint64_t *to, size_t n, const char *text,
			    const uint64_t *handle)
{
	struct iovec vec = { (void *)text, strlen(text) + 1 };
	struct bus1_cmd_send cmd = {
		.ptr_destinations = (uintptr_t)to,
		.n_destinations = n,
		.ptr_vecs = (uintptr_t)&vec,
		.n_vecs = 1,
		.ptr_handles = (uintptr_t)handle,
		.n_handles = handle ? 1 : 0,
	};

	return ioctl(peer->fd, BUS1_CMD_SEND, &cmd) < 0 ? errno : 0;
}

/* The front of the queue, which must not be empty. What lies at its offset stays until `done`. */
static inline struct bus1_cmd_recv receive(const struct peer *peer)
{
	struct bus1_cmd_recv cmd = { .max_offset = MAP_SIZE };

	run(peer, BUS1_CMD_RECV, &cmd, "RECV");
	return cmd;
}

static inline const char *text_of(const struct peer *peer, const struct bus1_cmd_recv *cmd)
{
	return peer->pool + cmd->msg.offset;
}

/* The id that the receiver has for a handle of the message. */
static inline uint64_t handle_in(const struct peer *peer, const struct bus1_cmd_recv *cmd, size_t index)
{
	uint64_t id;

	memcpy(&id, peer->pool + cmd->msg.offset + ALIGN8(cmd->msg.n_bytes) + 8 * index, sizeof(id));
	return id;
}

static inline void done(const struct peer *peer, struct bus1_cmd_recv *cmd)
{
	if (cmd->msg.offset != BUS1_OFFSET_INVALID)
		run(peer, BUS1_CMD_SLICE_RELEASE, &cmd->msg.offset, "SLICE_RELEASE");
}
