"""Who is on a bus: names, connections and what is known of them, also while they come and go."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
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
"""Of a name: somebody owns it, an activator stands behind it, or somebody waits for it.  "unique" has no name."""


@dataclass(slots=True)
class Peer:
    """A connection.  info is None where it may not be seen."""

    id: int
    flags: int
    info: Info | None = None
    _command: tuple[str | None, str | None, str | None] | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Its process; None: not shown, or in a pid namespace that cannot be seen from here."""
        pids = None if self.info is None else self.info.metadata.pids
        return pids.pid or None if pids is not None else None

    @property
    def uid(self) -> int | None:
        """Its effective user id; None: not shown."""
        creds = None if self.info is None else self.info.metadata.creds
        return None if creds is None else creds.euid

    @property
    def user(self) -> str | None:
        """The user's name, or the number."""
        return None if self.uid is None else user_name(self.uid)

    @property
    def description(self) -> str | None:
        """What it calls itself."""
        return None if self.info is None else self.info.metadata.description

    def command(self) -> tuple[str | None, str | None, str | None]:
        """comm, command line, and where they are from: "bus" or "proc"; None where nothing is known."""
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
    """A line of a list: a name and who has it or wants it, or a connection without a name."""

    name: str | None
    state: State
    name_flags: int
    peer: Peer

    @property
    def state_text(self) -> str:
        """The state, or for a connection without a name what kind of connection it is."""
        if self.state != "unique":
            return self.state
        kinds = flag_names(self.peer.flags & c.HELLO_SPECIAL, HELLO_FLAGS)
        return kinds[0] if kinds else "-"


def survey(connection: Connection, states: Iterable[State], *, details: bool = True) -> list[Entry]:
    """The names and connections of a bus that `states` ask for, but not `connection` itself.

    Names come first, in order, then connections by id.  details: also ask for each connection; one that goes away
    meanwhile is left out, one that may not be seen stays, without them.  Raises OSError.
    """
    wanted = set(states)
    peers: dict[int, Peer] = {}
    entries: list[Entry] = []

    def add(record: NameInfo, state: State) -> None:
        if record.id != connection.id:
            peer = peers.setdefault(record.id, Peer(record.id, record.conn_flags))
            entries.append(Entry(record.name, state, record.flags if record.name is not None else 0, peer))

    named: set[int] = set()
    if wanted & {"owned", "unique"}:
        for record in connection.list_names(c.NAME_LIST_NAMES):
            named.add(record.id)
            if "owned" in wanted:
                add(record, "owned")
    if "unique" in wanted:
        # By itself: together with the names it leaves out who has only names that may not be seen (LIST-9).
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
    """Fill in what is known of each connection; gives the ids of those that are gone."""
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
    # Both who is gone and who is hidden by a custom endpoint's policy is "not there"; only the first is not listed.
    listed = {
        record.id for flags in (c.NAME_LIST_UNIQUE, c.NAME_LIST_ACTIVATORS) for record in connection.list_names(flags)
    }
    return refused - listed


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as JSON: null for what is not known."""
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
    }
