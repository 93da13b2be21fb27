#pragma once
#include <stddef.h>
#include <stdint.h>

/* Small files and links below /proc/TID. */
int kfs_proc_path(char *path, size_t size, int tid, const char *name);
int kfs_proc_read(int tid, const char *name, char *buffer, int size);
int kfs_proc_link(int tid, const char *name, char *buffer, int size);
int kfs_proc_root(int tid, uint64_t *identity);
