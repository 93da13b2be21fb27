/*
 * The split of /dev/fuse: one reader, strictly in order.  FUSE_POLL is answered here, ioctls are decoded and
 * their structures fetched from the client, everything else is handed over a socket and the reader waits
 * for its answer.
 *
 * A request that was read keeps its thread in the kernel until it is answered, even when that thread is
 * killed; so its id cannot come to belong to another one.  Only an abort of the connection breaks that,
 * which is why the memory of a client is believed only when a pidfd of the thread is alive after the read.
 */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

#define AGAIN 0
#define DEFAULT_EVENTS (POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM)
/* Under load the other descriptors are looked at only once in so many requests. */
#define REQUESTS_BETWEEN_POLLS 32
#define MESSAGE_MIN 64
/* Most messages fit; a longer first read would copy what the client never meant to send. */
#define MESSAGE_FIRST 1024
#define PAGE 4096
#define SLOTS_AT_FIRST 64
/* Most clients free what they have received before they receive more. */
#define PUBLISHED_MAX 8

struct command {
	uint32_t number, size, max_size, pointer_offset;
	uint32_t info_offset; /* of where the answer tells of a slice; 0: it does not */
};

struct slot {
	uint64_t fh; /* 0: free */
	uint64_t kh;
	uint32_t revents;
	uint32_t armed;
	uint32_t tid; /* of pidfd */
	int pidfd;
	uint32_t next_free;
	uint32_t published_count;
	uint64_t published[PUBLISHED_MAX];
};

/* What the channels of a mount share; it belongs to whoever owns the core. */
struct mount {
	unsigned channels;
	int fuse_fd, tree_fd, event_fd;
	int no_thread_pidfds;
	uint32_t generation;
	uint32_t slots_made, slots_used, first_free;
	struct slot *slots;
	struct command commands[256];
	struct {
		uint32_t number, slice_offset, flags_offset;
		uint64_t offered_flags;
	} free;
	struct kfs_freed_list freed;
	struct kfs_counts counts;
	struct kfs_ownership *ownership;
};

struct kfs_channel_private {
	struct mount *mount;
	struct kfs_seat *seat;
	unsigned unpolled;
	/* Of the calling thread while its memory is read: the slot's, or our own if that was detached. */
	int pidfd, pidfd_detached;
	uint8_t message[8192];
};

#define NO_SLOT UINT32_MAX
#define IOCTL_DATA (sizeof(struct fuse_in_header) + sizeof(struct fuse_ioctl_in))

static void detach(void *channel);

/* With one more channel counted already; gives that back on failure. */
static struct kfs_channel *new_channel(struct mount *mount)
{
	struct kfs_channel *ch = calloc(1, sizeof(*ch));
	struct kfs_channel_private *p = calloc(1, sizeof(*p));
	struct kfs_seat *seat = kfs_seat_new(mount->ownership, detach, ch);
	void *request = NULL, *reply = NULL;

	if (!ch || !p || !seat || posix_memalign(&request, PAGE, KFS_REQUEST_MAX) ||
	    posix_memalign(&reply, PAGE, KFS_REQUEST_MAX)) {
		if (seat)
			kfs_seat_free(seat);
		free(request);
		free(ch);
		free(p);
		return NULL;
	}
	__atomic_add_fetch(&mount->channels, 1, __ATOMIC_SEQ_CST);
	p->mount = mount;
	p->seat = seat;
	p->pidfd = -1;
	ch->private_ = p;
	ch->counts = &mount->counts;
	ch->request = request;
	ch->reply = reply;
	/* The fixed part of a command stays where the request put it; the rest is read in behind it. */
	ch->command = ch->request + IOCTL_DATA;
	ch->message = p->message;
	ch->pidfd = -1;
	ch->tree_timeout_ms = 10000;
	return ch;
}

struct kfs_channel *kfs_channel_new(int fuse_fd, int tree_fd, int event_fd)
{
	struct mount *mount = calloc(1, sizeof(*mount));
	struct kfs_channel *ch;

