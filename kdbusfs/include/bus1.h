/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bus1.h - the bus1 ioctl interface of October 2016, and a reference for those who program against it.
 *
 * How it hangs together
 *
 *   Each open(2) of the file makes a peer: a queue of messages, a pool that they lie in, and a table of handles. A
 *   peer has no name and belongs to no process; whoever has the descriptor acts for it. Peers get to each other by
 *   handles alone.
 *
 *   A node is an object of one peer, its owner. A handle is a reference to a node: who has one may send messages to
 *   the node, which go to its owner's queue, and pass it on. Nothing else gives access, and nothing takes it back but
 *   the destruction of the node.
 *
 *     fd = open(".../bus1", O_RDWR)                             -> a peer
 *     pool = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0)     -> where its messages will lie
 *     BUS1_CMD_HANDLE_TRANSFER to the descriptor of another peer gives that its first handle
 *
 *   Messages lie in slices of the pool. RECV tells the offset of one, and it stays until BUS1_CMD_SLICE_RELEASE.
 *
 *   poll(2): POLLIN while something is queued, POLLOUT always; POLLHUP alone after BUS1_CMD_PEER_DISCONNECT.
 *
 * Handle ids
 *
 *   Each peer has ids of its own. An id with both flags below clear is the owner's to choose: naming one that is not
 *   in its table, as a destination, as a handle to send or transfer, or in NODES_DESTROY, makes a node. All other ids
 *   are given by the bus, and never twice. A peer has one id for a node, and counts references to it: each time that
 *   a command of its own tells it the id is one, HANDLE_RELEASE gives one back, and with the last the id is
 *   forgotten.
 *
 * Order
 *
 *   All messages, destructions and releases have one order, and every peer sees its part of it in that order.
 *
 * Rules for all commands
 *
 *   0 is success. Any command can fail with ESHUTDOWN (disconnected), EFAULT (the argument cannot be read or
 *   written), EINVAL (unknown flags); a number that is not below gives ENOTTY. None blocks. On failure nothing has
 *   happened.
 */

/* The guard of the reference's header, so that a program which gets at both sees the declarations once. */
#ifndef _UAPI_LINUX_BUS1_H
#define _UAPI_LINUX_BUS1_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Enumerators of more than 31 bits are no ISO C, and wanted here. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif

#define BUS1_IOCTL_MAGIC    0x96
#define BUS1_HANDLE_INVALID ((__u64)-1) /* as dst_fd: the peer itself; in a slice: the node was destroyed before */
#define BUS1_OFFSET_INVALID ((__u64)-1) /* as max_offset: any; as offset: there is no slice */
#define BUS1_FD_MAX         (256)       /* descriptors of one message */

/*
 * Bits of a handle's id.
 */
enum {
	BUS1_HANDLE_FLAG_MANAGED = 1ULL << 0, /* the id was given by the bus */
	BUS1_HANDLE_FLAG_REMOTE  = 1ULL << 1, /* the node is somebody else's */
};

enum {
	BUS1_PEER_FLAG_WANT_SECCTX = 1ULL << 0, /* messages bring the security context of their sender */
};

enum {
	BUS1_PEER_RESET_FLAG_FLUSH      = 1ULL << 0, /* destroy all nodes, release all handles, empty queue and pool */
	BUS1_PEER_RESET_FLAG_FLUSH_SEED = 1ULL << 1, /* drop the seed */
};

/*
 * BUS1_CMD_PEER_QUERY tells flags and limits; BUS1_CMD_PEER_RESET sets those that are not all ones, then flushes.
 *   EINVAL  another bit in peer_flags, a limit above INT_MAX
 */
struct bus1_cmd_peer_reset {
	__u64 flags;              /* QUERY: 0; RESET: BUS1_PEER_RESET_FLAG_* */
	__u64 peer_flags;         /* BUS1_PEER_FLAG_* */
	__u32 max_slices;         /* of messages queued or not given back */
	__u32 max_handles;        /* references, and places for some in queued messages */
	__u32 max_inflight_bytes; /* kept, not enforced */
	__u32 max_inflight_fds;   /* kept, not enforced */
} __attribute__((__aligned__(8)));

/*
 * BUS1_CMD_HANDLE_TRANSFER: one reference for another peer, of which the caller has a descriptor.
 *   EBADF       no open descriptor
 *   EOPNOTSUPP  no peer of this mount
 *   ESHUTDOWN   either is disconnected
 *   ENXIO       no such handle
 *   EDQUOT      a limit of either
 */
struct bus1_cmd_handle_transfer {
	__u64 flags;      /* 0 */
	__u64 src_handle; /* of the caller's */
	__u64 dst_fd;     /* or all ones for the caller itself */
	__u64 dst_handle; /* out: the id that the other peer has; BUS1_HANDLE_INVALID for a destroyed node */
} __attribute__((__aligned__(8)));

enum {
	BUS1_NODES_DESTROY_FLAG_RELEASE_HANDLES = 1ULL << 0, /* and give back one reference of each */
};

/*
 * BUS1_CMD_NODES_DESTROY: the end of nodes, all at one time. Their owner and whoever has a handle is told.
 *   ENXIO     no such handle
 *   ENOTUNIQ  named twice
 *   EREMOTE   somebody else's
 *   ESTALE    destroyed already
 *   EDQUOT    a limit
 */
