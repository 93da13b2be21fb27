"""The table of open files: from the fh of a FUSE request to the handle behind it."""

from __future__ import annotations

from errno import EMFILE
from typing import Final, Protocol

from ..base.errors import CommandError
from ..base.handle import Handle
from ..native.calls import set_events
from .protocol import OpenAnswer

_SLOT_MASK: Final = 0xFFFFFFFF  # bits of an fh that are its slot
MAX_PER_USER: Final = 16384
"""Maximum of open files and directories of the mount for one user."""


class Slots(Protocol):
    """The native side of the table, which answers polls."""

    address: int
    """Address of the native structure, for `native.calls`."""

    def slot_new(self, file_kind: int, user: int, group: int) -> int:
        """Allocate an fh of a file that takes the commands of `file_kind`.  Raises MemoryError.

        user: who opened it; group: of the files that may see its end, 0: none.
        """

    def slot_free(self, fh: int) -> None:
        """Release `fh`."""

    def slot_can_wait(self, fh: int, /) -> object:
        """Only files of its group may see the end of `fh`."""

    @property
    def closed(self) -> int:
        """Number of files that are closed already, and count as open until `remove`."""

    def slot_share(self, fh: int, is_shared: bool, /) -> object:
        """Set whether other fhs have the same handle."""


class _File:
    """An open file."""

    __slots__ = ("answer", "fh", "handle")

    def __init__(self, fh: int, handle: Handle, answer: OpenAnswer) -> None:
        self.fh = fh
        self.handle = handle
        self.answer = answer


class OpenFiles:
    """fh -> handle.  An fh is never reused, so a stale one refers to nothing.

    Every fh is at least 2**32: smaller numbers are used for files that are not the core's.  Its lower half is its slot.
    A handle has two fhs while HELLO swaps the descriptor of its connection.  Each open file costs memory and a
    descriptor, also before HELLO, so a user may have `per_user`.
    """

    __slots__ = ("_address", "_count", "_held", "_per_user", "_slots", "_table", "_users")

    def __init__(self, slots: Slots, per_user: int = MAX_PER_USER) -> None:
        self._slots = slots
        self._address = slots.address
        self._per_user = per_user
        self._table: list[_File | None] = []  # by slot
        self._count = 0
        self._users: dict[Handle, int] = {}
        self._held: dict[int, int] = {}

    def __len__(self) -> int:
        return self._count

    def check_room(self, user: int) -> None:
        """Raises CommandError(EMFILE) if `user` has the maximum of open files.

        Files whose end is postponed do not count, whoever has closed them.
        """
        if self._held.get(user, 0) >= self._per_user + self._slots.closed:
            raise CommandError(EMFILE, "user has too many files open")

    def charge(self, user: int) -> None:
        """Count one more open file of `user`."""
        self._held[user] = self._held.get(user, 0) + 1

    def discharge(self, user: int) -> None:
        """Count one open file of `user` less."""
        left = self._held[user] - 1
        if left:
            self._held[user] = left
        else:
            del self._held[user]

    def add(self, handle: Handle, open_flags: int, backing_id: int, user: int = 0) -> int:
        """Allocate an fh for an open of `handle`, whose answer will carry `open_flags` and `backing_id`.

        user: who is charged; a second fh of the same handle is free.  Raises MemoryError; the handle is not released
        then.
        """
        fh = self._slots.slot_new(handle.file_kind, self._users.get(handle, user), handle.group)
        if handle not in self._users:
            self._users[handle] = user
            self.charge(user)
        if handle.end_can_wait:
            self._slots.slot_can_wait(fh)
        set_events(self._address, fh, handle.poll())
        slot = fh & _SLOT_MASK
        table = self._table
        while len(table) <= slot:
            table.append(None)
        table[slot] = _File(fh, handle, (open_flags, backing_id))
        self._count += 1
        handle.fhs.append(fh)
        if len(handle.fhs) > 1:
            for each in handle.fhs:
                self._slots.slot_share(each, True)
        return fh

    def _find(self, fh: int) -> _File | None:
        slot = fh & _SLOT_MASK
        table = self._table
        if slot >= len(table):
            return None
        file = table[slot]
        return file if file is not None and file.fh == fh else None

    def get(self, fh: int) -> Handle | None:
        """The handle of `fh`; None if it is not open."""
        file = self._find(fh)
        return file.handle if file is not None else None

    def remove(self, fh: int) -> bool:
        """Remove `fh`, and release its handle with the last fh.  Returns whether `fh` was open."""
        file = self._find(fh)
        if file is None:
            return False
        self._table[fh & _SLOT_MASK] = None
        self._count -= 1
        self._slots.slot_free(fh)
        handle = file.handle
        handle.fhs.remove(fh)
        if len(handle.fhs) == 1:
            self._slots.slot_share(handle.fhs[0], False)
        elif not handle.fhs:
            self.discharge(self._users.pop(handle))
            handle.release()
        return True

    def let_end_wait(self, handle: Handle) -> None:
        """From now on only handles of its group may see its end."""
        handle.end_can_wait = True
        for fh in handle.fhs:
            self._slots.slot_can_wait(fh)

    def open_answer(self, fh: int) -> OpenAnswer | None:
        """open_flags and backing_id for the answer of the OPEN that allocated `fh`; None for other files."""
        file = self._find(fh)
        return file.answer if file is not None else None

    def publish(self, handle: Handle) -> None:
        """Update the poll bits of `handle`, and wake its pollers."""
        fhs = handle.fhs
        if fhs:
            revents = handle.poll()
            for fh in fhs:
                set_events(self._address, fh, revents)
