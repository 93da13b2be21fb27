/* The transport of `scenarios.c` over kdbus. */
#define _GNU_SOURCE
#include "kdbus_raw.h"
#include "transport.h"

#define CALL_TIMEOUT_NS 20000000000ULL

struct connection {
	struct bus bus;
};

static char bus_path[BUS_PATH_SIZE];
static uint64_t wanted_metadata;

void bus_begin(const char *where)
{
	make_bus(where, bus_path);
}

void bus_want_metadata(uint64_t attach_flags)
{
	wanted_metadata = attach_flags;
}

struct connection *connection_open(size_t pool_size)
{
	struct connection *c = calloc(1, sizeof(*c));

	must(c != NULL, "memory");
	c->bus = bus_connect(bus_path, pool_size, wanted_metadata);
	return c;
}

void connection_close(struct connection *c)
{
	munmap((void *)(uintptr_t)c->bus.pool, c->bus.pool_size);
	close(c->bus.fd);
	free(c);
}

struct address connection_address(const struct connection *c)
{
	return (struct address){ .id = c->bus.id };
}

int connection_fd(const struct connection *c)
{
	return c->bus.fd;
}

void connection_own(struct connection *c, const char *name)
{
	struct builder b;

	begin(&b, sizeof(name_command));
	memcpy(add_item(&b, KDBUS_ITEM_NAME, strlen(name) + 1), name, strlen(name) + 1);
	b.words[0] = b.size;
	must(ioctl(c->bus.fd, KDBUS_CMD_NAME_ACQUIRE, b.words) == 0, name);
}

/* A topic is a bit of the bloom filter; the filter of a broadcast has only bit 0 of every byte. */
void connection_match(struct connection *c, unsigned topic)
{
	struct kdbus_cmd_match *cmd;
	struct builder b;
	uint8_t *mask;

	cmd = begin(&b, sizeof(*cmd));
	mask = add_item(&b, KDBUS_ITEM_BLOOM_MASK, BLOOM_SIZE);
	if (topic)
		mask[topic % BLOOM_SIZE] = (uint8_t)(2 << topic / BLOOM_SIZE);
	else
		memset(mask, 1, BLOOM_SIZE);
	cmd->size = b.size;
	cmd->cookie = topic;
	must(ioctl(c->bus.fd, KDBUS_CMD_MATCH_ADD, cmd) == 0, "MATCH_ADD");
}

static void add_payload(struct builder *b, const struct payload *payload)
{
	struct kdbus_memfd *item;

	if (payload->memfd < 0) {
		add_vec(b, payload->data, payload->size);
		return;
	}
	item = add_item(b, KDBUS_ITEM_PAYLOAD_MEMFD, sizeof(*item));
	item->size = payload->size;
	item->fd = payload->memfd;
}

static struct kdbus_msg *begin_to(struct connection *c, struct builder *b, const struct address *to, uint64_t flags)
{
	struct kdbus_msg *msg = begin_message(&c->bus, b, to->id, flags);

	if (to->id == 0)
		memcpy(add_item(b, KDBUS_ITEM_DST_NAME, strlen(to->name) + 1), to->name, strlen(to->name) + 1);
	return msg;
}

/* Payload is what one item holds. */
static void find_payload(const struct connection *c, const struct kdbus_msg *msg, struct message *message)
{
	const struct kdbus_item *item = msg->items;
	const uint8_t *end = (const uint8_t *)msg + msg->size;

	message->memfd = -1;
	message->data = NULL;
	message->size = 0;
	for (; (const uint8_t *)item + ITEM_HEADER <= end;
	     item = (const void *)((const uint8_t *)item + ALIGN8(item->size)))
		if (item->type == KDBUS_ITEM_PAYLOAD_OFF) {
			message->data = payload_base(&c->bus, msg) + item->vec.offset;
			message->size = item->vec.size;
		} else if (item->type == KDBUS_ITEM_PAYLOAD_MEMFD) {
			must(item->memfd.fd >= 0, "descriptor of a memfd");
			message->memfd = item->memfd.fd;
			message->size = item->memfd.size;
		}
}

void connection_call(struct connection *c, const struct address *to, const struct payload *payload)
{
	struct kdbus_msg *msg;
	struct message reply;
	struct timespec now;
	struct builder b;
	uint64_t offset;

	msg = begin_to(c, &b, to, KDBUS_MSG_EXPECT_REPLY);
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	msg->timeout_ns = (uint64_t)now.tv_sec * 1000000000 + CALL_TIMEOUT_NS;
	add_payload(&b, payload);
	offset = send_message(&c->bus, &b, KDBUS_SEND_SYNC_REPLY);
	find_payload(c, (const void *)(c->bus.pool + offset), &reply);
	must(reply.size == REPLY_SIZE && !memcmp(reply.data, REPLY, REPLY_SIZE), "another reply");
	free_slice(&c->bus, offset);
}

void connection_send(struct connection *c, const struct address *to, const struct payload *payload)
{
	struct builder b;

	begin_to(c, &b, to, 0);
	add_payload(&b, payload);
	send_message(&c->bus, &b, 0);
}

void connection_broadcast(struct connection *c, const struct payload *payload)
{
	struct kdbus_bloom_filter *filter;
	struct builder b;

	begin_message(&c->bus, &b, KDBUS_DST_ID_BROADCAST, KDBUS_MSG_SIGNAL);
	add_payload(&b, payload);
	filter = add_item(&b, KDBUS_ITEM_BLOOM_FILTER, sizeof(*filter) + BLOOM_SIZE);
	memset(filter->data, 1, BLOOM_SIZE);
	send_message(&c->bus, &b, 0);
}

void connection_flush(struct connection *c)
{
	(void)c;
}

int connection_receive(struct connection *c, struct message *message)
{
	const struct kdbus_msg *msg = receive(&c->bus, &message->offset);

	if (!msg)
		return 0;
	message->source = msg->src_id;
	message->cookie = msg->cookie;
	find_payload(c, msg, message);
	return 1;
}

void connection_release(struct connection *c, struct message *message)
{
	if (message->memfd >= 0)
		close(message->memfd);
	free_slice(&c->bus, message->offset);
}

void connection_answer(struct connection *c, struct message *message)
{
	struct kdbus_msg *reply;
	struct builder b;

	connection_release(c, message);
	reply = begin_message(&c->bus, &b, message->source, 0);
	reply->cookie_reply = message->cookie;
	add_vec(&b, REPLY, REPLY_SIZE);
	send_message(&c->bus, &b, 0);
}
