/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * example.h - what the programs of this directory have in common: plain ioctls, nothing hidden.
 *
 * kdbus carries bytes and does not look into them. These programs send bare text; those that speak D-Bus put their marshalled
 * messages there and set payload_type to KDBUS_PAYLOAD_DBUS.
 */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kdbus.h"

#define EXAMPLE_NAME    "org.example.Echo"
#define EXAMPLE_PAYLOAD 0x6563686f74657874ULL /* "echotext" */
#define POOL_SIZE       (1UL << 20)
#define TEXT_MAX        4096 /* of a message's text, with its NUL */

struct bus {
	int fd;
	uint64_t id;         /* of this connection */
	const uint8_t *pool; /* all that is received lies here */
	uint64_t bloom_size; /* what the maker of the bus has laid down */
	uint64_t bloom_hashes;
	uint64_t last_cookie;
};

static inline int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return -1;
}

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ---- Items ---- */

#define ALIGN8(n) (((n) + 7) & ~(uint64_t)7)

/* All items of a struct that begins with its size and ends with `items`. */
#define FOR_EACH_ITEM(item, head)                                                                      \
	for ((item) = (head)->items;                                                                   \
	     (const uint8_t *)(item) + sizeof(uint64_t) * 2 <= (const uint8_t *)(head) + (head)->size; \
	     (item) = (const struct kdbus_item *)((const uint8_t *)(item) + ALIGN8((item)->size)))

#define ITEM_HEADER     offsetof(struct kdbus_item, data)

/*
 * A command or a message that grows by items. The bus insists on 8-byte alignment, which a u64 alone does not bring about
 * in 32-bit programs.
 */
struct builder {
	uint64_t words[512] __attribute__((aligned(8)));
	size_t size;
};

static inline void *begin(struct builder *b, size_t fixed)
{
	memset(b, 0, sizeof(*b));
	b->size = fixed;
	return b->words;
}

/* Room for an item with `size` bytes of payload; the payload to be filled in. */
static inline void *add_item(struct builder *b, uint64_t type, size_t size)
{
	struct kdbus_item *item = (struct kdbus_item *)((uint8_t *)b->words + b->size);

	if (ALIGN8(b->size + ITEM_HEADER + size) > sizeof(b->words)) {
		fprintf(stderr, "too many items\n");
		abort();
	}
	item->size = ITEM_HEADER + size; /* exact: what pads it to a multiple of 8 is not counted */
	item->type = type;
	b->size += ALIGN8(item->size);
	return item->data;
}

static inline void add_string(struct builder *b, uint64_t type, const char *string)
{
	memcpy(add_item(b, type, strlen(string) + 1), string, strlen(string) + 1);
}

/* Every command begins with its size. */
static inline int command(int fd, unsigned long number, struct builder *b)
{
	b->words[0] = b->size;
	return ioctl(fd, number, b->words);
}

/* ---- Connection ---- */

/* Whatever a command or a message left in the pool stays there until this is called. */
static inline int free_slice(const struct bus *bus, uint64_t offset)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = offset };

	return ioctl(bus->fd, KDBUS_CMD_FREE, &cmd);
}

/* Connects to the endpoint at `path`, for example /run/kdbusfs/0-demo/bus; `flags` say as what. */
static inline int bus_connect_as(struct bus *bus, const char *path, uint64_t flags, uint64_t attach_recv)
{
	struct kdbus_cmd_hello hello = {
		.size = sizeof(hello),
		.flags = flags,
		.attach_flags_send = _KDBUS_ATTACH_ANY, /* others may know all about us */
		.attach_flags_recv = attach_recv,       /* what we want to know of others */
		.pool_size = POOL_SIZE,
	};
	const struct kdbus_item_list *list;
	const struct kdbus_item *item;
	void *pool;

	memset(bus, 0, sizeof(*bus));
	bus->fd = open(path, O_RDWR | O_CLOEXEC);
	if (bus->fd < 0)
		return failed(path);
	if (ioctl(bus->fd, KDBUS_CMD_HELLO, &hello) < 0) {
		close(bus->fd);
		return failed("HELLO");
	}
	pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, bus->fd, 0);
	if (pool == MAP_FAILED) {
		close(bus->fd);
		return failed("mmap of the pool");
	}
	bus->pool = pool;
	bus->id = hello.id;
	list = (const struct kdbus_item_list *)(bus->pool + hello.offset);
	FOR_EACH_ITEM(item, list) {
		if (item->type == KDBUS_ITEM_BLOOM_PARAMETER) {
			bus->bloom_size = item->bloom_parameter.size;
			bus->bloom_hashes = item->bloom_parameter.n_hash;
		}
	}
	return free_slice(bus, hello.offset);
}

