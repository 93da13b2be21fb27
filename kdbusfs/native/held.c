/*
 * Who waits for his turn.  The kernel puts everybody's requests into one queue, so that what one user has put there would
 * be in front of what another one asks for.  So a user who has had the core for a turn waits until nobody else has a
 * request, or has his own turn: his further requests are kept here as the bytes that the kernel gave, which takes no
 * thread.  So are those of a user whose commands have yielded, which do take a thread each: he may have but a few
 * of them.  Each user's are taken up in their order, and the users in turn; closes of his (closed.c) come first.
 *
 * Requests that wait are concurrent with all that happens meanwhile, for nobody has been told of their end.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One of those who wait is served after so many other requests, though there may be more of these. */
#define OTHERS_BETWEEN 4

static void append(struct line *line, struct waiting *waiting)
{
	waiting->next = NULL;
	if (!line->first)
		line->last = &line->first;
	*line->last = waiting;
	line->last = &waiting->next;
}

/* Takes `*link` out of `line`. */
static struct waiting *take_out(struct line *line, struct waiting **link)
{
	struct waiting *waiting = *link;

	*link = waiting->next;
	if (!waiting->next)
		line->last = link;
	return waiting;
}

/* Appends all of `from` to `line`. */
void kfs_join_lines(struct line *line, struct line *from)
{
	while (from->first)
		append(line, take_out(from, &from->first));
}

struct user *kfs_waiting_user(struct mount *mount, uint32_t uid)
{
	struct user *user = mount->users;

	while (user && user->uid != uid)
		user = user->next;
	return user;
}

/* NULL for want of memory. */
struct user *kfs_make_waiting_user(struct mount *mount, uint32_t uid)
{
	struct user *user = kfs_waiting_user(mount, uid), **link = &mount->users;

	if (user)
		return user;
	user = calloc(1, sizeof(*user));
	if (!user)
		return NULL;
	user->uid = uid;
	while (*link)
		link = &(*link)->next;
	*link = user;
	return user;
}

/* The user of `*link` was served: others come before him the next time.  He goes if he waits for nothing. */
static void move_back(struct user **link)
{
	struct user *user = *link;

	*link = user->next;
	if (!user->commands.first && !user->closes.first && !user->closing) {
		free(user);
		return;
	}
	user->next = NULL;
	while (*link)
		link = &(*link)->next;
	*link = user;
}

/* Frees the user if he waits for nothing. */
void kfs_forget_user(struct mount *mount, const struct user *user)
{
	struct user **link = &mount->users;

	while (*link && *link != user)
		link = &(*link)->next;
	if (*link && !user->commands.first && !user->closes.first && !user->closing) {
		*link = user->next;
		free((void *)user);
	}
}

/* Keeps the current request of `ch` in `line`.  Returns 0 if that cannot be. */
int kfs_keep(struct kfs_channel *ch, struct line *line)
{
	const struct fuse_in_header *in = (void *)ch->request;
	struct waiting *waiting;

	if (ch->request_len > HELD_MAX)
		return 0;
	waiting = malloc(sizeof(*waiting) + ch->request_len);
	if (!waiting)
		return 0;
	*waiting = (struct waiting){
		.unique = in->unique,
		.tid = in->pid,
		.was_interrupted = ch->was_interrupted == in->unique,
		.len = ch->request_len,
	};
	memcpy(waiting->request, ch->request, waiting->len);
	append(line, waiting);
	__atomic_add_fetch(&ch->private_->mount->held, 1, __ATOMIC_RELAXED);
	return 1;
}

void kfs_keep_close(struct line *line, struct waiting *waiting)
{
	append(line, waiting);
}

/*
 * Keeps the current request of `ch`, of `uid`, for later, if that one has had his turn, or others of his wait.  Returns 0
 * if it is to be served now.
 */
int kfs_hold(struct kfs_channel *ch, uint32_t uid, int is_command)
{
	struct mount *mount = ch->private_->mount;
	struct kfs_reader *reader = ch->private_->reader;
	struct user *user = kfs_waiting_user(mount, uid);

	if (!user && !kfs_reader_has_had_turn(reader, uid) && (!is_command || kfs_reader_may_begin(reader, uid)))
		return 0;
	if (!user)
		user = kfs_make_waiting_user(mount, uid);
	if (!user)
		return 0;
	if (kfs_keep(ch, &user->commands))
		return 1;
	kfs_forget_user(mount, user);
	return 0;
}

/* Makes the first of `line` the request of `ch`. */
static void make_current(struct kfs_channel *ch, struct line *line)
{
	struct waiting *waiting = take_out(line, &line->first);

	memcpy(ch->request, waiting->request, waiting->len);
	ch->request_len = (uint32_t)waiting->len;
	ch->was_interrupted = waiting->was_interrupted ? waiting->unique : 0;
	free(waiting);
	__atomic_sub_fetch(&ch->private_->mount->held, 1, __ATOMIC_RELAXED);
}

