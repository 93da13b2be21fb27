/*
 * Files that were closed without ever having been used: nobody sees anything of their end, so it can wait.  A process with
 * thousands of them ends at once, and the kernel puts as many requests in front of everybody's.  All but the first of them
 * are only noted here, and carried out when there is no other request, or between others.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <stdlib.h>

/* So many in a row are carried out at once. */
#define AT_ONCE 32
#define CLOSED_FIRST 1024
#define CLOSED_MAX 65536
/* One is carried out after so many other requests, though there may be more of these. */
#define OTHERS_BETWEEN 4

struct closed {
	uint64_t fh, unique;
};

/* A request that is no close comes, or none does. */
void kfs_other_than_close(struct mount *mount)
{
	mount->closes_in_a_row = 0;
	mount->others_since_closed++;
}

static int make_room(struct mount *mount)
{
	uint32_t more = mount->closed_room ? mount->closed_room * 2 : CLOSED_FIRST;
	struct closed *closed;

	if (mount->closed_count < mount->closed_room)
		return 1;
	closed = more > CLOSED_MAX ? NULL : realloc(mount->closed, more * sizeof(*closed));
	if (!closed)
		return 0;
	mount->closed = closed;
	mount->closed_room = more;
	return 1;
}

/* Notes that `fh` is closed, by request `unique`, if that can wait.  Returns 0 if it is to be carried out now. */
int kfs_note_closed(struct mount *mount, uint64_t fh, uint64_t unique)
{
	const struct slot *slot = kfs_slot_of(mount, fh);

	if (++mount->closes_in_a_row <= AT_ONCE || (slot && slot->is_used) || !make_room(mount))
		return 0;
	mount->closed[mount->closed_count++] = (struct closed){ fh, unique };
	return 1;
}

/* Answers a close that has waited, for `fh` of `ch` to be ended now.  is_idle: there is no other request. */
int kfs_take_closed(struct kfs_channel *ch, int is_idle)
{
	struct mount *mount = ch->private_->mount;
	struct closed closed;

	if (!mount->closed_count || (!is_idle && mount->others_since_closed < OTHERS_BETWEEN))
		return 0;
	mount->others_since_closed = 0;
	closed = mount->closed[--mount->closed_count];
	if (!mount->closed_count) {
		free(mount->closed);
		mount->closed = NULL;
		mount->closed_room = 0;
	}
	ch->fh = closed.fh;
	kfs_put_error(ch, closed.unique, 0);
	return 1;
}

/* Those that wait still count as open; whoever asks has the core, or its owner waits for him. */
uint32_t kfs_channel_closed(struct kfs_channel *ch)
{
	return ch->private_->mount->closed_count;
}
