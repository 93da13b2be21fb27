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
from ..layouts import AUDIT as AUDIT
from ..layouts import BLOOM_PARAMETER as BLOOM_PARAMETER
from ..layouts import ID_CHANGE as ID_CHANGE
from ..layouts import INFO as INFO
from ..layouts import ITEM_HEADER as ITEM_HEADER
from ..layouts import ITEM_HEADER_SIZE as ITEM_HEADER_SIZE
from ..layouts import MEMFD as MEMFD
from ..layouts import MEMFD_FD_OFFSET as MEMFD_FD_OFFSET
from ..layouts import MSG as MSG
from ..layouts import MSG_INFO as MSG_INFO
from ..layouts import MSG_SIZE as MSG_SIZE
from ..layouts import NAME_CHANGE as NAME_CHANGE
from ..layouts import PIDS as PIDS
from ..layouts import POLICY_ACCESS as POLICY_ACCESS
from ..layouts import TIMESTAMP as TIMESTAMP
from ..layouts import VEC as VEC
from ..layouts import VEC_ITEM_SIZE as VEC_ITEM_SIZE

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

CREDS: Final = Struct("<IIIIIIII")  # uid euid suid fsuid gid egid sgid fsgid
NAME_INFO: Final = Struct("<QQQ")  # size conn_flags owner_id
