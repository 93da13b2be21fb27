/* Client threads, their memory and descriptors, and pools: system calls for `kdbusfs.host`. */

#define _GNU_SOURCE
#include "client.h"
#include "ownership.h"
#include "thread.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <malloc.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Kernel interfaces that are younger than the headers this may be compiled with. */
#define KFS_NS_GET_PARENT _IO(0xb7, 0x2)
#define KFS_NS_GET_PID_FROM_PIDNS _IOR(0xb7, 0x6, int)
#define KFS_NS_GET_ID _IOR(0xb7, 13, uint64_t)
#define KFS_NS_GET_MNTNS_ID _IOR(0xb7, 0x5, uint64_t)

#define KFS_SYS_STATMOUNT 457
#define KFS_STATMOUNT_FS_TYPE 0x20u
#define KFS_STATMOUNT_FS_SUBTYPE 0x100u
struct kfs_mnt_id_req {
    uint32_t size;
    uint32_t spare;
    uint64_t mnt_id;
    uint64_t param;
    uint64_t mnt_ns_id;
};
struct kfs_statmount {
    uint32_t size;
    uint32_t mnt_opts;
    uint64_t mask;
    uint32_t sb_dev_major, sb_dev_minor;
    uint64_t sb_magic;
    uint32_t sb_flags;
    uint32_t fs_type;
    uint64_t mnt_id, mnt_parent_id;
    uint32_t mnt_id_old, mnt_parent_id_old;
    uint64_t mnt_attr, mnt_propagation, mnt_peer_group, mnt_master, propagate_from;
    uint32_t mnt_root, mnt_point;
    uint64_t mnt_ns_id;
    uint32_t fs_subtype;
    uint32_t sb_source;
    char spare[512 - 128];
    char text[512];
};
_Static_assert(offsetof(struct kfs_statmount, text) == 512, "layout of struct statmount");

struct kfs_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define KFS_BACKING_OPEN _IOW(229, 1, struct kfs_backing_map)
#define KFS_BACKING_CLOSE _IOW(229, 2, uint32_t)

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x00001000U
#endif
#define KFS_STATX_MNT_ID_UNIQUE 0x00004000U

/* struct statx with the member that older headers lack. */
union kfs_statx {
    struct statx stx;
    struct {
        char before[0x90];
        uint64_t mnt_id;
    } more;
};

/* User addresses end below this on every 64-bit machine; above are the kernel and its gate pages. */
#define KFS_ADDRESS_END (1ull << 63)

#define KFS_BATCH 64

/* Whether `capability` is effective in the thread's own user namespace. */
int kfs_thread_capability(int tid, int capability)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3, .pid = tid };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

    /* 0 would mean the caller of capget(2): the daemon. */
    if (tid <= 0)
        return -ESRCH;
    memset(data, 0, sizeof(data));
    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    return (data[capability / 32].effective >> (capability % 32)) & 1;
}

