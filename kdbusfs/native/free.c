/*
 * The only decision about a bus that C makes: a plain FREE of a slice that its client knows is answered here, and the
 * core is told before the next command.  A FREE is plain if it has no flags, nothing behind its fixed struct, and the
 * offset of a published slice.  Every other FREE goes to the core.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <string.h>
#include <errno.h>

/*
 * A successful answer to `number` has at `info_offset` the offset and size of a slice that the client may give back.
 * With an `info_flag`: only if that is among the command's flags, which follow its size; otherwise the member is the
 * client's own.
 */
int kfs_channel_publishes(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t info_offset,
			  uint64_t info_flag)
{
	struct command *command = kfs_find_command(ch->private_->mount, kind, number);

	if (!command || info_offset + 16 > command->size)
		return -EINVAL;
	command->info_offset = info_offset;
	command->info_flag = info_flag;
	return 0;
}

/*
 * With `number` clients give such a slice back, whose offset is at `slice_offset`.  At `told_offset` the kernel returns
 * the offered flags, if `told_count` is 2, and then the returned ones, which are 0.
 */
int kfs_channel_frees(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t slice_offset,
		      uint32_t flags_offset, uint32_t told_offset, uint32_t told_count, uint64_t offered_flags)
{
	struct command *command = kfs_find_command(ch->private_->mount, kind, number);

	if (!command || slice_offset + 8 > command->size || flags_offset + 8 > command->size || told_count < 1 ||
	    told_count > 2 || told_offset + 8 * told_count > command->size)
		return -EINVAL;
	command->is_free = 1;
	command->slice_offset = slice_offset;
	command->flags_offset = flags_offset;
	command->told_offset = told_offset;
	command->told_count = told_count;
	command->offered_flags = offered_flags;
	return 0;
}

static int find_published(const struct slot *slot, uint64_t offset)
{
	for (int i = (int)slot->published_count - 1; i >= 0; i--)
		if (slot->published[i] == offset)
			return i;
	return -1;
}

/* An answer to command `cmd` of `fh`, with struct `out`, is about to be sent. */
void kfs_note_published(struct mount *mount, uint64_t fh, uint32_t cmd, const uint8_t *out, size_t out_len)
{
	struct slot *slot = kfs_slot_of(mount, fh);
	const struct command *command = slot ? kfs_find_command(mount, slot->kind, cmd) : NULL;
	struct {
		uint64_t offset, size;
	} info;
	uint64_t flags;

	if (!command || slot->is_shared || !command->info_offset || out_len < command->info_offset + sizeof(info))
		return;
	memcpy(&flags, out + sizeof(uint64_t), sizeof(flags));
	if (command->info_flag && !(flags & command->info_flag))
		return;
	memcpy(&info, out + command->info_offset, sizeof(info));
	/*
	 * A slice that finds no place is given back through the core; one that is returned twice, by PEEK, has one
	 * entry.
	 */
	if (info.size && slot->published_count < PUBLISHED_MAX && find_published(slot, info.offset) < 0)
		slot->published[slot->published_count++] = info.offset;
}

static void forget_published(struct slot *slot, int index)
{
	slot->published[index] = slot->published[--slot->published_count];
}

struct kfs_freed_list *kfs_channel_freed(struct kfs_channel *ch)
{
	return &ch->private_->mount->freed;
}

/* Stores the offered and the returned flags of a FREE in the client's struct if they differ.  Returns 0 or -errno. */
static int write_flags(struct kfs_channel *ch, const struct command *command)
{
	const uint32_t offset = command->told_offset;
	const size_t size = sizeof(uint64_t) * command->told_count;
	const uint64_t wanted[2] = { command->told_count == 2 ? command->offered_flags : 0, 0 };

	if (memcmp(ch->command + offset, wanted, size) == 0)
		return 0;
	return kfs_write_client(ch, ch->arg + offset, wanted, size);
}

/* Carries out a plain FREE. Returns whether it did; if not, the core has to find the error. */
int kfs_serve_free(struct kfs_channel *ch, const struct command *command)
{
	struct mount *mount = ch->private_->mount;
	struct slot *slot = kfs_slot_of(mount, ch->fh);
	uint64_t size, flags, offset;
	int index, is_plain;

	memcpy(&size, ch->command, sizeof(size));
	memcpy(&flags, ch->command + command->flags_offset, sizeof(flags));
	memcpy(&offset, ch->command + command->slice_offset, sizeof(offset));
	index = find_published(slot, offset);
	if (index < 0)
		return 0;
	is_plain = size == command->size && !flags && !(ch->arg & 7) && mount->freed.count < KFS_FREED_MAX &&
		   write_flags(ch, command) == 0;
	if (kfs_reader_is_abandoned(ch->private_->reader)) {
		kfs_let_go(ch);
		return 1;
	}
	/* Look up again: others may have been served during the access to the client's memory. */
	slot = kfs_slot_of(mount, ch->fh);
	index = slot ? find_published(slot, offset) : -1;
	if (index >= 0)
		forget_published(slot, index);
	if (index < 0 || !is_plain || mount->freed.count >= KFS_FREED_MAX) {
		kfs_let_go(ch);
		ch->pidfd = -1;
		return 0;
	}
	mount->freed.slices[mount->freed.count++] = (struct kfs_freed){ ch->fh, offset };
	kfs_answer_current(ch, 0);
	kfs_let_go(ch);
	return 1;
}
