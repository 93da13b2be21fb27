"""Clients of bus1's core without a mount: they build command structs in a FakeProcess and read pools back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from errno import EBADF
from select import POLLIN
from struct import pack, unpack_from

from kdbusfs.base.account import Account
from kdbusfs.base.call import Call
from kdbusfs.base.errors import CommandError
from kdbusfs.base.handle import Handle
from kdbusfs.base.identity import Pids
from kdbusfs.base.ports import Memory, Reader
from kdbusfs.bus1 import abi
from kdbusfs.bus1.install import Installing
from kdbusfs.bus1.limits import Maxima
from kdbusfs.bus1.message import Delivery
from kdbusfs.bus1.nodes import NodeHandle
from kdbusfs.bus1.peer import Peer
from kdbusfs.bus1.world import World as Core
from kdbusfs.core.ends import Ends

from .fake_host import FakeCaller, FakeFile, FakeProcess, FakeTurn

INVALID = abi.HANDLE_INVALID
PEEK, SEED, INSTALL = abi.RECV_FLAG_PEEK, abi.RECV_FLAG_SEED, abi.RECV_FLAG_INSTALL_FDS
DATA, DESTROY, RELEASE = abi.MSG_DATA, abi.MSG_NODE_DESTROY, abi.MSG_NODE_RELEASE


class SparseMemory(Memory):
    """Pool memory that is there only as far as it was written to."""

    def __init__(self) -> None:
        self.size = 0
        self.data = bytearray()
        self.closed = False
        self.failing = 0  # errno of the next calls of `store`; 0: they succeed
        self.resize_errno = 0

    def resize(self, size: int) -> None:
        if self.resize_errno:
            raise CommandError(self.resize_errno, "no memory")
        self.size = size

    def store(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.failing:
            raise CommandError(self.failing, "no memory to map")
        end = offset + len(data)
        assert end <= self.size
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data

    def close(self) -> None:
        self.closed = True


@dataclass
class Process(FakeProcess):
    """A FakeProcess that may have files of bus1, be of 32 bits, and have numbers in several pid namespaces."""

    handles: dict[int, Handle | None] = field(default_factory=dict)
    compat: bool = False
    numbers: dict[int, Pids] | None = None
    context: bytes | None = None
    keep: bool = True  # what was placed in its memory before


class Caller(FakeCaller):
    """The thread of a Process that issued a command."""

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.own = process

    @property
    def is_compat(self) -> bool:
        return self.own.compat

    def read(self, address: int, size: int) -> bytes:
        self.own.hold_up()
        return self.own.read(address, size)

    def view(self, users: Reader | None = None) -> FakeCaller:
        return FakeCaller(replace(self.own))

    def thread_ids(self) -> dict[int, Pids]:
        if self.own.numbers is not None:
            return self.own.numbers
        return {self.own.pid_ns: Pids(self.own.pid, self.own.pid + 1, 1)}

    def security_context(self) -> bytes | None:
        return self.own.context

    def handle_of(self, fd: int) -> Handle | None:
        self.own.hold_up()
        if fd not in self.own.handles:
            raise CommandError(EBADF, "not open")
        return self.own.handles[fd]


class Accounts:
    """The memory of users, as the world of bus1 wants it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.accounts: dict[int, Account] = {}

    def account(self, uid: int) -> Account:
        if uid not in self.accounts:
            self.accounts[uid] = Account(uid, self.limit)
        return self.accounts[uid]

    def forget_if_idle(self, account: Account) -> None:
        if not account.used:
            del self.accounts[account.uid]


@dataclass
class Received:
    """What RECV has told, and what lies in the slice."""

    type: int
    flags: int
    destination: int
    uid: int
    gid: int
    pid: int
    tid: int
    offset: int
    n_bytes: int
    n_handles: int
    n_fds: int
    n_secctx: int
    data: bytes = b""
    handles: list[int] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    secctx: bytes = b""

    @property
    def continues(self) -> bool:
        return bool(self.flags & abi.MSG_FLAG_CONTINUE)

    @property
    def told(self) -> tuple[int, int]:
        """Kind and destination."""
        return self.type, self.destination


