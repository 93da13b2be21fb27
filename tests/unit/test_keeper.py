"""The keeper with daemons that are a few lines each, and a pipe for /dev/fuse: its reader's end is the mount."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs import keeper

PATIENCE = 120.0  # seconds

DAEMON = """
import ctypes, os, sys, threading, time
log, spec = sys.argv[1], sys.argv[-1]
role, fuse, vault, announcer, orders, reports, alive = spec.split(",")
orders, reports, alive = int(orders), int(reports), int(alive)
def say(what):
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {role} {what}\\n")
try:
    os.write(reports, b"L")
except BrokenPipeError:
    pass
if not os.read(orders, 1):
    say("lost its keeper")
    os._exit(0)
say("serves")
"""
SERVE = "os.write(reports, b'R')\ntime.sleep(3600)\n"


class Kept:
    """A keeper under test.  daemon: what its daemons do once it is their turn."""

    def __init__(self, place: Path, daemon: str) -> None:
        self.log = place / "log"
        self.log.touch()
        script = place / "daemon.py"
        script.write_text(DAEMON + daemon)
        self.errors = open(place / "errors", "w+")  # noqa: SIM115 - closed by clean_up
        self.mount, fuse = os.pipe()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind("")  # an abstract address chosen by the kernel
        self.manager.settimeout(PATIENCE)
        address = self.manager.getsockname().decode().replace("\0", "@")
        vault = os.memfd_create("vault")
        command = [sys.executable, "-I", "-S", str(script), str(self.log)]
        words = [str(fuse), str(vault), "-1", "foreground", "new", "/nowhere", "0:0"]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, *words, *command],
            pass_fds=(fuse, vault),
            stderr=self.errors,
            env={**os.environ, "NOTIFY_SOCKET": address},
        )
        os.close(fuse)
        os.close(vault)

    def said(self, count: int) -> list[tuple[int, str, str]]:
        """The first `count` lines of the daemons: pid, role, what."""
        limit = time.monotonic() + PATIENCE
        while len(lines := self.log.read_text().splitlines()) < count:
            assert time.monotonic() < limit and self.process.poll() is None, (lines, self.process.poll())
            time.sleep(0.01)
        return [(int(pid), role, what) for pid, role, what in (line.split(" ", 2) for line in lines)]

    def has_let_go(self) -> bool:
        """Whether nobody holds /dev/fuse any more; the service manager, which has a copy, aside."""
        self.manager.close()
        poll = select.poll()
        poll.register(self.mount, 0)
        return bool(poll.poll(PATIENCE * 1000))

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.manager.close()
        os.close(self.mount)
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path, request.param)
    yield kept
    kept.clean_up()


def doing(what: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kept", [what], indirect=True, ids=["daemon"])


@doing(SERVE)
def test_a_killed_daemon_has_a_successor_as_often_as_it_is_killed(kept: Kept) -> None:
    for number in range(1, 5):
        lines = kept.said(number)
        assert [role for _, role, _ in lines] == ["first"] + ["successor"] * (number - 1)
        assert len({pid for pid, _, _ in lines}) == number
        time.sleep(2 * keeper.SETTLED)
        os.kill(lines[-1][0], signal.SIGKILL)
    kept.said(5)


@doing("assert 'NOTIFY_SOCKET' not in os.environ\n" + SERVE)
def test_the_service_manager_gets_the_descriptors_before_it_hears_that_the_mount_is_ready(kept: Kept) -> None:
    told: list[tuple[str, list[str]]] = []
    while not told or told[-1][0] != "READY=1":
        text, descriptors, _, _ = socket.recv_fds(kept.manager, 1000, 3)
        told.append((text.decode(), [os.readlink(f"/proc/self/fd/{number}")[:5] for number in descriptors]))
        for number in descriptors:
            os.close(number)
    assert told == [
        ("FDSTOREREMOVE=1\nFDNAME=kdbusfs-fuse", []),
        ("FDSTORE=1\nFDNAME=kdbusfs-fuse", ["pipe:"]),
        ("FDSTOREREMOVE=1\nFDNAME=kdbusfs-vault", []),
        ("FDSTORE=1\nFDNAME=kdbusfs-vault", ["/memf"]),
        ("READY=1", []),
    ]


@doing("os.write(reports, b'R')\ntime.sleep(0.2)\nos._exit(3)\n")
def test_a_daemon_that_ends_by_itself_is_the_end(kept: Kept) -> None:
    assert kept.process.wait(PATIENCE) == 3
    assert kept.has_let_go()
    assert len(kept.said(1)) == 1


@doing("os.write(reports, b'R')\nwhile os.getppid() != 1: time.sleep(0.01)\n")
def test_daemons_see_the_keeper_s_end(kept: Kept) -> None:
    kept.said(1)
    limit = time.monotonic() + PATIENCE
    children = Path(f"/proc/{kept.process.pid}/task/{kept.process.pid}/children")
    while len(children.read_text().split()) < 2:
        assert time.monotonic() < limit
        time.sleep(0.01)
    kept.process.kill()
    kept.process.wait(PATIENCE)
    while "lost its keeper" not in kept.log.read_text():
        assert time.monotonic() < limit
        time.sleep(0.01)


@doing("if role == 'first':\n    os.write(reports, b'R')\n    time.sleep(3600)\nos.kill(os.getpid(), 9)\n")
def test_daemons_that_do_not_start_are_given_up(kept: Kept) -> None:
    ((pid, _, _),) = kept.said(1)
    time.sleep(2 * keeper.SETTLED)
    os.kill(pid, signal.SIGKILL)
    assert kept.process.wait(PATIENCE) == keeper.EXIT_INTERNAL
    assert kept.has_let_go()
    assert len(kept.log.read_text().splitlines()) == 1 + keeper.FAILURES_MAX
    kept.errors.seek(0)
    assert "no daemon starts" in kept.errors.read()


FAIL_TWICE = """
if role == 'successor' and open(log).read().count("successor") < 3:
    os._exit(2)
