"""Items as a client would write them, for tests of the core."""

from __future__ import annotations

from struct import pack

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3.items import make_item


def string(kind: int, text: bytes) -> bytes:
    """An item with one NUL-terminated string."""
    return make_item(kind, text + b"\0")


def u64(kind: int, value: int) -> bytes:
    return make_item(kind, pack("<Q", value))


def name(text: bytes) -> bytes:
    return string(c.ITEM_NAME, text)


def access(kind: int, level: int, id: int = 0) -> bytes:
    """POLICY_ACCESS: to whom (POLICY_ACCESS_*), which right (POLICY_*), whose id."""
    return make_item(c.ITEM_POLICY_ACCESS, pack("<QQQ", kind, level, id))


def world(level: int) -> bytes:
    return access(c.POLICY_ACCESS_WORLD, level)


def user(level: int, uid: int) -> bytes:
    return access(c.POLICY_ACCESS_USER, level, uid)


def group(level: int, gid: int) -> bytes:
    return access(c.POLICY_ACCESS_GROUP, level, gid)


def creds(*ids: int) -> bytes:
    return make_item(c.ITEM_CREDS, pack("<8I", *ids))


def pids(pid: int, tid: int, ppid: int) -> bytes:
    return make_item(c.ITEM_PIDS, pack("<QQQ", pid, tid, ppid))


def bloom_parameter(size: int, n_hash: int = 1) -> bytes:
    return make_item(c.ITEM_BLOOM_PARAMETER, pack("<QQ", size, n_hash))


def bloom_filter(size: int = 64, bits: bytes = b"") -> bytes:
    return make_item(c.ITEM_BLOOM_FILTER, pack("<Q", 0) + bits.ljust(size, b"\0"))


def id_change(kind: int, id: int = c.MATCH_ID_ANY) -> bytes:
    """A match rule for ID_ADD or ID_REMOVE."""
    return make_item(kind, pack("<QQ", id, 0))


def name_change(kind: int, text: bytes = b"", old: int = c.MATCH_ID_ANY, new: int = c.MATCH_ID_ANY) -> bytes:
    """A match rule for NAME_ADD, NAME_REMOVE or NAME_CHANGE."""
    return make_item(kind, pack("<QQQQ", old, 0, new, 0) + (text + b"\0" if text else b""))
