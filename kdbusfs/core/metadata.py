"""Metadata: collecting what describes a connection, and showing everything to one reader (META-1 to META-22)."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.values import Metadata, OwnedNames
from ..base.errors import CommandError
from ..base.identity import NO_ID, NO_PIDS, Creds, Pids
from ..base.ports import ProcessMetadata
from ..base.words import u32

if TYPE_CHECKING:
    from ..abi.family import Family
    from ..base.ports import Caller, Clock, Reader

_NAME_COST: Final = 24
"""Bytes charged for a name that travels with a message, beside its length."""

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
    """~0 means all kinds; other unknown bits raise CommandError(EINVAL) (GEN-17)."""
    if flags == c.ATTACH_ANY:
        return c.ATTACH_ALL
    if flags & ~c.ATTACH_ALL:
        raise CommandError(EINVAL, "unknown attach flags")
    return flags


_GROUP_COST: Final = 64
_USUAL_SIZE: Final = 4096


def held_bytes(process: ProcessMetadata) -> int:
    """Bytes charged for `process` beyond the usual size: there may be 65536 groups, 128 KiB of arguments.

    The usual size is part of the charge of a message, and connections are few.
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
        self.names: OwnedNames | None = None
        self.description = b""
        self.timestamp = (0, 0, 0)

    def stamp(self, seqnum: int, clock: Clock) -> None:
        """Take the time, unless that was done; `seqnum` is the number of the message (META-22)."""
        if not self.collected & c.ATTACH_TIMESTAMP:
            self.timestamp = (seqnum, clock.monotonic(), clock.realtime())
            self.valid |= c.ATTACH_TIMESTAMP
            self.collected |= c.ATTACH_TIMESTAMP

    @property
    def names_cost(self) -> int:
        """Bytes charged for the names."""
        if self.names is None:
            return 0
        return sum(((len(name) + 8) & ~7) + _NAME_COST for _, name in self.names.names)


def export(
    process: ProcessMetadata | None,
    connection: ConnMetadata | None,
    mask: int,
    reader: Reader,
    family: Family,
) -> bytes:
    """The items of those kinds in `mask` that are there, as `reader` of `family` may see them (META-2, META-21)."""
    shown = Metadata(0)
    if process is not None:
        kinds = mask & process.valid
        caps = process.caps
        if kinds & c.ATTACH_CAPS and process.user_ns != reader.user_ns:
            if family.rules.foreign_caps:
                caps = _foreign_caps(process, reader)
            else:
                kinds &= ~c.ATTACH_CAPS  # sets of capabilities have no translation (META-13)
        if kinds & c.ATTACH_EXE and process.root != reader.root:
            kinds &= ~c.ATTACH_EXE  # META-10
        if kinds:
            shown.valid = kinds
            _show_process(shown, process, reader)
            shown.caps = caps
    if connection is not None:
        kinds = mask & connection.valid
        shown.valid |= kinds
        shown.names = connection.names
        shown.description = connection.description
        shown.timestamp = connection.timestamp
    return family.metadata(shown) if shown.valid else b""


def _foreign_caps(process: ProcessMetadata, reader: Reader) -> bytes:
    """L-105: in a namespace below its own, capabilities are what they are; and whoever made a namespace has all there.

    `reader` is of another user namespace than `process`.
    """
    chain = reader.user_chain
    for at in range(1, len(chain)):
        if chain[at][0] == process.user_ns:
            return _all_caps(process.caps) if chain[at - 1][1] == process.caps_euid else process.caps
    return process.caps[:4] + bytes(len(process.caps) - 4)


def _all_caps(caps: bytes) -> bytes:
    """All that the kernel has: permitted, effective, bounding; none inheritable."""
    last = u32(caps, 0)
    every = ((1 << (last + 1)) - 1).to_bytes((len(caps) - 4) // 4, "little")
    return caps[:4] + bytes(len(every)) + 3 * every


def _show_process(shown: Metadata, process: ProcessMetadata, reader: Reader) -> None:
    """Ids as the reader sees them; `loginuid` is -1 where unset or unmapped, unlike those of CREDS (META-14)."""
    kinds = shown.valid
    ids = process.creds
    if kinds & c.ATTACH_CREDS and ids is not None:
        shown.creds = Creds(
            reader.uid_from_global(ids.uid),
            reader.uid_from_global(ids.euid),
            reader.uid_from_global(ids.suid),
            reader.uid_from_global(ids.fsuid),
            reader.gid_from_global(ids.gid),
            reader.gid_from_global(ids.egid),
            reader.gid_from_global(ids.sgid),
            reader.gid_from_global(ids.fsgid),
        )
    if kinds & c.ATTACH_PIDS:
        shown.pids = process.pids.get(reader.pid_ns, NO_PIDS)
    if kinds & c.ATTACH_AUXGROUPS:
        shown.auxgroups = reader.gids_from_global(process.auxgroups)
    if kinds & c.ATTACH_AUDIT:
        loginuid = process.loginuid
        loginuid = reader.uid_from_global(loginuid) if reader.maps_uid(loginuid) else NO_ID
        shown.audit = (process.sessionid, loginuid)
    shown.tid_comm = process.tid_comm
    shown.pid_comm = process.pid_comm
    shown.exe = process.exe
    shown.cmdline = process.cmdline
    shown.cgroup = process.cgroup
    shown.seclabel = process.seclabel


def fake_process(
    caller: Caller, creds: tuple[int, ...] | None, pids: tuple[int, ...] | None, seclabel: bytes | None
) -> ProcessMetadata:
    """The identity that a privileged connection claims at HELLO (HELLO-11): only the given parts are valid.

    Raises CommandError(EINVAL) for ids without a mapping and for processes that do not exist.
    """
    process = ProcessMetadata()
    if creds is not None:
        uids = [_global_id(uid, caller.uid_to_global) for uid in creds[:4]]
        gids = [_global_id(gid, caller.gid_to_global) for gid in creds[4:]]
        process.creds = Creds(*uids, *gids)
        process.valid |= c.ATTACH_CREDS
    if pids is not None:
        process.pids = _global_pids(caller, *pids)
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
        raise CommandError(EINVAL, "id without a mapping")
    return result


def _global_pids(caller: Caller, pid: int, tid: int, ppid: int) -> dict[int, Pids]:
    views: list[dict[int, int]] = []
    for number in (pid, tid, ppid):
        # Their lower 32 bits count, as those of the ids in policies (POL-2).
        view = caller.pids_of(number & 0xFFFFFFFF) if number else {}
        if view is None:
            raise CommandError(EINVAL, "no such process")
        views.append(view)
    namespaces = set().union(*views)
    return {ns: Pids(*(view.get(ns, 0) for view in views)) for ns in namespaces}
