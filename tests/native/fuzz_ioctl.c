/*
 * The C step of an ioctl from bytes (native/ioctl.c, free.c, commands.c), for `make fuzz` with libFuzzer.
 *
 * Input: 2 bytes that choose a command and what is done with the answer, 6 bytes of the request's header, then the
 * struct of the command.  The client is this very process, so that the message and the rest of the struct are read from
 * `client`, whose other half differs between two runs with the same input: what the step says must not depend on it.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kdbus.h"

#define CLIENT 65536
#define HEAD 8

static struct kfs_channel *channel;
static int kernel, event;
static uint64_t fhs[2]; /* an endpoint, a file of bus1 */
static uint8_t client[CLIENT] __attribute__((aligned(4096)));

/* Kinds of files. */
#define ENDPOINT 1
#define PEER 2
/* A struct that says no size, and one whose bytes are no part of the request. */
#define PLAIN 1
#define READS 2
#define RETURNS 4
/* The numbers of the last kdbus and of bus1, whose headers cannot be included beside that of v3. */
#define LAST_SEND _IOC(_IOC_WRITE, KDBUS_IOCTL_MAGIC, 0x90, 56)
#define LAST_RECV _IOC(_IOC_READ, KDBUS_IOCTL_MAGIC, 0x91, 64)
#define LAST_FREE _IOC(_IOC_WRITE, KDBUS_IOCTL_MAGIC, 0x83, 32)
#define LAST_LIST _IOC(_IOC_READ, KDBUS_IOCTL_MAGIC, 0x86, 40)
#define PEER_SEND _IOC(_IOC_READ | _IOC_WRITE, 0x96, 0x40, 80)
#define PEER_RECV _IOC(_IOC_READ | _IOC_WRITE, 0x96, 0x50, 96)
#define PEER_DESTROY _IOC(_IOC_READ | _IOC_WRITE, 0x96, 0x20, 24)

static const struct known {
	uint32_t number, size, max_size, pointer_offset, kind, plain;
} commands[] = {
	{ KDBUS_CMD_SEND, sizeof(struct kdbus_cmd_send), 32768, offsetof(struct kdbus_cmd_send, msg_address), 1, 0 },
	{ KDBUS_CMD_RECV, sizeof(struct kdbus_cmd_recv), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_FREE, sizeof(struct kdbus_cmd_free), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_HELLO, sizeof(struct kdbus_cmd_hello), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_NAME_ACQUIRE, _IOC_SIZE(KDBUS_CMD_NAME_ACQUIRE), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_CONN_INFO, sizeof(struct kdbus_cmd_info), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_MATCH_ADD, sizeof(struct kdbus_cmd_match), 32768, 0, ENDPOINT, 0 },
	{ KDBUS_CMD_BYEBYE, 0, 0, 0, ENDPOINT, 0 },
	{ LAST_SEND, 56, 32768, 24, ENDPOINT, 0 },
	{ LAST_RECV, 64, 32768, 0, ENDPOINT, 0 },
	{ LAST_FREE, 32, 32768, 0, ENDPOINT, 0 },
	{ LAST_LIST, 40, 32768, 0, ENDPOINT, 0 },
	{ PEER_SEND, 80, 80, 0, PEER, PLAIN | READS },
	{ PEER_RECV, 96, 96, 0, PEER, PLAIN | RETURNS },
	{ PEER_DESTROY, 24, 24, 0, PEER, PLAIN | READS },
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void refuse(const char *why)
{
	fprintf(stderr, "fuzz_ioctl: %s\n", why);
	abort();
}

static void set_up(void)
{
	int fuse[2], tree[2];

	event = eventfd(0, EFD_NONBLOCK);
	if (event < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fuse) ||
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, tree))
		refuse("no sockets");
	kernel = fuse[1];
	channel = kfs_channel_new(fuse[0], tree[0], event);
	if (!channel || kfs_channel_take(channel) != KFS_OWNER)
		refuse("no channel");
	for (size_t i = 0; i < COMMANDS; i++)
		if (commands[i].size &&
		    (kfs_channel_command(channel, commands[i].kind, commands[i].number, commands[i].size,
					 commands[i].max_size, commands[i].pointer_offset) ||
		     (commands[i].plain && kfs_channel_plain(channel, PEER, commands[i].number,
							     commands[i].plain & READS, commands[i].plain & RETURNS))))
			refuse("a command was not taken");
	if (kfs_channel_publishes(channel, 1, KDBUS_CMD_RECV, offsetof(struct kdbus_cmd_recv, msg), 0) ||
	    kfs_channel_frees(channel, 1, KDBUS_CMD_FREE, offsetof(struct kdbus_cmd_free, offset),
			      offsetof(struct kdbus_cmd_free, flags), offsetof(struct kdbus_cmd_free, kernel_flags), 2,
			      1ull << 63) ||
	    kfs_channel_publishes(channel, ENDPOINT, LAST_RECV, 40, 0) ||
	    kfs_channel_frees(channel, ENDPOINT, LAST_FREE, 24, 8, 16, 1, 0))
		refuse("FREE was not taken");
	fhs[0] = (uint64_t)kfs_channel_slot_new(channel, ENDPOINT, 0, 0);
	fhs[1] = (uint64_t)kfs_channel_slot_new(channel, PEER, 0, 0);
}

