/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus1-shell.c - a shell of capabilities over bus1: a child can do what it has handles for, and nothing else.
 *
 *     bus1-shell FILE
 *
 * FILE is the bus1 of a mount. Commands come line by line on standard input:
 *
 *     spawn CHILD              starts a child, which can only take orders and report
 *     give CHILD THING         a handle for it; things are `say`, `count`, and the children
 *     CHILD use THING TEXT     `say` prints the text, `count` adds a number and answers with the sum
 *     CHILD pass THING OTHER   the child passes its handle on, to a child that it has a handle of
 *     CHILD drop THING         it gives its handle back
 *     revoke THING             the node ends, and all who have a handle are told
 *     end CHILD
 *
 * The parent is one peer, and every child is one. Each thing is a node of the parent's; each child has three nodes: for
 * orders, which only the parent has a handle to, for what it is given, and for answers.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bus1.h"

#define POOL_SIZE    (1UL << 20)
#define ALIGN8(n)    (((n) + 7) & ~(uint64_t)7)
#define NAME_MAX_    16
#define TEXT_MAX     128
#define HANDLES_MAX  2
#define CHILDREN_MAX 8
#define HELD_MAX     16

/* Ids of nodes are their owner's to choose, as long as the lowest two bits are clear. */
enum {
	SAY = 0x100,
	COUNT = 0x200,
	REPORTS = 0x1000, /* of the first child; the others follow */
	ORDERS = 0x10,
	GIFTS = 0x20,
	ANSWERS = 0x30,
};

struct peer {
	int fd;
	const char *pool;
};

struct message {
	uint64_t type;
	uint64_t node; /* that it is for or about, as its receiver calls it */
	char text[TEXT_MAX];
	uint64_t handles[HANDLES_MAX];
	size_t n_handles;
};

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- What a peer does ---- */

static struct peer peer_open(const char *path)
{
	struct peer peer = { .fd = open(path, O_RDWR | O_CLOEXEC) };

	if (peer.fd < 0)
		die(path);
	peer.pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, peer.fd, 0);
	if (peer.pool == MAP_FAILED)
		die("mmap");
	return peer;
}

/* With the last descriptor the peer ends: its nodes are destroyed, its handles released. */
static void peer_close(struct peer *peer)
{
	munmap((void *)peer->pool, POOL_SIZE);
	close(peer->fd);
}

/* Makes a node of `from`, if it has none with this id, and gives `to` a handle; the id that `to` has for it. */
static uint64_t introduce(const struct peer *from, uint64_t node, const struct peer *to)
{
	struct bus1_cmd_handle_transfer cmd = { .src_handle = node, .dst_fd = (uint64_t)to->fd };

	if (ioctl(from->fd, BUS1_CMD_HANDLE_TRANSFER, &cmd) < 0)
		die("HANDLE_TRANSFER");
	return cmd.dst_handle;
}

static void release(const struct peer *peer, uint64_t handle)
{
	if (ioctl(peer->fd, BUS1_CMD_HANDLE_RELEASE, &handle) < 0)
		die("HANDLE_RELEASE");
}

/* With RELEASE_HANDLES the owner gives its own reference back at once, and is not told itself. */
static void destroy(const struct peer *peer, uint64_t node, uint64_t flags)
{
	struct bus1_cmd_nodes_destroy cmd = { .flags = flags, .ptr_nodes = (uintptr_t)&node, .n_nodes = 1 };

	if (ioctl(peer->fd, BUS1_CMD_NODES_DESTROY, &cmd) < 0)
		die("NODES_DESTROY");
}

/* One message to all of them, or to none. Returns 0 or the errno: ESHUTDOWN if somebody has gone. */
static int send_to_all(const struct peer *peer, const uint64_t *to, size_t n, const char *text, const uint64_t *handle)
{
	struct iovec vec = { (void *)text, strlen(text) };
	struct bus1_cmd_send cmd = {
		.ptr_destinations = (uintptr_t)to,
		.n_destinations = n,
		.ptr_vecs = (uintptr_t)&vec,
		.n_vecs = 1,
		.ptr_handles = (uintptr_t)handle,
		.n_handles = handle ? 1 : 0,
	};

	return ioctl(peer->fd, BUS1_CMD_SEND, &cmd) < 0 ? errno : 0;
}

