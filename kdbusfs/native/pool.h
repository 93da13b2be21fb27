#pragma once
#include <stdint.h>

int kfs_copy(char *map, int64_t offset, const char *data, int64_t size);