	if (!mount)
		return NULL;
	mount->fuse_fd = fuse_fd;
	mount->tree_fd = tree_fd;
	mount->event_fd = event_fd;
	mount->first_free = NO_SLOT;
	mount->ownership = kfs_ownership_new(event_fd);
	ch = mount->ownership ? new_channel(mount) : NULL;
	if (!ch) {
		if (mount->ownership)
			kfs_ownership_free(mount->ownership);
		free(mount);
	}
	return ch;
}

/* Another channel of the same mount, for another thread: with buffers and a request of its own. */
struct kfs_channel *kfs_channel_twin(struct kfs_channel *ch)
{
	struct kfs_channel *twin = new_channel(ch->private_->mount);

	if (twin)
		twin->tree_timeout_ms = ch->tree_timeout_ms;
	return twin;
}

static void free_mount(struct mount *mount)
{
	kfs_ownership_free(mount->ownership);
	for (uint32_t i = 0; i < mount->slots_made; i++)
		if (mount->slots[i].fh && mount->slots[i].pidfd >= 0)
			close(mount->slots[i].pidfd);
	free(mount->slots);
	free(mount);
}

void kfs_channel_free(struct kfs_channel *ch)
{
	struct mount *mount;

	if (!ch)
		return;
	mount = ch->private_->mount;
	kfs_seat_free(ch->private_->seat);
	free(ch->request);
	free(ch->reply);
	free(ch->private_);
	free(ch);
	if (__atomic_sub_fetch(&mount->channels, 1, __ATOMIC_SEQ_CST) == 0)
		free_mount(mount);
}

/* The calling thread works with `ch` from now on.  Waits until it owns the core: KFS_OWNER, KFS_END, or -errno. */
int kfs_channel_take(struct kfs_channel *ch)
{
	return kfs_seat_take(ch->private_->seat);
}

/* The owner has ended the service: no other thread goes on. */
void kfs_channel_end(struct kfs_channel *ch)
{
	kfs_seat_end(ch->private_->seat);
}

void kfs_channel_owners(struct kfs_channel *ch, struct kfs_owners *owners)
{
	kfs_ownership_look(ch->private_->mount->ownership, owners);
}

int kfs_channel_command(struct kfs_channel *ch, uint32_t number, uint32_t size, uint32_t max_size,
			uint32_t pointer_offset)
{
	struct command *command = &ch->private_->mount->commands[number & 0xff];

	if (size < 8 || size > max_size || max_size > (uint32_t)KFS_COMMAND_MAX || pointer_offset + 8 > size ||
	    command->number)
		return -EINVAL;
	*command = (struct command){ number, size, max_size, pointer_offset, 0 };
	return 0;
}

/* A successful answer to `number` tells at `info_offset` of a slice that the client may give back: offset and size. */
int kfs_channel_publishes(struct kfs_channel *ch, uint32_t number, uint32_t info_offset)
{
	struct command *command = &ch->private_->mount->commands[number & 0xff];

	if (command->number != number || info_offset + 16 > command->size)
		return -EINVAL;
	command->info_offset = info_offset;
	return 0;
}

/*
 * With `number` clients give such a slice back.  Its plainest form is answered here: no flags, nothing behind the fixed
 * struct, and a slice that is known to be published.  Behind the flags lie those that are offered, and those returned.
 */
int kfs_channel_frees(struct kfs_channel *ch, uint32_t number, uint32_t slice_offset, uint32_t flags_offset,
		      uint64_t offered_flags)
{
	struct mount *mount = ch->private_->mount;
	const struct command *command = &mount->commands[number & 0xff];

	if (command->number != number || slice_offset + 8 > command->size || flags_offset + 24 > command->size)
		return -EINVAL;
	mount->free.number = number;
	mount->free.slice_offset = slice_offset;
	mount->free.flags_offset = flags_offset;
	mount->free.offered_flags = offered_flags;
	return 0;
}

/* --- open files ------------------------------------------------------------------------------------- */

static struct slot *slot_of(struct mount *p, uint64_t fh)
{
	uint32_t index = (uint32_t)fh;

