"""Metadata as items: collecting what describes a connection, and exporting everything for one reader.

Sources: META-1 to META-22.  The order of the items is part of the ABI.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.errors import KdbusError
from ..abi.identity import Creds, Pids
from ..abi.items import make_item
from ..abi.layouts import AUDIT, CREDS, PIDS, TIMESTAMP
from .ports import NO_ID, NO_PIDS, ProcessMetadata

if TYPE_CHECKING:
    from .connection import Connection
    from .ports import Caller, Clock, Reader

DEFAULT_MASK: Final = (
    c.ATTACH_TIMESTAMP
    | c.ATTACH_CREDS
    | c.ATTACH_PIDS
    | c.ATTACH_AUXGROUPS
    | c.ATTACH_NAMES
    | c.ATTACH_SECLABEL
    | c.ATTACH_CONN_DESCRIPTION
)
"""The system-wide attach mask of a fresh domain (META-5)."""


def sanitize_attach_flags(flags: int) -> int:
    """~0 means all kinds; other unknown bits raise KdbusError(EINVAL) (GEN-17)."""
    if flags == c.ATTACH_ANY:
        return c.ATTACH_ALL
    if flags & ~c.ATTACH_ALL:
        raise KdbusError(EINVAL, "unknown attach flags")
    return flags


_GROUP_COST: Final = 64
_USUAL_SIZE: Final = 4096


def held_bytes(process: ProcessMetadata) -> int:
    """What an account is charged with for `process`, where it takes more than most: 65536 groups, 128 KiB of arguments.

    What most take is a part of what a message is charged with in any case, and connections are few.
    """
    texts = len(process.cmdline) + len(process.exe) + len(process.cgroup) + len(process.seclabel)
    return max(0, texts + _GROUP_COST * len(process.auxgroups) - _USUAL_SIZE)


class ConnMetadata:
    """What describes a connection and a message: owned names, description, timestamp.

    Shared by all receivers of one message, and like ProcessMetadata collected at most once for each kind.
    """

    __slots__ = ("collected", "description", "names", "timestamp", "valid")

    def __init__(self) -> None:
        self.collected = 0
        self.valid = 0
        self.names = b""  # OWNED_NAME items, ready to send
        self.description = b""
        self.timestamp = b""

    def collect(self, kinds: int, connection: Connection | None, clock: Clock, seqnum: int | None) -> bool:
        """Gather those of `kinds` that are missing; whether names are among them.

        Without `seqnum` there is no timestamp (INFO-6).
        """
        kinds &= ~self.collected
        if kinds & c.ATTACH_TIMESTAMP and seqnum is not None:
            self.timestamp = TIMESTAMP.pack(seqnum, clock.monotonic(), clock.realtime())
            self.valid |= c.ATTACH_TIMESTAMP
            self.collected |= c.ATTACH_TIMESTAMP
        if connection is None:
            return False
        if kinds & c.ATTACH_NAMES:
            self.collected |= c.ATTACH_NAMES
            self.names = connection.owned_name_items()
            if self.names:
                self.valid |= c.ATTACH_NAMES
        if kinds & c.ATTACH_CONN_DESCRIPTION:
            self.collected |= c.ATTACH_CONN_DESCRIPTION
            if connection.description is not None:
                self.description = connection.description
                self.valid |= c.ATTACH_CONN_DESCRIPTION
        return bool(kinds & c.ATTACH_NAMES)


def _creds(process: ProcessMetadata, reader: Reader) -> bytes:
    ids = process.creds
    assert ids is not None
    uids = [reader.uid_from_global(uid) for uid in ids[:4]]
    gids = [reader.gid_from_global(gid) for gid in ids[4:]]
    return CREDS.pack(*uids, *gids)


def _pids(process: ProcessMetadata, reader: Reader) -> bytes:
    return PIDS.pack(*process.pids.get(reader.pid_ns, NO_PIDS))


def _auxgroups(process: ProcessMetadata, reader: Reader) -> bytes:
    return reader.gids_from_global(process.auxgroups)


def _audit(process: ProcessMetadata, reader: Reader) -> bytes:
    """`loginuid` is -1 where unset or unmapped, unlike the ids of CREDS (META-14)."""
    loginuid = process.loginuid
    loginuid = reader.uid_from_global(loginuid) if reader.maps_uid(loginuid) else NO_ID
    return AUDIT.pack(process.sessionid, loginuid)


_PROCESS_ITEMS: Final[tuple[tuple[int, int, Callable[[ProcessMetadata, Reader], bytes]], ...]] = (
    (c.ATTACH_CREDS, c.ITEM_CREDS, _creds),
    (c.ATTACH_PIDS, c.ITEM_PIDS, _pids),
    (c.ATTACH_AUXGROUPS, c.ITEM_AUXGROUPS, _auxgroups),
    (c.ATTACH_TID_COMM, c.ITEM_TID_COMM, lambda process, _: process.tid_comm + b"\0"),
    (c.ATTACH_PID_COMM, c.ITEM_PID_COMM, lambda process, _: process.pid_comm + b"\0"),
    (c.ATTACH_EXE, c.ITEM_EXE, lambda process, _: process.exe + b"\0"),
    (c.ATTACH_CMDLINE, c.ITEM_CMDLINE, lambda process, _: process.cmdline + b"\0"),
    (c.ATTACH_CGROUP, c.ITEM_CGROUP, lambda process, _: process.cgroup + b"\0"),
    (c.ATTACH_CAPS, c.ITEM_CAPS, lambda process, _: process.caps),
    (c.ATTACH_SECLABEL, c.ITEM_SECLABEL, lambda process, _: process.seclabel + b"\0"),
    (c.ATTACH_AUDIT, c.ITEM_AUDIT, _audit),
)
"""Attach flag, item type and payload of each kind that describes a process, in export order (META-1)."""


def export(
    process: ProcessMetadata | None, connection: ConnMetadata | None, mask: int, reader: Reader
) -> bytes:
    """The items of those kinds in `mask` that are there, as `reader` may see them (META-2, META-21)."""
    chunks: list[bytes] = []
    if process is not None:
        kinds = mask & process.valid
        if kinds & c.ATTACH_CAPS and process.user_ns != reader.user_ns:
            kinds &= ~c.ATTACH_CAPS  # sets of capabilities have no translation (META-13)
        if kinds & c.ATTACH_EXE and process.root != reader.root:
            kinds &= ~c.ATTACH_EXE  # META-10
        if kinds:
            chunks += [
                make_item(item, payload(process, reader))
                for flag, item, payload in _PROCESS_ITEMS
                if kinds & flag
            ]
    if connection is not None:
        kinds = mask & connection.valid
        if kinds & c.ATTACH_NAMES:
            chunks.append(connection.names)
        if kinds & c.ATTACH_CONN_DESCRIPTION:
            chunks.append(make_item(c.ITEM_CONN_DESCRIPTION, connection.description + b"\0"))
        if kinds & c.ATTACH_TIMESTAMP:
            chunks.append(make_item(c.ITEM_TIMESTAMP, connection.timestamp))
    return b"".join(chunks)


def fake_process(
    caller: Caller, creds: bytes | None, pids: bytes | None, seclabel: bytes | None
) -> ProcessMetadata:
    """The identity that a privileged connection claims at HELLO (HELLO-11): only the given parts are valid.

    Raises KdbusError(EINVAL) for ids without a mapping and for processes that do not exist.
    """
    process = ProcessMetadata()
    if creds is not None:
        values = CREDS.unpack(creds)
        uids = [_global_id(uid, caller.uid_to_global) for uid in values[:4]]
        gids = [_global_id(gid, caller.gid_to_global) for gid in values[4:]]
        process.creds = Creds(*uids, *gids)
        process.valid |= c.ATTACH_CREDS
    if pids is not None:
        process.pids = _global_pids(caller, *PIDS.unpack(pids))
        process.valid |= c.ATTACH_PIDS
    if seclabel is not None:
        process.seclabel = seclabel
        process.valid |= c.ATTACH_SECLABEL
    process.collected = process.valid
    return process


def _global_id(value: int, translate: Callable[[int], int | None]) -> int:
    if value == NO_ID:
        return NO_ID
    result = translate(value)
    if result is None:
        raise KdbusError(EINVAL, "id without a mapping")
    return result


def _global_pids(caller: Caller, pid: int, tid: int, ppid: int) -> dict[int, Pids]:
    views: list[dict[int, int]] = []
    for number in (pid, tid, ppid):
        # Their lower 32 bits count, as those of the ids in policies (POL-2).
        view = caller.pids_of(number & 0xFFFFFFFF) if number else {}
        if view is None:
            raise KdbusError(EINVAL, "no such process")
        views.append(view)
    namespaces = set().union(*views)
    return {ns: Pids(*(view.get(ns, 0) for view in views)) for ns in namespaces}
