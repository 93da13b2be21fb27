/* struct statx with the member that older headers lack. */
#pragma once
#include <stdint.h>
#include <sys/stat.h>

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif
#define KFS_STATX_MNT_ID_UNIQUE 0x00004000U

union kfs_statx {
	struct statx stx;
	struct {
		char before[0x90];
		uint64_t mnt_id;
	} more;
};
