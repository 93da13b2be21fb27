/*
 * Ioctls: their struct and their message, copied from the client.
 *
 * The kernel keeps the thread of a request until the answer, even if the thread is killed; so its id is not reused
 * meanwhile.  Only an abort of the connection breaks that.  So a copy of client memory is valid only if a pidfd of the
 * thread is alive after the read.
 */
#define _GNU_SOURCE
#include "internal_channel.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/ioctl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define MESSAGE_MIN 64
/* Most messages fit; a longer first read would copy bytes that the client did not mean to send. */
#define MESSAGE_FIRST 1024
#define PAGE 4096

/* Returns 0 or -errno; a short read is EFAULT. */
static int read_client(uint32_t tid, uint64_t address, void *to, size_t size)
{
	struct iovec local = { to, size };
	struct iovec remote = { (void *)(uintptr_t)address, size };
	uint64_t ticket;
	ssize_t n;
	int error, r;

	if (address + size < address || kfs_access_begin(&ticket) < 0)
		return -EFAULT;
	n = process_vm_readv((pid_t)tid, &local, 1, &remote, 1, 0);
	error = errno;
	r = kfs_access_end(ticket);
	if (r < 0)
		return r;
	if (n < 0)
		return -error;
	return (size_t)n == size ? 0 : -EFAULT;
}

static int read_message(struct kfs_channel *ch, uint64_t address, uint32_t max_size)
{
	size_t first = PAGE - (address & (PAGE - 1));
	uint64_t size;
	int r;

	if (address & 7)
		return -EFAULT;
	if (first > MESSAGE_FIRST)
		first = MESSAGE_FIRST;
	r = read_client(ch->tid, address, ch->message, first);
	if (r < 0)
		return r;
	memcpy(&size, ch->message, sizeof(size));
	if (size < MESSAGE_MIN)
		return -EINVAL;
	if (size > max_size)
		return -EMSGSIZE;
	if (size > first) {
		r = read_client(ch->tid, address + first, ch->message + first, size - first);
		if (r < 0)
			return r;
	}
	ch->message_len = size;
	return 0;
}

/* Makes the slot's pidfd one of the calling thread.  Returns 0 or -errno. */
static int tie(struct kfs_channel *ch, struct slot *slot)
{
	int pidfd;

	if (slot->pidfd >= 0) {
		if (slot->tid == ch->tid)
			return 0;
		if (kfs_thread_is_of_process(slot->pidfd) && kfs_thread_is_alive(slot->pidfd, (int)ch->tid) == 1) {
			slot->tid = ch->tid;
			return 0;
		}
		close(slot->pidfd);
		slot->pidfd = -1;
	}
	pidfd = kfs_thread_open((int)ch->tid);
	ch->counts->pidfds++;
	if (pidfd < 0)
		return pidfd;
	slot->tid = ch->tid;
	slot->pidfd = pidfd;
	return 0;
}

/* Whether the kernel has copied the struct of such a command into its request. */
static int comes_with_request(const struct command *command)
{
	return (_IOC_DIR(command->number) & _IOC_WRITE) != 0;
}

/* Checks the size member of a struct; 0 or an errno. */
static int check_size(const struct kfs_channel *ch, const struct command *command, uint64_t size)
{
	if (size < command->size)
		return EINVAL;
	if (size > command->max_size)
		return EMSGSIZE;
	return ch->arg + size < ch->arg ? EFAULT : 0;
}

/*
 * Reads the fixed struct of a command that does not come with its request.  Its size is the one in the copy: later
 * changes by the client are ignored.  Returns 0 or an errno.
 */
static int fetch_fixed(struct kfs_channel *ch, const struct command *command, uint64_t *size)
{
	int error = -read_client(ch->tid, ch->arg, ch->command, command->size);

	/* A struct that is too short may end where the client's memory does. */
	if (error == EFAULT && read_client(ch->tid, ch->arg, ch->command, sizeof(*size)) == 0) {
		memcpy(size, ch->command, sizeof(*size));
		return *size < command->size ? EINVAL : *size > command->max_size ? EMSGSIZE : EFAULT;
	}
	memcpy(size, ch->command, sizeof(*size));
	return error ? error : check_size(ch, command, *size);
}

