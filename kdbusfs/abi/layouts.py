"""Layouts that all ABIs of kdbus share: little endian, and 64-bit clean for 32-bit callers too (GEN-19)."""

from __future__ import annotations

from struct import Struct
from typing import Final

ITEM_HEADER: Final = Struct("<QQ")  # size, type
ITEM_HEADER_SIZE: Final = 16
MSG: Final = Struct("<QQqQQQQQ")  # size flags priority dst_id src_id payload_type cookie timeout_ns|cookie_reply
MSG_SIZE: Final = 64
MSG_INFO: Final = Struct("<QQQ")  # offset msg_size return_flags
VEC: Final = Struct("<QQ")  # size, address|offset
VEC_ITEM_SIZE: Final = 32  # with its header
MEMFD: Final = Struct("<QQiI")  # start size fd pad
MEMFD_FD_OFFSET: Final = 16  # of `fd` inside the item's payload
BLOOM_PARAMETER: Final = Struct("<QQ")  # size n_hash
POLICY_ACCESS: Final = Struct("<QQQ")  # type access id
PIDS: Final = Struct("<QQQ")  # pid tid ppid
AUDIT: Final = Struct("<II")  # sessionid loginuid
TIMESTAMP: Final = Struct("<QQQ")  # seqnum monotonic_ns realtime_ns
INFO: Final = Struct("<QQQ")  # size id flags
NAME_CHANGE: Final = Struct("<QQQQ")  # old id, old flags, new id, new flags; then the name
ID_CHANGE: Final = Struct("<QQ")  # id flags
