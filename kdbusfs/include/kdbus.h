/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus.h - the kdbus ioctl interface, version 3 of January 2015, and a reference for those who program against it.
 *
 * How it hangs together
 *
 *   A domain is one mount. Its root has a file `control`; a bus is a directory beside it; in that stand endpoints, which
 *   are files: `bus`, the default one, and custom ones with a policy of their own.
 *
 *     open(".../control")            + KDBUS_CMD_BUS_MAKE       -> the descriptor owns a bus; closing it ends the bus
 *     open(".../1000-mine/bus")      + KDBUS_CMD_ENDPOINT_MAKE  -> the descriptor owns a custom endpoint
 *     open(".../1000-mine/bus")      + KDBUS_CMD_HELLO          -> the descriptor is a connection
 *
 *   A connection has an id that is never used again on its bus, and a pool: memory that the connection maps read-only
 *   with mmap(fd) after KDBUS_CMD_HELLO and into which everything that it receives is put. Commands answer with an offset
 *   into the pool; what lies there is a slice, stays as it is until KDBUS_CMD_FREE is told its offset, and counts
 *   against the pool until then.
 *
 *   poll(2) on a connection: POLLIN while messages are queued, POLLOUT always, POLLERR and POLLHUP when it is dead.
 *   No command blocks but KDBUS_CMD_SEND with KDBUS_SEND_SYNC_REPLY.
 *
 * Rules for all commands
 *
 *   - The argument is 8-byte aligned and readable memory, else EFAULT. Its first member is its size in bytes with all items:
 *     less than the struct is EINVAL, more than the command's limit EMSGSIZE.
 *   - `flags` outside of those given here: EINVAL. `kernel_flags` receives the mask of flags that the command knows,
 *     with KDBUS_FLAG_KERNEL, whether the call then succeeds or fails with that EINVAL. KDBUS_CMD_HELLO and
 *     KDBUS_CMD_NAME_ACQUIRE leave the caller's value there when they succeed.
 *   - Behind the fixed part come items, each at a multiple of 8 bytes from there: see struct kdbus_item. An item that does
 *     not fit or has a payload of the wrong shape: EINVAL.
 *   - 0 is success. These errno can come from any command on an endpoint file:
 *       ENOTTY       not a command of this descriptor in its state (connection, endpoint owner, neither yet)
 *       ECONNRESET   the connection is dead: BYEBYE was called, or its endpoint or bus is gone
 *       EOPNOTSUPP   not a command of this kind of connection (activator, policy holder, monitor)
 *       EFAULT, EINVAL, EMSGSIZE   as above
 *     The lists below give what a command adds.
 *   - Everything is 64-bit clean: 32-bit programs use the same layouts and numbers.
 */

/* The guard of the reference's header, so that a program which gets at both sees the declarations once. */
#ifndef _KDBUS_UAPI_H_
#define _KDBUS_UAPI_H_

#include <linux/ioctl.h>
#include <linux/types.h>

/* Open arrays in unions, unnamed unions and 64-bit enumerators are no ISO C, nor ISO C++, and wanted here. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif

#define KDBUS_IOCTL_MAGIC 0x95

/*
 * Ids. A connection's own id is 1 or more.
 */
#define KDBUS_SRC_ID_KERNEL    (0)          /* src_id of notifications */
#define KDBUS_DST_ID_NAME      (0)          /* dst_id: the destination is given by KDBUS_ITEM_DST_NAME */
#define KDBUS_DST_ID_BROADCAST (~0ULL)      /* dst_id: everybody whose matches accept the message */
#define KDBUS_MATCH_ID_ANY     (~0ULL)      /* in match rules: any id */

/* In every mask written to kernel_flags; passing it in flags is EINVAL. */
#define KDBUS_FLAG_KERNEL      (1ULL << 63)


/* ---- Items ------------------------------------------------------------------------------------------------------ */

/*
 * Types of items. "in": programs pass it in a command or message; "out": it is found in the pool.
 * Where a payload struct has an open array behind it, the item's size tells how long that is.
 */
enum kdbus_item_type {
	_KDBUS_ITEM_NULL,
	_KDBUS_ITEM_USER_BASE,

