"""Numbers and layouts of bus1's ioctl interface, as of the RFC of October 2016 (`include/bus1.h`).

Offsets of members are in bytes of the struct; WORD_* are indices of those that travel back, as u64.
"""

from __future__ import annotations

from typing import Final

MAGIC: Final = 0x96
U64_MAX: Final = (1 << 64) - 1
HANDLE_INVALID: Final = U64_MAX
OFFSET_INVALID: Final = U64_MAX
FD_MAX: Final = 256

HANDLE_FLAG_MANAGED: Final = 1
HANDLE_FLAG_REMOTE: Final = 2
HANDLE_FLAGS: Final = HANDLE_FLAG_MANAGED | HANDLE_FLAG_REMOTE

PEER_FLAG_WANT_SECCTX: Final = 1
PEER_RESET_FLAG_FLUSH: Final = 1
PEER_RESET_FLAG_FLUSH_SEED: Final = 2
NODES_DESTROY_FLAG_RELEASE_HANDLES: Final = 1
SEND_FLAG_CONTINUE: Final = 1
SEND_FLAG_SEED: Final = 2
RECV_FLAG_PEEK: Final = 1
RECV_FLAG_SEED: Final = 2
RECV_FLAG_INSTALL_FDS: Final = 4

MSG_NONE: Final = 0
MSG_DATA: Final = 1
MSG_NODE_DESTROY: Final = 2
MSG_NODE_RELEASE: Final = 3
MSG_FLAG_HAS_SECCTX: Final = 1
MSG_FLAG_CONTINUE: Final = 2

# Request numbers: all are _IOWR.
CMD_PEER_DISCONNECT: Final = 0xC0089600
CMD_PEER_QUERY: Final = 0xC0209601
CMD_PEER_RESET: Final = 0xC0209602
CMD_HANDLE_RELEASE: Final = 0xC0089610
CMD_HANDLE_TRANSFER: Final = 0xC0209611
CMD_NODES_DESTROY: Final = 0xC0189620
CMD_SLICE_RELEASE: Final = 0xC0089630
CMD_SEND: Final = 0xC0509640
CMD_RECV: Final = 0xC0609650

COMMANDS: Final = (
    CMD_PEER_DISCONNECT,
    CMD_PEER_QUERY,
    CMD_PEER_RESET,
    CMD_HANDLE_RELEASE,
    CMD_HANDLE_TRANSFER,
    CMD_NODES_DESTROY,
    CMD_SLICE_RELEASE,
    CMD_SEND,
    CMD_RECV,
)
READING: Final = (CMD_NODES_DESTROY, CMD_SEND)
"""Those whose struct points to more."""
RETURNING: Final = (CMD_PEER_QUERY, CMD_HANDLE_TRANSFER, CMD_RECV)
"""The commands whose struct travels back, on success alone (B1-GEN-5)."""

PEER_RESET_SIZE: Final = 32
PEER_RESET_FLAGS: Final = 0
PEER_RESET_PEER_FLAGS: Final = 8
PEER_RESET_MAX_SLICES: Final = 16
PEER_RESET_MAX_HANDLES: Final = 20
PEER_RESET_MAX_INFLIGHT_BYTES: Final = 24
PEER_RESET_MAX_INFLIGHT_FDS: Final = 28

HANDLE_TRANSFER_SIZE: Final = 32
HANDLE_TRANSFER_FLAGS: Final = 0
HANDLE_TRANSFER_SRC_HANDLE: Final = 8
HANDLE_TRANSFER_DST_FD: Final = 16
HANDLE_TRANSFER_DST_HANDLE: Final = 24

NODES_DESTROY_SIZE: Final = 24
NODES_DESTROY_FLAGS: Final = 0
NODES_DESTROY_PTR_NODES: Final = 8
NODES_DESTROY_N_NODES: Final = 16

SEND_SIZE: Final = 80
SEND_FLAGS: Final = 0
SEND_PTR_DESTINATIONS: Final = 8
SEND_PTR_ERRORS: Final = 16
SEND_N_DESTINATIONS: Final = 24
SEND_PTR_VECS: Final = 32
SEND_N_VECS: Final = 40
SEND_PTR_HANDLES: Final = 48
SEND_N_HANDLES: Final = 56
SEND_PTR_FDS: Final = 64
SEND_N_FDS: Final = 72

RECV_SIZE: Final = 96
RECV_FLAGS: Final = 0
RECV_MAX_OFFSET: Final = 8
RECV_MSG: Final = 16
MSG_TYPE: Final = 16
MSG_FLAGS: Final = 24
MSG_DESTINATION: Final = 32
MSG_UID: Final = 40
MSG_GID: Final = 44
MSG_PID: Final = 48
MSG_TID: Final = 52
MSG_OFFSET: Final = 56
MSG_N_BYTES: Final = 64
MSG_N_HANDLES: Final = 72
MSG_N_FDS: Final = 80
MSG_N_SECCTX: Final = 88

POOL_SIZE: Final = 1 << 29
"""Of address space that a peer can map (B1-POOL-1)."""
SLICE_MAX: Final = POOL_SIZE - 8
"""Bytes of the greatest slice."""
VEC_MAX: Final = 1024
DESTINATIONS_MAX: Final = (1 << 31) - 1
BYTES_MAX: Final = 0x7FFFF000
"""Of all vectors of a SEND together (B1-SEND-6)."""
LIMIT_MAX: Final = (1 << 31) - 1
UNCHANGED: Final = 0xFFFFFFFF
"""A limit in PEER_RESET that stays as it is."""
