#pragma once
#include <stdint.h>

/* The kernel's facts about a descriptor. */
struct kfs_file {
	int flags;
	int domain;
	uint32_t mode;
	uint32_t major;
	uint32_t minor;
	uint64_t inode;
};

/* A file of a FUSE mount: its device and its node id. */
struct kfs_file_node {
	uint32_t major;
	uint32_t minor;
	uint64_t nodeid;
};

int kfs_file_node(int tid, int fd, struct kfs_file_node *node);
int kfs_file_look(int fd, struct kfs_file *file);
int kfs_file_seals(int fd);
int kfs_file_mount_id(int fd, uint64_t *id);
int kfs_file_mount(int fd, int tid, char *type, int size);