	return index < p->slots_made && fh && p->slots[index].fh == fh ? &p->slots[index] : NULL;
}

/*
 * A handle is a slot and, above it, a generation: a number that was given back never means another file,
 * also for whoever kept it (the installer's path of a connection).
 */
int64_t kfs_channel_slot_new(struct kfs_channel *ch)
{
	struct mount *p = ch->private_->mount;
	uint32_t index = p->first_free;
	struct slot *slot;

	if (index == NO_SLOT) {
		uint32_t more = p->slots_made ? p->slots_made * 2 : SLOTS_AT_FIRST;
		struct slot *slots = more > INT32_MAX ? NULL : realloc(p->slots, more * sizeof(*slots));

		if (!slots)
			return -ENOMEM;
		p->slots = slots;
		for (uint32_t i = p->slots_made; i < more; i++)
			slots[i] = (struct slot){ .pidfd = -1, .next_free = i + 1 < more ? i + 1 : NO_SLOT };
		index = p->slots_made;
		p->slots_made = more;
	}
	slot = &p->slots[index];
	p->first_free = slot->next_free;
	p->slots_used++;
	p->generation = p->generation >= INT32_MAX ? 1 : p->generation + 1;
	*slot = (struct slot){ .fh = (uint64_t)p->generation << 32 | index, .pidfd = -1, .revents = DEFAULT_EVENTS };
	return (int64_t)slot->fh;
}

int kfs_channel_slot_free(struct kfs_channel *ch, uint64_t fh)
{
	struct mount *p = ch->private_->mount;
	struct slot *slot = slot_of(p, fh);

	if (!slot)
		return -ENOENT;
	if (slot->pidfd >= 0)
		close(slot->pidfd);
	*slot = (struct slot){ .pidfd = -1, .next_free = p->first_free };
	p->first_free = (uint32_t)fh;
	p->slots_used--;
	return 0;
}

int kfs_channel_slots(struct kfs_channel *ch)
{
	return (int)ch->private_->mount->slots_used;
}

/* --- answers ---------------------------------------------------------------------------------------- */

static int sent(struct kfs_channel *ch, ssize_t n)
{
	if (n >= 0)
		return 0;
	ch->counts->lost++;
	return -errno;
}

/* Sends one answer or notification, whose header has its length. */
static int put(struct kfs_channel *ch, const struct fuse_out_header *header)
{
	ssize_t n;

	do
		n = write(ch->private_->mount->fuse_fd, header, header->len);
	while (n < 0 && errno == EINTR);
	return sent(ch, n);
}

static int put_error(struct kfs_channel *ch, uint64_t unique, int error)
{
	struct fuse_out_header header = { .len = sizeof(header), .unique = unique, .error = error };

	return put(ch, &header);
}

struct ioctl_answer {
	struct fuse_out_header header;
	struct fuse_ioctl_out out;
};

/* --- slices that clients may give back --------------------------------------------------------------- */

/* An answer to command `cmd` of `fh`, `out` with it, is about to be sent. */
static void note_published(struct mount *mount, uint64_t fh, uint32_t cmd, const uint8_t *out, size_t out_len)
{
	const struct command *command = &mount->commands[cmd & 0xff];
	struct slot *slot = slot_of(mount, fh);
	struct {
		uint64_t offset, size;
	} info;

	if (!slot || !command->info_offset || command->number != cmd || out_len < command->info_offset + sizeof(info))
		return;
	memcpy(&info, out + command->info_offset, sizeof(info));
	/* What finds no place is given back the long way. */
	if (info.size && slot->published_count < PUBLISHED_MAX)
		slot->published[slot->published_count++] = info.offset;
}

static int find_published(const struct slot *slot, uint64_t offset)
{
	for (int i = (int)slot->published_count - 1; i >= 0; i--)
		if (slot->published[i] == offset)
			return i;
	return -1;
}

static void forget_published(struct slot *slot, int index)
{
	slot->published[index] = slot->published[--slot->published_count];
}

