"""How requests end, above all blocked SENDs: answer, failure, interruption, restart (REP-10 to REP-18, SYNC-1 to 5)."""

from __future__ import annotations

from errno import ECOMM, ECONNRESET, EPIPE, EREMOTEIO
from typing import TYPE_CHECKING

from ..abi import constants as c
from ..base.errors import CommandError
from .delivery import discard
from .reply import BLOCK, BLOCKED, INTERRUPT, INTERRUPTED, KEPT, OUTCOME

if TYPE_CHECKING:
    from ..base.call import Call
    from ..base.ports import Caller, Cancellation, ProcessMetadata
    from .message import Message
    from .metadata import ConnMetadata
    from .reply import Tracker


def wait(tracker: Tracker, call: Call, cancellation: Cancellation | None) -> None:
    """Let the SEND `call` block: it is answered through `finish` or `interrupt`."""
    call = call.defer()
    tracker.advance(BLOCK)
    tracker.call = call
    tracker.cancellation = cancellation
    tracker.requester.bus.domain.waiting[call] = tracker


def finish(tracker: Tracker, errno: int) -> None:
    """End the wait: the SEND returns -errno, or what became of the attached reply, which wins (REP-17)."""
    call = tracker.call
    assert call is not None
    domain = tracker.requester.bus.domain
    del domain.waiting[call]
    tracker.call = None
    tracker.stop_watching()
    tracker.unlink()
    call.result = -errno
    if tracker.reply is not None:
        call.result = take_reply(tracker, call)
    domain.completed.append(call)
    tracker.release()


def take_reply(tracker: Tracker, call: Call) -> int:
    """Put the attached reply into the requester's pool and `call`'s struct (REP-15).  Returns the SEND's result."""
    entry, tracker.reply = tracker.reply, None
    assert entry is not None
    requester = tracker.requester
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
    tracker: Tracker,
    message: Message,
    process: ProcessMetadata | None,
    metadata: ConnMetadata | None,
    caller: Caller,
) -> None:
    """Attach the reply `message` to a blocking request; it never enters the queue (REP-15).

    Raises CommandError for the replying side; the requester learns the same, or EREMOTEIO for ECOMM (REP-16).  EPERM,
    or EBADSLT, when the wait is over already: it may have ended during a copy (`Caller.copy_payload`), and not by this
    reply.
    """
    _check_awaited(tracker)
    requester = tracker.requester
    try:
        entry = requester.delivery.make_entry(requester, message, process, metadata, tracker.replying, caller)
    except CommandError as error:
        _check_awaited(tracker)
        conclude(tracker, EREMOTEIO if error.errno == ECOMM else error.errno)
        raise
    try:
        _check_awaited(tracker)
    except CommandError:
        discard(requester, entry)
        raise
    tracker.reply = entry
    requester.traffic.count_received(message)
    conclude(tracker, 0)


def _check_awaited(tracker: Tracker) -> None:
    if not tracker.is_linked or tracker.has_outcome:
        raise CommandError(tracker.replying.family.rules.no_tracker, "reply is not expected any more")


def conclude(tracker: Tracker, errno: int) -> None:
    """The outcome of a blocking request is certain: the attached reply, or `errno` instead (REP-10, REP-11).

    A SEND that waits returns with it; another takes it up when it comes to wait, or is restarted.
    """
    if tracker.state == BLOCKED:
        finish(tracker, errno)
    else:
        tracker.advance(OUTCOME)
        tracker.failure = errno
        tracker.forgive()


def interrupt(tracker: Tracker, result: int) -> None:
    """A signal ended the wait: the ioctl returns `result`, the tracker stays for the restart (SYNC-2, SYNC-3)."""
    call = tracker.call
    assert call is not None
    domain = tracker.requester.bus.domain
    del domain.waiting[call]
    tracker.call = None
    tracker.stop_watching()
    tracker.advance(INTERRUPT)
    call.result = result
    domain.completed.append(call)


def forget(tracker: Tracker) -> None:
    """Drop a tracker that no SEND waits on, with a reply that was kept for a restart (REP-13, SYNC-3)."""
    entry, tracker.reply = tracker.reply, None
    if entry is not None:
        discard(tracker.requester, entry)
    state = tracker.state
    tracker.unlink()
    if state in (INTERRUPTED, KEPT):
        tracker.release()  # the hold of the interrupted SEND


def end_request(tracker: Tracker) -> None:
    """No reply will come: a blocking SEND gets EPIPE, an asynchronous requester REPLY_DEAD (REP-10, REP-11)."""
    if tracker.is_blocking:
        conclude(tracker, EPIPE)
    else:
        requester = tracker.requester
        requester.bus.notifications.reply(c.ITEM_REPLY_DEAD, requester.id, tracker.cookie)
        tracker.unlink()
