"""The checks of a message in the order of the last ABI: header, then items, then files (L-50 to L-60)."""

from __future__ import annotations

from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EDESTADDRREQ,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    ETXTBSY,
)
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..base.errors import CommandError
from .message import F_SEALS_REQUIRED, MESSAGE_COST, Message, Resources, Scan

if TYPE_CHECKING:
    from ..abi.values import Item, Sent
    from ..base.account import Account
    from ..base.ports import Caller

_MAX_MEMFDS: Final = 16
_MAX_FILES: Final = 16
_KERNEL_ADDRESSES: Final = 1 << 63
"""The first address that is no user-space address."""


def examine(
    sent: Sent, caller: Caller, conn_id: int, bloom_size: int, account: Account, *, sync: bool
) -> Message:
    """The message of a SEND, after the checks L-50 to L-60 in their order; see `message.make_message`.

    Raises CommandError with the errno of the row that is violated.
    """
    if sent.src_id and sent.src_id != conn_id:
        raise CommandError(EINVAL, "src_id of somebody else")
    _check_header(sent, sync=sync)
    message = Message(
        sent.flags, sent.priority, sent.dst_id, conn_id, sent.cookie, sent.timeout_ns, sent.payload_type
    )
    message.resources = Resources(account, MESSAGE_COST + sent.size)
    try:
        _LateScan(message, message.resources, caller, bloom_size).run(sent.items)
    except CommandError:
        message.resources.release()
        raise
    return message


def _check_header(sent: Sent, *, sync: bool) -> None:
    """L-53 to L-56."""
    signal = sent.flags & c.MSG_SIGNAL
    if sent.payload_type == c.PAYLOAD_KERNEL:
        raise CommandError(EINVAL, "payload type of the kernel")
    if sent.dst_id == c.DST_ID_BROADCAST:
        if not signal:
            raise CommandError(EBADMSG, "broadcast that is no signal")
        if sent.timeout_ns:
            raise CommandError(ENOTUNIQ, "broadcast with timeout or cookie_reply")
    if sent.flags & c.MSG_EXPECT_REPLY:
        if not sent.timeout_ns:
            raise CommandError(EINVAL, "request without timeout")
        if signal:
            raise CommandError(ENOTUNIQ, "request as signal")
    elif sync:
        raise CommandError(EINVAL, "SYNC_REPLY without EXPECT_REPLY")
    elif sent.timeout_ns and signal:
        raise CommandError(EINVAL, "reply as signal")


class _LateScan(Scan):
    """Checks all items before it touches any file."""

    __slots__ = ()

    def run(self, items: list[Item]) -> None:
        memfds = 0
        for item in items:
            kind = item.kind
            if kind == c.ITEM_PAYLOAD_VEC:
                size, address = item.numbers[0], item.numbers[1]
                self._vec(size, address)
                if address + size > _KERNEL_ADDRESSES:
                    raise CommandError(EFAULT, "vector outside of user space")
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                memfds += 1
                self._check_memfd(item.numbers, memfds)
            elif kind == c.ITEM_FDS:
                if len(item.numbers) > _MAX_FILES:
                    raise CommandError(EMFILE, "too many descriptors")
                self._note(kind)
                self._has_fds = bool(item.numbers)
            elif kind == c.ITEM_BLOOM_FILTER:
                self._bloom_filter(item.numbers[0], item.text)
            elif kind == c.ITEM_DST_NAME:
                self._dst_name(item.text)
                if self._broadcast:
                    raise CommandError(EBADMSG, "broadcast to a name")
            else:
                raise CommandError(EINVAL, "item that no message may have")
        self._check_whole()
        for item in items:
            if item.kind == c.ITEM_PAYLOAD_MEMFD:
                self._take_memfd(item.numbers)
            elif item.kind == c.ITEM_FDS:
                for fd in item.numbers:
                    self._take_fd(fd)

    def _check_memfd(self, numbers: tuple[int, ...], count: int) -> None:
        start, size = numbers[0], numbers[1]
        if start + size > c.U64_MAX:
            raise CommandError(EMSGSIZE, "memfd range wraps")
        if count > _MAX_MEMFDS:
            raise CommandError(E2BIG, "too many memfds")
        self._add_memfd(start, size)

    def _check_whole(self) -> None:
        """L-58."""
        message = self._message
        if bool(message.flags & c.MSG_SIGNAL) != (message.bloom is not None):
            raise CommandError(EBADMSG, "signal without bloom filter, or the reverse")
        if message.dst_id == c.DST_ID_NAME and message.dst_name is None:
            raise CommandError(EDESTADDRREQ, "neither id nor name")
        if self._broadcast and self._has_fds:
            raise CommandError(ENOTUNIQ, "descriptors in a broadcast")

    def _take_memfd(self, numbers: tuple[int, ...]) -> None:
        """L-59."""
        start, size, fd = numbers[0], numbers[1], numbers[2]
        file = self._caller.take_file(fd)
        self._resources.add_memfd(file)
        if file.is_path:
            raise CommandError(EBADF, "O_PATH descriptor as memfd")
        seals = file.seals()
        if seals is None:
            raise CommandError(EMEDIUMTYPE, "file that cannot be sealed")
        if seals & F_SEALS_REQUIRED != F_SEALS_REQUIRED:
            raise CommandError(ETXTBSY, "memfd not fully sealed")
        if start + size > file.size():
            raise CommandError(EFAULT, "memfd range beyond the file")
        self._message.memfd_size += size

    def _take_fd(self, fd: int) -> None:
        """L-60."""
        if fd < 0:
            raise CommandError(EBADF, "negative descriptor")
        file = self._caller.take_file(fd)
        self._resources.add_file(file)
        self._message.file_count += 1
        if file.is_bus_file or file.is_unix_socket:
            raise CommandError(EOPNOTSUPP, "descriptor that can itself carry descriptors")
