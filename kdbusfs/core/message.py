"""Messages: what a SEND carries after all checks, and the resources that travel with it."""

from __future__ import annotations

from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EDESTADDRREQ,
    EDOM,
    EEXIST,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    ETXTBSY,
)
from struct import Struct
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter, read_i64_le, write_i64_le
from mypy_extensions import mypyc_attr

from ..abi import constants as c
from ..abi.errors import KdbusError
from ..abi.items import check_items, make_item
from ..abi.layouts import (
    CMD_SEND_KERNEL_MSG_FLAGS_OFFSET,
    I32,
    ITEM_HEADER_SIZE,
    MEMFD,
    MSG_SIZE,
    VEC_ITEM_SIZE,
    align8,
    u64,
)
from ..abi.limits import MSG_MAX_FDS, MSG_MAX_ITEMS, MSG_MAX_PAYLOAD_VEC_SIZE, MSG_MAX_SIZE
from .names import is_valid_name

if TYPE_CHECKING:
    from .call import Call
    from .ports import Caller, File
    from .quota import Account

F_SEALS_REQUIRED: Final = 0x0001 | 0x0002 | 0x0004 | 0x0008  # SEAL, SHRINK, GROW, WRITE
_OFFERED_FLAGS: Final = c.MSG_FLAGS_ALL | c.FLAG_KERNEL
ZERO_VEC_OFFSET: Final = c.U64_MAX
MESSAGE_COST: Final = 2048
"""What a message is charged with beside its size, in bytes."""
_KERNEL_MSG_FLAGS_WORD: Final = CMD_SEND_KERNEL_MSG_FLAGS_OFFSET // 8
_MEMFD_ITEM: Final = Struct("<QQQQiI")  # item header and kdbus_memfd
_MEMFD_ITEM_FD_OFFSET: Final = 32
_HEADER_START: Final = Struct("<QqQ")  # flags, priority, dst_id; src_id follows
_HEADER_END: Final = Struct("<QQQ")  # payload_type, cookie, cookie_reply

Places = list[tuple["File", int]]
"""Files, and where in the items for a receiver the numbers of their descriptors go."""
NO_PLACES: Final[Places] = []
_NO_FILES: Final[list[File]] = []


@mypyc_attr(acyclic=True)
class Part:
    """One payload item.  Of a vector: `start` is its offset in the payload slice, or ZERO_VEC_OFFSET.
    Of a memfd: `start` is as sent, and `file` is set."""

    __slots__ = ("file", "size", "start")

    def __init__(self, size: int, start: int, file: File | None = None) -> None:
        self.size = size
        self.start = start
        self.file = file


