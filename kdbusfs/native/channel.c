/*
 * Splits /dev/fuse: one reader.  FUSE_POLL is answered here, ioctls are decoded and their structs
 * copied from the client (ioctl.c); other requests are passed over a socket, and the reader waits for the answer
 * (tree.c).
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Under load the other descriptors are polled once in so many requests, whether the alarm has reported them or not. */
#define REQUESTS_BETWEEN_LOOKS 32
#define PAGE 4096

/* The caller has counted the channel already; a failure takes that back. */
static struct kfs_channel *new_channel(struct mount *mount)
{
	struct kfs_channel *ch = calloc(1, sizeof(*ch));
	struct kfs_channel_private *p = calloc(1, sizeof(*p));
	struct kfs_reader *reader = kfs_reader_new(mount->ownership, kfs_detach, kfs_answer_killed, ch);
	void *request = NULL, *reply = NULL;

	if (!ch || !p || !reader || posix_memalign(&request, PAGE, KFS_REQUEST_MAX) ||
	    posix_memalign(&reply, PAGE, KFS_REQUEST_MAX)) {
		if (reader)
			kfs_reader_free(reader);
		free(request);
		free(ch);
		free(p);
		return NULL;
	}
	__atomic_add_fetch(&mount->channels, 1, __ATOMIC_SEQ_CST);
	p->mount = mount;
	p->reader = reader;
	p->pidfd = -1;
	p->boost.schedstat = -1;
	p->boost.stride = UINT32_MAX;
	ch->private_ = p;
	ch->counts = &mount->counts;
	ch->request = request;
	ch->reply = reply;
	/* The fixed part of a command stays where the request has it; the rest is read in behind it. */
	ch->command = ch->request + IOCTL_DATA;
	ch->message = p->message;
	ch->pidfd = -1;
	ch->tree_timeout_ms = 120000; /* it blocks for no client */
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
	mount->fuse_flags = fcntl(fuse_fd, F_GETFL);
	mount->ownership = kfs_ownership_new(event_fd);
	mount->alarm = kfs_alarm_new(fuse_fd, tree_fd, event_fd);
	ch = mount->ownership && mount->alarm ? new_channel(mount) : NULL;
	if (!ch) {
		if (mount->ownership)
			kfs_ownership_free(mount->ownership);
		if (mount->alarm)
			kfs_alarm_free(mount->alarm);
		free(mount);
	}
	return ch;
}

/* Another channel of the same mount, for another thread: with buffers and a request of its own.  NULL: no memory. */
struct kfs_channel *kfs_channel_for_thread(struct kfs_channel *ch)
{
	struct kfs_channel *other = new_channel(ch->private_->mount);

	if (other)
		other->tree_timeout_ms = ch->tree_timeout_ms;
	return other;
}

static void free_mount(struct mount *mount)
{
	kfs_alarm_free(mount->alarm);
	kfs_ownership_free(mount->ownership);
	for (uint32_t i = 0; i < mount->slots_made; i++)
		if (mount->slots[i].fh && mount->slots[i].pidfd >= 0)
			close(mount->slots[i].pidfd);
	free(mount->slots);
	kfs_forget_held(mount);
	free(mount);
}

void kfs_channel_free(struct kfs_channel *ch)
{
	struct mount *mount;

	if (!ch)
		return;
	mount = ch->private_->mount;
	kfs_reader_free(ch->private_->reader);
	kfs_boost_end(&ch->private_->boost);
	free(ch->request);
	free(ch->reply);
	free(ch->private_);
	free(ch);
	if (__atomic_sub_fetch(&mount->channels, 1, __ATOMIC_SEQ_CST) == 0)
		free_mount(mount);
}

/* Binds `ch` to the calling thread, and waits until that owns the core: KFS_OWNER, KFS_END, or -errno. */
int kfs_channel_take(struct kfs_channel *ch)
{
	int kind = kfs_reader_take(ch->private_->reader);

	if (kind == KFS_OWNER)
		kfs_boost_begin(&ch->private_->boost);
	return kind;
}

