/* ask.c: a client. Sends a text to a name, and waits up to five seconds for the answer. */
#include "bus.h"

int main(int argc, char **argv)
{
	WITH_ITEMS(struct kdbus_msg msg) u = { .msg = {
		.size = sizeof(u.msg),
		.flags = KDBUS_MSG_EXPECT_REPLY | KDBUS_MSG_NO_AUTO_START,
		.dst_id = KDBUS_DST_ID_NAME,
		.payload_type = 1, /* any number that the two agree on, except 0 */
		.cookie = 1,
	} };
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .flags = KDBUS_SEND_SYNC_REPLY, .msg_address = (uintptr_t)&u };
	const struct kdbus_item *item;
	const struct kdbus_msg *answer;
	struct timespec now;
	struct kdbus_vec vec;
	struct bus bus;

	if (argc != 4)
		return 2;
	bus_connect(&bus, argv[1], 0, 0);
	clock_gettime(CLOCK_MONOTONIC, &now);
	u.msg.timeout_ns = (uint64_t)(now.tv_sec + 5) * 1000000000 + (uint64_t)now.tv_nsec;
	vec.size = strlen(argv[3]);
	vec.address = (uintptr_t)argv[3];
	add_string(&u, KDBUS_ITEM_DST_NAME, argv[2]);
	add_item(&u, KDBUS_ITEM_PAYLOAD_VEC, &vec, sizeof(vec));
	while (ioctl(bus.fd, KDBUS_CMD_SEND, &cmd) < 0) {
		if (errno == EINTR) /* a signal: the same SEND again waits on, and sends nothing */
			continue;
		if (errno == ESRCH)
			fprintf(stderr, "%s: nobody has that name\n", argv[2]);
		else
			perror("SEND");
		return 1;
	}
	answer = (const void *)(bus.pool + cmd.reply.offset);
	FOR_EACH_ITEM(item, answer)
		if (item->type == KDBUS_ITEM_PAYLOAD_OFF && item->vec.offset != ~0ULL)
			printf("%.*s\n", (int)item->vec.size, bus.pool + item->vec.offset);
	pool_free(&bus, cmd.reply.offset);
	return 0;
}