	/* in, message. struct kdbus_vec: payload bytes at `address` of the sender's memory. 0 < size; all vectors of a message
	 * together 2 MiB at most (EMSGSIZE). Address 0 stands for `size` zero bytes, which are not stored anywhere. */
	KDBUS_ITEM_PAYLOAD_VEC = _KDBUS_ITEM_USER_BASE,
	/* out, message. struct kdbus_vec: payload bytes at `offset` from the start of the pool (not of the message);
	 * offset ~0 for zero bytes. One for each PAYLOAD_VEC that was sent, in order. */
	KDBUS_ITEM_PAYLOAD_OFF,
	/* in and out, message. struct kdbus_memfd: payload in a file of memfd_create(2) that carries the seals SHRINK, GROW, WRITE
	 * and SEAL. Any length, nothing is copied, may be broadcast. Keeps its place among the other payload items. */
	KDBUS_ITEM_PAYLOAD_MEMFD,
	/* in and out, message. Array of int: descriptors for the receiver, once in a message, up to 253. Only to a
	 * connection with KDBUS_HELLO_ACCEPT_FD, never in a broadcast, no AF_UNIX sockets or endpoint files. */
	KDBUS_ITEM_FDS,
	/* in, KDBUS_CMD_SEND. int: a descriptor that ends the wait of a synchronous SEND once it is readable (ECANCELED). */
	KDBUS_ITEM_CANCEL_FD,
	/* in, BUS_MAKE; out, HELLO. struct kdbus_bloom_parameter. */
	KDBUS_ITEM_BLOOM_PARAMETER,
	/* in, message with KDBUS_MSG_SIGNAL. struct kdbus_bloom_filter. Never delivered. */
	KDBUS_ITEM_BLOOM_FILTER,
	/* in, MATCH_ADD. Bytes: one mask of the bus' bloom size for each generation. Accepts a message whose filter has
	 * every bit of the mask: an all-zero mask accepts every filter. The generation used is that of the filter, or
	 * the last mask when there are fewer. */
	KDBUS_ITEM_BLOOM_MASK,
	/* in and out, message. String: the destination's well-known name. */
	KDBUS_ITEM_DST_NAME,
	/* in, BUS_MAKE and ENDPOINT_MAKE; out, BUS_CREATOR_INFO. String of up to 63 characters: letters, digits, '_',
	 * and inside it also '-' and '.'. Begins with the maker's effective uid and '-'. */
	KDBUS_ITEM_MAKE_NAME,
	/* in, CONN_UPDATE: new value of attach_flags_send, u64. BUS_MAKE: metadata of the maker that BUS_CREATOR_INFO may show. */
	KDBUS_ITEM_ATTACH_FLAGS_SEND,
	/* in, CONN_UPDATE: new value of attach_flags_recv, u64. BUS_MAKE: what each connection has to be willing to send. */
	KDBUS_ITEM_ATTACH_FLAGS_RECV,
	/* in, MATCH_ADD. u64: accepts messages of the connection with this id; KDBUS_MATCH_ID_ANY of any. */
	KDBUS_ITEM_ID,
	/* in. String: a well-known name. NAME_ACQUIRE, NAME_RELEASE, CONN_INFO: the name meant. MATCH_ADD: accepts messages of
	 * its owner. HELLO of an activator or policy holder, CONN_UPDATE, ENDPOINT_*: begins a policy entry. */
	KDBUS_ITEM_NAME,

	/* out: metadata, in messages and in CONN_INFO and BUS_CREATOR_INFO. Type KDBUS_ITEM_TIMESTAMP + n belongs to
	 * attach flag 1 << n. A kind that cannot be had is missing. Ids are those of the reader's namespaces. */
	_KDBUS_ITEM_ATTACH_BASE = 0x1000,
	KDBUS_ITEM_TIMESTAMP = _KDBUS_ITEM_ATTACH_BASE, /* struct kdbus_timestamp; messages only */
	KDBUS_ITEM_CREDS,            /* struct kdbus_creds */
	KDBUS_ITEM_PIDS,             /* struct kdbus_pids */
	KDBUS_ITEM_AUXGROUPS,        /* array of u32: supplementary groups; may be empty */
	KDBUS_ITEM_OWNED_NAME,       /* struct kdbus_name; one for each name owned, also in lists */
	KDBUS_ITEM_TID_COMM,         /* string: comm of the thread.     These four are under the sender's control:      */
	KDBUS_ITEM_PID_COMM,         /* string: comm of the process.    good for a log, never for a decision.            */
	KDBUS_ITEM_EXE,              /* string: path of the executable; missing where the reader has another root        */
	KDBUS_ITEM_CMDLINE,          /* string: the first word of the command line                                       */
	KDBUS_ITEM_CGROUP,           /* string: path of the control group */
	KDBUS_ITEM_CAPS,             /* struct kdbus_caps; missing where the reader has another user namespace */
	KDBUS_ITEM_SECLABEL,         /* string: label of the security module */
	KDBUS_ITEM_AUDIT,            /* struct kdbus_audit */
	KDBUS_ITEM_CONN_DESCRIPTION, /* string for debugging; in HELLO: in (the rule of MAKE_NAME, without the uid) */

	/* in. struct kdbus_policy_access: a right to the name of the NAME item before it. */
	_KDBUS_ITEM_POLICY_BASE = 0x2000,
	KDBUS_ITEM_POLICY_ACCESS = _KDBUS_ITEM_POLICY_BASE,