/* The owner has ended the service: no other thread continues. */
void kfs_channel_end(struct kfs_channel *ch)
{
	kfs_refuse_held(ch);
	kfs_reader_end(ch->private_->reader);
}

void kfs_channel_owners(struct kfs_channel *ch, struct kfs_owners *owners)
{
	kfs_ownership_look(ch->private_->mount->ownership, owners);
	owners->held = __atomic_load_n(&ch->private_->mount->held, __ATOMIC_RELAXED);
}

void kfs_channel_starve(struct kfs_channel *ch, int is_starving)
{
	kfs_ownership_starve(ch->private_->mount->ownership, is_starving);
}

/* --- answers ---------------------------------------------------------------------------------------- */

/* Counts a message whose addressee does not wait any more. */
int kfs_count_lost(struct kfs_channel *ch, int result)
{
	ch->counts->lost += result < 0;
	return result;
}

int kfs_put_error(struct kfs_channel *ch, uint64_t unique, int error)
{
	return kfs_count_lost(ch, kfs_answer_error(ch->private_->mount->fuse_fd, unique, error));
}

/* Answers command `cmd` of `fh`, which is not the current one. */
int kfs_channel_answer_now(struct kfs_channel *ch, int64_t fh, uint32_t cmd, uint64_t unique, int32_t result,
			   const void *out, int64_t out_len)
{
	const struct mount *mount = ch->private_->mount;

	if (result == 0)
		kfs_note_published(ch->private_->mount, (uint64_t)fh, cmd, out, (size_t)out_len);
	return kfs_count_lost(ch, kfs_answer_ioctl(mount->fuse_fd, unique, result, out, (uint32_t)out_len));
}

/* The answer to the current ioctl is built in the buffer of its request, in front of the struct that travels back. */
int kfs_answer_current(struct kfs_channel *ch, int32_t result)
{
	struct mount *mount = ch->private_->mount;
	const struct slot *slot = result < 0 && ch->out_size ? kfs_slot_of(mount, ch->fh) : NULL;
	const struct command *command = slot ? kfs_find_command(mount, slot->kind, ch->cmd) : NULL;

	if (command && command->is_plain)
		ch->out_size = 0;
	if (result == 0 && ch->out_size)
		kfs_note_published(mount, ch->fh, ch->cmd, ch->command, ch->out_size);
	return kfs_count_lost(ch,
			      kfs_answer_ioctl_in_place(mount->fuse_fd, ch->unique, result, ch->command, ch->out_size));
}

int kfs_pass_reply(struct kfs_channel *ch)
{
	uint32_t len = ch->reply_len;

	ch->reply_len = 0;
	return kfs_count_lost(ch, kfs_write_message(ch->private_->mount->fuse_fd, ch->reply, len));
}

/* The thread that made the request is done with it. */
void kfs_let_go(struct kfs_channel *ch)
{
	struct kfs_channel_private *p = ch->private_;

	if (p->pidfd_detached)
		close(p->pidfd);
	p->pidfd_detached = 0;
	p->pidfd = -1;
}

int kfs_channel_flush(struct kfs_channel *ch, int32_t result)
{
	int abandoned = kfs_reader_request_ends(ch->private_->reader);
	int r = 0;

	if (result != KFS_NOTHING && !abandoned)
		r = kfs_answer_current(ch, result);
	if (ch->reply_len)
		r = kfs_pass_reply(ch);
	kfs_let_go(ch);
	return r;
}

/*
 * After a flush: stores `size` bytes at `address` of thread `tid` of `uid`, whose deferred request `unique` is command `cmd`
 * of `fh`, and answers that: 0, or -EFAULT if it cannot be done.  A client that delays this delays only its own commands.
 * `fixed` is the struct with what is stored, which may contain a pool offset.
 *
 * Returns 0, or -EAGAIN, with nothing done, if that memory must not be accessed now, and another thread has to do it.
 */
