/*
 * Files that were closed, and wait for their end.  A process with thousands of them ends at once, and the kernel puts as
 * many requests in front of everybody's.  All but the first of them, those beyond a turn of their user, are only noted
 * here, and carried out when it is his turn (held.c), one after the other.
 *
 * Whoever acts after a close finds its effects.  So a request for a file that may see the end of those that are noted, one
 * of its `group` (a bus), waits until they are carried out.  Files that were never used have no end that can be seen.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <stdlib.h>

/* So many in a row are carried out at once, within their user's turn. */
#define AT_ONCE 32
#define CLOSED_MAX 65536

static struct group **find_group(struct mount *mount, uint64_t number)
{
	struct group **link = &mount->groups;

	while (*link && (*link)->number != number)
		link = &(*link)->next;
	return link;
}

/* Notes one more close in the group of `slot`.  Returns 0 for want of memory. */
static int enter(struct mount *mount, const struct slot *slot)
{
	struct group **link = find_group(mount, slot->group);

	if (!*link)
		*link = calloc(1, sizeof(**link));
	if (!*link)
		return 0;
	(*link)->number = slot->group;
	(*link)->closes++;
	return 1;
}

/* A close of `number` is carried out.  Those who have waited for the last of them may go on. */
static void leave(struct mount *mount, uint64_t number)
{
	struct group **link = find_group(mount, number), *group = *link;

	if (!group || --group->closes)
		return;
	*link = group->next;
	kfs_join_lines(&mount->after_closes, &group->requests);
	free(group);
}

/* A request that is no close comes, or none does. */
void kfs_other_than_close(struct mount *mount)
{
	mount->closes_in_a_row = 0;
}

/* Notes that `fh` is closed, by request `unique`, if that can wait.  Returns 0 if it is to be carried out now. */
int kfs_note_closed(struct kfs_channel *ch, uint64_t fh, uint64_t unique)
{
	struct mount *mount = ch->private_->mount;
	const struct slot *slot = kfs_slot_of(mount, fh);
	uint32_t uid = slot ? slot->uid : NOBODY;
	struct user *user = kfs_waiting_user(mount, uid);
	struct waiting *waiting;
	int is_seen = slot && slot->is_used && slot->group;

	if (slot && slot->is_used && !slot->end_can_wait)
		return 0;
	if (++mount->closes_in_a_row <= AT_ONCE && !(user && (user->closes.first || user->closing)) &&
	    !kfs_reader_has_had_turn(ch->private_->reader, uid))
		return 0;
	user = mount->closed_count < CLOSED_MAX ? kfs_make_waiting_user(mount, uid) : NULL;
	if (!user)
		return 0;
	waiting = malloc(sizeof(*waiting));
	if (!waiting || (is_seen && !enter(mount, slot))) {
		free(waiting);
		kfs_forget_user(mount, user);
		return 0;
	}
	*waiting = (struct waiting){ .unique = unique, .fh = fh, .group = is_seen ? slot->group : 0 };
	kfs_keep_close(&user->closes, waiting);
	mount->closed_count++;
	return 1;
}

/* Answers a close of `user` that has waited; the file is to be ended now. */
void kfs_take_close(struct kfs_channel *ch, struct user *user, struct waiting *waiting)
{
	struct kfs_channel_private *p = ch->private_;

	p->mount->closed_count--;
	p->is_closing = 1;
	p->closing_uid = user->uid;
	p->closing_group = waiting->group;
	user->closing = 1;
	ch->fh = waiting->fh;
	kfs_reader_pays(p->reader, user->uid);
	kfs_put_error(ch, waiting->unique, 0);
	free(waiting);
}

/* What the close that `ch` has taken up does is done, though its thread may be busy with what follows from that. */
void kfs_close_is_over(struct kfs_channel *ch)
{
	struct kfs_channel_private *p = ch->private_;
	struct user *user;

	if (!p->is_closing)
		return;
	p->is_closing = 0;
	user = kfs_waiting_user(p->mount, p->closing_uid);
	if (user) {
		user->closing = 0;
		kfs_forget_user(p->mount, user);
	}
	if (p->closing_group)
		leave(p->mount, p->closing_group);
}

/* Keeps the current request of `ch`, for a file of `slot`, if it comes after closes that are not carried out yet. */
int kfs_waits_for_closes(struct kfs_channel *ch, const struct slot *slot)
{
	struct mount *mount = ch->private_->mount;
	struct group *group = slot && slot->group && mount->groups ? *find_group(mount, slot->group) : NULL;

	return group && kfs_keep(ch, &group->requests);
}

/* Those that wait still count as open; whoever asks has the core, or its owner waits for him. */
uint32_t kfs_channel_closed(struct kfs_channel *ch)
{
	return ch->private_->mount->closed_count;
}