	/* out: the one item of a notification (src_id KDBUS_SRC_ID_KERNEL). The first five are broadcast to those whose
	 * matches ask; in, MATCH_ADD: rules for them, in which KDBUS_MATCH_ID_ANY is a wildcard and flags are ignored. */
	_KDBUS_ITEM_KERNEL_BASE = 0x8000,
	KDBUS_ITEM_NAME_ADD = _KDBUS_ITEM_KERNEL_BASE, /* struct kdbus_notify_name_change: the name has got an owner, old_id is 0 */
	KDBUS_ITEM_NAME_REMOVE,      /* struct kdbus_notify_name_change: it has no owner any more, new_id is 0 */
	KDBUS_ITEM_NAME_CHANGE,      /* struct kdbus_notify_name_change: it has changed hands */
	KDBUS_ITEM_ID_ADD,           /* struct kdbus_notify_id_change: a connection has appeared */
	KDBUS_ITEM_ID_REMOVE,        /* struct kdbus_notify_id_change: a connection is gone */
	KDBUS_ITEM_REPLY_TIMEOUT,    /* empty; to the requester: no reply before timeout_ns. cookie_reply: of the request */
	KDBUS_ITEM_REPLY_DEAD,       /* empty; to the requester: who should have answered is gone or dropped the request */
};

/* KDBUS_ITEM_ID_ADD, KDBUS_ITEM_ID_REMOVE, and half of a name's change. */
struct kdbus_notify_id_change {
	__u64 id;    /* the connection */
	__u64 flags; /* of its HELLO; in struct kdbus_notify_name_change KDBUS_NAME_* flags */
};

/* KDBUS_ITEM_NAME_ADD, _REMOVE, _CHANGE. As a rule without a name: all names. */
struct kdbus_notify_name_change {
	struct kdbus_notify_id_change old_id;
	struct kdbus_notify_id_change new_id;
	char name[0]; /* ends with a NUL; bytes behind that are padding */
};

/* KDBUS_ITEM_CREDS. ~0 means "none". */
struct kdbus_creds {
	__u32 uid;
	__u32 euid;
	__u32 suid;
	__u32 fsuid;
	__u32 gid;
	__u32 egid;
	__u32 sgid;
	__u32 fsgid;
};

/* KDBUS_ITEM_PIDS. 0 for what the reader's pid namespace does not show. */
struct kdbus_pids {
	__u64 pid;
	__u64 tid;
	__u64 ppid;
};

/* KDBUS_ITEM_CAPS: the inheritable, permitted, effective and bounding sets, each (last_cap / 32 + 1) words. */
struct kdbus_caps {
	__u32 last_cap; /* highest capability that exists */
	__u32 caps[0];
};

/* KDBUS_ITEM_AUDIT. ~0 means "unset". */
struct kdbus_audit {
	__u32 sessionid;
	__u32 loginuid;
};

/* KDBUS_ITEM_TIMESTAMP: the moment of SEND. The same for all who receive a broadcast. */
struct kdbus_timestamp {
	__u64 seqnum;       /* counts the messages of the domain */
	__u64 monotonic_ns; /* CLOCK_MONOTONIC */
	__u64 realtime_ns;  /* CLOCK_REALTIME */
};

/* KDBUS_ITEM_PAYLOAD_VEC, KDBUS_ITEM_PAYLOAD_OFF. */
struct kdbus_vec {
	__u64 size; /* bytes, 1 or more */
	union {
		__u64 address; /* PAYLOAD_VEC: in the sender's memory */
		__u64 offset;  /* PAYLOAD_OFF: from the start of the receiver's pool */
	};
};

/* KDBUS_ITEM_BLOOM_PARAMETER: agreed on by all programs of a bus; the bus itself only checks lengths. */
struct kdbus_bloom_parameter {
	__u64 size;   /* bytes of a filter: 8 to 4096, a multiple of 8 */
	__u64 n_hash; /* bits set for each element: 1 or more */
};

/* KDBUS_ITEM_BLOOM_FILTER. */
struct kdbus_bloom_filter {
	__u64 generation; /* which mask of a match it is compared with */
	__u64 data[0]; /* exactly the bus' bloom size */
};

/* KDBUS_ITEM_PAYLOAD_MEMFD. */
struct kdbus_memfd {
	__u64 start; /* first byte of the payload in the file; need not be aligned */
	__u64 size;  /* bytes, 1 or more; start + size must lie in the file */
	int fd;      /* receiver: close-on-exec and the receiver's to close; -1 with PEEK; -errno when it was not installed */
	__u32 __pad;
};

/* KDBUS_ITEM_OWNED_NAME. */
struct kdbus_name {
	__u64 flags; /* KDBUS_NAME_* of the owner */
	char name[0];
};

/* KDBUS_ITEM_POLICY_ACCESS. */
struct kdbus_policy_access {
	__u64 type;   /* enum kdbus_policy_access_type */
	__u64 access; /* enum kdbus_policy_type */
	__u64 id;     /* uid or gid; ignored for WORLD */
};

/* To whom a policy item gives its right. The highest right of all items that fit counts. */
enum kdbus_policy_access_type {
	_KDBUS_POLICY_ACCESS_NULL,
	KDBUS_POLICY_ACCESS_USER,  /* effective uid */
	KDBUS_POLICY_ACCESS_GROUP, /* effective gid or a supplementary group */
	KDBUS_POLICY_ACCESS_WORLD,
};

/* Rights to a name; each includes those before it. */
enum kdbus_policy_type {
	KDBUS_POLICY_SEE = 0, /* custom endpoints only: that it exists */
	KDBUS_POLICY_TALK,    /* send to its owner, receive the owner's signals */
	KDBUS_POLICY_OWN,     /* acquire it */
};

