"""Many long commands of one user at once: they occupy few threads, and others are served meanwhile (GEN-5)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, deadline, encode, make_bus, raw
from kdbusfs.native._native import lib
from tests.support.actors import Actors, Link

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

PAGE = os.sysconf("SC_PAGESIZE")
ATTACKER = 3500
OTHER = 4001
THREADS = 40
RECEIVERS = 60
"""Number of receivers: a broadcast of 2 MiB to them takes tens of milliseconds."""
PATIENCE = 120.0
BETWEEN = 0.002  # seconds between two checks


def shout(domain: DomainMount, link: Link, rounds: int) -> list[int]:
    """Broadcast from many threads, each `rounds` times; returns the errnos."""
    payload = bytes(2 << 20)
    errors: list[int] = []
    with make_bus(domain.path, "loud") as bus:
        heard = [Connection(bus, pool_size=5 << 20) for _ in range(RECEIVERS)]
        for connection in heard:
            connection.add_match(1)
        senders = [Connection(bus, pool_size=PAGE) for _ in range(THREADS)]
        link.say(os.getpid())
        link.hear("the start")

        def run(sender: Connection) -> None:
            try:
                for _ in range(rounds):
                    sender.broadcast(payload)
            except OSError as error:
                errors.append(error.errno or 0)

        threads = [threading.Thread(target=run, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads), "a command was never answered"
    return errors


def watch(domain: DomainMount, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """Wait for figures that `condition` accepts; returns them."""
    limit = time.monotonic() + PATIENCE
    while not wanted(stats := domain.stats()):
        assert time.monotonic() < limit, f"waited {PATIENCE:g} s for {what}: {stats}"
        time.sleep(BETWEEN)
    return stats


def talk(domain: DomainMount, link: Link) -> int:
    """Send messages of another user to himself until told to stop; returns their number."""
    with make_bus(domain.path, "quiet") as bus, Connection(bus) as own:
        link.say()
        count = 0
        while True:
            own.send(own.id, b"x")
            with own.receive(PATIENCE):
                count += 1
            with contextlib.suppress(AssertionError):
                link.hear("the end", 0.0)
                return count


def test_one_users_long_commands_wait_unread(domain_mount: DomainMount, actors: Actors) -> None:
    """GEN-5, BC-2: at most four of them occupy a thread; all complete, and others are served."""
    loud = actors(lambda link: shout(domain_mount, link, 3), uid=ATTACKER)
    loud.hear("that it is ready")
    quiet = actors(lambda link: talk(domain_mount, link), uid=OTHER)
    quiet.hear("that he is there")
    loud.say("go")
    seen = watch(domain_mount, lambda stats: stats["held"] > 0, "commands that wait unread")
    assert seen["yielded"] <= lib.KFS_YIELDED_PER_UID
    most = 0
    while (seen := domain_mount.stats())["held"]:
        most = max(most, seen["yielded"])
        time.sleep(BETWEEN)
    assert most <= lib.KFS_YIELDED_PER_UID
    assert loud.result() == []
    quiet.say("end")
    assert quiet.result() > 10
    watch(domain_mount, lambda stats: not stats["yielded"], "the end of all")


def test_a_client_that_waits_unread_is_killed(domain_mount: DomainMount, actors: Actors) -> None:
    """GEN-5: it ends, and its command has no effect."""
    loud = actors(lambda link: shout(domain_mount, link, 1000), uid=ATTACKER)
    loud.hear("that it is ready")
    loud.say("go")
    watch(domain_mount, lambda stats: stats["held"] > 0, "commands that wait unread")
    loud.kill()
    assert loud.wait() == -9
    stats = watch(domain_mount, lambda stats: not stats["yielded"] and not stats["held"], "the end of all")
    assert stats["buses"] == []


def test_the_daemon_ends_while_commands_wait_unread(domain_mount: DomainMount, actors: Actors) -> None:
    """FS-29: their clients get errors."""
    loud = actors(lambda link: shout(domain_mount, link, 1000), uid=ATTACKER)
    loud.hear("that it is ready")
    loud.say("go")
    watch(domain_mount, lambda stats: stats["held"] > 0, "commands that wait unread")
    assert domain_mount.stop() == 0
    with contextlib.suppress(AssertionError):
        assert len(loud.result()) == THREADS


def test_a_signal_comes_for_a_call_that_waits_unread(domain_mount: DomainMount, actors: Actors) -> None:
    """SYNC-4: when it is started it is interrupted at once, and does not wait for its reply."""
    loud = actors(lambda link: shout(domain_mount, link, 1000), uid=ATTACKER)
    path = domain_mount.path / f"{ATTACKER}-loud" / "bus"

    def ask(link: Link) -> int:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, True)
        with Connection(path) as own, Connection(path) as mute:
            link.say()
            link.hear("the start")
            flags, until = c.MSG_EXPECT_REPLY, deadline(PATIENCE)
            message = raw.Block(encode.message(dst_id=mute.id, flags=flags, cookie=1, timeout_ns=until))
            command = encode.command(c.CMD_SEND, c.SEND_SYNC_REPLY, 0, 0, 0, message.address)
            link.say()
            return raw.raw_ioctl(own.fd, c.CMD_SEND, command)[0]  # not repeated after a signal

    loud.hear("that it is ready")
    caller = actors(ask, uid=ATTACKER)
    caller.hear("that it is connected")
    loud.say("go")
    watch(domain_mount, lambda stats: stats["held"] > THREADS // 2, "commands that wait unread")
    caller.say("go")
    caller.hear("that it is about to call")
    time.sleep(0.1)
    caller.kill(signal.SIGUSR1)
    assert caller.result(PATIENCE / 2) == errno.EINTR
