/*
 * A program that speaks the last ABI of kdbus as sd-bus of systemd 220 to 234 does.
 *
 *   last_program check MOUNT          does everything on a bus of its own; says what is wrong and exits with 1
 *   last_program serve BUS NAME COUNT answers COUNT requests to NAME with their payload, in capitals; says "ready" first
 *   last_program call BUS NAME TEXT   calls NAME with TEXT, and prints the answer
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kdbus-last.h"

#define POOL_SIZE (16 << 20)
#define ALIGN8(size) (((size) + 7) & ~7ull)
#define LARGE (512 << 10)
#define PATIENCE_NS 60000000000ull

struct conn {
	int fd;
	uint64_t id;
	const uint8_t *pool;
	uint64_t bloom_size;
};

static void wrong(int line, const char *what)
{
	fprintf(stderr, "line %d: %s (errno %d)\n", line, what, errno);
	exit(1);
}

#define CHECK(what)                             \
	do {                                    \
		if (!(what))                    \
			wrong(__LINE__, #what); \
	} while (0)

/* 0 or the errno. */
static int command(int fd, unsigned long number, void *argument)
{
	int r;

	do
		r = ioctl(fd, number, argument);
	while (r < 0 && errno == EINTR);
	return r < 0 ? errno : 0;
}

/* A struct and its items, built in 8-aligned memory. */
struct build {
	uint64_t words[8192];
	uint64_t size;
};

static void *begin(struct build *b, size_t size)
{
	memset(b, 0, sizeof(*b));
	b->size = size;
	b->words[0] = size;
	return b->words;
}

static struct kdbus_item *add(struct build *b, uint64_t type, const void *payload, size_t size)
{
	struct kdbus_item *item;

	b->size = ALIGN8(b->size);
	item = (void *)((uint8_t *)b->words + b->size);
	item->size = 16 + size;
	item->type = type;
	if (payload)
		memcpy(item->data, payload, size);
	b->size += 16 + size;
	b->words[0] = b->size;
	return item;
}

static void add_string(struct build *b, uint64_t type, const char *text)
{
	add(b, type, text, strlen(text) + 1);
}

static void add_u64(struct build *b, uint64_t type, uint64_t value)
{
	add(b, type, &value, sizeof(value));
}

static void add_vec(struct build *b, const void *data, size_t size)
{
	struct kdbus_vec vec = { .size = size, .address = (uintptr_t)data };

	add(b, KDBUS_ITEM_PAYLOAD_VEC, &vec, sizeof(vec));
}

static void hello(struct conn *conn, const char *path, uint64_t flags, uint64_t recv)
{
	static struct build b;
	struct kdbus_cmd_hello *hello = begin(&b, sizeof(*hello));
	const struct kdbus_item *item;

	conn->fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	CHECK(conn->fd >= 0);
	hello->flags = flags;
	hello->attach_flags_send = _KDBUS_ATTACH_ANY;
	hello->attach_flags_recv = recv;
	hello->pool_size = POOL_SIZE;
	add_string(&b, KDBUS_ITEM_CONN_DESCRIPTION, "last_program");
	CHECK(command(conn->fd, KDBUS_CMD_HELLO, hello) == 0);
	CHECK(hello->return_flags == 0 && hello->attach_flags_send == _KDBUS_ATTACH_ANY && hello->attach_flags_recv == recv);
	CHECK(hello->id && hello->items_size == 32);
	conn->id = hello->id;
	conn->pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, conn->fd, 0);
	CHECK(conn->pool != MAP_FAILED);
	item = (const void *)(conn->pool + hello->offset);
	CHECK(item->size == 32 && item->type == KDBUS_ITEM_BLOOM_PARAMETER);
	conn->bloom_size = item->bloom_parameter.size;
	CHECK(conn->bloom_size >= 8);
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .offset = hello->offset };
	CHECK(command(conn->fd, KDBUS_CMD_FREE, &cmd) == 0);
}

static int free_slice(struct conn *conn, uint64_t offset)
{
	struct kdbus_cmd_free cmd = { .size = sizeof(cmd), .return_flags = 7, .offset = offset };
	int error = command(conn->fd, KDBUS_CMD_FREE, &cmd);

	CHECK(cmd.return_flags == 0);
	return error;
}

