"""Numbers of kdbus.h v3 (January 2015), without the KDBUS_ prefix: those of the core, and the requests."""

from __future__ import annotations

from typing import Final

# v3 has the numbers of the core.
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
from ..constants import FLAG_KERNEL as FLAG_KERNEL
from ..constants import HELLO_ACCEPT_FD as HELLO_ACCEPT_FD
from ..constants import HELLO_ACTIVATOR as HELLO_ACTIVATOR
from ..constants import HELLO_MONITOR as HELLO_MONITOR
from ..constants import HELLO_POLICY_HOLDER as HELLO_POLICY_HOLDER
from ..constants import HELLO_SPECIAL as HELLO_SPECIAL
from ..constants import ITEM_ATTACH_FLAGS_RECV as ITEM_ATTACH_FLAGS_RECV
from ..constants import ITEM_ATTACH_FLAGS_SEND as ITEM_ATTACH_FLAGS_SEND
from ..constants import ITEM_AUDIT as ITEM_AUDIT
from ..constants import ITEM_AUXGROUPS as ITEM_AUXGROUPS
from ..constants import ITEM_BLOOM_FILTER as ITEM_BLOOM_FILTER
from ..constants import ITEM_BLOOM_MASK as ITEM_BLOOM_MASK
from ..constants import ITEM_BLOOM_PARAMETER as ITEM_BLOOM_PARAMETER
from ..constants import ITEM_CANCEL_FD as ITEM_CANCEL_FD
from ..constants import ITEM_CAPS as ITEM_CAPS
from ..constants import ITEM_CGROUP as ITEM_CGROUP
from ..constants import ITEM_CMDLINE as ITEM_CMDLINE
from ..constants import ITEM_CONN_DESCRIPTION as ITEM_CONN_DESCRIPTION
from ..constants import ITEM_CREDS as ITEM_CREDS
from ..constants import ITEM_DST_NAME as ITEM_DST_NAME
from ..constants import ITEM_EXE as ITEM_EXE
from ..constants import ITEM_FDS as ITEM_FDS
from ..constants import ITEM_ID as ITEM_ID
from ..constants import ITEM_ID_ADD as ITEM_ID_ADD
from ..constants import ITEM_ID_REMOVE as ITEM_ID_REMOVE
from ..constants import ITEM_MAKE_NAME as ITEM_MAKE_NAME
from ..constants import ITEM_NAME as ITEM_NAME
from ..constants import ITEM_NAME_ADD as ITEM_NAME_ADD
from ..constants import ITEM_NAME_CHANGE as ITEM_NAME_CHANGE
from ..constants import ITEM_NAME_REMOVE as ITEM_NAME_REMOVE
from ..constants import ITEM_OWNED_NAME as ITEM_OWNED_NAME
from ..constants import ITEM_PAYLOAD_MEMFD as ITEM_PAYLOAD_MEMFD
from ..constants import ITEM_PAYLOAD_OFF as ITEM_PAYLOAD_OFF
from ..constants import ITEM_PAYLOAD_VEC as ITEM_PAYLOAD_VEC
from ..constants import ITEM_PID_COMM as ITEM_PID_COMM
from ..constants import ITEM_PIDS as ITEM_PIDS
from ..constants import ITEM_POLICY_ACCESS as ITEM_POLICY_ACCESS
from ..constants import ITEM_REPLY_DEAD as ITEM_REPLY_DEAD
from ..constants import ITEM_REPLY_TIMEOUT as ITEM_REPLY_TIMEOUT
from ..constants import ITEM_SECLABEL as ITEM_SECLABEL
from ..constants import ITEM_TID_COMM as ITEM_TID_COMM
from ..constants import ITEM_TIMESTAMP as ITEM_TIMESTAMP
from ..constants import ITEM_UNKNOWN as ITEM_UNKNOWN
from ..constants import MAKE_ACCESS_GROUP as MAKE_ACCESS_GROUP
from ..constants import MAKE_ACCESS_WORLD as MAKE_ACCESS_WORLD
from ..constants import MATCH_ID_ANY as MATCH_ID_ANY
from ..constants import MATCH_REPLACE as MATCH_REPLACE
from ..constants import MSG_EXPECT_REPLY as MSG_EXPECT_REPLY
from ..constants import MSG_FLAGS_ALL as MSG_FLAGS_ALL
from ..constants import MSG_NO_AUTO_START as MSG_NO_AUTO_START
from ..constants import MSG_SIGNAL as MSG_SIGNAL
from ..constants import NAME_ACTIVATOR as NAME_ACTIVATOR
from ..constants import NAME_ALLOW_REPLACEMENT as NAME_ALLOW_REPLACEMENT
from ..constants import NAME_IN_QUEUE as NAME_IN_QUEUE
from ..constants import NAME_LIST_ACTIVATORS as NAME_LIST_ACTIVATORS
from ..constants import NAME_LIST_NAMES as NAME_LIST_NAMES
from ..constants import NAME_LIST_QUEUED as NAME_LIST_QUEUED
from ..constants import NAME_LIST_UNIQUE as NAME_LIST_UNIQUE
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
from ..constants import RECV_RETURN_INCOMPLETE_FDS as RECV_RETURN_INCOMPLETE_FDS
from ..constants import RECV_USE_PRIORITY as RECV_USE_PRIORITY
from ..constants import SEND_SYNC_REPLY as SEND_SYNC_REPLY
from ..constants import SRC_ID_KERNEL as SRC_ID_KERNEL
from ..constants import U64_MAX as U64_MAX

# ioctl numbers (magic 0x95).
CMD_BUS_MAKE: Final = 0x40209500
CMD_ENDPOINT_MAKE: Final = 0x40209510
CMD_HELLO: Final = 0xC0689520
CMD_BYEBYE: Final = 0x00009521
CMD_SEND: Final = 0xC0489530
CMD_RECV: Final = 0xC0489531
CMD_FREE: Final = 0x40289532
CMD_NAME_ACQUIRE: Final = 0xC0209540
CMD_NAME_RELEASE: Final = 0x40209541
CMD_NAME_LIST: Final = 0xC0309542
CMD_CONN_INFO: Final = 0xC0389550
CMD_CONN_UPDATE: Final = 0x40209551
CMD_BUS_CREATOR_INFO: Final = 0xC0389552
CMD_ENDPOINT_UPDATE: Final = 0x40209561
CMD_MATCH_ADD: Final = 0x40289570
CMD_MATCH_REMOVE: Final = 0x40289571
