"""What one user can do to make the core work for long: each prepares something, and gives the deed that does it.

They run in a process of their own, as a user who has made the bus.  A deed that is None is the end of that process.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kdbusfs.abi.v3 import constants as c
from kdbusfs.abi.v3 import layouts
from kdbusfs.abi.v3.items import RawItem
from kdbusfs.client import BusOwner, Connection, deadline, encode, make_bus, make_endpoint, raw

Deed = Callable[[], object] | None
Place = str | os.PathLike[str]
Scenario = Callable[[BusOwner], Deed]

SCENARIOS: dict[str, Scenario] = {}

LISTENERS = 1000
"""Connections of one user; LIM-13 allows 1024."""
NAMES = 256
ACCESSES = 810
"""As many as fit into a policy of 32 KiB."""
SMALL_POOL = 4096
BIG_POOL = 1 << 26
STORM_SECONDS = 4.0
FILES = 16384
"""Files of the mount that one user may have open."""
SHARE = int(os.environ.get("STALLS_SHARE", "100"))
"""Per cent of the connections and names: less is prepared sooner."""

kept: list[object] = []
"""What has to stay open until the process ends."""


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def share(count: int) -> int:
    return max(1, count * SHARE // 100)


def connections(path: Place, count: int, pool_size: int = SMALL_POOL, flags: int = 0) -> list[Connection]:
    found = [Connection(path, pool_size=pool_size, flags=flags) for _ in range(count)]
    kept.extend(found)
    return found


def own(connection: Connection, number: int, count: int = NAMES) -> None:
    for index in range(count):
        connection.acquire(f"a.n{number}x{index}")


def listeners(path: Place, count: int) -> list[Connection]:
    found = connections(path, count)
    for each in found:
        each.add_match(1)
    return found


def full_policy(level: int) -> list[tuple[str, list[encode.Access]]]:
    """A wildcard entry of as many users as fit, none of whom is anybody."""
    return [("a.*", [encode.user(100000 + number, level) for number in range(ACCESSES)])]


def signal_to_all(sender: Connection) -> None:
    sender.broadcast(b"x", bloom=b"\xff" * sender.bloom_size)


@scenario
def bus_end(bus: BusOwner) -> Deed:
    """A bus of connections that own names and listen ends."""
    for number, each in enumerate(listeners(bus.path, share(LISTENERS))):
        own(each, number, share(NAMES))
    return bus.close


@scenario
def endpoint_end(bus: BusOwner) -> Deed:
    """A custom endpoint of owners of names ends, and the bus listens."""
    everybody = [encode.world(c.POLICY_OWN)]
    owner = make_endpoint(bus, "e", policy=[("a.*", everybody)])
    kept.append(Connection(bus.path, flags=c.HELLO_POLICY_HOLDER, name="a.*", policy=everybody))
    listeners(bus.path, share(750))
    for number, each in enumerate(connections(owner.path, share(250))):
        own(each, number)
    return owner.close


@scenario
def names_end(bus: BusOwner) -> Deed:
    """The owner of all the names that one may have leaves, and everybody listens."""
    owner = Connection(bus.path)
    own(owner, 0)
    listeners(bus.path, share(LISTENERS))
    return owner.close


@scenario
def process_ends(bus: BusOwner) -> Deed:
    """A process with many connections, some of which own names, ends."""
    for number, each in enumerate(listeners(bus.path, share(LISTENERS))):
        if number < share(200):
            own(each, number)
    return None


@scenario
def processes_end(bus: BusOwner) -> Deed:
    """Sixteen processes with all connections of a user end at once."""
    ready, writing = os.pipe()
    pids = []
    for _ in range(16):
        pid = os.fork()
        if pid == 0:
            listeners(bus.path, share(LISTENERS) // 16)
            os.write(writing, b"+")
            select.select([], [], [])
        pids.append(pid)
    while len(pids) > sum(1 for _ in range(16) if os.read(ready, 1)):
        pass

    def end() -> None:
        for pid in pids:
            os.kill(pid, 9)
        for pid in pids:
            os.waitpid(pid, 0)

    return end


@scenario
def files_end(bus: BusOwner) -> Deed:
    """A process with as many files of the mount as a user may have ends; most have never said HELLO."""
    with contextlib.suppress(OSError):  # where the daemon may have few files open, a user may as well
        for _ in range(share(FILES)):
            kept.append(os.open(bus.path, os.O_RDWR | os.O_CLOEXEC))
    return None


def requests(bus: BusOwner, timeout: float, clients: int = 300) -> Connection:
    """One who owes as many replies as `clients` can ask for."""
    server = Connection(bus.path, pool_size=1 << 20)
    due = deadline(timeout)
    for client in connections(bus.path, share(clients)):
        for _ in range(128):
            client.send(server.id, b"", expect_reply=True, timeout_ns=due)
            message = server.recv()
            assert message is not None
            message.free()
    return server


@scenario
def owed(bus: BusOwner) -> Deed:
    """Somebody leaves who owes 38,400 replies."""
    return requests(bus, 1000).close


@scenario
def expire(bus: BusOwner) -> Deed:
    """38,400 requests run out at the same moment."""
    patience = 5.0 + 40 * SHARE / 100
    until = time.monotonic() + patience
    kept.append(requests(bus, patience))
    return lambda: time.sleep(max(0.0, until + 0.5 - time.monotonic()))


@scenario
def takeover(bus: BusOwner) -> Deed:
    """A queue full of messages of 2 MiB moves from an activator, and back."""
    activator = Connection(bus.path, pool_size=1 << 32, flags=c.HELLO_ACTIVATOR, name="a.activated")
    kept.append(activator)
    payload = mmap.mmap(-1, 2 << 20)
    payload.write(b"z" * len(payload))
    address = ctypes.addressof(ctypes.c_char.from_buffer(payload))
    kept.append(payload)
    senders: list[Place] = [bus.path]
    for number in range(16):
        policy = [("a.activated", [encode.world(c.POLICY_TALK)])]
        kept.append(end := make_endpoint(bus, f"e{number}", policy=policy))
        senders.append(end.path)
    for path in senders:
        (sender,) = connections(path, 1)
        with contextlib.suppress(OSError):
            while True:
                sender.send("a.activated", [encode.Vec(len(payload), address)])
    taker = Connection(bus.path, pool_size=1 << 32)
    kept.append(taker)

    def move() -> None:
        taker.acquire("a.activated")
        taker.release("a.activated")

    return move


@scenario
def talk_policy(bus: BusOwner) -> Deed:
    """A broadcast by the owner of 256 names to receivers behind a full policy."""
    sender = Connection(bus.path)
    own(sender, 0)
    kept.append(end := make_endpoint(bus, "e", policy=full_policy(c.POLICY_SEE)))
    listeners(end.path, share(LISTENERS))
    return lambda: signal_to_all(sender)


@scenario
def list_policy(bus: BusOwner) -> Deed:
    """A list of 38,400 names through a full policy."""
    for number, each in enumerate(connections(bus.path, share(150))):
        own(each, number)
    kept.append(end := make_endpoint(bus, "e", policy=full_policy(c.POLICY_SEE)))
    spy = Connection(end.path, pool_size=BIG_POOL)
    return lambda: spy.list_names(c.NAME_LIST_NAMES)


@scenario
def list_storm(bus: BusOwner) -> Deed:
    """Eight threads ask for such a list all the time."""
    for number, each in enumerate(connections(bus.path, share(150))):
        own(each, number)
    spies = connections(bus.path, 8, BIG_POOL)

    def ask(spy: Connection) -> None:
        limit = time.monotonic() + STORM_SECONDS
        command = encode.command(c.CMD_NAME_LIST, c.NAME_LIST_NAMES | c.NAME_LIST_UNIQUE)
        while time.monotonic() < limit:
            _, block = raw.issue(raw.LINUX, spy.fd, c.CMD_NAME_LIST, command)
            spy.free(int(block.words[4]))

    return lambda: together(8, lambda number: ask(spies[number]))


def together(count: int, deed: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=deed, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@scenario
def match_rules(bus: BusOwner) -> Deed:
    """A broadcast beside entries of which all rules but the last accept."""
    sender = Connection(bus.path)
    rules: list[RawItem] = [(c.ITEM_ID, layouts.U64.pack(sender.id))]
    rules += [(c.ITEM_ID, layouts.U64.pack(c.MATCH_ID_ANY))] * 1300
    rules.append((c.ITEM_ID, layouts.U64.pack(999999)))
    for each in connections(bus.path, share(10)):
        for cookie in range(256):
            each.add_match(cookie, *rules)
    return lambda: signal_to_all(sender)


@scenario
def broadcast_to_monitors(bus: BusOwner) -> Deed:
    """One broadcast for 500 monitors and 500 listeners."""
    sender = Connection(bus.path)
    connections(bus.path, share(500), flags=c.HELLO_MONITOR)
    listeners(bus.path, share(500))
    return lambda: signal_to_all(sender)


@scenario
def broadcast_storm(bus: BusOwner) -> Deed:
    """Eight threads send broadcasts to 900 listeners all the time."""
    senders = connections(bus.path, 8)
    listeners(bus.path, share(900))

    def send(number: int) -> None:
        limit = time.monotonic() + STORM_SECONDS
        while time.monotonic() < limit:
            signal_to_all(senders[number])

    return lambda: together(8, send)


@scenario
def epoll(bus: BusOwner) -> Deed:
    """A message to a connection that 400,000 registrations of epoll watch."""
    receiver, sender = connections(bus.path, 2, 1 << 16)
    files = [os.dup(receiver.fd) for _ in range(2000)]
    for _ in range(share(200)):
        poller = select.epoll()
        kept.append(poller)
        for file in files:
            poller.register(file, select.EPOLLIN | select.EPOLLET)

    def message() -> None:
        sender.send(receiver.id, b"x")
        received = receiver.recv()
        assert received is not None
        received.free()

    return message


@scenario
def policies(bus: BusOwner) -> Deed:
    """Endpoints get full policies again and again, from four threads."""
    names = [(f"a.n{number}", [encode.user(number, c.POLICY_TALK)]) for number in range(400)]
    ends = [make_endpoint(bus, f"e{number}") for number in range(4)]
    kept.extend(ends)

    def update(number: int) -> None:
        limit = time.monotonic() + STORM_SECONDS
        while time.monotonic() < limit:
            ends[number].update(full_policy(c.POLICY_TALK))
            ends[number].update(names)

    return lambda: together(4, update)


@scenario
def buses(bus: BusOwner) -> Deed:
    """As many buses as a user may have end, one after the other, with custom endpoints."""
    mount = Path(bus.path).parents[1]
    made = [make_bus(mount, f"more{number}") for number in range(15)]
    ends = [make_endpoint(each, f"e{number}") for each in made for number in range(share(60))]
    kept.extend(ends)

    def end() -> None:
        for each in made:
            each.close()

    return end