static int name_command(struct conn *conn, unsigned long number, const char *name, uint64_t flags, uint64_t *returned)
{
	static struct build b;
	struct kdbus_cmd *cmd = begin(&b, sizeof(*cmd));
	int error;

	cmd->flags = flags;
	cmd->return_flags = 1 << 20;
	add_string(&b, KDBUS_ITEM_NAME, name);
	error = command(conn->fd, number, cmd);
	CHECK(cmd->flags == flags);
	if (returned)
		*returned = cmd->return_flags;
	return error;
}

static struct kdbus_msg *message(struct build *b, uint64_t dst, uint64_t cookie, uint64_t flags)
{
	struct kdbus_msg *msg = begin(b, sizeof(*msg));

	msg->flags = flags;
	msg->dst_id = dst;
	msg->payload_type = KDBUS_PAYLOAD_DBUS;
	msg->cookie = cookie;
	return msg;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int send_message(struct conn *conn, const struct kdbus_msg *msg, uint64_t flags, struct kdbus_msg_info *reply)
{
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .flags = flags, .msg_address = (uintptr_t)msg };
	int error;

	error = command(conn->fd, KDBUS_CMD_SEND, &cmd);
	if (reply)
		*reply = cmd.reply;
	return error;
}

/* EAGAIN, or the message at `*msg`. */
static int receive(struct conn *conn, uint64_t flags, const struct kdbus_msg **msg, struct kdbus_cmd_recv *cmd)
{
	int error;

	*cmd = (struct kdbus_cmd_recv){ .size = sizeof(*cmd), .flags = flags, .priority = -7, .return_flags = 99 };
	error = command(conn->fd, KDBUS_CMD_RECV, cmd);
	CHECK(cmd->size == sizeof(*cmd) && cmd->flags == flags && cmd->priority == -7);
	CHECK(cmd->return_flags == (cmd->dropped_msgs ? KDBUS_RECV_RETURN_DROPPED_MSGS : 0));
	if (error == 0 && !(flags & KDBUS_RECV_DROP)) {
		*msg = (const void *)(conn->pool + cmd->msg.offset);
		CHECK((*msg)->size <= cmd->msg.msg_size);
	} else {
		CHECK(cmd->msg.offset == POOL_SIZE && cmd->msg.msg_size == 0);
	}
	return error;
}

static const struct kdbus_msg *wait_message(struct conn *conn, uint64_t *offset)
{
	const struct kdbus_msg *msg = NULL;
	struct kdbus_cmd_recv cmd;
	int error;

	while ((error = receive(conn, 0, &msg, &cmd)) == EAGAIN) {
		struct pollfd waited = { .fd = conn->fd, .events = POLLIN };

		CHECK(poll(&waited, 1, 60000) == 1);
		CHECK(!(waited.revents & (POLLERR | POLLHUP)));
	}
	CHECK(error == 0);
	*offset = cmd.msg.offset;
	return msg;
}

static const struct kdbus_item *item_of(const struct kdbus_msg *msg, uint64_t type)
{
	const uint8_t *end = (const uint8_t *)msg + msg->size;

	for (const struct kdbus_item *item = msg->items; (const uint8_t *)item < end;
	     item = (const void *)((const uint8_t *)item + ALIGN8(item->size)))
		if (item->type == type)
			return item;
	return NULL;
}

/* The first payload item, which counts from the message. */
static const uint8_t *payload_of(const struct kdbus_msg *msg, uint64_t *size)
{
	const struct kdbus_item *item = item_of(msg, KDBUS_ITEM_PAYLOAD_OFF);

	CHECK(item);
	*size = item->vec.size;
	return (const uint8_t *)msg + item->vec.offset;
}

static void answer(struct conn *conn, uint64_t to, uint64_t cookie, const void *data, size_t size)
{
	static __thread struct build b;
	struct kdbus_msg *msg = message(&b, to, 1, 0);

	msg->cookie_reply = cookie;
	add_vec(&b, data, size);
	CHECK(send_message(conn, msg, 0, NULL) == 0);
}

