"""Numbers of the last kdbus.h (August 2015), without the KDBUS_ prefix: those of the core, and the others."""

from __future__ import annotations

from typing import Final

from .. import constants as n

# What has the number that it has in the core.
from ..constants import ATTACH_ALL as ATTACH_ALL
from ..constants import ATTACH_ANY as ATTACH_ANY
from ..constants import ATTACH_AUDIT as ATTACH_AUDIT
from ..constants import ATTACH_AUXGROUPS as ATTACH_AUXGROUPS
from ..constants import ATTACH_CAPS as ATTACH_CAPS
from ..constants import ATTACH_CGROUP as ATTACH_CGROUP
from ..constants import ATTACH_CMDLINE as ATTACH_CMDLINE
from ..constants import ATTACH_CONN_DESCRIPTION as ATTACH_CONN_DESCRIPTION
from ..constants import ATTACH_CREDS as ATTACH_CREDS
from ..constants import ATTACH_EXE as ATTACH_EXE
from ..constants import ATTACH_NAMES as ATTACH_NAMES
from ..constants import ATTACH_PID_COMM as ATTACH_PID_COMM
from ..constants import ATTACH_PIDS as ATTACH_PIDS
from ..constants import ATTACH_PROCESS as ATTACH_PROCESS
from ..constants import ATTACH_SECLABEL as ATTACH_SECLABEL
from ..constants import ATTACH_TID_COMM as ATTACH_TID_COMM
from ..constants import ATTACH_TIMESTAMP as ATTACH_TIMESTAMP
from ..constants import DST_ID_BROADCAST as DST_ID_BROADCAST
from ..constants import DST_ID_NAME as DST_ID_NAME
from ..constants import HELLO_ACCEPT_FD as HELLO_ACCEPT_FD
from ..constants import HELLO_ACTIVATOR as HELLO_ACTIVATOR
from ..constants import HELLO_MONITOR as HELLO_MONITOR
from ..constants import HELLO_POLICY_HOLDER as HELLO_POLICY_HOLDER
from ..constants import HELLO_SPECIAL as HELLO_SPECIAL
from ..constants import ITEM_AUDIT as ITEM_AUDIT
from ..constants import ITEM_AUXGROUPS as ITEM_AUXGROUPS
from ..constants import ITEM_CAPS as ITEM_CAPS
from ..constants import ITEM_CGROUP as ITEM_CGROUP
from ..constants import ITEM_CMDLINE as ITEM_CMDLINE
from ..constants import ITEM_CONN_DESCRIPTION as ITEM_CONN_DESCRIPTION
from ..constants import ITEM_CREDS as ITEM_CREDS
from ..constants import ITEM_EXE as ITEM_EXE
from ..constants import ITEM_ID_ADD as ITEM_ID_ADD
from ..constants import ITEM_ID_REMOVE as ITEM_ID_REMOVE
from ..constants import ITEM_NAME_ADD as ITEM_NAME_ADD
from ..constants import ITEM_NAME_CHANGE as ITEM_NAME_CHANGE
from ..constants import ITEM_NAME_REMOVE as ITEM_NAME_REMOVE
from ..constants import ITEM_OWNED_NAME as ITEM_OWNED_NAME
from ..constants import ITEM_PID_COMM as ITEM_PID_COMM
from ..constants import ITEM_PIDS as ITEM_PIDS
from ..constants import ITEM_POLICY_ACCESS as ITEM_POLICY_ACCESS
from ..constants import ITEM_REPLY_DEAD as ITEM_REPLY_DEAD
from ..constants import ITEM_REPLY_TIMEOUT as ITEM_REPLY_TIMEOUT
from ..constants import ITEM_SECLABEL as ITEM_SECLABEL
from ..constants import ITEM_TID_COMM as ITEM_TID_COMM
from ..constants import ITEM_TIMESTAMP as ITEM_TIMESTAMP
from ..constants import MAKE_ACCESS_GROUP as MAKE_ACCESS_GROUP
from ..constants import MAKE_ACCESS_WORLD as MAKE_ACCESS_WORLD
from ..constants import MATCH_ID_ANY as MATCH_ID_ANY
from ..constants import MATCH_REPLACE as MATCH_REPLACE
from ..constants import MSG_EXPECT_REPLY as MSG_EXPECT_REPLY
from ..constants import MSG_FLAGS_ALL as MSG_FLAGS_ALL
from ..constants import MSG_NO_AUTO_START as MSG_NO_AUTO_START
from ..constants import MSG_SIGNAL as MSG_SIGNAL
from ..constants import NAME_ACQUIRED as NAME_ACQUIRED
from ..constants import NAME_ACTIVATOR as NAME_ACTIVATOR
from ..constants import NAME_ALLOW_REPLACEMENT as NAME_ALLOW_REPLACEMENT
from ..constants import NAME_IN_QUEUE as NAME_IN_QUEUE
from ..constants import NAME_PRIMARY as NAME_PRIMARY
from ..constants import NAME_QUEUE as NAME_QUEUE
from ..constants import NAME_REPLACE_EXISTING as NAME_REPLACE_EXISTING
from ..constants import PAYLOAD_DBUS as PAYLOAD_DBUS
from ..constants import PAYLOAD_KERNEL as PAYLOAD_KERNEL
from ..constants import POLICY_ACCESS_GROUP as POLICY_ACCESS_GROUP
from ..constants import POLICY_ACCESS_USER as POLICY_ACCESS_USER
from ..constants import POLICY_ACCESS_WORLD as POLICY_ACCESS_WORLD
from ..constants import POLICY_OWN as POLICY_OWN
from ..constants import POLICY_SEE as POLICY_SEE
from ..constants import POLICY_TALK as POLICY_TALK
from ..constants import RECV_DROP as RECV_DROP
from ..constants import RECV_PEEK as RECV_PEEK
from ..constants import RECV_RETURN_DROPPED_MSGS as RECV_RETURN_DROPPED_MSGS
from ..constants import RECV_RETURN_INCOMPLETE_FDS as RECV_RETURN_INCOMPLETE_FDS
from ..constants import RECV_USE_PRIORITY as RECV_USE_PRIORITY
from ..constants import SEND_SYNC_REPLY as SEND_SYNC_REPLY
from ..constants import SRC_ID_KERNEL as SRC_ID_KERNEL
from ..constants import U64_MAX as U64_MAX