class Client:
    """An open file of bus1, with one method for each command; results are 0 or -errno."""

    def __init__(self, world: World, process: Process, peer: Peer, memory: SparseMemory) -> None:
        self.world = world
        self.process = process
        self.peer = peer
        self.memory = memory
        self.call: Call | None = None
        self.out = b""

    def ids(self, values: Iterable[int]) -> int:
        """An array of u64 in the process' memory: its address."""
        array = list(values)
        return self.process.place(pack(f"<{len(array)}Q", *array))

    def run(self, number: int, struct: bytes, error: int = 0) -> int:
        call = Call()
        whole = bytearray(struct)
        call.number = number
        call.address = 0
        call.data = bytes(struct)
        call.command = memoryview(whole)
        call.words = call.command.cast("Q")
        call.error = error
        call.caller = Caller(self.process)
        call.tag = 0
        result = self.peer.ioctl(call)
        self.call = call
        self.out = bytes(whole)
        assert result <= 0
        if result:
            assert call.installation is None
        self.process.memory = {} if not self.process.keep else self.process.memory
        return result

    # Commands

    def disconnect(self, argument: int = 0) -> int:
        return self.run(abi.CMD_PEER_DISCONNECT, pack("<Q", argument))

    def query(self, flags: int = 0) -> tuple[int, ...]:
        assert self.run(abi.CMD_PEER_QUERY, pack("<QQIIII", flags, 7, 7, 7, 7, 7)) == 0
        return unpack_from("<QQIIII", self.out)

    def reset(
        self,
        flags: int = 0,
        peer_flags: int = abi.U64_MAX,
        slices: int = abi.UNCHANGED,
        handles: int = abi.UNCHANGED,
        inflight_bytes: int = abi.UNCHANGED,
        inflight_fds: int = abi.UNCHANGED,
    ) -> int:
        fixed = pack("<QQIIII", flags, peer_flags, slices, handles, inflight_bytes, inflight_fds)
        return self.run(abi.CMD_PEER_RESET, fixed)

    def flush(self, seed: bool = False) -> int:
        return self.reset(abi.PEER_RESET_FLAG_FLUSH | (abi.PEER_RESET_FLAG_FLUSH_SEED if seed else 0))

    def release(self, id: int) -> int:
        return self.run(abi.CMD_HANDLE_RELEASE, pack("<Q", id))

    def transfer(self, src: int, dst: int = abi.U64_MAX, flags: int = 0) -> int:
        return self.run(abi.CMD_HANDLE_TRANSFER, pack("<QQQQ", flags, src, dst, 5))

    def give(self, src: int, other: Client) -> int:
        """TRANSFER that must succeed; the id that `other` has for it."""
        self.process.handles[9] = other.peer
        assert self.transfer(src, 9) == 0
        return self.given

    @property
    def given(self) -> int:
        """What the last TRANSFER has told."""
        value: int = unpack_from("<Q", self.out, abi.HANDLE_TRANSFER_DST_HANDLE)[0]
        return value

    def destroy(self, *ids: int, release: bool = False, flags: int | None = None) -> int:
        if flags is None:
            flags = abi.NODES_DESTROY_FLAG_RELEASE_HANDLES if release else 0
        return self.destroy_at(self.ids(ids), len(ids), flags)

    def destroy_at(self, address: int, count: int, flags: int = 0) -> int:
        return self.run(abi.CMD_NODES_DESTROY, pack("<QQQ", flags, address, count))

    def free(self, offset: int) -> int:
        return self.run(abi.CMD_SLICE_RELEASE, pack("<Q", offset))

    def send(
        self,
        *destinations: int,
        data: bytes | Sequence[bytes] = b"",
        handles: Sequence[int] = (),
        fds: Sequence[int] = (),
        flags: int = 0,
        errors: int = 0,
    ) -> int:
        parts = [data] if isinstance(data, bytes) else data
        vectors = b"".join(self.vector(self.process.place(part), len(part)) for part in parts if part)
        return self.send_raw(
            flags=flags,
            ptr_destinations=self.ids(destinations),
            ptr_errors=errors,
            n_destinations=len(destinations),
            ptr_vecs=self.process.place(vectors),
            n_vecs=len(vectors) // len(self.vector(0, 0)),
            ptr_handles=self.ids(handles),
            n_handles=len(handles),
            ptr_fds=self.process.place(pack(f"<{len(fds)}i", *fds)),
            n_fds=len(fds),
        )

    def vector(self, base: int, size: int) -> bytes:
        """A struct iovec."""
        return pack("<II" if self.process.compat else "<QQ", base, size)

    def send_raw(self, **members: int) -> int:
        names = (
            *("flags", "ptr_destinations", "ptr_errors", "n_destinations", "ptr_vecs"),
            *("n_vecs", "ptr_handles", "n_handles", "ptr_fds", "n_fds"),
        )
        assert set(members) <= set(names)
        return self.run(abi.CMD_SEND, pack("<10Q", *(members.get(name, 0) for name in names)))

    def recv(self, flags: int = 0, max_offset: int = abi.U64_MAX) -> int:
        return self.run(abi.CMD_RECV, pack("<12Q", flags, max_offset, *(5,) * 10))

    def receive(self, flags: int = 0, free: bool = False) -> Received:
        """RECV that must succeed."""
        result = self.recv(flags)
        assert result == 0, result
        assert unpack_from("<QQ", self.out) == (flags, abi.U64_MAX)
        received = self.parse()
        if received.type == DATA and free:
            assert self.free(received.offset) == 0
        return received

    def parse(self) -> Received:
        """What the last RECV has told."""
        received = Received(*unpack_from("<QQQIIIIQQQQQ", self.out, abi.RECV_MSG))
        if received.type == DATA:
            self.read(received)
        return received

    def read(self, received: Received) -> None:
        size = max(8, received.n_bytes + 8 * received.n_handles + 4 * received.n_fds + received.n_secctx + 24)
        memory = self.memory.data + bytes(received.offset + size)
        at = received.offset
        received.data = bytes(memory[at : at + received.n_bytes])
        at += received.n_bytes + 7 & ~7
        received.handles = list(unpack_from(f"<{received.n_handles}Q", memory, at))
        at += 8 * received.n_handles
        received.fds = list(unpack_from(f"<{received.n_fds}i", memory, at))
        at += 4 * received.n_fds + 7 & ~7
        received.secctx = bytes(memory[at : at + received.n_secctx])

    @property
    def installing(self) -> Installing:
        """The descriptors that the last RECV waits for."""
        assert self.call is not None
        installation = self.call.installation
        assert isinstance(installation, Installing)
        return installation

    @property
    def front(self) -> Delivery:
        """The message at the front of the queue."""
        front = self.peer.queue.front()
        assert isinstance(front, Delivery)
        return front

    def all(self, free: bool = True) -> list[Received]:
        """Everything that is queued."""
        found: list[Received] = []
        while (result := self.recv()) == 0:
            received = self.parse()
            if received.type == DATA and free:
                assert self.free(received.offset) == 0
            found.append(received)
        assert result == -11, result
        return found

    @property
    def is_readable(self) -> bool:
        return bool(self.peer.poll() & POLLIN)

    def close(self) -> None:
        self.peer.release()


