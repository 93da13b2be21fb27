/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kdbus-last.h - the last ioctl interface of kdbus, of August 2015: the one that libsystemd of systemd 220 to 234 speaks.
 *
 * kdbus.h has version 3 of January 2015, and says what a domain, a bus, a pool and so on are: all that is the same here. A
 * program includes one of the two. Both kinds of programs talk to each other on one bus.
 *
 * What is different
 *
 *   - Every command has another number, and its struct begins with `size`, `flags` and `return_flags`. What version 3 has in
 *     kernel_flags is asked for: with KDBUS_FLAG_NEGOTIATE a command does nothing but replace `flags` by all that there are;
 *     an item KDBUS_ITEM_NEGOTIATE has the types in it replaced by 0 that the command does not take.
 *   - BYEBYE has a struct. Any struct and any message may have 32768 bytes, beyond which is EMSGSIZE.
 *   - Each command takes the items that are given for it here, and no other: EINVAL, as for one that is given twice.
 *   - A command that a descriptor does not take in its state: EBADFD. ENOTTY is left for numbers that are no command.
 *   - A message lies in one slice: the struct, its items in the order of the sender, metadata, and then the payload. The offset
 *     in PAYLOAD_OFF counts from the struct. Metadata are as of SEND, as the receiver's namespaces were at its HELLO.
 *   - Nothing lost is reported by an error of its own: dropped_msgs comes with the next message, or with EAGAIN.
 */
#ifndef _KDBUS_LAST_H_
#define _KDBUS_LAST_H_

#ifdef _KDBUS_UAPI_H_
#error "kdbus.h and kdbus-last.h have the same names for different numbers: include one of them"
#endif

#include <linux/ioctl.h>
#include <linux/types.h>

/* Open arrays in unions, unnamed unions and 64-bit enumerators are no ISO C, nor ISO C++, and wanted here. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#endif

#define KDBUS_IOCTL_MAGIC 0x95

#define KDBUS_SRC_ID_KERNEL    (0)          /* src_id of notifications */
#define KDBUS_DST_ID_NAME      (0)          /* dst_id: the destination is given by KDBUS_ITEM_DST_NAME */
#define KDBUS_DST_ID_BROADCAST (~0ULL)      /* dst_id: everybody whose matches accept the message, the sender too */
#define KDBUS_MATCH_ID_ANY     (~0ULL)      /* in match rules: any id */

/* In the flags of any command, and of a message that is sent by a command with it. */
#define KDBUS_FLAG_NEGOTIATE   (1ULL << 63)


/* ---- Items ------------------------------------------------------------------------------------------------------ */

/* Types of items. "in": programs pass it in a command or message; "out": it is found in the pool. */
enum kdbus_item_type {
	_KDBUS_ITEM_NULL,
	_KDBUS_ITEM_USER_BASE,

	/* in, any command and message. Array of u64: types, of which those that are not taken become 0. */
	KDBUS_ITEM_NEGOTIATE = _KDBUS_ITEM_USER_BASE,
	KDBUS_ITEM_PAYLOAD_VEC,      /* in, message. struct kdbus_vec: bytes at `address`; address 0: so many zero bytes */
	KDBUS_ITEM_PAYLOAD_OFF,      /* out, message. struct kdbus_vec: bytes at `offset` from struct kdbus_msg; ~0: zero bytes */
	KDBUS_ITEM_PAYLOAD_MEMFD,    /* in and out, message. struct kdbus_memfd; 16 in a message at most */
	KDBUS_ITEM_FDS,              /* in and out, message. Array of int, 16 at most; where none was installed: -1 */
	KDBUS_ITEM_CANCEL_FD,        /* in, SEND. int: ends the wait of a synchronous SEND once it is readable */
	KDBUS_ITEM_BLOOM_PARAMETER,  /* in, BUS_MAKE; out, HELLO. struct kdbus_bloom_parameter */
	KDBUS_ITEM_BLOOM_FILTER,     /* in and out, message with KDBUS_MSG_SIGNAL. struct kdbus_bloom_filter */
	KDBUS_ITEM_BLOOM_MASK,       /* in, MATCH_ADD. One mask for each generation */
	KDBUS_ITEM_DST_NAME,         /* in and out, message. String: the destination's well-known name */
	KDBUS_ITEM_MAKE_NAME,        /* in, BUS_MAKE and ENDPOINT_MAKE; out, BUS_CREATOR_INFO. String */
	KDBUS_ITEM_ATTACH_FLAGS_SEND, /* in, UPDATE; BUS_MAKE: what BUS_CREATOR_INFO may show. u64 */
	KDBUS_ITEM_ATTACH_FLAGS_RECV, /* in, UPDATE. u64 */
	KDBUS_ITEM_ID,               /* in, MATCH_ADD. u64: of the sender */
	KDBUS_ITEM_NAME,             /* in. String: a well-known name */
	KDBUS_ITEM_DST_ID,           /* in, MATCH_ADD. u64: whom a message is addressed to; of a broadcast ~0 */

