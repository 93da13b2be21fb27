/*
 * Runs dbus-broker without systemd: broker SOCKET [PROGRAM]
 *
 * dbus-broker only passes messages on.  Where it listens and what its policy is comes from a controller that speaks D-Bus over a
 * descriptor it inherits; this is the least of a controller: one listener, everything allowed.  Prints the pid of
 * dbus-broker when it listens, and ends with it.
 *
 * The policy is an argument whose type has changed: releases up to 35 take no string at its end.  A broker that does not know the
 * type refuses it, and another is started with the other type.
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>

#include "bench.h"

#define RULES "a(btssssuutt)"
#define BATCH "bta(btbs)" RULES RULES
#define BY_UID "u(" BATCH ")"
#define BY_RANGE "buu(" BATCH ")"
#define POLICY "a(" BY_UID ")a(" BY_RANGE ")a(ss)b"

/* Far more than any measurement needs, for a single user. */
#define MAX_BYTES "2147483648"
#define MAX_OTHERS "1000000"

static const char *const types[] = { POLICY "s", POLICY, NULL };

static void worked(int r, const char *what)
{
	errno = r < 0 ? -r : 0;
	must(r >= 0, what);
}

/* Whoever starts this ends it by a signal; dbus-broker is gone when it has ended. */
static void end(int signal)
{
	(void)signal;
	end_helpers();
	_exit(0);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	must(fd >= 0 && strlen(path) < sizeof(address.sun_path), path);
	strcpy(address.sun_path, path);
	must(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, SOMAXCONN) == 0, path);
	return fd;
}

static sd_bus *start(const char *program)
{
	sd_bus *controller;
	char number[16];
	int pair[2];

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
	if (fork_helper()) {
		close(pair[0]);
		snprintf(number, sizeof(number), "%d", pair[1]);
		execlp(program, program, "--controller", number, "--machine-id", "0123456789abcdef0123456789abcdef",
		       "--max-bytes", MAX_BYTES, "--max-fds", MAX_OTHERS, "--max-matches", MAX_OTHERS, "--max-objects",
		       MAX_OTHERS, NULL);
		must(0, program);
	}
	/* One that does not know this type of policy may end, and the next is tried. */
	signal(SIGCHLD, SIG_DFL);
	close(pair[1]);
	worked(sd_bus_new(&controller), "sd_bus_new");
	worked(sd_bus_set_fd(controller, pair[0], pair[0]), "sd_bus_set_fd");
	worked(sd_bus_start(controller), "sd_bus_start");
	return controller;
}

/* Everybody may connect, own, send and receive everything; one rule of each kind with nothing in it does. */
static void append_policy(sd_bus_message *m, const char *type)
{
	const char *inner = "(" BATCH ")";
	char whole[256];

	snprintf(whole, sizeof(whole), "(%s)", type);
	worked(sd_bus_message_open_container(m, 'v', whole), "policy");
	worked(sd_bus_message_open_container(m, 'r', type), "policy");
	worked(sd_bus_message_append(m, "a(" BY_UID ")", 1, UINT32_MAX, 1, UINT64_C(1), 1, 1, UINT64_C(1), 1, "", 1, 1,
				     UINT64_C(1), "", "", "", "", 0, 0, UINT64_C(0), UINT64_MAX, 1, 1, UINT64_C(1), "", "",
				     "", "", 0, 0, UINT64_C(0), UINT64_MAX),
	       inner);
	worked(sd_bus_message_append(m, "a(" BY_RANGE ")a(ss)b", 0, 0, 0), "policy");
	if (type[strlen(type) - 1] == 's')
		worked(sd_bus_message_append(m, "s", "system"), "policy");
	worked(sd_bus_message_close_container(m), "policy");
	worked(sd_bus_message_close_container(m), "policy");
}

static int add_listener(sd_bus *controller, int fd, const char *type)
{
	sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *m;
	int r;

	worked(sd_bus_message_new_method_call(controller, &m, NULL, "/org/bus1/DBus/Broker", "org.bus1.DBus.Broker",
					      "AddListener"),
	       "AddListener");
	worked(sd_bus_message_append(m, "oh", "/org/bus1/DBus/Listener/0", fd), "AddListener");
	append_policy(m, type);
	r = sd_bus_call(controller, m, 5000000, &error, NULL);
	sd_bus_error_free(&error);
	sd_bus_message_unref(m);
	return r;
}

int main(int argc, char **argv)
{
	const char *program = argc > 2 ? argv[2] : "dbus-broker";
	sd_bus *controller = NULL;
	int fd, r = -1;

	if (argc < 2) {
		fprintf(stderr, "usage: %s SOCKET [PROGRAM]\n", argv[0]);
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	signal(SIGTERM, end);
	fd = listen_at(argv[1]);
	for (int i = 0; r < 0 && types[i]; i++) {
		end_helpers();
		controller = start(program);
		r = add_listener(controller, fd, types[i]);
	}
	worked(r, "AddListener");
	printf("%d\n", (int)helpers[0]);
	fflush(stdout);
	while ((r = sd_bus_process(controller, NULL)) >= 0)
		if (r == 0)
			r = sd_bus_wait(controller, UINT64_MAX);
	return 0;
}
