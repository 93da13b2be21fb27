/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus-last - calls org.example.Echo as a program of the last ABI does, which systemd 220 to 234 have built in.
 *
 *   kdbus-last MOUNTPOINT ENDPOINT TEXT
 *
 * The service of this directory speaks version 3: both are on one bus, and the bus translates. This program finds out first
 * whether the domain at MOUNTPOINT knows the ABI at all.
 *
 * Status: 0 all was as it should be, 1 it was not, 2 wrong usage.
 */
#define _GNU_SOURCE

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kdbus-last.h"

#define NAME        "org.example.Echo"
#define PAYLOAD     0x6563686f74657874ULL /* "echotext", as that service has it */
#define POOL_SIZE   (1UL << 20)
#define TIMEOUT_NS  5000000000ULL
#define ALIGN8(n)   (((n) + 7) & ~(uint64_t)7)
#define ITEM_HEADER offsetof(struct kdbus_item, data)

/* All items of a struct that begins with its size and ends with `items`. */
#define FOR_EACH_ITEM(item, head)                                                             \
	for ((item) = (head)->items;                                                          \
	     (const uint8_t *)(item) + ITEM_HEADER <= (const uint8_t *)(head) + (head)->size; \
	     (item) = (const struct kdbus_item *)((const uint8_t *)(item) + ALIGN8((item)->size)))

struct bus {
	int fd;
	uint64_t id;
	const uint8_t *pool;
};

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	return -1;
}

/* As sd-bus asks: a command that negotiates has no effect, and answers with the flags that it knows. */
static int is_known(const char *mountpoint)
{
	struct kdbus_cmd cmd = { .size = sizeof(cmd), .flags = KDBUS_FLAG_NEGOTIATE };
	char path[PATH_MAX];
	int fd, result;

	snprintf(path, sizeof(path), "%s/control", mountpoint);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return failed(path);
	result = ioctl(fd, KDBUS_CMD_BUS_MAKE, &cmd);
	close(fd);
	if (result < 0)
		return failed("BUS_MAKE that negotiates");
	printf("last:    a bus may be made with the flags %#llx\n", (unsigned long long)cmd.flags);
	return 0;
}

/* Nothing lies at the end of the pool, and may be freed like anything else. */
static int free_slice(const struct bus *bus, uint64_t offset)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = offset };

	return ioctl(bus->fd, KDBUS_CMD_FREE, &cmd);
}

static int bus_connect(struct bus *bus, const char *path)
{
	struct kdbus_cmd_hello hello = {
		.size = sizeof(hello),
		.flags = KDBUS_HELLO_ACCEPT_FD,
		.attach_flags_send = _KDBUS_ATTACH_ANY,
		.attach_flags_recv = KDBUS_ATTACH_PIDS,
		.pool_size = POOL_SIZE,
	};

	bus->fd = open(path, O_RDWR | O_CLOEXEC);
	if (bus->fd < 0)
		return failed(path);
	if (ioctl(bus->fd, KDBUS_CMD_HELLO, &hello) < 0)
		return failed("HELLO");
	bus->pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, bus->fd, 0);
	if (bus->pool == MAP_FAILED)
		return failed("mmap of the pool");
	bus->id = hello.id;
	/* There lie `items_size` bytes of items: the parameters of bloom filters, which this program does not need. */
	return free_slice(bus, hello.offset);
}

/* Who is there: records one after the other, without a header. */
static int list(const struct bus *bus)
{
	struct kdbus_cmd_list cmd = { .size = sizeof(cmd), .flags = KDBUS_LIST_NAMES };
	const struct kdbus_info *info;
	const struct kdbus_item *item;

	if (ioctl(bus->fd, KDBUS_CMD_LIST, &cmd) < 0)
		return failed("LIST");
	for (uint64_t at = 0; at < cmd.list_size; at += info->size) {
		info = (const struct kdbus_info *)(bus->pool + cmd.offset + at);
		FOR_EACH_ITEM(item, info) {
			if (item->type == KDBUS_ITEM_OWNED_NAME)
				printf("last:    %llu owns %s\n", (unsigned long long)info->id, item->name.name);
		}
	}
	return free_slice(bus, cmd.offset);
}

