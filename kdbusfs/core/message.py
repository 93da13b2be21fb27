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

from ..abi import constants as c
from ..abi.errors import KdbusError
from ..abi.items import Item, make_item, parse_items
from ..abi.layouts import CMD_SEND_KERNEL_MSG_FLAGS_OFFSET, I32, MEMFD, MSG, MSG_SIZE, U64, VEC
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
_VEC_ITEM: Final = Struct("<QQQQ")  # item header and kdbus_vec
_MEMFD_ITEM: Final = Struct("<QQQQiI")  # item header and kdbus_memfd
_MEMFD_ITEM_FD_OFFSET: Final = 32


class Part:
    """One payload item.  Of a vector: `start` is its offset in the payload slice, or ZERO_VEC_OFFSET.
    Of a memfd: `start` is as sent, and `file` is set."""

    __slots__ = ("file", "size", "start")

    def __init__(self, size: int, start: int, file: File | None = None) -> None:
        self.size = size
        self.start = start
        self.file = file


class Resources:
    """What all copies of one message share: destination name, payload description, pinned files (CLOSE-5).

    Counted: the files are closed when the last queue entry, or the sender's command, lets go.
    """

    __slots__ = ("_account", "_cost", "_users", "dst_name", "files", "parts")

    def __init__(self, account: Account, cost: int) -> None:
        """`account` of the sender is charged with `cost` bytes.  Raises KdbusError(ENOBUFS)."""
        account.charge(cost)
        self._account = account
        self._cost = cost
        self._users = 1
        self.dst_name: bytes | None = None  # without its NUL
        self.parts: list[Part] = []
        self.files: list[File] = []

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
        for part in self.parts:
            if part.file is not None:
                part.file.close()
        for file in self.files:
            file.close()

    def make_items(self, payload_offset: int) -> tuple[bytes, list[tuple[File, int]]]:
        """The items for a receiver, with every descriptor -1, and where each descriptor goes (LAY-3, LAY-7 to LAY-16).

        payload_offset: of the payload slice in the receiver's pool.  The places are offsets in the returned bytes, in
        the order in which descriptors are installed: memfds first, then the array.
        """
        chunks: list[bytes] = []
        places: list[tuple[File, int]] = []
        at = 0
        if self.dst_name is not None:
            chunks.append(make_item(c.ITEM_DST_NAME, self.dst_name + b"\0"))
            at += len(chunks[0])
        for part in self.parts:
            if part.file is not None:
                chunks.append(_MEMFD_ITEM.pack(40, c.ITEM_PAYLOAD_MEMFD, part.start, part.size, -1, 0))
                places.append((part.file, at + _MEMFD_ITEM_FD_OFFSET))
                at += 40
                continue
            start = part.start if part.start == ZERO_VEC_OFFSET else payload_offset + part.start
            chunks.append(_VEC_ITEM.pack(32, c.ITEM_PAYLOAD_OFF, part.size, start))
            at += 32
        if self.files:
            chunks.append(make_item(c.ITEM_FDS, b"\xff" * (4 * len(self.files))))
            places += [(file, at + 16 + 4 * index) for index, file in enumerate(self.files)]
        return b"".join(chunks), places


class Message:
    """A message, of a connection or a notification of the bus (src_id 0).

    cookie_reply is the union with timeout_ns.  vectors: (address, size) in the sender's memory, address 0 for zeros;
    payload_size: bytes they fill in a pool; memfd_size: bytes of payload in memfds; bloom: filter as (generation,
    bits).  A notification has `extra`, its item ready for the pool, and the notify_* values that matches look at; its
    `resources` is None.
    """

    __slots__ = (
        "bloom",
        "cookie",
        "cookie_reply",
        "dst_id",
        "extra",
        "flags",
        "memfd_size",
        "name_id",
        "notify_name",
        "notify_new_id",
        "notify_old_id",
        "notify_type",
        "payload_size",
        "payload_type",
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
        payload_type: int = 0,
        cookie: int = 0,
        cookie_reply: int = 0,
    ) -> None:
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.src_id = src_id
        self.payload_type = payload_type
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

    def header(self, size: int) -> bytes:
        """struct kdbus_msg for a pool, `size` being all of it with its items (LAY-4)."""
        return MSG.pack(
            size,
            self.flags,
            self.priority,
            self.dst_id,
            self.src_id,
            self.payload_type,
            self.cookie,
            self.cookie_reply,
        )


