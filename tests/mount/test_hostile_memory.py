"""Clients whose memory never comes, or late: others do not notice, and late memory still succeeds.

How the daemon does that: kdbusfs/fuse/ownership.py.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, make_bus
from kdbusfs.fuse.mount import visible_mount
from kdbusfs.native._native import lib
from tests.conftest import DomainMount
from tests.support import features
from tests.support.gauges import GAUGES
from tests.support.hostile_memory import COOKIE, REPLIER

pytestmark = pytest.mark.mount

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds
STALL = 60.0  # seconds that a call of another client may take; with a reader that hangs it would never end
MESSAGES = 2000


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.01)


class Program:
    """A Python program of tests/support that prints lines; `before`: the command that starts it."""

    def __init__(self, name: str, *arguments: str, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", f"tests.support.{name}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.hear() == "ready\n"

    def hear(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "it says nothing"
        return self.process.stdout.readline()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> None:
        self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)


class Scene:
    """A domain with a bus that every user may enter, a silent file system, and two other clients."""

    def __init__(self, domain: DomainMount, pages: Path) -> None:
        self.domain = domain
        self.pages = str(pages / "pages")
        self.programs: list[Program] = []
        self.server = self.start("silent_fuse", str(pages))
        self.before = self.counts()
        self.bus: BusOwner = make_bus(domain.path, "hostile", access=c.MAKE_ACCESS_WORLD)
        self.sender = Connection(self.bus)
        self.receiver = Connection(self.bus)

    def start(self, name: str, *arguments: str) -> Program:
        program = Program(name, *arguments)
        self.programs.append(program)
        return program

    def prepare(self, kind: str, *arguments: str) -> Program:
        return self.start("hostile_memory", kind, str(self.bus.path), self.pages, *arguments)

    def attack(self, kind: str, *arguments: str) -> Program:
        client = self.prepare(kind, *arguments)
        client.tell("go")
        return client

    def stuck(self) -> int:
        return int(self.domain.stats()["stuck"])

    def stores_a_reply(self) -> bool:
        """Whether a thread of the daemon waits for the memory that it stores a reply's data in.

        It is the reader; where clients have copies of their pools it is the one of their user.
        """
        if features.has_passthrough():
            return self.stuck() == 1
        waits = Path(f"/proc/{self.domain.pid}/task").glob("*/wchan")
        return any(path.read_text() == "handle_userfault" for path in waits)

    def answer(self) -> None:
        """Let the silent server answer."""
        self.server.tell("answer")
        self.server.hear()

    def counts(self) -> dict[str, Any]:
        """The figures that must return to their start values."""
        stats = self.domain.stats()
        return {**{name: stats[name] for name in GAUGES}, "has a spare": stats["spares"] > 0}

    def exchange(self, count: int = MESSAGES) -> float:
        """Send messages from one client to the other; returns the longest duration of a call, in seconds."""
        longest = 0.0
        for number in range(count):
            payload = number.to_bytes(8, "little") * 8
            start = time.monotonic()
            self.sender.send(self.receiver.id, payload)
            sent = time.monotonic()
            with self.receiver.receive(STALL) as message:
                assert message.data() == payload
            longest = max(longest, sent - start, time.monotonic() - sent)
        return longest

    def close(self) -> None:
        for connection in (self.sender, self.receiver):
            connection.close()
        self.bus.close()

    def end(self) -> None:
        for program in self.programs:
            program.end()


@pytest.fixture
def scene(domain_mount: DomainMount) -> Iterator[Scene]:
    pages = Path(tempfile.mkdtemp(prefix="silent-"))
    pages.chmod(0o755)
    scene = Scene(domain_mount, pages)
    try:
        yield scene
    finally:
        scene.end()
        subprocess.run(["umount", "-l", str(pages)], check=True, timeout=PATIENCE)
        pages.rmdir()


def outcome(client: Program) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.hear())
    return found


def everything_comes_back(scene: Scene) -> None:
    scene.close()
    for program in scene.programs[1:]:
        program.end()
    until(lambda: scene.counts() == scene.before)


# The result of the command with the late page: the file contains no message, and no items.
@pytest.mark.parametrize(
    ("kind", "result"),
    [("payload", 0), ("message", errno.EINVAL), ("tail", errno.EINVAL), ("last_recv", errno.EINVAL)],
)
def test_a_stuck_command_delays_no_other_and_continues_when_the_page_comes(
    scene: Scene, kind: str, result: int
) -> None:
    client = scene.attack(kind)
    until(lambda: scene.stuck() == 1)
    assert scene.exchange() < STALL
    assert scene.stuck() == 1
    scene.answer()
    received = [[COOKIE, 0, True]] if kind == "payload" else []
    assert outcome(client) == {"results": [result], "received": received}
    assert scene.stuck() == 0
    assert scene.exchange(100) < STALL
    everything_comes_back(scene)


def test_a_write_back_that_is_held_up_goes_on(scene: Scene) -> None:
    client = scene.attack("write_back")
    until(lambda: scene.stuck() == 1)
    assert scene.exchange() < STALL
    client.tell("let it write")
    assert outcome(client) == {"results": [0], "received": []}
    everything_comes_back(scene)


def test_a_reply_that_cannot_be_stored_holds_up_who_waits_for_it_alone(scene: Scene) -> None:
    """L-72: the replier's SEND is answered before anything is stored in the memory of the caller."""
    scene.receiver.acquire(REPLIER)
    client = scene.attack("reply_back")
    with scene.receiver.receive(STALL) as request:
        scene.receiver.reply(request, b"answer")
    until(scene.stores_a_reply)
    assert scene.exchange() < STALL
    client.tell("let it write")
    assert outcome(client) == {"results": [0], "received": []}
    assert scene.stuck() == 0
    everything_comes_back(scene)


