/* Shared by the files of the channel; not for Python. */
#pragma once
#include "channel.h"
#include "internal_alarm.h"
#include "internal_answer.h"
#include "internal_clock.h"
#include "internal_boost.h"

#include <linux/fuse.h>
#include <poll.h>
#include <sys/types.h>

#define KFS_DEFAULT_EVENTS (POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM)
/* Of a file that was open when the daemon before this one was killed. */
#define KFS_LOST_EVENTS (POLLHUP | POLLERR)
/* Sentinel of `serve`: there is nothing for Python to do. */
#define AGAIN 0
/* Where a request comes from: the kernel; those who wait for closes; those who wait for their turn.  Or a file to be ended. */
#define FRESH 0
#define AFTER_CLOSES 1
#define HELD 2
#define CLOSED 3
/* The user of a file that nobody is known to have opened. */
#define NOBODY UINT32_MAX
/* Most clients free what they have received before they receive more. */
#define PUBLISHED_MAX 8
#define NO_SLOT UINT32_MAX

#define IOCTL_DATA (sizeof(struct fuse_in_header) + sizeof(struct fuse_ioctl_in))

/* When polling for a request before sleeping pays. */
struct looking {
	uint64_t paused_until, pause_ns; /* 0: polling has not been given up */
	uint32_t misses; /* in a row */
	uint32_t waits;
	int has_others; /* the reader may run on other cpus */
	long switches; /* involuntary context switches of the thread */
};

/* Entries for the commands of all protocols; a power of two, and far more than there are. */
#define COMMANDS_MAX 256

struct command {
	uint32_t number; /* 0: the entry is free */
	uint32_t kind; /* of file */
	uint32_t size, max_size, pointer_offset, message_max;
	uint32_t info_offset; /* where the answer has the offset of a slice; 0: nowhere */
	uint64_t info_flag; /* the flag with which it has; 0: always */
	int is_plain; /* its struct has no size member */
	int reads_memory, returns; /* of a plain one */
	int is_free;
	uint32_t slice_offset, flags_offset; /* of a FREE */
	/*
	 * The flags that a FREE returns: so many u64, the last of which is 0, and the one before it the offered flags.
	 */
	uint32_t told_offset, told_count;
	uint64_t offered_flags;
};

struct slot {
	uint64_t fh; /* 0: free */
	uint64_t kh;
	uint64_t group; /* of files that may see its end; 0: none */
	uint32_t kind; /* which commands it takes */
	uint32_t uid; /* of who opened it */
	uint32_t revents;
	uint32_t armed;
	int polls; /* since a wake-up of its pollers was last tried */
	int muted; /* it has too many pollers to wake */
	uint32_t tid; /* of pidfd */
	int pidfd;
	uint32_t next_free;
	int is_shared; /* its connection has other files too */
	int end_can_wait; /* only its group may observe its end */
	int is_used; /* it, or its connection, had a command: others may observe its end */
	uint32_t published_count;
	uint64_t published[PUBLISHED_MAX];
};

/* A request that waits, as the kernel gave it; or the close of `fh`, with len 0. */
struct waiting {
	struct waiting *next;
	uint64_t unique, fh, group;
	uint32_t tid;
	int was_interrupted;
	size_t len;
	uint8_t request[];
};

struct line {
	struct waiting *first, **last;
};

/* One who waits for something. */
struct user {
	struct user *next;
	uint32_t uid;
	int closing; /* one of his closes is being carried out */
	struct line commands, closes;
};

/* Files that may see the end of others of them, of which some are closed and not ended yet. */
struct group {
	struct group *next;
	uint64_t number;
	uint32_t closes;
	struct line requests;
};

