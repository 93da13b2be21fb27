"""The core's vocabulary: kinds of items, flags and ids under the names of kdbus.h, without the KDBUS_ prefix.

The values are those of v3.  An ABI that numbers something otherwise translates it: what a client sends is one of these
numbers only after its family has decoded it.  Plain integers and not enums: they are compared and masked several times
for every message.
"""

from __future__ import annotations

from typing import Final

U64_MAX: Final = (1 << 64) - 1

# Addresses: `src_id`, `dst_id` and ids in matches.
SRC_ID_KERNEL: Final = 0
DST_ID_NAME: Final = 0
DST_ID_BROADCAST: Final = U64_MAX
MATCH_ID_ANY: Final = U64_MAX

# Set in every negotiated `kernel_flags`; never valid in flags that a client passes (GEN-9).
FLAG_KERNEL: Final = 1 << 63

# Kinds of items that a client may send; one that its ABI does not know is ITEM_UNKNOWN.
ITEM_UNKNOWN: Final = 0
ITEM_PAYLOAD_VEC: Final = 1
ITEM_PAYLOAD_OFF: Final = 2
ITEM_PAYLOAD_MEMFD: Final = 3
ITEM_FDS: Final = 4
ITEM_CANCEL_FD: Final = 5
ITEM_BLOOM_PARAMETER: Final = 6
ITEM_BLOOM_FILTER: Final = 7
ITEM_BLOOM_MASK: Final = 8
ITEM_DST_NAME: Final = 9
ITEM_MAKE_NAME: Final = 10
ITEM_ATTACH_FLAGS_SEND: Final = 11
ITEM_ATTACH_FLAGS_RECV: Final = 12
ITEM_ID: Final = 13
ITEM_NAME: Final = 14
ITEM_DST_ID: Final = 15  # in matches: whom a message is addressed to
ITEM_NEGOTIATE: Final = 16  # asks which kinds there are; no command takes it for anything else

# Kinds of metadata; ITEM_TIMESTAMP + n belongs to attach flag 1 << n.
ITEM_TIMESTAMP: Final = 0x1000
ITEM_CREDS: Final = 0x1001
ITEM_PIDS: Final = 0x1002
ITEM_AUXGROUPS: Final = 0x1003
ITEM_OWNED_NAME: Final = 0x1004
ITEM_TID_COMM: Final = 0x1005
ITEM_PID_COMM: Final = 0x1006
ITEM_EXE: Final = 0x1007
ITEM_CMDLINE: Final = 0x1008
ITEM_CGROUP: Final = 0x1009
ITEM_CAPS: Final = 0x100A
ITEM_SECLABEL: Final = 0x100B
ITEM_AUDIT: Final = 0x100C
ITEM_CONN_DESCRIPTION: Final = 0x100D

ITEM_POLICY_ACCESS: Final = 0x2000

# Kinds of notifications, also used as match rules for them.
ITEM_NAME_ADD: Final = 0x8000
ITEM_NAME_REMOVE: Final = 0x8001
ITEM_NAME_CHANGE: Final = 0x8002
ITEM_ID_ADD: Final = 0x8003
ITEM_ID_REMOVE: Final = 0x8004
ITEM_REPLY_TIMEOUT: Final = 0x8005
ITEM_REPLY_DEAD: Final = 0x8006

# Attach flags: which metadata travel with a message.
ATTACH_TIMESTAMP: Final = 1 << 0
ATTACH_CREDS: Final = 1 << 1
ATTACH_PIDS: Final = 1 << 2
ATTACH_AUXGROUPS: Final = 1 << 3
ATTACH_NAMES: Final = 1 << 4
ATTACH_TID_COMM: Final = 1 << 5
ATTACH_PID_COMM: Final = 1 << 6
ATTACH_EXE: Final = 1 << 7
ATTACH_CMDLINE: Final = 1 << 8
ATTACH_CGROUP: Final = 1 << 9
ATTACH_CAPS: Final = 1 << 10
ATTACH_SECLABEL: Final = 1 << 11
ATTACH_AUDIT: Final = 1 << 12
ATTACH_CONN_DESCRIPTION: Final = 1 << 13
ATTACH_ALL: Final = (1 << 14) - 1
ATTACH_ANY: Final = U64_MAX

# Kinds that describe the process rather than the connection or the message.
ATTACH_PROCESS: Final = ATTACH_ALL & ~(ATTACH_TIMESTAMP | ATTACH_NAMES | ATTACH_CONN_DESCRIPTION)

# Message flags and payload types.
MSG_EXPECT_REPLY: Final = 1 << 0
MSG_NO_AUTO_START: Final = 1 << 1
MSG_SIGNAL: Final = 1 << 2
MSG_FLAGS_ALL: Final = MSG_EXPECT_REPLY | MSG_NO_AUTO_START | MSG_SIGNAL
PAYLOAD_KERNEL: Final = 0
PAYLOAD_DBUS: Final = 0x4442757344427573

# Flags of the commands.
SEND_SYNC_REPLY: Final = 1 << 0
RECV_PEEK: Final = 1 << 0
RECV_DROP: Final = 1 << 1
RECV_USE_PRIORITY: Final = 1 << 2
RECV_RETURN_INCOMPLETE_FDS: Final = 1 << 0
RECV_RETURN_DROPPED_MSGS: Final = 1 << 1
HELLO_ACCEPT_FD: Final = 1 << 0
HELLO_ACTIVATOR: Final = 1 << 1
HELLO_POLICY_HOLDER: Final = 1 << 2
HELLO_MONITOR: Final = 1 << 3
HELLO_SPECIAL: Final = HELLO_ACTIVATOR | HELLO_POLICY_HOLDER | HELLO_MONITOR
MAKE_ACCESS_GROUP: Final = 1 << 0
MAKE_ACCESS_WORLD: Final = 1 << 1
NAME_REPLACE_EXISTING: Final = 1 << 0
NAME_ALLOW_REPLACEMENT: Final = 1 << 1
NAME_QUEUE: Final = 1 << 2
NAME_IN_QUEUE: Final = 1 << 3
NAME_ACTIVATOR: Final = 1 << 4
NAME_PRIMARY: Final = 1 << 5  # of an owner
NAME_ACQUIRED: Final = 1 << 6  # this very command made it owner, or put it into the queue
NAME_LIST_UNIQUE: Final = 1 << 0
NAME_LIST_NAMES: Final = 1 << 1
NAME_LIST_ACTIVATORS: Final = 1 << 2
NAME_LIST_QUEUED: Final = 1 << 3
MATCH_REPLACE: Final = 1 << 0

# Policy access items.
POLICY_ACCESS_USER: Final = 1
POLICY_ACCESS_GROUP: Final = 2
POLICY_ACCESS_WORLD: Final = 3
POLICY_SEE: Final = 0
POLICY_TALK: Final = 1
POLICY_OWN: Final = 2
