"""The example programs work as they are meant to."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds

_needs_compiler = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("cc") is None, reason="no C compiler or no make"
)


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the examples, with the header at the same relative path."""
    shutil.copytree(ROOT / "docs/examples", tmp_path / "docs/examples", ignore=shutil.ignore_patterns("bin"))
    (tmp_path / "kdbusfs/include").mkdir(parents=True)
    for header in ("kdbus.h", "kdbus-last.h", "bus1.h"):
        shutil.copy(ROOT / "kdbusfs/include" / header, tmp_path / "kdbusfs/include")
    return tmp_path / "docs/examples"


def run(command: list[str], typed: str = "", **arguments: object) -> str:
    done = subprocess.run(
        command,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        **arguments,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@_needs_compiler
def test_the_demo_shows_everything(domain_mount: DomainMount, examples: Path, footprint: Footprint) -> None:
    """Call and reply, a broadcast, a memfd and a descriptor, in C; the last ABI beside v3"""
    output = run([str(examples / "demo.sh"), str(domain_mount.path)])
    assert '"ANOTHER ABI"' in output
    assert output.rstrip().endswith("All of it was seen.")
    assert "warning" not in output
    footprint.settles()


def _builds_32_bit() -> bool:
    command = ["cc", "-m32", "-x", "c", "-", "-o", "/dev/null"]
    program = b"#include <stdint.h>\n#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }"
    return shutil.which("cc") is not None and not subprocess.run(command, input=program, capture_output=True).returncode


@_needs_compiler
def test_the_demo_of_32_bit_programs(domain_mount: DomainMount, examples: Path, footprint: Footprint) -> None:
    """GEN-19"""
    if not _builds_32_bit():
        pytest.skip("the compiler cannot build 32-bit programs")
    output = run([str(examples / "demo.sh"), str(domain_mount.path)], env={**os.environ, "CC": "cc -m32"})
    assert output.rstrip().endswith("All of it was seen.")
    binary = (examples / "bin/kdbus-client").read_bytes()
    assert binary[4] == 1  # ELFCLASS32
    footprint.settles()


SHELL_SESSION = """
spawn ann -
spawn bob -
spawn ann - cannot spawn ann
bob use count 1 - bob: has no count
give ann count - ann: has count
ann use count 3 - ann: count is 3
ann pass count bob - ann: has no bob
give ann bob - ann: has bob
ann pass count bob - ann: count passed to bob | bob: has count
bob use count 4 - bob: count is 7
give bob say - bob: has say
bob use say hello there - say: hello there | bob: has said it
ann drop count - ann: drops count
bob drop count - nobody has count any more | bob: drops count
give ann count - ann: has count
revoke count - count is revoked | ann: has lost count
ann use count 1 - ann: has no count
give bob count - bob: has count
bob use count 1 - bob: count is 8
bob drop count - nobody has count any more | bob: drops count
bob drop say - nobody has say any more | bob: drops say
end bob - bob has ended | ann: has lost bob
bob use say hello - cannot do that: bob use say hello
give ann ann - ann: has ann
"""
"""Commands, and after the dash their output."""


@_needs_compiler
@pytest.mark.parametrize("flags", ["", "-m32"])
def test_the_shell_of_bus1(domain_mount: DomainMount, examples: Path, footprint: Footprint, flags: str) -> None:
    """B1-IDEA-2, B1-NODE-8, B1-NODE-10, B1-ORD-2: handles are given, used, passed on, given back and lost."""
    if flags and not _builds_32_bit():
        pytest.skip("the compiler cannot build 32-bit programs")
    run(["make", "-s", "-C", str(examples), "bin/bus1-shell"], env={**os.environ, "CC": f"cc {flags}"})
    steps = [line.partition(" -")[::2] for line in SHELL_SESSION.strip().splitlines()]
    typed = "".join(f"{command}\n" for command, _ in steps)
    expected = [line.strip() for _, shown in steps for line in shown.split("|") if line.strip()]
    output = run([str(examples / "bin/bus1-shell"), str(domain_mount.path / "bus1")], typed)
    assert output.splitlines() == [*expected, "ann has ended"]
    assert domain_mount.stats()["bus1"] == {"peers": 0, "users": 0}
    footprint.settles()
