/* A program of the old days: it knows /sys/fs/kdbus and /sys/module/kdbus, and nothing else. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../docs/examples/example.h"

#define ROOT "/sys/fs/kdbus"
#define MASK "/sys/module/kdbus/parameters/attach_flags_mask"

static void check(int held, const char *what)
{
	if (!held) {
		perror(what);
		exit(1);
	}
}

static int make_bus(char *path, size_t size)
{
	struct kdbus_bloom_parameter *bloom;
	struct builder b;
	char name[64];
	int control = open(ROOT "/control", O_RDWR | O_CLOEXEC);

	check(control >= 0, ROOT "/control");
	snprintf(name, sizeof(name), "%u-sysview-%d", geteuid(), getpid());
	begin(&b, sizeof(struct kdbus_cmd_make));
	bloom = add_item(&b, KDBUS_ITEM_BLOOM_PARAMETER, sizeof(*bloom));
	bloom->size = 64;
	bloom->n_hash = 1;
	add_string(&b, KDBUS_ITEM_MAKE_NAME, name);
	check(command(control, KDBUS_CMD_BUS_MAKE, &b) == 0, "BUS_MAKE");
	snprintf(path, size, ROOT "/%s/bus", name);
	return control;
}

static unsigned long long mask(const char *write_instead)
{
	unsigned long long value;
	FILE *file = fopen(MASK, write_instead ? "r+" : "r");

	check(file != NULL, MASK);
	if (write_instead)
		check(fputs(write_instead, file) >= 0 && fflush(file) == 0, MASK);
	rewind(file);
	check(fscanf(file, "%llu", &value) == 1, "a number");
	fclose(file);
	return value;
}

int main(void)
{
	char path[128], text[TEXT_MAX];
	struct kdbus_msg_info info;
	struct builder b;
	struct bus bus;
	struct stat st;
	int control = make_bus(path, sizeof(path));

	check(stat(ROOT, &st) == 0 && st.st_ino == 1, "the root of a domain");
	check(bus_connect(&bus, path, 0) == 0, path);
	begin_message(&bus, &b, bus.id, 0);
	add_text(&b, "to myself");
	check(send_message(&bus, &b, 0, NULL) == 0, "SEND");
	check(next_message(&bus, &info, now_ns() + 10000000000, NULL) == 1, "RECV");
	check(message_text(&bus, message_at(&bus, info.offset), text) == 0, "text");
	check(message_done(&bus, &info) == 0, "FREE");
	bus_disconnect(&bus);
	close(control);

	printf("%s, mask %llu", text, mask(NULL));
	if (geteuid() == 0)
		printf(", then %llu", mask("3\n"));
	printf("\n");
	return 0;
}