static int proc_path(char *path, size_t size, int tid, const char *name)
{
    int n;

    if (tid <= 0)
        return -ESRCH;
    n = snprintf(path, size, "/proc/%d/%s", tid, name);
    return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

static int read_all(const char *path, char *buffer, int size)
{
    int fd, error = 0, done = 0;

    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while (done < size) {
        ssize_t n = read(fd, buffer + done, size - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            error = errno;
        if (n <= 0)
            break;
        done += n;
    }
    close(fd);
    return error ? -error : done;
}

/*
 * Bytes read; `size` of them mean that there may be more.
 *
 * For cmdline the kernel takes the lock of the process' memory map.  A process can hold that for as long as it likes,
 * by a page fault in a file whose system does not answer and a mmap in another thread.
 */
int kfs_proc_read(int tid, const char *name, char *buffer, int size)
{
    uint64_t ticket;
    char path[64];
    int r;

    r = proc_path(path, sizeof(path), tid, name);
    if (r < 0 || strcmp(name, "cmdline") != 0)
        return r < 0 ? r : read_all(path, buffer, size);
    r = kfs_access_begin(&ticket);
    if (r < 0)
        return r;
    r = read_all(path, buffer, size);
    return kfs_access_end(ticket) < 0 ? -ECANCELED : r;
}

int kfs_proc_link(int tid, const char *name, char *buffer, int size)
{
    char path[64];
    ssize_t n;
    int r;

    r = proc_path(path, sizeof(path), tid, name);
    if (r < 0)
        return r;
    n = readlink(path, buffer, size);
    return n < 0 ? -errno : (int)n;
}

/* Device, inode and mount of the root directory, without asking its file system. */
int kfs_proc_root(int tid, uint64_t *identity)
{
    unsigned int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
    union kfs_statx buf;
    char path[64];
    int r;

    r = proc_path(path, sizeof(path), tid, "root");
    if (r < 0)
        return r;
    memset(&buf, 0, sizeof(buf));
    if (statx(AT_FDCWD, path, flags, STATX_INO | STATX_MNT_ID | KFS_STATX_MNT_ID_UNIQUE, &buf.stx) < 0)
        return -errno;
    identity[0] = makedev(buf.stx.stx_dev_major, buf.stx.stx_dev_minor);
    identity[1] = buf.stx.stx_ino;
    identity[2] = buf.more.mnt_id;
    return 0;
}

/* From the link's text, "user:[N]": half the price of stat(2), which would make an inode first. */
int kfs_namespace_inode(int tid, const char *name, uint64_t *inode)
{
    char text[64], *end, *number;
    int n = kfs_proc_link(tid, name, text, sizeof(text) - 1);

    if (n < 0)
        return n;
    text[n] = 0;
    number = strchr(text, '[');
    if (!number)
        return -EINVAL;
    *inode = strtoull(number + 1, &end, 10);
    return *end == ']' ? 0 : -EINVAL;
}

int kfs_namespace_open(int tid, const char *name)
{
    char path[64];
    int fd, r;

    r = proc_path(path, sizeof(path), tid, name);
    if (r < 0)
        return r;
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int kfs_namespace_parent(int ns)
{
    int fd = ioctl(ns, KFS_NS_GET_PARENT);

    return fd < 0 ? -errno : fd;
}

/* An id that no other namespace ever has; -ENOTTY where the kernel gives none. */
int kfs_namespace_id(int ns, uint64_t *id)
{
    return ioctl(ns, KFS_NS_GET_ID, id) < 0 ? -errno : 0;
}

/* The number here of process `pid` of the pid namespace `pid_ns`. */
int kfs_namespace_pid(int pid_ns, int pid)
{
    int r = ioctl(pid_ns, KFS_NS_GET_PID_FROM_PIDNS, pid);

    return r < 0 ? -errno : r;
}

static int check_range(uint64_t address, uint64_t size)
{
    return address >= KFS_ADDRESS_END || size >= KFS_ADDRESS_END - address ? -EFAULT : 0;
}

static int check_alive(int pidfd, int tid)
{
    int r = kfs_thread_is_alive(pidfd, tid);

    if (r < 0)
        return r;
    return r ? 0 : -ESRCH;
}

int kfs_client_write(int pidfd, int tid, uint64_t address, const char *data, uint64_t size)
{
    struct iovec local = { .iov_base = (void *)data, .iov_len = size };
    struct iovec remote = { .iov_base = (void *)(uintptr_t)address, .iov_len = size };
    uint64_t ticket;
    ssize_t n;
    int error, r;

    r = check_range(address, size);
    if (r == 0)
        r = check_alive(pidfd, tid);
    if (r == 0)
        r = kfs_access_begin(&ticket);
    if (r < 0)
        return r;
    n = process_vm_writev(tid, &local, 1, &remote, 1, 0);
    error = errno;
    r = kfs_access_end(ticket);
    if (r < 0)
        return r;
    if (n < 0)
        return -error;
    return (uint64_t)n == size ? 0 : -EFAULT;
}

int kfs_store(int fd, uint64_t offset, const char *data, uint64_t size)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)offset);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENOSPC;
        offset += n;
        data += n;
        size -= n;
    }
    return 0;
}