/* Answers one request with its payload in capitals. */
static void answer_one(struct conn *conn)
{
	uint64_t offset, size;
	const struct kdbus_msg *msg = wait_message(conn, &offset);
	const uint8_t *payload = payload_of(msg, &size);
	char *text = malloc(size);

	CHECK(text && msg->flags & KDBUS_MSG_EXPECT_REPLY);
	for (uint64_t i = 0; i < size; i++)
		text[i] = (char)toupper(payload[i]);
	answer(conn, msg->src_id, msg->cookie, text, size);
	free(text);
	CHECK(free_slice(conn, offset) == 0);
}

static void *answer_thread(void *conn)
{
	answer_one(conn);
	return NULL;
}

static void call(struct conn *conn, uint64_t dst, const char *name, const char *text, char *into)
{
	static struct build b;
	struct kdbus_msg *msg = message(&b, dst, 42, KDBUS_MSG_EXPECT_REPLY);
	const struct kdbus_msg *reply;
	struct kdbus_msg_info info;
	uint64_t size;

	msg->timeout_ns = now_ns() + PATIENCE_NS;
	if (name)
		add_string(&b, KDBUS_ITEM_DST_NAME, name);
	add_vec(&b, text, strlen(text));
	CHECK(send_message(conn, msg, KDBUS_SEND_SYNC_REPLY, &info) == 0);
	CHECK(info.return_flags == 0 && info.msg_size > sizeof(*reply));
	reply = (const void *)(conn->pool + info.offset);
	CHECK(reply->cookie_reply == 42);
	const uint8_t *payload = payload_of(reply, &size);
	CHECK(size == strlen(text) && payload + size <= conn->pool + info.offset + info.msg_size);
	memcpy(into, payload, size);
	into[size] = 0;
	CHECK(free_slice(conn, info.offset) == 0);
	CHECK(free_slice(conn, info.offset) == ENXIO);
}

static int bus_make(const char *mount, const char *name)
{
	static struct build b;
	struct kdbus_cmd *make = begin(&b, sizeof(*make));
	struct kdbus_bloom_parameter bloom = { .size = 64, .n_hash = 8 };
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/control", mount);
	fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	CHECK(fd >= 0);
	/* What sd-bus asks to find out whether there is such a kdbus at all. */
	make->flags = KDBUS_FLAG_NEGOTIATE;
	CHECK(command(fd, KDBUS_CMD_BUS_MAKE, make) == 0);
	CHECK(make->flags == (KDBUS_MAKE_ACCESS_GROUP | KDBUS_MAKE_ACCESS_WORLD));
	make = begin(&b, sizeof(*make));
	make->flags = KDBUS_MAKE_ACCESS_WORLD;
	add(&b, KDBUS_ITEM_BLOOM_PARAMETER, &bloom, sizeof(bloom));
	add_u64(&b, KDBUS_ITEM_ATTACH_FLAGS_SEND, _KDBUS_ATTACH_ANY);
	add_string(&b, KDBUS_ITEM_MAKE_NAME, name);
	CHECK(command(fd, KDBUS_CMD_BUS_MAKE, make) == 0);
	CHECK(make->return_flags == 0);
	CHECK(command(fd, KDBUS_CMD_BUS_MAKE, make) == EBADFD);
	CHECK(command(fd, KDBUS_CMD_HELLO, make) == EBADFD);
	CHECK(command(fd, 0x40209500, make) == ENOTTY); /* of version 3 */
	return fd;
}