/*
 * One item. `size` is exact: 16 and the payload; the next item begins at the next multiple of 8. The last one of a list
 * need not be padded.
 */
struct kdbus_item {
	__u64 size;
	__u64 type; /* enum kdbus_item_type */
	union {
		__u8 data[0];
		__u32 data32[0];
		__u64 data64[0];
		char str[0];

		__u64 id;
		struct kdbus_vec vec;
		struct kdbus_creds creds;
		struct kdbus_pids pids;
		struct kdbus_audit audit;
		struct kdbus_caps caps;
		struct kdbus_timestamp timestamp;
		struct kdbus_name name;
		struct kdbus_bloom_parameter bloom_parameter;
		struct kdbus_bloom_filter bloom_filter;
		struct kdbus_memfd memfd;
		int fds[0];
		struct kdbus_notify_name_change name_change;
		struct kdbus_notify_id_change id_change;
		struct kdbus_policy_access policy_access;
	};
};

/* What KDBUS_CMD_HELLO leaves in the pool: one KDBUS_ITEM_BLOOM_PARAMETER. */
struct kdbus_item_list {
	__u64 size; /* bytes, of all */
	struct kdbus_item items[0];
};


/* ---- Metadata --------------------------------------------------------------------------------------------------- */

/*
 * Which metadata go with a message: those that the sender agrees to (attach_flags_send) and the receiver asks for
 * (attach_flags_recv), of which the mount's attach_flags_mask lets through what it names.
 * Any other bit is EINVAL; _KDBUS_ATTACH_ANY counts as all where this header says so.
 */
enum kdbus_attach_flags {
	KDBUS_ATTACH_TIMESTAMP        = 1ULL << 0,
	KDBUS_ATTACH_CREDS            = 1ULL << 1,
	KDBUS_ATTACH_PIDS             = 1ULL << 2,
	KDBUS_ATTACH_AUXGROUPS        = 1ULL << 3,
	KDBUS_ATTACH_NAMES            = 1ULL << 4,
	KDBUS_ATTACH_TID_COMM         = 1ULL << 5,
	KDBUS_ATTACH_PID_COMM         = 1ULL << 6,
	KDBUS_ATTACH_EXE              = 1ULL << 7,
	KDBUS_ATTACH_CMDLINE          = 1ULL << 8,
	KDBUS_ATTACH_CGROUP           = 1ULL << 9,
	KDBUS_ATTACH_CAPS             = 1ULL << 10,
	KDBUS_ATTACH_SECLABEL         = 1ULL << 11,
	KDBUS_ATTACH_AUDIT            = 1ULL << 12,
	KDBUS_ATTACH_CONN_DESCRIPTION = 1ULL << 13,
	_KDBUS_ATTACH_ALL             = (1ULL << 14) - 1,
	_KDBUS_ATTACH_ANY             = ~0ULL
};


/* ---- Messages --------------------------------------------------------------------------------------------------- */

/* flags of struct kdbus_msg. */
enum kdbus_msg_flags {
	/* Wants a reply until timeout_ns (not 0), under its cookie (not 0). Unicast only; 128 may be open at a time. */
	KDBUS_MSG_EXPECT_REPLY  = 1ULL << 0,
	/* Do not queue it at an activator that stands in for the name: EADDRNOTAVAIL. */
	KDBUS_MSG_NO_AUTO_START = 1ULL << 1,
	/* A signal: with a bloom filter, and received only through matches. Needed for broadcasts, allowed for unicasts. */
	KDBUS_MSG_SIGNAL        = 1ULL << 2,
};

/* payload_type: 0 is for notifications alone; every other value is carried as it is. */
enum kdbus_payload_type {
	KDBUS_PAYLOAD_KERNEL,
	KDBUS_PAYLOAD_DBUS = 0x4442757344427573ULL, /* "DBusDBus" */
};

/*
 * A message: built by the sender in its own memory (8-byte aligned, 8 KiB with its items at most), found by the receiver
 * in the pool. The receiver sees the fields as the sender set them, but for src_id.
 *
 * Items of a sender: PAYLOAD_VEC, PAYLOAD_MEMFD, FDS, BLOOM_FILTER, DST_NAME; 128 at most. Items of a receiver, in this order:
 * DST_NAME; PAYLOAD_OFF and PAYLOAD_MEMFD as they were sent; FDS; metadata. Or one notification item, and a timestamp.
 */
