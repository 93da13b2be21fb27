/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus-client - calls org.example.Echo, the service of this directory, and looks whether the answer is right.
 *
 *   kdbus-client ENDPOINT call TEXT           request and reply in one system call
 *   kdbus-client ENDPOINT async TEXT          request, then poll for the reply
 *   kdbus-client ENDPOINT memfd TEXT          the text travels in a sealed memfd
 *   kdbus-client ENDPOINT pipe TEXT           the service gets the end of a pipe and writes there
 *   kdbus-client ENDPOINT signal WORD OTHER   subscribes to signals about WORD; asks for one about OTHER and one about WORD
 *   kdbus-client ENDPOINT silence             a request that is not answered until its time is up
 *
 * Status: 0 all was as it should be, 1 it was not, 2 wrong usage.
 */
#define _GNU_SOURCE

#include <stddef.h>

#include "example.h"

#define SECOND  1000000000ULL
#define TIMEOUT (5 * SECOND)

/* Compares an answer with what it should be. */
static int expect(const char *what, const char *got, const char *wanted)
{
	printf("client:  %s: \"%s\"\n", what, got);
	if (strcmp(got, wanted) == 0)
		return 0;
	fprintf(stderr, "expected \"%s\"\n", wanted);
	return -1;
}

static int expect_upper(const char *what, const char *got, const char *text)
{
	char wanted[TEXT_MAX];

	snprintf(wanted, sizeof(wanted), "%s", text);
	to_upper(wanted);
	return expect(what, got, wanted);
}

/* A request to the service, by its name. Who owns that is found out by the bus at this moment. */
static void begin_request(struct bus *bus, struct builder *b, uint64_t timeout)
{
	struct kdbus_msg *msg = begin_message(bus, b, KDBUS_DST_ID_NAME, KDBUS_MSG_EXPECT_REPLY);

	msg->timeout_ns = now_ns() + timeout; /* absolute */
	add_string(b, KDBUS_ITEM_DST_NAME, EXAMPLE_NAME);
}

/* Sends a request and waits for the reply: ETIMEDOUT, EPIPE when the service dies, ESRCH when there is none. */
static int call(struct bus *bus, struct builder *b, char text[TEXT_MAX])
{
	struct kdbus_msg_info info;
	int result;

	if (send_message(bus, b, KDBUS_SEND_SYNC_REPLY, &info) < 0)
		return failed("call");
	result = message_text(bus, message_at(bus, info.offset), text);
	if (message_done(bus, &info) < 0)
		return failed("FREE");
	return result;
}

static int call_text(struct bus *bus, const char *text, char answer[TEXT_MAX])
{
	struct builder b;

	begin_request(bus, &b, TIMEOUT);
	add_text(&b, text);
	return call(bus, &b, answer);
}

static int do_call(struct bus *bus, char **args)
{
	char answer[TEXT_MAX];

	if (call_text(bus, args[0], answer) < 0)
		return -1;
	return expect_upper("reply", answer, args[0]);
}

/* What a message says about our request: 1 it is the reply, 0 it is about something else, -1 there will be none. */
static int is_reply(const struct kdbus_msg *msg, uint64_t cookie)
{
	const struct kdbus_item *item;

	if (msg->cookie_reply != cookie || (msg->flags & KDBUS_MSG_EXPECT_REPLY))
		return 0;
	if (msg->src_id != KDBUS_SRC_ID_KERNEL)
		return 1;
	FOR_EACH_ITEM(item, msg) {
		if (item->type == KDBUS_ITEM_REPLY_TIMEOUT) {
			errno = ETIMEDOUT;
			return failed("the bus says");
		}
		if (item->type == KDBUS_ITEM_REPLY_DEAD) {
			errno = EPIPE;
			return failed("the bus says");
		}
	}
	return 0;
}

static int do_async(struct bus *bus, char **args)
{
	uint64_t cookie, deadline = now_ns() + 2 * TIMEOUT; /* beyond that of the request: the bus reports that one */
	struct kdbus_msg_info info;
	char answer[TEXT_MAX];
	struct builder b;
	int found = 0;

	begin_request(bus, &b, TIMEOUT);
	add_text(&b, args[0]);
	if (send_message(bus, &b, 0, NULL) < 0)
		return failed("SEND");
	cookie = bus->last_cookie;
	printf("client:  request %llu is on its way\n", (unsigned long long)cookie);
	/* Here a program would go back to its main loop. Other messages may come before the reply. */
	while (found == 0) {
		int got = next_message(bus, &info, deadline, NULL);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? failed("RECV") : -1;
		found = is_reply(message_at(bus, info.offset), cookie);
		if (found > 0 && message_text(bus, message_at(bus, info.offset), answer) < 0)
			found = -1;
		if (message_done(bus, &info) < 0)
			return failed("FREE");
	}
	return found < 0 ? -1 : expect_upper("reply", answer, args[0]);
}

static int do_memfd(struct bus *bus, char **args)
{
	struct kdbus_memfd *memfd;
	char answer[TEXT_MAX];
	struct builder b;
	int fd, result;

	fd = sealed_memfd(args[0]);
	if (fd < 0)
		return -1;
	begin_request(bus, &b, TIMEOUT);
	memfd = add_item(&b, KDBUS_ITEM_PAYLOAD_MEMFD, sizeof(*memfd));
	memfd->start = 0;
	memfd->size = strlen(args[0]);
	memfd->fd = fd;
	result = call(bus, &b, answer);
	close(fd);
	return result < 0 ? -1 : expect_upper("reply to a memfd", answer, args[0]);
}

/* Reads what comes through a pipe until its last writer closes it. */
static int read_pipe(int fd, char text[TEXT_MAX])
{
	uint64_t deadline = now_ns() + TIMEOUT;
	size_t used = 0;

	for (;;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		uint64_t now = now_ns();
		ssize_t got;

		if (now >= deadline || poll(&ready, 1, (int)((deadline - now) / 1000000) + 1) == 0) {
			errno = ETIMEDOUT;
			return failed("pipe");
		}
		got = read(fd, text + used, TEXT_MAX - 1 - used);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return failed("pipe");
		if (got == 0) {
			text[used] = '\0';
			return 0;
		}
		used += (size_t)got;
	}
}

static int do_pipe(struct bus *bus, char **args)
{
	char answer[TEXT_MAX], through[TEXT_MAX];
	struct builder b;
	int ends[2], result;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return failed("pipe");
	begin_request(bus, &b, TIMEOUT);
	add_text(&b, args[0]);
	memcpy(add_item(&b, KDBUS_ITEM_FDS, sizeof(int)), &ends[1], sizeof(int));
	result = call(bus, &b, answer);
	close(ends[1]); /* the service has had its own */
	if (result == 0)
		result = expect("reply to a descriptor", answer, "WRITTEN TO 1");
	if (result == 0)
		result = read_pipe(ends[0], through);
	if (result == 0)
		result = expect_upper("came through the pipe", through, args[0]);
	close(ends[0]);
	return result;
}

/* Subscribes to signals of the service that have all bits of `word`. Both rules of a match must accept a signal. */
static int subscribe(struct bus *bus, uint64_t cookie, const char *word)
{
	struct kdbus_cmd_match *cmd;
	struct builder b;

	cmd = begin(&b, sizeof(*cmd));
	cmd->cookie = cookie; /* MATCH_REMOVE will ask for it */
	add_string(&b, KDBUS_ITEM_NAME, EXAMPLE_NAME);
	bloom_add(bus, add_item(&b, KDBUS_ITEM_BLOOM_MASK, bus->bloom_size), word);
	return command(bus->fd, KDBUS_CMD_MATCH_ADD, &b);
}

/*
 * Asks for a signal about `word` and looks whether it arrives. It is broadcast before the reply is sent, and what is sent is
 * queued at once: after the reply there is no need to wait for it.
 *
 * Returns 1 when it did, 0 when not, -1 on errors.
 */
static int announced(struct bus *bus, const char *word)
{
	char request[TEXT_MAX], answer[TEXT_MAX], text[TEXT_MAX], wanted[TEXT_MAX];
	struct kdbus_msg_info info;
	int got;

	snprintf(request, sizeof(request), "announce %.1000s", word);
	snprintf(wanted, sizeof(wanted), "news about %.1000s", word);
	if (call_text(bus, request, answer) < 0 || expect_upper("reply", answer, request) < 0)
		return -1;
	got = next_message(bus, &info, 1, NULL); /* a deadline in the past: what is there, without waiting */
	if (got == 0)
		printf("client:  no signal about %s for us\n", word);
	if (got <= 0)
		return got < 0 ? failed("RECV") : 0;
	got = message_text(bus, message_at(bus, info.offset), text);
	if (message_done(bus, &info) < 0)
		return failed("FREE");
	if (got < 0 || expect("signal", text, wanted) < 0)
		return -1;
	return 1;
}

static int do_signal(struct bus *bus, char **args)
{
	/* A bloom filter may let too much through, never too little. A program checks what it gets; here, with one or two words
	 * in 512 bits, it would be bad luck. */
	if (subscribe(bus, 1, args[0]) < 0)
		return failed("MATCH_ADD");
	printf("client:  subscribed to signals about %s\n", args[0]);
	if (announced(bus, args[1]) != 0) {
		fprintf(stderr, "a signal that was not asked for\n");
		return -1;
	}
	if (announced(bus, args[0]) != 1) {
		fprintf(stderr, "the signal is missing\n");
		return -1;
	}
	return 0;
}

static int do_silence(struct bus *bus, char **args)
{
	struct kdbus_msg_info info;
	struct builder b;

	(void)args;
	begin_request(bus, &b, SECOND / 2);
	add_text(&b, "silence");
	if (send_message(bus, &b, KDBUS_SEND_SYNC_REPLY, &info) == 0) {
		message_done(bus, &info);
		fprintf(stderr, "an answer after all\n");
		return -1;
	}
	if (errno != ETIMEDOUT)
		return failed("call");
	printf("client:  no reply in time\n");
	return 0;
}

static const struct {
	const char *name;
	int args;
	int (*run)(struct bus *bus, char **args);
} modes[] = {
	{ "call", 1, do_call },     { "async", 1, do_async },   { "memfd", 1, do_memfd },
	{ "pipe", 1, do_pipe },     { "signal", 2, do_signal }, { "silence", 0, do_silence },
};

int main(int argc, char **argv)
{
	struct bus bus;
	size_t i;
	int result;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (argc < 3 || strcmp(argv[2], modes[i].name) != 0 || argc != 3 + modes[i].args)
			continue;
		if (bus_connect(&bus, argv[1], 0) < 0)
			return EXIT_FAILURE;
		result = modes[i].run(&bus, argv + 3);
		bus_disconnect(&bus);
		return result == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	}
	fprintf(stderr, "usage: %s ENDPOINT call|async|memfd|pipe TEXT | signal WORD OTHER | silence\n", argv[0]);
	return 2;
}