	/* out: metadata. Type KDBUS_ITEM_TIMESTAMP + n belongs to attach flag 1 << n. */
	_KDBUS_ITEM_ATTACH_BASE = 0x1000,
	KDBUS_ITEM_TIMESTAMP = _KDBUS_ITEM_ATTACH_BASE, /* struct kdbus_timestamp; in every notification */
	KDBUS_ITEM_CREDS,            /* struct kdbus_creds */
	KDBUS_ITEM_PIDS,             /* struct kdbus_pids */
	KDBUS_ITEM_AUXGROUPS,        /* array of u64 */
	KDBUS_ITEM_OWNED_NAME,       /* struct kdbus_name */
	KDBUS_ITEM_TID_COMM,         /* string */
	KDBUS_ITEM_PID_COMM,         /* string */
	KDBUS_ITEM_EXE,              /* string */
	KDBUS_ITEM_CMDLINE,          /* string: the first word */
	KDBUS_ITEM_CGROUP,           /* string */
	KDBUS_ITEM_CAPS,             /* struct kdbus_caps */
	KDBUS_ITEM_SECLABEL,         /* string */
	KDBUS_ITEM_AUDIT,            /* struct kdbus_audit */
	KDBUS_ITEM_CONN_DESCRIPTION, /* string; in HELLO: in */

	/* in. struct kdbus_policy_access: a right to the name of the NAME item before it. */
	_KDBUS_ITEM_POLICY_BASE = 0x2000,
	KDBUS_ITEM_POLICY_ACCESS = _KDBUS_ITEM_POLICY_BASE,

	/* out: notifications; in, MATCH_ADD: rules for them. */
	_KDBUS_ITEM_KERNEL_BASE = 0x8000,
	KDBUS_ITEM_NAME_ADD = _KDBUS_ITEM_KERNEL_BASE, /* these three: struct kdbus_notify_name_change */
	KDBUS_ITEM_NAME_REMOVE,
	KDBUS_ITEM_NAME_CHANGE,
	KDBUS_ITEM_ID_ADD,           /* these two: struct kdbus_notify_id_change */
	KDBUS_ITEM_ID_REMOVE,
	KDBUS_ITEM_REPLY_TIMEOUT,    /* these two: empty */
	KDBUS_ITEM_REPLY_DEAD,
};

struct kdbus_notify_id_change {
	__u64 id;
	__u64 flags; /* of its HELLO; of a name, KDBUS_NAME_* */
};

struct kdbus_notify_name_change {
	struct kdbus_notify_id_change old_id;
	struct kdbus_notify_id_change new_id;
	char name[0];
};

/* u64 where version 3 has u32; 0xffffffff is "none". */
struct kdbus_creds {
	__u64 uid;
	__u64 euid;
	__u64 suid;
	__u64 fsuid;
	__u64 gid;
	__u64 egid;
	__u64 sgid;
	__u64 fsgid;
};

struct kdbus_pids {
	__u64 pid;
	__u64 tid;
	__u64 ppid;
};

struct kdbus_caps {
	__u32 last_cap;
	__u32 caps[0]; /* inheritable, permitted, effective, bounding */
} __attribute__((aligned(8)));

struct kdbus_audit {
	__u32 sessionid;
	__u32 loginuid;
};

struct kdbus_timestamp {
	__u64 seqnum;
	__u64 monotonic_ns;
	__u64 realtime_ns;
};

struct kdbus_vec {
	__u64 size;
	union {
		__u64 address; /* PAYLOAD_VEC */
		__u64 offset;  /* PAYLOAD_OFF: from the message */
	};
};

struct kdbus_bloom_parameter {
	__u64 size;   /* bytes of a filter: 8 to 4096, a multiple of 8 */
	__u64 n_hash;
};

struct kdbus_bloom_filter {
	__u64 generation;
	__u64 data[0];
};

