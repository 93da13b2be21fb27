#pragma once
#include <stdint.h>

/* The memory of client threads, each identified by a pidfd and a thread id (thread.h). */
int kfs_client_write(int pidfd, int tid, uint64_t address, const char *data, uint64_t size);
int kfs_client_read(int pidfd, int tid, uint64_t address, char *to, uint64_t size);
int kfs_client_payload_one(int pidfd, int tid, char *map, uint64_t offset, uint64_t address, uint64_t size);
int kfs_client_payload(int pidfd, int tid, int memfd, char *map, uint64_t offset, const uint64_t *vectors, int count);
