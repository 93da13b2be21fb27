"""Answers ioctls: at once, after the client's copies of its pool are up to date, or by the installer."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINTR, EIO, EPERM
from typing import TYPE_CHECKING, Protocol, cast

from ..base.call import IOC_READ, Call, Installation, struct_size
from ..base.errors import CommandError
from ..base.handle import Handle
from ..host.job import Job
from ..native.calls import answer, new_number
from .channel import Channel
from .error_log import ErrorLog
from .pending import DeferredCall, PendingCalls

if TYPE_CHECKING:
    from ..host.copies import Stores
    from ..host.installer import Installer
    from ..host.store_memory import Storer
    from ..native._native import CData


class _OpenFile(Protocol):
    """A client's file that the daemon holds open."""

    fd: int


class _MappedMemory(Protocol):
    """The memory of a pool, in which the number of a descriptor is stored."""

    def pin(self, offset: int) -> tuple[CData, object]:
        """An int32 pointer to `offset`, and the object that keeps it valid."""


class Nodes(Protocol):
    """The methods of the tree that the responder calls."""

    def node_of(self, fh: int) -> int:
        """The node id that `fh` is an open of."""

    def only_node_of(self, fh: int) -> int:
        """The same; 0 if the node has other opens."""


class ClientFiles:
    """Changes clients' descriptors, and the copies that they have of their pools.

    installer: installs descriptors in clients; storer: updates copies; swap_path: the path of the private file for the
    connection of an fh, None if connections keep the file that they have opened.
    """

    __slots__ = ("installer", "nodes", "storer", "swap_path")

    def __init__(
        self, installer: Installer, nodes: Nodes, storer: Storer | None, swap_path: Callable[[int], str] | None
    ) -> None:
        self.installer = installer
        self.nodes = nodes
        self.storer = storer
        self.swap_path = swap_path


class JobContext:
    """Objects that a job of the installer keeps alive."""

    __slots__ = ("handle", "installation", "pinned")

    def __init__(self, installation: Installation | None, handle: Handle | None, pinned: list[object]) -> None:
        self.installation = installation
        self.handle = handle
        self.pinned = pinned


class Swap:
    """The file that a new connection moves to at HELLO.

    path: of the private file, None: the connection keeps its file; node: of the file that it has now; unswapped: stores
    that show the client its pool there, if nothing is swapped.
    """

    __slots__ = ("node", "path", "unswapped")

    def __init__(self, path: str | None = None, node: int = 0, unswapped: Stores | None = None) -> None:
        self.path = path
        self.node = node
        self.unswapped = unswapped