struct kfs_freed_list *kfs_channel_freed(struct kfs_channel *ch)
{
	return &ch->private_->mount->freed;
}

/* --- answers to ioctls ------------------------------------------------------------------------------- */

/* Answers command `cmd` of `fh`, which is not the current one. */
int kfs_channel_answer_now(struct kfs_channel *ch, uint64_t fh, uint32_t cmd, uint64_t unique, int32_t result,
			   const void *out, size_t out_len)
{
	struct ioctl_answer answer = {
		.header = { .len = sizeof(answer) + out_len, .unique = unique },
		.out = { .result = result },
	};
	struct iovec parts[] = { { &answer, sizeof(answer) }, { (void *)out, out_len } };
	ssize_t n;

	if (result == 0)
		note_published(ch->private_->mount, fh, cmd, out, out_len);
	do
		n = writev(ch->private_->mount->fuse_fd, parts, 2);
	while (n < 0 && errno == EINTR);
	return sent(ch, n);
}

/* The answer to the current ioctl is made where its request was, in front of the command that goes with it. */
static int answer_current(struct kfs_channel *ch, int32_t result)
{
	struct ioctl_answer *answer = (void *)(ch->command - sizeof(*answer));

	if (result == 0 && ch->out_size)
		note_published(ch->private_->mount, ch->fh, ch->cmd, ch->command, ch->out_size);
	*answer = (struct ioctl_answer){
		.header = { .len = sizeof(*answer) + ch->out_size, .unique = ch->unique },
		.out = { .result = result },
	};
	return put(ch, &answer->header);
}

static int pass_reply(struct kfs_channel *ch)
{
	ssize_t n;

	do
		n = write(ch->private_->mount->fuse_fd, ch->reply, ch->reply_len);
	while (n < 0 && errno == EINTR);
	ch->reply_len = 0;
	return sent(ch, n);
}

/* The request is through with the thread that made it. */
static void let_go(struct kfs_channel *ch)
{
	struct kfs_channel_private *p = ch->private_;

	if (p->pidfd_detached)
		close(p->pidfd);
	p->pidfd_detached = 0;
	p->pidfd = -1;
}

int kfs_channel_flush(struct kfs_channel *ch, int32_t result)
{
	int r = 0;

	if (result != KFS_NOTHING)
		r = answer_current(ch, result);
	if (ch->reply_len)
		r = pass_reply(ch);
	let_go(ch);
	return r;
}

int kfs_channel_set_events(struct kfs_channel *ch, uint64_t fh, uint32_t revents)
{
	struct slot *slot = slot_of(ch->private_->mount, fh);
	struct {
		struct fuse_out_header header;
		struct fuse_notify_poll_wakeup_out wakeup;
	} notice = { .header = { .len = sizeof(notice), .error = FUSE_NOTIFY_POLL } };
	uint32_t news;

	if (!slot)
		return -ENOENT;
	/* What is readable is told again: an edge-triggered poller counts on an edge for every message. */
	news = (revents & ~slot->revents) | (revents & (POLLIN | POLLERR | POLLHUP));
	slot->revents = revents;
	/* Whoever has left its bus is told so when it frees. */
	if (revents & POLLHUP)
		slot->published_count = 0;
	if (!slot->armed || !news)
		return 0;
	slot->armed = 0;
	notice.wakeup.kh = slot->kh;
	ch->counts->notifies++;
	return put(ch, &notice.header);
}

/* --- poll ------------------------------------------------------------------------------------------- */

static void serve_poll(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_poll_in *poll_in = (void *)(in + 1);
	struct slot *slot = slot_of(ch->private_->mount, poll_in->fh);
	struct {
		struct fuse_out_header header;
		struct fuse_poll_out out;
	} answer = {
		.header = { .len = sizeof(answer), .unique = in->unique },
		.out = { .revents = slot ? slot->revents : DEFAULT_EVENTS },
	};

	ch->counts->polls++;
	if (slot && poll_in->flags & FUSE_POLL_SCHEDULE_NOTIFY) {
		slot->kh = poll_in->kh;
		slot->armed = 1;
	}
	put(ch, &answer.header);
}

