/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus-service - owns org.example.Echo on a bus and answers in upper case.
 *
 *   kdbus-service --make MOUNTPOINT NAME     makes the bus UID-NAME first, which lives as long as this process
 *   kdbus-service MOUNTPOINT/UID-NAME/bus    joins a bus
 *
 * What it understands:
 *
 *   text                  is answered with the text in upper case, whether it came as bytes or in a memfd
 *   text and descriptors  the text is written to them in upper case, and the answer says to how many
 *   "announce WORD"       a signal with WORD in its bloom filter is broadcast, then the answer comes
 *   "silence"             is not answered at all, to see what a caller makes of that
 *
 * Prints the path of its endpoint once it can be called; ends with status 0 on SIGTERM and SIGINT.
 */
#define _GNU_SOURCE

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "example.h"

#define ANNOUNCE "announce "

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

/* The bus is there as long as the descriptor that this gives back, and everybody may connect to it. */
static int make_bus(const char *mountpoint, const char *name, char path[PATH_MAX])
{
	struct kdbus_bloom_parameter *bloom;
	struct kdbus_cmd_make *cmd;
	struct builder b;
	char full[64];
	int fd;

	/* Names of buses begin with the uid, so that nobody can take those of somebody else. */
	snprintf(full, sizeof(full), "%u-%s", (unsigned int)geteuid(), name);
	snprintf(path, PATH_MAX, "%s/control", mountpoint);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return failed(path);
	cmd = begin(&b, sizeof(*cmd));
	cmd->flags = KDBUS_MAKE_ACCESS_WORLD;
	add_string(&b, KDBUS_ITEM_MAKE_NAME, full);
	bloom = add_item(&b, KDBUS_ITEM_BLOOM_PARAMETER, sizeof(*bloom));
	bloom->size = 64;
	bloom->n_hash = 4;
	if (command(fd, KDBUS_CMD_BUS_MAKE, &b) < 0) {
		failed("BUS_MAKE");
		close(fd);
		return -1;
	}
	snprintf(path, PATH_MAX, "%s/%s/bus", mountpoint, full);
	return fd;
}

static int acquire_name(const struct bus *bus, const char *name)
{
	struct builder b;

	begin(&b, sizeof(struct kdbus_cmd_name));
	add_string(&b, KDBUS_ITEM_NAME, name);
	return command(bus->fd, KDBUS_CMD_NAME_ACQUIRE, &b);
}

/* A signal to all whose matches accept it. A broadcast cannot fail because of its receivers. */
static int announce(struct bus *bus, const char *word)
{
	struct kdbus_bloom_filter *filter;
	char text[TEXT_MAX + 32];
	struct builder b;

	snprintf(text, sizeof(text), "news about %s", word);
	begin_message(bus, &b, KDBUS_DST_ID_BROADCAST, KDBUS_MSG_SIGNAL);
	add_text(&b, text);
	filter = add_item(&b, KDBUS_ITEM_BLOOM_FILTER, sizeof(*filter) + bus->bloom_size);
	filter->generation = 0;
	bloom_add(bus, filter->data, word);
	return send_message(bus, &b, 0, NULL);
}

/* Writes to descriptors that somebody passed: what they are is not known, so never wait for them. */
static size_t write_to(const int *fds, size_t count, const char *text)
{
	size_t i, written = 0, size = strlen(text);

	if (size > PIPE_BUF)
		size = PIPE_BUF; /* as much as a pipe that is ready takes without blocking */
	for (i = 0; i < count; i++) {
		struct pollfd ready = { .fd = fds[i], .events = POLLOUT };

		if (fds[i] >= 0 && poll(&ready, 1, 0) == 1 && (ready.revents & POLLOUT) &&
		    write(fds[i], text, size) == (ssize_t)size)
			written++;
	}
	return written;
}