static void fetch(struct kfs_channel *ch, const struct command *command, uint64_t size)
{
	uint64_t address;

	ch->command_len = command->size;
	if (!comes_with_request(command)) {
		ch->command_error = fetch_fixed(ch, command, &size);
		if (ch->command_error)
			return;
	}
	if (size > command->size) {
		ch->command_error = -read_client(ch->tid, ch->arg + command->size, ch->command + command->size,
						 size - command->size);
		if (ch->command_error)
			return;
		ch->command_len = size;
	}
	if (command->pointer_offset) {
		memcpy(&address, ch->command + command->pointer_offset, sizeof(address));
		ch->message_error = -read_message(ch, address, command->message_max);
	}
}

/*
 * The thread of `ch` is stuck in client memory, and others continue: they may bind the slot to another thread.  This
 * request keeps its pidfd, whose number must not be reused.
 */
void kfs_detach(void *channel)
{
	struct kfs_channel *ch = channel;
	struct kfs_channel_private *p = ch->private_;
	struct slot *slot = kfs_slot_of(p->mount, ch->fh);

	if (p->pidfd >= 0 && slot && slot->pidfd == p->pidfd) {
		slot->pidfd = -1;
		p->pidfd_detached = 1;
	}
}

/* The client of `ch` was killed while the thread of `ch` is stuck in its memory: only this answer lets it end. */
void kfs_answer_killed(void *channel)
{
	const struct kfs_channel *ch = channel;

	kfs_answer_error(ch->private_->mount->fuse_fd, ch->unique, -EINTR);
}

/* The pidfd is that of a thread that has ended. */
static void untie(struct kfs_channel *ch)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, ch->fh);

	if (!ch->private_->pidfd_detached && slot) {
		close(slot->pidfd);
		slot->pidfd = -1;
	}
	kfs_let_go(ch);
}

/* Makes the slot's pidfd one of the calling thread, which is alive.  After an error there is none. */
int kfs_tie_alive(struct kfs_channel *ch)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, ch->fh);

	/* Twice: the first pidfd may be that of a thread that has ended. */
	for (int round = 0; round < 2 && tie(ch, slot) == 0; round++) {
		if (kfs_thread_is_alive(slot->pidfd, (int)ch->tid) == 1)
			return slot->pidfd;
		close(slot->pidfd);
		slot->pidfd = -1;
	}
	return -1;
}

/* Writes to the memory of the calling thread.  Returns 0 or -EFAULT.  kfs_let_go() comes after it. */
int kfs_write_client(struct kfs_channel *ch, uint64_t address, const void *data, size_t size)
{
	struct iovec local = { (void *)data, size };
	struct iovec remote = { (void *)(uintptr_t)address, size };
	uint64_t ticket;
	ssize_t n;

	if (address + size < address || !kfs_slot_of(ch->private_->mount, ch->fh))
		return -EFAULT;
	ch->pidfd = ch->private_->pidfd = kfs_tie_alive(ch);
	if (ch->pidfd < 0 || kfs_access_begin(&ticket) < 0)
		return -EFAULT;
	n = process_vm_writev((pid_t)ch->tid, &local, 1, &remote, 1, 0);
	return kfs_access_end(ticket) == 0 && n == (ssize_t)size ? 0 : -EFAULT;
}

static void read_command(struct kfs_channel *ch, const struct command *command)
{
	struct kfs_channel_private *p = ch->private_;
	const int is_here = comes_with_request(command);
	uint64_t size = 0;
	int r;

	ch->command_len = command->size;
	if (is_here)
		memcpy(&size, ch->command, sizeof(size));
	if (ch->arg & 7)
		ch->command_error = EFAULT;
	else if (is_here)
		ch->command_error = check_size(ch, command, size);
	if (ch->command_error)
		return;
	if (is_here && size == command->size && !command->pointer_offset) {
		/*
		 * Flags that do not travel back are stored in client memory: with this no pidfd has to be opened for
		 * that.
		 */
		if (!ch->out_size)
			ch->pidfd = p->pidfd = kfs_tie_alive(ch);
		return;
	}
	/* Twice: the first pidfd may be that of a thread that has ended. */
	for (int round = 0; round < 2; round++) {
		/* Look up again: the table may have moved while this thread was preempted. */
		struct slot *slot = kfs_slot_of(p->mount, ch->fh);

		r = slot ? tie(ch, slot) : -ESRCH;
		if (r < 0)
			break;
		p->pidfd = slot->pidfd;
		fetch(ch, command, size);
		if (kfs_reader_is_abandoned(p->reader))
			return;
		if (kfs_thread_is_alive(p->pidfd, (int)ch->tid) == 1) {
			ch->pidfd = p->pidfd;
			return;
		}
		untie(ch);
		ch->command_error = ch->message_error = 0;
		ch->message_len = 0;
		r = -ESRCH;
	}
	ch->command_len = command->size;
	ch->command_error = -r;
}