class World:
    """The core of one mount, and helpers to add clients."""

    def __init__(self, maxima: Maxima | None = None, memory_limit: int = 1 << 32) -> None:
        self.turn = FakeTurn()
        self.accounts = Accounts(memory_limit)
        self.changed: list[Handle] = []
        self.core = Core(
            self.turn, self.accounts.account, self.accounts.forget_if_idle, Ends(), self.changed, maxima
        )
        self.process = Process()

    def open(self, process: Process | None = None) -> Client:
        process = process or self.process
        memory = SparseMemory()
        peer = self.core.open(Caller(process), memory)
        return Client(self, process, peer, memory)

    def clients(self, count: int) -> list[Client]:
        return [self.open() for _ in range(count)]


def pass_files(client: Client, *files: FakeFile) -> list[int]:
    """Give the process descriptors for `files`."""
    numbers = []
    for file in files:
        number = 20 + len(client.process.files)
        client.process.files[number] = file
        numbers.append(number)
    return numbers


def check(world: World, clients: Iterable[Client]) -> None:
    """The invariants that hold whenever no command is under way (B1-LIM-4)."""
    slices: dict[int, int] = {}
    handles: dict[int, int] = {}
    nodes = set()
    counts: dict[object, int] = {}
    for client in clients:
        peer = client.peer
        uid = peer.limits.user.uid
        deliveries = [entry for entry in peer.queue.entries() if isinstance(entry, Delivery)]
        if peer.seed is not None:
            deliveries.append(peer.seed)
        held = {delivery.part.offset: delivery.part for delivery in deliveries}
        assert len(held) == len(deliveries)
        assert all(part.held for part in held.values())
        parts = set(held) | set(peer.pool.published_offsets())
        assert peer.limits.slices == len(parts)
        if peer.is_active:
            assert peer.pool.slices == len(parts)
        charged = sum(delivery.message.n_handles for delivery in deliveries)
        charged += sum(handle.user for handle in peer.table.values())
        assert peer.limits.handles == charged
        slices[uid] = slices.get(uid, 0) + len(parts)
        handles[uid] = handles.get(uid, 0) + charged
        times = [entry.transaction.time for entry in peer.queue.entries()]
        assert times == sorted(times) and 0 not in times and len(times) == peer.queue.count
        places: dict[NodeHandle, int] = {}
        for delivery in deliveries:
            assert delivery.charged == delivery.message.n_handles
            for handle in delivery.handles:
                if handle is not None:
                    places[handle] = places.get(handle, 0) + 1
        for id, handle in peer.table.items():
            assert handle.id == id and handle.user > 0 and handle.peer is peer
        for each in {*peer.table.values(), *places}:
            assert each.inflight == places.get(each, 0)
            node = each.node
            nodes.add(node)
            counts[node] = counts.get(node, 0) + each.user + each.inflight
            attached = node.anchor if peer is node.owner else (node.holders or {}).get(peer)
            assert attached is each
        assert not peer.namings
        assert peer.poll() & POLLIN == (POLLIN if peer.is_active and peer.queue.is_readable() else 0)
    for node in nodes:
        assert node.strong == counts[node] - node.is_pinned
        assert not node.staged
        if node.release is not None:
            assert node.strong == 0 and not node.is_destroyed
        if not node.is_destroyed and node.owner.is_active:
            assert node.anchor is not None and node.owner.table[node.anchor.id] is node.anchor
    for uid, user in world.core.users.items():
        assert user.slices == slices.get(uid, 0)
        assert user.handles == handles.get(uid, 0)


__all__ = ["Caller", "Client", "FakeFile", "Maxima", "Process", "Received", "World", "check", "pass_files"]