static void check_negotiation(struct conn *conn)
{
	static const struct {
		unsigned long number;
		uint64_t size, flags;
	} commands[] = {
		{ KDBUS_CMD_NAME_ACQUIRE, sizeof(struct kdbus_cmd), 7 },
		{ KDBUS_CMD_NAME_RELEASE, sizeof(struct kdbus_cmd), 0 },
		{ KDBUS_CMD_UPDATE, sizeof(struct kdbus_cmd), 0 },
		{ KDBUS_CMD_BYEBYE, sizeof(struct kdbus_cmd), 0 },
		{ KDBUS_CMD_LIST, sizeof(struct kdbus_cmd_list), 15 },
		{ KDBUS_CMD_CONN_INFO, sizeof(struct kdbus_cmd_info), 0 },
		{ KDBUS_CMD_BUS_CREATOR_INFO, sizeof(struct kdbus_cmd_info), 0 },
		{ KDBUS_CMD_RECV, sizeof(struct kdbus_cmd_recv), 7 },
		{ KDBUS_CMD_FREE, sizeof(struct kdbus_cmd_free), 0 },
		{ KDBUS_CMD_MATCH_ADD, sizeof(struct kdbus_cmd_match), 1 },
		{ KDBUS_CMD_MATCH_REMOVE, sizeof(struct kdbus_cmd_match), 0 },
		{ KDBUS_CMD_SEND, sizeof(struct kdbus_cmd_send), 1 },
	};
	static struct build b;

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		const uint64_t types[2] = { KDBUS_ITEM_NEGOTIATE, KDBUS_ITEM_PAYLOAD_OFF };
		struct kdbus_cmd *cmd = begin(&b, commands[i].size);
		struct kdbus_item *item = add(&b, KDBUS_ITEM_NEGOTIATE, types, sizeof(types));

		cmd->flags = KDBUS_FLAG_NEGOTIATE;
		CHECK(command(conn->fd, commands[i].number, cmd) == 0);
		CHECK(cmd->flags == commands[i].flags);
		CHECK(item->data64[0] == KDBUS_ITEM_NEGOTIATE && item->data64[1] == 0);
	}
}

static void check_refusals(struct conn *conn)
{
	struct kdbus_cmd_recv recv = { .size = 8, .flags = 1, .return_flags = 77, .priority = 5 };
	struct kdbus_cmd_list *edge;
	uint8_t *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(command(conn->fd, KDBUS_CMD_RECV, &recv) == EINVAL);
	CHECK(recv.size == 8 && recv.flags == 1 && recv.return_flags == 77 && recv.priority == 5);
	recv.size = 32769;
	CHECK(command(conn->fd, KDBUS_CMD_RECV, &recv) == EMSGSIZE);
	CHECK(command(conn->fd, KDBUS_CMD_RECV, NULL) == EFAULT);
	CHECK(command(conn->fd, KDBUS_CMD_LIST, (uint8_t *)page + 4) == EFAULT);
	recv.size = sizeof(recv);
	recv.flags = 1 << 20;
	CHECK(command(conn->fd, KDBUS_CMD_RECV, &recv) == EINVAL);
	CHECK(recv.return_flags == 0 && recv.priority == 5);
	/* A struct at the end of what can be read. */
	CHECK(munmap(page + 4096, 4096) == 0);
	edge = (void *)(page + 4096 - 8);
	edge->size = 16;
	CHECK(command(conn->fd, KDBUS_CMD_LIST, edge) == EINVAL);
	edge->size = sizeof(*edge);
	CHECK(command(conn->fd, KDBUS_CMD_LIST, edge) == EFAULT);
	edge = (void *)(page + 4096 - sizeof(*edge));
	*edge = (struct kdbus_cmd_list){ .size = sizeof(*edge) + 16 };
	CHECK(command(conn->fd, KDBUS_CMD_LIST, edge) == EFAULT);
	CHECK(command(conn->fd, 0xc0489531, &recv) == ENOTTY); /* RECV of version 3 */
	CHECK(command(conn->fd, KDBUS_CMD_HELLO, &recv) == EBADFD);
	CHECK(free_slice(conn, POOL_SIZE) == 0 && free_slice(conn, 8) == ENXIO);
}

/* The rules stand behind the first 8 bytes of `rules`. */
static void add_match(struct conn *conn, uint64_t cookie, const struct build *rules)
{
	static struct build b;
	struct kdbus_cmd_match *cmd = begin(&b, sizeof(*cmd));

	cmd->cookie = cookie;
	memcpy((uint8_t *)b.words + sizeof(*cmd), rules->words + 1, rules->size - 8);
	cmd->size = sizeof(*cmd) + rules->size - 8;
	CHECK(command(conn->fd, KDBUS_CMD_MATCH_ADD, cmd) == 0);
}

