/* tell.c: broadcasts a text about a subject. The text travels in a sealed memfd, which nobody copies. */
#include "bus.h"

int main(int argc, char **argv)
{
	WITH_ITEMS(struct kdbus_msg msg) u = { .msg = {
		.size = sizeof(u.msg),
		.flags = KDBUS_MSG_SIGNAL,
		.dst_id = KDBUS_DST_ID_BROADCAST,
		.payload_type = 1,
		.cookie = 1,
	} };
	struct kdbus_cmd_send cmd = { .size = sizeof(cmd), .msg_address = (uintptr_t)&u };
	struct kdbus_memfd memfd = { .start = 0 };
	struct kdbus_bloom_filter *filter;
	struct bus bus;

	if (argc != 4)
		return 2;
	bus_connect(&bus, argv[1], 0, 0);
	memfd.size = strlen(argv[3]);
	memfd.fd = memfd_create("text", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memfd.fd < 0 || write(memfd.fd, argv[3], memfd.size) != (ssize_t)memfd.size)
		die("memfd");
	/* Without all four seals SEND fails with ETXTBSY: receivers rely on it that nothing changes any more. */
	if (fcntl(memfd.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		die("F_ADD_SEALS");
	add_item(&u, KDBUS_ITEM_PAYLOAD_MEMFD, &memfd, sizeof(memfd));
	filter = add_item(&u, KDBUS_ITEM_BLOOM_FILTER, NULL, sizeof(*filter) + bus.bloom_size);
	bloom_add(&bus, (uint8_t *)filter->data, argv[2]);
	if (ioctl(bus.fd, KDBUS_CMD_SEND, &cmd) < 0)
		die("SEND");
	return 0;
}
