"""Precompiled layouts of kdbus.h's structures (little endian, 64-bit clean for 32-bit callers too, GEN-19).

Offsets that the code names are those of struct members inside their command.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ...base.words import I32 as I32
from ...base.words import I64 as I64
from ...base.words import U64 as U64
from ...base.words import align8 as align8
from ...base.words import u32 as u32
from ...base.words import u64 as u64

ITEM_HEADER: Final = Struct("<QQ")  # size, type
ITEM_HEADER_SIZE: Final = 16

MSG: Final = Struct("<QQqQQQQQ")  # size flags priority dst_id src_id payload_type cookie timeout_ns|cookie_reply
MSG_SIZE: Final = 64

MSG_INFO: Final = Struct("<QQQ")  # offset msg_size return_flags
CMD_HELLO: Final = Struct("<QQQQQQQQQQQ16s")
CMD_SEND: Final = Struct("<QQQQQQ")  # size flags kernel_flags kernel_msg_flags return_flags msg_address
CMD_SEND_REPLY_OFFSET: Final = 48
CMD_SEND_KERNEL_MSG_FLAGS_OFFSET: Final = 24
CMD_SEND_MSG_ADDRESS_OFFSET: Final = 40
CMD_RECV: Final = Struct("<QQQQqQQQQ")  # size flags kernel_flags return_flags priority dropped_msgs msg
CMD_RECV_DROPPED_OFFSET: Final = 40
CMD_RECV_MSG_OFFSET: Final = 48
CMD_RECV_MSG_RETURN_FLAGS_OFFSET: Final = 64
CMD_FREE_OFFSET: Final = 8
CMD_INFO: Final = Struct("<QQQQQQQ")  # size flags kernel_flags return_flags id offset info_size
CMD_NAME_LIST: Final = Struct("<QQQQQQ")  # size flags kernel_flags return_flags offset list_size

VEC: Final = Struct("<QQ")  # size, address|offset
VEC_ITEM_SIZE: Final = 32  # with its header
MEMFD: Final = Struct("<QQiI")  # start size fd pad
MEMFD_FD_OFFSET: Final = 16  # of `fd` inside the item's payload
BLOOM_PARAMETER: Final = Struct("<QQ")  # size n_hash
POLICY_ACCESS: Final = Struct("<QQQ")  # type access id
CREDS: Final = Struct("<IIIIIIII")  # uid euid suid fsuid gid egid sgid fsgid
PIDS: Final = Struct("<QQQ")  # pid tid ppid
AUDIT: Final = Struct("<II")  # sessionid loginuid
TIMESTAMP: Final = Struct("<QQQ")  # seqnum monotonic_ns realtime_ns
INFO: Final = Struct("<QQQ")  # size id flags
NAME_INFO: Final = Struct("<QQQ")  # size conn_flags owner_id
NAME_CHANGE: Final = Struct("<QQQQ")  # old id, old flags, new id, new flags; then the name
ID_CHANGE: Final = Struct("<QQ")  # id flags