static void check_matches(struct conn *sender, struct conn *receiver)
{
	static struct build rules, b;
	struct kdbus_cmd_match remove = { .size = sizeof(remove), .cookie = 1 };
	struct kdbus_bloom_filter *filter = calloc(1, sizeof(*filter) + sender->bloom_size);
	uint64_t offset;

	CHECK(filter);
	filter->data[0] = 6;
	begin(&rules, 8);
	add(&rules, KDBUS_ITEM_BLOOM_MASK, filter->data, sender->bloom_size);
	add_u64(&rules, KDBUS_ITEM_ID, sender->id);
	add_u64(&rules, KDBUS_ITEM_DST_ID, KDBUS_DST_ID_BROADCAST);
	add_match(receiver, 1, &rules);
	add_match(sender, 1, &rules); /* one's own broadcasts */
	filter->data[0] = 7;
	struct kdbus_msg *msg = message(&b, KDBUS_DST_ID_BROADCAST, 5, KDBUS_MSG_SIGNAL);
	add_vec(&b, "signal", 6);
	add(&b, KDBUS_ITEM_BLOOM_FILTER, filter, sizeof(*filter) + sender->bloom_size);
	CHECK(send_message(sender, msg, 0, NULL) == 0);
	for (struct conn *conn = receiver; conn; conn = conn == receiver ? sender : NULL) {
		const struct kdbus_msg *got = wait_message(conn, &offset);
		uint64_t size;

		CHECK(got->src_id == sender->id && got->cookie == 5 && got->flags == KDBUS_MSG_SIGNAL);
		CHECK(got->dst_id == KDBUS_DST_ID_BROADCAST && item_of(got, KDBUS_ITEM_BLOOM_FILTER));
		CHECK(memcmp(payload_of(got, &size), "signal", 6) == 0 && size == 6);
		CHECK(free_slice(conn, offset) == 0);
		CHECK(command(conn->fd, KDBUS_CMD_MATCH_REMOVE, &remove) == 0);
		CHECK(command(conn->fd, KDBUS_CMD_MATCH_REMOVE, &remove) == EBADSLT);
	}
	/* A change of owner, as of a name that is watched. */
	struct {
		struct kdbus_notify_name_change change;
		char name[32];
	} change = { .change = { .old_id = { .id = KDBUS_MATCH_ID_ANY }, .new_id = { .id = KDBUS_MATCH_ID_ANY } } };
	strcpy(change.name, "com.example.watched");
	begin(&rules, 8);
	add(&rules, KDBUS_ITEM_NAME_ADD, &change, 32 + strlen(change.name) + 1);
	add_match(receiver, 2, &rules);
	CHECK(name_command(sender, KDBUS_CMD_NAME_ACQUIRE, change.name, 0, NULL) == 0);
	const struct kdbus_msg *got = wait_message(receiver, &offset);
	const struct kdbus_item *item = item_of(got, KDBUS_ITEM_NAME_ADD);
	CHECK(item && item->size == 16 + 32 + strlen(change.name) + 1 && got->flags == KDBUS_MSG_SIGNAL);
	CHECK(item->name_change.new_id.id == sender->id && item->name_change.new_id.flags == KDBUS_NAME_PRIMARY);
	CHECK(item_of(got, KDBUS_ITEM_TIMESTAMP));
	CHECK(free_slice(receiver, offset) == 0);
	free(filter);
}

static void check_names(struct conn *first, struct conn *second)
{
	uint64_t flags;

	CHECK(name_command(first, KDBUS_CMD_NAME_ACQUIRE, "com.example.last", KDBUS_NAME_ALLOW_REPLACEMENT, &flags) == 0);
	CHECK(flags == (KDBUS_NAME_ALLOW_REPLACEMENT | KDBUS_NAME_PRIMARY | KDBUS_NAME_ACQUIRED));
	CHECK(name_command(first, KDBUS_CMD_NAME_ACQUIRE, "com.example.last", 0, &flags) == 0);
	CHECK(flags == KDBUS_NAME_PRIMARY);
	CHECK(name_command(second, KDBUS_CMD_NAME_ACQUIRE, "com.example.last", 0, &flags) == EEXIST && flags == 0);
	CHECK(name_command(second, KDBUS_CMD_NAME_ACQUIRE, "com.example.last", KDBUS_NAME_QUEUE, &flags) == 0);
	CHECK(flags == (KDBUS_NAME_QUEUE | KDBUS_NAME_IN_QUEUE | KDBUS_NAME_ACQUIRED));
	CHECK(name_command(second, KDBUS_CMD_NAME_RELEASE, "com.example.last", 0, NULL) == 0);
	CHECK(name_command(second, KDBUS_CMD_NAME_RELEASE, "com.example.last", 0, NULL) == EADDRINUSE);
	CHECK(name_command(second, KDBUS_CMD_NAME_RELEASE, "com.example.nobody", 0, NULL) == ESRCH);
}

