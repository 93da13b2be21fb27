#pragma once
#include <stdint.h>

/* Namespaces of client threads. */
int kfs_namespace_inode(int tid, const char *name, uint64_t *inode);
int kfs_namespace_open(int tid, const char *name);
int kfs_namespace_parent(int ns);
int64_t kfs_namespace_owner(int user_ns);
int kfs_namespace_id(int ns, uint64_t *id);
int kfs_namespace_pid(int pid_ns, int pid);
