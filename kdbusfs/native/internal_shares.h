/* What each user has had of the core since everybody could have had something; not for Python. */
#pragma once
#include <stdint.h>

/* Users whose numbers end alike share a place: each counts for the other. */
#define SHARES 1024

struct shares {
	uint32_t round;
	struct share {
		uint32_t round; /* that `used_ns` is of */
		uint64_t used_ns;
	} of[SHARES];
};

static inline void kfs_share_charge(struct shares *shares, uint32_t uid, uint64_t ns)
{
	struct share *share = &shares->of[uid % SHARES];

	if (share->round != shares->round)
		*share = (struct share){ shares->round, 0 };
	share->used_ns += ns;
}

/* For how many ns in this round `uid` has had the core. */
static inline uint64_t kfs_share_used(const struct shares *shares, uint32_t uid)
{
	const struct share *share = &shares->of[uid % SHARES];

	return share->round == shares->round ? share->used_ns : 0;
}