static inline int bus_connect(struct bus *bus, const char *path, uint64_t attach_recv)
{
	return bus_connect_as(bus, path, KDBUS_HELLO_ACCEPT_FD, attach_recv);
}

static inline void bus_disconnect(struct bus *bus)
{
	munmap((void *)(uintptr_t)bus->pool, POOL_SIZE);
	close(bus->fd);
}

/* ---- Bloom filters ---- */

/*
 * Sets the bits of one word. The bus compares bits and does not care where they come from; all programs of a bus must do
 * alike. Here: FNV-1a, and double hashing for n_hash bits.
 */
static inline void bloom_add(const struct bus *bus, void *filter, const char *word)
{
	uint64_t hash = 0xcbf29ce484222325ULL, bits = bus->bloom_size * 8, step, i;

	for (; *word; word++)
		hash = (hash ^ (uint8_t)*word) * 0x100000001b3ULL;
	step = hash >> 32 | 1;
	/* More steps than there are bits hardly bring anything new, however many the maker of the bus asks for. */
	for (i = 0; i < bus->bloom_hashes && i < bits; i++) {
		uint64_t bit = (hash + i * step) % bits;

		((uint8_t *)filter)[bit / 8] |= (uint8_t)(1 << bit % 8);
	}
}

/* ---- Sending ---- */

/* A memfd with the text, sealed so that the receiver need not fear changes; the bus takes no other. */
static inline int sealed_memfd(const char *text)
{
	int fd = memfd_create("example", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return failed("memfd_create");
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0) {
		failed("sealing");
		close(fd);
		return -1;
	}
	return fd;
}

/* Begins a message; add_item() adds the items that are particular to it. The cookie is the sender's number of it. */
static inline struct kdbus_msg *begin_message(struct bus *bus, struct builder *b, uint64_t dst_id, uint64_t flags)
{
	struct kdbus_msg *msg = begin(b, sizeof(*msg));

	msg->flags = flags;
	msg->dst_id = dst_id;
	msg->payload_type = EXAMPLE_PAYLOAD;
	msg->cookie = ++bus->last_cookie;
	return msg;
}

/* `text` itself is copied by the bus, once, into the receiver's pool; it has to stay until SEND returns, no longer. */
static inline void add_text(struct builder *b, const char *text)
{
	struct kdbus_vec *vec;

	if (!*text)
		return; /* a vector of no bytes is an error */
	vec = add_item(b, KDBUS_ITEM_PAYLOAD_VEC, sizeof(*vec));
	vec->size = strlen(text);
	vec->address = (uintptr_t)text;
}

/* Sends it. With KDBUS_SEND_SYNC_REPLY it waits, and `reply` tells where the reply lies. */
static inline int send_message(const struct bus *bus, struct builder *b, uint64_t flags, struct kdbus_msg_info *reply)
{
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .flags = flags, .msg_address = (uintptr_t)b->words };

	b->words[0] = b->size;
	/* After a signal the same SEND goes on waiting for the same reply: it does not send twice. */
	while (ioctl(bus->fd, KDBUS_CMD_SEND, &cmd) < 0) {
		if (errno != EINTR)
			return -1;
	}
	if (reply)
		*reply = cmd.reply;
	return 0;
}

/* ---- Receiving ---- */

static inline const struct kdbus_msg *message_at(const struct bus *bus, uint64_t offset)
{
	return (const struct kdbus_msg *)(bus->pool + offset);
}

/*
 * Takes the next message, waiting for it until `deadline` (CLOCK_MONOTONIC in ns; 0: for ever).
 *
 * Returns 1 with `info`, 0 at the deadline, -1 with errno: EINTR after a signal that `mask` (of ppoll) let through,
 * ECONNRESET when the connection has ended.
 */
