"""What one user can do by bus1, in the way of `scenarios.py`: beside the same other user's calls of kdbus."""

from __future__ import annotations

import mmap
import resource
import select
import time
from pathlib import Path

from kdbusfs.client import BusOwner
from kdbusfs.client.bus1 import Peer

from .scenarios import STORM_SECONDS, Deed, kept, scenario, share, together

PEERS = 4000
NODES = 60000
NODE = 0x100
THREADS = 8


def peers(bus: BusOwner, count: int, map_size: int = mmap.PAGESIZE) -> list[Peer]:
    """Open files of the mount that `bus` is on; they stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    file = Path(bus.path).parents[1] / "bus1"
    found = [Peer(file, map_size) for _ in range(count)]
    kept.extend(found)
    return found


def watched(found: list[Peer]) -> None:
    """Somebody polls each of them."""
    poller = select.epoll()
    kept.append(poller)
    for peer in found:
        poller.register(peer.fileno(), select.EPOLLIN | select.EPOLLET)


def take(receivers: list[Peer]) -> None:
    for peer in receivers:
        message = peer.recv()
        if message is not None:
            message.free()


@scenario
def bus1_multicast(bus: BusOwner) -> Deed:
    """One message to thousands of peers, whom somebody polls."""
    (sender,) = peers(bus, 1)
    receivers = peers(bus, share(PEERS))
    watched(receivers)
    handles = [peer.transfer(NODE, sender) for peer in receivers]
    return lambda: sender.send(handles, b"x" * 64, handles=[0x200, 0x300])


@scenario
def bus1_load(bus: BusOwner) -> Deed:
    """One client sends to 400 peers of its own and receives, all the time."""
    (sender,) = peers(bus, 1)
    receivers = peers(bus, share(400))
    watched(receivers)
    handles = [peer.transfer(NODE, sender) for peer in receivers]

    def send() -> None:
        limit = time.monotonic() + STORM_SECONDS
        while time.monotonic() < limit:
            sender.send(handles, b"x" * 1000, handles=[NODE])
            take(receivers)

    return send


@scenario
def bus1_storm(bus: BusOwner) -> Deed:
    """Eight threads send to peers of theirs, and receive, all the time."""
    senders = peers(bus, THREADS)
    groups = [peers(bus, share(400)) for _ in senders]
    handles = []
    for sender, receivers in zip(senders, groups, strict=True):
        watched(receivers)
        handles.append([peer.transfer(NODE, sender) for peer in receivers])

    def send(number: int) -> None:
        limit = time.monotonic() + STORM_SECONDS
        while time.monotonic() < limit:
            senders[number].send(handles[number], b"x" * 1000, handles=[NODE])
            take(groups[number])

    return lambda: together(THREADS, send)


@scenario
def bus1_node_end(bus: BusOwner) -> Deed:
    """A node that thousands have a handle to is destroyed."""
    (owner,) = peers(bus, 1)
    holders = peers(bus, share(PEERS))
    watched(holders)
    for holder in holders:
        owner.transfer(NODE, holder)
    return lambda: owner.destroy(NODE)


@scenario
def bus1_flush(bus: BusOwner) -> Deed:
    """A peer with as many nodes as a user may have handles throws them away."""
    (owner,) = peers(bus, 1)
    for first in range(0, share(NODES), 1000):
        owner.send([], handles=[0x100 + 4 * number for number in range(first, first + 1000)])
    return lambda: owner.reset(flush=True)


@scenario
def bus1_handles(bus: BusOwner) -> Deed:
    """Messages with thousands of handles are sent and received, and their nodes destroyed, all the time."""
    owner, receiver = peers(bus, 2, 16 << 20)
    count = share(10000)
    handle = receiver.transfer(NODE, owner)

    def circulate() -> None:
        limit = time.monotonic() + STORM_SECONDS
        while time.monotonic() < limit:
            nodes = [0x1000 + 4 * number for number in range(count)]
            owner.send([handle], handles=nodes)
            receiver.receive(timeout=STORM_SECONDS).free()
            owner.destroy(*nodes, release=True)
            for _ in range(count):
                notice = receiver.receive(timeout=STORM_SECONDS)
                receiver.release(notice.destination)

    return circulate


@scenario
def bus1_end(bus: BusOwner) -> Deed:
    """A process of thousands of peers, who have handles of each other, ends."""
    found = peers(bus, share(PEERS))
    for number, peer in enumerate(found):
        for step in range(1, 6):
            peer.transfer(NODE, found[(number + step) % len(found)])
    watched(found)
    return None