struct outcome {
	int kind;
	struct kfs_channel head; /* the members up to `freed` */
	uint8_t command[32768], message[32768];
	uint8_t answers[65536];
	size_t answered;
	uint32_t in_size, out_size; /* as the request has them */
	uint64_t freed, published;
};

static const struct known *chosen(const uint8_t *input)
{
	return &commands[input[0] % COMMANDS];
}

static uint64_t file_of(const uint8_t *input)
{
	return fhs[chosen(input)->kind == PEER];
}

static void send_request(const uint8_t *data, size_t size, uint32_t number, const uint8_t *choice,
			 struct outcome *outcome)
{
	static struct {
		struct fuse_in_header in;
		struct fuse_ioctl_in ioctl;
		uint8_t data[32768 + 4096];
	} request;
	size_t len = offsetof(__typeof__(request), data) + size;

	request.in =
		(struct fuse_in_header){ (uint32_t)len, FUSE_IOCTL, 2, 0, 0, 0, (uint32_t)syscall(SYS_gettid), 0, 0 };
	request.ioctl = (struct fuse_ioctl_in){
		.fh = choice[2] & 64 ? file_of(choice) + choice[3] : file_of(choice),
		.flags = choice[2] & 128 ? FUSE_IOCTL_DIR : 0,
		.cmd = number,
		.arg = (uint64_t)(uintptr_t)client + (choice[4] & 15),
		.in_size = (uint32_t)size + (choice[5] & 64 ? choice[6] : 0),
		.out_size = choice[5] & 128                ? (uint32_t)choice[7] << (choice[6] & 15)
			    : _IOC_DIR(number) & _IOC_READ ? (uint32_t)_IOC_SIZE(number)
							   : 0,
	};
	outcome->in_size = request.ioctl.in_size;
	outcome->out_size = request.ioctl.out_size;
	memcpy(request.data, data, size);
	if (send(kernel, &request, len, 0) < 0)
		refuse("no request");
}

/* One request with `filler` behind what the client gives. */
static void step(const uint8_t *input, size_t len, int filler, struct outcome *outcome)
{
	static uint8_t answer[1 << 20];
	const uint8_t *data = input + HEAD;
	size_t size = len - HEAD, at = 0;
	const struct known *command = chosen(input);
	uint32_t number = command->number, fixed = command->size;
	int is_here = !fixed || _IOC_DIR(number) & _IOC_WRITE;
	uint64_t address = (uint64_t)(uintptr_t)client;
	struct slot *slot;
	ssize_t n;

	memset(client, filler, sizeof(client));
	memcpy(client, data, size);
	/* A pointer that a real client gives is one into its memory. */
	if (command->pointer_offset && size >= fixed && input[1] & 1) {
		address += fixed + (input[1] >> 4) * 4ull;
		memcpy(client + command->pointer_offset, &address, sizeof(address));
	}
	memset(channel->message, filler, KFS_MESSAGE_MAX);
	slot = kfs_slot_of(channel->private_->mount, file_of(input));
	slot->published_count = 1;
	slot->published[0] = 64;
	channel->private_->mount->freed.count = 0;
	/* The kernel puts into the request what the number says, or nothing; other lengths are those of a broken one. */
	if (!is_here)
		size = input[1] & 2 ? size : 0;
	else if (fixed && size >= fixed && !(input[1] & 2))
		size = fixed;
	send_request(client, size, number, input, outcome);
	/*
	 * The deadline has the step return where the request is answered in C, and libFuzzer's signals interrupt it before.
	 * Node 0 is no wake-up node for the alarm.
	 */
	do
		outcome->kind = kfs_channel_step(channel, kfs_now_ns() + 300000, KFS_NOTHING);
	while (outcome->kind == KFS_EVENT ||
	       (outcome->kind == KFS_TIMER && recv(kernel, answer, 1, MSG_PEEK | MSG_DONTWAIT) < 0));
	memcpy(&outcome->head, channel, KFS_REQUEST_HEAD_SIZE);
	if (outcome->kind == KFS_IOCTL) {
		if (channel->command_len > (uint32_t)KFS_COMMAND_MAX ||
		    channel->message_len > (uint32_t)KFS_MESSAGE_MAX)
			refuse("more than there is room for");
		memcpy(outcome->command, channel->command, channel->command_len);
		memcpy(outcome->message, channel->message, channel->message_len);
		kfs_channel_flush(channel, input[1] & 4 ? -EINVAL : 0);
	}
	while ((n = recv(kernel, answer, sizeof(answer), MSG_DONTWAIT)) > 0) {
		if (at + (size_t)n <= sizeof(outcome->answers))
			memcpy(outcome->answers + at, answer, (size_t)n);
		at += (size_t)n;
	}
	outcome->answered = at;
	outcome->freed = channel->private_->mount->freed.count;
	outcome->published = slot->published_count;
}

