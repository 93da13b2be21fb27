/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus-monitor - prints every message of a bus, with all that the bus tells about it.
 *
 *   kdbus-monitor [-n COUNT] MOUNTPOINT/UID-NAME/bus
 *
 * A monitor gets a copy of everything: requests, replies, signals, descriptors, notifications. It needs no matches and no
 * policy, only the privilege to be one: that of the owner of the bus, or CAP_IPC_OWNER. Nobody can send to it.
 *
 * Which metadata there are also depends on what the senders agree to and on the mount's attach_flags_mask.
 *
 * Prints "monitoring PATH as connection ID" once it misses nothing any more. Ends with status 0 after COUNT messages, on
 * SIGTERM, on SIGINT, and when the bus ends; 1 on errors, 2 wrong usage.
 */
#define _GNU_SOURCE

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "example.h"

#define EXCERPT 48 /* bytes of a payload that are shown */

typedef unsigned long long ull; /* of 64 bits, as __u64, and printf knows it everywhere */

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

/* ---- Bits and bytes ---- */

struct flag {
	ull bit;
	const char *name;
};

static const struct flag message_flags[] = {
	{ KDBUS_MSG_EXPECT_REPLY, "EXPECT_REPLY" },
	{ KDBUS_MSG_NO_AUTO_START, "NO_AUTO_START" },
	{ KDBUS_MSG_SIGNAL, "SIGNAL" },
	{ 0, NULL },
};

static const struct flag name_flags[] = {
	{ KDBUS_NAME_REPLACE_EXISTING, "REPLACE_EXISTING" },
	{ KDBUS_NAME_ALLOW_REPLACEMENT, "ALLOW_REPLACEMENT" },
	{ KDBUS_NAME_QUEUE, "QUEUE" },
	{ KDBUS_NAME_IN_QUEUE, "IN_QUEUE" },
	{ KDBUS_NAME_ACTIVATOR, "ACTIVATOR" },
	{ 0, NULL },
};

static const struct flag hello_flags[] = {
	{ KDBUS_HELLO_ACCEPT_FD, "ACCEPT_FD" },
	{ KDBUS_HELLO_ACTIVATOR, "ACTIVATOR" },
	{ KDBUS_HELLO_POLICY_HOLDER, "POLICY_HOLDER" },
	{ KDBUS_HELLO_MONITOR, "MONITOR" },
	{ 0, NULL },
};

static void print_flags(const struct flag *flag, ull value)
{
	const char *between = "";

	if (!value)
		printf("-");
	for (; flag->name; flag++) {
		if (value & flag->bit) {
			printf("%s%s", between, flag->name);
			between = "|";
			value &= ~flag->bit;
		}
	}
	if (value)
		printf("%s0x%llx", between, value);
}

/* Bytes of somebody else, of which nothing must reach a terminal as it is. */
static void print_bytes(const uint8_t *bytes, size_t size)
{
	size_t i;

	putchar('"');
	for (i = 0; i < size; i++) {
		if (bytes[i] == '"' || bytes[i] == '\\')
			printf("\\%c", bytes[i]);
		else if (bytes[i] >= ' ' && bytes[i] <= '~')
			putchar(bytes[i]);
		else
			printf("\\x%02x", bytes[i]);
	}
	putchar('"');
}

static void print_excerpt(const uint8_t *bytes, ull size)
{
	print_bytes(bytes, size < EXCERPT ? (size_t)size : EXCERPT);
	if (size > EXCERPT)
		printf(" ...");
}

static size_t payload_size(const struct kdbus_item *item)
{
	return (size_t)(item->size - ITEM_HEADER);
}

/* ---- Ids ---- */

static void print_src(ull id)
{
	if (id == KDBUS_SRC_ID_KERNEL)
		printf("bus");
	else
		printf("%llu", id);
}

static void print_dst(ull id)
{
	if (id == KDBUS_DST_ID_BROADCAST)
		printf("all");
	else if (id == KDBUS_DST_ID_NAME)
		printf("name");
	else
		printf("%llu", id);
}

/* An id of 32 bits, of which ~0 means that there is none. */
static void print_id32(const char *label, uint32_t id)
{
	if (id == ~0U)
		printf("%s=none", label);
	else
		printf("%s=%u", label, id);
}

/* ---- Items ---- */

static void print_string(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	print_bytes(item->data, strnlen(item->str, payload_size(item)));
}

