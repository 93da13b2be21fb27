#pragma once
#include <stdint.h>

int kfs_boost(int nice, uint64_t slice_ns);
void kfs_boost_again(void);
