/* kdbus by bare ioctls: no library between the figures and the file system.  With -DBENCH_LAST in the last ABI. */
#ifndef KDBUS_RAW_H
#define KDBUS_RAW_H

#include <fcntl.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "bench.h"
#ifdef BENCH_LAST
#include "kdbus-last.h"
typedef struct kdbus_cmd make_command, name_command;
#else
#include "kdbus.h"
typedef struct kdbus_cmd_make make_command;
typedef struct kdbus_cmd_name name_command;
#endif

#define ALIGN8(n) (((n) + 7) & ~(uint64_t)7)
#define ITEM_HEADER offsetof(struct kdbus_item, data)
#define BLOOM_SIZE 64
#define BUS_PATH_SIZE 512

struct bus {
	int fd;
	uint64_t id;
	const uint8_t *pool;
	uint64_t pool_size;
	uint64_t cookie;
};

/* A command or message that grows by items. */
struct builder {
	uint64_t words[64] __attribute__((aligned(8)));
	uint64_t size;
};

static inline void *begin(struct builder *b, size_t fixed)
{
	memset(b, 0, sizeof(*b));
	b->size = fixed;
	return b->words;
}

static inline void *add_item(struct builder *b, uint64_t type, uint64_t size)
{
	struct kdbus_item *item = (void *)((uint8_t *)b->words + b->size);

	item->size = ITEM_HEADER + size;
	item->type = type;
	b->size += ALIGN8(item->size);
	return item->data;
}

/* The bus is there as long as the descriptor that this gives back.  A mount that begins to exist is waited for. */
static inline int make_bus(const char *mountpoint, char path[BUS_PATH_SIZE])
{
	double limit = now_us() + START_PATIENCE_US;
	struct kdbus_bloom_parameter *bloom;
	struct builder b;
	char name[64];
	int fd;

	snprintf(path, BUS_PATH_SIZE, "%s/control", mountpoint);
	while ((fd = open(path, O_RDWR | O_CLOEXEC)) < 0 && now_us() < limit)
		usleep(500);
	must(fd >= 0, path);
	snprintf(name, sizeof(name), "%u-bench%d", (unsigned)geteuid(), (int)getpid());
	begin(&b, sizeof(make_command));
	memcpy(add_item(&b, KDBUS_ITEM_MAKE_NAME, strlen(name) + 1), name, strlen(name) + 1);
	bloom = add_item(&b, KDBUS_ITEM_BLOOM_PARAMETER, sizeof(*bloom));
	bloom->size = BLOOM_SIZE;
	bloom->n_hash = 1;
	b.words[0] = b.size;
	must(ioctl(fd, KDBUS_CMD_BUS_MAKE, b.words) == 0, "BUS_MAKE");
	snprintf(path, BUS_PATH_SIZE, "%s/%s/bus", mountpoint, name);
	return fd;
}

static inline void free_slice(const struct bus *bus, uint64_t offset)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = offset };

	must(ioctl(bus->fd, KDBUS_CMD_FREE, &cmd) == 0, "FREE");
}

static inline struct bus bus_hello(const char *path, uint64_t pool_size, uint64_t attach_flags)
{
	struct kdbus_cmd_hello hello = {
		.size = sizeof(hello),
		.flags = KDBUS_HELLO_ACCEPT_FD,
		.attach_flags_send = attach_flags,
		.attach_flags_recv = attach_flags,
		.pool_size = pool_size,
	};
	struct bus bus = { .fd = open(path, O_RDWR | O_CLOEXEC), .pool_size = pool_size };

	must(bus.fd >= 0, path);
	must(ioctl(bus.fd, KDBUS_CMD_HELLO, &hello) == 0, "HELLO");
	bus.id = hello.id;
	free_slice(&bus, hello.offset);
	return bus;
}

static inline struct bus bus_connect(const char *path, uint64_t pool_size, uint64_t attach_flags)
{
	struct bus bus = bus_hello(path, pool_size, attach_flags);
	void *pool = mmap(NULL, pool_size, PROT_READ, MAP_SHARED, bus.fd, 0);

	must(pool != MAP_FAILED, "mmap of the pool");
	bus.pool = pool;
	return bus;
}

static inline struct kdbus_msg *begin_message(struct bus *bus, struct builder *b, uint64_t dst_id, uint64_t flags)
{
	struct kdbus_msg *msg = begin(b, sizeof(*msg));

	msg->flags = flags;
	msg->dst_id = dst_id;
	msg->payload_type = KDBUS_PAYLOAD_DBUS;
	msg->cookie = ++bus->cookie;
	return msg;
}

static inline void add_vec(struct builder *b, const void *data, uint64_t size)
{
	struct kdbus_vec *vec = add_item(b, KDBUS_ITEM_PAYLOAD_VEC, sizeof(*vec));

	vec->size = size;
	vec->address = (uintptr_t)data;
}

/* Sends; with KDBUS_SEND_SYNC_REPLY it gives the offset of the reply. */
static inline uint64_t send_message(const struct bus *bus, struct builder *b, uint64_t flags)
{
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .flags = flags, .msg_address = (uintptr_t)b->words };

	b->words[0] = b->size;
	must(ioctl(bus->fd, KDBUS_CMD_SEND, &cmd) == 0, "SEND");
	return cmd.reply.offset;
}

/* The next message, or NULL when there is none. */
static inline const struct kdbus_msg *receive(const struct bus *bus, uint64_t *offset)
{
	struct kdbus_cmd_recv cmd = { .size = sizeof(cmd) };

	if (ioctl(bus->fd, KDBUS_CMD_RECV, &cmd) < 0) {
		must(errno == EAGAIN, "RECV");
		return NULL;
	}
	*offset = cmd.msg.offset;
	return (const struct kdbus_msg *)(bus->pool + cmd.msg.offset);
}

/* What PAYLOAD_OFF counts from. */
static inline const uint8_t *payload_base(const struct bus *bus, const struct kdbus_msg *msg)
{
#ifdef BENCH_LAST
	(void)bus;
	return (const uint8_t *)msg;
#else
	(void)msg;
	return bus->pool;
#endif
}

#endif
