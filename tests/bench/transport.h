/*
 * One way to talk over a bus: `kdbus.c` by bare ioctls, `dbus.c` by sd-bus.  `scenarios.c` is linked with either, so both are
 * measured by the same loops.  Whatever fails ends the program.
 */
#ifndef TRANSPORT_H
#define TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#define POOL_SIZE (16UL << 20)
#define SMALL_POOL_SIZE (1UL << 20)

struct connection;

/* Where a message goes: a connection, or a well-known name if `id` is 0. */
struct address {
	uint64_t id;
	char name[120];
};

struct payload {
	const void *data;
	size_t size;
	int memfd; /* -1: the bytes travel; otherwise a sealed file of `size` bytes */
};

/* A message that was received, until it is answered or released. */
struct message {
	const uint8_t *data;
	size_t size;
	int memfd; /* -1: bytes */
	void *handle;
	uint64_t offset, source, cookie;
};

/* Before anything else: waits until `where` can be connected to, at most 20 s. */
void bus_begin(const char *where);

/* All connections made from now on ask for that metadata with each message (KDBUS_ATTACH_*). */
void bus_want_metadata(uint64_t attach_flags);

struct connection *connection_open(size_t pool_size);
void connection_close(struct connection *c);
struct address connection_address(const struct connection *c);
/* Becomes readable when something may have come. */
int connection_fd(const struct connection *c);
void connection_own(struct connection *c, const char *name);
/* Asks for the broadcasts of a topic.  Topics are told apart by the bus, not by the receiver; up to 400. */
void connection_match(struct connection *c, unsigned topic);

/* Sends, waits for the reply, checks it. */
void connection_call(struct connection *c, const struct address *to, const struct payload *payload);
void connection_send(struct connection *c, const struct address *to, const struct payload *payload);
/* Topic 0. */
void connection_broadcast(struct connection *c, const struct payload *payload);
/* Nothing that was sent before is held back in this process. */
void connection_flush(struct connection *c);

/* Gives false when there is none. */
int connection_receive(struct connection *c, struct message *message);
/* The 8 bytes of REPLY to whoever sent it; releases it. */
void connection_answer(struct connection *c, struct message *message);
void connection_release(struct connection *c, struct message *message);

#endif
