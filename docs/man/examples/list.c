/* list.c: everybody on a bus, and who made it. */
#include "bus.h"

/* Asks about a connection, or with BUS_CREATOR_INFO about the bus, and prints the answer. */
static void print_info(const struct bus *bus, unsigned long number, uint64_t id, const char *what)
{
	struct kdbus_cmd_info cmd = {
		.size = sizeof(cmd),
		.flags = KDBUS_ATTACH_CREDS | KDBUS_ATTACH_PIDS,
		.id = id,
	};
	const struct kdbus_item *item;
	const struct kdbus_info *info;

	if (ioctl(bus->fd, number, &cmd) < 0) {
		if (errno == ENXIO) /* it has left in the meantime */
			return;
		die("INFO");
	}
	info = (const void *)(bus->pool + cmd.offset);
	printf("%s %llu", what, (unsigned long long)info->id);
	FOR_EACH_ITEM(item, info) {
		if (item->type == KDBUS_ITEM_CREDS)
			printf(" uid %u", item->creds.uid);
		else if (item->type == KDBUS_ITEM_PIDS)
			printf(" pid %llu", (unsigned long long)item->pids.pid);
		else if (item->type == KDBUS_ITEM_MAKE_NAME)
			printf(" %s", item->str);
	}
	printf("\n");
	pool_free(bus, cmd.offset);
}

int main(int argc, char **argv)
{
	struct kdbus_cmd_name_list cmd = {
		.size = sizeof(cmd),
		.flags = KDBUS_NAME_LIST_UNIQUE | KDBUS_NAME_LIST_NAMES | KDBUS_NAME_LIST_ACTIVATORS,
	};
	const struct kdbus_name_list *list;
	const struct kdbus_name_info *record;
	struct bus bus;

	if (argc != 2)
		return 2;
	bus_connect(&bus, argv[1], 0, 0);
	print_info(&bus, KDBUS_CMD_BUS_CREATOR_INFO, 0, "bus");
	if (ioctl(bus.fd, KDBUS_CMD_NAME_LIST, &cmd) < 0)
		die("NAME_LIST");
	list = (const void *)(bus.pool + cmd.offset);
	for (record = list->names; (const char *)record < (const char *)list + list->size;
	     record = (const void *)((const char *)record + record->size)) {
		if (record->size > sizeof(*record)) /* a record of a name has an item */
			printf("%s: ", record->items[0].name.name);
		print_info(&bus, KDBUS_CMD_CONN_INFO, record->owner_id, "connection");
	}
	pool_free(&bus, cmd.offset);
	return 0;
}
