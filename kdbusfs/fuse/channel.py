"""The typed face of the native channel, and the amendment of pyfuse3's answers on their way back."""

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

# Where the members of the head of the current ioctl are (`native.calls.current_request`): three u64, then 32 bits each.
# The pidfd is of the calling thread and belongs to the channel, -1 if no memory has to be read or written; lengths and
# errno are of the copied command and message; the last tells how many slices are in `freed`.
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
    """What the amendments need of the tree."""

    def ino_of(self, nodeid: int) -> int:
        """The inode number that programs see for a node id."""

    def set_up(self, granted: int) -> None:
        """What the mount has of what `amend_init` asks for."""


class Channel:
    """One mount's /dev/fuse, split: ioctls, interrupts and closes are brought, the rest is for pyfuse3.

    fuse_fd: /dev/fuse; O_NONBLOCK is set and cleared on it.  tree_fd: our end of the SOCK_SEQPACKET pair.
    event_fd: an eventfd that ends a wait when it is written.  No descriptor is closed here.

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
    """Of the native structure, for `native.calls`."""

    native: _native.Channel
    """The native structure: its members, and those of the request, are read directly where speed counts."""

    command: memoryview
    """The command struct of the current ioctl starts here."""

    freed: memoryview
    """The published slices whose FREE was answered, as FREED: only the core has not heard of them yet."""

    freed_count: memoryview
    """How many those are, in [0]; whoever tells the core sets it to 0."""

    def __init__(self, fuse_fd: int, tree_fd: int, event_fd: int) -> None:
        self._use(lib.kfs_channel_new(fuse_fd, tree_fd, event_fd))
        for family in FAMILIES:
            for command in family.commands():
                self._register(command)
        for number in bus1.COMMANDS:
            self._register_plain(BUS1_FILE, number, number in bus1.READING, number in bus1.RETURNING)

    def _register_plain(self, file: int, number: int, reads_memory: bool, returns: bool) -> None:
        """A command whose struct says no size, as all of bus1."""
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
        """Another channel of the mount, for another thread.  Raises MemoryError."""
        channel = Channel.__new__(Channel)
        channel._use(lib.kfs_channel_for_thread(self.native))
        return channel

    def take(self) -> int:
        """Let the calling thread have this channel, and wait until it owns the core: OWNER; or END.

        Raises OSError when ownership cannot be watched over.
        """
        kind: int = lib.kfs_channel_take(self.native)
        check(kind)
        return kind

    def end(self) -> None:
        """As the owner: the service has ended, and no other thread goes on."""
        lib.kfs_channel_end(self.native)

    def owners(self) -> dict[str, int]:
        """Of all threads of the mount: spares, stuck ones and those that have yielded now; held: commands that
        wait unread, because their user has too many that have yielded; preempted, blocked,
        yields and abandoned (a client was killed while its reader was stuck): how often that happened;
        longest_turn_us: the most cpu time that a turn has taken.
        """
        owners = ffi.new("struct kfs_owners *")  # not the channel's: any thread may ask
        lib.kfs_channel_owners(self.native, owners)
        return {name: getattr(owners, name) for name in _OWNERS}

    def starve(self, is_starving: bool) -> None:
        """Whether the system gives no further thread now: who is the last then accesses no memory of clients."""
        lib.kfs_channel_starve(self.native, is_starving)

    def close(self) -> None:
        """Free the native side.  Nothing else may be asked of the channel then."""
        if hasattr(self, "native"):
            native = self.native
            del self.native
            lib.kfs_channel_free(native)

    def step(self, deadline: int, result: int) -> int:
        """Answer the last ioctl, then bring what comes next: IOCTL, INTERRUPT, RELEASE, FORGET, TREE, TIMER, EVENT
        or GONE.  OWNER: others have owned the core meanwhile; END: they do, and the thread is not needed any more.

        deadline: CLOCK_MONOTONIC ns after which TIMER comes; 0: none.
        result: of the ioctl that the last step brought, 0 or -errno; the caller of an `_IOWR` command gets
        the struct in `command` back in either case.  NOTHING when there is none to answer now.

        Raises OSError: ETIMEDOUT, EPIPE when the tree does not answer or is gone; what /dev/fuse raises.
        """
        kind = calls.step(self.address, deadline, result)
        if kind < 0:
            check(kind)
        return kind

    @property
    def forgotten(self) -> list[tuple[int, int]]:
        """Node ids that the kernel forgets, and how many lookups of each."""
        return parse_forget(self.native.opcode, self.request[: self.native.request_len])

    @property
    def released(self) -> int:
        """The fh whose last descriptor is gone."""
        fh: int = self.native.fh
        return fh

    @property
    def interrupted(self) -> int:
        """The unique of the request that an INTERRUPT is about."""
        unique: int = self.native.unique
        return unique

    def flush(self, result: int) -> None:
        """Send what the next step would send first."""
        lib.kfs_channel_flush(self.native, result)

    def serves(self, uid: int, tid: int, unique: int) -> bool:
        """After a flush: serve the deferred request `unique` of thread `tid`, by storing something in its memory.

        Whoever holds that up holds up what is his own.  Returns False where the memory may not be accessed now.
        """
        return bool(lib.kfs_channel_serves(self.native, uid, tid, unique))

    def served(self, fh: int, number: int, struct: bytes | bytearray | None) -> bool:
        """That is done, and `struct`, which may tell of a slice, is where it belongs; None: it is not.

        Returns False when the client was killed meanwhile, and must not be answered once more.
        """
        stored = ffi.NULL if struct is None else ffi.from_buffer(struct)
        return bool(lib.kfs_channel_served(self.native, fh, number, stored, 0 if struct is None else len(struct)))

    def answer(
        self, unique: int, result: int, out: memoryview | bytes | bytearray, fh: int = 0, number: int = 0
    ) -> bool:
        """Answer a deferred ioctl at once: command `number` of `fh`.  Returns False when nobody waits any more."""
        return calls.answer(self.address, fh, number, unique, result, bytes(out)) == 0

    def slot_new(self, file_kind: int = ENDPOINT_FILE) -> int:
        """A new fh, at least 2**32, never given out before, of a file that takes the commands of `file_kind`.

        Raises MemoryError.
        """
        fh: int = lib.kfs_channel_slot_new(self.native, file_kind)
        if fh < 0:
            raise MemoryError
        return fh

    def slot_free(self, fh: int) -> None:
        """Give `fh` back."""
        lib.kfs_channel_slot_free(self.native, fh)

    def slot_share(self, fh: int, is_shared: bool) -> None:
        """Whether other fhs are the same connection: FREE of what its client was told of is brought then."""
        lib.kfs_channel_share(self.native, fh, is_shared)

    def set_events(self, fh: int, revents: int) -> None:
        """Polls of `fh` answer `revents` from now on; a waiting poller is woken if that has news for it."""
        calls.set_events(self.address, fh, revents)

    def words(self, count: int) -> calls.Words:
        """The first `count` u64 of the command struct of the current ioctl, to be set."""
        return calls.Words(address_of(self.native.command), count)

    @property
    def slots(self) -> int:
        """Number of fhs in use."""
        count: int = lib.kfs_channel_slots(self.native)
        return count

    @property
    def closed(self) -> int:
        """Files and directories that were closed and are not ended yet, because that is to be seen by nobody."""
        count: int = lib.kfs_channel_closed(self.native)
        return count

    def set_tree_timeout(self, milliseconds: int) -> None:
        """How long the tree may take for one answer."""
        self.native.tree_timeout_ms = milliseconds

    def counters(self) -> dict[str, int]:
        """What went through: for `stats`.  lost: answers that nobody waited for."""
        counts = self.native.counts
        return {name: getattr(counts, name) for name in _COUNTERS}

    def reset_counters(self) -> None:
        """Count from now on.  For any thread: a request that comes in between may be counted or not."""
        counts = self.native.counts
        for name in _COUNTERS:
            setattr(counts, name, 0)


class Amendments:
    """What is changed in pyfuse3's answers before the kernel sees them.

    passthrough: whether it is wanted; after INIT whether the mount has it.
    on_init: is called when the kernel gets the answer that makes the mount usable.
    """

    __slots__ = ("_on_init", "_open_answer", "_tree", "passthrough")

    def __init__(
        self,
        tree: Tree,
        open_answer: Callable[[int], OpenAnswer | None],
        passthrough: bool,
        on_init: Callable[[], None] | None = None,
    ) -> None:
        self._on_init = on_init
        self._tree = tree
        self._open_answer = open_answer
        self.passthrough = passthrough

    def apply(self, channel: Channel) -> None:
        """Amend the answer that `channel` holds, if it holds one.  It is sent with the next step.

        Raises ProtocolError; the answer then goes on as it is.
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
            self.passthrough = bool(granted & PASSTHROUGH)
            self._tree.set_up(granted)
            if self._on_init is not None:
                self._on_init()


def check(result: int) -> None:
    """Raise the OSError of a negative result."""
    if result < 0:
        name = errno.errorcode.get(-result, str(-result))
        raise OSError(-result, f"{name} in the channel to the kernel: {os.strerror(-result)}")
