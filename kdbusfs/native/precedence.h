#pragma once
#include <stdint.h>

int kfs_precedence(int nice, uint64_t slice_ns);
void kfs_precedence_again(void);
