/*
 * Moves open files of the daemon into the descriptor table of a stopped client thread.
 *
 * The thread makes a socket pair, of which the daemon takes one end; it receives the files by the other one, and closes
 * both.  Memory for these calls is the command struct itself, which the ioctl may write anyway and whose content is
 * stored once more at the end.  The stack is left alone: below it may lie another thread's data (coroutines).  If the
 * struct is too small, the thread maps a page for the time being.
 */
#define _GNU_SOURCE
#include "internal_tracer.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* struct msghdr as the client's kernel entry expects it, and where its members lie. */
struct layout {
	size_t size, control, controllen, flags, word, cmsg_header;
};

static const struct layout layouts[2] = {
	{ sizeof(struct msghdr), offsetof(struct msghdr, msg_control), offsetof(struct msghdr, msg_controllen),
	  offsetof(struct msghdr, msg_flags), 8, 16 },
	{ 28, 16, 20, 24, 4, 12 },
};

/* Where the msghdr lies in scratch memory; the control data lie before it and reach into it, up to msg_controllen: the
 * kernel has read all of the msghdr before it writes the one, and writes only from there on afterwards. */
static size_t header_at(const struct tracee *tracee)
{
	return (tracee->scratch_len - layouts[tracee->abi->compat].size) & ~(size_t)7;
}

/* How many descriptors can be received at once. */
uint32_t kfs_transfer_capacity(const struct tracee *tracee)
{
	const struct layout *layout = &layouts[tracee->abi->compat];
	size_t room;

	if (tracee->scratch_len < layout->size)
		return 0;
	room = header_at(tracee) + layout->controllen;
	if (room < layout->cmsg_header + sizeof(int))
		return 0;
	room = (room - layout->cmsg_header) / sizeof(int);
	return room < FILES_PER_MESSAGE ? (uint32_t)room : FILES_PER_MESSAGE;
}