int kfs_channel_store(struct kfs_channel *ch, int64_t fh, uint32_t cmd, uint32_t uid, uint32_t tid, uint64_t unique,
		      uint64_t address, const void *data, int64_t size, const void *fixed, int64_t fixed_len)
{
	struct mount *mount = ch->private_->mount;
	int r;

	kfs_close_is_over(ch);
	kfs_reader_request(ch->private_->reader, uid, tid, unique);
	if (!kfs_reader_may_access(ch->private_->reader))
		return -EAGAIN;
	ch->fh = (uint64_t)fh;
	ch->uid = uid;
	ch->tid = tid;
	ch->unique = unique;
	r = kfs_write_client(ch, address, data, (size_t)size);
	kfs_let_go(ch);
	ch->pidfd = -1;
	if (kfs_reader_request_ends(ch->private_->reader))
		return 0; /* The client was killed meanwhile, and is answered. */
	if (r == 0)
		kfs_note_published(mount, (uint64_t)fh, cmd, fixed, (size_t)fixed_len);
	kfs_count_lost(ch, kfs_answer_ioctl(mount->fuse_fd, unique, r, NULL, 0));
	return 0;
}

/* --- poll ------------------------------------------------------------------------------------------- */

static void serve_poll(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_poll_in *poll_in = (void *)(in + 1);
	struct mount *mount = ch->private_->mount;
	struct slot *slot = kfs_slot_of(mount, poll_in->fh);
	uint32_t revents = slot                              ? slot->revents
			   : kfs_is_lost(mount, poll_in->fh) ? KFS_LOST_EVENTS
							     : KFS_DEFAULT_EVENTS;

	ch->counts->polls++;
	if (slot && poll_in->flags & FUSE_POLL_SCHEDULE_NOTIFY)
		kfs_arm(mount, slot, poll_in->kh);
	kfs_count_lost(ch, kfs_answer_poll(mount->fuse_fd, in->unique, revents));
	if (slot)
		kfs_count_poll(ch, slot);
}

/* --- the step --------------------------------------------------------------------------------------- */

/*
 * The kernel writes back what a client has written to a map of its copies of its pool.  That is dropped, which is no
 * error: before Linux 5.16 a close(2) would report it.  Returns whether the request is one of these.
 */
static int drop_write_back(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct fuse_write_in *write_in = (void *)(in + 1);

	if (!(write_in->write_flags & FUSE_WRITE_CACHE))
		return 0;
	kfs_count_lost(ch, kfs_answer_write(ch->private_->mount->fuse_fd, in->unique, write_in->size));
	return 1;
}

/* The kernel forgets the inodes of closed files, and waits for no answer. */
static int comes_with_closes(uint32_t opcode)
{
	return opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR || opcode == FUSE_FORGET ||
	       opcode == FUSE_BATCH_FORGET;
}

static int ask_tree(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;

	ch->private_->mount->others_served++;
	kfs_reader_pays(ch->private_->reader, in->uid);
	return kfs_serve_tree(ch);
}

