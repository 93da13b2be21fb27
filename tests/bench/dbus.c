/*
 * The transport of `scenarios.c` over D-Bus, by sd-bus.
 *
 * Matches are added by a call of AddMatch rather than by sd_bus_add_match(): sd-bus then has no tree of its own to go through
 * for every message.  Messages are taken from sd_bus_process(), without vtables and callbacks.
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#include "bench.h"
#include "transport.h"

#define CALL_TIMEOUT_US 20000000
#define OBJECT "/bench"
#define INTERFACE "org.kdbusfs.Bench"

struct connection {
	sd_bus *bus;
};

static char bus_address[256];

static void worked(int r, const char *what)
{
	errno = r < 0 ? -r : 0;
	must(r >= 0, what);
}

void bus_begin(const char *where)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	double limit = now_us() + START_PATIENCE_US;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(fd >= 0 && strlen(where) < sizeof(address.sun_path), where);
	strcpy(address.sun_path, where);
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && now_us() < limit)
		usleep(500);
	close(fd);
	snprintf(bus_address, sizeof(bus_address), "unix:path=%s", where);
}

void bus_want_metadata(uint64_t attach_flags)
{
	errno = ENOTSUP;
	must(attach_flags == 0, "metadata with each message");
}

/* What the bus itself says to a new connection is no message of ours. */
static void drain(struct connection *c)
{
	while (sd_bus_process(c->bus, NULL) > 0)
		;
}

struct connection *connection_open(size_t pool_size)
{
	struct connection *c = calloc(1, sizeof(*c));
	const char *name;

	(void)pool_size;
	must(c != NULL, "memory");
	worked(sd_bus_new(&c->bus), "sd_bus_new");
	worked(sd_bus_set_address(c->bus, bus_address), "sd_bus_set_address");
	worked(sd_bus_set_bus_client(c->bus, 1), "sd_bus_set_bus_client");
	worked(sd_bus_negotiate_fds(c->bus, 1), "sd_bus_negotiate_fds");
	worked(sd_bus_start(c->bus), "sd_bus_start");
	worked(sd_bus_get_unique_name(c->bus, &name), "Hello");
	drain(c);
	return c;
}

void connection_close(struct connection *c)
{
	sd_bus_close(c->bus);
	sd_bus_unref(c->bus);
	free(c);
}

struct address connection_address(const struct connection *c)
{
	struct address address = { 0 };
	const char *name;

	worked(sd_bus_get_unique_name(c->bus, &name), "sd_bus_get_unique_name");
	snprintf(address.name, sizeof(address.name), "%s", name);
	return address;
}

int connection_fd(const struct connection *c)
{
	return sd_bus_get_fd(c->bus);
}

void connection_own(struct connection *c, const char *name)
{
	worked(sd_bus_request_name(c->bus, name, 0), name);
	drain(c);
}

void connection_match(struct connection *c, unsigned topic)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	char rule[256];

	snprintf(rule, sizeof(rule), "type='signal',interface='" INTERFACE "',member='News%u'", topic);
	worked(sd_bus_call_method(c->bus, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
				  "AddMatch", &error, NULL, "s", rule),
	       "AddMatch");
	drain(c);
}

static void add_payload(sd_bus_message *m, const struct payload *payload)
{
	if (payload->memfd < 0)
		worked(sd_bus_message_append_array(m, 'y', payload->data, payload->size), "ay");
	else
		worked(sd_bus_message_append(m, "h", payload->memfd), "h");
}

void connection_call(struct connection *c, const struct address *to, const struct payload *payload)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *m, *reply;
	const void *data;
	size_t size;

	worked(sd_bus_message_new_method_call(c->bus, &m, to->name, OBJECT, INTERFACE, "Call"), "call");
	add_payload(m, payload);
	worked(sd_bus_call(c->bus, m, CALL_TIMEOUT_US, &error, &reply), "sd_bus_call");
	worked(sd_bus_message_read_array(reply, 'y', &data, &size), "reply");
	must(size == REPLY_SIZE && !memcmp(data, REPLY, REPLY_SIZE), "another reply");
	sd_bus_message_unref(reply);
	sd_bus_message_unref(m);
}

void connection_send(struct connection *c, const struct address *to, const struct payload *payload)
{
	sd_bus_message *m;

	worked(sd_bus_message_new_method_call(c->bus, &m, to->name, OBJECT, INTERFACE, "Send"), "message");
	worked(sd_bus_message_set_expect_reply(m, 0), "no reply");
	add_payload(m, payload);
	worked(sd_bus_send(c->bus, m, NULL), "sd_bus_send");
	sd_bus_message_unref(m);
}

void connection_broadcast(struct connection *c, const struct payload *payload)
{
	sd_bus_message *m;

	worked(sd_bus_message_new_signal(c->bus, &m, OBJECT, INTERFACE, "News0"), "signal");
	add_payload(m, payload);
	worked(sd_bus_send(c->bus, m, NULL), "sd_bus_send");
	sd_bus_message_unref(m);
}

void connection_flush(struct connection *c)
{
	worked(sd_bus_flush(c->bus), "sd_bus_flush");
}

int connection_receive(struct connection *c, struct message *message)
{
	sd_bus_message *m = NULL;
	const void *data;
	char type;

	worked(sd_bus_process(c->bus, &m), "sd_bus_process");
	if (!m)
		return 0;
	if (!sd_bus_message_get_interface(m) || strcmp(sd_bus_message_get_interface(m), INTERFACE)) {
		sd_bus_message_unref(m);
		return 0;
	}
	message->handle = m;
	message->memfd = -1;
	worked(sd_bus_message_peek_type(m, &type, NULL), "payload");
	if (type == 'h') {
		worked(sd_bus_message_read_basic(m, 'h', &message->memfd), "h");
		message->size = (size_t)lseek(message->memfd, 0, SEEK_END);
	} else {
		worked(sd_bus_message_read_array(m, 'y', &data, &message->size), "ay");
		message->data = data;
	}
	return 1;
}

void connection_release(struct connection *c, struct message *message)
{
	(void)c;
	sd_bus_message_unref(message->handle);
}

void connection_answer(struct connection *c, struct message *message)
{
	sd_bus_message *reply;

	worked(sd_bus_message_new_method_return(message->handle, &reply), "reply");
	worked(sd_bus_message_append_array(reply, 'y', REPLY, REPLY_SIZE), "ay");
	worked(sd_bus_send(c->bus, reply, NULL), "sd_bus_send");
	sd_bus_message_unref(reply);
	connection_release(c, message);
}
