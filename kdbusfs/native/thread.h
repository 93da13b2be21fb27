#ifndef KFS_THREAD_H
#define KFS_THREAD_H
#include <stdint.h>

/* A client's thread: a pidfd that kfs_thread_open() has returned, together with the thread's id. */
int kfs_thread_open(int tid);
int kfs_thread_is_alive(int pidfd, int tid);
int kfs_thread_is_of_process(int pidfd);
int kfs_thread_ids(int pidfd, int tid, uint32_t *ids);
int kfs_thread_take(int pidfd, int tid, int fd);

#endif
