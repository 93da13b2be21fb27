/* bus.h: what the programs below have in common. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kdbus.h"

#define POOL_SIZE (1UL << 20)
#define ALIGN8(n) (((n) + 7) & ~(uint64_t)7)

/* A command or message with room for its items, aligned as the bus demands. */
#define WITH_ITEMS(fixed) union { fixed; char room[8192]; } __attribute__((aligned(8)))

#define FOR_EACH_ITEM(item, head)                                                        \
	for ((item) = (head)->items; (const char *)(item) < (const char *)(head) + (head)->size; \
	     (item) = (const void *)((const char *)(item) + ALIGN8((item)->size)))

struct bus {
	int fd;
	uint64_t id;         /* of this connection */
	uint64_t bloom_size; /* bytes of a bloom filter on this bus */
	const char *pool;
};

static inline void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Appends an item to what `head` begins; the first member of every command and message is its size. */
static inline void *add_item(void *head, uint64_t type, const void *data, size_t size)
{
	uint64_t *total = head;
	struct kdbus_item *item = (void *)((char *)head + *total);
	char *payload = (char *)item + offsetof(struct kdbus_item, data);

	item->size = offsetof(struct kdbus_item, data) + size;
	item->type = type;
	if (data)
		memcpy(payload, data, size);
	*total += ALIGN8(item->size);
	return payload;
}

static inline void add_string(void *head, uint64_t type, const char *string)
{
	add_item(head, type, string, strlen(string) + 1);
}

/* Gives back what a command has put into the pool. */
static inline void pool_free(const struct bus *bus, uint64_t offset)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = offset };

	if (ioctl(bus->fd, KDBUS_CMD_FREE, &cmd) < 0)
		die("FREE");
}

/* Opens an endpoint and says HELLO. */
static inline void bus_connect(struct bus *bus, const char *path, uint64_t flags, uint64_t wanted)
{
	struct kdbus_cmd_hello hello = {
		.size = sizeof(hello),
		.flags = flags,
		.attach_flags_send = _KDBUS_ATTACH_ANY,
		.attach_flags_recv = wanted,
		.pool_size = POOL_SIZE,
	};
	const struct kdbus_item_list *list;
	const struct kdbus_item *item;

	bus->bloom_size = 0;
	bus->fd = open(path, O_RDWR | O_CLOEXEC);
	if (bus->fd < 0)
		die(path);
	if (ioctl(bus->fd, KDBUS_CMD_HELLO, &hello) < 0)
		die("HELLO");
	bus->id = hello.id;
	bus->pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, bus->fd, 0);
	if (bus->pool == MAP_FAILED)
		die("mmap");
	list = (const void *)(bus->pool + hello.offset);
	FOR_EACH_ITEM(item, list)
		if (item->type == KDBUS_ITEM_BLOOM_PARAMETER)
			bus->bloom_size = item->bloom_parameter.size;
	pool_free(bus, hello.offset);
}

/* The next message, waited for; to be given to pool_free() by its offset. */
static inline const struct kdbus_msg *next_message(const struct bus *bus, uint64_t *offset)
{
	for (;;) {
		struct kdbus_cmd_recv cmd = { .size = sizeof(cmd) };
		struct pollfd ready = { .fd = bus->fd, .events = POLLIN };

		if (ioctl(bus->fd, KDBUS_CMD_RECV, &cmd) == 0) {
			*offset = cmd.msg.offset;
			return (const void *)(bus->pool + cmd.msg.offset);
		}
		if (errno == EOVERFLOW) /* nothing was taken: the next RECV goes on */
			fprintf(stderr, "%llu broadcasts lost\n", (unsigned long long)cmd.dropped_msgs);
		else if (errno != EAGAIN)
			die("RECV");
		else if (poll(&ready, 1, -1) < 0 && errno != EINTR)
			die("poll");
	}
}

/* One bit for each word. Every program of a bus has to do this alike; the bus only compares bits. */
static inline void bloom_add(const struct bus *bus, uint8_t *filter, const char *word)
{
	uint64_t hash = 14695981039346656037ULL;

	while (*word)
		hash = (hash ^ (uint8_t)*word++) * 1099511628211ULL;
	hash %= bus->bloom_size * 8;
	filter[hash / 8] |= (uint8_t)(1 << hash % 8);
}
