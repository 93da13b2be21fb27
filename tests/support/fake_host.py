"""Fakes of the ports of `kdbusfs.core`, without Linux; tests/operations/test_ports.py compares them with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from errno import EBADF, EFAULT, EINVAL, EPERM, ESRCH
from struct import pack
from time import thread_time_ns

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import NO_ID, Creds, Pids
from kdbusfs.base.ports import Caller, File, Memory, ProcessMetadata, Reader, Turn
from kdbusfs.core.send import CancelToken

ALL_SEALS = 0xF
OVERFLOW_ID = 65534


class FakeMemory(Memory):
    """Pool memory that a test can inspect."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.closed = False
        self.failing = 0  # errno of the next calls of `store`; 0: they succeed
        self.resize_errno = 0

    def resize(self, size: int) -> None:
        if self.resize_errno:
            raise CommandError(self.resize_errno, "no such size")
        self.data = bytearray(size)

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.failing:
            raise CommandError(self.failing, "no memory to map")
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data

    def copy_from(self, offset: int, size: int, source: Memory, source_offset: int) -> None:
        assert isinstance(source, FakeMemory)
        self.store(offset, source.data[source_offset : source_offset + size])

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeFile:
    """A passed file; `open_count` is its reference count."""

    seal_bits: int | None = None
    length: int = 0
    is_bus_file: bool = False
    is_control: bool = False
    is_unix_socket: bool = False
    is_path: bool = False
    pollable: bool = True
    open_count: int = 0

    def seals(self) -> int | None:
        return self.seal_bits

    def size(self) -> int:
        return self.length

    def close(self) -> None:
        assert self.open_count > 0, "closed once too often"
        self.open_count -= 1


def sealed_memfd(size: int) -> FakeFile:
    return FakeFile(seal_bits=ALL_SEALS, length=size)