static int send_files(int socket, const int *files, uint32_t count)
{
	union {
		char bytes[CMSG_SPACE(FILES_PER_MESSAGE * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_control = control.bytes, .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(header), files, count * sizeof(int));
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* The descriptor numbers that the recvmsg just done has given; at most `max`.  What the client may have changed of
 * them meanwhile is its own affair. */
int kfs_received_numbers(const struct tracee *tracee, int *numbers, uint32_t max)
{
	const struct layout *layout = &layouts[tracee->abi->compat];
	unsigned char control[16 + FILES_PER_MESSAGE * sizeof(int)];
	uint64_t left = 0, len = 0;
	uint32_t type[2];
	int error;

	error = kfs_peek(tracee, tracee->scratch + header_at(tracee) + layout->controllen, &left, layout->word);
	if (!error)
		error = kfs_peek(tracee, tracee->scratch, control, tracee->control_len);
	if (error)
		return error;
	if (left == 0)
		return 0; /* no room for any: the control data were not touched */
	memcpy(&len, control, layout->word);
	memcpy(type, control + layout->word, sizeof(type));
	if (type[0] != SOL_SOCKET || type[1] != SCM_RIGHTS || len < layout->cmsg_header || len > tracee->control_len)
		return -EIO;
	len = (len - layout->cmsg_header) / sizeof(int);
	if (len > max)
		len = max;
	memcpy(numbers, control + layout->cmsg_header, len * sizeof(int));
	return (int)len;
}

/* Has the thread receive `count` files.  How many it got, fewer at its RLIMIT_NOFILE; or -errno. */
static int receive(struct kfs_tracer *tracer, struct tracee *tracee, int peer, int socket, const int *files,
		   uint32_t count, int *numbers)
{
	const struct layout *layout = &layouts[tracee->abi->compat];
	unsigned char header[sizeof(struct msghdr)] = { 0 };
	uint64_t at = tracee->scratch + header_at(tracee);
	long result;
	int error;

	tracee->control_len = layout->cmsg_header + count * sizeof(int);
	memcpy(header + layout->control, &tracee->scratch, layout->word);
	memcpy(header + layout->controllen, &tracee->control_len, layout->word);
	error = kfs_poke(tracee, at, header, layout->size);
	if (!error)
		error = send_files(peer, files, count);
	if (error)
		return error;
	result = kfs_remote_call_with_undo(tracer, tracee, UNDO_FILES, CALL_RECVMSG, (uint64_t)socket, at,
					   MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0);
	if (tracee->lost)
		return tracee->lost;
	return result < 0 ? (int)result : kfs_received_numbers(tracee, numbers, count);
}

/* A descriptor of the daemon's own for what the client has at `number`; -errno. */
int kfs_take_descriptor(const struct tracee *tracee, int number)
{
	int pidfd, taken;

	pidfd = kfs_thread_open(tracee->tid);
	if (pidfd < 0)
		return pidfd;
	taken = kfs_thread_take(pidfd, tracee->tid, number);
	close(pidfd);
	return taken;
}

/* The daemon's own descriptor of the client's socket `number`.  A sibling may have put something else there, to have
 * the daemon write to it: nothing but an unnamed datagram socket with an unnamed peer will do. */
static int take_socket(const struct tracee *tracee, int number)
{
	struct sockaddr_un name = { 0 };
	socklen_t name_len = sizeof(name), type_len = sizeof(int);
	int socket = kfs_take_descriptor(tracee, number), type = 0;

	if (socket < 0)
		return socket;
	if (getpeername(socket, (struct sockaddr *)&name, &name_len) < 0 || name.sun_family != AF_UNIX ||
	    name_len != sizeof(sa_family_t) || getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &type_len) < 0 ||
	    type != SOCK_DGRAM) {
		close(socket);
		return -EBADF;
	}
	return socket;
}

/*
 * Gets the sockets out of the way, for the descriptors are to have the lowest free numbers (LAY-16): a duplicate far
 * above is received from instead.  Where the client's limit has no room for that, one number is lost to the socket.
 * It is not the received descriptor that is moved: closing one asks its file system, which may never answer.
 */
static int clear_numbers(struct kfs_tracer *tracer, struct tracee *tracee, uint32_t count)
{
	int *open = tracee->open;
	int top = open[0] > open[1] ? open[0] : open[1];
	long moved;

	moved = kfs_remote_call_with_undo(tracer, tracee, UNDO_DUPLICATE, CALL_FCNTL, (uint64_t)open[0],
					  F_DUPFD_CLOEXEC, (uint64_t)top + 2 * count + 16, 0);
	if (tracee->lost)
		return tracee->lost;
	if (moved < 0) {
		kfs_remote_close(tracer, tracee, &open[1], 1);
		return open[0];
	}
	open[2] = (int)moved;
	kfs_remote_close(tracer, tracee, open, 2);
	return open[2];
}

static int map_scratch(struct kfs_tracer *tracer, struct tracee *tracee)
{
	const size_t len = SCRATCH_PAGE;
	long result = kfs_remote_call_with_undo(tracer, tracee, UNDO_PAGE, CALL_MMAP, 0, len, PROT_READ | PROT_WRITE,
						MAP_PRIVATE | MAP_ANONYMOUS);

	if (tracee->lost)
		return tracee->lost;
	if (result < 0 && result > -4096)
		return (int)result;
	tracee->map = tracee->abi->compat ? (uint32_t)result : (uint64_t)result;
	tracee->scratch = tracee->map;
	tracee->scratch_len = len;
	return 0;
}

/* Moves the job's files over, the entries in their order and the one of the swap at last. */
static int move_files(struct kfs_tracer *tracer, struct tracee *tracee, struct kfs_injection *job, int peer, int socket)
{
	int numbers[FILES_PER_MESSAGE] = { 0 };
	uint32_t most = FILES_PER_MESSAGE;
	int got;

	while (job->installed + job->refused < job->count) {
		uint32_t done = job->installed + job->refused, room = kfs_transfer_capacity(tracee),
			 batch = job->count - done;

		if (batch > room)
			batch = room;
		if (batch > most)
			batch = most;
		got = receive(tracer, tracee, peer, socket, job->files + done, batch, numbers);
		if (got == -EINVAL && batch > 1) {
			/* The kernel passes no io_uring over a socket, and nothing else together with one. */
			most = 1;
			continue;
		}
		if (got == -EINVAL && batch == 1) {
			*job->slots[done] = got;
			job->refused++;
			continue;
		}
		if (got < 0)
			return got;
		for (int i = 0; i < got; i++, job->installed++)
			*job->slots[done + (uint32_t)i] = numbers[i];
		if ((uint32_t)got < batch)
			return -EMFILE;
	}
	if (job->swap < 0)
		return 0;
	got = receive(tracer, tracee, peer, socket, &job->swap, 1, numbers);
	if (got < 1)
		return got < 0 ? got : -EMFILE;
	/* Closed together with the sockets, one of which has no number of its own any more or never had. */
	for (int i = 2; i >= 0; i--)
		if (tracee->open[i] < 0) {
			tracee->open[i] = numbers[0];
			break;
		}
	got = kfs_swap_descriptor(tracer, tracee, numbers[0], job);
	job->swapped = got == 0;
	return got;
}

/* Installs the files of the job, and swaps.  0 or -errno. */
int kfs_transfer(struct kfs_tracer *tracer, struct tracee *tracee, struct kfs_injection *job)
{
	uint32_t most = job->count ? job->count : 1;
	int pair[2], peer, error, socket;
	long result;

	tracee->scratch = tracee->command;
	tracee->scratch_len = tracee->out_len;
	if (kfs_transfer_capacity(tracee) < most && map_scratch(tracer, tracee) < 0 &&
	    kfs_transfer_capacity(tracee) == 0)
		return tracee->lost ? tracee->lost : -ENOMEM;
	tracee->store = !tracee->map;
	result = kfs_remote_call_with_undo(tracer, tracee, UNDO_SOCKETS, CALL_SOCKETPAIR, AF_UNIX,
					   SOCK_DGRAM | SOCK_CLOEXEC, 0, tracee->scratch);
	if (result < 0)
		return (int)result;
	error = kfs_peek(tracee, tracee->scratch, pair, sizeof(pair));
	if (error)
		return error;
	memcpy(tracee->open, pair, sizeof(pair));
	peer = take_socket(tracee, pair[1]);
	if (peer < 0)
		return peer;
	socket = job->count ? clear_numbers(tracer, tracee, job->count) : pair[0];
	error = tracee->lost ? tracee->lost : move_files(tracer, tracee, job, peer, socket);
	close(peer);
	return error;
}