/* A struct without size member, as it came with its request: no client memory is read. */
static void take_plain(struct kfs_channel *ch, const struct command *command)
{
	ch->command_len = command->size;
	if (!command->returns)
		ch->out_size = 0;
	if (command->reads_memory)
		ch->pidfd = ch->private_->pidfd = kfs_tie_alive(ch);
}

/* The head of the current request.  Returns 0 for one whose sizes cannot be right. */
static int take_head(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_ioctl_in *ioctl_in = (void *)(in + 1);

	ch->unique = in->unique;
	ch->fh = ioctl_in->fh;
	ch->arg = ioctl_in->arg;
	ch->cmd = ioctl_in->cmd;
	ch->tid = in->pid;
	ch->uid = in->uid;
	ch->gid = in->gid;
	ch->ioctl_flags = ioctl_in->flags;
	ch->in_size = ioctl_in->in_size;
	ch->out_size = ioctl_in->out_size;
	ch->command_len = ch->message_len = 0;
	ch->command_error = ch->message_error = 0;
	ch->pidfd = -1;
	return ch->request_len >= IOCTL_DATA && ch->in_size <= ch->request_len - IOCTL_DATA &&
	       ch->in_size <= (uint32_t)KFS_COMMAND_MAX && ch->out_size <= (uint32_t)KFS_COMMAND_MAX;
}

/*
 * Copies the struct of `command`, NULL if files of this kind have no such one.  Returns 0 if that was a plain FREE, which
 * has been answered.
 */
static int take_struct(struct kfs_channel *ch, const struct command *command)
{
	if (command && comes_with_request(command) && ch->in_size >= command->size) {
		if (command->is_free && kfs_serve_free(ch, command))
			return 0;
		if (command->is_plain)
			take_plain(ch, command);
		else
			read_command(ch, command);
	} else if (command && !comes_with_request(command)) {
		/* Bytes of an earlier request were not given by this one. */
		memset(ch->command, 0, command->size);
		read_command(ch, command);
		/* A struct that could not be read stays as the client has it. */
		if (ch->command_error)
			ch->out_size = 0;
	} else if (!command && !(_IOC_DIR(ch->cmd) & _IOC_WRITE) && kfs_is_command(ch->private_->mount, ch->cmd)) {
		/* Of other files.  Nothing was read that could travel back: zeros would overwrite the struct. */
		ch->out_size = 0;
	}
	return 1;
}

/* from: FRESH, AFTER_CLOSES or HELD. */
int kfs_serve_ioctl(struct kfs_channel *ch, int from)
{
	const struct fuse_in_header *in = (void *)ch->request;
	struct mount *mount = ch->private_->mount;
	const struct command *command;
	struct slot *slot;

	if (!take_head(ch)) {
		kfs_put_error(ch, in->unique, -EIO);
		return AGAIN;
	}
	slot = kfs_slot_of(mount, ch->fh);
	/* The struct that travels back must not contain bytes of an earlier request. */
	if (ch->out_size > ch->in_size)
		memset(ch->command + ch->in_size, 0, ch->out_size - ch->in_size);
	if (!slot || ch->ioctl_flags & FUSE_IOCTL_DIR) {
		if (kfs_is_lost(mount, ch->fh)) {
			/* The client's struct stays as it is, as with every error that the core did not write to it. */
			ch->out_size = 0;
			kfs_answer_current(ch, -ECONNRESET);
			return AGAIN;
		}
		kfs_answer_current(ch, -ENOTTY);
		return AGAIN;
	}
	slot->is_used = 1;
	kfs_alarm_opened(mount->alarm, in->nodeid);
	command = kfs_find_command(mount, slot->kind, ch->cmd);
	if (!command || !command->is_free) {
		if (from == FRESH && kfs_waits_for_closes(ch, slot))
			return AGAIN;
		if (from != HELD && kfs_hold(ch, ch->uid, 1))
			return AGAIN;
	}
	mount->others_served++;
	kfs_reader_request(ch->private_->reader, ch->uid, ch->tid, ch->unique);
	if (!take_struct(ch, command))
		return AGAIN;
	if (kfs_reader_request_ends(ch->private_->reader)) {
		kfs_let_go(ch);
		return AGAIN;
	}
	return KFS_IOCTL;
}
