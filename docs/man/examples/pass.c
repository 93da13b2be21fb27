/* pass.c: asks without waiting, passes a descriptor along, and answers itself: a connection may talk to itself. */
#include "bus.h"

static void send_message(const struct bus *bus, void *msg)
{
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .msg_address = (uintptr_t)msg };

	if (ioctl(bus->fd, KDBUS_CMD_SEND, &cmd) < 0)
		die("SEND");
}

int main(int argc, char **argv)
{
	WITH_ITEMS(struct kdbus_msg msg) request = { .msg = {
		.size = sizeof(request.msg),
		.flags = KDBUS_MSG_EXPECT_REPLY,
		.payload_type = 1,
		.cookie = 7,
	} };
	struct kdbus_msg answer = { .size = sizeof(answer), .payload_type = 1, .cookie = 8, .cookie_reply = 7 };
	const struct kdbus_item *item;
	const struct kdbus_msg *msg;
	struct timespec now;
	char text[64] = "";
	uint64_t offset;
	struct bus bus;
	int ends[2];

	if (argc != 2 || pipe(ends) < 0)
		return 2;
	bus_connect(&bus, argv[1], KDBUS_HELLO_ACCEPT_FD, 0);
	clock_gettime(CLOCK_MONOTONIC, &now);
	request.msg.timeout_ns = (uint64_t)(now.tv_sec + 5) * 1000000000;
	request.msg.dst_id = answer.dst_id = bus.id;
	add_item(&request, KDBUS_ITEM_FDS, &ends[1], sizeof(ends[1]));
	send_message(&bus, &request);
	close(ends[1]); /* the message keeps the file open */

	msg = next_message(&bus, &offset);
	FOR_EACH_ITEM(item, msg) {
		if (item->type != KDBUS_ITEM_FDS)
			continue;
		if (item->fds[0] < 0) { /* not installed: this is the negative errno */
			fprintf(stderr, "no descriptor: %s\n", strerror(-item->fds[0]));
			return 1;
		}
		dprintf(item->fds[0], "through the pipe");
		close(item->fds[0]);
	}
	pool_free(&bus, offset);
	send_message(&bus, &answer);

	msg = next_message(&bus, &offset);
	if (msg->src_id == KDBUS_SRC_ID_KERNEL)
		printf("no answer: %s\n", msg->items[0].type == KDBUS_ITEM_REPLY_TIMEOUT ? "too late" : "it is gone");
	else if (read(ends[0], text, sizeof(text) - 1) > 0)
		printf("answer to %llu, and %s\n", (unsigned long long)msg->cookie_reply, text);
	pool_free(&bus, offset);
	return 0;
}