class Responder:
    """Answers the calls of one mount, for whichever thread owns the core.

    files: None if clients' files cannot be changed.
    """

    __slots__ = ("_errors", "_files", "_pending")

    def __init__(self, files: ClientFiles | None, pending: PendingCalls, errors: ErrorLog) -> None:
        self._files = files
        self._pending = pending
        self._errors = errors

    def answer(
        self, channel: Channel, unique: int, call: Call, result: int, handle: Handle | None, fh: int, tid: int
    ) -> None:
        """Answer request `unique` of thread `tid` now, or have the installer answer it after it has installed
        descriptors.

        Raises CommandError for client memory that cannot be written.
        """
        installation, call.installation = call.installation, None
        swap = self._swap_of(handle, fh) if call.becomes_connection else None
        is_job = installation is not None or (swap is not None and swap.path is not None) or bool(call.writes)
        out = call.returned(struct_size(call.number) if call.number & IOC_READ else 0)
        if not is_job and (handle is None or not handle.is_copied):
            answer(channel.address, fh, call.number, unique, result, out)
            return
        if is_job:
            if self._submit(unique, call, result, handle, tid, out, swap or Swap(), installation):
                return
            if installation is not None:
                installation.refuse(call, EPERM)
                if installation.is_all_or_none:
                    result, out = -EPERM, b""
            for address, data in call.writes:
                call.caller.write(address, data)
            out = call.returned(len(out))
        unswapped = None if swap is None else swap.unswapped
        stores = self._take_stores(handle, None) if unswapped is None else unswapped
        storer = None if self._files is None else self._files.storer
        if stores is None or storer is None or not storer.answer(stores, unique, result, out):
            answer(channel.address, fh, call.number, unique, result, out)

    def store(self, channel: Channel, call: Call, deferred: DeferredCall, handle: Handle | None) -> bool:
        """Store the results of a completed call in its client's memory, and answer it.

        Returns False, with nothing done, if more has to be done than that, or if it must not delay others: then the
        installer's thread of the client's user has to do it.
        """
        if call.installation is not None or call.becomes_connection or (handle is not None and handle.is_copied):
            return False
        if call.result or call.fixed is None or len(call.writes) != 1:
            return False
        address, data = call.writes[0]
        return channel.store(
            deferred.fh, call.number, deferred.uid, deferred.tid, call.tag, address, data, bytes(call.fixed)
        )

    def let_go(self, call: Call) -> None:
        """The call is answered with an error instead of its result: nothing is installed."""
        installation, call.installation = call.installation, None
        if installation is not None:
            installation.conclude(EIO)

    def conclude(self) -> None:
        """End installations whose clients have been answered: the next request may be theirs."""
        for installation, outcome in list(self._pending.installing):
            if outcome[0]:
                self._end(installation, outcome[0])

    def _end(self, installation: Installation, outcome: int) -> None:
        """outcome: -errno, or a positive number for success."""
        if self._pending.installing:
            self._pending.installing = [each for each in self._pending.installing if each[0] is not installation]
        installation.conclude(-outcome if outcome < 0 else 0)

    def interrupt(self, unique: int) -> None:
        """A signal is pending for the client of a job, which perhaps has not begun."""
        if self._pending.jobs and self._files is not None:
            self._files.installer.interrupt(unique)

    def finish_jobs(self) -> None:
        """Release what the installer's finished jobs hold."""
        if self._files is not None:
            for job in self._files.installer.finished():
                self._pending.jobs -= 1
                assert isinstance(job.context, JobContext)
                installation = job.context.installation
                if installation is not None:
                    # Without an outcome the client was killed before the job began.
                    self._end(installation, 0 if job.outcome is None else job.outcome[0] or -EINTR)

    @property
    def is_answering(self) -> bool:
        """Whether jobs still have answers to send, for which they need the reader."""
        storer = None if self._files is None else self._files.storer
        return bool(self._pending.jobs) or (storer is not None and bool(storer.jobs))

    def announce_answers(self) -> None:
        """End the server's wait whenever `is_answering` may have changed."""
        if self._files is not None and self._files.storer is not None:
            self._files.storer.announce()

    def _swap_of(self, handle: Handle | None, fh: int) -> Swap | None:
        files = self._files
        if files is None:
            return None
        path = None if files.swap_path is None else files.swap_path(fh)
        nodeid = files.nodes.only_node_of(fh)
        unswapped = None
        if files.storer is not None and nodeid:
            unswapped = files.storer.size_of(getattr(handle, "memory", None), nodeid)
        return Swap(path, files.nodes.node_of(fh), unswapped)

    def _take_stores(self, handle: Handle | None, installation: Installation | None) -> Stores | None:
        """The stores that have to be done before the owner of `handle` is answered; None: none."""
        if self._files is None or self._files.storer is None or handle is None or not handle.is_copied:
            return None
        slots = [] if installation is None else [offset for _, _, offset in installation.entries]
        return self._files.storer.take(getattr(handle, "memory", None), slots)

    def _submit(
        self,
        unique: int,
        call: Call,
        result: int,
        handle: Handle | None,
        tid: int,
        out: bytes,
        swap: Swap,
        installation: Installation | None,
    ) -> bool:
        """Submit a job to the installer.  Returns False, with nothing answered, if that is impossible."""
        if self._files is None:
            return False
        try:
            entries, pinned = _pin(installation)
            writes_memory = bool(call.writes) or (installation is not None and not call.number & IOC_READ)
            caller = None
            if writes_memory:
                caller = call.caller if call.fixed is not None else call.caller.defer()
            is_all_or_none = installation is not None and installation.is_all_or_none
            outcome = new_number() if is_all_or_none else None
            job = Job(
                tid=tid,
                user=call.caller.user,
                unique=unique,
                result=result,
                out=out,
                entries=entries,
                address=call.address,
                flags_offset=-1 if installation is None or is_all_or_none else installation.flags_offset,
                incomplete_flags=0
                if installation is None or is_all_or_none
                else installation.incomplete_flags(call),
                outcome=outcome,
                original=call.data if is_all_or_none else b"",
                caller=caller,
                writes=call.writes,
                swap=swap.path,
                swapped_node=swap.node,
                unswapped=swap.unswapped,
                stores=self._take_stores(handle, installation),
                context=JobContext(installation, handle, pinned),
            )
            self._files.installer.submit(job)
        except CommandError:
            # The caller has ended, or there is no memory to map.  The command itself has been carried out.
            return False
        except Exception:
            self._errors.report("descriptors cannot be installed")
            return False
        self._pending.jobs += 1
        if installation is not None and outcome is not None:
            self._pending.installing.append((installation, outcome))
        return True


def _pin(installation: Installation | None) -> tuple[list[tuple[int, CData]], list[object]]:
    """The descriptors to install, each with a pointer for its number; and the objects that keep the pointers valid."""
    entries: list[tuple[int, CData]] = []
    pinned: list[object] = []
    if installation is not None:
        for file, memory, offset in installation.entries:
            pointer, keepalive = cast(_MappedMemory, memory).pin(offset)
            entries.append((cast(_OpenFile, file).fd, pointer))
            pinned.append(keepalive)
    return entries, pinned
