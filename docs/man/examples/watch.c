/* watch.c: prints signals about a subject, and the names that appear, until the name NAME is gone again. */
#include "bus.h"

static void match_add(const struct bus *bus, uint64_t cookie, uint64_t type, const void *rule, size_t size)
{
	WITH_ITEMS(struct kdbus_cmd_match cmd) u = { .cmd = { .size = sizeof(u.cmd), .cookie = cookie } };

	add_item(&u, type, rule, size);
	if (ioctl(bus->fd, KDBUS_CMD_MATCH_ADD, &u) < 0)
		die("MATCH_ADD");
}

int main(int argc, char **argv)
{
	struct kdbus_notify_name_change any_name = { .old_id.id = KDBUS_MATCH_ID_ANY, .new_id.id = KDBUS_MATCH_ID_ANY };
	struct kdbus_cmd_match remove = { .size = sizeof(remove), .cookie = 1 };
	uint8_t mask[4096] = { 0 };
	struct bus bus;
	int gone = 0;

	if (argc != 4)
		return 2;
	bus_connect(&bus, argv[1], 0, KDBUS_ATTACH_TIMESTAMP);
	bloom_add(&bus, mask, argv[2]);
	match_add(&bus, 1, KDBUS_ITEM_BLOOM_MASK, mask, bus.bloom_size);
	/* Rules of different kinds in one match would have to accept all at once, and never could. */
	match_add(&bus, 2, KDBUS_ITEM_NAME_ADD, &any_name, sizeof(any_name));
	match_add(&bus, 2, KDBUS_ITEM_NAME_REMOVE, &any_name, sizeof(any_name));
	printf("watching\n");
	fflush(stdout);
	while (!gone) {
		const struct kdbus_item *item;
		const struct kdbus_msg *msg;
		uint64_t offset;

		msg = next_message(&bus, &offset);
		FOR_EACH_ITEM(item, msg) {
			switch (item->type) {
			case KDBUS_ITEM_PAYLOAD_MEMFD: {
				const char *map = mmap(NULL, item->memfd.size, PROT_READ, MAP_PRIVATE, item->memfd.fd, 0);

				if (map == MAP_FAILED)
					die("mmap of the memfd");
				printf("signal of %llu: %.*s\n", (unsigned long long)msg->src_id, (int)item->memfd.size, map);
				munmap((void *)(uintptr_t)map, item->memfd.size);
				close(item->memfd.fd); /* FREE does not */
				break;
			}
			case KDBUS_ITEM_NAME_ADD:
				printf("%s has an owner\n", item->name_change.name);
				break;
			case KDBUS_ITEM_NAME_REMOVE:
				printf("%s has none any more\n", item->name_change.name);
				gone |= !strcmp(item->name_change.name, argv[3]);
				break;
			case KDBUS_ITEM_TIMESTAMP:
				printf("  message %llu of the domain\n", (unsigned long long)item->timestamp.seqnum);
				break;
			}
		}
		pool_free(&bus, offset);
		fflush(stdout);
	}
	if (ioctl(bus.fd, KDBUS_CMD_MATCH_REMOVE, &remove) < 0)
		die("MATCH_REMOVE");
	return 0;
}