static int store_zeros(int fd, uint64_t offset, uint64_t size)
{
    static const char zeros[4096];
    int r = 0;

    while (size > 0 && r == 0) {
        uint64_t part = size < sizeof(zeros) ? size : sizeof(zeros);

        r = kfs_store(fd, offset, zeros, part);
        offset += part;
        size -= part;
    }
    return r;
}

/* After what was read of a thread that a pidfd alone does not name: whether it was that one. */
static int check_again(int pidfd, int tid)
{
    return kfs_thread_is_of_process(pidfd) ? check_alive(pidfd, tid) : 0;
}

static int read_batch(int tid, const struct iovec *local, const struct iovec *remote, int count, size_t total)
{
    uint64_t ticket;
    ssize_t n;
    int error, r;

    if (count == 0)
        return 0;
    r = kfs_access_begin(&ticket);
    if (r < 0)
        return r;
    n = process_vm_readv(tid, local, count, remote, count, 0);
    error = errno;
    r = kfs_access_end(ticket);
    if (r < 0)
        return r;
    if (n < 0)
        return -error;
    return (size_t)n == total ? 0 : -EFAULT;
}

/* One vector of `size` bytes, to `offset` of what is mapped at `map`. */
int kfs_client_payload_one(int pidfd, int tid, char *map, uint64_t offset, uint64_t address, uint64_t size)
{
    struct iovec local = { map + offset, size };
    struct iovec remote = { (void *)(uintptr_t)address, size };
    int r = check_alive(pidfd, tid);

    if (r == 0)
        r = check_range(address, size);
    if (r == 0)
        r = read_batch(tid, &local, &remote, 1, size);
    return r < 0 ? r : check_again(pidfd, tid);
}

/*
 * `vectors` holds `count` pairs of address and size; address 0 stands for zero bytes.  `map` is where `memfd` is
 * mapped from its start on, as far as the payload goes.
 *
 * Zero bytes go through pwrite: a store through the mapping would be fatal to the daemon when the kernel cannot
 * provide the page, while process_vm_readv and pwrite report it.  They go first: once the client's memory is
 * touched others may own the core (ownership.h), and the number `memfd` may mean another file.
 */
int kfs_client_payload(int pidfd, int tid, int memfd, char *map, uint64_t offset, const uint64_t *vectors, int count)
{
    struct iovec local[KFS_BATCH], remote[KFS_BATCH];
    uint64_t at = offset;
    size_t total = 0;
    int i, n = 0, r;

    r = check_alive(pidfd, tid);
    for (i = 0; i < count && r == 0; i++) {
        if (vectors[2 * i] == 0)
            r = store_zeros(memfd, at, vectors[2 * i + 1]);
        at += vectors[2 * i + 1];
    }
    for (i = 0; i < count && r == 0; i++) {
        uint64_t address = vectors[2 * i], size = vectors[2 * i + 1];

        if (address != 0) {
            r = check_range(address, size);
            if (r < 0)
                break;
            /* The kernel moves at most INT_MAX bytes, rounded down to pages, in one call. */
            if (n == KFS_BATCH || total + size > INT_MAX / 2) {
                r = read_batch(tid, local, remote, n, total);
                n = 0;
                total = 0;
            }
            local[n].iov_base = map + offset;
            local[n].iov_len = size;
            remote[n].iov_base = (void *)(uintptr_t)address;
            remote[n].iov_len = size;
            total += size;
            n++;
        }
        offset += size;
    }
    if (r == 0)
        r = read_batch(tid, local, remote, n, total);
    return r < 0 ? r : check_again(pidfd, tid);
}

void kfs_heap_trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

int kfs_backing_open(int fuse_fd, int fd)
{
    struct kfs_backing_map map = { .fd = fd };
    int id = ioctl(fuse_fd, KFS_BACKING_OPEN, &map);

    return id < 0 ? -errno : id;
}

int kfs_backing_close(int fuse_fd, int backing_id)
{
    uint32_t id = backing_id;

    return ioctl(fuse_fd, KFS_BACKING_CLOSE, &id) < 0 ? -errno : 0;
}

int kfs_map(int fd, uint64_t size, char **map)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED)
        return -errno;
    *map = p;
    return 0;
}