static void print_off(const struct bus *bus, const struct kdbus_item *item)
{
	printf("%llu bytes", (ull)item->vec.size);
	if (item->vec.offset == ~0ULL) {
		printf(" of zeros");
		return;
	}
	printf(" at %llu: ", (ull)item->vec.offset);
	print_excerpt(bus->pool + item->vec.offset, item->vec.size);
}

/* A descriptor that is ours since RECV, or why it is not. */
static bool print_fd(int fd)
{
	if (fd < 0)
		printf("not installed (%s)", strerror(-fd));
	else
		printf("%d", fd);
	return fd >= 0;
}

static void print_memfd(const struct bus *bus, const struct kdbus_item *item)
{
	uint8_t bytes[EXCERPT];
	ssize_t got;

	(void)bus;
	printf("%llu bytes from %llu of descriptor ", (ull)item->memfd.size, (ull)item->memfd.start);
	if (!print_fd(item->memfd.fd))
		return;
	got = pread(item->memfd.fd, bytes, item->memfd.size < EXCERPT ? (size_t)item->memfd.size : EXCERPT,
		    (off_t)item->memfd.start);
	printf(": ");
	if (got < 0)
		printf("%s", strerror(errno));
	else
		print_bytes(bytes, (size_t)got);
	if (item->memfd.size > EXCERPT)
		printf(" ...");
}

static const char *file_type(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return strerror(errno);
	switch (st.st_mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "directory";
	case S_IFIFO:
		return "pipe";
	case S_IFSOCK:
		return "socket";
	case S_IFCHR:
	case S_IFBLK:
		return "device";
	default:
		return "other";
	}
}

static void print_fds(const struct bus *bus, const struct kdbus_item *item)
{
	size_t i, count = payload_size(item) / sizeof(int);

	(void)bus;
	printf("%zu:", count);
	for (i = 0; i < count; i++) {
		printf(i ? ", " : " ");
		if (print_fd(item->fds[i]))
			printf(" (%s)", file_type(item->fds[i]));
	}
}

static void print_timestamp(const struct bus *bus, const struct kdbus_item *item)
{
	const struct kdbus_timestamp *at = &item->timestamp;

	(void)bus;
	printf("seqnum=%llu monotonic=%llu.%09llu realtime=%llu.%09llu", (ull)at->seqnum,
	       (ull)at->monotonic_ns / 1000000000, (ull)at->monotonic_ns % 1000000000,
	       (ull)at->realtime_ns / 1000000000, (ull)at->realtime_ns % 1000000000);
}

static void print_creds(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	print_id32("uid", item->creds.uid);
	print_id32(" euid", item->creds.euid);
	print_id32(" suid", item->creds.suid);
	print_id32(" fsuid", item->creds.fsuid);
	print_id32(" gid", item->creds.gid);
	print_id32(" egid", item->creds.egid);
	print_id32(" sgid", item->creds.sgid);
	print_id32(" fsgid", item->creds.fsgid);
}

static void print_pids(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	printf("pid=%llu tid=%llu ppid=%llu", (ull)item->pids.pid, (ull)item->pids.tid,
	       (ull)item->pids.ppid);
}

static void print_groups(const struct bus *bus, const struct kdbus_item *item)
{
	size_t i, count = payload_size(item) / sizeof(uint32_t);

	(void)bus;
	if (!count)
		printf("none");
	for (i = 0; i < count; i++)
		printf("%s%u", i ? " " : "", item->data32[i]);
}

static void print_owned_name(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	print_bytes((const uint8_t *)item->name.name,
		    strnlen(item->name.name, payload_size(item) - sizeof(item->name.flags)));
	printf(" flags=");
	print_flags(name_flags, item->name.flags);
}

static void print_caps(const struct bus *bus, const struct kdbus_item *item)
{
	static const char *const sets[] = { "inheritable", "permitted", "effective", "bounding" };
	size_t words = item->caps.last_cap / 32 + 1, set, word;

	(void)bus;
	printf("last=%u", item->caps.last_cap);
	if (payload_size(item) < sizeof(uint32_t) * (1 + 4 * words))
		return;
	for (set = 0; set < 4; set++) {
		printf(" %s=", sets[set]);
		for (word = words; word-- > 0;)
			printf("%08x", item->caps.caps[set * words + word]);
	}
}

static void print_audit(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	print_id32("session", item->audit.sessionid);
	print_id32(" loginuid", item->audit.loginuid);
}

