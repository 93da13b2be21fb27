"""Clients that are killed while a reader is stuck in their memory end, and their commands leave no resource.

How the daemon does that: kdbusfs/fuse/ownership.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.native._native import lib
from tests.mount.test_hostile_memory import PATIENCE, STALL, Program, Scene, everything_comes_back, scene, until
from tests.support import features

__all__ = ["scene"]
pytestmark = pytest.mark.mount


class Undead(Program):
    """A client that serves the page of its own command.  `give` makes it issue the command."""

    def __init__(self, scene: Scene, kind: str = "payload", uid: int = 4711) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="undead-"))
        self.directory.chmod(0o755)
        super().__init__("undead", kind, str(scene.bus.path), str(self.directory), str(uid))

    def give(self) -> None:
        self.tell("go")

    def end(self) -> None:
        super().end()
        subprocess.run(["umount", "-l", str(self.directory)], check=True, timeout=PATIENCE)
        self.directory.rmdir()


@pytest.fixture
def undead(scene: Scene) -> Iterator[Callable[..., Undead]]:
    with contextlib.ExitStack() as ending:

        def make(kind: str = "payload", uid: int = 4711) -> Undead:
            client = Undead(scene, kind, uid)
            ending.callback(client.end)
            return client

        yield make


def comes_back(scene: Scene) -> None:
    until(lambda: scene.stuck() == 0)
    assert scene.receiver.recv() is None
    assert scene.exchange(100) < STALL
    everything_comes_back(scene)


@pytest.mark.parametrize("kind", ["payload", "message"])
def test_a_client_that_serves_its_own_page_can_be_killed(
    scene: Scene, undead: Callable[..., Undead], kind: str
) -> None:
    """GEN-5: answered while its reader is stuck, it ends, its page fails, and the reader comes back."""
    client = undead(kind)
    client.give()
    until(lambda: scene.stuck() == 1)
    client.kill()
    assert client.process.wait(PATIENCE) == -signal.SIGKILL
    until(lambda: scene.stuck() == 0)
    assert scene.domain.stats()["abandoned"] == 1
    comes_back(scene)


def test_a_client_that_got_another_signal_before_can_be_killed(scene: Scene, undead: Callable[..., Undead]) -> None:
    """The kernel reports only the first signal."""
    client = undead()
    client.give()
    until(lambda: scene.stuck() == 1)
    interrupts = scene.domain.stats()["interrupts"]
    client.process.send_signal(signal.SIGUSR1)
    # Any thread may take it, so each gets one.
    until(lambda: scene.domain.stats()["interrupts"] > interrupts or _signal_threads(client))
    assert scene.stuck() == 1
    assert scene.domain.stats()["abandoned"] == 0
    client.kill()
    assert client.process.wait(PATIENCE) == -signal.SIGKILL
    comes_back(scene)


def _signal_threads(client: Undead) -> bool:
    """Send a signal to the thread of the command; False."""
    pid = client.process.pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(task.name), signal.SIGUSR1)
    return False


@pytest.mark.parametrize(("end", "code"), [("exit", 3), ("exec", -signal.SIGTERM)])
def test_a_sibling_of_a_stuck_thread_can_end_or_replace_the_program(
    scene: Scene, undead: Callable[..., Undead], end: str, code: int
) -> None:
    client = undead()
    client.give()
    until(lambda: scene.stuck() == 1)
    client.tell(end)
    if end == "exec":
        until(lambda: Path(f"/proc/{client.process.pid}/comm").read_text() == "sleep\n")
        client.process.terminate()
    assert client.process.wait(PATIENCE) == code
    comes_back(scene)


def test_a_killed_client_ends_though_its_page_is_never_served(scene: Scene) -> None:
    """The server is another process: the reader stays stuck, and its result is discarded."""
    client = scene.attack("payload")
    until(lambda: scene.stuck() == 1)
    client.kill()
    assert client.process.wait(PATIENCE) == -signal.SIGKILL
    assert scene.stuck() == 1
    assert scene.exchange() < STALL
    scene.answer()
    comes_back(scene)


def test_a_killed_client_frees_what_others_waited_for(scene: Scene, undead: Callable[..., Undead]) -> None:
    """CLOSE-1: its connection is gone at once, though its reader is still stuck; without passthrough the reader keeps
    the client's memory, and with it the pool that is mapped there.
    """
    client = scene.attack("payload")
    until(lambda: scene.stuck() == 1)
    connections = len(scene.domain.stats()["buses"][0]["connections"])
    client.kill()
    client.process.wait(PATIENCE)
    left = connections - 1 if features.has_passthrough() else connections
    until(lambda: len(scene.domain.stats()["buses"][0]["connections"]) == left)
    assert scene.stuck() == 1
    scene.answer()
    comes_back(scene)


def test_many_killed_clients_use_nothing_up(scene: Scene, undead: Callable[..., Undead]) -> None:
    """Each in its turn could have taken a reader for good; now none is left stuck."""
    for number in range(8):
        client = undead(uid=5000 + number)
        client.give()
        until(lambda: scene.stuck() == 1)
        client.kill()
        client.process.wait(PATIENCE)
        until(lambda: scene.stuck() == 0)
        assert scene.exchange(20) < STALL
    assert scene.domain.stats()["abandoned"] == 8
    comes_back(scene)


def test_all_readers_come_back_when_those_who_used_them_up_end(scene: Scene) -> None:
    """At the bound no client memory is accessed; after the clients were killed and the pages failed, it is again."""
    count = lib.KFS_STUCK_PER_UID
    clients = [scene.attack("payload", str(count), str(5000 + number)) for number in range(lib.KFS_STUCK_MAX // count)]
    until(lambda: scene.stuck() == lib.KFS_STUCK_MAX)
    with pytest.raises(OSError, match="Bad address"):
        scene.sender.send(scene.receiver.id, b"x" * 8)
    for client in clients:
        client.kill()
    for client in clients:
        assert client.process.wait(PATIENCE) == -signal.SIGKILL
    assert scene.stuck() == lib.KFS_STUCK_MAX
    scene.server.kill()
    until(lambda: scene.stuck() == 0)
    start = time.monotonic()
    assert scene.exchange(100) < STALL
    assert time.monotonic() - start < PATIENCE
    scene.close()
    until(lambda: scene.counts() == scene.before)