struct kdbus_msg {
	__u64 size;         /* struct and items */
	__u64 flags;        /* KDBUS_MSG_* */
	__s64 priority;     /* the lower the more urgent; see KDBUS_RECV_USE_PRIORITY */
	__u64 dst_id;       /* a connection, KDBUS_DST_ID_NAME or KDBUS_DST_ID_BROADCAST. With DST_NAME too: both must agree */
	__u64 src_id;       /* 0 or the own id when sending */
	__u64 payload_type; /* KDBUS_PAYLOAD_* */
	__u64 cookie;       /* the sender's own number */
	union {
		__u64 timeout_ns;   /* with EXPECT_REPLY: until when, absolute, CLOCK_MONOTONIC */
		__u64 cookie_reply; /* without: the cookie of the request that this answers, or 0 */
	};
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* Where a received message lies. */
struct kdbus_msg_info {
	__u64 offset;       /* of struct kdbus_msg in the pool; what KDBUS_CMD_FREE wants */
	__u64 msg_size;     /* the message's size, without its payload */
	__u64 return_flags; /* KDBUS_RECV_RETURN_* */
};

/* flags of KDBUS_CMD_SEND. */
enum kdbus_send_flags {
	/* Wait for the reply and return it in `reply`: it does not go through the queue. With KDBUS_MSG_EXPECT_REPLY only. */
	KDBUS_SEND_SYNC_REPLY = 1ULL << 0,
};

/*
 * KDBUS_CMD_SEND. Items: KDBUS_ITEM_CANCEL_FD.
 *
 * A unicast is in the receiver's queue when the call returns. A broadcast always succeeds; a receiver that could not take it
 * finds that in its count of lost messages. Descriptors and memory may be closed and changed right after.
 *
 * About the message:
 *   EINVAL         size not 64 to 8192; src_id not one's own; payload_type 0; EXPECT_REPLY without timeout or cookie, or with
 *                  SIGNAL; SYNC_REPLY without EXPECT_REPLY; items or names that are wrong or have no place in a message;
 *                  a CANCEL_FD that cannot be polled
 *   EFAULT         message or payload memory cannot be read; a bloom filter that is not a multiple of 8 bytes
 *   E2BIG          more than 128 items                EMSGSIZE    more than 2 MiB in vectors; start + size of a memfd overflows
 *   EEXIST         FDS, BLOOM_FILTER, DST_NAME or CANCEL_FD twice
 *   EBADF          a descriptor that is not open; a memfd that is shorter than start + size
 *   EMEDIUMTYPE    not a memfd                        ETXTBSY     a memfd that is not sealed fully
 *   EMFILE         more than 253 descriptors          EOPNOTSUPP  a descriptor of a UNIX socket or of an endpoint file
 *   EDOM           bloom filter not of the bus' size
 *   EBADMSG        broadcast with DST_NAME or without SIGNAL; SIGNAL without filter; filter without SIGNAL
 *   ENOTUNIQ       broadcast with descriptors, with EXPECT_REPLY, timeout_ns or cookie_reply
 * About the destination:
 *   EDESTADDRREQ   none given                         EREMCHG     the owner of DST_NAME is not dst_id
 *   ENXIO          no such id, or one of a monitor, activator or policy holder
 *   ESRCH          nobody owns the name               EADDRNOTAVAIL   only an activator does, with NO_AUTO_START
 *   EPERM          no right to talk; a reply that nobody waits for; a unicast signal that no match of the receiver accepts
 *   EMLINK         128 replies are expected already
 * About the delivery:
 *   ENOBUFS        queue full (256), too many of this user's messages in it, or no room in the pool
 *   EXFULL         the payload would take more than half of the room that is left in the pool
 *   ECOMM          descriptors for a connection without ACCEPT_FD
 *   ECONNRESET     the destination is dying           ENOMEM, EMFILE   the server's own resources
 * While waiting (SYNC_REPLY), the message is sent by then:
 *   ETIMEDOUT      timeout_ns has passed              ECANCELED   the cancel descriptor is readable
 *   EPIPE          the other side is gone or dropped the request
 *   EREMOTEIO      the reply had descriptors, and this connection no ACCEPT_FD
 *   EINTR          a signal. The same SEND (dst_id and cookie) issued again goes on waiting, nothing is sent twice
 *   ENOBUFS, EXFULL, EFAULT   the reply did not fit; the replier got the same
 */
struct kdbus_cmd_send {
	__u64 size;
	__u64 flags;            /* KDBUS_SEND_* */
	__u64 kernel_flags;
	__u64 kernel_msg_flags; /* out: the mask of flags that a message may have */
	__u64 return_flags;     /* out: 0 */
	__u64 msg_address;      /* of struct kdbus_msg */
	struct kdbus_msg_info reply; /* out, with SYNC_REPLY; to be freed */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* flags of KDBUS_CMD_RECV. */
enum kdbus_recv_flags {
	KDBUS_RECV_PEEK         = 1ULL << 0, /* leave it queued and install no descriptors; the slice is to be freed all the same */
	KDBUS_RECV_DROP         = 1ULL << 1, /* throw it away; a requester learns that by REPLY_DEAD or EPIPE */
	KDBUS_RECV_USE_PRIORITY = 1ULL << 2, /* the most urgent instead of the oldest, if it is as urgent as `priority` says */
};

/* return_flags of struct kdbus_msg_info. */
enum kdbus_recv_return_flags {
	KDBUS_RECV_RETURN_INCOMPLETE_FDS = 1ULL << 0, /* some descriptors could not be installed and are -errno */
};

/*
 * KDBUS_CMD_RECV takes the next message from the queue. Items: none of use.
 *
 *   EAGAIN      nothing is queued: poll(2)
 *   ENOMSG      USE_PRIORITY, and nothing is that urgent
 *   EOVERFLOW   `dropped_msgs` broadcasts have been lost since this was last said. Nothing was taken: call again.
 *   ENOBUFS     no room in the pool for the message's header and items. It stays queued: free something.
 */
struct kdbus_cmd_recv {
	__u64 size;
	__u64 flags; /* KDBUS_RECV_* */
	__u64 kernel_flags;
	__u64 return_flags;        /* out: 0; what concerns the message is in msg.return_flags */
	__s64 priority;            /* with USE_PRIORITY */
	__u64 dropped_msgs;        /* out, with EOVERFLOW */
	struct kdbus_msg_info msg; /* out */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/*
 * KDBUS_CMD_FREE gives a slice back, a message's together with its payload. Descriptors stay open. Items: none, EINVAL.
 *
 *   ENXIO   nothing that was handed out begins at that offset
 */
struct kdbus_cmd_free {
	__u64 size;
	__u64 offset;
	__u64 flags; /* 0 */
	__u64 kernel_flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Buses, endpoints, connections ------------------------------------------------------------------------------ */

/* flags of KDBUS_CMD_BUS_MAKE and KDBUS_CMD_ENDPOINT_MAKE: modes of the new files. Without: the maker's user only. */
enum kdbus_make_flags {
	KDBUS_MAKE_ACCESS_GROUP = 1ULL << 0,
	KDBUS_MAKE_ACCESS_WORLD = 1ULL << 1, /* includes the group */
};

/*
 * KDBUS_CMD_BUS_MAKE, on `control`. Items: MAKE_NAME and BLOOM_PARAMETER, both once; ATTACH_FLAGS_RECV and
 * ATTACH_FLAGS_SEND if wanted, ANY meaning all. The files are there when the call returns.
 *
 *   EBADFD    this descriptor owns a bus already       EEXIST         the name is taken, or an item given twice
 *   EBADMSG   a required item is missing               ENAMETOOLONG   a name of more than 63 characters
 *   EINVAL    name without the uid, bad characters, bad bloom parameters, unknown attach flags or items
 *   EMFILE    16 buses of this user                    ESHUTDOWN      the domain is gone
 *   return_flags is not written.
 *
 * KDBUS_CMD_ENDPOINT_MAKE, on a fresh descriptor of the default endpoint. Items: MAKE_NAME once; groups of one NAME and any
 * number of POLICY_ACCESS. The new endpoint grants nothing beyond them.
 *
 *   EPERM     neither the bus' user nor CAP_IPC_OWNER when the descriptor was opened, or a custom endpoint
 *   EBADMSG   no name                                  EEXIST         the name is taken, an item or policy name given twice
 *   EINVAL, ENAMETOOLONG as above; a policy that is wrong: EINVAL
 *   ESHUTDOWN the bus is gone
 */
struct kdbus_cmd_make {
	__u64 size;
	__u64 flags; /* KDBUS_MAKE_* */
	__u64 kernel_flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* flags of KDBUS_CMD_HELLO. The last three exclude each other and are for the bus' user and CAP_IPC_OWNER. */
enum kdbus_hello_flags {
	KDBUS_HELLO_ACCEPT_FD     = 1ULL << 0, /* may be sent descriptors */
	KDBUS_HELLO_ACTIVATOR     = 1ULL << 1, /* holds a name for a service to be started: gets its messages until that takes over */
	KDBUS_HELLO_POLICY_HOLDER = 1ULL << 2, /* only keeps the policy of a name */
	KDBUS_HELLO_MONITOR       = 1ULL << 3, /* receives a copy of everything, sends nothing */
};

/*
 * KDBUS_CMD_HELLO makes a fresh descriptor of an endpoint a connection. Items: CONN_DESCRIPTION; for activators and policy
 * holders NAME (needed) and POLICY_ACCESS; for those with the rights above CREDS, PIDS, SECLABEL to pose as somebody else.
 * After a failure the descriptor may try again.
 *
 *   EFAULT         pool_size is 0 or no multiple of the page size
 *   EINVAL         more than one special kind, NAME missing or not wanted, unknown attach flags or items
 *   EPERM          special kinds and posing without the rights
 *   EOPNOTSUPP     a monitor on a custom endpoint
 *   ECONNREFUSED   attach_flags_send lacks what the bus requires
 *   EEXIST         there is a policy entry for the name already
 *   EMFILE         1024 connections of this user, or on this custom endpoint
 *   ESHUTDOWN      the endpoint is gone
 */
struct kdbus_cmd_hello {
	__u64 size;
	__u64 flags; /* KDBUS_HELLO_* */
	__u64 kernel_flags;
	__u64 return_flags;
	__u64 attach_flags_send; /* in: KDBUS_ATTACH_*, ANY meaning all. out: what the bus requires, with KDBUS_FLAG_KERNEL */
	__u64 attach_flags_recv; /* in: KDBUS_ATTACH_*, ANY meaning all */
	__u64 bus_flags;         /* out: flags of BUS_MAKE */
	__u64 id;                /* out: the connection's id */
	__u64 pool_size;         /* bytes of the pool; memory is taken as it is used */
	__u64 offset;            /* out: of a struct kdbus_item_list in the pool; to be freed */
	__u64 items_size;        /* out: its size */
	__u8 id128[16];          /* out: UUID of the bus */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/*
 * KDBUS_CMD_CONN_UPDATE. Items: ATTACH_FLAGS_SEND, ATTACH_FLAGS_RECV, ANY meaning all; of a policy holder instead one NAME and
 * its POLICY_ACCESS items, which replace the former ones.
 *
 *   EOPNOTSUPP   an item that this kind of connection cannot change
 *   EINVAL       unknown items or flags; send flags without what the bus requires; a wrong policy
 *   E2BIG        a second NAME                        EEXIST   somebody else's entry exists for the name
 *
 * KDBUS_CMD_ENDPOINT_UPDATE, on the descriptor that made a custom endpoint. Items: groups of NAME and POLICY_ACCESS, which
 * replace its whole policy, at once for everybody. EINVAL, EEXIST for a wrong policy; the old one stays.
 */
struct kdbus_cmd_update {
	__u64 size;
	__u64 flags; /* 0 */
	__u64 kernel_flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Well-known names ------------------------------------------------------------------------------------------- */

/* Flags of names. The first three are for NAME_ACQUIRE. */
enum kdbus_name_flags {
	KDBUS_NAME_REPLACE_EXISTING  = 1ULL << 0, /* take it from an owner that allows that */
	KDBUS_NAME_ALLOW_REPLACEMENT = 1ULL << 1, /* allow that */
	KDBUS_NAME_QUEUE             = 1ULL << 2, /* wait for it if it is taken, and after having been replaced */
	KDBUS_NAME_IN_QUEUE          = 1ULL << 3, /* out: it is taken, this connection waits */
	KDBUS_NAME_ACTIVATOR         = 1ULL << 4, /* out: the owner is an activator */
};

/*
 * KDBUS_CMD_NAME_ACQUIRE. Items: NAME once. A name has two or more elements of letters, digits, '_' and '-' between
 * dots, none of which begins with a digit, and 255 characters at most. One that an activator owns is handed over, with
 * the messages that wait there.
 *
 *   EINVAL    not a name                                EPERM    the policy does not let this user own it
 *   EALREADY  owned by this connection                  EEXIST   owned by another, and none of the flags helps
 *   E2BIG     256 names owned
 *
 * KDBUS_CMD_NAME_RELEASE. Items: NAME once. Gives up the name, or the place in its queue. No flags.
 *
 *   EINVAL    not a name                                ESRCH    neither owned nor waited for
 */
struct kdbus_cmd_name {
	__u64 size;
	__u64 flags; /* KDBUS_NAME_*; ACQUIRE adds IN_QUEUE */
	__u64 kernel_flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* flags of KDBUS_CMD_NAME_LIST: what to list. */
enum kdbus_name_list_flags {
	KDBUS_NAME_LIST_UNIQUE     = 1ULL << 0, /* connections of which nothing else is listed */
	KDBUS_NAME_LIST_NAMES      = 1ULL << 1, /* names that ordinary connections own */
	KDBUS_NAME_LIST_ACTIVATORS = 1ULL << 2, /* names that activators hold, also those taken over at the moment */
	KDBUS_NAME_LIST_QUEUED     = 1ULL << 3, /* those who wait for a name */
};

/* One record of a list. */
struct kdbus_name_info {
	__u64 size;       /* of the record, padded */
	__u64 conn_flags; /* KDBUS_HELLO_* */
	__u64 owner_id;   /* the connection */
	struct kdbus_item items[0]; /* one OWNED_NAME, or nothing in a record of UNIQUE */
} __attribute__((aligned(8)));

/* What KDBUS_CMD_NAME_LIST leaves in the pool; in no particular order. */
struct kdbus_name_list {
	__u64 size; /* of all */
	struct kdbus_name_info names[0];
};

/*
 * KDBUS_CMD_NAME_LIST. Items: none, EINVAL.
 *
 *   ENOBUFS   no room in the pool
 */
struct kdbus_cmd_name_list {
	__u64 size;
	__u64 flags; /* KDBUS_NAME_LIST_* */
	__u64 kernel_flags;
	__u64 return_flags;
	__u64 offset;    /* out: of struct kdbus_name_list in the pool; to be freed */
	__u64 list_size; /* out: its size */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Who is who ------------------------------------------------------------------------------------------------- */

/* What KDBUS_CMD_CONN_INFO and KDBUS_CMD_BUS_CREATOR_INFO leave in the pool. */
struct kdbus_info {
	__u64 size;
	__u64 id;    /* of the connection; of the bus */
	__u64 flags; /* of its HELLO; of its BUS_MAKE */
	struct kdbus_item items[0]; /* metadata; those of a creator after a MAKE_NAME */
};

/*
 * KDBUS_CMD_CONN_INFO: about a connection, as of its HELLO, names and description as of now. Items: NAME once if id is 0.
 *
 *   EINVAL    neither id nor one valid name; unknown attach flags (ANY too)
 *   ENXIO     no such id, or not visible on this endpoint    ESRCH     nobody owns the name, or it is not visible
 *   ENOBUFS   no room in the pool
 *
 * KDBUS_CMD_BUS_CREATOR_INFO: about who made the bus, as of BUS_MAKE, of what he agreed to show. id and items are ignored.
 *
 *   EINVAL    unknown attach flags (ANY too)                 ENOBUFS   no room in the pool
 */
struct kdbus_cmd_info {
	__u64 size;
	__u64 flags; /* KDBUS_ATTACH_* wanted */
	__u64 kernel_flags;
	__u64 return_flags;
	__u64 id;
	__u64 offset;    /* out: of struct kdbus_info in the pool; to be freed */
	__u64 info_size; /* out: its size */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Matches ---------------------------------------------------------------------------------------------------- */

/* flags of KDBUS_CMD_MATCH_ADD. */
enum kdbus_cmd_match_flags {
	KDBUS_MATCH_REPLACE = 1ULL << 0, /* remove all with this cookie first */
};

/*
 * Matches say which broadcasts and signals a connection receives: one whose rules all accept is enough. A match without rules
 * accepts everything. Rules for messages: BLOOM_MASK, ID, NAME. Rules for notifications: NAME_ADD, NAME_REMOVE,
 * NAME_CHANGE, ID_ADD, ID_REMOVE. A match with rules of both classes accepts nothing.
 *
 * KDBUS_CMD_MATCH_ADD. Several matches may have one cookie.
 *
 *   EINVAL   an item that is no rule; a name that is none      EDOM   a mask that is no multiple of the bus' bloom size
 *   EMFILE   256 matches
 *
 * KDBUS_CMD_MATCH_REMOVE removes all with the cookie. No flags; items: none, EMSGSIZE.
 *
 *   ENOENT   there is none
 */
struct kdbus_cmd_match {
	__u64 size;
	__u64 cookie; /* the program's own number */
	__u64 flags;  /* KDBUS_MATCH_* */
	__u64 kernel_flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Numbers of the commands ------------------------------------------------------------------------------------ */

/*
 * KDBUS_CMD_BYEBYE takes no argument. It ends a connection whose queue is empty; the descriptor stays open, and is of no more
 * use but for reading the pool.
 *
 *   EBUSY    messages are queued                       EALREADY   it has ended before
 */
enum kdbus_ioctl_type {
	/* on control */
	KDBUS_CMD_BUS_MAKE         = _IOW(KDBUS_IOCTL_MAGIC, 0x00, struct kdbus_cmd_make),
	/* on a fresh endpoint file */
	KDBUS_CMD_ENDPOINT_MAKE    = _IOW(KDBUS_IOCTL_MAGIC, 0x10, struct kdbus_cmd_make),
	KDBUS_CMD_HELLO            = _IOWR(KDBUS_IOCTL_MAGIC, 0x20, struct kdbus_cmd_hello),
	/* on a connection */
	KDBUS_CMD_BYEBYE           = _IO(KDBUS_IOCTL_MAGIC, 0x21),
	KDBUS_CMD_SEND             = _IOWR(KDBUS_IOCTL_MAGIC, 0x30, struct kdbus_cmd_send),
	KDBUS_CMD_RECV             = _IOWR(KDBUS_IOCTL_MAGIC, 0x31, struct kdbus_cmd_recv),
	KDBUS_CMD_FREE             = _IOW(KDBUS_IOCTL_MAGIC, 0x32, struct kdbus_cmd_free),
	KDBUS_CMD_NAME_ACQUIRE     = _IOWR(KDBUS_IOCTL_MAGIC, 0x40, struct kdbus_cmd_name),
	KDBUS_CMD_NAME_RELEASE     = _IOW(KDBUS_IOCTL_MAGIC, 0x41, struct kdbus_cmd_name),
	KDBUS_CMD_NAME_LIST        = _IOWR(KDBUS_IOCTL_MAGIC, 0x42, struct kdbus_cmd_name_list),
	KDBUS_CMD_CONN_INFO        = _IOWR(KDBUS_IOCTL_MAGIC, 0x50, struct kdbus_cmd_info),
	KDBUS_CMD_CONN_UPDATE      = _IOW(KDBUS_IOCTL_MAGIC, 0x51, struct kdbus_cmd_update),
	KDBUS_CMD_BUS_CREATOR_INFO = _IOWR(KDBUS_IOCTL_MAGIC, 0x52, struct kdbus_cmd_info),
	/* on a descriptor that made an endpoint */
	KDBUS_CMD_ENDPOINT_UPDATE  = _IOW(KDBUS_IOCTL_MAGIC, 0x61, struct kdbus_cmd_update),
	/* on a connection */
	KDBUS_CMD_MATCH_ADD        = _IOW(KDBUS_IOCTL_MAGIC, 0x70, struct kdbus_cmd_match),
	KDBUS_CMD_MATCH_REMOVE     = _IOW(KDBUS_IOCTL_MAGIC, 0x71, struct kdbus_cmd_match),
};

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif /* _KDBUS_UAPI_H_ */