static void print_owner(const struct kdbus_notify_id_change *owner)
{
	if (!owner->id) {
		printf("nobody");
		return;
	}
	printf("%llu (", (ull)owner->id);
	print_flags(name_flags, owner->flags);
	printf(")");
}

static void print_name_change(const struct bus *bus, const struct kdbus_item *item)
{
	const struct kdbus_notify_name_change *change = &item->name_change;

	(void)bus;
	print_bytes((const uint8_t *)change->name, strnlen(change->name, payload_size(item) - sizeof(*change)));
	printf(" from ");
	print_owner(&change->old_id);
	printf(" to ");
	print_owner(&change->new_id);
}

static void print_id_change(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	printf("%llu flags=", (ull)item->id_change.id);
	print_flags(hello_flags, item->id_change.flags);
}

static void print_nothing(const struct bus *bus, const struct kdbus_item *item)
{
	(void)bus;
	(void)item;
	printf("to the request of the cookie above");
}

/* All items that a message may bring, and how many bytes of payload one has at least. */
static const struct kind {
	ull type;
	const char *name;
	size_t least;
	void (*print)(const struct bus *bus, const struct kdbus_item *item);
} kinds[] = {
	{ KDBUS_ITEM_PAYLOAD_OFF, "payload", sizeof(struct kdbus_vec), print_off },
	{ KDBUS_ITEM_PAYLOAD_MEMFD, "memfd", sizeof(struct kdbus_memfd), print_memfd },
	{ KDBUS_ITEM_FDS, "fds", 0, print_fds },
	{ KDBUS_ITEM_DST_NAME, "destination", 1, print_string },
	{ KDBUS_ITEM_TIMESTAMP, "timestamp", sizeof(struct kdbus_timestamp), print_timestamp },
	{ KDBUS_ITEM_CREDS, "creds", sizeof(struct kdbus_creds), print_creds },
	{ KDBUS_ITEM_PIDS, "pids", sizeof(struct kdbus_pids), print_pids },
	{ KDBUS_ITEM_AUXGROUPS, "groups", 0, print_groups },
	{ KDBUS_ITEM_OWNED_NAME, "name", sizeof(struct kdbus_name) + 1, print_owned_name },
	{ KDBUS_ITEM_TID_COMM, "thread", 1, print_string },
	{ KDBUS_ITEM_PID_COMM, "process", 1, print_string },
	{ KDBUS_ITEM_EXE, "exe", 1, print_string },
	{ KDBUS_ITEM_CMDLINE, "cmdline", 1, print_string },
	{ KDBUS_ITEM_CGROUP, "cgroup", 1, print_string },
	{ KDBUS_ITEM_CAPS, "caps", sizeof(uint32_t), print_caps },
	{ KDBUS_ITEM_SECLABEL, "seclabel", 1, print_string },
	{ KDBUS_ITEM_AUDIT, "audit", sizeof(struct kdbus_audit), print_audit },
	{ KDBUS_ITEM_CONN_DESCRIPTION, "description", 1, print_string },
	{ KDBUS_ITEM_NAME_ADD, "NAME_ADD", sizeof(struct kdbus_notify_name_change), print_name_change },
	{ KDBUS_ITEM_NAME_REMOVE, "NAME_REMOVE", sizeof(struct kdbus_notify_name_change), print_name_change },
	{ KDBUS_ITEM_NAME_CHANGE, "NAME_CHANGE", sizeof(struct kdbus_notify_name_change), print_name_change },
	{ KDBUS_ITEM_ID_ADD, "ID_ADD", sizeof(struct kdbus_notify_id_change), print_id_change },
	{ KDBUS_ITEM_ID_REMOVE, "ID_REMOVE", sizeof(struct kdbus_notify_id_change), print_id_change },
	{ KDBUS_ITEM_REPLY_TIMEOUT, "REPLY_TIMEOUT", 0, print_nothing },
	{ KDBUS_ITEM_REPLY_DEAD, "REPLY_DEAD", 0, print_nothing },
};

static void print_item(const struct bus *bus, const struct kdbus_item *item)
{
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (kinds[i].type != item->type || payload_size(item) < kinds[i].least)
			continue;
		printf("  %-12s ", kinds[i].name);
		kinds[i].print(bus, item);
		printf("\n");
		return;
	}
	printf("  item 0x%llx, %zu bytes\n", (ull)item->type, payload_size(item));
}

/* ---- Messages ---- */

static void print_payload_type(ull type)
{
	uint8_t letters[sizeof(type)];
	size_t i;

	/* Programs name their types with eight letters. */
	for (i = 0; i < sizeof(letters); i++)
		letters[i] = (uint8_t)(type >> 8 * (sizeof(letters) - 1 - i));
	if (type)
		print_bytes(letters, sizeof(letters));
	else
		printf("notification");
}

static void print_message(const struct bus *bus, const struct kdbus_msg *msg, const struct kdbus_msg_info *info)
{
	const struct kdbus_item *item;

	printf("message from ");
	print_src(msg->src_id);
	printf(" to ");
	print_dst(msg->dst_id);
	printf(" cookie=%llu", (ull)msg->cookie);
	if (msg->flags & KDBUS_MSG_EXPECT_REPLY)
		printf(" timeout=%llu.%09llu", (ull)msg->timeout_ns / 1000000000,
		       (ull)msg->timeout_ns % 1000000000);
	else if (msg->cookie_reply)
		printf(" reply_to=%llu", (ull)msg->cookie_reply);
	printf(" priority=%lld flags=", (long long)msg->priority);
	print_flags(message_flags, msg->flags);
	printf(" type=");
	print_payload_type(msg->payload_type);
	printf(" size=%llu", (ull)msg->size);
	if (info->return_flags & KDBUS_RECV_RETURN_INCOMPLETE_FDS)
		printf(" (not all descriptors could be installed)");
	printf("\n");
	FOR_EACH_ITEM(item, msg)
		print_item(bus, item);
	printf("\n");
}

/* What next_message() of example.h does, but lost messages are part of what a monitor has to tell. */
static int next(const struct bus *bus, struct kdbus_msg_info *info, const sigset_t *mask)
{
	while (!stopped) {
		struct kdbus_cmd_recv cmd = { .size = sizeof(cmd) };
		struct pollfd ready = { .fd = bus->fd, .events = POLLIN };

		if (ioctl(bus->fd, KDBUS_CMD_RECV, &cmd) == 0) {
			*info = cmd.msg;
			return 1;
		}
		if (errno == EOVERFLOW) {
			printf("lost %llu messages here\n\n", (ull)cmd.dropped_msgs);
			continue;
		}
		if (errno != EAGAIN)
			return -1;
		if (ppoll(&ready, 1, NULL, mask) < 0 && errno != EINTR)
			return -1;
		/* That the connection is dead says the next RECV. */
	}
	return 0;
}

static int run(const struct bus *bus, ull count, const sigset_t *mask)
{
	struct kdbus_msg_info info;
	ull seen;
	int got;

	for (seen = 0; !count || seen < count; seen++) {
		got = next(bus, &info, mask);
		if (got == 0)
			return 0;
		if (got < 0 && errno == ECONNRESET) {
			printf("the bus has ended\n");
			return 0;
		}
		if (got < 0)
			return failed("RECV");
		print_message(bus, message_at(bus, info.offset), &info);
		if (message_done(bus, &info) < 0 && errno != ECONNRESET)
			return failed("FREE");
	}
	return 0;
}

static int usage(const char *program)
{
	fprintf(stderr, "usage: %s [-n COUNT] ENDPOINT\n", program);
	return 2;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t stop, mask;
	ull count = 0;
	struct bus bus;
	int option;
	bool ok;

	while ((option = getopt(argc, argv, "n:")) != -1) {
		char *end;

		if (option != 'n')
			return usage(argv[0]);
		errno = 0;
		count = strtoull(optarg, &end, 10);
		if (*optarg < '0' || *optarg > '9' || *end || errno || !count)
			return usage(argv[0]);
	}
	if (optind + 1 != argc)
		return usage(argv[0]);
	setvbuf(stdout, NULL, _IOLBF, 0);

	/* The signals come through in ppoll only, so that none is missed between the test of `stopped` and the wait. */
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	sigprocmask(SIG_BLOCK, &stop, &mask);
	sigdelset(&mask, SIGTERM);
	sigdelset(&mask, SIGINT);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);

	if (bus_connect_as(&bus, argv[optind], KDBUS_HELLO_ACCEPT_FD | KDBUS_HELLO_MONITOR, _KDBUS_ATTACH_ANY) < 0)
		return EXIT_FAILURE;
	printf("monitoring %s as connection %llu\n\n", argv[optind], (ull)bus.id);
	ok = run(&bus, count, &mask) == 0;
	bus_disconnect(&bus);
	return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
