"""The table of open files: from the fh of a FUSE request to the handle behind it."""

from __future__ import annotations

from typing import Protocol

from ..core.handle import Handle
from .protocol import OpenAnswer


class Slots(Protocol):
    """The native side of the table, which answers polls."""

    def slot_new(self) -> int:
        """A new fh.  Raises MemoryError."""

    def slot_free(self, fh: int) -> None:
        """Give `fh` back."""

    def slot_share(self, fh: int, is_shared: bool, /) -> object:
        """Whether other fhs have the same handle."""

    def set_events(self, fh: int, revents: int, /) -> object:
        """What polls of `fh` answer from now on; a waiting poller is woken."""


class OpenFiles:
    """fh -> handle.  An fh is never given out twice, so a stale one names nothing.

    Every fh is at least 2**32: smaller ones are free for files that are not the core's.
    A handle has two for as long as the descriptor of a connection is being swapped at its HELLO.
    """

    __slots__ = ("_answers", "_fhs", "_set_events", "_slots", "handles")

    handles: dict[int, Handle]

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._set_events = slots.set_events
        self._answers: dict[int, OpenAnswer] = {}
        self._fhs: dict[Handle, list[int]] = {}
        self.handles = {}

    def __len__(self) -> int:
        return len(self.handles)

    def add(self, handle: Handle, open_flags: int, backing_id: int) -> int:
        """An fh for an open of `handle`, whose answer will carry `open_flags` and `backing_id`.

        Raises MemoryError; the handle is then not released.
        """
        fh = self._slots.slot_new()
        self._slots.set_events(fh, handle.poll())
        self.handles[fh] = handle
        self._answers[fh] = (open_flags, backing_id)
        fhs = self._fhs.setdefault(handle, [])
        fhs.append(fh)
        if len(fhs) > 1:
            for each in fhs:
                self._slots.slot_share(each, True)
        return fh

    def get(self, fh: int) -> Handle | None:
        """The handle of `fh`; None for one that is not open."""
        return self.handles.get(fh)

    def remove(self, fh: int) -> bool:
        """Forget `fh`, and release its handle with the last.  Returns whether it was known."""
        handle = self.handles.pop(fh, None)
        if handle is None:
            return False
        del self._answers[fh]
        self._slots.slot_free(fh)
        fhs = self._fhs[handle]
        fhs.remove(fh)
        if len(fhs) == 1:
            self._slots.slot_share(fhs[0], False)
        elif not fhs:
            del self._fhs[handle]
            handle.release()
        return True

    def open_answer(self, fh: int) -> OpenAnswer | None:
        """open_flags and backing_id for the answer of the OPEN that gave `fh`; None for other files."""
        return self._answers.get(fh)

    def publish(self, handle: Handle) -> None:
        """Let pollers of `handle` see its readiness now; one that waits is woken if there is any."""
        fhs = self._fhs.get(handle)
        if fhs is not None:
            revents = handle.poll()
            for fh in fhs:
                self._set_events(fh, revents)