int kfs_unmap(char *map, uint64_t size)
{
    return munmap(map, size) < 0 ? -errno : 0;
}

/*
 * What can be told of a descriptor without its file system having a say: AT_STATX_DONT_SYNC makes FUSE answer from
 * what the kernel knows.  `domain` is that of a socket, -1 for anything else, O_PATH descriptors included.
 */
int kfs_file_look(int fd, struct kfs_file *file)
{
    unsigned int flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
    socklen_t length = sizeof(file->domain);
    struct statx stx;
    int r;

    r = fcntl(fd, F_GETFL);
    if (r < 0)
        return -errno;
    file->flags = r;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &file->domain, &length) < 0)
        file->domain = -1;
    memset(&stx, 0, sizeof(stx));
    if (statx(fd, "", flags, STATX_TYPE | STATX_INO, &stx) < 0) {
        /* A FUSE file system that does not let us in: only the device is told then. */
        memset(&stx, 0, sizeof(stx));
        if (statx(fd, "", flags, 0, &stx) < 0)
            return -errno;
        stx.stx_mode = 0;
        stx.stx_ino = 0;
    }
    file->mode = stx.stx_mode;
    file->major = stx.stx_dev_major;
    file->minor = stx.stx_dev_minor;
    file->inode = stx.stx_ino;
    return 0;
}

int kfs_file_seals(int fd)
{
    int r = fcntl(fd, F_GET_SEALS);

    return r < 0 ? -errno : r;
}

/* The mount that `fd` was opened on, numbered as in mountinfo; fdinfo would tell it too, but an epoll's takes its lock. */
int kfs_file_mount_id(int fd, uint64_t *id)
{
    union kfs_statx buf;

    memset(&buf, 0, sizeof(buf));
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &buf.stx) < 0)
        return -errno;
    *id = buf.more.mnt_id;
    return buf.stx.stx_mask & STATX_MNT_ID ? 0 : -ENOSYS;
}

/*
 * The type of the mount that `fd` was opened on, as /proc/PID/mountinfo writes it, looked for in the mount namespace
 * of thread `tid`.  1: known in full; 0: the subtype was not told.
 */
int kfs_file_mount(int fd, int tid, char *type, int size)
{
    struct kfs_mnt_id_req req = { .size = sizeof(req) };
    struct kfs_statmount buf, *sm = &buf;
    union kfs_statx stx;
    int known, n, ns, r;

    memset(&stx, 0, sizeof(stx));
    memset(&buf, 0, sizeof(buf));
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, KFS_STATX_MNT_ID_UNIQUE, &stx.stx) < 0)
        return -errno;
    if (!(stx.stx.stx_mask & KFS_STATX_MNT_ID_UNIQUE))
        return -ENOSYS;
    ns = kfs_namespace_open(tid, "ns/mnt");
    if (ns < 0)
        return ns;
    r = ioctl(ns, KFS_NS_GET_MNTNS_ID, &req.mnt_ns_id) < 0 ? -errno : 0;
    close(ns);
    if (r < 0)
        return r;
    req.mnt_id = stx.more.mnt_id;
    req.param = KFS_STATMOUNT_FS_TYPE | KFS_STATMOUNT_FS_SUBTYPE;
    if (syscall(KFS_SYS_STATMOUNT, &req, sm, sizeof(*sm), 0) < 0)
        return -errno;
    sm->text[sizeof(sm->text) - 1] = 0;
    if (!(sm->mask & KFS_STATMOUNT_FS_TYPE) || sm->fs_type >= sizeof(sm->text))
        return -ENOSYS;
    known = !!(sm->mask & KFS_STATMOUNT_FS_SUBTYPE) && sm->fs_subtype < sizeof(sm->text);
    if (known && sm->text[sm->fs_subtype])
        n = snprintf(type, size, "%s.%s", sm->text + sm->fs_type, sm->text + sm->fs_subtype);
    else
        n = snprintf(type, size, "%s", sm->text + sm->fs_type);
    return n < 0 || n >= size ? -ENAMETOOLONG : known;
}
