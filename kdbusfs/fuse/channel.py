"""The typed interface of the native channel, and the amendment of pyfuse3's answers on their way to the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

from ..abi.commands import ENDPOINT_FILE, Command
from ..abi.families import FAMILIES
from ..base.call import struct_size
from ..bus1 import abi as bus1
from ..bus1.peer import FILE_KIND as BUS1_FILE
from ..native import calls
from ..native._native import ffi, lib
from ..native.calls import address_of
from .protocol import (
    INIT,
    LOOKUP,
    OPEN,
    PASSTHROUGH,
    READDIRPLUS,
    OpenAnswer,
    amend_init,
    amend_lookup,
    amend_open,
    amend_readdirplus,
    parse_forget,
)

if TYPE_CHECKING:
    from ..native import _native

IOCTL: Final = 1
INTERRUPT: Final = 2
TREE: Final = 3
TIMER: Final = 4
EVENT: Final = 5
GONE: Final = 6
OWNER: Final = 7
END: Final = 8
RELEASE: Final = 9
FORGET: Final = 10

NOTHING: Final = -2147483647
"""Sentinel result: no reply is due."""

NS_PER_MS: Final = 1_000_000

# Offsets in the head of the current ioctl (`native.calls.current_request`): three u64, then 32 bits each.  The pidfd is
# that of the calling thread and belongs to the channel, -1 if no memory has to be accessed; lengths and errno are those
# of the copied command and message; the last is the number of slices in `freed`.
REQUEST_UNIQUE: Final = 0
REQUEST_FH: Final = 8
REQUEST_ARG: Final = 16
REQUEST_CMD: Final = 24
REQUEST_TID: Final = 28
REQUEST_COMMAND_LEN: Final = 32
REQUEST_COMMAND_ERROR: Final = 36
REQUEST_PIDFD: Final = 40
REQUEST_MESSAGE_LEN: Final = 44
REQUEST_MESSAGE_ERROR: Final = 48
REQUEST_FREED: Final = 52
REQUEST_SIZE: Final = 56
FREED: Final = Struct("=QQ")
"""fh and offset."""
_FREED_COUNT_SIZE: Final = 8
_OWNERS: Final = (
    "spares",
    "stuck",
    "yielded",
    "held",
    "preempted",
    "blocked",
    "yields",
    "longest_turn_us",
    "abandoned",
)
_COUNTERS: Final = (
    "requests",
    "ioctls",
    "polls",
    "notifies",
    "interrupts",
    "tree",
    "lost",
    "pidfds",
    "kept_waiting",
    "muted",
)


class Tree(Protocol):
    """The methods of the tree that the amendments call."""

    def ino_of(self, nodeid: int) -> int:
        """The inode number that programs see for a node id."""

    def set_up(self, granted: int) -> None:
        """Take the flags that the kernel has granted of those that `amend_init` asks for."""


class Channel:
    """One mount's /dev/fuse, split: `step` returns ioctls, interrupts and closes; pyfuse3 gets the rest.

    fuse_fd: /dev/fuse; O_NONBLOCK is set and cleared on it. tree_fd: the near end of the SOCK_SEQPACKET pair. event_fd:
    an eventfd that ends a wait when it is written.  The caller closes the descriptors.

    A channel belongs to one thread.  Other threads of the same mount have their own (`for_thread`), and all of them
    share the fhs; which one may use them now is a matter of ownership (fuse.ownership).
    """

    __slots__ = (
        "address",
        "command",
        "freed",
        "freed_count",
        "native",
        "reply",
        "request",
    )

    address: int
    """Address of the native structure, for `native.calls`."""

    native: _native.Channel
    """The native structure.  Hot paths read its members directly."""

    command: memoryview
    """The buffer whose first bytes are the command struct of the current ioctl."""

    freed: memoryview
    """The published slices whose FREE the channel has answered, as FREED, until the core is told."""

    freed_count: memoryview
    """Their number, in [0]; the code that tells the core sets it to 0."""

    def __init__(self, fuse_fd: int, tree_fd: int, event_fd: int) -> None:
        self._use(lib.kfs_channel_new(fuse_fd, tree_fd, event_fd))
        for family in FAMILIES:
            for command in family.commands():
                self._register(command)
        for number in bus1.COMMANDS:
            self._register_plain(BUS1_FILE, number, number in bus1.READING, number in bus1.RETURNING)

    def _register_plain(self, file: int, number: int, reads_memory: bool, returns: bool) -> None:
        """Register a command whose struct has no size member, as all of bus1."""
        size = struct_size(number)
        check(lib.kfs_channel_command(self.native, file, number, size, size, 0))
        check(lib.kfs_channel_plain(self.native, file, number, reads_memory, returns))

    def _register(self, command: Command) -> None:
        native, file, number = self.native, command.file, command.number
        pointer = command.message_pointer
        check(lib.kfs_channel_command(native, file, number, command.size, command.max_size, pointer))
        if pointer:
            check(lib.kfs_channel_messages(native, file, number, command.message_max))
        if command.tells_offset_at:
            at, flag = command.tells_offset_at, command.tells_offset_flag
            check(lib.kfs_channel_publishes(native, file, number, at, flag))
        if command.slice_offset_at:
            at, flags = command.slice_offset_at, command.flags_offset
            told, count = command.tells_flags_at, 2 if command.offered else 1
            check(lib.kfs_channel_frees(native, file, number, at, flags, told, count, command.offered))

    def _use(self, native: _native.Channel) -> None:
        if native == ffi.NULL:
            raise MemoryError
        self.native = native
        self.address = address_of(native)
        freed = lib.kfs_channel_freed(native)
        self.freed_count = memoryview(ffi.buffer(freed, _FREED_COUNT_SIZE)).cast("Q")
        self.freed = memoryview(ffi.buffer(freed.slices))
        self.command = memoryview(ffi.buffer(native.command, lib.KFS_COMMAND_MAX))
        self.request = memoryview(ffi.buffer(native.request, lib.KFS_REQUEST_MAX))
        self.reply = memoryview(ffi.buffer(native.reply, lib.KFS_REQUEST_MAX))

    def for_thread(self) -> Channel:
        """Make another channel of the mount, for another thread.  Raises MemoryError."""
        channel = Channel.__new__(Channel)
        channel._use(lib.kfs_channel_for_thread(self.native))
        return channel

    def take(self) -> int:
        """Bind this channel to the calling thread, and wait until that owns the core: OWNER; or END.

        Raises OSError if the watchdog cannot be started.
        """
        kind: int = lib.kfs_channel_take(self.native)
        check(kind)
        return kind

    def end(self) -> None:
        """For the owner: end the service, so that no other thread continues."""
        lib.kfs_channel_end(self.native)

    def owners(self) -> dict[str, int]:
        """Count the reader threads of the mount, for `stats`.

        spares, stuck, yielded: threads in that state now; held: requests that wait unread, because their user has had
        his turn, or too many of his have yielded; preempted, blocked, yields, abandoned (a client was killed while its
        reader was stuck): events since the start; longest_turn_us: the longest cpu time of a turn.
        """
        owners = ffi.new("struct kfs_owners *")  # a buffer of its own: any thread may ask
        lib.kfs_channel_owners(self.native, owners)
        return {name: getattr(owners, name) for name in _OWNERS}

    def starve(self, is_starving: bool) -> None:
        """Tell whether the system refuses to start threads: then the last reader must not access client memory."""
        lib.kfs_channel_starve(self.native, is_starving)

    def close(self) -> None:
        """Free the native side.  The channel must not be used afterwards."""
        if hasattr(self, "native"):
            native = self.native
            del self.native
            lib.kfs_channel_free(native)

    def step(self, deadline: int, result: int) -> int:
        """Answer the last ioctl, then wait for the next event: IOCTL, INTERRUPT, RELEASE, FORGET, TREE, TIMER, EVENT or
        GONE. OWNER: others have owned the core meanwhile; END: they still do, and the thread has to end.

        deadline: CLOCK_MONOTONIC ns after which TIMER is returned; 0: none. result: of the ioctl that the last step
        returned, 0 or -errno; the caller of an `_IOWR` command gets the struct in `command` back in either case.
        NOTHING when no answer is due now.

        Raises OSError: ETIMEDOUT, EPIPE when the tree does not answer or has ended; and the errors of /dev/fuse.
        """
        kind = calls.step(self.address, deadline, result)
        if kind < 0:
            check(kind)
        return kind

    @property
    def forgotten(self) -> list[tuple[int, int]]:
        """The node ids of the current FORGET, each with its number of lookups."""
        return parse_forget(self.native.opcode, self.request[: self.native.request_len])

    @property
    def released(self) -> int:
        """The fh whose last descriptor is gone."""
        fh: int = self.native.fh
        return fh

    @property
    def interrupted(self) -> int:
        """The unique of the request that the current INTERRUPT is for."""
        unique: int = self.native.unique
        return unique

    def flush(self, result: int) -> None:
        """Send the answer that the next step would send first."""
        lib.kfs_channel_flush(self.native, result)

    def store(
        self, fh: int, number: int, uid: int, tid: int, unique: int, address: int, data: bytes, fixed: bytes
    ) -> bool:
        """After a flush: store `data` in the memory of thread `tid`, then answer its deferred request `unique`.

        That is command `number` of `fh`, and `fixed` its struct with `data` in it, which may contain a pool offset.  A
        client that delays this delays only its own commands.  Returns False, with nothing done, if the memory must not
        be accessed now.
        """
        return calls.store(self.address, fh, number, uid, tid, unique, address, data, fixed) == 0

    def answer(
        self, unique: int, result: int, out: memoryview | bytes | bytearray, fh: int = 0, number: int = 0
    ) -> bool:
        """Answer a deferred ioctl at once: command `number` of `fh`.  Returns False if its client does not wait any
        more.
        """
        return calls.answer(self.address, fh, number, unique, result, bytes(out)) == 0

    def keep(self, kept: _native.Kept) -> None:
        """Go on with fhs where the daemon before has ended, and keep there what the next one needs; before `slot_new`.

        It has to last as long as the channel.
        """
        check(lib.kfs_channel_keep(self.native, kept))

    def slot_new(self, file_kind: int = ENDPOINT_FILE, user: int = 0, group: int = 0) -> int:
        """Allocate an fh, at least 2**32 and never used before, of a file that takes the commands of `file_kind`.

        user: who opened it; group: of the files that may see its end, 0: none.  Raises MemoryError.
        """
        fh: int = lib.kfs_channel_slot_new(self.native, file_kind, user & 0xFFFFFFFF, group)
        if fh < 0:
            raise MemoryError
        return fh

    def slot_free(self, fh: int) -> None:
        """Release `fh`."""
        lib.kfs_channel_slot_free(self.native, fh)

    def slot_can_wait(self, fh: int) -> None:
        """Only files of its group may see the end of `fh`: after it is closed others may be served first."""
        lib.kfs_channel_end_can_wait(self.native, fh)

    def slot_share(self, fh: int, is_shared: bool) -> None:
        """Set whether other fhs are the same connection: then the core handles every FREE."""
        lib.kfs_channel_share(self.native, fh, is_shared)

    def set_events(self, fh: int, revents: int) -> None:
        """Set the poll bits of `fh`, and wake its pollers if a bit that they wait for is new."""
        calls.set_events(self.address, fh, revents)

    def words(self, count: int) -> calls.Words:
        """The first `count` u64 of the command struct of the current ioctl, writable."""
        return calls.Words(address_of(self.native.command), count)

    @property
    def slots(self) -> int:
        """Number of fhs in use."""
        count: int = lib.kfs_channel_slots(self.native)
        return count

    @property
    def closed(self) -> int:
        """Number of files and directories that are closed and whose end is postponed, until it is their user's turn."""
        count: int = lib.kfs_channel_closed(self.native)
        return count

    def set_tree_timeout(self, milliseconds: int) -> None:
        """Set how long the tree may take for one answer."""
        self.native.tree_timeout_ms = milliseconds

    def counters(self) -> dict[str, int]:
        """Counters for `stats`. lost: answers whose client did not wait any more."""
        counts = self.native.counts
        return {name: getattr(counts, name) for name in _COUNTERS}

    def reset_counters(self) -> None:
        """Reset the counters.  Any thread may call it: a concurrent request may be counted or not."""
        counts = self.native.counts
        for name in _COUNTERS:
            setattr(counts, name, 0)