static int send_to(const struct peer *peer, uint64_t to, const char *text, const uint64_t *handle)
{
	return send_to_all(peer, &to, 1, text, handle);
}

/* The next message, waited for. Its handles are the caller's to release. */
static void receive(const struct peer *peer, struct message *m)
{
	struct bus1_cmd_recv cmd;
	struct pollfd ready = { .fd = peer->fd, .events = POLLIN };
	size_t size;

	for (;;) {
		cmd = (struct bus1_cmd_recv){ .max_offset = POOL_SIZE };
		if (ioctl(peer->fd, BUS1_CMD_RECV, &cmd) == 0)
			break;
		if (errno != EAGAIN)
			die("RECV");
		if (poll(&ready, 1, -1) < 0 && errno != EINTR)
			die("poll");
	}
	*m = (struct message){ .type = cmd.msg.type, .node = cmd.msg.destination };
	if (m->type != BUS1_MSG_DATA)
		return;
	/* In the slice: the bytes, then, aligned, the ids that this peer has for the handles. */
	size = cmd.msg.n_bytes < TEXT_MAX ? cmd.msg.n_bytes : TEXT_MAX - 1;
	memcpy(m->text, peer->pool + cmd.msg.offset, size);
	for (uint64_t i = 0; i < cmd.msg.n_handles; i++) {
		uint64_t handle;

		memcpy(&handle, peer->pool + cmd.msg.offset + ALIGN8(cmd.msg.n_bytes) + 8 * i, sizeof(handle));
		if (handle == BUS1_HANDLE_INVALID)
			continue; /* its node was destroyed before the message was sent */
		if (m->n_handles < HANDLES_MAX)
			m->handles[m->n_handles++] = handle;
		else
			release(peer, handle);
	}
	if (ioctl(peer->fd, BUS1_CMD_SLICE_RELEASE, &cmd.msg.offset) < 0)
		die("SLICE_RELEASE");
}

/* ---- A child ---- */

struct held {
	char name[NAME_MAX_];
	uint64_t handle;
};

struct child {
	struct peer peer;
	uint64_t parent; /* where it reports to */
	struct held held[HELD_MAX];
};

static struct held *find(struct child *child, const char *name)
{
	for (struct held *each = child->held; each < child->held + HELD_MAX; each++)
		if (each->handle && !strcmp(each->name, name))
			return each;
	return NULL;
}

static void report(struct child *child, const char *what, const char *name)
{
	char text[TEXT_MAX];

	snprintf(text, sizeof(text), "%.100s%.20s", what, name);
	send_to(&child->peer, child->parent, text, NULL);
}

static void keep(struct child *child, const struct message *m)
{
	struct held *place = child->held;
	char name[NAME_MAX_];

	if (!m->n_handles || sscanf(m->text, "%15s", name) != 1)
		return;
	while (place < child->held + HELD_MAX && place->handle)
		place++;
	/* Whoever gets a handle again has the same id for it, and one reference more. */
	if (find(child, name) || place == child->held + HELD_MAX) {
		release(&child->peer, m->handles[0]);
	} else {
		place->handle = m->handles[0];
		strcpy(place->name, name);
	}
	report(child, "has ", name);
}

/* One message to the parent and to the other child, at one time: whatever that one does with it comes later. */
static void pass_on(struct child *child, const struct held *what, const struct held *to)
{
	uint64_t both[] = { child->parent, to->handle };
	char text[TEXT_MAX];

	snprintf(text, sizeof(text), "%s passed to %s", what->name, to->name);
	if (send_to_all(&child->peer, both, 2, text, &what->handle) != 0)
		report(child, "cannot pass to ", to->name);
}