/* --- ioctl ------------------------------------------------------------------------------------------ */

/* Returns 0 or -errno; a short read is EFAULT. */
static int read_client(uint32_t tid, uint64_t address, void *to, size_t size)
{
	struct iovec local = { to, size };
	struct iovec remote = { (void *)(uintptr_t)address, size };
	uint64_t ticket;
	ssize_t n;
	int error;

	if (address + size < address || kfs_access_begin(&ticket) < 0)
		return -EFAULT;
	n = process_vm_readv((pid_t)tid, &local, 1, &remote, 1, 0);
	error = errno;
	kfs_access_end(ticket);
	if (n < 0)
		return -error;
	return (size_t)n == size ? 0 : -EFAULT;
}

static int read_message(struct kfs_channel *ch, uint64_t address)
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
	if (size < MESSAGE_MIN || size > (uint64_t)KFS_MESSAGE_MAX)
		return -EINVAL;
	if (size > first) {
		r = read_client(ch->tid, address + first, ch->message + first, size - first);
		if (r < 0)
			return r;
	}
	ch->message_len = size;
	return 0;
}

/* Whether the thread of a pidfd still is. */
static int is_alive(int pidfd)
{
	struct pollfd pfd = { pidfd, POLLIN, 0 };

	return poll(&pfd, 1, 0) == 0;
}

/* Makes the slot's pidfd one of the calling thread.  Returns 0 or -errno. */
static int tie(struct kfs_channel *ch, struct slot *slot)
{
	if (!ch->tid)
		return -ESRCH;
	if (ch->private_->mount->no_thread_pidfds)
		return 0;
	if (slot->pidfd >= 0) {
		if (slot->tid == ch->tid)
			return 0;
		close(slot->pidfd);
	}
	slot->tid = ch->tid;
	slot->pidfd = syscall(SYS_pidfd_open, ch->tid, PIDFD_THREAD);
	ch->counts->pidfds++;
	if (slot->pidfd >= 0)
		return 0;
	if (errno != EINVAL)
		return -errno;
	ch->private_->mount->no_thread_pidfds = 1;
	return 0;
}

static void fetch(struct kfs_channel *ch, const struct command *command, uint64_t size)
{
	uint64_t address;

	ch->command_len = command->size;
	if (size > command->size) {
		ch->command_error = -read_client(ch->tid, ch->arg + command->size, ch->command + command->size,
						 size - command->size);
		if (ch->command_error)
			return;
		ch->command_len = size;
	}
	if (command->pointer_offset) {
		memcpy(&address, ch->command + command->pointer_offset, sizeof(address));
		ch->message_error = -read_message(ch, address);
	}
}

/*
 * The thread of `ch` is stuck in the memory of its client, and others go on: they may tie the slot to another
 * thread.  This request keeps the pidfd that it has; its number must not come to mean anybody else.
 */
static void detach(void *channel)
{
	struct kfs_channel *ch = channel;
	struct kfs_channel_private *p = ch->private_;
	struct slot *slot = slot_of(p->mount, ch->fh);

	if (p->pidfd >= 0 && slot && slot->pidfd == p->pidfd) {
		slot->pidfd = -1;
		p->pidfd_detached = 1;
	}
}

/* The pidfd is of a thread that is no more. */
static void untie(struct kfs_channel *ch)
{
	struct slot *slot = slot_of(ch->private_->mount, ch->fh);

	if (!ch->private_->pidfd_detached && slot) {
		close(slot->pidfd);
		slot->pidfd = -1;
	}
	let_go(ch);
}

/* Makes the slot's pidfd one of the calling thread, which lives.  Without pidfds there is none, as on an error. */
static int tie_alive(struct kfs_channel *ch)
{
	struct slot *slot = slot_of(ch->private_->mount, ch->fh);

	/* The second round is for a pidfd kept from a thread that is no more. */
	for (int round = 0; round < 2 && tie(ch, slot) == 0 && slot->pidfd >= 0; round++) {
		if (is_alive(slot->pidfd))
			return slot->pidfd;
		close(slot->pidfd);
		slot->pidfd = -1;
	}
	return -1;
}