"""


@doing(FAIL_TWICE + SERVE)
def test_a_successor_that_ends_before_it_is_ready_has_not_started(kept: Kept) -> None:
    """There may be no memory for it at that moment."""
    ((pid, _, _),) = kept.said(1)
    time.sleep(2 * keeper.SETTLED)
    os.kill(pid, signal.SIGKILL)
    kept.said(4)
    time.sleep(2 * keeper.SETTLED)
    assert kept.process.poll() is None
    assert len(kept.log.read_text().splitlines()) == 4


@doing("os.kill(os.getpid(), 9)\n")
def test_a_first_daemon_that_does_not_start_has_no_successor(kept: Kept) -> None:
    assert kept.process.wait(PATIENCE) == keeper.EXIT_INTERNAL
    assert len(kept.log.read_text().splitlines()) == 1


@doing("os.write(reports, b'A')\n" + SERVE)
def test_where_the_kernel_cannot_do_it_the_mount_ends_with_its_daemon(kept: Kept) -> None:
    ((pid, _, _),) = kept.said(1)
    os.kill(pid, signal.SIGKILL)
    assert kept.process.wait(PATIENCE) == keeper.EXIT_INTERNAL
    assert kept.has_let_go()


STUCK = """
if role == 'first':
    def hold():
        time.sleep(1)  # after the first thread has ended: one that the kernel does not let die
        say("is stuck")
        os.close(alive)
        time.sleep(3600)
    threading.Thread(target=hold).start()
    os.write(reports, b'R')
    time.sleep(0.2)
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


@doing(STUCK + SERVE)
def test_a_daemon_that_cannot_die_has_a_successor(kept: Kept) -> None:
    (first, _, _), (_, _, stuck), (_, role, what) = kept.said(3)
    assert (stuck, role, what) == ("is stuck", "successor", "serves")
    os.kill(first, 0)  # it is there


@doing(SERVE)
def test_a_signal_ends_the_daemon_and_no_other_starts(kept: Kept) -> None:
    kept.said(1)
    time.sleep(2 * keeper.SETTLED)
    kept.process.send_signal(signal.SIGTERM)
    assert kept.process.wait(PATIENCE) == keeper.EXIT_OK
    assert len(kept.log.read_text().splitlines()) == 1


@doing(SERVE)
def test_a_mount_that_is_gone_gets_no_daemon(kept: Kept) -> None:
    ((pid, _, _),) = kept.said(1)
    time.sleep(2 * keeper.SETTLED)
    os.close(kept.mount)
    time.sleep(0.2)
    assert kept.process.poll() is None
    os.kill(pid, signal.SIGKILL)
    assert kept.process.wait(PATIENCE) == keeper.EXIT_OK
    kept.mount = os.open("/dev/null", os.O_RDONLY)