@mypyc_attr(acyclic=True, free_list_len=1)
class Resources:
    """What all copies of one message share: destination name, payload description, pinned files (CLOSE-5).

    Counted: the files are closed when the last queue entry, or the sender's command, lets go.
    items_size: what `write_items` takes, but for the FDS item.
    """

    __slots__ = ("_account", "_cost", "_users", "dst_name", "files", "has_memfds", "items_size", "parts")

    def __init__(self, account: Account, cost: int) -> None:
        """`account` of the sender is charged with `cost` bytes.  Raises KdbusError(ENOBUFS)."""
        account.charge(cost)
        self._account = account
        self._cost = cost
        self._users = 1
        self.dst_name: bytes | None = None  # without its NUL
        self.parts: list[Part] = []
        self.files: list[File] = _NO_FILES
        self.has_memfds = False
        self.items_size = 0

    def add_vector(self, size: int, start: int) -> None:
        """A vector of `size` bytes, at `start` of the payload slice."""
        self.parts.append(Part(size, start))
        self.items_size += VEC_ITEM_SIZE

    def add_memfd(self, size: int, start: int, file: File) -> None:
        """`size` bytes from `start` on of a sealed memfd, pinned."""
        self.parts.append(Part(size, start, file))
        self.has_memfds = True
        self.items_size += _MEMFD_ITEM.size

    def add_file(self, file: File) -> None:
        """Another file of the FDS item, pinned."""
        if not self.files:
            self.files = []
        self.files.append(file)

    def add_name(self, name: bytes) -> None:
        """The destination name, without its NUL."""
        self.dst_name = name
        self.items_size += align8(ITEM_HEADER_SIZE + len(name) + 1)

    def charge(self, cost: int) -> None:
        """What turned up later and lives as long as the message."""
        self._account.add(cost)
        self._cost += cost

    def retain(self) -> Resources:
        self._users += 1
        return self

    def release(self) -> None:
        """Close the files if nobody needs them any more (SEND-23)."""
        self._users -= 1
        if self._users:
            return
        self._account.uncharge(self._cost)
        if self.has_memfds:
            for part in self.parts:
                if part.file is not None:
                    part.file.close()
        for file in self.files:
            file.close()

    @property
    def fds_item_size(self) -> int:
        """What the FDS item takes of a message; 0 without one."""
        return align8(ITEM_HEADER_SIZE + 4 * len(self.files)) if self.files else 0

    def write_items(self, writer: BytesWriter, payload_offset: int) -> Places:
        """Append the items for a receiver, with every descriptor -1, and tell where each descriptor goes (LAY-3, LAY-7
        to LAY-16).

        payload_offset: of the payload slice in the receiver's pool.  The places are offsets from where the items begin,
        in the order in which descriptors are installed: memfds first, then the array.
        """
        base = len(writer)
        if self.dst_name is not None:
            writer.write(make_item(c.ITEM_DST_NAME, self.dst_name + b"\0"))
        places = [] if self.has_memfds or self.files else NO_PLACES
        for part in self.parts:
            if part.file is not None:
                places.append((part.file, len(writer) - base + _MEMFD_ITEM_FD_OFFSET))
                writer.write(_MEMFD_ITEM.pack(40, c.ITEM_PAYLOAD_MEMFD, part.start, part.size, -1, 0))
                continue
            write_i64_le(writer, VEC_ITEM_SIZE)
            write_i64_le(writer, c.ITEM_PAYLOAD_OFF)
            write_i64_le(writer, part.size)
            write_i64_le(writer, -1 if part.start == ZERO_VEC_OFFSET else payload_offset + part.start)
        if self.files:
            at = len(writer) - base + ITEM_HEADER_SIZE
            writer.write(make_item(c.ITEM_FDS, b"\xff" * (4 * len(self.files))))
            for index, file in enumerate(self.files):
                places.append((file, at + 4 * index))
        return places


@mypyc_attr(acyclic=True, free_list_len=1)
class Message:
    """A message, of a connection or a notification of the bus (src_id 0).

    cookie_reply is the union with timeout_ns.  header_start, header_end: what its struct has before and behind src_id,
    without the size; vectors: (address, size) in the sender's memory, address 0 for zeros; payload_size: bytes they
    fill in a pool; memfd_size: bytes of payload in memfds; bloom: filter as (generation, bits).
    A notification has `extra`, its item ready for the pool, and the notify_* values that matches look at; its
    `resources` is None.
    """

    __slots__ = (
        "bloom",
        "cookie",
        "cookie_reply",
        "dst_id",
        "extra",
        "flags",
        "header_end",
        "header_start",
        "memfd_size",
        "name_id",
        "notify_name",
        "notify_new_id",
        "notify_old_id",
        "notify_type",
        "payload_size",
        "priority",
        "resources",
        "seqnum",
        "src_id",
        "vectors",
    )

    def __init__(
        self,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
        src_id: int = 0,
        cookie: int = 0,
        cookie_reply: int = 0,
    ) -> None:
        self.header_start = b""
        self.header_end = b""
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.src_id = src_id
        self.cookie = cookie
        self.cookie_reply = cookie_reply
        self.resources: Resources | None = None
        self.vectors: list[tuple[int, int]] = []
        self.payload_size = 0
        self.memfd_size = 0
        self.bloom: tuple[int, int] | None = None
        self.extra = b""
        self.notify_type = 0
        self.notify_old_id = 0
        self.notify_new_id = 0
        self.notify_name = b""
        self.name_id = 0
        self.seqnum = 0

    @property
    def address(self) -> tuple[int, bytes | None]:
        """Whom its sender addressed: the id and the name."""
        return self.dst_id, self.resources.dst_name if self.resources is not None else None

    @property
    def has_files(self) -> bool:
        """Whether an FDS item travels along, for which the receiver needs ACCEPT_FD."""
        return self.resources is not None and bool(self.resources.files)

    def write_header(self, writer: BytesWriter, size: int) -> None:
        """Append struct kdbus_msg for a pool, `size` being all of it with its items (LAY-4)."""
        write_i64_le(writer, size)
        if self.header_start:
            writer.write(self.header_start)
            write_i64_le(writer, self.src_id)
            writer.write(self.header_end)
            return
        # The bus' own: its payload type, that of the kernel, is 0.
        writer.write(_HEADER_START.pack(self.flags, self.priority, self.dst_id))
        write_i64_le(writer, self.src_id)
        writer.write(_HEADER_END.pack(c.PAYLOAD_KERNEL, self.cookie, self.cookie_reply))