/* The next thing that a user waits for: HELD, CLOSED, or 0 if he has had his turn, or may not begin anything now. */
static int take_of(struct kfs_channel *ch, struct user **link)
{
	struct user *user = *link;

	if (kfs_reader_has_had_turn(ch->private_->reader, user->uid))
		return 0;
	if (user->closes.first) {
		if (user->closing)
			return 0;
		kfs_take_close(ch, user, take_out(&user->closes, &user->closes.first));
		move_back(link);
		return CLOSED;
	}
	if (!user->commands.first || !kfs_reader_may_begin(ch->private_->reader, user->uid))
		return 0;
	make_current(ch, &user->commands);
	move_back(link);
	return HELD;
}

static int take(struct kfs_channel *ch)
{
	int taken = 0;

	for (struct user **link = &ch->private_->mount->users; *link && !taken;) {
		struct user *user = *link;

		taken = take_of(ch, link);
		if (!taken)
			link = &user->next;
	}
	return taken;
}

/* Whether anybody waits. */
int kfs_anybody_waits(const struct mount *mount)
{
	return mount->users || mount->after_closes.first;
}

static int take_first(struct kfs_channel *ch, int is_idle)
{
	struct mount *mount = ch->private_->mount;
	int taken;

	mount->others_served = 0;
	if (mount->after_closes.first) {
		make_current(ch, &mount->after_closes);
		return AFTER_CLOSES;
	}
	taken = take(ch);
	if (!taken && !is_idle) {
		kfs_reader_new_round(ch->private_->reader);
		taken = take(ch);
	}
	return taken;
}

/*
 * Takes up what somebody has waited for: HELD, it is the request of `ch` now; AFTER_CLOSES, the same, but others of its
 * user may wait; CLOSED, `ch->fh` is to be ended now; 0, nobody is to be served.  is_idle: there is no other request.
 */
int kfs_take_waiting(struct kfs_channel *ch, int is_idle)
{
	struct mount *mount = ch->private_->mount;

	if (is_idle)
		kfs_reader_new_round(ch->private_->reader);
	if (!kfs_anybody_waits(mount))
		mount->others_served = 0;
	else if (is_idle || mount->others_served >= OTHERS_BETWEEN)
		return take_first(ch, is_idle);
	return 0;
}

/* Looks for request `unique` in `line`.  Returns whether it waits there; who was killed is answered. */
static int interrupt(struct kfs_channel *ch, struct line *line, uint64_t unique)
{
	struct waiting **link = &line->first;

	while (*link && (*link)->unique != unique)
		link = &(*link)->next;
	if (!*link)
		return 0;
	(*link)->was_interrupted = 1;
	if (kfs_is_dying((*link)->tid)) {
		free(take_out(line, link));
		__atomic_sub_fetch(&ch->private_->mount->held, 1, __ATOMIC_RELAXED);
		kfs_put_error(ch, unique, -EINTR);
	}
	return 1;
}

/*
 * A signal came for request `unique`.  Returns whether that is one that waits here: who was killed is answered at once,
 * others when their request has come to its turn.
 */
int kfs_interrupt_held(struct kfs_channel *ch, uint64_t unique)
{
	struct mount *mount = ch->private_->mount;

	for (struct user *user = mount->users; user; user = user->next)
		if (interrupt(ch, &user->commands, unique)) {
			kfs_forget_user(mount, user);
			return 1;
		}
	for (struct group *group = mount->groups; group; group = group->next)
		if (interrupt(ch, &group->requests, unique))
			return 1;
	return interrupt(ch, &mount->after_closes, unique);
}

/* Empties `line`; with `error` its requests are answered. */
static void drop(struct mount *mount, struct line *line, struct kfs_channel *ch, int error)
{
	while (line->first) {
		struct waiting *waiting = take_out(line, &line->first);

		if (waiting->len) {
			__atomic_sub_fetch(&mount->held, 1, __ATOMIC_RELAXED);
			if (error)
				kfs_put_error(ch, waiting->unique, error);
		}
		free(waiting);
	}
}

static void drop_all(struct mount *mount, struct kfs_channel *ch, int error)
{
	while (mount->groups) {
		struct group *group = mount->groups;

		mount->groups = group->next;
		drop(mount, &group->requests, ch, error);
		free(group);
	}
	drop(mount, &mount->after_closes, ch, error);
	while (mount->users) {
		struct user *user = mount->users;

		mount->users = user->next;
		drop(mount, &user->commands, ch, error);
		drop(mount, &user->closes, ch, 0);
		free(user);
	}
	mount->closed_count = 0;
}

/* The service ends: nobody takes them up any more. */
void kfs_refuse_held(struct kfs_channel *ch)
{
	drop_all(ch->private_->mount, ch, -ESHUTDOWN);
}

/* The mount is gone, and with it whoever has waited. */
void kfs_forget_held(struct mount *mount)
{
	drop_all(mount, NULL, 0);
}