struct kdbus_memfd {
	__u64 start;
	__u64 size;
	int fd;
	__u32 __pad;
};

struct kdbus_name {
	__u64 flags;
	char name[0];
};

struct kdbus_policy_access {
	__u64 type;   /* enum kdbus_policy_access_type */
	__u64 access; /* enum kdbus_policy_type */
	__u64 id;
};

enum kdbus_policy_access_type {
	_KDBUS_POLICY_ACCESS_NULL,
	KDBUS_POLICY_ACCESS_USER,
	KDBUS_POLICY_ACCESS_GROUP,
	KDBUS_POLICY_ACCESS_WORLD,
};

enum kdbus_policy_type {
	KDBUS_POLICY_SEE = 0,
	KDBUS_POLICY_TALK,
	KDBUS_POLICY_OWN,
};

struct kdbus_item {
	__u64 size; /* exact: 16 and the payload; the next item begins at the next multiple of 8 */
	__u64 type;
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


/* ---- Metadata --------------------------------------------------------------------------------------------------- */

/*
 * A receiver gets of what it asks for: TIMESTAMP, CREDS, PIDS, AUXGROUPS, NAMES and CONN_DESCRIPTION in any case, and the
 * others where the sender agrees to them, or where the receiver's /proc shows the sender anyhow.
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

enum kdbus_msg_flags {
	KDBUS_MSG_EXPECT_REPLY  = 1ULL << 0, /* until timeout_ns, which is not 0 */
	KDBUS_MSG_NO_AUTO_START = 1ULL << 1,
	KDBUS_MSG_SIGNAL        = 1ULL << 2, /* set in broadcast notifications too */
};

enum kdbus_payload_type {
	KDBUS_PAYLOAD_KERNEL,
	KDBUS_PAYLOAD_DBUS = 0x4442757344427573ULL, /* "DBusDBus" */
};