def parse_message(call: Call, conn_id: int, bloom_size: int, account: Account, *, sync: bool) -> Message:
    """The message of a SEND, after the checks SEND-2 to SEND-28 in their order.

    account: of the sender, charged as long as the message lives.
    Writes cmd.kernel_msg_flags.  The files it names are pinned; they are let go of on every error (SEND-23).
    Raises KdbusError with the errno of the row that is violated.
    """
    if call.message_error or call.message is None:
        raise KdbusError(call.message_error or EFAULT, "message not readable")
    data = call.message
    size = len(data)
    if size < MSG_SIZE or size > MSG_MAX_SIZE or size != u64(data, 0):
        raise _bad_size(data)
    flags = u64(data, 8)
    priority: int = read_i64_le(data, 16)
    dst_id = u64(data, 24)
    src_id = u64(data, 32)
    cookie = u64(data, 48)
    cookie_reply = u64(data, 56)
    call.words[_KERNEL_MSG_FLAGS_WORD] = _OFFERED_FLAGS
    if flags & ~c.MSG_FLAGS_ALL:
        raise KdbusError(EINVAL, "unknown message flags")
    check_items(data, MSG_SIZE, size)
    _check_header(flags, dst_id, u64(data, 40), cookie, cookie_reply, sync=sync)

    message = Message(flags, priority, dst_id, conn_id, cookie, cookie_reply)
    message.header_start = data[8:32]
    message.header_end = data[40:64]
    message.resources = Resources(account, MESSAGE_COST + size)
    try:
        _Scan(message, message.resources, call.caller, bloom_size).run(data)
        if src_id and src_id != conn_id:
            raise KdbusError(EINVAL, "src_id of somebody else")
    except KdbusError:
        message.resources.release()
        raise
    return message


def _bad_size(data: bytes) -> KdbusError:
    """What is wrong with a message whose size is not that of `data`, or out of range."""
    if len(data) >= 8 and MSG_SIZE <= u64(data, 0) <= MSG_MAX_SIZE:
        return KdbusError(EFAULT, "message cut off")
    return KdbusError(EINVAL, "message too small or too big")


def _check_header(
    flags: int, dst_id: int, payload_type: int, cookie: int, timeout_ns: int, *, sync: bool
) -> None:
    """SEND-5 to SEND-7."""
    if payload_type == c.PAYLOAD_KERNEL:
        raise KdbusError(EINVAL, "payload type of the kernel")
    if flags & c.MSG_EXPECT_REPLY:
        if timeout_ns == 0 or cookie == 0:
            raise KdbusError(EINVAL, "request without timeout or cookie")
        if dst_id == c.DST_ID_BROADCAST:
            raise KdbusError(ENOTUNIQ, "request as broadcast")
        if flags & c.MSG_SIGNAL:
            raise KdbusError(EINVAL, "request as signal")
    elif sync:
        raise KdbusError(EINVAL, "SYNC_REPLY without EXPECT_REPLY")