/* The bus lets a request be answered once, by the one it was sent to; no right to talk is needed for that. */
static int reply(struct bus *bus, const struct kdbus_msg *request, const char *text)
{
	struct kdbus_msg *msg;
	struct builder b;

	msg = begin_message(bus, &b, request->src_id, 0);
	msg->cookie_reply = request->cookie;
	add_text(&b, text);
	return send_message(bus, &b, 0, NULL);
}

/* Who it came from. The bus vouches for these; a sender cannot make them up. */
static void print_sender(const struct kdbus_msg *msg)
{
	const struct kdbus_item *item;

	printf("service: request %llu from connection %llu", (unsigned long long)msg->cookie,
	       (unsigned long long)msg->src_id);
	FOR_EACH_ITEM(item, msg) {
		if (item->type == KDBUS_ITEM_PIDS)
			printf(", process %llu", (unsigned long long)item->pids.pid);
		else if (item->type == KDBUS_ITEM_CREDS)
			printf(", user %u", item->creds.euid);
	}
	printf("\n");
}

static void serve(struct bus *bus, const struct kdbus_msg *msg)
{
	char text[TEXT_MAX];
	const int *fds;
	size_t count;
	int sent;

	/* Notifications of the bus have no sender; a service that keeps something for its clients would look at them. */
	if (msg->src_id == KDBUS_SRC_ID_KERNEL)
		return;
	print_sender(msg);
	if (message_text(bus, msg, text) < 0)
		strcpy(text, "that cannot be read"); /* whoever waits is to know */
	count = message_fds(msg, &fds);
	if (strcmp(text, "silence") == 0)
		return;
	if (strncmp(text, ANNOUNCE, strlen(ANNOUNCE)) == 0 && announce(bus, text + strlen(ANNOUNCE)) < 0)
		failed("broadcast");
	to_upper(text);
	if (count > 0)
		snprintf(text, sizeof(text), "WRITTEN TO %zu", write_to(fds, count, text));
	if (!(msg->flags & KDBUS_MSG_EXPECT_REPLY))
		return;
	sent = reply(bus, msg, text);
	/* A caller that is gone, has given up or has a full pool is no reason to end. */
	if (sent < 0)
		failed("reply");
}

static int run(struct bus *bus, const sigset_t *mask)
{
	while (!stopped) {
		struct kdbus_msg_info info;

		if (next_message(bus, &info, 0, mask) > 0) {
			serve(bus, message_at(bus, info.offset));
			if (message_done(bus, &info) < 0)
				return failed("FREE");
		} else if (errno != EINTR) {
			return failed("RECV");
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t stop, mask;
	char path[PATH_MAX];
	struct bus bus;
	int owner = -1;
	bool ok;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && strcmp(argv[1], "--make") == 0) {
		owner = make_bus(argv[2], argv[3], path);
		if (owner < 0)
			return EXIT_FAILURE;
	} else if (argc == 2 && argv[1][0] != '-') {
		snprintf(path, sizeof(path), "%s", argv[1]);
	} else {
		fprintf(stderr, "usage: %s --make MOUNTPOINT NAME\n       %s ENDPOINT\n", argv[0], argv[0]);
		return 2;
	}

	/* The signals come through in ppoll only, so that none is missed between the test of `stopped` and the wait. */
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	sigprocmask(SIG_BLOCK, &stop, &mask);
	sigdelset(&mask, SIGTERM);
	sigdelset(&mask, SIGINT);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* a pipe that was passed to us may have lost its reader */

	if (bus_connect(&bus, path, KDBUS_ATTACH_PIDS | KDBUS_ATTACH_CREDS) < 0)
		return EXIT_FAILURE;
	if (acquire_name(&bus, EXAMPLE_NAME) < 0) {
		failed(EXAMPLE_NAME);
		return EXIT_FAILURE;
	}
	printf("%s\n", path);
	ok = run(&bus, &mask) == 0;
	bus_disconnect(&bus);
	if (owner >= 0)
		close(owner); /* the bus goes, and every connection to it */
	return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
