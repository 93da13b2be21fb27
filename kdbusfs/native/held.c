/*
 * Commands that wait unread.  One user's commands that have yielded keep a thread each, so he may have but a few of
 * them: while he has, his further commands are kept here as the bytes that the kernel gave, which takes no thread.  They
 * are taken up in their order, each user's by themselves, when one of his has come to its end.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct held {
	struct held *next;
	uint64_t unique;
	uint32_t tid;
	int was_interrupted;
	size_t len;
	uint8_t request[];
};

struct held_user {
	struct held_user *next;
	uint32_t uid;
	struct held *first, **last;
};

/*
 * Keeps the current ioctl of `ch` for later, if its user may not begin one now, or others of his wait.  Returns 0 if it is
 * to be served now.
 */
int kfs_hold(struct kfs_channel *ch)
{
	struct mount *mount = ch->private_->mount;
	struct held_user *user = mount->held_users;
	struct held *held;

	while (user && user->uid != ch->uid)
		user = user->next;
	if ((!user && kfs_reader_may_begin(ch->private_->reader, ch->uid)) || ch->request_len > HELD_MAX)
		return 0;
	held = malloc(sizeof(*held) + ch->request_len);
	if (held && !user) {
		user = malloc(sizeof(*user));
		if (user) {
			*user = (struct held_user){ mount->held_users, ch->uid, NULL, &user->first };
			mount->held_users = user;
		}
	}
	if (!held || !user) {
		free(held);
		return 0;
	}
	held->next = NULL;
	held->unique = ch->unique;
	held->tid = ch->tid;
	held->was_interrupted = 0;
	held->len = ch->request_len;
	memcpy(held->request, ch->request, held->len);
	*user->last = held;
	user->last = &held->next;
	__atomic_add_fetch(&mount->held, 1, __ATOMIC_RELAXED);
	return 1;
}

/* Takes `*link` out of the commands of `*of`, and that user out of the list if it was his last. */
static struct held *take_out(struct mount *mount, struct held_user **of, struct held **link)
{
	struct held_user *user = *of;
	struct held *held = *link;

	*link = held->next;
	if (!held->next)
		user->last = link;
	if (!user->first) {
		*of = user->next;
		free(user);
	}
	__atomic_sub_fetch(&mount->held, 1, __ATOMIC_RELAXED);
	return held;
}

/* Makes the first command of a user who may have one more the request of `ch`.  Returns whether there was one. */
int kfs_take_held(struct kfs_channel *ch)
{
	struct mount *mount = ch->private_->mount;

	if (!mount->held_users || !kfs_reader_has_room(ch->private_->reader))
		return 0;
	for (struct held_user **user = &mount->held_users; *user; user = &(*user)->next) {
		struct held *held;

		if (!kfs_reader_may_begin(ch->private_->reader, (*user)->uid))
			continue;
		held = take_out(mount, user, &(*user)->first);
		memcpy(ch->request, held->request, held->len);
		ch->request_len = (uint32_t)held->len;
		ch->was_interrupted = held->was_interrupted ? held->unique : 0;
		free(held);
		return 1;
	}
	kfs_reader_is_full(ch->private_->reader);
	return 0;
}

/*
 * A signal came for request `unique`.  Returns whether that is one that waits here: who was killed is answered at once,
 * others when their command has come to its turn.
 */
int kfs_interrupt_held(struct kfs_channel *ch, uint64_t unique)
{
	struct mount *mount = ch->private_->mount;

	for (struct held_user **user = &mount->held_users; *user; user = &(*user)->next) {
		struct held **link = &(*user)->first;

		while (*link && (*link)->unique != unique)
			link = &(*link)->next;
		if (!*link)
			continue;
		(*link)->was_interrupted = 1;
		if (kfs_is_dying((*link)->tid)) {
			free(take_out(mount, user, link));
			kfs_put_error(ch, unique, -EINTR);
		}
		return 1;
	}
	return 0;
}

/* The service ends: nobody takes them up any more. */
void kfs_refuse_held(struct kfs_channel *ch)
{
	struct mount *mount = ch->private_->mount;

	while (mount->held_users) {
		struct held *held = take_out(mount, &mount->held_users, &mount->held_users->first);

		kfs_put_error(ch, held->unique, -ESHUTDOWN);
		free(held);
	}
}

/* The mount is gone, and with it whoever has waited. */
void kfs_forget_held(struct mount *mount)
{
	while (mount->held_users)
		free(take_out(mount, &mount->held_users, &mount->held_users->first));
}
