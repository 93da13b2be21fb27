"""Ioctls and their interrupts: from a request of the channel to the core's call, and back to the answer."""

from __future__ import annotations

from collections.abc import Callable
from errno import EIO, ESHUTDOWN
from typing import Final

from librt.strings import read_i32_le

from ..base.call import PENDING, Call, struct_size
from ..base.errors import CommandError
from ..base.ports import Caller, ServedDomain
from ..base.words import u32, u64
from ..native.calls import current_request
from .channel import (
    FREED,
    NOTHING,
    REQUEST_ARG,
    REQUEST_CMD,
    REQUEST_COMMAND_ERROR,
    REQUEST_FH,
    REQUEST_FREED,
    REQUEST_MESSAGE_ERROR,
    REQUEST_PIDFD,
    REQUEST_TID,
    REQUEST_UNIQUE,
    Channel,
)
from .error_log import ErrorLog
from .files import OpenFiles
from .pending import DeferredCall, PendingCalls
from .responder import ClientFiles, Responder

_VIEWED_WORDS: Final = 32
"""The views of structs of up to so many u64 are made in advance; no known command has more."""
_UNITS_OF_A_WAKE_UP: Final = 4
"""Of work (`Turn.spend`): a poller is woken by a system call."""


class _Views:
    """Views of a struct of `size` bytes in the channel's buffer, made once: slicing costs more than a lookup."""

    __slots__ = ("command", "size", "words")

    def __init__(self, channel: Channel, size: int) -> None:
        self.size = size
        self.command = channel.command[:size]
        self.words = channel.words(size // 8)


class SharedState:
    """State that the requests of all threads of a mount share.

    files: the open files; make_caller: makes a caller for one thread; by_thread: the requests of each thread.
    """

    __slots__ = ("by_thread", "domain", "errors", "files", "make_caller", "pending", "responder")

    def __init__(
        self,
        files: OpenFiles,
        domain: ServedDomain,
        make_caller: Callable[[], Caller],
        client_files: ClientFiles | None,
        errors: ErrorLog,
    ) -> None:
        self.files = files
        self.domain = domain
        self.make_caller = make_caller
        self.errors = errors
        self.pending = PendingCalls()
        self.responder = Responder(client_files, self.pending, errors)
        self.by_thread: list[Requests] = []


class Requests:
    """Passes the channel's ioctls to the handles, and their results back.

    The object belongs to the thread that has `channel`.
    """

    __slots__ = (
        "_address",
        "_call",
        "_caller",
        "_changed",
        "_channel",
        "_command",
        "_completed",
        "_files",
        "_freed",
        "_freed_count",
        "_interrupted",
        "_native",
        "_responder",
        "_shared",
        "_turn",
        "_views",
    )

    def __init__(self, channel: Channel, shared: SharedState) -> None:
        self._channel = channel
        self._native = channel.native
        self._address = channel.address
        self._freed = channel.freed
        self._freed_count = channel.freed_count
        self._command = channel.command
        self._views = [_Views(channel, 8 * words) for words in range(_VIEWED_WORDS)]
        self._shared = shared
        self._files = shared.files
        self._responder = shared.responder
        self._changed = shared.domain.changed
        self._completed = shared.domain.completed
        self._turn = shared.domain.turn
        self._caller = shared.make_caller()
        self._caller.come_by(channel.native)
        self._call = Call()
        self._call.caller = self._caller
        self._interrupted = 0

    def for_thread(self, channel: Channel) -> Requests:
        """Make the object for another thread, whose channel is `channel`; call `leave` when that ends."""
        requests = Requests(channel, self._shared)
        self._shared.by_thread.append(requests)
        return requests

    def leave(self) -> None:
        """The thread of this object ends."""
        self._shared.by_thread.remove(self)
        self._caller.close()

    def ioctl(self) -> int:
        """Carry out the channel's current ioctl.  Returns its result for the next step.

        Never raises; after an unexpected exception the client gets EIO.
        """
        head, data, message = current_request(self._address)
        unique = u64(head, REQUEST_UNIQUE)
        fh = u64(head, REQUEST_FH)
        tid = u32(head, REQUEST_TID)
        if u32(head, REQUEST_FREED):
            self.tell_freed()
        call = self._call
        if self._shared.pending.installing:
            self._responder.conclude()
        try:
            handle = self._files.get(fh)
            if handle is None:
                raise LookupError("no such open file")
            self._begin(head, data, message)
            result = handle.ioctl(call)
            if result == PENDING:
                waiting, call.deferred = call.deferred, None
                assert waiting is not None
                deferred = self._shared.pending.deferred[unique] = DeferredCall(waiting, fh, tid, self._native.uid)
                result = NOTHING
                if unique in (self._interrupted, self._native.was_interrupted):
                    self._shared.domain.interrupt(deferred.call)
            elif (
                call.installation is not None
                or call.becomes_connection
                or (call.tells_offset and handle.is_copied)
            ):
                if call.becomes_connection:
                    self._files.let_end_wait(handle)
                self._responder.answer(self._channel, unique, call, result, handle, fh, tid)
                result = NOTHING
        except Exception as fault:
            result = self._errno_of(fault)
            self._responder.let_go(call)
        if self._changed:
            self._publish()
        if self._completed:
            if any(each.writes for each in self._completed):
                # A client may delay what is stored in its memory.  That must not delay the answer of this command.
                self._channel.flush(result)
                result = NOTHING
            self._answer_completed()
        return result

    def _begin(self, head: bytes, data: bytes, message: bytes | None) -> None:
        """Fill the call and its caller from the channel's current ioctl."""
        call = self._call
        number = u32(head, REQUEST_CMD)
        call.number = number
        call.address = u64(head, REQUEST_ARG)
        call.data = data
        call.error = u32(head, REQUEST_COMMAND_ERROR)
        call.message = message
        call.message_error = u32(head, REQUEST_MESSAGE_ERROR)
        words = struct_size(number) // 8
        views = self._views[words if words < _VIEWED_WORDS else 0]
        call.command = views.command if len(data) == views.size else self._command[: len(data)]
        call.words = views.words
        call.tells_offset = False
        call.becomes_connection = False
        call.tag = u64(head, REQUEST_UNIQUE)
        pidfd: int = read_i32_le(head, REQUEST_PIDFD)
        self._caller.reset(u32(head, REQUEST_TID), pidfd)

    def tell_freed(self) -> None:
        """Tell the core which slices a FREE that the channel has answered gave back; before anything else."""
        count: int = self._freed_count[0]
        self._freed_count[0] = 0
        fh: int
        offset: int
        for fh, offset in FREED.iter_unpack(self._freed[: count * FREED.size]):
            handle = self._files.get(fh)
            if handle is not None:
                try:
                    handle.freed(offset)
                except CommandError:
                    pass  # the pool has been closed

    def interrupt(self) -> None:
        """Pass a FUSE_INTERRUPT to its call; most are for requests that are answered already."""
        unique = self._channel.interrupted
        deferred = self._shared.pending.deferred.get(unique)
        if deferred is not None:
            self._shared.domain.interrupt(deferred.call)
            self.drain()
            return
        self._responder.interrupt(unique)
        # The kernel sends it once.  A thread that is stuck finds it when it defers its call.
        for other in self._shared.by_thread:
            if other is not self and other._native.unique == unique:
                other._interrupted = unique

    def drain(self) -> None:
        """Publish changed readiness, and answer completed calls."""
        self._publish()
        self._answer_completed()

    def _publish(self) -> None:
        """Update poll bits, and wake pollers.

        There may be thousands after one message.  Others may be served meanwhile, and publish the rest as well:
        whatever changed before is published when this returns.
        """
        changed = self._changed
        while changed:
            try:
                self._files.publish(changed.pop())
            except Exception:
                self._shared.errors.report("readiness cannot be published")
            self._turn.spend(_UNITS_OF_A_WAKE_UP)

    def _answer_completed(self) -> None:
        """Answer completed calls; the command of this thread has been answered if any of them has writes."""
        completed = self._completed
        while completed:
            call = completed.pop(0)
            deferred = self._shared.pending.deferred.pop(call.tag, None)
            if deferred is None:
                self._responder.let_go(call)
                continue
            try:
                owner = self._files.get(deferred.fh)
                if not (call.writes and self._responder.store(self._channel, call, deferred, owner)):
                    self._responder.answer(self._channel, call.tag, call, call.result, owner, deferred.fh, deferred.tid)
            except Exception as fault:
                self._channel.answer(call.tag, self._errno_of(fault), b"")
                self._responder.let_go(call)

    @property
    def jobs(self) -> int:
        """Number of the installer's jobs, of all threads together."""
        return self._shared.pending.jobs

    def finish_jobs(self) -> None:
        """Release what the installer's finished jobs hold."""
        self._responder.finish_jobs()

    @property
    def is_answering(self) -> bool:
        """Whether jobs or threads still have answers to send, for which they need the reader."""
        return self._responder.is_answering or bool(self._channel.owners()["yielded"])

    def announce_answers(self) -> None:
        """End the server's wait whenever `is_answering` may have changed."""
        self._responder.announce_answers()

    def abandon(self) -> None:
        """Answer all deferred calls when the domain ends."""
        for unique in list(self._shared.pending.deferred):
            del self._shared.pending.deferred[unique]
            self._channel.answer(unique, -ESHUTDOWN, b"")

    def stats(self) -> dict[str, int]:
        """Values for the `stats` file."""
        return {
            **self._channel.counters(),
            **self._channel.owners(),
            "open_files": len(self._files),
            "deferred": len(self._shared.pending.deferred),
            "jobs": self.jobs,
            "faults": self._shared.errors.count,
        }

    def _errno_of(self, fault: Exception) -> int:
        if isinstance(fault, CommandError):
            return -fault.errno
        self._shared.errors.report("a command failed unexpectedly")
        return -EIO
