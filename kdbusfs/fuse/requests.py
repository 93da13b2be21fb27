"""Ioctls and their interrupts: from a request of the channel to the core's call, and back to the answer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from errno import EIO, EPERM, ESHUTDOWN
from typing import Any, Final, Protocol

from librt.strings import read_i32_le
from mypy_extensions import mypyc_attr

from ..base.call import IOC_READ, PENDING, Call
from ..base.errors import CommandError
from ..base.handle import Handle
from ..base.ports import Caller
from ..base.words import u32, u64
from ..native.calls import answer, described
from .channel import (
    FREED,
    HEAD_ARG,
    HEAD_CMD,
    HEAD_COMMAND_ERROR,
    HEAD_FH,
    HEAD_FREED,
    HEAD_MESSAGE_ERROR,
    HEAD_PIDFD,
    HEAD_TID,
    HEAD_UNIQUE,
    NOTHING,
    Channel,
)
from .files import OpenFiles

log = logging.getLogger(__name__)

_SIZE_SHIFT: Final = 16
_SIZE_MASK: Final = 0x3FFF
"""A request number has the size of its struct there."""
_VIEWED_WORDS: Final = 32
"""Structs of up to so many u64 have their views made in advance; no known command has more."""


class Domain(Protocol):
    """What requests need of the core's domain."""

    changed: list[Handle]
    completed: list[Call]

    def interrupt(self, call: Call) -> None:
        """A signal is pending for the caller of a deferred call."""


class Installer(Protocol):
    """What gives descriptors to a client before its command returns."""

    def submit(self, job: Any) -> None:
        """Begin; the job answers the request by itself, whatever happens."""

    def interrupt(self, unique: int) -> None:
        """A signal came for the client of a job that may not have begun yet."""

    def finished(self) -> Iterable[Any]:
        """Jobs that came to an end since the last time."""


class Storer(Protocol):
    """What brings the copies that clients have of their pools up to date."""

    @property
    def jobs(self) -> int:
        """How many answers it still has to give."""

    def take(self, memory: Any, slots: list[int]) -> Any:
        """What to store before an answer to the owner of `memory`; None: nothing.

        slots: offsets in it that will get numbers of descriptors.
        """

    def size_of(self, memory: Any, nodeid: int) -> Any:
        """What tells the kernel that inode `nodeid` is as long as `memory`."""

    def answer(self, stores: Any, unique: int, result: int, out: bytes | bytearray) -> bool:
        """Answer an ioctl after `stores`; False, with nothing done, when that cannot be."""

    def announce(self) -> None:
        """Have the server's wait end when a job is done."""


class Faults:
    """The log of errors that no client should be able to cause: each place at most once a minute."""

    INTERVAL: Final = 60.0  # s
    MAX_PLACES: Final = 256

    __slots__ = ("_clock", "_seen", "count")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, int], float] = {}
        self.count = 0

    def report(self, what: str) -> None:
        """Log the exception that is being handled."""
        self.count += 1
        trace = sys.exc_info()[2]
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace is not None else ("", 0)
        now = self._clock()
        last = self._seen.get(place)
        if last is None and len(self._seen) >= self.MAX_PLACES:
            return
        if last is None or now - last >= self.INTERVAL:
            self._seen[place] = now
            log.error("%s", what, exc_info=True)


@mypyc_attr(acyclic=True, free_list_len=1)
class _Deferred:
    """A call that is not answered yet, of thread `tid` of `uid`."""

    __slots__ = ("call", "fh", "tid", "uid")

    def __init__(self, call: Call, fh: int, tid: int, uid: int) -> None:
        self.call = call
        self.fh = fh
        self.tid = tid
        self.uid = uid