struct bus1_cmd_nodes_destroy {
	__u64 flags;
	__u64 ptr_nodes; /* array of u64 */
	__u64 n_nodes;
} __attribute__((__aligned__(8)));

enum {
	BUS1_SEND_FLAG_CONTINUE = 1ULL << 0, /* what is wrong with one destination does not fail the rest */
	BUS1_SEND_FLAG_SEED     = 1ULL << 1, /* no destinations: the message becomes the caller's seed */
};

/*
 * BUS1_CMD_SEND: a message for the owners of all destinations, or none.
 *   EMSGSIZE    too many destinations, vectors, descriptors or bytes, or more than a pool holds
 *   EBADF       a descriptor
 *   EOPNOTSUPP  a descriptor of a bus or of a socket
 *   ENXIO       no such handle
 *   ENOTUNIQ    a destination twice
 *   ESHUTDOWN   a destination is gone
 *   EDQUOT      a limit of a receiver or of the caller
 *   EXFULL      no room in a pool
 */
struct bus1_cmd_send {
	__u64 flags;
	__u64 ptr_destinations; /* array of u64 */
	__u64 ptr_errors;       /* null, or with CONTINUE an array of n_destinations: 0 or the negative errno of each */
	__u64 n_destinations;
	__u64 ptr_vecs;         /* array of struct iovec: the bytes */
	__u64 n_vecs;
	__u64 ptr_handles;      /* array of u64 */
	__u64 n_handles;
	__u64 ptr_fds;          /* array of int */
	__u64 n_fds;
} __attribute__((__aligned__(8)));

enum {
	BUS1_RECV_FLAG_PEEK        = 1ULL << 0, /* leave it where it is */
	BUS1_RECV_FLAG_SEED        = 1ULL << 1, /* the seed, not the queue */
	BUS1_RECV_FLAG_INSTALL_FDS = 1ULL << 2, /* let the caller have the descriptors, else their places hold -1 */
};

enum {
	BUS1_MSG_NONE,
	BUS1_MSG_DATA,
	BUS1_MSG_NODE_DESTROY, /* a node that the peer has a handle to was destroyed */
	BUS1_MSG_NODE_RELEASE, /* nobody else has a handle to a node of the peer's any more */
};

enum {
	BUS1_MSG_FLAG_HAS_SECCTX = 1ULL << 0,
	BUS1_MSG_FLAG_CONTINUE   = 1ULL << 1, /* the next in the queue is of the same SEND or destruction */
};

/*
 * BUS1_CMD_RECV: the front of the queue.
 *   EAGAIN           nothing is queued
 *   ERANGE           its slice ends behind max_offset
 *   EMFILE and such  the descriptors cannot be installed; the message stays
 *
 * A slice holds, each at the next multiple of 8: n_bytes; n_handles ids, a reference of each; n_fds int numbers; the
 * security context, n_secctx bytes.
 */
struct bus1_cmd_recv {
	__u64 flags;
	__u64 max_offset; /* how much of the pool is mapped */
	struct {
		__u64 type;        /* BUS1_MSG_* */
		__u64 flags;       /* BUS1_MSG_FLAG_* */
		__u64 destination; /* the handle that it is for or about */
		__u32 uid;         /* of the sender, when it sent; all ones for notifications */
		__u32 gid;
		__u32 pid;         /* 0 where the receiver cannot see it */
		__u32 tid;
		__u64 offset;      /* of the slice */
		__u64 n_bytes;
		__u64 n_handles;
		__u64 n_fds;
		__u64 n_secctx;
	} __attribute__((__aligned__(8))) msg;
} __attribute__((__aligned__(8)));

/*
 * PEER_DISCONNECT: takes no argument; where that cannot be carried (kdbusfs), a pointer to 0.
 * HANDLE_RELEASE: the id; ENXIO, EBUSY for the last reference to a live node of one's own.
 * SLICE_RELEASE: the offset; ENXIO.
 */
enum {
	BUS1_CMD_PEER_DISCONNECT = _IOWR(BUS1_IOCTL_MAGIC, 0x00, __u64),
	BUS1_CMD_PEER_QUERY      = _IOWR(BUS1_IOCTL_MAGIC, 0x01, struct bus1_cmd_peer_reset),
	BUS1_CMD_PEER_RESET      = _IOWR(BUS1_IOCTL_MAGIC, 0x02, struct bus1_cmd_peer_reset),
	BUS1_CMD_HANDLE_RELEASE  = _IOWR(BUS1_IOCTL_MAGIC, 0x10, __u64),
	BUS1_CMD_HANDLE_TRANSFER = _IOWR(BUS1_IOCTL_MAGIC, 0x11, struct bus1_cmd_handle_transfer),
	BUS1_CMD_NODES_DESTROY   = _IOWR(BUS1_IOCTL_MAGIC, 0x20, struct bus1_cmd_nodes_destroy),
	BUS1_CMD_SLICE_RELEASE   = _IOWR(BUS1_IOCTL_MAGIC, 0x30, __u64),
	BUS1_CMD_SEND            = _IOWR(BUS1_IOCTL_MAGIC, 0x40, struct bus1_cmd_send),
	BUS1_CMD_RECV            = _IOWR(BUS1_IOCTL_MAGIC, 0x50, struct bus1_cmd_recv),
};

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif
