#ifndef KFS_CLIENT_H
#define KFS_CLIENT_H
#include <stdint.h>

/* Client threads; see thread.h. */
int kfs_thread_capability(int tid, int capability);

/* Small files and links below /proc. */
int kfs_proc_read(int tid, const char *name, char *buffer, int size);
int kfs_proc_link(int tid, const char *name, char *buffer, int size);
int kfs_proc_root(int tid, uint64_t *identity);

/* Namespaces. */
int kfs_namespace_inode(int tid, const char *name, uint64_t *inode);
int kfs_namespace_open(int tid, const char *name);
int kfs_namespace_parent(int ns);
int kfs_namespace_id(int ns, uint64_t *id);
int kfs_namespace_pid(int pid_ns, int pid);

/* Client memory. */
int kfs_client_write(int pidfd, int tid, uint64_t address, const char *data, uint64_t size);
int kfs_client_payload_one(int pidfd, int tid, char *map, uint64_t offset, uint64_t address, uint64_t size);
int kfs_client_payload(int pidfd, int tid, int memfd, char *map, uint64_t offset, const uint64_t *vectors, int count);

/* Pools. */
int kfs_backing_open(int fuse_fd, int fd);
int kfs_backing_close(int fuse_fd, int backing_id);
int kfs_map(int fd, uint64_t size, char **map);
int kfs_unmap(char *map, uint64_t size);
int kfs_store(int fd, uint64_t offset, const char *data, uint64_t size);

/* Gives free memory of the heap back to the system, where the C library can. */
void kfs_heap_trim(void);

/* Descriptors of clients. */
struct kfs_file {
    int flags;
    int domain;
    uint32_t mode;
    uint32_t major;
    uint32_t minor;
    uint64_t inode;
};

int kfs_file_look(int fd, struct kfs_file *file);
int kfs_file_seals(int fd);
int kfs_file_mount_id(int fd, uint64_t *id);
int kfs_file_mount(int fd, int tid, char *type, int size);

#endif
