"""The last ABI on a real mount: a program that speaks it as sd-bus does, alone and with clients of v3."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.client import Connection, make_bus

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds
NAME = "com.example.capitals"


def build(directory: Path, *options: str) -> Path | None:
    """Build the program; returns None if that is impossible."""
    binary = directory / "last_program"
    source = ROOT / "tests/support/last_program.c"
    strict = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kdbusfs/include'}", "-pthread"]
    built = subprocess.run(
        ["cc", *strict, *options, str(source), "-o", str(binary)], capture_output=True, text=True, timeout=PATIENCE
    )
    if options and built.returncode:
        return None
    assert built.returncode == 0, built.stderr
    return binary


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = build(tmp_path_factory.mktemp("last"))
    assert binary is not None
    return binary


@pytest.fixture
def served(domain_mount: DomainMount, program: Path) -> Iterator[Path]:
    """A bus made by v3, on which a program of the last ABI answers requests to NAME."""
    with make_bus(domain_mount.path, "mixed") as bus:
        service = subprocess.Popen(
            [program, "serve", str(bus.path), NAME, "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == "ready\n"
            yield Path(bus.path)
            _, errors = service.communicate(timeout=PATIENCE)
            assert (service.returncode, errors) == (0, "")
        finally:
            service.kill()
            service.communicate()


def check(domain_mount: DomainMount, program: Path) -> None:
    done = subprocess.run([program, "check", str(domain_mount.path)], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "All of it works.\n", "")


def test_a_program_that_speaks_as_sd_bus_does(domain_mount: DomainMount, program: Path, footprint: Footprint) -> None:
    """L-1, L-3 to L-5, L-10, L-11, L-14 to L-16, L-38, L-39, L-41 to L-43, L-64, L-66, L-68, L-72, L-84 to L-86

    L-90 to L-94, L-96 to L-99, L-106, L-107, L-109, L-113, L-115, L-116, L-119 to L-121
    """
    check(domain_mount, program)
    footprint.settles(threads=False)


def test_a_program_of_32_bits(domain_mount: DomainMount, tmp_path: Path, footprint: Footprint) -> None:
    """GEN-19"""
    program = build(tmp_path, "-m32")
    if program is None:
        pytest.skip("the compiler cannot build 32-bit programs")
    check(domain_mount, program)
    footprint.settles(threads=False)


def test_v3_calls_the_last_abi(served: Path) -> None:
    """L-82, L-84, L-85, L-88"""
    with Connection(served) as client:
        for _ in range(2):
            with client.call(NAME, b"capitals") as reply:
                assert b"".join(bytes(part) for part in reply.payload) == b"CAPITALS"  # type: ignore[arg-type]
        cookie = client.send(NAME, b"later", expect_reply=True, timeout_ns=2**63 - 1)
        with client.receive(PATIENCE) as reply:
            assert reply.cookie_reply == cookie
            assert b"".join(bytes(part) for part in reply.payload) == b"LATER"  # type: ignore[arg-type]


def test_the_last_abi_calls_v3(domain_mount: DomainMount, program: Path) -> None:
    """L-66, L-72"""
    with make_bus(domain_mount.path, "mixed") as bus, Connection(bus.path) as service:
        service.acquire(NAME)
        answered: list[bytes] = []

        def answer() -> None:
            with service.receive(PATIENCE) as request:
                text = b"".join(bytes(part) for part in request.payload)  # type: ignore[arg-type]
                answered.append(text)
                service.reply(request, text.upper())

        thread = threading.Thread(target=answer)
        thread.start()
        done = subprocess.run(
            [program, "call", str(bus.path), NAME, "hear me"], capture_output=True, text=True, timeout=PATIENCE
        )
        thread.join(PATIENCE)
        assert (done.stdout, done.stderr, answered) == ("HEAR ME\n", "", [b"hear me"])
