"""docs/examples/kdbus-monitor.c prints everything that the service and the client of docs/examples do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, make_bus

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("make") is None or shutil.which("cc") is None, reason="no C compiler or no make"),
]

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the examples, built in a copy."""
    copy = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "docs/examples", copy, ignore=shutil.ignore_patterns("bin"), dirs_exist_ok=True)
    include = f"KDBUS_INCLUDE={ROOT / 'kdbusfs/include'}"
    subprocess.run(["make", "-s", "-C", str(copy), include], check=True, timeout=PATIENCE)
    return copy / "bin"


class Program:
    """A running example, and its output."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, said: str | Callable[[str], bool]) -> str:
        """Wait until `said` accepts its output; returns the output."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            text = self.text()
            if said(text) if callable(said) else said in text:
                return text
            assert self.process.poll() is None, text
            time.sleep(0.01)
        raise AssertionError(f"it does not say {said!r}:\n{self.text()}")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@pytest.fixture
def start(programs: Path, tmp_path: Path, domain_mount: DomainMount) -> Iterator[Callable[..., Program]]:
    """Start an example with arguments; it ends with the test."""
    running: list[Program] = []

    def begin(name: str | Path, *arguments: object) -> Program:
        log = tmp_path / f"{len(running)}.log"
        running.append(Program(log, str(programs / name), *map(str, arguments)))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(PATIENCE)


def paragraphs(text: str, *parts: str) -> list[str]:
    """The messages in which all parts occur."""
    return [each for each in text.split("\n\n") if all(part in each for part in parts)]


def test_it_tells_all_that_the_examples_do(
    domain_mount: DomainMount, programs: Path, start: Callable[..., Program]
) -> None:
    """MON-1, MON-2, META-1, NOTE-4: requests, replies, signals, memfds, descriptors and notifications"""
    (domain_mount.path / ".kdbusfs/parameters/attach_flags_mask").write_text("0x3fff")
    service = start("kdbus-service", "--make", domain_mount.path, "demo")
    bus = service.wait_for("/bus\n").strip()
    monitor = start("kdbus-monitor", bus)
    monitor.wait_for("monitoring")
    for arguments in (["call", "hello"], ["memfd", "enclosed"], ["pipe", "through"], ["signal", "rain", "sun"]):
        subprocess.run([programs / "kdbus-client", bus, *arguments], check=True, timeout=PATIENCE, capture_output=True)
    text = monitor.wait_for(lambda said: said.count("  ID_REMOVE") == 4)
    open_now = os.listdir(f"/proc/{monitor.process.pid}/fd")
    assert len(open_now) == 4, "descriptors that came with messages are closed"

    (request,) = paragraphs(text, '"hello"')
    head, *items = request.splitlines()
    assert re.match(r"message from \d+ to name cookie=1 timeout=\d+\.\d{9} priority=0 flags=EXPECT_REPLY ", head)
    assert 'type="echotext"' in head
    kinds = [line.split()[0] for line in items if line.split()[0] != "seclabel"]  # which some hosts lack
    assert [each for each in kinds if each != "audit"] == [
        *("destination", "payload", "creds", "pids", "groups", "thread", "process", "exe", "cmdline", "cgroup", "caps"),
        "timestamp",
    ]
    for line in (
        '  destination  "org.example.Echo"',
        '  thread       "kdbus-client"',
        '  process      "kdbus-client"',
        f'  exe          "{os.path.realpath(programs)}/kdbus-client"',
        f'  cmdline      "{programs}/kdbus-client"',
    ):
        assert line in items
    assert re.search(r"^  payload      5 bytes at \d+: \"hello\"$", request, re.MULTILINE)
    assert re.search(r"^  creds        uid=0 euid=0 suid=0 fsuid=0 gid=0 egid=0 sgid=0 fsgid=0$", request, re.MULTILINE)
    assert re.search(rf"^  pids         pid=(\d+) tid=\1 ppid={os.getpid()}$", request, re.MULTILINE)
    assert re.search(r"^  caps         last=\d+ inheritable=[0-9a-f]+ permitted=", request, re.MULTILINE)
    assert re.search(r"^  timestamp    seqnum=\d+ monotonic=\d+\.\d{9} realtime=\d+\.\d{9}$", request, re.MULTILINE)
    (answer,) = paragraphs(text, '"HELLO"')
    assert "reply_to=1" in answer and '  name         "org.example.Echo" flags=-' in answer
    assert len(paragraphs(text, '  memfd        8 bytes from 0 of descriptor ', ': "enclosed"')) == 1
    assert len(paragraphs(text, "  fds          1: ", " (pipe)", '"through"')) == 1
    assert len(paragraphs(text, " to all ", " flags=SIGNAL ", '"news about rain"')) == 1
    assert len(paragraphs(text, "message from bus to all ", "  ID_ADD ", " flags=ACCEPT_FD")) == 4

    assert service.end(signal.SIGTERM) == 0
    assert monitor.process.wait(PATIENCE) == 0
    assert monitor.text().endswith("the bus has ended\n")


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "test") as owner:
        yield owner