@dataclass
class FakeProcess:
    """A client process: its memory by address, its descriptors, its credentials, its namespaces."""

    uid: int = 1000
    euid: int | None = None
    gid: int = 1000
    aux: tuple[int, ...] = ()
    ipc_owner: bool = False
    pid: int = 100
    user_ns: int = 1
    outer_users: tuple[tuple[int, int], ...] = ()  # the user namespaces around it, with the uids that made them
    ns_owner: int = NO_ID  # who made its own
    caps: bytes = bytes(36)
    is_hidden: bool = False  # the daemon may not see its user namespace
    pid_ns: int = 1
    root: object = "root"
    memory: dict[int, bytearray] = field(default_factory=dict)
    files: dict[int, FakeFile] = field(default_factory=dict)
    uid_map: dict[int, int] | None = None  # inside -> global; None: identity
    alive: bool = True
    failing: int = 0  # attach flags that cannot be collected
    next_address: int = 0x10000
    seclabel: bytes | None = None
    audit: tuple[int, int] | None = None  # sessionid, loginuid
    domain_uids: dict[int, int | None] | None = None  # global -> in the domain's user namespace; None: identity
    writable: bool = True
    meanwhile: Callable[[], object] | None = None  # called once, in the next memory access

    def access(self) -> None:
        """Call before each access: block as `hold_up`; raises CommandError(ESRCH) if the process is gone."""
        self.hold_up()
        if not self.alive:
            raise CommandError(ESRCH, "gone")

    def hold_up(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()

    def place(self, data: bytes) -> int:
        """Put `data` into the process' memory; its 8-aligned address."""
        address = self.next_address
        self.memory[address] = bytearray(data)
        self.next_address += (len(data) + 63) & ~7
        return address

    def read(self, address: int, size: int) -> bytes:
        for start, data in self.memory.items():
            if start <= address and address + size <= start + len(data):
                return bytes(data[address - start : address - start + size])
        raise CommandError(EFAULT, "not mapped")

    def current_ids(self) -> Creds:
        euid = self.uid if self.euid is None else self.euid
        return Creds(self.uid, euid, euid, euid, self.gid, self.gid, self.gid, self.gid)


class FakeCaller(Caller):
    """The thread of a FakeProcess that issued a command."""

    def __init__(self, process: FakeProcess) -> None:
        self.process = process

    @property
    def user(self) -> int:
        return self.process.uid

    @property
    def user_ns(self) -> int:
        return self.process.user_ns

    @property
    def user_chain(self) -> tuple[tuple[int, int], ...]:
        return (self.process.user_ns, self.process.ns_owner), *self.process.outer_users

    @property
    def pid_ns(self) -> int:
        return self.process.pid_ns

    @property
    def root(self) -> object:
        return self.process.root

    def _inside(self, value: int) -> int | None:
        mapping = self.process.uid_map
        if mapping is None:
            return value
        return next((inside for inside, outside in mapping.items() if outside == value), None)

    def uid_from_global(self, uid: int) -> int:
        if uid == NO_ID:
            return NO_ID
        inside = self._inside(uid)
        return OVERFLOW_ID if inside is None else inside

    def gid_from_global(self, gid: int) -> int:
        return self.uid_from_global(gid)

    def gids_from_global(self, gids: tuple[int, ...]) -> bytes:
        inside = gids if self.process.uid_map is None else map(self.gid_from_global, gids)
        return pack(f"<{len(gids)}I", *inside)

    def maps_uid(self, uid: int) -> bool:
        return self._inside(uid) is not None

    def ids(self) -> Creds:
        if not self.process.alive:
            raise CommandError(ESRCH, "gone")
        return self.process.current_ids()

    def groups(self) -> tuple[int, ...]:
        return self.process.aux

    def has_ipc_owner(self) -> bool:
        return self.process.ipc_owner

    def uid_to_global(self, uid: int) -> int | None:
        if not 0 <= uid < NO_ID:
            return None
        return uid if self.process.uid_map is None else self.process.uid_map.get(uid)

    def gid_to_global(self, gid: int) -> int | None:
        return self.uid_to_global(gid)

    def domain_uid(self, uid: int) -> int | None:
        mapping = self.process.domain_uids
        return uid if mapping is None else mapping.get(uid)

    def pids_of(self, pid: int) -> dict[int, int] | None:
        return {self.process.pid_ns: pid} if 0 < pid < 1_000_000 else None

    def collect(self, metadata: ProcessMetadata, kinds: int) -> None:
        process = self.process
        process.access()
        if kinds & process.failing & ~metadata.collected:
            raise CommandError(EFAULT, "cannot be collected")
        kinds &= ~metadata.collected
        metadata.collected |= kinds
        metadata.valid |= kinds & ~(c.ATTACH_SECLABEL | c.ATTACH_AUDIT)
        if kinds & c.ATTACH_CREDS:
            metadata.creds = process.current_ids()
        if kinds & c.ATTACH_PIDS:
            metadata.pids = {process.pid_ns: Pids(process.pid, process.pid, 1)}
        if kinds & c.ATTACH_AUXGROUPS:
            metadata.auxgroups = process.aux
        if kinds & c.ATTACH_TID_COMM:
            metadata.tid_comm = b"fake"
        if kinds & c.ATTACH_PID_COMM:
            metadata.pid_comm = b"fake"
        if kinds & c.ATTACH_EXE:
            metadata.exe = b"/bin/fake"
            metadata.root = process.root
        if kinds & c.ATTACH_CMDLINE:
            metadata.cmdline = b"fake"
        if kinds & c.ATTACH_CGROUP:
            metadata.cgroup = b"/"
        if kinds & c.ATTACH_CAPS:
            metadata.caps = process.caps
            metadata.user_ns = process.user_ns
            metadata.caps_euid = process.current_ids().euid
        if kinds & c.ATTACH_SECLABEL and process.seclabel is not None:
            metadata.valid |= kinds & c.ATTACH_SECLABEL
            metadata.seclabel = process.seclabel
        if kinds & c.ATTACH_AUDIT and process.audit is not None:
            metadata.valid |= kinds & c.ATTACH_AUDIT
            metadata.sessionid, metadata.loginuid = process.audit

    def write(self, address: int, data: bytes) -> None:
        self.process.access()
        if not self.process.writable:
            raise CommandError(EFAULT, "read-only")
        for start, region in self.process.memory.items():
            if start <= address and address + len(data) <= start + len(region):
                region[address - start : address - start + len(data)] = data
                return
        raise CommandError(EFAULT, "not mapped")

    def copy_payload(self, memory: Memory, offset: int, vectors: list[tuple[int, int]]) -> None:
        self.process.access()
        for address, size in vectors:
            memory.store(offset, self.process.read(address, size) if address else bytes(size))
            offset += size

    def take_file(self, fd: int) -> FakeFile:
        if not self.process.alive:
            raise CommandError(ESRCH, "gone")
        file = self.process.files.get(fd)
        if file is None:
            raise CommandError(EBADF, "closed")
        file.open_count += 1
        return file

    def view(self, users: Reader | None = None) -> FakeCaller:
        if users is None:
            return FakeCaller(self.process)
        assert isinstance(users, FakeCaller)
        process = users.process
        return FakeCaller(
            replace(
                self.process,
                user_ns=process.user_ns,
                uid_map=process.uid_map,
                outer_users=process.outer_users,
                ns_owner=process.ns_owner,
            )
        )

    def view_users(self) -> FakeCaller:
        if self.process.is_hidden:
            raise CommandError(EPERM, "user namespace")
        return FakeCaller(replace(self.process))

    def defer(self) -> FakeCaller:
        return FakeCaller(self.process)


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000_000_000

    def monotonic(self) -> int:
        return self.now

    def realtime(self) -> int:
        return self.now + 10**18


class FakeTurn(Turn):
    """A turn that a test can inspect.  It yields each time that the core reports work.

    meanwhile: called in each yield, to act as other clients; pauses: their number; units: of work that was reported;
    longest_ns: the longest cpu time between two yields, since `watch`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None
        self.pauses = 0
        self.units = 0
        self.longest_ns = 0
        self._since: int | None = None

    def watch(self) -> None:
        """Begin to measure."""
        self.pauses = self.units = self.longest_ns = 0
        self._since = thread_time_ns()

    def stop(self) -> None:
        """End the measurement; counts the time since the last yield."""
        self._measure()
        self._since = None

    def _measure(self) -> None:
        if self._since is not None:
            now = thread_time_ns()
            self.longest_ns = max(self.longest_ns, now - self._since)
            self._since = now

    def spend(self, units: int = 1) -> bool:
        assert units >= 0
        self.units += units
        return self.pause()

    def pause(self) -> bool:
        self.pauses += 1
        self._measure()
        if self.meanwhile is not None:
            self.meanwhile()
        return True


class FakeCancellation:
    def __init__(self, file: FakeFile) -> None:
        self.file = file
        self.open = True

    def close(self) -> None:
        if self.open:
            self.open = False
            self.file.close()


class FakeHost:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.turn = FakeTurn()
        self.page_size = 4096
        self.watched: list[tuple[FakeFile, CancelToken, FakeCancellation]] = []
        self._uuids = 0

    def random_uuid(self) -> bytes:
        self._uuids += 1
        return self._uuids.to_bytes(16, "big")

    def watch(self, file: File, token: CancelToken) -> FakeCancellation:
        assert isinstance(file, FakeFile)
        if not file.pollable:
            raise CommandError(EINVAL, "cannot be polled")
        cancellation = FakeCancellation(file)
        self.watched.append((file, token, cancellation))
        return cancellation
