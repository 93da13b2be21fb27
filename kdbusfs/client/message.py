"""A received message: a slice of the pool and descriptors, freed at the end of a `with` block."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

from ..abi.v3 import constants as c
from ..abi.v3 import layouts
from ..abi.v3.items import RawItem
from . import decode
from .descriptors import Descriptor
from .dialect import V3, Dialect
from .encode import Zero


class ReceivedMemfd:
    """`size` bytes of payload at offset `start` of a memfd, which the message closes unless it is taken."""

    __slots__ = ("file", "size", "start")

    def __init__(self, file: Descriptor, start: int, size: int) -> None:
        self.file = file
        self.start = start
        self.size = size

    def read(self) -> bytes:
        """A copy of the payload.  Raises ValueError if the memfd was not installed or is too short; OSError."""
        parts: list[bytes] = []
        at, rest = self.start, self.size
        while rest:
            part = os.pread(self.file.fileno(), rest, at)
            if not part:
                raise ValueError("the memfd is shorter than its item says")
            parts.append(part)
            at += len(part)
            rest -= len(part)
        return b"".join(parts)

    def __repr__(self) -> str:
        return f"ReceivedMemfd({self.file!r}, start={self.start}, size={self.size})"


ReceivedPart = memoryview | Zero | ReceivedMemfd


class Message:
    """A received message.  Leaving a `with` block frees it, as `free` does.

    size, flags, priority, dst_id, src_id, payload_type, cookie: as in struct kdbus_msg.
    cookie_reply: the cookie of the request that this answers, or 0.  In a request the same member is `timeout_ns`.
    offset: in the pool.  return_flags: RECV_RETURN_INCOMPLETE_FDS or 0.
    payload: parts in the sender's order: read-only views of the pool, `Zero`, `ReceivedMemfd`.
    fds: passed descriptors.  `free` closes memfds and fds that were not taken.
    items: type and payload of every item.
    """

    __slots__ = (
        "_free",
        "_metadata",
        "_views",
        "cookie",
        "cookie_reply",
        "dst_id",
        "dst_name",
        "fds",
        "flags",
        "items",
        "offset",
        "payload",
        "payload_type",
        "priority",
        "return_flags",
        "size",
        "src_id",
    )

    def __init__(
        self,
        pool: memoryview,
        offset: int,
        return_flags: int,
        free: Callable[[int], None] | None,
        dialect: Dialect = V3,
    ) -> None:
        """Parse the message at `offset` of `pool`.  `free` is called with the offset when the message is freed.

        Raises ValueError if it does not fit.
        """
        if offset + layouts.MSG_SIZE > len(pool):
            raise ValueError(f"message at {offset} does not fit into a pool of {len(pool)} bytes")
        (
            self.size,
            self.flags,
            self.priority,
            self.dst_id,
            self.src_id,
            self.payload_type,
            self.cookie,
            self.cookie_reply,
        ) = layouts.MSG.unpack_from(pool, offset)
        self.offset = offset
        self.return_flags = return_flags
        self.dst_name: str | None = None
        self.payload: list[ReceivedPart] = []
        self.fds: list[Descriptor] = []
        self.items: list[RawItem] = dialect.items_of(pool, offset + layouts.MSG_SIZE, offset + self.size)
        base = offset if dialect.payload_in_message else 0
        self._views: list[memoryview] = []
        self._metadata: decode.Metadata | None = None
        self._free = free
        for kind, payload in self.items:
            if kind == c.ITEM_PAYLOAD_OFF:
                self._add_vector(pool, base, *layouts.VEC.unpack(payload))
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                start, size, fd, _ = layouts.MEMFD.unpack(payload)
                self.payload.append(ReceivedMemfd(Descriptor(fd), start, size))
            elif kind == c.ITEM_FDS:
                self.fds += [Descriptor(fd) for fd in memoryview(payload).cast("i")] if payload else []
            elif kind == c.ITEM_DST_NAME:
                self.dst_name = decode.string(payload)

    def _add_vector(self, pool: memoryview, base: int, size: int, offset: int) -> None:
        if offset == c.U64_MAX:
            self.payload.append(Zero(size))
            return
        offset += base
        if offset + size > len(pool):
            raise ValueError(f"payload of {size} bytes at {offset} does not fit into a pool of {len(pool)} bytes")
        view = pool[offset : offset + size]
        self._views.append(view)
        self.payload.append(view)

    @property
    def timeout_ns(self) -> int:
        """The deadline of this request's reply: CLOCK_MONOTONIC, in ns."""
        return int(self.cookie_reply)

    @property
    def memfds(self) -> list[ReceivedMemfd]:
        """The parts of the payload that are memfds."""
        return [part for part in self.payload if isinstance(part, ReceivedMemfd)]

    @property
    def metadata(self) -> decode.Metadata:
        """The metadata of the sender that were delivered."""
        if self._metadata is None:
            self._metadata = decode.metadata_of(self.items)
        return self._metadata

    @property
    def notification(self) -> decode.Notification | None:
        """The notification, if the bus itself sent this message; None for a message of a connection."""
        return decode.notification_of(self.items) if self.src_id == c.SRC_ID_KERNEL else None

    @property
    def expects_reply(self) -> bool:
        """Whether the sender expects a reply."""
        return bool(self.flags & c.MSG_EXPECT_REPLY)

    def data(self) -> bytes:
        """A copy of the whole payload in one piece."""
        return b"".join([_bytes_of(part) for part in self.payload])

    def free(self) -> None:
        """Close descriptors that were not taken, release the views, and return the slice to the pool."""
        if self._free is None:
            return
        free, self._free = self._free, None
        try:
            for view in self._views:
                view.release()
            free(self.offset)
        finally:
            for file in (*self.fds, *[part.file for part in self.memfds]):
                file.close()

    def __enter__(self) -> Message:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        return (
            f"Message(src_id={self.src_id}, dst_id={self.dst_id}, cookie={self.cookie}, "
            f"cookie_reply={self.cookie_reply}, items={len(self.items)})"
        )


def _bytes_of(part: ReceivedPart) -> bytes:
    if isinstance(part, Zero):
        return bytes(part.size)
    if isinstance(part, ReceivedMemfd):
        return part.read()
    return bytes(part)
