/*
 * The commands whose struct the channel reads, by the kind of file and the whole request number: protocols use the same
 * low byte for different commands.
 */
#define _GNU_SOURCE
#include "internal_channel.h"

#include <errno.h>

static struct command *place_of(struct mount *mount, uint32_t kind, uint32_t number)
{
	uint32_t at = (number ^ number >> 16 ^ kind * 31) % COMMANDS_MAX;

	for (uint32_t i = 0; i < COMMANDS_MAX; i++) {
		struct command *command = &mount->commands[(at + i) % COMMANDS_MAX];

		if (!command->number || (command->number == number && command->kind == kind))
			return command;
	}
	return NULL;
}

/* NULL: the channel does not know the command, and reads no struct. */
struct command *kfs_find_command(struct mount *mount, uint32_t kind, uint32_t number)
{
	struct command *command = number ? place_of(mount, kind, number) : NULL;

	return command && command->number ? command : NULL;
}

/* Whether files of any kind have such a command. */
int kfs_is_command(const struct mount *mount, uint32_t number)
{
	for (int i = 0; i < COMMANDS_MAX; i++)
		if (mount->commands[i].number == number)
			return number != 0;
	return 0;
}

/*
 * Adds command `number` of files of `kind`: a struct of `size` bytes or more, with its size in the first 8.  At
 * `pointer_offset`, unless that is 0, it has the address of a message.
 */
int kfs_channel_command(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t size, uint32_t max_size,
			uint32_t pointer_offset)
{
	struct command *command = number ? place_of(ch->private_->mount, kind, number) : NULL;

	if (!command || command->number)
		return -EINVAL;
	if (size < 8 || size > max_size || max_size > (uint32_t)KFS_COMMAND_MAX || pointer_offset + 8 > size)
		return -EINVAL;
	*command = (struct command){ .number = number,
				     .kind = kind,
				     .size = size,
				     .max_size = max_size,
				     .pointer_offset = pointer_offset,
				     .message_max = KFS_MESSAGE_MAX };
	return 0;
}

/*
 * The struct of command `number` has no size member: all of it comes with the request. reads_memory: the core will read
 * what it points to; returns: the struct travels back after success only.
 */
int kfs_channel_plain(struct kfs_channel *ch, uint32_t kind, uint32_t number, int32_t reads_memory, int32_t returns)
{
	struct command *command = kfs_find_command(ch->private_->mount, kind, number);

	if (!command || command->pointer_offset || command->size != command->max_size)
		return -EINVAL;
	command->is_plain = 1;
	command->reads_memory = reads_memory;
	command->returns = returns;
	return 0;
}

/* Messages that command `number` points to have at most `max_size` bytes: longer ones fail with EMSGSIZE. */
int kfs_channel_messages(struct kfs_channel *ch, uint32_t kind, uint32_t number, uint32_t max_size)
{
	struct command *command = kfs_find_command(ch->private_->mount, kind, number);

	if (!command || !command->pointer_offset || max_size > (uint32_t)KFS_MESSAGE_MAX)
		return -EINVAL;
	command->message_max = max_size;
	return 0;
}
