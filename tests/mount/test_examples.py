"""The example programs do what they are there to show."""

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
    """A copy of the examples that stands to the header as the original does."""
    shutil.copytree(ROOT / "docs/examples", tmp_path / "docs/examples", ignore=shutil.ignore_patterns("bin"))
    (tmp_path / "kdbusfs/include").mkdir(parents=True)
    shutil.copy(ROOT / "kdbusfs/include/kdbus.h", tmp_path / "kdbusfs/include")
    return tmp_path / "docs/examples"


def run(command: list[str], **arguments: object) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
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
    """Call and reply, a broadcast, a memfd and a descriptor, in C"""
    output = run([str(examples / "demo.sh"), str(domain_mount.path)])
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
