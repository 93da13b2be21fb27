"""Ports: what a bus needs from the system.  `host` implements them for Linux, tests in memory.

Memory and Caller, which every message needs, are classes to derive from, because compiled code calls the methods of
classes by a table and those of protocols by name; the rest are protocols.

Ids of users, groups and processes are those of the daemon's own namespaces ("global ids", NS-1); they are
translated for a reader only where metadata are exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from mypy_extensions import mypyc_attr

from .identity import NO_ID, Creds, Pids

if TYPE_CHECKING:
    from .call import Call
    from .handle import Handle


@dataclass(slots=True)
class ProcessMetadata:
    """Metadata of one thread at one moment (META-3).  A kind is present iff its bit is in `valid`.

    Kinds are bits of the caller's numbering.  `collected` has the kinds that were tried, so that none is gathered
    twice for one message.
    """

    collected: int = 0
    valid: int = 0
    creds: Creds | None = None
    pids: dict[int, Pids] = field(default_factory=dict)  # by pid namespace in which the thread is visible
    auxgroups: tuple[int, ...] = ()
    tid_comm: bytes = b""
    pid_comm: bytes = b""
    exe: bytes = b""  # absolute, as seen from `root`
    root: Any = None  # identity of the thread's root directory; equal for two threads that share it
    cmdline: bytes = b""
    cgroup: bytes = b""
    caps: bytes = b""  # the last capability, then four sets, as u32 (META-13)
    user_ns: int = 0  # of the capabilities
    caps_euid: int = NO_ID  # effective uid of who has them
    seclabel: bytes = b""
    sessionid: int = NO_ID
    loginuid: int = NO_ID


class Reader(Protocol):
    """The namespaces of the thread that metadata are exported for (META-20)."""

    @property
    def user_ns(self) -> int:
        """Identity of its user namespace."""

    @property
    def user_chain(self) -> tuple[tuple[int, int], ...]:
        """Its user namespace and those around it, from the inside outwards up to the domain's: the identity of each,
        and the global uid of who made it."""

    @property
    def pid_ns(self) -> int:
        """Identity of its pid namespace."""

    @property
    def root(self) -> object:
        """Identity of its root directory, comparable with ProcessMetadata.root."""

    def uid_from_global(self, uid: int) -> int:
        """`uid` as the reader sees it; the overflow id where unmapped; NO_ID stays NO_ID."""

    def gid_from_global(self, gid: int) -> int:
        """As the method above, for a gid."""

    def gids_from_global(self, gids: tuple[int, ...]) -> bytes:
        """Many gids in the same way, as packed u32: there may be 65536."""

    def maps_uid(self, uid: int) -> bool:
        """Whether the global `uid` has a number of its own in the reader's user namespace."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Memory:
    """The backing of one pool: `size` zero bytes that the client can read and only the daemon writes.

    It is write-only memory for the core: what was stored is only ever copied, from pool to pool.
    """

    __slots__ = ()

    def resize(self, size: int) -> None:
        """Become fresh, zeroed memory of this size, at HELLO; again after a HELLO that failed.

        Raises CommandError (ENOMEM, EINVAL).
        """
        raise NotImplementedError

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at `offset`.  Raises CommandError(ENOMEM) when the host has no memory to map."""
        raise NotImplementedError

    def copy_from(self, offset: int, size: int, source: Memory, source_offset: int) -> None:
        """Copy payload from another pool, as the daemon wrote it there (activator take-over, ACT-4)."""
        raise NotImplementedError

    def close(self) -> None:
        """Drop the backing.  Mappings of the client keep the memory itself alive (POOL-6)."""
        raise NotImplementedError


class File(Protocol):
    """An open file description that a client passed, held by the daemon until `close`."""

    @property
    def is_control(self) -> bool:
        """Whether it is a `control` file, not opened with O_PATH (L-60)."""

    @property
    def is_bus_file(self) -> bool:
        """Whether it is an endpoint file of any kdbusfs mount (SEND-16)."""

    @property
    def is_unix_socket(self) -> bool:
        """Whether it is an AF_UNIX socket, and not merely an O_PATH descriptor of one (SEND-16)."""

    @property
    def is_path(self) -> bool:
        """Whether it was opened with O_PATH."""

    def seals(self) -> int | None:
        """Its F_SEAL_* bits; None where the file cannot be sealed (SEND-13)."""

    def size(self) -> int:
        """Its size in bytes; asked only of sealed files."""

    def close(self) -> None:
        """Close it.  Never blocks, whatever the file system."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Caller:
    """The thread that issued a command: valid until that command is answered.

    `read`, `write`, `copy_payload` and `collect` may block on the client's memory.  Other commands run
    meanwhile: whatever was checked before such a call must be checked again after it.  It is a `Reader`, too.
    """

    __slots__ = ()

    def reset(self, tid: int, pidfd: int = -1) -> None:
        """Refer to thread `tid` from now on.  pidfd: of that thread, not owned; or -1."""
        raise NotImplementedError

    def close(self) -> None:
        """Release its resources; it then refers to no thread."""

    @property
    def user_ns(self) -> int:
        """Identity of its user namespace."""
        raise NotImplementedError

    @property
    def user_chain(self) -> tuple[tuple[int, int], ...]:
        """Its user namespace and those around it; see `Reader`."""
        raise NotImplementedError

    @property
    def pid_ns(self) -> int:
        """Identity of its pid namespace."""
        raise NotImplementedError

    @property
    def root(self) -> object:
        """Identity of its root directory, comparable with ProcessMetadata.root."""
        raise NotImplementedError

    def uid_from_global(self, uid: int) -> int:
        """`uid` as the caller sees it; the overflow id where unmapped; NO_ID stays NO_ID."""
        raise NotImplementedError

    def gid_from_global(self, gid: int) -> int:
        """As the method above, for a gid."""
        raise NotImplementedError

    def gids_from_global(self, gids: tuple[int, ...]) -> bytes:
        """Many gids in the same way, as packed u32: there may be 65536."""
        raise NotImplementedError

    def maps_uid(self, uid: int) -> bool:
        """Whether the global `uid` has a number of its own in the caller's user namespace."""
        raise NotImplementedError

    @property
    def user(self) -> int:
        """Its real uid: what limits are accounted to (BUS-7, HELLO-13, QUO-3)."""
        raise NotImplementedError

    def ids(self) -> Creds:
        """Its credentials now (POL-13).  Raises CommandError(ESRCH) when it is gone."""
        raise NotImplementedError

    def groups(self) -> tuple[int, ...]:
        """Its supplementary groups now."""
        raise NotImplementedError

    def has_ipc_owner(self) -> bool:
        """Whether it has CAP_IPC_OWNER in effect in the domain's user namespace (PRIV-1)."""
        raise NotImplementedError

    def uid_to_global(self, uid: int) -> int | None:
        """A uid of the caller's user namespace as a global one; None where unmapped (POL-2, NS-4)."""
        raise NotImplementedError

    def gid_to_global(self, gid: int) -> int | None:
        """As the method above, for a gid."""
        raise NotImplementedError

    def domain_uid(self, uid: int) -> int | None:
        """A global uid as the domain's user namespace has it; None where unmapped (BUS-5)."""
        raise NotImplementedError

    def pids_of(self, pid: int) -> dict[int, int] | None:
        """The numbers of process `pid` of the caller's pid namespace, by pid namespace; None if none (HELLO-11)."""
        raise NotImplementedError

    def collect(self, metadata: ProcessMetadata, kinds: int) -> None:
        """Add those of `kinds` to `metadata` that it has not `collected` yet.

        Raises CommandError when a kind exists but cannot be gathered (SEND-39, HELLO-12).
        """
        raise NotImplementedError

    def write(self, address: int, data: bytes) -> None:
        """Store `data` in the caller's memory.  Raises CommandError(EFAULT), or ESRCH when the caller is gone."""
        raise NotImplementedError

    def copy_payload(self, memory: Memory, offset: int, vectors: list[tuple[int, int]]) -> None:
        """Read the caller's (address, size) vectors one after the other into `memory` from `offset` on.

        Address 0 means that many zero bytes.  One copy; raises CommandError(EFAULT) when any of it is unreadable.
        """
        raise NotImplementedError

    def come_by(self, channel: Any) -> None:
        """Use this channel of the host, which has more information about the requests than their thread id."""

    @property
    def is_compat(self) -> bool:
        """Whether its program is of 32 bits, on a system of 64."""
        raise NotImplementedError

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of the caller's memory.  Raises CommandError(EFAULT), or ESRCH when the caller is gone.

        It may block like `write`.
        """
        raise NotImplementedError

    def view(self, users: Reader | None = None) -> Reader:
        """Its current namespaces, in a form that outlives the command.  Raises CommandError(ESRCH).

        users: the `view_users` of another caller, whose user namespace is to be used instead.
        """
        raise NotImplementedError

    def view_users(self) -> Reader:
        """The same for its user namespace only; the other namespaces are not valid.  Raises CommandError(ESRCH)."""
        raise NotImplementedError

    def thread_ids(self) -> dict[int, Pids]:
        """Its pids, by pid namespace in which it is visible.  Raises CommandError(ESRCH) when it has ended."""
        raise NotImplementedError

    def security_context(self) -> bytes | None:
        """Its label of the security module; None without one."""
        raise NotImplementedError

    def handle_of(self, fd: int) -> Handle | None:
        """The open file of the same mount that its descriptor `fd` refers to; None for any other file.

        Raises CommandError(EBADF), also for an O_PATH descriptor.
        """
        raise NotImplementedError

    def take_file(self, fd: int) -> File:
        """The caller's descriptor `fd`, pinned.  Raises CommandError(EBADF), or EMFILE at the daemon's limits."""
        raise NotImplementedError

    def defer(self) -> Caller:
        """This caller in a form that outlives the present request: for a command that is answered later."""
        raise NotImplementedError


class Clock(Protocol):
    """Time, in nanoseconds."""

    def monotonic(self) -> int:
        """CLOCK_MONOTONIC: what deadlines are given in (REP-4)."""

    def realtime(self) -> int:
        """CLOCK_REALTIME."""


UNITS_BETWEEN_LOOKS: Final = 100
"""Units of work after which a turn looks at the clock: a tenth of what a turn may take."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Turn:
    """The time slice of a command: how long the core works before it lets other commands run.

    Every loop whose length a client decides calls `spend`.  Other commands may run in there, as during an access to
    client memory (`Caller`): whatever was checked before must be checked again after it.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = UNITS_BETWEEN_LOOKS

    def spend(self, units: int = 1) -> bool:
        """`units` of work were done, each about a microsecond.  Returns whether other commands may have run."""
        self._left -= units
        if self._left > 0:
            return False
        self._left = UNITS_BETWEEN_LOOKS
        return self.pause()

    def pause(self) -> bool:
        """Let other commands run if this turn has lasted long enough.  Returns whether they may have run."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class ServedDomain:
    """A domain, as its server sees it.

    changed: handles whose `poll()` may have changed, and completed: deferred calls with their result; both are taken
    after every entry.  turn: of the thread that owns the core.
    """

    changed: list[Handle]
    completed: list[Call]
    turn: Turn

    def interrupt(self, call: Call) -> None:
        """A signal is pending for the caller of a deferred call."""
        raise NotImplementedError

    def next_deadline(self) -> int:
        """CLOCK_MONOTONIC ns of the next thing to expire; 0: none."""
        raise NotImplementedError

    def expire(self, now: int) -> None:
        """End the requests whose deadline is not after `now`."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """End everything."""
        raise NotImplementedError


class Cancellation(Protocol):
    """A watched CANCEL_FD of a blocked SEND."""

    def close(self) -> None:
        """Stop watching, and close the descriptor."""


class Words(Protocol):
    """The fixed part of a command, of which the client gets back what is set, as u64."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...

    def tobytes(self) -> bytes: ...


class Host(Protocol):
    """All ports of a domain."""

    @property
    def clock(self) -> Clock: ...

    @property
    def turn(self) -> Turn: ...

    @property
    def page_size(self) -> int:
        """Bytes of a page of memory: what the size of a pool is a multiple of (HELLO-2)."""

    def random_uuid(self) -> bytes:
        """16 bytes of a random UUID, version 4 (BUS-9)."""

    def watch(self, file: File, token: Any) -> Cancellation:
        """Have `Domain.cancelled(token)` called when `file` becomes readable.

        Raises CommandError(EINVAL) for a file that cannot be polled.
        """