class _Views:
    """A struct of `size` bytes in the channel's buffer, made once: a slice costs more than finding one."""

    __slots__ = ("command", "size", "words")

    def __init__(self, channel: Channel, size: int) -> None:
        self.size = size
        self.command = channel.command[:size]
        self.words = channel.words(size // 8)


class Ledger:
    """What all threads' requests share: the calls that are not answered yet, by unique, and the running jobs."""

    __slots__ = ("deferred", "jobs", "requests")

    def __init__(self) -> None:
        self.deferred: dict[int, _Deferred] = {}
        self.jobs = 0
        self.requests: list[Requests] = []


class JobContext:
    """What a job of the installer keeps alive."""

    __slots__ = ("handle", "installation", "pinned")

    def __init__(self, installation: Any, handle: Handle | None, pinned: list[object]) -> None:
        self.installation = installation
        self.handle = handle
        self.pinned = pinned


class Requests:
    """Takes the channel's ioctls to the handles, and their answers back.

    The object belongs to the thread that has `channel`; other threads of the mount have a `twin`.

    installer, make_job: None where nothing can be installed into clients.  make_job takes the keywords
    tid, user, unique, result, out, entries, address, flags_offset, incomplete_flags, caller, writes, swap,
    swapped_node, unswapped, stores and context.
    swap_path: gives the path of the private file of an fh's connection; None: connections keep their file.
    node_of: gives the node id that an fh is an open of; only_node_of: 0 where others have it open as well.
    make_caller: gives a caller of the thread's own.
    storer: None where clients never have copies of their pools.
    """

    __slots__ = (
        "_address",
        "_call",
        "_caller",
        "_changed",
        "_channel",
        "_command",
        "_completed",
        "_domain",
        "_faults",
        "_files",
        "_freed",
        "_freed_count",
        "_installer",
        "_interrupted",
        "_ledger",
        "_make_job",
        "_native",
        "_node_of",
        "_only_node_of",
        "_options",
        "_storer",
        "_swap_path",
        "_views",
    )

    def __init__(
        self,
        channel: Channel,
        files: OpenFiles,
        domain: Domain,
        make_caller: Callable[[], Caller],
        *,
        installer: Installer | None = None,
        make_job: Callable[..., Any] | None = None,
        swap_path: Callable[[int], str] | None = None,
        node_of: Callable[[int], int] = lambda fh: 0,
        only_node_of: Callable[[int], int] = lambda fh: 0,
        storer: Storer | None = None,
        faults: Faults | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._faults = faults if faults is not None else Faults()
        self._ledger = ledger if ledger is not None else Ledger()
        self._options: dict[str, Any] = {
            "files": files,
            "domain": domain,
            "make_caller": make_caller,
            "installer": installer,
            "make_job": make_job,
            "swap_path": swap_path,
            "node_of": node_of,
            "only_node_of": only_node_of,
            "storer": storer,
            "faults": self._faults,
            "ledger": self._ledger,
        }
        caller = make_caller()
        self._channel = channel
        self._native: Any = channel.native
        self._address = channel.address
        self._freed = channel.freed
        self._freed_count = channel.freed_count
        self._changed = domain.changed
        self._completed = domain.completed
        self._command = channel.command
        self._views = [_Views(channel, 8 * words) for words in range(_VIEWED_WORDS)]
        self._files = files
        self._domain = domain
        self._call = Call()
        self._call.caller = caller
        self._caller = caller
        self._installer = installer
        self._make_job = make_job
        self._swap_path = swap_path if installer is not None else None
        self._node_of = node_of
        self._only_node_of = only_node_of
        self._storer = storer
        self._interrupted = 0

    @property
    def jobs(self) -> int:
        """How many jobs of the installer are under way, of all threads together."""
        return self._ledger.jobs

    def twin(self, channel: Channel) -> Requests:
        """The same for another thread, whose channel is `channel`; `leave` when it ends."""
        twin = Requests(channel, **self._options)
        self._ledger.requests.append(twin)
        return twin

    def leave(self) -> None:
        """The thread of this twin ends."""
        self._ledger.requests.remove(self)
        close = getattr(self._caller, "close", None)
        if close is not None:
            close()

    def ioctl(self) -> int:
        """Carry out the channel's current ioctl.  Returns its result for the next step.

        Never raises; the client of a fault of ours gets EIO.
        """
        head, data, message = described(self._address)
        unique = u64(head, HEAD_UNIQUE)
        fh = u64(head, HEAD_FH)
        number = u32(head, HEAD_CMD)
        tid = u32(head, HEAD_TID)
        if u32(head, HEAD_FREED):
            self.settle()
        call = self._call
        try:
            handle = self._files.get(fh)
            if handle is None:
                raise LookupError("no such open file")
            call.number = number
            call.address = u64(head, HEAD_ARG)
            call.data = data
            call.error = u32(head, HEAD_COMMAND_ERROR)
            call.message = message
            call.message_error = u32(head, HEAD_MESSAGE_ERROR)
            words = (number >> _SIZE_SHIFT & _SIZE_MASK) // 8
            views = self._views[words if words < _VIEWED_WORDS else 0]
            call.command = views.command if len(data) == views.size else self._command[: len(data)]
            call.words = views.words
            call.tells_offset = False
            call.becomes_connection = False
            call.tag = unique
            pidfd: int = read_i32_le(head, HEAD_PIDFD)
            self._caller.reset(tid, pidfd)
            result = handle.ioctl(call)
            if result == PENDING:
                waiting, call.deferred = call.deferred, None
                assert waiting is not None
                deferred = self._ledger.deferred[unique] = _Deferred(waiting, fh, tid, self._native.uid)
                result = NOTHING
                if unique in (self._interrupted, self._native.was_interrupted):
                    self._domain.interrupt(deferred.call)
            elif (
                call.installation is not None
                or call.becomes_connection
                or (call.tells_offset and handle.is_copied)
            ):
                self._answer(unique, call, result, handle, fh, tid)
                result = NOTHING
        except Exception as fault:
            result = self._errno_of(fault)
            self._let_go(call)
        if self._changed:
            self._publish()
        if self._completed:
            if any(each.writes for each in self._completed):
                # Their clients may hold up what is stored for them, and must not hold up the one of this command.
                self._channel.flush(result)
                result = NOTHING
            self._answer_completed()
        return result

    def settle(self) -> None:
        """Tell the core which slices were given back by a FREE that the channel has answered; before anything else."""
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
                    pass  # its pool is gone by now

    def interrupt(self) -> None:
        """Pass a FUSE_INTERRUPT on to the call that it is about; most are about requests answered already."""
        unique = self._channel.interrupted
        deferred = self._ledger.deferred.get(unique)
        if deferred is not None:
            self._domain.interrupt(deferred.call)
            self.drain()
            return
        if self._ledger.jobs and self._installer is not None:
            self._installer.interrupt(unique)
        # The kernel does not tell twice; a thread that is stuck finds it when it comes to defer its call.
        for other in self._ledger.requests:
            if other is not self and other._native.unique == unique:
                other._interrupted = unique

    def drain(self) -> None:
        """Publish changed readiness, and answer the calls that were completed."""
        self._publish()
        self._answer_completed()

    def _publish(self) -> None:
        """Let pollers see changed readiness."""
        changed = self._changed
        if changed:
            try:
                for handle in changed:
                    self._files.publish(handle)
            except Exception:
                self._faults.report("readiness cannot be published")
            changed.clear()

    def _answer_completed(self) -> None:
        """Answer the calls that were completed; the command of this thread is answered if any of them has writes."""
        completed = self._completed
        while completed:
            call = completed.pop(0)
            deferred = self._ledger.deferred.pop(call.tag, None)
            if deferred is None:
                self._let_go(call)
                continue
            try:
                owner = self._files.get(deferred.fh)
                if call.writes and self._store(call, deferred, owner):
                    continue
                self._answer(call.tag, call, call.result, owner, deferred.fh, deferred.tid)
            except Exception as fault:
                self._channel.answer(call.tag, self._errno_of(fault), b"")
                self._let_go(call)

    def _store(self, call: Call, deferred: _Deferred, handle: Handle | None) -> bool:
        """Store what a completed call has for the memory of its client, and answer it.

        Returns False, with nothing done, where something else has to be done with it as well, or where others must not
        wait for this client: that is for the installer's thread of its user.
        """
        if call.installation is not None or call.becomes_connection or (handle is not None and handle.is_copied):
            return False
        channel = self._channel
        if not channel.serves(deferred.uid, deferred.tid, call.tag):
            channel.served(deferred.fh, call.number, None)
            return False
        result = call.result
        try:
            for address, data in call.writes:
                call.caller.write(address, data)
        except CommandError as error:
            result = -error.errno
        if channel.served(deferred.fh, call.number, None if result else call.fixed):
            channel.answer(call.tag, result, b"")
        return True

    def finish_jobs(self) -> None:
        """Let go of what the installer is through with."""
        if self._installer is not None:
            for job in self._installer.finished():
                self._ledger.jobs -= 1
                installation = job.context.installation
                if installation is not None:
                    installation.done()

    def abandon(self) -> None:
        """Answer whatever is still deferred when the domain ends."""
        for unique in list(self._ledger.deferred):
            del self._ledger.deferred[unique]
            self._channel.answer(unique, -ESHUTDOWN, b"")

    def stats(self) -> dict[str, int]:
        """For the statistics of the mount."""
        return {
            **self._channel.counters(),
            **self._channel.owners(),
            "open_files": len(self._files),
            "deferred": len(self._ledger.deferred),
            "jobs": self.jobs,
            "faults": self._faults.count,
        }

    def _errno_of(self, fault: Exception) -> int:
        if isinstance(fault, CommandError):
            return -fault.errno
        self._faults.report("a command failed unexpectedly")
        return -EIO

    def _answer(self, unique: int, call: Call, result: int, handle: Handle | None, fh: int, tid: int) -> None:
        """Answer now, or let the installer do it when descriptors have to be there first."""
        installation, call.installation = call.installation, None
        out_size = call.number >> _SIZE_SHIFT & _SIZE_MASK if call.number & IOC_READ else 0
        swap = unswapped = None
        if call.becomes_connection:
            swap = None if self._swap_path is None else self._swap_path(fh)
            unswapped = self._size_of(handle, fh)
        must_be_alone = installation is not None or swap is not None or bool(call.writes)
        if not must_be_alone and (handle is None or not handle.is_copied):
            answer(self._address, fh, call.number, unique, result, call.returned(out_size))
            return
        if must_be_alone:
            swapping = None if swap is None else (swap, self._node_of(fh), unswapped)
            if self._submit(unique, call, result, handle, tid, call.returned(out_size), swapping, installation):
                return
            if installation is not None:
                installation.refuse(call, EPERM)
            for address, data in call.writes:
                call.caller.write(address, data)
        out = bytearray(call.returned(out_size))
        stores = self._take_stores(handle, None) if unswapped is None else unswapped
        if stores is None or self._storer is None or not self._storer.answer(stores, unique, result, out):
            self._channel.answer(unique, result, out, fh, call.number)

    def _take_stores(self, handle: Handle | None, installation: Any) -> Any:
        """What the storer has to do before the owner of `handle` gets an answer; None: nothing."""
        if self._storer is None or handle is None or not handle.is_copied:
            return None
        slots = [] if installation is None else [offset for _, _, offset in installation.entries]
        return self._storer.take(getattr(handle, "memory", None), slots)

    def _size_of(self, handle: Handle | None, fh: int) -> Any:
        """What shows a fresh connection its pool, by copies, in the file that it has opened; None: nothing can."""
        nodeid = self._only_node_of(fh)
        if self._storer is None or not nodeid:
            return None
        return self._storer.size_of(getattr(handle, "memory", None), nodeid)

    @property
    def answering(self) -> bool:
        """Whether others still have answers to give, which they need the reader for."""
        return (
            bool(self.jobs)
            or (self._storer is not None and bool(self._storer.jobs))
            or bool(self._channel.owners()["aside"])
        )

    def announce_answers(self) -> None:
        """Have the server's wait end whenever `answering` may have changed."""
        if self._storer is not None:
            self._storer.announce()

    def _submit(
        self,
        unique: int,
        call: Call,
        result: int,
        handle: Handle | None,
        tid: int,
        out: bytes,
        swapping: tuple[str, int, Any] | None,
        installation: Any,
    ) -> bool:
        """Give the installer what it needs.  Returns False, with nothing answered, where that cannot be."""
        if self._installer is None or self._make_job is None:
            return False
        try:
            entries: list[tuple[int, Any]] = []
            pinned: list[object] = []
            if installation is not None:
                for file, memory, offset in installation.entries:
                    pointer, keepalive = memory.pin(offset)
                    entries.append((file.fd, pointer))
                    pinned.append(keepalive)
            stores = self._take_stores(handle, installation)
            more = {} if stores is None else {"stores": stores}
            swap, swapped_node, unswapped = (None, 0, None) if swapping is None else swapping
            if unswapped is not None:
                more["unswapped"] = unswapped
            if call.writes or (installation is not None and not call.number & IOC_READ):
                more["caller"] = call.caller if call.fixed is not None else call.caller.defer()
                more["writes"] = call.writes
            job = self._make_job(
                **more,
                tid=tid,
                user=call.caller.user,
                unique=unique,
                result=result,
                out=out,
                entries=entries,
                address=call.address,
                flags_offset=installation.flags_offset if installation is not None else -1,
                incomplete_flags=installation.incomplete_flags(call) if installation is not None else 0,
                swap=swap,
                swapped_node=swapped_node,
                context=JobContext(installation, handle, pinned),
            )
            self._installer.submit(job)
        except CommandError:
            # The caller is no more, or there is no memory to map: the command itself has been carried out.
            return False
        except Exception:
            self._faults.report("descriptors cannot be installed")
            return False
        self._ledger.jobs += 1
        return True

    def _let_go(self, call: Call) -> None:
        installation, call.installation = call.installation, None
        if installation is not None:
            installation.done()
