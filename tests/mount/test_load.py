"""After many connections, closes and killed clients the daemon has the same resources as before."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, Lost, bloom_rule, make_bus, sealed_memfd
from kdbusfs.client.encode import Memfd
from tests.support.actors import Actors, Link
from tests.support.chatter import chatter
from tests.support.gauges import GAUGES, OTHERS

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

PAGE = os.sysconf("SC_PAGESIZE")
PROCESSES = 4
CONNECTIONS = 1000  # of the 1024 that one user may have (LIM-14)
OPENS = 10_000
HELLOS = 2000
DEATHS = 500
PATIENT = 240.0  # seconds that a client waits for a message that must come
SEED = 20150116


def own(domain: DomainMount, actors: Actors) -> str:
    """The path of a bus that exists during the test."""

    def owner(link: Link) -> None:
        with make_bus(domain.path, "load") as bus:
            link.say(bus.path)
            link.hear("the end", 3600)

    return str(actors(owner, name="bus owner").hear("its bus"))


def hear_everything(path: str, count: int) -> list[Connection]:
    """Connections that receive every broadcast, also of 2 MiB, one at a time."""
    heard = [Connection(path, pool_size=5 << 20) for _ in range(count)]
    for connection in heard:
        connection.add_match(1, bloom_rule(connection.bloom()))
    return heard


def test_a_long_command_lets_others_in_between(domain_mount: DomainMount, actors: Actors, healthy: None) -> None:
    """BC-2: it continues afterwards, and each receiver gets the whole message."""
    path = own(domain_mount, actors)

    def shout() -> None:
        payload = bytes(range(256)) * 8192
        heard = hear_everything(path, 100)
        with Connection(path, pool_size=PAGE) as sender:
            sender.broadcast(payload)
        for connection in heard:
            with connection.receive(PATIENT) as message:
                assert message.data() == payload
            connection.close()

    before = domain_mount.stats()["yields"]
    actors.run(shout)
    stats = domain_mount.stats()
    assert stats["yields"] > before
    assert stats["yielded"] == 0


def test_the_end_in_the_middle_of_long_commands(domain_mount: DomainMount, actors: Actors) -> None:
    """The daemon ends at once and without output, and the clients get errors."""
    path = own(domain_mount, actors)

    def shout(link: Link) -> None:
        heard = hear_everything(path, 30)
        sender = Connection(path, pool_size=PAGE)
        link.say()
        with contextlib.suppress(OSError):
            while True:
                sender.broadcast(bytes(2 << 20))
                for connection in heard:
                    # Two others send broadcasts too: not everything finds room.
                    with contextlib.suppress(Lost), connection.receive(PATIENT):
                        pass
        link.say("error")

    crowd = [actors(shout) for _ in range(3)]
    for each in crowd:
        each.hear("that it begins")
    time.sleep(0.2)
    assert domain_mount.stop() == 0
    for each in crowd:
        assert each.hear("the error") == "error"


def test_a_thousand_connections_at_once(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> None:
    """Each connection is known to the others, and a broadcast reaches all"""
    path = own(domain_mount, actors)

    def hold(link: Link) -> None:
        sizes = random.Random(SEED)
        connections = [
            Connection(path, pool_size=PAGE * sizes.randint(1, 8)) for _ in range(CONNECTIONS // PROCESSES)
        ]
        for connection in connections:
            connection.add_match(1, bloom_rule(connection.bloom()))  # without notifications
        link.say([connection.id for connection in connections])
        ids = link.hear("all ids")
        for one, other in zip(connections, ids, strict=False):
            info = one.conn_info(other, c.ATTACH_CREDS)
            assert info.id == other and info.metadata.creds is not None
        link.say("all known")
        link.hear("the broadcast")
        for connection in connections:
            with connection.receive(PATIENT) as message:
                assert message.data() == b"to all"
            assert connection.recv() is None
        link.say("all told")
        link.hear("the end")

    holders = [actors(hold, name=f"holder {i}") for i in range(PROCESSES)]
    ids = [holder.hear("its connections") for holder in holders]
    assert len({each for some in ids for each in some}) == CONNECTIONS
    for i, holder in enumerate(holders):
        holder.say(ids[(i + 1) % PROCESSES])
    for holder in holders:
        holder.hear("what it knows")

    def tell() -> int:
        with Connection(path, pool_size=PAGE * 64) as client:
            client.broadcast(b"to all")
            return len(client.list_names(c.NAME_LIST_UNIQUE))

    assert actors.run(tell) == CONNECTIONS + 1
    for holder in holders:
        holder.say()
    for holder in holders:
        holder.hear("the broadcast")
    # Half of them issue BYEBYE, the others are killed.
    for i, holder in enumerate(holders):
        holder.kill() if i % 2 else holder.say()
    for holder in holders:
        holder.wait()
    actors.clean_up()
    footprint.settles()


def test_ten_thousand_opens_and_closes(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> None:
    path = own(domain_mount, actors)

    def play() -> None:
        for _ in range(OPENS):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        for _ in range(HELLOS):
            Connection(path, pool_size=PAGE).close()

    actors.run(play)
    actors.clean_up()
    footprint.settles()


def _calling(path: str) -> None:
    """Plain commands, one after the other."""
    with Connection(path, pool_size=1 << 16) as client:
        client.acquire("org.example.Victim", flags=c.NAME_QUEUE)
        while True:
            client.add_match(1)
            client.send(client.id, b"x" * 5000)
            with contextlib.suppress(Lost):
                while (message := client.recv()) is not None:
                    message.free()
            client.broadcast(b"x")
            client.list_names()
            client.remove_match(1)


def _blocked(path: str) -> None:
    """A call that nobody answers, from two threads."""
    with Connection(path, pool_size=1 << 16) as client, Connection(path, pool_size=1 << 16) as silent:
        reading, _writing = os.pipe()
        thread = threading.Thread(target=client.call, args=(silent.id, b"?"), daemon=True)
        thread.start()
        client.call(silent.id, b"?", timeout=PATIENT, cancel_fd=reading)


def _receiving(path: str) -> None:
    """Receive descriptors without end; each installation stops the process for a moment."""
    reading, _writing = os.pipe()
    with Connection(path, pool_size=1 << 16) as client, sealed_memfd(b"x" * 100) as memfd:
        while True:
            client.send(client.id, [b"x", Memfd(memfd)], fds=[reading, memfd, reading])
            client.receive(PATIENT).free()


def _entering(path: str) -> None:
    """Issue HELLO without end."""
    while True:
        Connection(path, pool_size=PAGE).close()


def test_five_hundred_sudden_deaths(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> None:
    """SYNC-5, CLOSE-1: each client is killed at a random moment, while others talk"""
    path = own(domain_mount, actors)
    healthy = actors(chatter(path), name="chatter")
    healthy.hear("its connections")
    plays = (_calling, _blocked, _receiving, _entering)

    def kill_many(number: int) -> object:
        def killer(link: Link) -> int:
            chance = random.Random(SEED + number)
            killed = 0
            for i in range(DEATHS // 2):
                pid = os.fork()
                if pid == 0:
                    try:
                        plays[i % len(plays)](path)
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(1)
                pidfd = os.pidfd_open(pid)
                time.sleep(chance.random() * 0.03)
                os.kill(pid, signal.SIGKILL)
                assert select.select([pidfd], [], [], PATIENT)[0], f"{pid} does not die of SIGKILL"
                os.close(pidfd)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert status == -signal.SIGKILL, f"{plays[i % len(plays)].__name__} ended by itself: {status}"
                killed += 1
            return killed

        return killer

    killers = [actors(kill_many(number), name=f"killer {number}") for number in range(2)]  # type: ignore[arg-type]
    assert sum(killer.result(240) for killer in killers) == DEATHS
    healthy.say()
    assert healthy.result() > 100
    actors.clean_up()
    footprint.settles()


def test_every_figure_of_the_stats_comes_back_or_not(domain_mount: DomainMount) -> None:
    """Each figure must be listed in tests/support/gauges.py; otherwise a leak would go unnoticed."""
    assert sorted(domain_mount.stats()) == sorted(GAUGES + OTHERS)