def parse_message(call: Call, conn_id: int, bloom_size: int, account: Account, *, sync: bool) -> Message:
    """The message of a SEND, after the checks SEND-2 to SEND-28 in their order.

    account: of the sender, charged as long as the message lives.
    Writes cmd.kernel_msg_flags.  The files it names are pinned; they are let go of on every error (SEND-23).
    Raises KdbusError with the errno of the row that is violated.
    """
    if call.message_error or call.message is None:
        raise KdbusError(call.message_error or EFAULT, "message not readable")
    data = bytes(call.message)
    size = len(data)
    if size < MSG_SIZE or size > MSG_MAX_SIZE or size != U64.unpack_from(data)[0]:
        raise _bad_size(data)
    _, flags, priority, dst_id, src_id, payload_type, cookie, cookie_reply = MSG.unpack_from(data)
    U64.pack_into(call.command, CMD_SEND_KERNEL_MSG_FLAGS_OFFSET, _OFFERED_FLAGS)
    if flags & ~c.MSG_FLAGS_ALL:
        raise KdbusError(EINVAL, "unknown message flags")
    items = parse_items(data, MSG_SIZE, size)
    _check_header(flags, dst_id, payload_type, cookie, cookie_reply, sync=sync)

    message = Message(flags, priority, dst_id, conn_id, payload_type, cookie, cookie_reply)
    message.resources = Resources(account, MESSAGE_COST + size)
    try:
        _Scan(message, message.resources, call.caller, bloom_size).run(items)
        if src_id not in (0, conn_id):
            raise KdbusError(EINVAL, "src_id of somebody else")
    except KdbusError:
        message.resources.release()
        raise
    return message


def _bad_size(data: bytes) -> KdbusError:
    """What is wrong with a message whose size is not that of `data`, or out of range."""
    if MSG_SIZE <= U64.unpack_from(data)[0] <= MSG_MAX_SIZE:
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


class _Scan:
    """The walk over a message's items (SEND-9 to SEND-26)."""

    __slots__ = ("_bloom_size", "_broadcast", "_caller", "_has_fds", "_message", "_resources", "_vec_size")

    def __init__(self, message: Message, resources: Resources, caller: Caller, bloom_size: int) -> None:
        self._message = message
        self._resources = resources
        self._caller = caller
        self._bloom_size = bloom_size
        self._broadcast = message.dst_id == c.DST_ID_BROADCAST
        self._vec_size = 0
        self._has_fds = False

    def run(self, items: list[Item]) -> None:
        for number, (kind, payload) in enumerate(items):
            if number == MSG_MAX_ITEMS:
                raise KdbusError(E2BIG, "too many items")
            if kind == c.ITEM_PAYLOAD_VEC:
                self._vec(payload)
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                self._memfd(payload)
            elif kind == c.ITEM_FDS:
                self._fds(payload)
            elif kind == c.ITEM_BLOOM_FILTER:
                self._bloom_filter(payload)
            elif kind == c.ITEM_DST_NAME:
                self._dst_name(payload)
            else:
                raise KdbusError(EINVAL, "item that no message may have")
        self._check_whole()

    def _vec(self, payload: bytes) -> None:
        """SEND-10 to SEND-12, LAY-9, LAY-10."""
        size, address = VEC.unpack(payload)
        self._vec_size += size
        if self._vec_size > MSG_MAX_PAYLOAD_VEC_SIZE:
            raise KdbusError(EMSGSIZE, "vectors of more than 2 MiB")
        message = self._message
        if address:
            self._resources.parts.append(Part(size, message.payload_size))
            message.vectors.append((address, size))
            message.payload_size += size
        else:
            self._resources.parts.append(Part(size, ZERO_VEC_OFFSET))
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
        self._resources.parts.append(Part(size, start, file))
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
            self._resources.files.append(file)
            if file.is_bus_file or file.is_unix_socket:
                raise KdbusError(EOPNOTSUPP, "descriptor that can itself carry descriptors")

    def _bloom_filter(self, payload: bytes) -> None:
        """SEND-19."""
        if self._message.bloom is not None:
            raise KdbusError(EEXIST, "second bloom filter")
        bits = payload[8:]
        self._message.bloom = (U64.unpack_from(payload)[0], int.from_bytes(bits, "little"))
        if len(bits) % 8:
            raise KdbusError(EFAULT, "bloom filter is no multiple of 8")
        if len(bits) != self._bloom_size:
            raise KdbusError(EDOM, "bloom filter of another size than the bus has")

    def _dst_name(self, payload: bytes) -> None:
        """SEND-20."""
        if self._resources.dst_name is not None:
            raise KdbusError(EEXIST, "second destination name")
        self._resources.dst_name = payload[:-1]
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