static void check_list(struct conn *first, struct conn *second)
{
	struct kdbus_cmd_list cmd = { .size = sizeof(cmd), .flags = KDBUS_LIST_UNIQUE | KDBUS_LIST_NAMES };
	int found = 0, named = 0;

	CHECK(command(first->fd, KDBUS_CMD_LIST, &cmd) == 0);
	for (uint64_t at = 0; at < cmd.list_size;) {
		const struct kdbus_info *info = (const void *)(first->pool + cmd.offset + at);

		CHECK(info->size >= sizeof(*info) && info->size % 8 == 0 && at + info->size <= cmd.list_size);
		CHECK(info->id == first->id || info->id == second->id);
		found++;
		if (info->size > sizeof(*info)) {
			CHECK(info->items[0].type == KDBUS_ITEM_OWNED_NAME && info->id == first->id);
			CHECK(strcmp((const char *)info->items[0].data + 8, "com.example.last") == 0);
			CHECK(info->items[0].name.flags == KDBUS_NAME_PRIMARY);
			named++;
		}
		at += info->size;
	}
	CHECK(found == 2 && named == 1);
	CHECK(free_slice(first, cmd.offset) == 0);
	cmd = (struct kdbus_cmd_list){ .size = sizeof(cmd), .flags = KDBUS_LIST_QUEUED };
	CHECK(command(first->fd, KDBUS_CMD_LIST, &cmd) == 0 && cmd.offset == POOL_SIZE && cmd.list_size == 0);
}

static void check_info(struct conn *first, struct conn *second)
{
	static struct build b;
	struct kdbus_cmd_info *cmd = begin(&b, sizeof(*cmd));
	const struct kdbus_info *info;
	int creds = 0;

	cmd->attach_flags = _KDBUS_ATTACH_ANY;
	add_string(&b, KDBUS_ITEM_NAME, "com.example.last");
	CHECK(command(second->fd, KDBUS_CMD_CONN_INFO, cmd) == 0);
	info = (const void *)(second->pool + cmd->offset);
	CHECK(info->id == first->id && info->size == cmd->info_size);
	for (const struct kdbus_item *item = info->items; (const uint8_t *)item < (const uint8_t *)info + info->size;
	     item = (const void *)((const uint8_t *)item + ALIGN8(item->size))) {
		if (item->type == KDBUS_ITEM_CREDS) {
			CHECK(item->size == 80 && item->creds.uid == getuid() && item->creds.egid == getegid());
			creds++;
		}
		if (item->type == KDBUS_ITEM_PIDS)
			CHECK(item->pids.pid == (uint64_t)getpid());
	}
	CHECK(creds == 1);
	CHECK(free_slice(second, cmd->offset) == 0);
	cmd->id = second->id;
	CHECK(command(second->fd, KDBUS_CMD_CONN_INFO, cmd) == ESRCH);
	cmd = begin(&b, sizeof(*cmd));
	cmd->attach_flags = _KDBUS_ATTACH_ANY;
	CHECK(command(second->fd, KDBUS_CMD_CONN_INFO, cmd) == EINVAL);
	CHECK(command(second->fd, KDBUS_CMD_BUS_CREATOR_INFO, cmd) == 0);
	info = (const void *)(second->pool + cmd->offset);
	CHECK(info->items[0].type == KDBUS_ITEM_MAKE_NAME);
	CHECK(free_slice(second, cmd->offset) == 0);
}

