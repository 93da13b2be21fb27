"""Layouts of the last kdbus.h where they are its own (L-31, L-49, section 1.2 of the specification)."""

from __future__ import annotations

from struct import Struct
from typing import Final

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

CMD: Final = Struct("<QQQ")  # size flags return_flags
CMD_HELLO: Final = Struct("<QQQQQQQQQQ16s")  # CMD, then attach_flags_send ..recv bus_flags id pool_size offset ...
CMD_SEND: Final = Struct("<QQQQQQQ")  # CMD, then msg_address, reply
CMD_RECV: Final = Struct("<QQQqQQQQ")  # CMD, then priority dropped_msgs msg
CMD_FREE: Final = Struct("<QQQQ")  # CMD, then offset
CMD_INFO: Final = Struct("<QQQQQQQ")  # CMD, then id attach_flags offset info_size
CMD_LIST: Final = Struct("<QQQQQ")  # CMD, then offset list_size
CMD_MATCH: Final = Struct("<QQQQ")  # CMD, then cookie

# Where members lie that the code names one by one.
CMD_FLAGS_OFFSET: Final = 8
CMD_RETURN_FLAGS_OFFSET: Final = 16
CMD_SEND_MSG_ADDRESS_OFFSET: Final = 24
CMD_SEND_REPLY_OFFSET: Final = 32
CMD_RECV_PRIORITY_OFFSET: Final = 24
CMD_RECV_DROPPED_OFFSET: Final = 32
CMD_RECV_MSG_OFFSET: Final = 40
CMD_FREE_OFFSET: Final = 24
CMD_INFO_ID_OFFSET: Final = 24
CMD_INFO_ATTACH_FLAGS_OFFSET: Final = 32
CMD_INFO_OFFSET: Final = 40
CMD_LIST_OFFSET: Final = 24
CMD_MATCH_COOKIE_OFFSET: Final = 24
CMD_HELLO_ATTACH_SEND_OFFSET: Final = 24
CMD_HELLO_ATTACH_RECV_OFFSET: Final = 32
CMD_HELLO_BUS_FLAGS_OFFSET: Final = 40
CMD_HELLO_ID_OFFSET: Final = 48
CMD_HELLO_POOL_SIZE_OFFSET: Final = 56
CMD_HELLO_OFFSET: Final = 64
CMD_HELLO_ITEMS_SIZE_OFFSET: Final = 72
CMD_HELLO_ID128_OFFSET: Final = 80

CREDS: Final = Struct("<QQQQQQQQ")  # uid euid suid fsuid gid egid sgid fsgid