def test_a_caller_that_is_killed_while_its_reply_is_stored_leaves_nothing(scene: Scene) -> None:
    """L-72"""
    scene.receiver.acquire(REPLIER)
    client = scene.attack("reply_back")
    with scene.receiver.receive(STALL) as request:
        scene.receiver.reply(request, b"answer")
    until(scene.stores_a_reply)
    client.kill()
    client.process.wait(PATIENCE)
    assert scene.exchange(500) < STALL
    everything_comes_back(scene)


@pytest.mark.parametrize("kind", ["recv", "hello"])
def test_what_the_kernel_copies_holds_up_the_client_alone(scene: Scene, kind: str) -> None:
    client = scene.attack(kind)
    assert scene.exchange() < STALL
    assert scene.domain.stats()["preempted"] == 0
    scene.answer()
    assert outcome(client)["results"] == [errno.EINVAL]
    everything_comes_back(scene)


def test_a_client_that_is_killed_while_it_is_held_up_leaves_nothing(scene: Scene) -> None:
    client = scene.attack("payload")
    until(lambda: scene.stuck() == 1)
    client.kill()
    assert scene.exchange(500) < STALL
    scene.answer()
    until(lambda: scene.stuck() == 0)
    client.process.wait(PATIENCE)
    everything_comes_back(scene)


def test_the_end_of_the_silent_server_is_an_error_for_its_client(scene: Scene) -> None:
    client = scene.attack("payload")
    until(lambda: scene.stuck() == 1)
    scene.server.kill()
    assert outcome(client) == {"results": [errno.EFAULT], "received": []}
    scene.close()
    until(lambda: scene.counts() == scene.before)


def test_while_one_clients_command_line_is_awaited_others_are_read(scene: Scene) -> None:
    """META-11: the content of /proc for one client is not taken for that of another."""
    (scene.domain.path / ".kdbusfs/parameters/attach_flags_mask").write_text("0x3fff")
    client = scene.start("held_map", str(scene.bus.path), scene.pages, "4711")
    for _ in range(20):
        # The kernel releases the lock for the first reads.
        scene.server.tell("fail")
        scene.server.hear()
        assert client.process.stdout is not None
        if select.select([client.process.stdout], [], [], 1.5)[0]:
            break
    assert client.hear() == "held\n"
    client.tell("HELLO")
    until(lambda: scene.stuck() == 1)
    own = Path("/proc/self/cmdline").read_text().split("\0")[0]
    kinds = c.ATTACH_CMDLINE | c.ATTACH_CREDS
    for _ in range(20):
        with Connection(scene.bus) as other:
            found = scene.receiver.conn_info(other.id, kinds).metadata
            assert (found.cmdline, found.creds and found.creds.uid) == (own, 0)
    assert scene.exchange(100) < STALL
    scene.answer()
    found = scene.receiver.conn_info(int(client.hear().split()[1]), kinds).metadata
    assert (found.cmdline, found.creds and found.creds.uid) == (sys.executable, 4711)
    everything_comes_back(scene)


def test_there_is_a_bound_for_one_user_beyond_which_he_is_blocked(scene: Scene) -> None:
    """A blocked user gets EFAULT at once; commands that were stuck before still succeed."""
    bound = lib.KFS_STUCK_PER_UID
    later = scene.prepare("payload")
    client = scene.attack("payload", "20")
    until(lambda: scene.stuck() == bound)
    assert scene.exchange() < STALL
    assert scene.stuck() == bound
    assert scene.domain.stats()["blocked"] == 20 - bound
    scene.answer()
    result = outcome(client)
    assert result["results"] == [0] * bound + [errno.EFAULT] * (20 - bound)
    assert len(result["received"]) == bound
    assert all(whole for _, _, whole in result["received"])
    later.tell("go")
    assert outcome(later)["results"] == [errno.EFAULT]
    other = scene.attack("payload", "1", "4712")
    assert outcome(other)["results"] == [0]
    everything_comes_back(scene)


def test_many_users_at_once(scene: Scene) -> None:
    clients = [scene.attack("payload", "4", str(5000 + number)) for number in range(6)]
    until(lambda: scene.stuck() == 24)
    assert scene.exchange() < STALL
    scene.answer()
    for client in clients:
        result = outcome(client)
        assert result["results"] == [0] * 4
        assert sorted(word for _, word, whole in result["received"] if whole) == [0, 128, 256, 384]
    assert scene.domain.stats()["preempted"] == 24
    everything_comes_back(scene)


def test_a_signal_ends_the_daemon_while_a_reader_is_stuck(scene: Scene) -> None:
    client = scene.prepare("payload")
    # A stopped server does not even read the request, so a process that waits for it can be killed.
    scene.server.process.send_signal(signal.SIGSTOP)
    client.tell("go")
    until(lambda: scene.stuck() == 1)
    start = time.monotonic()
    assert scene.domain.stop() == 0
    assert time.monotonic() - start < 12
    assert visible_mount(str(scene.domain.path)) is None


def test_a_request_that_was_taken_keeps_an_empty_process_but_no_mount(scene: Scene) -> None:
    scene.attack("payload")
    until(lambda: scene.stuck() == 1)
    process = scene.domain.process
    process.send_signal(signal.SIGTERM)
    until(lambda: visible_mount(str(scene.domain.path)) is None)
    # Files of other clients are closed in time too: their commands get an error.
    until(lambda: _is_dead(scene.sender.fd))
    scene.server.kill()
    assert process.wait(PATIENCE) == 0


def _is_dead(fd: int) -> bool:
    try:
        os.fsync(fd)
    except OSError as fault:
        return fault.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False
