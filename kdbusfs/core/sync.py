"""Blocked SENDs: how a synchronous call ends, is interrupted and goes on after a restart (REP-14 to 18, SYNC-*)."""

from __future__ import annotations

from errno import ECOMM, ECONNRESET, EPIPE, EREMOTEIO
from typing import TYPE_CHECKING

from ..abi import constants as c
from ..base.errors import CommandError
from .delivery import discard

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Caller, Cancellation, ProcessMetadata
    from .message import Message
    from .metadata import ConnMetadata
    from .reply import Reply


def wait(reply: Reply, call: Call, cancellation: Cancellation | None) -> None:
    """Let the SEND `call` block for `reply`: it is answered through `finish` or `interrupt`."""
    call = call.defer()
    reply.call = call
    reply.interrupted = False
    reply.cancellation = cancellation
    reply.requester.bus.domain.waiting[call] = reply


def finish(reply: Reply, errno: int) -> None:
    """End the wait: the SEND returns -errno, or what became of the attached reply, which wins (REP-17)."""
    call = reply.call
    assert call is not None
    domain = reply.requester.bus.domain
    del domain.waiting[call]
    reply.call = None
    reply.stop_watching()
    reply.unlink()
    call.result = -errno
    if reply.answer is not None:
        call.result = take_answer(reply, call)
    domain.completed.append(call)
    reply.drop()


def take_answer(reply: Reply, call: Call) -> int:
    """Put the attached reply into the requester's pool and `call`'s struct (REP-15); the SEND's result.

    The tracker is done with afterwards.
    """
    entry, reply.answer = reply.answer, None
    assert entry is not None
    requester = reply.requester
    try:
        if not requester.active:
            raise CommandError(ECONNRESET, "requester is gone")
        offset, size, installation = requester.delivery.install(requester, entry, call.caller, with_files=True)
        if installation is not None:
            installation.flags_offset = requester.family.replied_flags_offset
        call.installation = installation
    except CommandError as error:
        return -error.errno
    finally:
        discard(requester, entry)
    requester.family.replied(call, offset, size)
    return 0


def answer(
    reply: Reply,
    message: Message,
    process: ProcessMetadata | None,
    metadata: ConnMetadata | None,
    caller: Caller,
) -> None:
    """Attach the reply `message` to a blocked or interrupted SEND; it never enters the queue (REP-15).

    Raises CommandError for the replying side; the requester learns the same, or EREMOTEIO for ECOMM (REP-16).  EPERM,
    or EBADSLT, when the wait is over already: it may have ended during a copy (`Caller.copy_payload`), and not by this
    reply.
    """
    _check_awaited(reply)
    requester = reply.requester
    try:
        entry = requester.delivery.make_entry(requester, message, process, metadata, reply.replying, caller)
    except CommandError as error:
        _check_awaited(reply)
        _end(reply, EREMOTEIO if error.errno == ECOMM else error.errno)
        raise
    try:
        _check_awaited(reply)
    except CommandError:
        discard(requester, entry)
        raise
    reply.answer = entry
    requester.received += 1
    requester.received_bytes += message.payload_size + message.memfd_size
    _end(reply, 0)


def _check_awaited(reply: Reply) -> None:
    if not reply.linked or reply.answered:
        raise CommandError(reply.replying.family.rules.no_tracker, "reply is not expected any more")


def fail(reply: Reply, errno: int) -> None:
    """No reply will come: the SEND returns -errno, an interrupted one when it is restarted (REP-10, REP-11)."""
    _end(reply, errno)


def _end(reply: Reply, errno: int) -> None:
    """Nothing is waited for any more; who is not there to hear it yet learns it at its restart."""
    if reply.call is not None:
        finish(reply, errno)
    else:
        reply.failure = errno
        reply.settle()


def interrupt(reply: Reply, result: int) -> None:
    """A signal ended the wait: the ioctl returns `result`, the tracker stays for the restart (SYNC-2, SYNC-3)."""
    call = reply.call
    assert call is not None
    domain = reply.requester.bus.domain
    del domain.waiting[call]
    reply.call = None
    reply.stop_watching()
    reply.interrupted = True
    call.result = result
    domain.completed.append(call)


def forget(reply: Reply) -> None:
    """Drop a tracker that nobody waits on, with a reply that was kept for a restart (REP-13, SYNC-3)."""
    entry, reply.answer = reply.answer, None
    if entry is not None:
        discard(reply.requester, entry)
    was_interrupted, reply.interrupted = reply.interrupted, False
    reply.unlink()
    if was_interrupted:
        reply.drop()


def end_request(reply: Reply) -> None:
    """There will be no reply: the blocked SEND gets EPIPE, an asynchronous requester REPLY_DEAD (REP-10, REP-11)."""
    if reply.sync:
        fail(reply, EPIPE)
    else:
        requester = reply.requester
        requester.bus.notifications.reply(c.ITEM_REPLY_DEAD, requester.id, reply.cookie)
        reply.unlink()