static inline int next_message(const struct bus *bus, struct kdbus_msg_info *info, uint64_t deadline,
			       const sigset_t *mask)
{
	for (;;) {
		struct kdbus_cmd_recv cmd = { .size = sizeof(cmd) };
		struct pollfd ready = { .fd = bus->fd, .events = POLLIN };
		struct timespec left, *limit = NULL;

		/* Ask first: when messages come in a row, poll is called once for all of them. */
		if (ioctl(bus->fd, KDBUS_CMD_RECV, &cmd) == 0) {
			*info = cmd.msg;
			return 1;
		}
		if (errno == EOVERFLOW) {
			/* Nothing was taken, and the count is back at 0: say so and ask again. */
			fprintf(stderr, "%llu broadcasts were lost\n", (unsigned long long)cmd.dropped_msgs);
			continue;
		}
		if (errno != EAGAIN)
			return -1;
		if (deadline) {
			uint64_t now = now_ns(), rest = deadline > now ? deadline - now : 0;

			if (!rest)
				return 0;
			left.tv_sec = (time_t)(rest / 1000000000);
			left.tv_nsec = (long)(rest % 1000000000);
			limit = &left;
		}
		/* POLLIN may turn out to be untrue, another thread may have been quicker: hence the loop. */
		if (ppoll(&ready, 1, limit, mask) < 0)
			return -1;
		if (ready.revents & (POLLERR | POLLHUP)) {
			errno = ECONNRESET;
			return -1;
		}
	}
}

/* The payload as a string, cut off where `text` ends. Parts in the pool and in memfds come in the order of sending. */
static inline int message_text(const struct bus *bus, const struct kdbus_msg *msg, char text[TEXT_MAX])
{
	const struct kdbus_item *item;
	size_t used = 0;

	FOR_EACH_ITEM(item, msg) {
		size_t room = TEXT_MAX - 1 - used;

		if (item->type == KDBUS_ITEM_PAYLOAD_OFF) {
			size_t size = item->vec.size < room ? (size_t)item->vec.size : room;

			if (item->vec.offset == ~0ULL) /* so many zero bytes, which lie nowhere */
				memset(text + used, 0, size);
			else /* from the start of the pool, not of the message */
				memcpy(text + used, bus->pool + item->vec.offset, size);
			used += size;
		} else if (item->type == KDBUS_ITEM_PAYLOAD_MEMFD) {
			size_t size = item->memfd.size < room ? (size_t)item->memfd.size : room;
			ssize_t got;

			if (item->memfd.fd < 0) { /* it could not be installed; this says why */
				errno = -item->memfd.fd;
				return failed("receiving a memfd");
			}
			got = pread(item->memfd.fd, text + used, size, (off_t)item->memfd.start);
			if (got < 0)
				return failed("reading a memfd");
			used += (size_t)got;
		}
	}
	text[used] = '\0';
	return 0;
}

/* The descriptors that came with a message; how many. Negative ones could not be installed. */
static inline size_t message_fds(const struct kdbus_msg *msg, const int **fds)
{
	const struct kdbus_item *item;

	*fds = NULL;
	FOR_EACH_ITEM(item, msg) {
		if (item->type == KDBUS_ITEM_FDS) {
			*fds = item->fds;
			return (size_t)(item->size - ITEM_HEADER) / sizeof(int);
		}
	}
	return 0;
}

/* Every message has to be freed, and its descriptors closed: they are ours since RECV. */
static inline int message_done(const struct bus *bus, const struct kdbus_msg_info *info)
{
	const struct kdbus_msg *msg = message_at(bus, info->offset);
	const struct kdbus_item *item;
	const int *fds;
	size_t i, count = message_fds(msg, &fds);

	for (i = 0; i < count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	FOR_EACH_ITEM(item, msg) {
		if (item->type == KDBUS_ITEM_PAYLOAD_MEMFD && item->memfd.fd >= 0)
			close(item->memfd.fd);
	}
	return free_slice(bus, info->offset);
}

/* What the service does with text. */
static inline void to_upper(char *text)
{
	for (; *text; text++) {
		if (*text >= 'a' && *text <= 'z')
			*text = (char)(*text - 'a' + 'A');
	}
}

#endif