static void *add_item(uint8_t *message, uint64_t type, size_t size)
{
	struct kdbus_msg *msg = (struct kdbus_msg *)message;
	struct kdbus_item *item = (struct kdbus_item *)(message + msg->size);

	item->size = ITEM_HEADER + size;
	item->type = type;
	msg->size += ALIGN8(item->size);
	return item->data;
}

/* Prints the reply at `offset`, and looks whether it is `text` in upper case. */
static int show(const struct bus *bus, uint64_t offset, const char *text)
{
	const struct kdbus_msg *msg = (const struct kdbus_msg *)(bus->pool + offset);
	const struct kdbus_item *item;
	size_t found = 0;

	FOR_EACH_ITEM(item, msg) {
		if (item->type == KDBUS_ITEM_PIDS)
			printf("last:    process %llu has answered\n", (unsigned long long)item->pids.pid);
		if (item->type != KDBUS_ITEM_PAYLOAD_OFF)
			continue;
		/* Counted from the message itself, which has its payload right behind it. */
		const char *data = (const char *)msg + item->vec.offset;

		printf("last:    reply: \"%.*s\"\n", (int)item->vec.size, data);
		for (; found < item->vec.size && toupper((unsigned char)text[found]) == data[found]; found++)
			;
	}
	if (found == strlen(text))
		return 0;
	fprintf(stderr, "another reply was expected\n");
	return -1;
}

static int call(const struct bus *bus, const char *text)
{
	uint8_t message[1024] __attribute__((aligned(8))) = { 0 };
	struct kdbus_msg *msg = (struct kdbus_msg *)message;
	struct kdbus_cmd_send cmd = {
		.size = sizeof(cmd),
		.flags = KDBUS_SEND_SYNC_REPLY,
		.msg_address = (uintptr_t)message,
	};
	struct kdbus_vec *vec;
	struct timespec now;
	int result;

	clock_gettime(CLOCK_MONOTONIC, &now);
	msg->size = sizeof(*msg);
	msg->flags = KDBUS_MSG_EXPECT_REPLY;
	msg->dst_id = KDBUS_DST_ID_NAME;
	msg->payload_type = PAYLOAD;
	msg->cookie = 1;
	msg->timeout_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec + TIMEOUT_NS;
	memcpy(add_item(message, KDBUS_ITEM_DST_NAME, sizeof(NAME)), NAME, sizeof(NAME));
	vec = add_item(message, KDBUS_ITEM_PAYLOAD_VEC, sizeof(*vec));
	vec->size = strlen(text);
	vec->address = (uintptr_t)text;
	/* After a signal the same SEND goes on waiting: it does not send twice. */
	while (ioctl(bus->fd, KDBUS_CMD_SEND, &cmd) < 0) {
		if (errno != EINTR)
			return failed("SEND");
	}
	result = show(bus, cmd.reply.offset, text);
	if (free_slice(bus, cmd.reply.offset) < 0)
		return failed("FREE");
	return result;
}

/* Here it has a struct. It fails while messages are queued, which nobody else would see any more. */
static int byebye(const struct bus *bus)
{
	struct kdbus_cmd cmd = { .size = sizeof(cmd) };

	return ioctl(bus->fd, KDBUS_CMD_BYEBYE, &cmd) < 0 ? failed("BYEBYE") : 0;
}

int main(int argc, char **argv)
{
	struct bus bus;

	if (argc != 4 || !*argv[3]) {
		fprintf(stderr, "usage: %s MOUNTPOINT ENDPOINT TEXT\n", argv[0]);
		return 2;
	}
	if (is_known(argv[1]) < 0 || bus_connect(&bus, argv[2]) < 0)
		return 1;
	printf("last:    connection %llu\n", (unsigned long long)bus.id);
	return list(&bus) < 0 || call(&bus, argv[3]) < 0 || byebye(&bus) < 0;
}