static int serve(struct kfs_channel *ch)
{
	const struct fuse_in_header *in = (void *)ch->request;
	const struct slot *slot;

	/* The alarm's request. */
	if (in->opcode == FUSE_NOTIFY_REPLY)
		return AGAIN;
	ch->counts->requests++;
	if (!comes_with_closes(in->opcode))
		kfs_other_than_close(ch->private_->mount);
	switch (in->opcode) {
	case FUSE_IOCTL:
		ch->counts->ioctls++;
		ch->was_interrupted = 0;
		return kfs_serve_ioctl(ch, FRESH);
	case FUSE_POLL:
		if (kfs_waits_for_closes(ch, kfs_slot_of(ch->private_->mount, *(const uint64_t *)(in + 1))))
			return AGAIN;
		ch->private_->mount->others_served++;
		serve_poll(ch);
		return AGAIN;
	case FUSE_INTERRUPT:
		ch->counts->interrupts++;
		ch->unique = ((const struct fuse_interrupt_in *)(in + 1))->unique;
		if (kfs_reader_interrupt(ch->private_->reader, ch->unique) || kfs_interrupt_held(ch, ch->unique))
			return AGAIN;
		return KFS_INTERRUPT;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		/* It has no answer; its effects come before the next request is read. */
		ch->fh = ((const struct fuse_release_in *)(in + 1))->fh;
		kfs_alarm_released(ch->private_->mount->alarm, in->nodeid);
		if (kfs_note_closed(ch, ch->fh, in->unique))
			return AGAIN;
		slot = kfs_slot_of(ch->private_->mount, ch->fh);
		kfs_reader_pays(ch->private_->reader, slot ? slot->uid : NOBODY);
		kfs_put_error(ch, in->unique, 0);
		return KFS_RELEASE;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		ch->opcode = in->opcode;
		return KFS_FORGET;
	case FUSE_INIT:
	case FUSE_DESTROY:
		return kfs_serve_tree(ch);
	case FUSE_WRITE:
		if (drop_write_back(ch))
			return AGAIN;
		__attribute__((fallthrough));
	default:
		return kfs_hold(ch, in->uid, 0) ? AGAIN : ask_tree(ch);
	}
}

/* A request that has waited, or a close. */
static int serve_waiting(struct kfs_channel *ch, int taken)
{
	const struct fuse_in_header *in = (void *)ch->request;

	if (taken == CLOSED)
		return KFS_RELEASE;
	kfs_reader_turn_begins(ch->private_->reader);
	if (in->opcode == FUSE_IOCTL)
		return kfs_serve_ioctl(ch, taken);
	if (in->opcode != FUSE_POLL)
		return ask_tree(ch);
	serve_poll(ch);
	return AGAIN;
}

/* There is no request: others have their turn, first those whose requests are kept, then threads that yielded. */
static int serve_others(struct kfs_channel *ch)
{
	int taken;

	kfs_other_than_close(ch->private_->mount);
	taken = kfs_take_waiting(ch, 1);
	if (taken)
		return serve_waiting(ch, taken);
	kfs_reader_found_nothing(ch->private_->reader);
	return AGAIN;
}

/* The next request of the kernel's, or what waits where there is none.  Returns AGAIN, a kind, or -errno. */
static int serve_next(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct kfs_channel_private *p = ch->private_;
	int kind = kfs_read_request(ch, deadline_ns);

	if (kind != AGAIN)
		return kind;
	if (!ch->request_len)
		return serve_others(ch);
	kfs_reader_turn_begins(p->reader);
	ch->counts->kept_waiting += (unsigned)kfs_boost_request(&p->boost);
	return serve(ch);
}

/* Serves what can be served here; returns the kind of the first request that cannot. */
static int next_kind(struct kfs_channel *ch, uint64_t deadline_ns)
{
	struct kfs_channel_private *p = ch->private_;
	int kind, taken;

	kfs_close_is_over(ch);
	for (;;) {
		kfs_reader_turn_ends(p->reader);
		kind = kfs_reader_pass(p->reader);
		if (kind)
			return kind;
		if (++p->unpolled >= REQUESTS_BETWEEN_LOOKS || kfs_alarm_has_news(p->mount->alarm)) {
			kind = kfs_check_descriptors(ch);
			if (kind)
				return kind;
		}
		if (deadline_ns && kfs_now_ns() >= deadline_ns)
			return KFS_TIMER;
		taken = kfs_take_waiting(ch, 0);
		if (taken)
			kind = serve_waiting(ch, taken);
		else
			kind = serve_next(ch, deadline_ns);
		if (kind)
			return kind;
	}
}

int kfs_channel_step(struct kfs_channel *ch, uint64_t deadline_ns, int32_t result)
{
	int kind;

	kfs_channel_flush(ch, result);
	kind = next_kind(ch, deadline_ns);
	kfs_reader_turn_begins(ch->private_->reader);
	ch->freed = (uint32_t)ch->private_->mount->freed.count;
	return kind;
}