@mypyc_attr(acyclic=True, free_list_len=1)
class _Scan:
    """The walk over a message's items, whose sizes are right already (SEND-9 to SEND-26)."""

    __slots__ = ("_bloom_size", "_broadcast", "_caller", "_has_fds", "_message", "_resources", "_vec_size")

    def __init__(self, message: Message, resources: Resources, caller: Caller, bloom_size: int) -> None:
        self._message = message
        self._resources = resources
        self._caller = caller
        self._bloom_size = bloom_size
        self._broadcast = message.dst_id == c.DST_ID_BROADCAST
        self._vec_size = 0
        self._has_fds = False

    def run(self, data: bytes) -> None:
        number = 0
        at = MSG_SIZE
        end = len(data)
        while at < end:
            if number == MSG_MAX_ITEMS:
                raise KdbusError(E2BIG, "too many items")
            number += 1
            size = u64(data, at)
            kind = u64(data, at + 8)
            payload = at + ITEM_HEADER_SIZE
            if kind == c.ITEM_PAYLOAD_VEC:
                self._vec(u64(data, payload), u64(data, payload + 8))
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                self._memfd(data[payload : at + size])
            elif kind == c.ITEM_FDS:
                self._fds(data[payload : at + size])
            elif kind == c.ITEM_BLOOM_FILTER:
                self._bloom_filter(data[payload : at + size])
            elif kind == c.ITEM_DST_NAME:
                self._dst_name(data[payload : at + size])
            else:
                raise KdbusError(EINVAL, "item that no message may have")
            at += (size + 7) & ~7
        self._check_whole()

    def _vec(self, size: int, address: int) -> None:
        """SEND-10 to SEND-12, LAY-9, LAY-10."""
        self._vec_size += size
        if self._vec_size > MSG_MAX_PAYLOAD_VEC_SIZE:
            raise KdbusError(EMSGSIZE, "vectors of more than 2 MiB")
        message = self._message
        if address:
            self._resources.add_vector(size, message.payload_size)
            message.vectors.append((address, size))
            message.payload_size += size
        else:
            self._resources.add_vector(size, ZERO_VEC_OFFSET)
            self._pad(size % 8)

    def _pad(self, size: int) -> None:
        if size:
            self._message.vectors.append((0, size))
            self._message.payload_size += size

    def _memfd(self, payload: bytes) -> None:
        """SEND-13, LAY-11."""
        start, size, fd, _ = MEMFD.unpack(payload)
        if start + size > c.U64_MAX:
            raise KdbusError(EMSGSIZE, "memfd range wraps")
        file = self._caller.take_file(fd)
        self._resources.add_memfd(size, start, file)
        if file.is_path:
            raise KdbusError(EBADF, "O_PATH descriptor as memfd")
        self._pad(size % 8)
        seals = file.seals()
        if seals is None:
            raise KdbusError(EMEDIUMTYPE, "file that cannot be sealed")
        if seals & F_SEALS_REQUIRED != F_SEALS_REQUIRED:
            raise KdbusError(ETXTBSY, "memfd not fully sealed")
        if start + size > file.size():
            raise KdbusError(EBADF, "memfd range beyond the file")
        self._message.memfd_size += size

    def _fds(self, payload: bytes) -> None:
        """SEND-15 to SEND-17."""
        if self._has_fds:
            raise KdbusError(EEXIST, "second FDS item")
        self._has_fds = True
        if self._broadcast:
            raise KdbusError(ENOTUNIQ, "descriptors in a broadcast")
        if len(payload) > 4 * MSG_MAX_FDS:
            raise KdbusError(EMFILE, "too many descriptors")
        for (fd,) in I32.iter_unpack(payload):
            if fd < 0:
                raise KdbusError(EBADF, "negative descriptor")
            file = self._caller.take_file(fd)
            self._resources.add_file(file)
            if file.is_bus_file or file.is_unix_socket:
                raise KdbusError(EOPNOTSUPP, "descriptor that can itself carry descriptors")

    def _bloom_filter(self, payload: bytes) -> None:
        """SEND-19."""
        if self._message.bloom is not None:
            raise KdbusError(EEXIST, "second bloom filter")
        bits = payload[8:]
        self._message.bloom = (u64(payload, 0), int.from_bytes(bits, "little"))
        if len(bits) % 8:
            raise KdbusError(EFAULT, "bloom filter is no multiple of 8")
        if len(bits) != self._bloom_size:
            raise KdbusError(EDOM, "bloom filter of another size than the bus has")

    def _dst_name(self, payload: bytes) -> None:
        """SEND-20."""
        if self._resources.dst_name is not None:
            raise KdbusError(EEXIST, "second destination name")
        self._resources.add_name(payload[:-1])
        if not is_valid_name(payload[:-1]):
            raise KdbusError(EINVAL, "invalid destination name")

    def _check_whole(self) -> None:
        """SEND-24 to SEND-26."""
        message = self._message
        named = self._resources.dst_name is not None
        if message.dst_id == c.DST_ID_NAME and not named:
            raise KdbusError(EDESTADDRREQ, "neither id nor name")
        signal = bool(message.flags & c.MSG_SIGNAL)
        if self._broadcast:
            if named:
                raise KdbusError(EBADMSG, "broadcast to a name")
            if not signal:
                raise KdbusError(EBADMSG, "broadcast that is no signal")
            if message.cookie_reply:
                raise KdbusError(ENOTUNIQ, "broadcast with timeout or cookie_reply")
        if signal != (message.bloom is not None):
            raise KdbusError(EBADMSG, "signal without bloom filter, or the reverse")
