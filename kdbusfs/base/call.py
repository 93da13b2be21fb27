"""One command: what was copied from the client, and its result."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, Protocol

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from .ports import Caller, File, Memory, Words

PENDING: Final = 1
"""Sentinel instead of a result: the call is deferred.  No command returns a positive number (GEN-21)."""

ERESTARTSYS: Final = 512
"""Result of an interrupted blocking call: the kernel restarts the ioctl or makes it EINTR (SYNC-2, SYNC-3)."""

IOC_WRITE: Final = 1 << 30
"""In a request number: the kernel copies the struct in, for FUSE as for any driver."""
IOC_READ: Final = 1 << 31
"""In a request number: the kernel copies the struct out with the answer."""

_SIZE_SHIFT: Final = 16
_SIZE_MASK: Final = 0x3FFF

_U64: Final = Struct("<Q")
_I32: Final = Struct("<i")


def struct_size(number: int) -> int:
    """Bytes of the fixed struct that a request number stands for."""
    return number >> _SIZE_SHIFT & _SIZE_MASK


class Pinned(Protocol):
    """A reference-counted owner of open files."""

    def release(self) -> None:
        """Drop one reference."""


class Installation:
    """Descriptors to install in the calling process before its command returns (RECV-13, REP-15).

    entries: the file, the pool memory, and where in it the number of the new descriptor goes (an int32).
    flags_offset, incomplete_flag: where the struct of the command has its u64 of return flags, and the bit of them that
    tells the client that descriptors are missing; is_all_or_none: where any is missing the client gets none, and the
    command fails: `conclude` says what became of it.
    """

    __slots__ = ("_pinned", "entries", "flags_offset", "incomplete_flag", "is_all_or_none")

    def __init__(
        self,
        entries: list[tuple[File, Memory, int]],
        pinned: Pinned,
        flags_offset: int,
        incomplete_flag: int,
        *,
        is_all_or_none: bool = False,
    ) -> None:
        self.entries = entries
        self.is_all_or_none = is_all_or_none
        self.flags_offset = flags_offset
        self.incomplete_flag = incomplete_flag
        self._pinned: Pinned | None = pinned

    def incomplete_flags(self, call: Call) -> int:
        """Set the flag for missing descriptors in `call`.  No other code sets it (RECV-14)."""
        struct = call.fixed if call.fixed is not None else call.command
        flags: int = _U64.unpack_from(struct, self.flags_offset)[0]
        return flags | self.incomplete_flag

    def refuse(self, call: Call, errno: int) -> None:
        """Install nothing: every slot gets -errno, the struct of `call` the flag.  Raises what `Call.put` raises."""
        try:
            for _, memory, offset in self.entries:
                memory.store(offset, _I32.pack(-errno))
            call.put(self.flags_offset // 8, self.incomplete_flags(call))
        finally:
            self.done()

    def conclude(self, errno: int) -> None:
        """The installation has ended: 0, or the errno if all or none applied and nothing was installed.  Idempotent."""
        self.done()

    def done(self) -> None:
        """Unpin the files: the client has its own descriptors, or never will.  Idempotent."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            pinned.release()


@mypyc_attr(acyclic=True)
class Call:
    """A command and its result.

    The reader reuses one object for all requests.  To keep a call beyond its ioctl, take `defer()`.

    number, address: ioctl number and argument; data: the struct as copied, error: errno of that copy or 0;
    command: the same bytes, writable, whose first travel back where `number` has IOC_READ; words: the fixed part of
    `command` as u64; flags: of the command, set when it is decoded; message, message_error: what data and error are,
    for a message that the struct points to; result: of a deferred call, and fixed: the fixed part of its struct, the
    only part that it has; installation: descriptors to install; tells_offset: whether the answer returns an
    offset in the caller's pool; becomes_connection: whether the file is a connection from now on; tag: a number of the
    server's; deferred: the copy that the last `defer()` made; writes: of a deferred call whose struct does not travel
    back, (address, bytes) to be stored in the client's memory before its answer.  Storing may block, so it is not done
    in the turn of another client, in which the result is put.
    """

    __slots__ = (
        "address",
        "becomes_connection",
        "caller",
        "command",
        "data",
        "deferred",
        "error",
        "fixed",
        "flags",
        "installation",
        "message",
        "message_error",
        "number",
        "result",
        "tag",
        "tells_offset",
        "words",
        "writes",
    )

    number: int
    address: int
    data: bytes
    command: memoryview
    words: Words
    error: int
    fixed: bytearray | None
    flags: int
    message: bytes | None
    message_error: int
    caller: Caller
    tag: int
    tells_offset: bool
    becomes_connection: bool
    result: int
    installation: Installation | None
    deferred: Call | None
    writes: list[tuple[int, bytes]]

    def __init__(self) -> None:
        self.fixed = None
        self.error = 0
        self.message = None
        self.message_error = 0
        self.tells_offset = False
        self.becomes_connection = False
        self.result = 0
        self.installation = None
        self.deferred = None
        self.writes = []

    def put(self, word: int, value: int) -> None:
        """Store a u64 member of the client's struct: the only way in which a result reaches it.

        word: index of the member in the fixed part, as u64.  A struct that does not travel back is written to in the
        client's memory, unless the value is there already; for a deferred call that is left to `writes`.  Raises
        CommandError(EFAULT) for memory that cannot be written.
        """
        fixed = self.fixed
        if not self.number & IOC_READ:
            if fixed is not None or self.words[word] != value:
                self._write(word, _U64.pack(value))
        elif fixed is not None:
            _U64.pack_into(fixed, 8 * word, value)
        else:
            self.words[word] = value

    def put_all(self, word: int, values: tuple[int, ...]) -> None:
        """Store neighbours from `word` on, with one access to the client's memory where that is needed."""
        if self.number & IOC_READ:
            for index, value in enumerate(values):
                self.put(word + index, value)
        else:
            self._write(word, b"".join([_U64.pack(value) for value in values]))

    def _write(self, word: int, data: bytes) -> None:
        """Write to the client's memory, unless it has the value already; for a deferred call append to `writes`."""
        at = 8 * word
        end = at + len(data)
        fixed = self.fixed
        if fixed is not None:
            if fixed[at:end] != data:
                self.writes.append((self.address + at, data))
                fixed[at:end] = data
        elif self.command[at:end] != data:
            self.caller.write(self.address + at, data)
            self.command[at:end] = data

    def defer(self) -> Call:
        """A copy of this call that outlives the present request."""
        copy = Call()
        copy.number = self.number
        copy.address = self.address
        copy.fixed = bytearray(self.words.tobytes())
        copy.caller = self.caller.defer()
        copy.tag = self.tag
        self.deferred = copy
        return copy

    def returned(self, size: int) -> bytes:
        """The struct of `size` bytes that is copied out with the answer."""
        fixed = self.fixed
        return bytes(fixed[:size]) if fixed is not None else self.command[:size].tobytes()