/* Items of a sender: PAYLOAD_VEC, PAYLOAD_MEMFD, FDS, BLOOM_FILTER, DST_NAME. A receiver finds them in the same order. */
struct kdbus_msg {
	__u64 size;         /* struct and items; of a received message without the padding behind the last item */
	__u64 flags;        /* KDBUS_MSG_* */
	__s64 priority;
	__u64 dst_id;
	__u64 src_id;
	__u64 payload_type;
	__u64 cookie;
	union {
		__u64 timeout_ns;
		__u64 cookie_reply;
	};
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

struct kdbus_msg_info {
	__u64 offset;       /* of struct kdbus_msg in the pool; for nothing, the size of the pool */
	__u64 msg_size;     /* of the whole slice, payload included */
	__u64 return_flags; /* KDBUS_RECV_RETURN_INCOMPLETE_FDS */
};

enum kdbus_send_flags {
	KDBUS_SEND_SYNC_REPLY = 1ULL << 0,
};

/*
 * KDBUS_CMD_SEND. Items: CANCEL_FD. What differs from version 3 of its errno:
 *
 *   EMSGSIZE    a message of more than 32768 bytes      ENOTUNIQ    EXPECT_REPLY with SIGNAL
 *   E2BIG       more than 16 memfds                     EMFILE      more than 16 descriptors, also those that this user
 *   EFAULT      a memfd that is shorter than it says                has in the receiver's queue
 *   EBADSLT     a reply that nobody waits for           ENOBUFS     more than a third of what is left of half of the
 *   EXFULL      no room in the receiver's pool                      receiver's pool, or 256 messages of this user
 *   ETIMEDOUT   timeout_ns is over: nothing is sent
 * A signal to one connection that does not want it is no error.
 */
struct kdbus_cmd_send {
	__u64 size;
	__u64 flags; /* KDBUS_SEND_* */
	__u64 return_flags;
	__u64 msg_address;
	struct kdbus_msg_info reply; /* out, with SYNC_REPLY */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

enum kdbus_recv_flags {
	KDBUS_RECV_PEEK         = 1ULL << 0, /* the same offset as the RECV that follows; one FREE is enough for all */
	KDBUS_RECV_DROP         = 1ULL << 1, /* not together with USE_PRIORITY */
	KDBUS_RECV_USE_PRIORITY = 1ULL << 2,
};

enum kdbus_recv_return_flags {
	KDBUS_RECV_RETURN_INCOMPLETE_FDS = 1ULL << 0, /* of kdbus_msg_info */
	KDBUS_RECV_RETURN_DROPPED_MSGS   = 1ULL << 1, /* of kdbus_cmd_recv: dropped_msgs is not 0 */
};

/* KDBUS_CMD_RECV. EAGAIN: nothing is queued, or nothing as urgent. */
struct kdbus_cmd_recv {
	__u64 size;
	__u64 flags; /* KDBUS_RECV_* */
	__u64 return_flags;
	__s64 priority;
	__u64 dropped_msgs;        /* out, also with EAGAIN: what was lost since the last RECV */
	struct kdbus_msg_info msg; /* out */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* KDBUS_CMD_FREE. The offset of nothing, which is the size of the pool, may be freed too. */
struct kdbus_cmd_free {
	__u64 size;
	__u64 flags; /* 0 */
	__u64 return_flags;
	__u64 offset;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Buses, endpoints, connections ------------------------------------------------------------------------------ */

enum kdbus_make_flags {
	KDBUS_MAKE_ACCESS_GROUP = 1ULL << 0,
	KDBUS_MAKE_ACCESS_WORLD = 1ULL << 1,
};

enum kdbus_hello_flags {
	KDBUS_HELLO_ACCEPT_FD     = 1ULL << 0,
	KDBUS_HELLO_ACTIVATOR     = 1ULL << 1,
	KDBUS_HELLO_POLICY_HOLDER = 1ULL << 2,
	KDBUS_HELLO_MONITOR       = 1ULL << 3,
};

/* KDBUS_CMD_HELLO. Items: CONN_DESCRIPTION; NAME, POLICY_ACCESS; CREDS, PIDS, SECLABEL. EINVAL for a wrong pool_size. */
struct kdbus_cmd_hello {
	__u64 size;
	__u64 flags; /* KDBUS_HELLO_* */
	__u64 return_flags;
	__u64 attach_flags_send; /* as given when it returns */
	__u64 attach_flags_recv;
	__u64 bus_flags;         /* out */
	__u64 id;                /* out */
	__u64 pool_size;
	__u64 offset;            /* out: of items in the pool: one BLOOM_PARAMETER, without a size before it; to be freed */
	__u64 items_size;        /* out */
	__u8 id128[16];          /* out */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* A connection, or a bus: what CONN_INFO, BUS_CREATOR_INFO and LIST leave in the pool. */
struct kdbus_info {
	__u64 size;  /* padded */
	__u64 id;
	__u64 flags; /* KDBUS_HELLO_* or KDBUS_MAKE_* */
	struct kdbus_item items[0]; /* metadata; in a record of LIST one OWNED_NAME, or nothing */
};

enum kdbus_list_flags {
	KDBUS_LIST_UNIQUE     = 1ULL << 0, /* connections of which nothing else is listed */
	KDBUS_LIST_NAMES      = 1ULL << 1, /* owners */
	KDBUS_LIST_ACTIVATORS = 1ULL << 2, /* activators, whoever owns the name */
	KDBUS_LIST_QUEUED     = 1ULL << 3, /* who waits */
};

/* KDBUS_CMD_LIST: records one after the other from `offset` on. */
struct kdbus_cmd_list {
	__u64 size;
	__u64 flags; /* KDBUS_LIST_* */
	__u64 return_flags;
	__u64 offset;    /* out; to be freed */
	__u64 list_size; /* out: of all records */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/* KDBUS_CMD_CONN_INFO, with an id, a NAME item, or both, which then have to agree; KDBUS_CMD_BUS_CREATOR_INFO. */
struct kdbus_cmd_info {
	__u64 size;
	__u64 flags; /* 0 */
	__u64 return_flags;
	__u64 id;
	__u64 attach_flags; /* KDBUS_ATTACH_* wanted; ANY is allowed */
	__u64 offset;       /* out; to be freed */
	__u64 info_size;    /* out */
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

enum kdbus_name_flags {
	KDBUS_NAME_REPLACE_EXISTING  = 1ULL << 0,
	KDBUS_NAME_ALLOW_REPLACEMENT = 1ULL << 1,
	KDBUS_NAME_QUEUE             = 1ULL << 2,
	KDBUS_NAME_IN_QUEUE          = 1ULL << 3, /* out: waits for it */
	KDBUS_NAME_ACTIVATOR         = 1ULL << 4, /* out */
	KDBUS_NAME_PRIMARY           = 1ULL << 5, /* out: owns it */
	KDBUS_NAME_ACQUIRED          = 1ULL << 6, /* out, NAME_ACQUIRE: this very call has made it so */
};

enum kdbus_cmd_match_flags {
	KDBUS_MATCH_REPLACE = 1ULL << 0,
};

/* KDBUS_CMD_MATCH_ADD, KDBUS_CMD_MATCH_REMOVE (EBADSLT: there is none). */
struct kdbus_cmd_match {
	__u64 size;
	__u64 flags; /* KDBUS_MATCH_* */
	__u64 return_flags;
	__u64 cookie;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));

/*
 * The other commands.
 *
 *   BUS_MAKE         flags KDBUS_MAKE_*. Items: MAKE_NAME, BLOOM_PARAMETER, ATTACH_FLAGS_SEND
 *   ENDPOINT_MAKE    flags KDBUS_MAKE_*. Item: MAKE_NAME; ENDPOINT_UPDATE gives it a policy
 *   ENDPOINT_UPDATE  Items: NAME, POLICY_ACCESS
 *   UPDATE           Items: ATTACH_FLAGS_SEND, ATTACH_FLAGS_RECV; NAME, POLICY_ACCESS
 *   BYEBYE           EBUSY: messages are queued
 *   NAME_ACQUIRE     flags KDBUS_NAME_*; they come back in return_flags. Item: NAME. 0 for who owns or waits already
 *   NAME_RELEASE     Item: NAME. ESRCH: nobody owns it; EADDRINUSE: others do
 */
struct kdbus_cmd {
	__u64 size;
	__u64 flags;
	__u64 return_flags;
	struct kdbus_item items[0];
} __attribute__((aligned(8)));


/* ---- Numbers of the commands ------------------------------------------------------------------------------------ */

enum kdbus_ioctl_type {
	/* on control */
	KDBUS_CMD_BUS_MAKE         = _IOW(KDBUS_IOCTL_MAGIC, 0x00, struct kdbus_cmd),
	/* on a fresh endpoint file, and on what it has become */
	KDBUS_CMD_ENDPOINT_MAKE    = _IOW(KDBUS_IOCTL_MAGIC, 0x10, struct kdbus_cmd),
	KDBUS_CMD_ENDPOINT_UPDATE  = _IOW(KDBUS_IOCTL_MAGIC, 0x11, struct kdbus_cmd),
	KDBUS_CMD_HELLO            = _IOWR(KDBUS_IOCTL_MAGIC, 0x80, struct kdbus_cmd_hello),
	/* on a connection; some numbers say the opposite of where the struct goes */
	KDBUS_CMD_UPDATE           = _IOW(KDBUS_IOCTL_MAGIC, 0x81, struct kdbus_cmd),
	KDBUS_CMD_BYEBYE           = _IOW(KDBUS_IOCTL_MAGIC, 0x82, struct kdbus_cmd),
	KDBUS_CMD_FREE             = _IOW(KDBUS_IOCTL_MAGIC, 0x83, struct kdbus_cmd_free),
	KDBUS_CMD_CONN_INFO        = _IOR(KDBUS_IOCTL_MAGIC, 0x84, struct kdbus_cmd_info),
	KDBUS_CMD_BUS_CREATOR_INFO = _IOR(KDBUS_IOCTL_MAGIC, 0x85, struct kdbus_cmd_info),
	KDBUS_CMD_LIST             = _IOR(KDBUS_IOCTL_MAGIC, 0x86, struct kdbus_cmd_list),
	KDBUS_CMD_SEND             = _IOW(KDBUS_IOCTL_MAGIC, 0x90, struct kdbus_cmd_send),
	KDBUS_CMD_RECV             = _IOR(KDBUS_IOCTL_MAGIC, 0x91, struct kdbus_cmd_recv),
	KDBUS_CMD_NAME_ACQUIRE     = _IOW(KDBUS_IOCTL_MAGIC, 0xa0, struct kdbus_cmd),
	KDBUS_CMD_NAME_RELEASE     = _IOW(KDBUS_IOCTL_MAGIC, 0xa1, struct kdbus_cmd),
	KDBUS_CMD_MATCH_ADD        = _IOW(KDBUS_IOCTL_MAGIC, 0xb0, struct kdbus_cmd_match),
	KDBUS_CMD_MATCH_REMOVE     = _IOW(KDBUS_IOCTL_MAGIC, 0xb1, struct kdbus_cmd_match),
};

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif /* _KDBUS_LAST_H_ */
