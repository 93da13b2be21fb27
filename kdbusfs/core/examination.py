"""The checks of a message in the order of the last ABI: header, then items, then files (L-50 to L-60)."""

from __future__ import annotations

from errno import E2BIG, EBADMSG, EFAULT, EINVAL, EMFILE, ENOTUNIQ
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..base.errors import CommandError
from .message import Scan, begin_message, check_source

if TYPE_CHECKING:
    from ..abi.values import Item, Sent
    from ..base.account import Account
    from ..base.ports import Caller
    from .message import Message

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
    check_source(sent, conn_id)
    _check_header(sent, sync=sync)
    message, resources = begin_message(sent, conn_id, account)
    try:
        _LateScan(message, resources, caller, bloom_size).run(sent.items)
    except CommandError:
        resources.release()
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
                self._pin_memfd(item.numbers, EFAULT)
            elif item.kind == c.ITEM_FDS:
                for fd in item.numbers:
                    self._pin_file(fd, control=True)

    def _check_memfd(self, numbers: tuple[int, ...], count: int) -> None:
        self._check_range(numbers[0], numbers[1])
        if count > _MAX_MEMFDS:
            raise CommandError(E2BIG, "too many memfds")
        self._add_memfd(numbers[0], numbers[1])

    def _check_whole(self) -> None:
        """L-58."""
        self._check_bloom()
        self._check_addressed()
        if self._broadcast and self._has_fds:
            raise CommandError(ENOTUNIQ, "descriptors in a broadcast")