class Amendments:
    """Changes pyfuse3's answers before the kernel gets them.

    passthrough: whether it is requested; after INIT whether the mount has it.
    on_init: called with INIT and the flags that it is granted, before the answer makes the mount usable.
    """

    __slots__ = ("_on_init", "_open_answer", "_tree", "passthrough")

    def __init__(
        self,
        tree: Tree,
        open_answer: Callable[[int], OpenAnswer | None],
        passthrough: bool,
        on_init: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self._on_init = on_init
        self._tree = tree
        self._open_answer = open_answer
        self.passthrough = passthrough

    def apply(self, channel: Channel) -> None:
        """Amend the answer that `channel` holds, if any.  The next step sends it.

        Raises ProtocolError; the answer is then sent unchanged.
        """
        length: int = channel.native.reply_len
        if not length:
            return
        reply = channel.reply[:length]
        opcode: int = channel.native.opcode
        if opcode == LOOKUP:
            amend_lookup(reply, self._tree.ino_of)
        elif opcode == OPEN:
            amend_open(reply, self._open_answer)
        elif opcode == READDIRPLUS:
            amend_readdirplus(reply)
        elif opcode == INIT:
            request = channel.request[: channel.native.request_len]
            granted = amend_init(request, reply, self.passthrough)
            self.resume(granted)
            if self._on_init is not None:
                self._on_init(bytes(request), granted)

    def resume(self, granted: int) -> None:
        """The kernel was granted those flags, now or by an earlier daemon of the mount."""
        self.passthrough = bool(granted & PASSTHROUGH)
        self._tree.set_up(granted)


def check(result: int) -> None:
    """Raise OSError for a negative result."""
    if result < 0:
        name = errno.errorcode.get(-result, str(-result))
        raise OSError(-result, f"{name} in the channel to the kernel: {os.strerror(-result)}")
