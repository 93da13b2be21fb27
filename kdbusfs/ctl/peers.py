"""Names, processes and users of the connections on a bus, kept up to date from a monitor's notifications."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import NameChange

from .describe import proc_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdbusfs.client import Connection, Notification

_KINDS: Final = c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_PID_COMM
_LISTED: Final = c.NAME_LIST_NAMES | c.NAME_LIST_ACTIVATORS
_LIST_EVERY: Final = 1.0  # seconds
_KEPT: Final = 65536  # connections


@dataclass(frozen=True, slots=True)
class Process:
    """The process of a connection, as of its HELLO.  None: not known."""

    pid: int | None = None
    uid: int | None = None
    comm: str | None = None


_UNKNOWN: Final = Process()


class Peers:
    """A cache of names and processes, filled by commands on `connection`.

    Pass every notification to `see`, and call `missed` after lost ones: it lists the names again, at most once a
    second.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection = connection
        self._clock = clock
        self._names: dict[int, list[str]] = {}
        self._owners: dict[str, int] = {}
        self._processes: dict[int, Process] = {}
        self._stale = False
        self._listed = clock()
        self._list()

    def names(self, id: int) -> list[str]:
        """The well-known names of a connection, in order of acquisition."""
        return self._names.get(id, [])

    def owner(self, name: str) -> int | None:
        """The id of a name's owner."""
        return self._owners.get(name)

    def process(self, id: int) -> Process:
        """The process of a connection.  Cached, so that it is known after the connection has ended."""
        process = self._processes.get(id)
        if process is None:
            if len(self._processes) >= _KEPT:
                self._processes.clear()
            process = self._processes[id] = self._ask(id)
        return process

    def see(self, notification: Notification) -> None:
        """Apply a notification to the cache."""
        if isinstance(notification, NameChange):
            if notification.old_id:
                self._take(notification.old_id, notification.name)
            if notification.new_id:
                self._give(notification.new_id, notification.name)

    def missed(self) -> None:
        """Notifications may have been lost: list the names again soon."""
        self._stale = True
        self.refresh()

    def refresh(self) -> None:
        """List the names again if that is due."""
        if self._stale and self._clock() - self._listed >= _LIST_EVERY:
            self._stale = False
            self._listed = self._clock()
            self._list()

    def _give(self, id: int, name: str) -> None:
        self._owners[name] = id
        names = self._names.setdefault(id, [])
        if name not in names:
            names.append(name)

    def _take(self, id: int, name: str) -> None:
        names = self._names.get(id, [])
        if name in names:
            names.remove(name)
            if not names:
                del self._names[id]
        if self._owners.get(name) == id:
            del self._owners[name]

    def _list(self) -> None:
        try:
            records = self._connection.list_names(_LISTED)
        except OSError:
            return  # no room in the pool, or the bus is ending: keep the old names
        self._names.clear()
        self._owners.clear()
        for record in records:
            if record.name is not None:
                self._give(record.id, record.name)

    def _ask(self, id: int) -> Process:
        try:
            found = self._connection.conn_info(id, _KINDS).metadata
        except OSError:
            return _UNKNOWN
        pid = found.pids.pid or None if found.pids is not None else None
        comm = found.pid_comm
        if comm is None and pid is not None:  # hidden by attach_flags_mask: try /proc
            command = proc_command(pid, found.creds.euid if found.creds is not None else None)
            comm = None if command is None else command[0]
        return Process(pid, found.creds.uid if found.creds is not None else None, comm)
