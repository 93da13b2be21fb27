/* echo.c: a service. Answers every request with the payload that it came with, until one says "quit". */
#include "bus.h"

static void name_command(const struct bus *bus, unsigned long number, const char *what, const char *name)
{
	WITH_ITEMS(struct kdbus_cmd_name cmd) u = { .cmd = { .size = sizeof(u.cmd) } };

	add_string(&u, KDBUS_ITEM_NAME, name);
	if (ioctl(bus->fd, number, &u) < 0)
		die(what);
}

/* Sends back what lies in the pool: the pool is our own memory, and the bus copies from there. */
static void reply(const struct bus *bus, const struct kdbus_msg *request, const struct kdbus_vec *payload)
{
	WITH_ITEMS(struct kdbus_msg msg) u = { .msg = {
		.size = sizeof(u.msg),
		.dst_id = request->src_id,
		.payload_type = request->payload_type,
		.cookie_reply = request->cookie,
	} };
	struct kdbus_vec vec = { .size = payload->size, .address = (uintptr_t)bus->pool + payload->offset };
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .msg_address = (uintptr_t)&u };

	add_item(&u, KDBUS_ITEM_PAYLOAD_VEC, &vec, sizeof(vec));
	/* A client that is gone, or has given up waiting, is no fault of ours. */
	if (ioctl(bus->fd, KDBUS_CMD_SEND, &cmd) < 0)
		perror("reply");
}

int main(int argc, char **argv)
{
	const struct kdbus_item *item;
	const struct kdbus_msg *msg;
	uint64_t offset;
	struct bus bus;
	int quit = 0;

	if (argc != 3)
		return 2;
	bus_connect(&bus, argv[1], 0, KDBUS_ATTACH_CREDS);
	name_command(&bus, KDBUS_CMD_NAME_ACQUIRE, "NAME_ACQUIRE", argv[2]);
	printf("serving %s\n", argv[2]);
	fflush(stdout);
	while (!quit) {
		const struct kdbus_vec *payload = NULL;
		unsigned int uid = -1;

		msg = next_message(&bus, &offset);
		FOR_EACH_ITEM(item, msg) {
			if (item->type == KDBUS_ITEM_PAYLOAD_OFF && item->vec.offset != ~0ULL)
				payload = &item->vec;
			else if (item->type == KDBUS_ITEM_CREDS)
				uid = item->creds.euid;
		}
		if (payload) {
			const char *text = bus.pool + payload->offset;

			printf("user %u says: %.*s\n", uid, (int)payload->size, text);
			fflush(stdout);
			quit = payload->size == 4 && !memcmp(text, "quit", 4);
			if (msg->flags & KDBUS_MSG_EXPECT_REPLY)
				reply(&bus, msg, payload);
		}
		pool_free(&bus, offset);
	}
	name_command(&bus, KDBUS_CMD_NAME_RELEASE, "NAME_RELEASE", argv[2]);
	/* Nobody can address us by the name any more; by the id they still can, until BYEBYE has succeeded. */
	while (ioctl(bus.fd, KDBUS_CMD_BYEBYE, 0) < 0) {
		if (errno != EBUSY)
			die("BYEBYE");
		next_message(&bus, &offset);
		pool_free(&bus, offset);
	}
	return 0;
}