static void read_command(struct kfs_channel *ch, const struct command *command)
{
	struct kfs_channel_private *p = ch->private_;
	uint64_t size;
	int r;

	ch->command_len = command->size;
	memcpy(&size, ch->command, sizeof(size));
	if (ch->arg & 7)
		ch->command_error = EFAULT;
	else if (size < command->size)
		ch->command_error = EINVAL;
	else if (size > command->max_size)
		ch->command_error = EMSGSIZE;
	else if (ch->arg + size < ch->arg)
		ch->command_error = EFAULT;
	if (ch->command_error)
		return;
	if (size == command->size && !command->pointer_offset) {
		/* What does not travel back is written back: with this no pidfd has to be opened for that. */
		if (!ch->out_size)
			ch->pidfd = p->pidfd = tie_alive(ch);
		return;
	}
	/* The second round is for a pidfd kept from a thread that is no more. */
	for (int round = 0; round < 2; round++) {
		/* Looked up anew: the table may have moved while this thread was deposed. */
		struct slot *slot = slot_of(p->mount, ch->fh);

		r = slot ? tie(ch, slot) : -ESRCH;
		if (r < 0)
			break;
		p->pidfd = slot->pidfd;
		fetch(ch, command, size);
		if (p->pidfd < 0)
			return;
		if (is_alive(p->pidfd)) {
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

/* Stores the offered and the returned flags of a FREE in the client's struct where they differ.  Returns 0 or -errno. */
static int write_flags(struct kfs_channel *ch, uint32_t offset)
{
	uint64_t wanted[2] = { ch->private_->mount->free.offered_flags, 0 };
	struct iovec local = { wanted, sizeof(wanted) };
	struct iovec remote = { (void *)(uintptr_t)(ch->arg + offset), sizeof(wanted) };
	uint64_t ticket;
	ssize_t n;

	if (memcmp(ch->command + offset, wanted, sizeof(wanted)) == 0)
		return 0;
	ch->pidfd = ch->private_->pidfd = tie_alive(ch);
	if (ch->pidfd < 0 || ch->arg + offset < ch->arg || kfs_access_begin(&ticket) < 0)
		return -EFAULT;
	n = process_vm_writev((pid_t)ch->tid, &local, 1, &remote, 1, 0);
	kfs_access_end(ticket);
	return n == sizeof(wanted) ? 0 : -EFAULT;
}

/* Carries out a plain FREE.  Returns whether it did; otherwise it is for the core to say what is wrong with it. */
static int serve_free(struct kfs_channel *ch, const struct command *command)
{
	struct mount *mount = ch->private_->mount;
	struct slot *slot = slot_of(mount, ch->fh);
	uint64_t size, flags, offset;
	int index, is_plain;

	memcpy(&size, ch->command, sizeof(size));
	memcpy(&flags, ch->command + mount->free.flags_offset, sizeof(flags));
	memcpy(&offset, ch->command + mount->free.slice_offset, sizeof(offset));
	index = find_published(slot, offset);
	if (index < 0)
		return 0;
	is_plain = size == command->size && !flags && !(ch->arg & 7) && mount->freed.count < KFS_FREED_MAX &&
		   write_flags(ch, mount->free.flags_offset + 8) == 0;
	/* Looked up anew: others may have been served during the access to the client's memory. */
	slot = slot_of(mount, ch->fh);
	index = slot ? find_published(slot, offset) : -1;
	if (index >= 0)
		forget_published(slot, index);
	if (index < 0 || !is_plain || mount->freed.count >= KFS_FREED_MAX) {
		let_go(ch);
		ch->pidfd = -1;
		return 0;
	}
	mount->freed.slices[mount->freed.count++] = (struct kfs_freed){ ch->fh, offset };
	answer_current(ch, 0);
	let_go(ch);
	return 1;
}

static int serve_ioctl(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_ioctl_in *ioctl_in = (void *)(in + 1);
	struct slot *slot = slot_of(ch->private_->mount, ioctl_in->fh);
	const struct command *command;

	ch->counts->ioctls++;
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
	kfs_seat_request(ch->private_->seat, ch->uid);
	if (ch->request_len < IOCTL_DATA || ch->in_size > ch->request_len - IOCTL_DATA ||
	    ch->in_size > (uint32_t)KFS_COMMAND_MAX || ch->out_size > (uint32_t)KFS_COMMAND_MAX) {
		put_error(ch, in->unique, -EIO);
		return AGAIN;
	}
	/* What travels back must not show what an earlier request left in the buffer. */
	if (ch->out_size > ch->in_size)
		memset(ch->command + ch->in_size, 0, ch->out_size - ch->in_size);
	if (!slot || ch->ioctl_flags & FUSE_IOCTL_DIR) {
		answer_current(ch, -ENOTTY);
		return AGAIN;
	}
	command = &ch->private_->mount->commands[ch->cmd & 0xff];
	if (command->number == ch->cmd && ch->cmd && ch->in_size >= command->size) {
		if (ch->cmd == ch->private_->mount->free.number && serve_free(ch, command))
			return AGAIN;
		read_command(ch, command);
	}
	return KFS_IOCTL;
}

/* --- tree ------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Waits until the socket can do `events`.  Returns 0 or -errno (ETIMEDOUT, EPIPE). */
static int wait_tree(struct kfs_channel *ch, short events, uint64_t limit_ns)
{
	for (;;) {
		struct pollfd pfd = { ch->private_->mount->tree_fd, events, 0 };
		uint64_t now = now_ns();
		int n;

		if (now >= limit_ns)
			return -ETIMEDOUT;
		n = poll(&pfd, 1, (int)((limit_ns - now + 999999) / 1000000));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && pfd.revents & events)
			return 0;
		if (n > 0)
			return -EPIPE;
	}
}

/* Takes one message of the tree's; passes a notification on.  Returns whether it answers `unique`, or -errno. */
static int take_reply(struct kfs_channel *ch, uint64_t unique)
{
	const struct fuse_out_header *out = (void *)ch->reply;
	ssize_t n = recv(ch->private_->mount->tree_fd, ch->reply, KFS_REQUEST_MAX, MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	if ((size_t)n < sizeof(*out) || n > KFS_REQUEST_MAX)
		return -EPROTO;
	ch->reply_len = n;
	if (out->unique == unique && unique)
		return 1;
	if (out->unique == 0)
		pass_reply(ch);
	ch->reply_len = 0;
	return 0;
}

/* Answers that Python amends before they go on. */
static int is_amended(uint32_t opcode)
{
	return opcode == FUSE_INIT || opcode == FUSE_LOOKUP || opcode == FUSE_OPEN || opcode == FUSE_READDIRPLUS;
}

static int ask_tree(struct kfs_channel *ch, uint64_t unique)
{
	uint64_t limit_ns = now_ns() + ch->tree_timeout_ms * 1000000ull;
	int r;

	while (send(ch->private_->mount->tree_fd, ch->request, ch->request_len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != ENOBUFS)
			return -errno;
		r = wait_tree(ch, POLLOUT, limit_ns);
		if (r < 0)
			return r;
	}
	for (;;) {
		r = wait_tree(ch, POLLIN, limit_ns);
		if (r < 0)
			return r;
		r = take_reply(ch, unique);
		if (r)
			return r < 0 ? r : 0;
	}
}

static int serve_tree(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_out_header *out = (void *)ch->reply;
	int r;

	ch->counts->tree++;
	ch->opcode = in->opcode;
	r = ask_tree(ch, in->unique);
	if (r < 0) {
		ch->reply_len = 0;
		put_error(ch, in->unique, -EIO);
		return r;
	}
	if (out->error || !is_amended(in->opcode))
		pass_reply(ch);
	return KFS_TREE;
}

/* --- the step --------------------------------------------------------------------------------------- */

static int serve(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;

	ch->counts->requests++;
	switch (in->opcode) {
	case FUSE_IOCTL:
		return serve_ioctl(ch);
	case FUSE_POLL:
		serve_poll(ch);
		return AGAIN;
	case FUSE_INTERRUPT:
		ch->counts->interrupts++;
		ch->unique = ((const struct fuse_interrupt_in *)(in + 1))->unique;
		return KFS_INTERRUPT;
	case FUSE_RELEASE:
		/* Nobody waits for its answer; its effects come before the next request is read. */
		ch->fh = ((const struct fuse_release_in *)(in + 1))->fh;
		put_error(ch, in->unique, 0);
		return KFS_RELEASE;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		ch->opcode = in->opcode;
		return KFS_FORGET;
	default:
		return serve_tree(ch);
	}
}

static int drain(int fd)
{
	uint8_t buffer[64];

	return read(fd, buffer, sizeof(buffer)) < 0 && errno != EAGAIN && errno != EINTR ? -errno : KFS_EVENT;
}

/* Waits for anything, until `deadline_ns`; looks only when that is UINT64_MAX.  Returns AGAIN, a kind, or -errno. */
static int wait_any(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct mount *mount = ch->private_->mount;
	struct pollfd pfds[] = {
		{ mount->fuse_fd, POLLIN, 0 },
		{ mount->event_fd, POLLIN, 0 },
		{ mount->tree_fd, POLLIN, 0 },
	};
	struct timespec timeout = { 0, 0 };
	int n;

	if (deadline_ns && deadline_ns != UINT64_MAX) {
		uint64_t now = now_ns();

		if (now >= deadline_ns)
			return KFS_TIMER;
		timeout.tv_sec = (time_t)((deadline_ns - now) / 1000000000u);
		timeout.tv_nsec = (long)((deadline_ns - now) % 1000000000u);
	}
	n = ppoll(pfds, 3, deadline_ns ? &timeout : NULL, NULL);
	ch->private_->unpolled = 0;
	if (n < 0)
		return errno == EINTR ? KFS_EVENT : -errno;
	if (n == 0)
		return deadline_ns == UINT64_MAX ? AGAIN : KFS_TIMER;
	if (pfds[1].revents)
		return drain(mount->event_fd);
	if (pfds[2].revents) {
		n = take_reply(ch, 0);
		return n < 0 ? n : AGAIN;
	}
	return AGAIN;
}

/* Serves what can be served here; returns the kind of the first request that cannot. */
static int next_kind(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct kfs_channel_private *p = ch->private_;
	int kind;

	for (;;) {
		ssize_t n;

		kind = kfs_seat_pass(p->seat);
		if (kind)
			return kind;
		if (++p->unpolled >= REQUESTS_BETWEEN_POLLS) {
			kind = wait_any(ch, UINT64_MAX);
			if (kind)
				return kind;
		}
		if (deadline_ns && now_ns() >= deadline_ns)
			return KFS_TIMER;
		n = read(p->mount->fuse_fd, ch->request, KFS_REQUEST_MAX);
		if (n < 0 && errno == EAGAIN)
			kind = wait_any(ch, deadline_ns);
		else if (n < 0 && errno == EINTR)
			kind = KFS_EVENT;
		else if (n < 0 && errno == ENOENT)
			kind = AGAIN;
		else if (n < 0)
			kind = errno == ENODEV || errno == ECONNABORTED ? KFS_GONE : -errno;
		else if ((size_t)n < sizeof(struct fuse_in_header))
			kind = -EPROTO;
		else {
			ch->request_len = n;
			kind = serve(ch);
		}
		if (kind)
			return kind;
	}
}

int kfs_channel_step(struct kfs_channel *ch, uint64_t deadline_ns, int32_t result)
{
	int kind;

	kfs_channel_flush(ch, result);
	kind = next_kind(ch, deadline_ns);
	ch->freed = (uint32_t)ch->private_->mount->freed.count;
	return kind;
}