/* Shared by the channels of a mount; the owner of the core alone accesses it. */
struct mount {
	unsigned channels;
	int fuse_fd, tree_fd, event_fd;
	struct kfs_kept *kept; /* NULL: nothing outlives the daemon */
	uint32_t generation;
	uint32_t slots_made, slots_used, first_free;
	struct slot *slots;
	struct command commands[COMMANDS_MAX];
	struct kfs_freed_list freed;
	struct kfs_counts counts;
	struct kfs_ownership *ownership;
	struct kfs_alarm *alarm;
	int fuse_flags; /* of its open file description, with or without O_NONBLOCK */
	struct looking looking;
	struct user *users; /* in turn */
	struct group *groups;
	struct line after_closes;
	uint32_t held; /* requests that wait */
	uint32_t closed_count, closes_in_a_row;
	uint32_t others_served; /* since one of those who wait was */
};

/* Bytes of a request that waits unread: more than the header and the struct of any command. */
#define HELD_MAX 512

struct kfs_channel_private {
	struct mount *mount;
	struct kfs_reader *reader;
	struct boost boost;
	unsigned unpolled;
	/* Pidfd of the calling thread while its memory is accessed: the slot's, or an own one if that was detached. */
	int pidfd, pidfd_detached;
	/* The close that is being carried out. */
	int is_closing;
	uint32_t closing_uid;
	uint64_t closing_group;
	uint8_t message[32768];
};

/* channel.c */
int kfs_count_lost(struct kfs_channel *ch, int result);
int kfs_put_error(struct kfs_channel *ch, uint64_t unique, int error);
int kfs_answer_current(struct kfs_channel *ch, int32_t result);
int kfs_pass_reply(struct kfs_channel *ch);
void kfs_let_go(struct kfs_channel *ch);

/* wait.c: AGAIN, a kind, or -errno */
int kfs_check_descriptors(struct kfs_channel *ch);
int kfs_read_request(struct kfs_channel *ch, uint64_t deadline_ns);

/* slots.c */
struct slot *kfs_slot_of(struct mount *mount, uint64_t fh);
int kfs_is_lost(struct mount *mount, uint64_t fh);
void kfs_arm(struct mount *mount, struct slot *slot, uint64_t kh);
void kfs_count_poll(struct kfs_channel *ch, struct slot *slot);

/* commands.c */
struct command *kfs_find_command(struct mount *mount, uint32_t kind, uint32_t number);
int kfs_is_command(const struct mount *mount, uint32_t number);

/* free.c */
void kfs_note_published(struct mount *mount, uint64_t fh, uint32_t cmd, const uint8_t *out, size_t out_len);
int kfs_serve_free(struct kfs_channel *ch, const struct command *command);

/* held.c */
int kfs_hold(struct kfs_channel *ch, uint32_t uid, int is_command);
int kfs_keep(struct kfs_channel *ch, struct line *line);
void kfs_keep_close(struct line *line, struct waiting *waiting);
void kfs_join_lines(struct line *line, struct line *from);
struct user *kfs_waiting_user(struct mount *mount, uint32_t uid);
struct user *kfs_make_waiting_user(struct mount *mount, uint32_t uid);
void kfs_forget_user(struct mount *mount, const struct user *user);
int kfs_anybody_waits(const struct mount *mount);
int kfs_take_waiting(struct kfs_channel *ch, int is_idle);
int kfs_interrupt_held(struct kfs_channel *ch, uint64_t unique);
void kfs_refuse_held(struct kfs_channel *ch);
void kfs_forget_held(struct mount *mount);

/* closed.c */
void kfs_other_than_close(struct mount *mount);
int kfs_note_closed(struct kfs_channel *ch, uint64_t fh, uint64_t unique);
void kfs_take_close(struct kfs_channel *ch, struct user *user, struct waiting *waiting);
void kfs_close_is_over(struct kfs_channel *ch);
int kfs_waits_for_closes(struct kfs_channel *ch, const struct slot *slot);

/* ioctl.c: AGAIN or a kind */
int kfs_serve_ioctl(struct kfs_channel *ch, int from);
int kfs_tie_alive(struct kfs_channel *ch);
int kfs_write_client(struct kfs_channel *ch, uint64_t address, const void *data, size_t size);
void kfs_detach(void *channel);
void kfs_answer_killed(void *channel);

/* tree.c */
int kfs_serve_tree(struct kfs_channel *ch);
int kfs_take_reply(struct kfs_channel *ch, uint64_t unique);
