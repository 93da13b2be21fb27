/* guard.c: policy. Lets all users talk to NAME, and none of those who come through a custom endpoint but one. */
#include "bus.h"

static void add_access(void *head, uint64_t type, uint64_t id, uint64_t access)
{
	struct kdbus_policy_access item = { .type = type, .id = id, .access = access };

	add_item(head, KDBUS_ITEM_POLICY_ACCESS, &item, sizeof(item));
}

int main(int argc, char **argv)
{
	WITH_ITEMS(struct kdbus_cmd_hello cmd) holder = { .cmd = {
		.size = sizeof(holder.cmd),
		.flags = KDBUS_HELLO_POLICY_HOLDER,
		.attach_flags_send = _KDBUS_ATTACH_ANY,
		.pool_size = POOL_SIZE,
	} };
	WITH_ITEMS(struct kdbus_cmd_make cmd) make = { .cmd = { .size = sizeof(make.cmd), .flags = KDBUS_MAKE_ACCESS_WORLD } };
	WITH_ITEMS(struct kdbus_cmd_update cmd) bus_policy = { .cmd = { .size = sizeof(bus_policy.cmd) } };
	WITH_ITEMS(struct kdbus_cmd_update cmd) endpoint_policy = { .cmd = { .size = sizeof(endpoint_policy.cmd) } };
	int bus, endpoint;
	char name[64];

	if (argc != 4)
		return 2;
	bus = open(argv[1], O_RDWR | O_CLOEXEC);
	endpoint = open(argv[1], O_RDWR | O_CLOEXEC);
	if (bus < 0 || endpoint < 0)
		die(argv[1]);

	/* On the bus: an entry that grants nothing yet, and then something. It lasts as long as the connection. */
	add_string(&holder, KDBUS_ITEM_NAME, argv[2]);
	if (ioctl(bus, KDBUS_CMD_HELLO, &holder) < 0)
		die("HELLO");
	add_string(&bus_policy, KDBUS_ITEM_NAME, argv[2]);
	add_access(&bus_policy, KDBUS_POLICY_ACCESS_WORLD, 0, KDBUS_POLICY_TALK);
	if (ioctl(bus, KDBUS_CMD_CONN_UPDATE, &bus_policy) < 0)
		die("CONN_UPDATE");

	/* A second way in, where nothing goes but what its own policy allows as well. */
	snprintf(name, sizeof(name), "%u-guarded", geteuid());
	add_string(&make, KDBUS_ITEM_MAKE_NAME, name);
	if (ioctl(endpoint, KDBUS_CMD_ENDPOINT_MAKE, &make) < 0)
		die("ENDPOINT_MAKE");
	add_string(&endpoint_policy, KDBUS_ITEM_NAME, argv[2]);
	add_access(&endpoint_policy, KDBUS_POLICY_ACCESS_USER, (uint64_t)atoi(argv[3]), KDBUS_POLICY_TALK);
	if (ioctl(endpoint, KDBUS_CMD_ENDPOINT_UPDATE, &endpoint_policy) < 0)
		die("ENDPOINT_UPDATE");
	printf("%s is there\n", name);
	fflush(stdout);
	pause();
	return 0;
}
