/* Capabilities of client threads. */
#define _GNU_SOURCE
#include "capability.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether `capability` is effective in the thread's own user namespace. */
int kfs_thread_capability(int tid, int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = tid };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	/* capget(2) takes 0 for the calling thread: the daemon. */
	if (tid <= 0)
		return -ESRCH;
	memset(data, 0, sizeof(data));
	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	return (data[capability / 32].effective >> (capability % 32)) & 1;
}
