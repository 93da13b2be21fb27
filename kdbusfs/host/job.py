"""A job of the installer: the answer to one ioctl, and what its thread receives before it continues."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from kdbusfs.base.errors import CommandError

if TYPE_CHECKING:
    from kdbusfs.base.ports import Caller
    from kdbusfs.native._native import CData

    from .copies import Stores

_FLAGS: Final = Struct("=Q")


class Job:
    """The answer to one ioctl, and the descriptors that its thread gets before it goes on.

    tid: the thread, blocked in the request `unique`; user: real uid whose thread does the job;
    result: what the ioctl returns, 0 or -errno; out: the struct that travels back with it;
    entries: (descriptor of the daemon, `int32_t *` for the client's number), installed in this order;
    address: of the command struct in the client's memory;
    flags_offset: of the return flags (u64) in that struct, or -1; they become `incomplete_flags` when an entry fails
    (RECV-14), in `out` if they are in there, and in the client's memory otherwise;
    writes: (address, bytes) to be stored in the client's memory before the answer; where that fails the ioctl returns
    the errno; caller: the client, for the writes and flags that do not travel back in `out`; None: there are none;
    swap: path of a file to take the place of the descriptor that the ioctl was made with, opened read-only;
    swapped_node: the node id that descriptor is of, on the same mount; if a sibling has put any other file at its
    number meanwhile, nothing is swapped;
    unswapped: what shows the client its pool in the file that it has, if nothing is swapped; None: nothing;
    outcome: 1 or -errno when it is over, an `int32_t *`, for a job that is all or none: the ioctl fails where an entry
    does, and the client's struct is `original` again; None: it is not;
    stores: what has to be stored in the page cache of the client before its answer; None: nothing;
    context: the submitter's own; it keeps descriptors and pointers of `entries` valid until the end.

    When finished, every entry's int32 has a number (the lowest free ones, close-on-exec: LAY-16) or -errno,
    and the client has its answer.  installed: how many entries have a number; swapped: whether it took place;
    error: 0 or the errno of what went wrong first, for statistics: the ioctl returns `result` all the same;
    abandoned: the client was killed before its turn, or while it held its job up, and is answered.
    """

    __slots__ = (
        "abandoned",
        "address",
        "caller",
        "context",
        "entries",
        "error",
        "flags_offset",
        "incomplete_flags",
        "installed",
        "original",
        "out",
        "outcome",
        "result",
        "stores",
        "swap",
        "swapped",
        "swapped_node",
        "tid",
        "unique",
        "unswapped",
        "user",
        "writes",
    )

    def __init__(
        self,
        *,
        tid: int,
        user: int,
        unique: int,
        result: int,
        out: bytes,
        entries: list[tuple[int, CData]],
        address: int = 0,
        flags_offset: int = -1,
        incomplete_flags: int = 0,
        caller: Caller | None = None,
        writes: Sequence[tuple[int, bytes]] = (),
        swap: str | None = None,
        swapped_node: int = 0,
        unswapped: Stores | None = None,
        outcome: CData | None = None,
        original: bytes = b"",
        stores: Stores | None = None,
        context: object = None,
    ) -> None:
        self.tid = tid
        self.user = user
        self.unique = unique
        self.result = result
        self.out = out
        self.entries = entries
        self.address = address
        self.flags_offset = flags_offset
        self.incomplete_flags = incomplete_flags
        self.caller = caller
        self.writes = writes
        self.swap = swap
        self.swapped_node = swapped_node
        self.unswapped = unswapped
        self.outcome = outcome
        self.original = original
        self.stores = stores
        self.context = context
        self.installed = 0
        self.swapped = False
        self.error = 0
        self.abandoned = False

    @property
    def tells_incomplete(self) -> bool:
        """Whether the client gets the errno of entries that fail."""
        return bool(self.entries) and self.flags_offset >= 0

    def write(self) -> None:
        """Store `writes` in the client's memory, which may block."""
        if self.caller is not None:
            try:
                for address, data in self.writes:
                    self.caller.write(address, data)
            except CommandError as fault:
                self.result = -fault.errno

    def fail(self, error: int) -> bytes:
        """Every entry has failed with `error`; returns the struct that travels back."""
        self.error = error
        for _, slot in self.entries:
            slot[0] = -error
        if self.outcome is not None:
            self.result = self.outcome[0] = -(error or errno.EIO)
            return b""
        if not self.tells_incomplete:
            return self.out
        if self.flags_offset + _FLAGS.size <= len(self.out):
            out = bytearray(self.out)
            _FLAGS.pack_into(out, self.flags_offset, self.incomplete_flags)
            return bytes(out)
        if self.caller is not None:
            # The ioctl has taken effect: its result stays, even if the client's memory cannot be written.
            with contextlib.suppress(CommandError):
                self.caller.write(self.address + self.flags_offset, _FLAGS.pack(self.incomplete_flags))
        return self.out
