"""Fakes for the tree: minimal core, host and table of open files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdbusfs.base.errors import CommandError
from kdbusfs.core.endpoint import Endpoint


@dataclass(eq=False)
class FakeMemory:
    """Counts its closes, and records the inodes with copies."""

    backing_id: int
    closed: int = 0
    size: int = 0
    copies: set[int] = field(default_factory=set)

    def copy_to(self, nodeid: int) -> None:
        self.copies.add(nodeid)

    def forget_copies(self, nodeid: int) -> None:
        self.copies.discard(nodeid)

    def read(self, offset: int, size: int) -> bytes:
        return (b"pool" * 1024)[offset : offset + size]

    def close(self) -> None:
        self.closed += 1


@dataclass(eq=False)
class FakeBus:
    name: str
    ino: int
    uid: int = 0
    gid: int = 0
    mode: int = 0o555
    endpoints: dict[str, FakeEndpoint] = field(default_factory=dict)

    def endpoints_behind(self, ino: int, count: int) -> list[FakeEndpoint]:
        behind = (each for each in self.endpoints.values() if each.ino > ino)
        return sorted(behind, key=lambda each: each.ino)[:count]


@dataclass(eq=False)
class FakeEndpoint:
    name: str
    ino: int
    bus: FakeBus
    uid: int = 0
    gid: int = 0
    mode: int = 0o666


@dataclass(eq=False)
class FakeHandle:
    """An open file of the core; an endpoint's has memory, which it closes."""

    endpoint: FakeEndpoint | Endpoint | None = None
    memory: FakeMemory | None = None
    is_copied: bool = False
    connection: object | None = None
    released: int = 0

    def release(self) -> None:
        self.released += 1
        if self.memory is not None:
            self.memory.close()


class FakeFiles:
    """The table of open files, as fuse/files.py without the C part."""

    def __init__(self) -> None:
        self.handles: dict[int, FakeHandle] = {}
        self.answers: dict[int, tuple[int, int]] = {}
        self.is_full = False
        self.room: dict[int, int] = {}  # by user, for users with a bound
        self._users: dict[FakeHandle, int] = {}
        self._next = 1 << 32

    def check_room(self, user: int) -> None:
        if self.room.get(user, 1) <= 0:
            raise CommandError(errno.EMFILE)

    def charge(self, user: int) -> None:
        if user in self.room:
            self.room[user] -= 1

    def discharge(self, user: int) -> None:
        if user in self.room:
            self.room[user] += 1

    def add(self, handle: FakeHandle, open_flags: int, backing_id: int, user: int = 0) -> int:
        if self.is_full:
            raise MemoryError
        fh = self._next
        self._next += 1
        self.handles[fh] = handle
        self.answers[fh] = (open_flags, backing_id)
        if handle not in self._users:
            self._users[handle] = user
            self.charge(user)
        return fh

    def get(self, fh: int) -> FakeHandle | None:
        return self.handles.get(fh)

    def remove(self, fh: int) -> bool:
        handle = self.handles.pop(fh, None)
        if handle is not None and handle not in self.handles.values():
            self.discharge(self._users.pop(handle))
            handle.release()
        return handle is not None


class FakeDomain:
    def __init__(self) -> None:
        self.buses: dict[str, FakeBus] = {}
        self.attach_flags_mask = 0
        self.openers: list[object] = []
        self.is_active = True
        self._next_ino = 3

    def make_bus(self, name: str, **attributes: Any) -> FakeBus:
        bus = self.buses[name] = FakeBus(name, self._ino(), **attributes)
        self.make_endpoint(bus, "bus")
        return bus

    def make_endpoint(self, bus: FakeBus, name: str, **attributes: Any) -> FakeEndpoint:
        endpoint = bus.endpoints[name] = FakeEndpoint(name, self._ino(), bus, **attributes)
        return endpoint

    def remove_bus(self, bus: FakeBus) -> None:
        del self.buses[bus.name]
        bus.endpoints.clear()

    def open_control(self, caller: object) -> FakeHandle:
        if not self.is_active:
            raise CommandError(errno.ESHUTDOWN)
        self.openers.append(caller)
        return FakeHandle()

    def open_endpoint(self, endpoint: FakeEndpoint, caller: object, memory: FakeMemory) -> FakeHandle:
        if not self.is_active:
            raise CommandError(errno.ESHUTDOWN)
        self.openers.append(caller)
        return FakeHandle(endpoint, memory)

    def counts(self) -> dict[str, object]:
        return {"users": len(self.buses)}

    def bus_stats(self) -> Iterator[tuple[dict[str, object], Iterator[str], Iterator[dict[str, object]]]]:
        for name in list(self.buses):
            endpoints = (f"1000-{number}" for number in range(200))
            yield {"name": name}, endpoints, iter([{"id": number, "padding": "x" * 100} for number in range(3)])

    def connection_details(self, pid_ns: int) -> Iterator[dict[str, object]]:
        return iter([{"bus": name, "pid_ns": pid_ns, "padding": "x" * 100} for name in self.buses])

    def _ino(self) -> int:
        self._next_ino += 1
        return self._next_ino - 1


class FakeCaller(int):
    """A thread id, which its pid namespace has too."""

    @property
    def pid_ns(self) -> int:
        return int(self)


class FakeHost:
    """Callers are the thread ids themselves."""

    def __init__(self) -> None:
        self.memories: list[FakeMemory] = []
        self.fault: Exception | None = None

    def caller(self, tid: int) -> FakeCaller:
        return FakeCaller(tid)

    def memory(self) -> FakeMemory:
        if self.fault is not None:
            raise self.fault
        memory = FakeMemory(len(self.memories) + 1)
        self.memories.append(memory)
        return memory


class FakeInstaller:
    def __init__(self) -> None:
        self.tids: frozenset[int] = frozenset()
