/*
 * The state of each open file: its poll bits, its pollers, a pidfd of the thread that used it last, and its published
 * slices.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLOTS_AT_FIRST 64
#define POLLS_BETWEEN_TRIES 4096
#define TRIES 3
#define WAKE_MAX_US 100
/* At most: so many pollers were woken before and have not polled again yet. */
#define POLLERS_IN_A_US 50

struct slot *kfs_slot_of(struct mount *p, uint64_t fh)
{
	uint32_t index = (uint32_t)fh;

	return index < p->slots_made && fh && p->slots[index].fh == fh ? &p->slots[index] : NULL;
}

/* Whether `fh` was given out for a file by a daemon that is no more.  Those of directories are small, or have bit 63. */
int kfs_is_lost(struct mount *p, uint64_t fh)
{
	return fh >> 32 && !(fh >> 63) && !kfs_slot_of(p, fh);
}

/* Goes on where the daemon before has ended, and keeps there what the next one needs.  Before the first file. */
int kfs_channel_keep(struct kfs_channel *ch, struct kfs_kept *kept)
{
	struct mount *p = ch->private_->mount;

	if (p->slots_made)
		return -EBUSY;
	p->kept = kept;
	p->generation = kept->generation;
	kept->slots = 0;
	return 0;
}

/* Whoever polls `slot` waits to be woken by `kh`. */
void kfs_arm(struct mount *p, struct slot *slot, uint64_t kh)
{
	slot->kh = kh;
	slot->armed = 1;
	if (p->kept)
		p->kept->poll_handles[slot - p->slots] = kh;
}

/*
 * A handle is a slot and, above it, a generation: a released number never refers to another file, also where it was
 * kept (the installer's path of a connection).
 *
 * uid: who opened it; group: of the files that may observe its end, 0: none.
 */
int64_t kfs_channel_slot_new(struct kfs_channel *ch, uint32_t kind, uint32_t uid, uint64_t group)
{
	struct mount *p = ch->private_->mount;
	uint32_t index = p->first_free;
	struct slot *slot;

	if (index == NO_SLOT) {
		uint32_t more = p->slots_made ? p->slots_made * 2 : SLOTS_AT_FIRST;
		uint32_t most = p->kept ? KFS_KEPT_SLOTS : INT32_MAX;
		struct slot *slots = more > most ? NULL : realloc(p->slots, more * sizeof(*slots));

		if (!slots)
			return -ENOMEM;
		p->slots = slots;
		for (uint32_t i = p->slots_made; i < more; i++)
			slots[i] = (struct slot){ .pidfd = -1, .next_free = i + 1 < more ? i + 1 : NO_SLOT };
		index = p->slots_made;
		p->slots_made = more;
		if (p->kept)
			p->kept->slots = more;
	}
	slot = &p->slots[index];
	p->first_free = slot->next_free;
	p->slots_used++;
	p->generation = p->generation >= INT32_MAX ? 1 : p->generation + 1;
	if (p->kept)
		p->kept->generation = p->generation;
	*slot = (struct slot){
		.fh = (uint64_t)p->generation << 32 | index,
		.kind = kind,
		.uid = uid,
		.group = group,
		.pidfd = -1,
		.revents = KFS_DEFAULT_EVENTS,
	};
	return (int64_t)slot->fh;
}

int kfs_channel_slot_free(struct kfs_channel *ch, uint64_t fh)
{
	struct mount *p = ch->private_->mount;
	struct slot *slot = kfs_slot_of(p, fh);

	if (!slot)
		return -ENOENT;
	if (slot->pidfd >= 0)
		close(slot->pidfd);
	*slot = (struct slot){ .pidfd = -1, .next_free = p->first_free };
	if (p->kept)
		p->kept->poll_handles[(uint32_t)fh] = 0;
	p->first_free = (uint32_t)fh;
	p->slots_used--;
	return 0;
}

int kfs_channel_slots(struct kfs_channel *ch)
{
	return (int)ch->private_->mount->slots_used;
}

static void wake_pollers(struct kfs_channel *ch, const struct slot *slot)
{
	ch->counts->notifies++;
	kfs_count_lost(ch, kfs_notify_poll(ch->private_->mount->fuse_fd, slot->kh));
}

static uint64_t cpu_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000;
}

/*
 * `slot` was polled.  To wake a poller takes the kernel up to 0.5 us, under a lock of the mount, and nobody tells how many
 * there are: a file may be in hundreds of thousands of epoll instances.  Each of them has polled it once, though.  So a
 * wake-up is tried early enough and measured, and a file that takes too long, three times in a row, is muted.
 */
void kfs_count_poll(struct kfs_channel *ch, struct slot *slot)
{
	uint64_t before, took = 0;

	if (++slot->polls < POLLS_BETWEEN_TRIES)
		return;
	slot->polls = 0;
	if (!slot->kh || slot->muted)
		return;
	for (int i = 0; i < TRIES; i++) {
		before = cpu_us();
		wake_pollers(ch, slot);
		took = cpu_us() - before;
		if (took <= WAKE_MAX_US) {
			/* Woken pollers poll again. */
			slot->polls = -(int)took * POLLERS_IN_A_US;
			return;
		}
	}
	slot->muted = 1;
	ch->counts->muted++;
}

int kfs_channel_set_events(struct kfs_channel *ch, int64_t fh, int32_t revents)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, (uint64_t)fh);
	uint32_t news;

	if (!slot)
		return -ENOENT;
	/* Readability is reported again: an edge-triggered poller expects an edge for every message. */
	news = ((uint32_t)revents & ~slot->revents) | ((uint32_t)revents & (POLLIN | POLLERR | POLLHUP));
	slot->revents = (uint32_t)revents;
	/* A client that has left its bus gets that error when it frees. */
	if (revents & POLLHUP)
		slot->published_count = 0;
	if (!slot->armed || !news || slot->muted)
		return 0;
	slot->armed = 0;
	wake_pollers(ch, slot);
	return 0;
}

/* Only files of its group may see the end of `fh`, so that it can come after requests for others. */
int kfs_channel_end_can_wait(struct kfs_channel *ch, int64_t fh)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, (uint64_t)fh);

	if (!slot)
		return -ENOENT;
	slot->end_can_wait = 1;
	return 0;
}

/*
 * Whether other files are the same connection.  A slice that one of them returned may be freed through another, so the
 * core handles all of them.
 */
int kfs_channel_share(struct kfs_channel *ch, int64_t fh, int32_t is_shared)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, (uint64_t)fh);

	if (!slot)
		return -ENOENT;
	slot->is_shared = is_shared;
	slot->is_used = 1;
	if (is_shared)
		slot->published_count = 0;
	return 0;
}
