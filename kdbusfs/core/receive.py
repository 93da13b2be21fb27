"""RECV and FREE (RECV-1 to RECV-19, FREE-1 to FREE-5)."""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOMSG, EOVERFLOW, EPIPE
from typing import TYPE_CHECKING, Final

from ..abi import constants as c
from ..abi.commands import COMMANDS
from ..abi.errors import KdbusError
from ..abi.layouts import CMD_FREE_OFFSET, CMD_RECV_DROPPED_OFFSET, I64, u64
from .sync import fail

if TYPE_CHECKING:
    from .call import Call
    from .connection import Connection
    from .queue import QueueEntry

_RECV: Final = COMMANDS[c.CMD_RECV]
_FREE: Final = COMMANDS[c.CMD_FREE]
_DROPPED_WORD: Final = CMD_RECV_DROPPED_OFFSET // 8  # then kdbus_msg_info: offset, size, return flags
_PRIORITY_OFFSET: Final = 32


def recv(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_RECV: 0, -EAGAIN or -EOVERFLOW.

    Raises KdbusError: ENOMSG (nothing as urgent), ENOBUFS (no room for the message slice; it stays queued).
    """
    call.begin(_RECV)
    flags = call.flags
    queue = connection.queue
    if flags & c.RECV_USE_PRIORITY:
        entry = queue.most_urgent()
        if entry is not None and entry.message.priority > I64.unpack_from(call.data, _PRIORITY_OFFSET)[0]:
            raise KdbusError(ENOMSG, "no message of that priority")
    else:
        entry = queue.oldest()
    if entry is None:
        return -EAGAIN
    if flags & c.RECV_DROP:
        _drop(connection, entry)
        return _store(call, 0, 0, 0)
    if connection.lost:
        lost, connection.lost = connection.lost, 0
        connection.lost_before += lost
        _store(call, lost, 0, 0)
        return -EOVERFLOW
    peek = bool(flags & c.RECV_PEEK)
    offset, size, call.installation = connection.install(entry, call.caller, with_files=not peek)
    if not peek:
        queue.remove(entry)
        connection.discard(entry)
        if not queue.count:
            connection.wake()
    return _store(call, 0, offset, size)


def _store(call: Call, lost: int, offset: int, size: int) -> int:
    """RECV-18."""
    words = call.words
    words[_DROPPED_WORD] = lost
    words[_DROPPED_WORD + 1] = offset
    words[_DROPPED_WORD + 2] = size
    words[_DROPPED_WORD + 3] = 0
    call.clear_return_flags(_RECV)
    return 0


def _drop(connection: Connection, entry: QueueEntry) -> None:
    """RECV-5; a request that will have no answer now ends for its sender (REP-10)."""
    reply = entry.reply
    connection.queue.remove(entry)
    connection.wake()
    if reply is not None and reply.linked and not reply.answered:
        if reply.sync:
            fail(reply, EPIPE)
        else:
            connection.bus.notifier.reply(c.ITEM_REPLY_DEAD, reply.requester.id, reply.cookie)
            reply.unlink()
    connection.discard(entry)
    connection.bus.notifier.flush()


def free(connection: Connection, call: Call) -> int:
    """KDBUS_CMD_FREE.  Raises KdbusError: EINVAL (any item), ENXIO (no published slice at that offset)."""
    if call.begin(_FREE):
        raise KdbusError(EINVAL, "FREE takes no items")
    connection.pool.free(u64(call.data, CMD_FREE_OFFSET))
    call.clear_return_flags(_FREE)
    return 0
