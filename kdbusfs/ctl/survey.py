"""List the names and connections of a bus with their metadata; tolerates changes meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Info

from .describe import HELLO_FLAGS, NAME_FLAGS, flag_names, proc_command, user_name

if TYPE_CHECKING:
    from kdbusfs.client import Connection, NameInfo

WANTED: Final = (
    c.ATTACH_PIDS | c.ATTACH_CREDS | c.ATTACH_PID_COMM | c.ATTACH_CMDLINE | c.ATTACH_EXE | c.ATTACH_CONN_DESCRIPTION
)

State = Literal["owned", "activatable", "queued", "unique"]
"""State of a name: owned, owned by an activator, or waited for.  "unique": a connection without a name."""


@dataclass(slots=True)
class Peer:
    """A connection.  info: None if a policy hides it; family: the ABI that it speaks, None if that is not known."""

    id: int
    flags: int
    info: Info | None = None
    family: str | None = None
    _command: tuple[str | None, str | None, str | None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Its process id; None: hidden, or not in this pid namespace."""
        pids = None if self.info is None else self.info.metadata.pids
        return pids.pid or None if pids is not None else None

    @property
    def uid(self) -> int | None:
        """Its effective user id; None: hidden."""
        creds = None if self.info is None else self.info.metadata.creds
        return None if creds is None else creds.euid

    @property
    def user(self) -> str | None:
        """The user's name, or the number."""
        return None if self.uid is None else user_name(self.uid)

    @property
    def description(self) -> str | None:
        """Its description, as set at HELLO."""
        return None if self.info is None else self.info.metadata.description

    def command(self) -> tuple[str | None, str | None, str | None]:
        """comm, command line, and their source: "bus" or "proc".  None: unknown."""
        if self._command is None:
            self._command = self._find_command()
        return self._command

    def _find_command(self) -> tuple[str | None, str | None, str | None]:
        if self.info is not None:
            metadata = self.info.metadata
            if metadata.pid_comm is not None or metadata.cmdline is not None:
                return metadata.pid_comm, metadata.cmdline, "bus"
        found = None if self.pid is None else proc_command(self.pid, self.uid)
        return (None, None, None) if found is None else (*found, "proc")

    @property
    def command_text(self) -> str:
        """The command line, or the name of the process, or "-"."""
        comm, line, _ = self.command()
        return line or comm or "-"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list: a name with its owner or a waiter, or a connection without a name."""

    name: str | None
    state: State
    name_flags: int
    peer: Peer

    @property
    def state_text(self) -> str:
        """The state; for a connection without a name, its kind."""
        if self.state != "unique":
            return self.state
        kinds = flag_names(self.peer.flags & c.HELLO_SPECIAL, HELLO_FLAGS)
        return kinds[0] if kinds else "-"


def survey(
    connection: Connection,
    states: Iterable[State],
    *,
    details: bool = True,
    families: Mapping[int, str] = MappingProxyType({}),
) -> list[Entry]:
    """The names and connections of a bus in any of `states`, without `connection` itself.

    Sorted names first, then connections by id.  details: query each connection; one that ends meanwhile is omitted, a
    hidden one stays without details.  families: what each speaks, by id.  Raises OSError.
    """
    wanted = set(states)
    peers: dict[int, Peer] = {}
    entries: list[Entry] = []

    def add(record: NameInfo, state: State) -> None:
        if record.id != connection.id:
            peer = peers.setdefault(record.id, Peer(record.id, record.conn_flags, family=families.get(record.id)))
            entries.append(Entry(record.name, state, record.flags if record.name is not None else 0, peer))

    named: set[int] = set()
    if wanted & {"owned", "unique"}:
        for record in connection.list_names(c.NAME_LIST_NAMES):
            named.add(record.id)
            if "owned" in wanted:
                add(record, "owned")
    if "unique" in wanted:
        # A separate command: combined with names it omits connections whose names are all hidden (LIST-9).
        for record in connection.list_names(c.NAME_LIST_UNIQUE):
            if record.id not in named:
                add(record, "unique")
    if "activatable" in wanted:
        for record in connection.list_names(c.NAME_LIST_ACTIVATORS):
            if record.conn_flags & c.HELLO_ACTIVATOR:
                add(record, "activatable")
    if "queued" in wanted:
        for record in connection.list_names(c.NAME_LIST_QUEUED):
            add(record, "queued")
        waiting = {entry.peer.id for entry in entries if entry.state == "queued"}
        entries = [entry for entry in entries if entry.name is not None or entry.peer.id not in waiting]
    if details:
        gone = _ask(connection, peers)
        entries = [entry for entry in entries if entry.peer.id not in gone]
    order = ("owned", "activatable", "queued", "unique")
    return sorted(entries, key=lambda e: (e.name is None, e.name or "", order.index(e.state), e.peer.id))


def _ask(connection: Connection, peers: dict[int, Peer]) -> set[int]:
    """Query the details of each connection.  Returns the ids of those that have ended."""
    refused: set[int] = set()
    for peer in peers.values():
        try:
            peer.info = connection.conn_info(peer.id, WANTED)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ESRCH, errno.EPERM, errno.EACCES):
                raise
            refused.add(peer.id)
    if not refused:
        return refused
    # Ended and hidden connections give the same errno; only hidden ones are listed.
    listed = {
        record.id for flags in (c.NAME_LIST_UNIQUE, c.NAME_LIST_ACTIVATORS) for record in connection.list_names(flags)
    }
    return refused - listed


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as JSON; unknown values are null."""
    peer = entry.peer
    comm, line, source = peer.command()
    return {
        "name": entry.name,
        "state": entry.state,
        "name_flags": flag_names(entry.name_flags, NAME_FLAGS),
        "id": peer.id,
        "visible": peer.info is not None,
        "flags": flag_names(peer.flags, HELLO_FLAGS),
        "pid": peer.pid,
        "uid": peer.uid,
        "user": peer.user,
        "comm": comm,
        "command": line,
        "command_source": source,
        "description": peer.description,
        "family": peer.family,
    }