LIST_UNIQUE: Final = n.NAME_LIST_UNIQUE
LIST_NAMES: Final = n.NAME_LIST_NAMES
LIST_ACTIVATORS: Final = n.NAME_LIST_ACTIVATORS
LIST_QUEUED: Final = n.NAME_LIST_QUEUED

FLAG_NEGOTIATE: Final = 1 << 63
"""In the flags of a command or a message: tell which flags there are, and do nothing else (L-13)."""

# Kinds of items: NEGOTIATE came first, and those that were there moved up by one (L-19).
ITEM_NEGOTIATE: Final = 1
ITEM_PAYLOAD_VEC: Final = 2
ITEM_PAYLOAD_OFF: Final = 3
ITEM_PAYLOAD_MEMFD: Final = 4
ITEM_FDS: Final = 5
ITEM_CANCEL_FD: Final = 6
ITEM_BLOOM_PARAMETER: Final = 7
ITEM_BLOOM_FILTER: Final = 8
ITEM_BLOOM_MASK: Final = 9
ITEM_DST_NAME: Final = 10
ITEM_MAKE_NAME: Final = 11
ITEM_ATTACH_FLAGS_SEND: Final = 12
ITEM_ATTACH_FLAGS_RECV: Final = 13
ITEM_ID: Final = 14
ITEM_NAME: Final = 15
ITEM_DST_ID: Final = 16

NEUTRAL: Final[dict[int, int]] = {
    ITEM_NEGOTIATE: n.ITEM_NEGOTIATE,
    ITEM_PAYLOAD_VEC: n.ITEM_PAYLOAD_VEC,
    ITEM_PAYLOAD_OFF: n.ITEM_PAYLOAD_OFF,
    ITEM_PAYLOAD_MEMFD: n.ITEM_PAYLOAD_MEMFD,
    ITEM_FDS: n.ITEM_FDS,
    ITEM_CANCEL_FD: n.ITEM_CANCEL_FD,
    ITEM_BLOOM_PARAMETER: n.ITEM_BLOOM_PARAMETER,
    ITEM_BLOOM_FILTER: n.ITEM_BLOOM_FILTER,
    ITEM_BLOOM_MASK: n.ITEM_BLOOM_MASK,
    ITEM_DST_NAME: n.ITEM_DST_NAME,
    ITEM_MAKE_NAME: n.ITEM_MAKE_NAME,
    ITEM_ATTACH_FLAGS_SEND: n.ITEM_ATTACH_FLAGS_SEND,
    ITEM_ATTACH_FLAGS_RECV: n.ITEM_ATTACH_FLAGS_RECV,
    ITEM_ID: n.ITEM_ID,
    ITEM_NAME: n.ITEM_NAME,
    ITEM_DST_ID: n.ITEM_DST_ID,
}
"""What the core calls the kinds whose numbers differ."""

# ioctl numbers (magic 0x95).
CMD_BUS_MAKE: Final = 0x40189500
CMD_ENDPOINT_MAKE: Final = 0x40189510
CMD_ENDPOINT_UPDATE: Final = 0x40189511
CMD_HELLO: Final = 0xC0609580
CMD_UPDATE: Final = 0x40189581
CMD_BYEBYE: Final = 0x40189582
CMD_FREE: Final = 0x40209583
CMD_CONN_INFO: Final = 0x80389584
CMD_BUS_CREATOR_INFO: Final = 0x80389585
CMD_LIST: Final = 0x80289586
CMD_SEND: Final = 0x40389590
CMD_RECV: Final = 0x80409591
CMD_NAME_ACQUIRE: Final = 0x401895A0
CMD_NAME_RELEASE: Final = 0x401895A1
CMD_MATCH_ADD: Final = 0x402095B0
CMD_MATCH_REMOVE: Final = 0x402095B1