static int is_one_of(int error, const int *errors)
{
	while (*errors && *errors != error)
		errors++;
	return *errors == error;
}

/* What holds of every answer: there is one, as long as it says, of our request, and the request has room for it. */
static void check_answer(const struct outcome *outcome)
{
	struct fuse_out_header head;
	struct fuse_ioctl_out out;

	if (outcome->answered < sizeof(head))
		refuse("no answer");
	memcpy(&head, outcome->answers, sizeof(head));
	if (head.len != outcome->answered || head.unique != 2)
		refuse("more than one answer, or not to the request");
	if (head.error > 0 || head.error <= -512)
		refuse("an error that the kernel does not take");
	if (head.error) {
		if (head.len != sizeof(head))
			refuse("data with an error");
		return;
	}
	if (head.len < sizeof(head) + sizeof(out) || head.len > sizeof(head) + sizeof(out) + outcome->out_size)
		refuse("an answer that its request has no room for");
	memcpy(&out, outcome->answers + sizeof(head), sizeof(out));
	if (out.result > 0 || out.result < -4095)
		refuse("a result that is no errno");
}

/* What holds of a request that is for Python. */
static void check_request(const struct outcome *outcome, const uint8_t *input)
{
	static const int errors[] = { EFAULT, EINVAL, EMSGSIZE, ESRCH, 0 };
	const struct kfs_channel *head = &outcome->head;
	const struct known *command = chosen(input);
	uint32_t fixed = command->size, pointer = command->pointer_offset;
	int is_here = (_IOC_DIR(command->number) & _IOC_WRITE) != 0;
	uint64_t size, at = head->arg - (uint64_t)(uintptr_t)client;

	if (head->unique != 2 || !is_one_of(head->command_error, errors) || !is_one_of(head->message_error, errors))
		refuse("another request, or an error that reading cannot have");
	if (!fixed || (is_here && outcome->in_size < fixed)) {
		if (head->message_len || head->command_len > outcome->in_size)
			refuse("something was read for a command that is not known, or too short");
		return;
	}
	if (head->command_error)
		return;
	if (command->plain) {
		if (head->command_len != fixed || head->message_len)
			refuse("a struct that says no size was taken at another length, or with a message");
		return;
	}
	memcpy(&size, outcome->command, sizeof(size));
	if (head->arg & 7 || head->command_len < fixed || head->command_len != size || size > commands[0].max_size)
		refuse("a struct that is not as long as it says was taken");
	if (memcmp(outcome->command + fixed, client + at + fixed, head->command_len - fixed))
		refuse("what was read is not what the client has");
	if (!pointer || head->message_error) {
		if (head->message_len && !pointer)
			refuse("a message with a command that has none");
		return;
	}
	memcpy(&size, outcome->message, sizeof(size));
	if (head->message_len != size || size < 64 || size > (uint64_t)KFS_MESSAGE_MAX)
		refuse("a message that is not as long as it says was taken");
	memcpy(&at, outcome->command + pointer, sizeof(at));
	if (at & 7 || memcmp(outcome->message, (const void *)(uintptr_t)at, size))
		refuse("the message is not what the client has");
}

/* A FREE is carried out in C or by Python, and once: the core hears of the one slice that the client was told of. */
static void check_freed(const struct outcome *outcome, const uint8_t *input)
{
	struct fuse_ioctl_out out = { .result = -1 };

	if (outcome->freed > 1 ||
	    (outcome->freed && chosen(input)->number != KDBUS_CMD_FREE && chosen(input)->number != LAST_FREE))
		refuse("a slice was given back that nobody gave back");
	if (outcome->freed && (outcome->kind == KFS_IOCTL || outcome->published))
		refuse("a slice was given back, and is still there");
	if (!outcome->freed)
		return;
	memcpy(&out, outcome->answers + sizeof(struct fuse_out_header), sizeof(out));
	if (out.result || channel->private_->mount->freed.slices[0].fh != fhs[0] ||
	    channel->private_->mount->freed.slices[0].offset != 64)
		refuse("another slice was given back, or its client was told of an error");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct outcome first, second;

	if (!channel)
		set_up();
	if (size < HEAD || size > HEAD + 16384)
		return 0;
	memset(&first, 0, sizeof(first));
	memset(&second, 0, sizeof(second));
	step(data, size, 0x55, &first);
	check_answer(&first);
	if (first.kind == KFS_IOCTL)
		check_request(&first, data);
	check_freed(&first, data);
	step(data, size, 0xaa, &second);
	/* pidfd: a number of this process. */
	first.head.pidfd = first.head.pidfd >= 0;
	second.head.pidfd = second.head.pidfd >= 0;
	/* A struct or message that goes on behind the input is read from what differs. */
	if (first.kind != second.kind || memcmp(&first.head, &second.head, KFS_REQUEST_HEAD_SIZE))
		refuse("the outcome depends on memory behind the input");
	if (first.answered != second.answered || first.freed != second.freed || first.published != second.published)
		refuse("the answer depends on memory behind the input");
	return 0;
}
