"""What the documents show is what happens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]
SHOWN_AT = "/run/kdbusfs"
PATIENCE = 120.0  # seconds

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


@_needs_compiler
def test_the_commands_of_the_readme_work(domain_mount: DomainMount, examples: Path, footprint: Footprint) -> None:
    """The worked example, as one would type it"""
    lines = re.findall(r"^    \$ (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 3
    service = lines[1]
    assert service.endswith(" &")
    bus = f"{domain_mount.path}/0-example/bus"
    script = [
        "set -eu",
        lines[0],
        service,
        "service=$!",
        "trap 'kill $service' EXIT",
        f"for i in $(seq 100); do test -e {bus} && break; sleep 0.1; done",
        # The bus is there a moment before the service has its name.
        f"for i in $(seq 100); do {lines[2]} && break; sleep 0.1; done",
    ]
    text = "\n".join(script).replace(SHOWN_AT, str(domain_mount.path))
    output = run(["sh", "-c", text], cwd=examples.parent.parent)
    assert re.search(r"hello", output, re.IGNORECASE), output
    footprint.settles()


def code_blocks(document: str) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    return blocks


def _expected(line: str) -> str | None:
    """What the comment behind a print says that it prints, where that is all there is to it."""
    match = re.match(r"print\((?:.*)\)\s+# ((?:True|b'[^']*'|\[b'[^']*'\]|\d+)(?=$|[:,]))", line.strip())
    return match[1] if match else None


@pytest.mark.parametrize("document", ["docs/client.md", "README.md"])
def test_the_python_of_the_documents_runs(document: str, domain_mount: DomainMount, footprint: Footprint) -> None:
    """One block after the other, in a process of its own; and it prints what the comments say"""
    source = "\n".join(code_blocks(document)).replace(SHOWN_AT, str(domain_mount.path))
    output = run([sys.executable, "-W", "error", "-c", source], cwd=ROOT).splitlines()
    for line in source.splitlines():
        expected = _expected(line)
        if expected is not None:
            assert any(found.startswith(expected) for found in output), f"{line.strip()} did not: {output}"
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