static void check_calls(struct conn *first, struct conn *second)
{
	static struct build b;
	struct kdbus_msg *msg;
	uint64_t offset, size;
	pthread_t thread;
	char text[64];

	/* As sd_bus_call_async. */
	msg = message(&b, KDBUS_DST_ID_NAME, 3, KDBUS_MSG_EXPECT_REPLY);
	msg->timeout_ns = now_ns() + PATIENCE_NS;
	add_string(&b, KDBUS_ITEM_DST_NAME, "com.example.last");
	add_vec(&b, "header", 6);
	struct kdbus_vec zeros = { .size = 10 };
	add(&b, KDBUS_ITEM_PAYLOAD_VEC, &zeros, sizeof(zeros));
	CHECK(send_message(second, msg, 0, NULL) == 0);
	const struct kdbus_msg *got = wait_message(first, &offset);
	CHECK(got->cookie == 3 && got->timeout_ns == msg->timeout_ns && got->src_id == second->id);
	CHECK(got->items[0].type == KDBUS_ITEM_DST_NAME && item_of(got, KDBUS_ITEM_CREDS));
	CHECK(memcmp(payload_of(got, &size), "header", 6) == 0 && size == 6);
	answer(first, second->id, 3, "reply", 5);
	CHECK(free_slice(first, offset) == 0);
	got = wait_message(second, &offset);
	CHECK(got->cookie_reply == 3 && memcmp(payload_of(got, &size), "reply", 5) == 0);
	CHECK(free_slice(second, offset) == 0);
	msg = message(&b, second->id, 4, 0);
	msg->cookie_reply = 77;
	CHECK(send_message(first, msg, 0, NULL) == EBADSLT);
	/* As sd_bus_call. */
	for (int i = 0; i < 3; i++) {
		CHECK(pthread_create(&thread, NULL, answer_thread, first) == 0);
		call(second, i == 2 ? first->id : KDBUS_DST_ID_NAME, i == 2 ? NULL : "com.example.last", "capitals", text);
		CHECK(strcmp(text, "CAPITALS") == 0);
		CHECK(pthread_join(thread, NULL) == 0);
	}
	/* One that is late is not sent. */
	msg = message(&b, first->id, 9, KDBUS_MSG_EXPECT_REPLY);
	msg->timeout_ns = now_ns() - 1;
	CHECK(send_message(second, msg, KDBUS_SEND_SYNC_REPLY, NULL) == ETIMEDOUT);
	/* And one that nobody answers. */
	msg->timeout_ns = now_ns() + 50000000;
	CHECK(send_message(second, msg, KDBUS_SEND_SYNC_REPLY, NULL) == ETIMEDOUT);
	got = wait_message(first, &offset);
	CHECK(got->cookie == 9 && free_slice(first, offset) == 0);
}

static void check_large(struct conn *first, struct conn *second)
{
	static struct build b;
	uint8_t *data;
	int memfd = memfd_create("payload", MFD_CLOEXEC | MFD_ALLOW_SEALING), pipes[2];
	const struct kdbus_item *item;
	uint64_t offset;
	struct kdbus_cmd_recv cmd;
	const struct kdbus_msg *got;

	CHECK(memfd >= 0 && ftruncate(memfd, LARGE) == 0 && pipe2(pipes, O_CLOEXEC) == 0);
	CHECK(pwrite(memfd, "large", 5, LARGE - 5) == 5);
	CHECK(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0);
	struct kdbus_msg *msg = message(&b, first->id, 6, 0);
	struct kdbus_memfd sent = { .size = LARGE, .fd = memfd };
	add_vec(&b, "head", 4);
	add(&b, KDBUS_ITEM_PAYLOAD_MEMFD, &sent, sizeof(sent));
	add(&b, KDBUS_ITEM_FDS, &pipes[1], sizeof(int));
	CHECK(send_message(second, msg, 0, NULL) == 0);
	CHECK(receive(first, KDBUS_RECV_PEEK, &got, &cmd) == 0);
	CHECK(item_of(got, KDBUS_ITEM_FDS)->fds[0] == -1 && item_of(got, KDBUS_ITEM_PAYLOAD_MEMFD)->memfd.fd == -1);
	offset = cmd.msg.offset;
	CHECK(receive(first, 0, &got, &cmd) == 0);
	CHECK(cmd.msg.offset == offset && cmd.msg.return_flags == 0);
	item = item_of(got, KDBUS_ITEM_PAYLOAD_MEMFD);
	CHECK(item->memfd.fd >= 0 && item->memfd.size == LARGE);
	data = mmap(NULL, LARGE, PROT_READ, MAP_PRIVATE, item->memfd.fd, 0);
	CHECK(data != MAP_FAILED && memcmp(data + LARGE - 5, "large", 5) == 0);
	item = item_of(got, KDBUS_ITEM_FDS);
	CHECK(item->fds[0] >= 0 && write(item->fds[0], "x", 1) == 1);
	CHECK(read(pipes[0], data = malloc(8), 8) == 1);
	CHECK(free_slice(first, offset) == 0 && free_slice(first, offset) == ENXIO);
	/* Many bytes by vectors. */
	data = malloc(2 << 20);
	CHECK(data);
	memset(data, 'y', 2 << 20);
	msg = message(&b, first->id, 7, 0);
	add_vec(&b, data, 2 << 20);
	CHECK(send_message(second, msg, 0, NULL) == 0);
	CHECK(send_message(second, msg, 0, NULL) == ENOBUFS); /* a third of half of the pool */
	got = wait_message(first, &offset);
	uint64_t size;
	const uint8_t *payload = payload_of(got, &size);
	CHECK(size == 2 << 20 && payload[0] == 'y' && payload[size - 1] == 'y');
	CHECK(free_slice(first, offset) == 0);
}

