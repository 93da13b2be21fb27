/*
 * What is kept for each open file: its poll bits, who polls it, a pidfd of the thread that used it last, and the slices
 * that its client has been told of.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS_AT_FIRST 64

struct slot *kfs_slot_of(struct mount *p, uint64_t fh)
{
	uint32_t index = (uint32_t)fh;

	return index < p->slots_made && fh && p->slots[index].fh == fh ? &p->slots[index] : NULL;
}

/*
 * A handle is a slot and, above it, a generation: a number that was given back never means another file,
 * also for whoever kept it (the installer's path of a connection).
 */
int64_t kfs_channel_slot_new(struct kfs_channel *ch, uint32_t kind)
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
	*slot = (struct slot){
		.fh = (uint64_t)p->generation << 32 | index, .kind = kind, .pidfd = -1, .revents = KFS_DEFAULT_EVENTS
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
	p->first_free = (uint32_t)fh;
	p->slots_used--;
	return 0;
}

int kfs_channel_slots(struct kfs_channel *ch)
{
	return (int)ch->private_->mount->slots_used;
}

int kfs_channel_set_events(struct kfs_channel *ch, int64_t fh, int32_t revents)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, (uint64_t)fh);
	struct {
		struct fuse_out_header header;
		struct fuse_notify_poll_wakeup_out wakeup;
	} notice = { .header = { .len = sizeof(notice), .error = FUSE_NOTIFY_POLL } };
	uint32_t news;

	if (!slot)
		return -ENOENT;
	/* What is readable is told again: an edge-triggered poller counts on an edge for every message. */
	news = ((uint32_t)revents & ~slot->revents) | ((uint32_t)revents & (POLLIN | POLLERR | POLLHUP));
	slot->revents = (uint32_t)revents;
	/* Whoever has left its bus is told so when it frees. */
	if (revents & POLLHUP)
		slot->published_count = 0;
	if (!slot->armed || !news)
		return 0;
	slot->armed = 0;
	notice.wakeup.kh = slot->kh;
	ch->counts->notifies++;
	return kfs_put(ch, &notice.header);
}

/*
 * Whether other files are the same connection.  A slice that one of them was told of may be given back by another, so
 * all of it is left to the core.
 */
int kfs_channel_share(struct kfs_channel *ch, int64_t fh, int32_t is_shared)
{
	struct slot *slot = kfs_slot_of(ch->private_->mount, (uint64_t)fh);

	if (!slot)
		return -ENOENT;
	slot->is_shared = is_shared;
	if (is_shared)
		slot->published_count = 0;
	return 0;
}
