"""One command of a client on its way through the core, with the rules that all commands share (GEN-5 to GEN-12)."""

from __future__ import annotations

from errno import EFAULT, EINVAL, EMSGSIZE
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter, write_i64_le
from mypy_extensions import mypyc_attr

from ..abi.commands import Command
from ..abi.errors import KdbusError
from ..abi.items import Item, parse_items
from ..abi.layouts import CMD_SEND_REPLY_OFFSET, U64, u64

if TYPE_CHECKING:
    from .message import Resources
    from .ports import Caller, File, Memory, Words

PENDING: Final = 1
"""What `ioctl` returns for a call that is answered later; no kdbus command returns a positive number (GEN-21)."""

ERESTARTSYS: Final = 512
"""Result of an interrupted sync SEND: the kernel restarts the ioctl or makes it EINTR (SYNC-2, SYNC-3)."""


class Installation:
    """Descriptors that the calling process must hold before its command returns (RECV-13, REP-15).

    entries: the file, the pool memory, and where in it the number of the new descriptor goes (an int32).
    """

    __slots__ = ("_resources", "entries")

    FLAGS_OFFSET: Final = 64  # of kdbus_msg_info.return_flags, in RECV as in SEND

    def __init__(self, entries: list[tuple[File, Memory, int]], resources: Resources) -> None:
        self.entries = entries
        self._resources: Resources | None = resources

    def done(self) -> None:
        """Let go of the files: the client has its own descriptors, or never will.  Idempotent."""
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.release()


_NO_ITEMS: Final[list[Item]] = []
_SEND_RETURN_FLAGS_OFFSET: Final = 32


@mypyc_attr(acyclic=True)
class Call:
    """A command as the client gave it, and what becomes of it.

    The reader reuses one object for all requests; whoever keeps a call beyond its ioctl takes `defer()`.

    number, address: ioctl number and argument; data: the struct as copied, error: errno of that copy or 0;
    command: the same bytes to be written to, whose first travel back for `_IOWR`, and words: its fixed part as u64;
    flags: of the command, set by `begin`; message, message_error: what data and error are, for the message of a SEND;
    result: of a deferred call, and fixed: the fixed part of its struct, the only part that it has; installation:
    descriptors to install; tag: a number of the core's caller; deferred: the copy that the last `defer()` made.
    """

    __slots__ = (
        "address",
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
        "words",
    )

    number: int
    address: int
    data: bytes
    command: memoryview
    words: Words
    error: int
    fixed: bytes
    flags: int
    message: bytes | None
    message_error: int
    caller: Caller
    tag: int
    result: int
    installation: Installation | None
    deferred: Call | None

    def __init__(self) -> None:
        self.fixed = b""
        self.error = 0
        self.message = None
        self.message_error = 0
        self.result = 0
        self.installation = None
        self.deferred = None

    def begin(self, command: Command) -> list[Item]:
        """The checks that precede every command: size, flag negotiation, items (GEN-10).  Returns the items.

        Raises KdbusError: EFAULT, EINVAL (too small, unknown flags, bad items), EMSGSIZE (too big), and what
        `parse_items` raises.
        """
        data = self.data
        length = len(data)
        if self.error or length < command.size:
            self.check_size(command)
        size = u64(data, 0)
        if size != length or size > command.max_size:
            self.check_size(command)
        self.flags = flags = u64(data, command.flags_offset)
        # Tell which flags are valid, then refuse the others (GEN-9, GEN-11).
        if command.copies_out:
            self.words[command.kernel_flags_word] = command.offered
        elif u64(data, command.kernel_flags_offset) != command.offered:
            self._write_back(command.kernel_flags_offset, command.offer)
        if flags & ~command.flags:
            raise KdbusError(EINVAL, "unknown flags")
        if length == command.size:
            return _NO_ITEMS
        return parse_items(data, command.size, length)

    def check_size(self, command: Command) -> None:
        """GEN-5 to GEN-7."""
        if self.error:
            raise KdbusError(self.error, "command not readable")
        size = u64(self.data, 0)
        if size < command.size:
            raise KdbusError(EINVAL, "command struct too small")
        if size > command.max_size:
            raise KdbusError(EMSGSIZE, "command struct too big")
        if size != len(self.data):
            raise KdbusError(EFAULT, "command struct cut off")

    def put(self, command: Command, offset: int, value: int) -> None:
        """Store a u64 member of the client's struct.  Raises KdbusError(EFAULT) for `_IOW` commands.

        The struct of an `_IOWR` command travels back with the answer.  What the client holds already is not written.
        """
        if command.copies_out:
            U64.pack_into(self.command, offset, value)
        elif U64.unpack_from(self.command, offset)[0] != value:
            self._write_back(offset, U64.pack(value))

    def _write_back(self, offset: int, data: bytes) -> None:
        self.caller.write(self.address + offset, data)
        self.command[offset : offset + len(data)] = data

    def clear_return_flags(self, command: Command) -> None:
        """Store return_flags = 0 (GEN-12)."""
        if command.copies_out:
            self.words[command.return_flags_word] = 0
        else:
            self.put(command, command.return_flags_offset, 0)

    def defer(self) -> Call:
        """A copy of this call that outlives the present request."""
        copy = Call()
        copy.number = self.number
        copy.address = self.address
        copy.fixed = self.words.tobytes()
        copy.caller = self.caller.defer()
        copy.tag = self.tag
        self.deferred = copy
        return copy

    def put_reply(self, offset: int, size: int) -> None:
        """Tell a SEND where in its pool the reply is (REP-15); return_flags become 0."""
        fixed = self.fixed
        if not fixed:
            words = self.words
            words[_SEND_RETURN_FLAGS_OFFSET // 8] = 0
            words[CMD_SEND_REPLY_OFFSET // 8] = offset
            words[CMD_SEND_REPLY_OFFSET // 8 + 1] = size
            words[CMD_SEND_REPLY_OFFSET // 8 + 2] = 0
            return
        writer = BytesWriter()
        writer.write(fixed[:_SEND_RETURN_FLAGS_OFFSET])
        write_i64_le(writer, 0)
        writer.write(fixed[_SEND_RETURN_FLAGS_OFFSET + 8 : CMD_SEND_REPLY_OFFSET])
        write_i64_le(writer, offset)
        write_i64_le(writer, size)
        write_i64_le(writer, 0)
        self.fixed = writer.getvalue()

    def returned(self, size: int) -> bytes:
        """The struct of `size` bytes that travels back with the answer."""
        return self.fixed or self.command[:size].tobytes()