static void obey(struct child *child, const char *order)
{
	char verb[NAME_MAX_] = "", name[NAME_MAX_] = "", rest[TEXT_MAX] = "";
	uint64_t answers = ANSWERS;
	struct held *thing, *other;

	sscanf(order, "%15s %15s %127[^\n]", verb, name, rest);
	thing = find(child, name);
	if (!strcmp(verb, "settle")) {
		report(child, "settled", "");
	} else if (!thing) {
		report(child, "has no ", name);
	} else if (!strcmp(verb, "use")) {
		if (send_to(&child->peer, thing->handle, rest, &answers) != 0)
			report(child, "cannot use ", name);
	} else if (!strcmp(verb, "pass")) {
		other = find(child, rest);
		if (other)
			pass_on(child, thing, other);
		else
			report(child, "has no ", rest);
	} else if (!strcmp(verb, "drop")) {
		release(&child->peer, thing->handle);
		thing->handle = 0;
		report(child, "drops ", name);
	} else {
		report(child, "does not know how to ", verb);
	}
}

static void lose(struct child *child, uint64_t handle)
{
	for (struct held *each = child->held; each < child->held + HELD_MAX; each++) {
		if (each->handle != handle)
			continue;
		release(&child->peer, handle); /* the id stays ours until then */
		each->handle = 0;
		report(child, "has lost ", each->name);
	}
}

static void child_main(int fd, uint64_t parent)
{
	static struct child child;
	struct message m;

	child.peer.fd = fd;
	child.peer.pool = mmap(NULL, POOL_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (child.peer.pool == MAP_FAILED)
		die("mmap");
	child.parent = parent;
	for (;;) {
		receive(&child.peer, &m);
		if (m.type == BUS1_MSG_NODE_DESTROY && m.node == parent)
			_exit(0); /* what the shell has read ahead of its input is not to be given back */
		if (m.type == BUS1_MSG_NODE_DESTROY)
			lose(&child, m.node);
		else if (m.type == BUS1_MSG_DATA && m.node == ORDERS)
			obey(&child, m.text);
		else if (m.type == BUS1_MSG_DATA && m.node == GIFTS)
			keep(&child, &m);
		else if (m.type == BUS1_MSG_DATA && m.node == ANSWERS)
			report(&child, m.text, "");
	}
}

/* ---- The parent ---- */

struct entry {
	char name[NAME_MAX_];
	uint64_t orders; /* handles to nodes of the child; 0: there is none */
	uint64_t gifts;
};

static struct peer shell;
static struct entry children[CHILDREN_MAX];
static long sum;

static struct entry *child_named(const char *name)
{
	for (struct entry *each = children; each < children + CHILDREN_MAX; each++)
		if (each->orders && !strcmp(each->name, name))
			return each;
	return NULL;
}

static uint64_t reports_of(const struct entry *child)
{
	return REPORTS + 0x10 * (uint64_t)(child - children);
}

/* The id of what can be given, 0 if there is no such thing. A handle of a child's node is passed on like an own one. */
static uint64_t thing_named(const char *name)
{
	const struct entry *child = child_named(name);

	return !strcmp(name, "say") ? SAY : !strcmp(name, "count") ? COUNT : child ? child->gifts : 0;
}

static const char *name_of(uint64_t node)
{
	return node == SAY ? "say" : node == COUNT ? "count" : NULL;
}

static void serve(const struct message *m)
{
	char answer[TEXT_MAX] = "has said it";

	if (m->node == SAY) {
		printf("say: %s\n", m->text);
	} else {
		sum += atol(m->text);
		snprintf(answer, sizeof(answer), "count is %ld", sum);
	}
	if (m->n_handles)
		send_to(&shell, m->handles[0], answer, NULL);
}

/* Prints what comes, until `expected` reports have come, or a child has ended. */
static void attend(int expected)
{
	struct message m;

	while (expected > 0) {
		receive(&shell, &m);
		if (m.type == BUS1_MSG_NODE_RELEASE && name_of(m.node))
			printf("nobody has %s any more\n", name_of(m.node));
		if (m.type == BUS1_MSG_NODE_DESTROY && name_of(m.node)) {
			printf("%s is revoked\n", name_of(m.node));
			release(&shell, m.node); /* our own reference: whoever names the id again makes another node */
		}
		if (m.type == BUS1_MSG_DATA && name_of(m.node))
			serve(&m);
		for (struct entry *each = children; each < children + CHILDREN_MAX; each++) {
			if (m.type == BUS1_MSG_NODE_DESTROY && each->orders == m.node) {
				release(&shell, m.node);
				each->orders = 0;
			} else if (m.type == BUS1_MSG_NODE_DESTROY && each->gifts == m.node) {
				release(&shell, m.node); /* the second of its nodes: there is no more to come */
				each->gifts = 0;
				printf("%s has ended\n", each->name);
				expected = 0;
			} else if (m.type == BUS1_MSG_DATA && m.node == reports_of(each)) {
				if (strcmp(m.text, "settled") != 0)
					printf("%s: %s\n", each->name, m.text);
				/* What a child passes on comes here as well; who is given it reports, too. */
				expected += m.n_handles ? 0 : strncmp(m.text, "has lost ", 9) ? -1 : 0;
			}
		}
		while (m.n_handles)
			release(&shell, m.handles[--m.n_handles]);
	}
	fflush(stdout);
}

static void spawn(const char *path, const char *name)
{
	struct entry *entry = children;
	struct peer peer;
	uint64_t parent;
	pid_t pid;

	while (entry < children + CHILDREN_MAX && entry->orders)
		entry++;
	if (entry == children + CHILDREN_MAX || thing_named(name) || strlen(name) >= NAME_MAX_) {
		printf("cannot spawn %s\n", name);
		return;
	}
	/* A peer belongs to no process: it is made here, introduced, and given to the child by fork. */
	peer = peer_open(path);
	parent = introduce(&shell, reports_of(entry), &peer);
	strcpy(entry->name, name);
	entry->orders = introduce(&peer, ORDERS, &shell);
	entry->gifts = introduce(&peer, GIFTS, &shell);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		munmap((void *)peer.pool, POOL_SIZE);
		peer_close(&shell);
		child_main(peer.fd, parent);
	}
	peer_close(&peer);
}

