"""The fixed limits of kdbus v3 (LIM-1 to LIM-14)."""

from __future__ import annotations

from typing import Final

MSG_MAX_SIZE: Final = 8192  # bytes of struct kdbus_msg with its items
MSG_MAX_ITEMS: Final = 128
MSG_MAX_FDS: Final = 253
MSG_MAX_PAYLOAD_VEC_SIZE: Final = 2 << 20  # bytes, all vectors of a message
CMD_MAX_SIZE: Final = 8192
MAKE_MAX_SIZE: Final = 32768
HELLO_MAX_SIZE: Final = 32768
UPDATE_MAX_SIZE: Final = 32768
MATCH_MAX_SIZE: Final = 32768
SEND_MAX_SIZE: Final = 32768
RECV_MAX_SIZE: Final = 32768
POLICY_MAX_SIZE: Final = 32768
BUS_BLOOM_MIN_SIZE: Final = 8
BUS_BLOOM_MAX_SIZE: Final = 4096
NAME_MAX_LEN: Final = 255  # well-known names
SYSNAME_MAX_LEN: Final = 63  # buses, endpoints, descriptions
MATCH_MAX: Final = 256  # entries for each connection
MATCH_MAX_RULES: Final = 1024  # of all entries of a connection, without those that say nothing new; none in kdbus
CONN_MAX_MSGS: Final = 256  # queued messages
CONN_MAX_MSGS_UNACCOUNTED: Final = 16
CONN_MAX_MSGS_PER_USER: Final = 16
CONN_MAX_NAMES: Final = 256
CONN_MAX_REQUESTS_PENDING: Final = 128
USER_MAX_CONN: Final = 1024
USER_MAX_BUSES: Final = 16