def test_it_ends_on_a_signal(bus: BusOwner, start: Callable[..., Program]) -> None:
    monitor = start("kdbus-monitor", bus.path)
    monitor.wait_for("monitoring")
    assert monitor.end(signal.SIGINT) == 0


def test_it_ends_after_so_many_messages(bus: BusOwner, start: Callable[..., Program]) -> None:
    monitor = start("kdbus-monitor", "-n", 2, bus.path)
    monitor.wait_for("monitoring")
    with Connection(bus.path, pool_size=1 << 16, description="some-thing") as client:
        for number in range(3):
            client.send(client.id, b'\x1b[31m "red\\\0', priority=-number, payload_type=1)
    assert monitor.process.wait(PATIENCE) == 0
    added, message = monitor.text().split("\n\n")[1:3]
    assert "  ID_ADD " in added
    assert '12 bytes at ' in message and r': "\x1b[31m \"red\\\x00"' in message, "nothing reaches a terminal as it is"
    assert '  description  "some-thing"' in message
    assert monitor.text().count("message from") == 2


def test_it_tells_of_names_and_of_lost_messages_and_of_requests_that_end_badly(
    bus: BusOwner, start: Callable[..., Program]
) -> None:
    """MON-3"""
    monitor = start("kdbus-monitor", bus.path)
    monitor.wait_for("monitoring")
    with Connection(bus.path, pool_size=1 << 16, attach_recv=c.ATTACH_TIMESTAMP) as client:
        client.send(client.id, b"early", expect_reply=True, timeout_ns=1)
        client.recv(drop=True)
        monitor.wait_for("  REPLY_TIMEOUT ")
        client.acquire("org.example.Echo", flags=c.NAME_QUEUE)
        client.release("org.example.Echo")
        text = monitor.wait_for("  NAME_REMOVE ")
        assert f'  NAME_ADD     "org.example.Echo" from nobody to {client.id} (QUEUE)\n' in text
        assert f'  NAME_REMOVE  "org.example.Echo" from {client.id} (QUEUE) to nobody\n' in text
        monitor.process.send_signal(signal.SIGSTOP)
        client.recv(drop=True)
        for _ in range(300):
            client.send(client.id, b"x")
            client.recv(drop=True)
        monitor.process.send_signal(signal.SIGCONT)
        text = monitor.wait_for(" messages here")
        lost = re.search(r"^lost (\d+) messages here$", text, re.MULTILINE)
        # 256 find room, or 32 of one user (QUO-2).
        assert lost is not None and int(lost[1]) == 300 - 32
    monitor.wait_for("  ID_REMOVE ")
    assert monitor.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("arguments", [(), ("-n", "0", "x"), ("-n", "many", "x"), ("x", "y"), ("-z", "x")])
def test_wrong_usage(arguments: tuple[str, ...], programs: Path) -> None:
    done = subprocess.run([programs / "kdbus-monitor", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "usage" in done.stderr


def test_it_is_clean_as_a_32_bit_program(tmp_path: Path, bus: BusOwner, start: Callable[..., Program]) -> None:
    """GEN-19: the same layouts and numbers"""
    program = tmp_path / "kdbus-monitor"
    flags = ["-m32", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kdbusfs/include'}"]
    probe = subprocess.run(
        ["cc", "-m32", "-x", "c", "-", "-o", str(program)],
        input=b"#include <stdio.h>\nint main(void) { return 0; }",
        capture_output=True,
        timeout=PATIENCE,
    )
    if probe.returncode != 0 or subprocess.run([program]).returncode != 0:
        pytest.skip("no 32-bit programs here")
    subprocess.run(
        ["cc", *flags, str(ROOT / "docs/examples/kdbus-monitor.c"), "-o", str(program)], check=True, timeout=PATIENCE
    )
    monitor = start(program, "-n", 2, bus.path)
    monitor.wait_for("monitoring")
    reading, writing = os.pipe()
    with Connection(bus.path, pool_size=1 << 16) as client:
        client.send(client.id, b"wide", fds=[writing])
    os.close(reading)
    os.close(writing)
    assert monitor.process.wait(PATIENCE) == 0
    assert '4 bytes at ' in monitor.text() and "  fds          1: " in monitor.text()