/*
 * Whoever lost a handle is told of that before it gets this order, for everything has one order; so all that there is to
 * report of it has come when all have answered.
 */
static void settle(void)
{
	uint64_t all[CHILDREN_MAX];
	size_t n = 0;

	for (const struct entry *each = children; each < children + CHILDREN_MAX; each++)
		if (each->orders)
			all[n++] = each->orders;
	if (send_to_all(&shell, all, n, "settle", NULL) == 0)
		attend((int)n);
}

/* The end of the node that it reports to is what ends a child. */
static void end(const struct entry *child)
{
	destroy(&shell, reports_of(child), BUS1_NODES_DESTROY_FLAG_RELEASE_HANDLES);
	attend(1);
	while (wait(NULL) < 0 && errno == EINTR)
		;
	settle();
}

static void run(const char *path, const char *line)
{
	char first[NAME_MAX_] = "", second[NAME_MAX_] = "", third[NAME_MAX_] = "";
	int words = sscanf(line, "%15s %15s %15s", first, second, third);
	struct entry *child = child_named(words > 2 || !strcmp(first, "end") ? second : "");
	uint64_t thing = words > 2 ? thing_named(third) : words > 1 ? thing_named(second) : 0;

	if (words < 1)
		return;
	if (words == 2 && !strcmp(first, "spawn")) {
		spawn(path, second);
	} else if (words == 3 && !strcmp(first, "give") && child && thing) {
		send_to(&shell, child->gifts, third, &thing);
		attend(1);
	} else if (words == 2 && !strcmp(first, "revoke") && name_of(thing)) {
		destroy(&shell, thing, 0);
		settle();
	} else if (words == 2 && !strcmp(first, "end") && child) {
		end(child);
	} else if (words == 3 && child_named(first)) {
		if (send_to(&shell, child_named(first)->orders, strchr(line, ' ') + 1, NULL) == 0)
			attend(1);
	} else {
		printf("cannot do that: %s\n", line);
	}
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[TEXT_MAX];

	if (argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	shell = peer_open(argv[1]);
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		run(argv[1], line);
	}
	for (const struct entry *each = children; each < children + CHILDREN_MAX; each++)
		if (each->orders)
			end(each);
	peer_close(&shell);
	return 0;
}
