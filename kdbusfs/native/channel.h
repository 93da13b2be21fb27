#pragma once
#include "ownership.h"
#include <stddef.h>
#include <stdint.h>

static const int KFS_IOCTL = 1;
static const int KFS_INTERRUPT = 2;
static const int KFS_TREE = 3;
static const int KFS_TIMER = 4;
static const int KFS_EVENT = 5;
static const int KFS_GONE = 6;
static const int KFS_RELEASE = 9; /* 7 and 8 are in ownership.h */
static const int KFS_FORGET = 10;

/* Sentinel result of a step: no answer is due. */
static const int KFS_NOTHING = -2147483647;

static const int KFS_COMMAND_MAX = 32768;
static const int KFS_MESSAGE_MAX = 32768;
static const int KFS_REQUEST_MAX = 1056768;

enum { KFS_KEPT_SLOTS = 4194304 };

/*
 * In memory that outlives the daemon, for the one that takes its place: it wakes the pollers of the files that are lost,
 * and gives out no fh a second time.  All zeros at first.
 */
struct kfs_kept {
	uint32_t generation; /* of the last fh */
	uint32_t slots; /* no later one was ever used */
	uint64_t poll_handles[KFS_KEPT_SLOTS]; /* by slot: what wakes its pollers, 0 if nobody polls */
};

struct kfs_channel_private;

/* Counters of all channels of a mount together. */
struct kfs_counts {
	uint64_t requests;
	uint64_t ioctls;
	uint64_t polls;
	uint64_t notifies;
	uint64_t interrupts;
	uint64_t tree;
	uint64_t lost;
	uint64_t pidfds;
	uint64_t kept_waiting;
	uint64_t muted;
};

/* A slice of an open file's pool that its client has given back. */
struct kfs_freed {
	uint64_t fh;
	uint64_t offset;
};

enum { KFS_FREED_MAX = 64 };

/* The slices that the core has not been told of yet; the code that tells it sets `count` to 0. */
struct kfs_freed_list {
	uint64_t count;
	struct kfs_freed slices[KFS_FREED_MAX];
};

static const int KFS_REQUEST_HEAD_SIZE = 56;

/* The members up to `freed`, KFS_REQUEST_HEAD_SIZE bytes, describe the last request: Python copies them at once. */
struct kfs_channel {
	uint64_t unique;
	uint64_t fh;
	uint64_t arg;
	uint32_t cmd;
	uint32_t tid;
	uint32_t command_len;
	int32_t command_error;
	int32_t pidfd;
	uint32_t message_len;
	int32_t message_error;
	uint32_t freed; /* number of entries of kfs_channel_freed */

	uint32_t ioctl_flags;
	uint32_t in_size;
	uint32_t out_size;
	uint32_t uid;
	uint32_t gid;
	uint32_t opcode;

	uint64_t was_interrupted; /* unique of a request that was interrupted before it was taken up; 0: none */
	uint32_t request_len;
	uint32_t reply_len;
	uint32_t tree_timeout_ms;

	uint8_t *command;
	uint8_t *message;
	uint8_t *request;
	uint8_t *reply;

	struct kfs_counts *counts;

	struct kfs_channel_private *private_;
};

struct kfs_channel *kfs_channel_new(int fuse_fd, int tree_fd, int event_fd);
struct kfs_channel *kfs_channel_for_thread(struct kfs_channel *ch);
void kfs_channel_free(struct kfs_channel *ch);
int kfs_channel_command(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t size, uint32_t max_size,
			uint32_t pointer_offset);
int kfs_channel_plain(struct kfs_channel *ch, uint32_t kind, uint32_t number, int32_t reads_memory, int32_t returns);
int kfs_channel_messages(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t max_size);
int kfs_channel_publishes(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t info_offset,
			  uint64_t info_flag);
int kfs_channel_frees(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t slice_offset,
		      uint32_t flags_offset, uint32_t told_offset, uint32_t told_count, uint64_t offered_flags);
struct kfs_freed_list *kfs_channel_freed(struct kfs_channel *ch);

int kfs_channel_take(struct kfs_channel *ch);
void kfs_channel_end(struct kfs_channel *ch);
void kfs_channel_owners(struct kfs_channel *ch, struct kfs_owners *owners);
void kfs_channel_starve(struct kfs_channel *ch, int is_starving);

int kfs_channel_keep(struct kfs_channel *ch, struct kfs_kept *kept);
int64_t kfs_channel_slot_new(struct kfs_channel *ch, uint32_t kind, uint32_t uid, uint64_t group);
int kfs_channel_end_can_wait(struct kfs_channel *ch, int64_t fh);
int kfs_channel_slot_free(struct kfs_channel *ch, uint64_t fh);
int kfs_channel_slots(struct kfs_channel *ch);
uint32_t kfs_channel_closed(struct kfs_channel *ch);
int kfs_channel_set_events(struct kfs_channel *ch, int64_t fh, int32_t revents);
int kfs_channel_share(struct kfs_channel *ch, int64_t fh, int32_t is_shared);

int kfs_channel_step(struct kfs_channel *ch, uint64_t deadline_ns, int32_t result);
int kfs_channel_flush(struct kfs_channel *ch, int32_t result);
int kfs_channel_store(struct kfs_channel *ch, int64_t fh, uint32_t cmd, uint32_t uid, uint32_t tid, uint64_t unique,
		      uint64_t address, const void *data, int64_t size, const void *fixed, int64_t fixed_len);
int kfs_channel_answer_now(struct kfs_channel *ch, int64_t fh, uint32_t cmd, uint64_t unique, int32_t result,
			   const void *out, int64_t out_len);