static void check_end(struct conn *first, struct conn *second, const char *path)
{
	static struct build b;
	struct kdbus_cmd byebye = { .size = sizeof(byebye) };
	struct conn monitor;
	const struct kdbus_msg *got;
	uint64_t offset;

	hello(&monitor, path, KDBUS_HELLO_MONITOR, 0);
	struct kdbus_msg *msg = message(&b, first->id, 8, 0);
	CHECK(send_message(second, msg, 0, NULL) == 0);
	got = wait_message(&monitor, &offset);
	CHECK(got->cookie == 8 && got->dst_id == first->id);
	CHECK(command(first->fd, KDBUS_CMD_BYEBYE, &byebye) == EBUSY);
	struct kdbus_cmd_recv cmd;
	CHECK(receive(first, KDBUS_RECV_DROP, &got, &cmd) == 0);
	CHECK(command(first->fd, KDBUS_CMD_BYEBYE, &byebye) == 0);
	CHECK(command(first->fd, KDBUS_CMD_BYEBYE, &byebye) == ECONNRESET);
	struct pollfd polled = { .fd = first->fd, .events = POLLIN };
	CHECK(poll(&polled, 1, 0) == 1 && polled.revents & POLLHUP);
	CHECK(send_message(second, msg, 0, NULL) == ENXIO);
	close(monitor.fd);
}

static void check(const char *mount)
{
	const uint64_t recv = KDBUS_ATTACH_CREDS | KDBUS_ATTACH_PIDS | KDBUS_ATTACH_NAMES | KDBUS_ATTACH_TIMESTAMP;
	struct conn first, second;
	char name[64], path[4096];
	int bus;

	snprintf(name, sizeof(name), "%u-last", getuid());
	bus = bus_make(mount, name);
	snprintf(path, sizeof(path), "%s/%s/bus", mount, name);
	hello(&first, path, KDBUS_HELLO_ACCEPT_FD, recv);
	hello(&second, path, KDBUS_HELLO_ACCEPT_FD, recv);
	check_negotiation(&first);
	check_refusals(&first);
	check_names(&first, &second);
	check_list(&first, &second);
	check_info(&first, &second);
	check_calls(&first, &second);
	check_large(&first, &second);
	check_matches(&second, &first);
	check_end(&first, &second, path);
	close(bus);
	CHECK(access(path, F_OK) < 0);
	puts("All of it works.");
}

int main(int argc, char *argv[])
{
	struct conn conn;
	char text[4096];

	if (argc == 3 && strcmp(argv[1], "check") == 0) {
		check(argv[2]);
		return 0;
	}
	if (argc != 5)
		return 2;
	hello(&conn, argv[2], KDBUS_HELLO_ACCEPT_FD, 0);
	if (strcmp(argv[1], "serve") == 0) {
		CHECK(name_command(&conn, KDBUS_CMD_NAME_ACQUIRE, argv[3], 0, NULL) == 0);
		puts("ready");
		fflush(stdout);
		for (int i = atoi(argv[4]); i > 0; i--)
			answer_one(&conn);
		return 0;
	}
	CHECK(strlen(argv[4]) < sizeof(text));
	call(&conn, KDBUS_DST_ID_NAME, argv[3], argv[4], text);
	puts(text);
	return 0;
}
