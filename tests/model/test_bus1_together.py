"""bus1: random commands, also inside every memory access and yield of other commands; invariants are checked.

B1-LIM-4, B1-NODE-7 to B1-NODE-12, B1-ORD-1, B1-ORD-5, B1-ORD-6, B1-SEND-15.
"""

from __future__ import annotations

from collections import Counter
from errno import EAGAIN, EMFILE
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbusfs.bus1 import abi
from kdbusfs.bus1.install import Installing
from kdbusfs.bus1.nodes import Node
from tests.support.bus1_client import (
    DATA,
    DESTROY,
    INSTALL,
    INVALID,
    PEEK,
    SEED,
    Client,
    FakeFile,
    Maxima,
    Process,
    Received,
    World,
    check,
    pass_files,
)
from tests.support.garbage import watched

STEPS = 150
NESTED = 3
OWN = tuple(range(0, 48, 4))


class Log:
    """What one client has received."""

    def __init__(self) -> None:
        self.order: list[tuple[object, bool]] = []  # its sender or subject; whether more follows
        self.dead: Counter[int] = Counter()  # managed ids whose destruction was notified
        self.nodes: dict[int, Node] = {}  # by managed id


class Play:
    """Peers of two users with random commands."""

    def __init__(self, chance: Random, *, tight: bool) -> None:
        self.chance = chance
        self.world = World(Maxima(slices=12, handles=40) if tight else None)
        self.clients: list[Client] = []
        self.gone: list[Client] = []
        self.logs: dict[Client, Log] = {}
        self.installing: list[tuple[Client, Installing]] = []
        self.files: list[FakeFile] = []
        self.depth = 0
        self.receiving: Counter[Client] = Counter()
        self.busy: Counter[Client] = Counter()
        self.sent = 0
        self.world.turn.meanwhile = self.at_pause

    # Scheduling

    def at_pause(self) -> None:
        if self.depth < NESTED and self.chance.random() < 0.15:
            self.others()

    def others(self) -> None:
        self.depth += 1
        try:
            for _ in range(self.chance.randrange(1, 3)):
                self.step()
        finally:
            self.depth -= 1

    def step(self) -> None:
        if not self.clients or (len(self.clients) < 6 and self.chance.random() < 0.1):
            self.enter()
            return
        client = self.chance.choice(self.clients)
        if self.depth < NESTED and not self.busy[client] and self.chance.random() < 0.5:
            client.process.meanwhile = self.others
        self.busy[client] += 1
        try:
            deed = self.chance.choices(
                [self.send, self.recv, self.release, self.transfer, self.destroy, self.free, self.conclude, self.rare],
                [8, 9, 4, 4, 3, 4, 3, 1],
            )[0]
            deed(client)
        finally:
            self.busy[client] -= 1
            if not self.busy[client]:
                client.process.meanwhile = None

    def enter(self) -> None:
        client = self.world.open(Process(uid=self.chance.choice((1000, 1001)), pid=len(self.logs) + 10))
        self.clients.append(client)
        self.logs[client] = Log()

    # Commands

    def id(self, client: Client) -> int:
        known = list(client.peer.table)
        if known and self.chance.random() < 0.75:
            return self.chance.choice(known)
        return self.chance.choice((*OWN, 3, 0xB, 1))

    def id_list(self, client: Client, most: int) -> list[int]:
        return [self.id(client) for _ in range(self.chance.randrange(most + 1))]

    def send(self, client: Client) -> None:
        self.sent += 1
        flags = self.chance.choices((0, abi.SEND_FLAG_CONTINUE, abi.SEND_FLAG_SEED), (6, 2, 1))[0]
        destinations = self.id_list(client, 4)
        if flags == abi.SEND_FLAG_SEED:
            destinations = []
        elif self.chance.random() < 0.9:
            destinations = list(dict.fromkeys(destinations))
        handles = self.id_list(client, 3)
        fds: list[int] = []
        if self.chance.random() < 0.2:
            file = FakeFile()
            self.files.append(file)
            fds = pass_files(client, file)
        errors = 0
        if flags and self.chance.random() < 0.8:
            errors = client.process.place(bytes(8 * len(destinations) + 8))
        data = b"%d" % self.sent
        client.send(*destinations, data=data, handles=handles, fds=fds, flags=flags, errors=errors)

    def recv(self, client: Client) -> None:
        flags = self.chance.choice((0, 0, 0, PEEK, INSTALL, INSTALL, SEED, SEED | PEEK, INSTALL | PEEK))
        alone = not self.receiving[client]
        self.receiving[client] += 1
        try:
            result = client.recv(flags, self.chance.choice((abi.U64_MAX,) * 5 + (40,)))
        finally:
            self.receiving[client] -= 1
        if result:
            return
        call = client.call
        assert call is not None
        received = client.parse()
        installation = call.installation
        if installation is not None:
            assert isinstance(installation, Installing)
            self.installing.append((client, installation))
        elif not flags & SEED:
            self.note(client, received, peeked=flags & PEEK != 0, alone=alone and self.depth == 0)

    def note(self, client: Client, received: Received, *, peeked: bool, alone: bool) -> None:
        log = self.logs[client]
        ids = [id for id in received.handles if id != INVALID]
        for id in ids:
            handle = client.peer.table.get(id)
            if id & 1 and handle is not None:
                assert log.nodes.setdefault(id, handle.node) is handle.node
            if alone:
                assert not log.dead[id], "an id of a node that is known to be dead"
        if peeked:
            return
        if received.type == DESTROY and received.destination & 1:
            log.dead[received.destination] += 1
            assert log.dead[received.destination] == 1
        if alone:
            log.order.append((received.data if received.type == DATA else None, received.continues))

    def release(self, client: Client) -> None:
        client.release(self.id(client))

    def transfer(self, client: Client) -> None:
        other = self.chance.choice(self.clients)
        client.process.handles[9] = other.peer
        client.transfer(self.id(client), self.chance.choice((9, 9, abi.U64_MAX)))

    def destroy(self, client: Client) -> None:
        client.destroy(*self.id_list(client, 3), release=self.chance.random() < 0.5)

    def free(self, client: Client) -> None:
        offsets = client.peer.pool.published_offsets()
        client.free(self.chance.choice(offsets) if offsets else 8)

    def conclude(self, client: Client) -> None:
        if self.installing:
            at = self.chance.randrange(len(self.installing))
            self.installing.pop(at)[1].conclude(self.chance.choice((0, 0, EMFILE)))

    def rare(self, client: Client) -> None:
        deed = self.chance.choice(("disconnect", "close", "flush", "flush all", "seed", "limits"))
        if deed == "disconnect":
            client.disconnect()
        elif deed == "close":
            # The kernel holds a file as long as there is a command on it.
            if self.busy[client] == 1:
                self.clients.remove(client)
                self.gone.append(client)
                client.close()
        elif deed.startswith("flush"):
            client.flush(seed=deed == "flush all")
        elif deed == "seed":
            client.reset(abi.PEER_RESET_FLAG_FLUSH_SEED)
        else:
            client.reset(slices=self.chance.choice((2, 12, 10_000)), handles=self.chance.choice((5, 40, 10_000)))

    # Invariants

    def settle(self) -> None:
        """Complete every RECV that waits for descriptors, and clear the state of earlier commands."""
        while self.installing:
            self.conclude(self.clients[0] if self.clients else self.gone[0])

    def drain(self) -> None:
        """All peers receive all messages."""
        self.world.turn.meanwhile = None
        for client in self.clients:
            if client.peer.is_active:
                client.reset(handles=1 << 30, slices=1 << 30)
                while (result := client.recv()) == 0:
                    self.note(client, client.parse(), peeked=False, alone=True)
                assert result == -EAGAIN
                for id, handle in client.peer.table.items():
                    if handle.node.is_destroyed and id & 1:
                        assert self.logs[client].dead[id] == 1, "a holder that was not told"

    def orders_agree(self) -> None:
        orders = [[each for each, _ in log.order if each is not None] for log in self.logs.values()]
        for one in orders:
            for other in orders:
                common = set(one) & set(other)
                first = list(dict.fromkeys(each for each in one if each in common))
                second = list(dict.fromkeys(each for each in other if each in common))
                assert first == second

    def end(self) -> None:
        for client in self.clients:
            client.close()
        assert not self.world.core.peers and not self.world.core.users
        assert not any(account.used for account in self.world.accounts.accounts.values())
        assert not any(file.open_count for file in self.files)


def play(seed: int, *, tight: bool) -> Play:
    play = Play(Random(seed), tight=tight)
    for _ in range(STEPS):
        play.step()
        if not play.installing:
            check(play.world, play.clients)
    play.settle()
    check(play.world, play.clients)
    play.drain()
    check(play.world, play.clients)
    play.orders_agree()
    play.end()
    return play


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 40), tight=st.booleans())
def test_b1_lim_4_b1_ord_1_whatever_is_done_meanwhile(seed: int, tight: bool) -> None:
    """B1-LIM-4, B1-ORD-1, B1-ORD-6, B1-NODE-10, B1-SEND-15."""
    play(seed, tight=tight)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_left_for_the_collector(seed: int) -> None:
    with watched("kdbusfs.bus1") as garbage:
        over = play(seed, tight=True)
        over.logs.clear()
        over.clients.clear()
        over.gone.clear()
        over.receiving.clear()
        over.busy.clear()
    assert not garbage.found

