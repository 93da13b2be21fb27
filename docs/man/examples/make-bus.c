/* make-bus.c: makes a bus that everybody may enter, and keeps it until it is killed. */
#include "bus.h"

int main(int argc, char **argv)
{
	WITH_ITEMS(struct kdbus_cmd_make cmd) make = { .cmd = { .size = sizeof(make.cmd) } };
	struct kdbus_bloom_parameter bloom = { .size = 64, .n_hash = 1 };
	uint64_t required = KDBUS_ATTACH_CREDS; /* who will not say who he is stays outside */
	uint64_t shown = KDBUS_ATTACH_CREDS | KDBUS_ATTACH_PIDS;
	char path[4096], name[64];
	int fd;

	if (argc != 3)
		return 2;
	snprintf(path, sizeof(path), "%s/control", argv[1]);
	snprintf(name, sizeof(name), "%u-%s", geteuid(), argv[2]);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		die(path);
	make.cmd.flags = KDBUS_MAKE_ACCESS_WORLD;
	add_string(&make, KDBUS_ITEM_MAKE_NAME, name);
	add_item(&make, KDBUS_ITEM_BLOOM_PARAMETER, &bloom, sizeof(bloom));
	add_item(&make, KDBUS_ITEM_ATTACH_FLAGS_RECV, &required, sizeof(required));
	add_item(&make, KDBUS_ITEM_ATTACH_FLAGS_SEND, &shown, sizeof(shown));
	if (ioctl(fd, KDBUS_CMD_BUS_MAKE, &make) < 0)
		die("BUS_MAKE");
	printf("%s/%s/bus\n", argv[1], name);
	fflush(stdout);
	pause(); /* the bus ends with the descriptor */
	return 0;
}
