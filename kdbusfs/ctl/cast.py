"""Who is who on a bus: names, processes and users of its connections, kept up to date from what a monitor sees."""

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
    """Who made a connection, as it was at HELLO; None: that is not known."""

    pid: int | None = None
    uid: int | None = None
    comm: str | None = None


_NOBODY: Final = Process()


class Cast:
    """The names and processes of a bus, asked through `connection`.

    Notifications that `see` is given keep the names right; after lost ones `missed` has them listed again, at most once
    a second.
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
        """Who owns a name."""
        return self._owners.get(name)

    def process(self, id: int) -> Process:
        """Who made a connection; asked for once, so that it is still known after its end."""
        process = self._processes.get(id)
        if process is None:
            if len(self._processes) >= _KEPT:
                self._processes.clear()
            process = self._processes[id] = self._ask(id)
        return process

    def see(self, notification: Notification) -> None:
        """Take up what a notification says."""
        if isinstance(notification, NameChange):
            if notification.old_id:
                self._take(notification.old_id, notification.name)
            if notification.new_id:
                self._give(notification.new_id, notification.name)

    def missed(self) -> None:
        """Notifications may have been lost."""
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
            return  # no room in the pool, or the bus is ending: the names stay as they were
        self._names.clear()
        self._owners.clear()
        for record in records:
            if record.name is not None:
                self._give(record.id, record.name)

    def _ask(self, id: int) -> Process:
        try:
            found = self._connection.conn_info(id, _KINDS).metadata
        except OSError:
            return _NOBODY
        pid = found.pids.pid or None if found.pids is not None else None
        comm = found.pid_comm
        if comm is None and pid is not None:  # the bus tells it only where attach_flags_mask lets it
            command = proc_command(pid, found.creds.euid if found.creds is not None else None)
            comm = None if command is None else command[0]
        return Process(pid, found.creds.uid if found.creds is not None else None, comm)
