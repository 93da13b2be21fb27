#pragma once
#include <stdint.h>

int kfs_copy(char *map, uint64_t offset, const char *data, uint64_t size);
