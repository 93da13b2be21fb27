"""The commands of docs/containers.md work, and print the output of the page."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import userns
from tests.support.commands import ROOT, run

pytestmark = pytest.mark.mount

PAGE = ROOT / "docs/containers.md"
EXAMPLES = ROOT / "docs/examples"
PATIENCE = 240  # seconds for one shell
BOX = Path("/var/lib/machines/box")
_BLOCK = re.compile(r"^```(\w+) ?(\w*)\n(.*?)^```$", re.M | re.S)

_END = "end-of-block"


@dataclass(frozen=True)
class Block:
    """A script of the page, the container manager that it needs, and its output on the page."""

    manager: str
    script: str
    output: str | None


def blocks() -> list[Block]:
    found: list[Block] = []
    for kind, manager, text in _BLOCK.findall(PAGE.read_text()):
        if kind == "sh":
            found.append(Block(manager, text, None))
        elif kind == "text":
            assert found[-1].output is None
            found[-1] = Block(found[-1].manager, found[-1].script, text)
    return found


class Shell:
    """A shell in separate namespaces, with an empty /run; its processes end with it.

    programs: where the examples are; installed: where kdbusfs is.
    """

    def __init__(self, programs: Path, installed: Path) -> None:
        paths = [str(programs), str(installed), "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        environment = {"PATH": ":".join(paths), "LC_ALL": "C"}
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]
        self._process = subprocess.Popen(
            userns.command("root", *inside),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
        )
        self._limit = threading.Timer(PATIENCE, self._process.kill)
        self._limit.start()
        self.run("mount -t tmpfs -o mode=755 none /run")

    def run(self, script: str) -> str:
        """Run a script, which must succeed; returns its output."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"set -e\n{script}\necho {_END}\n")
            self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip() == _END:
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"this failed, or took longer than {PATIENCE} s:\n{script}\n{''.join(lines)}")

    def close(self) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def programs(private_mounts: None) -> Iterator[Path]:
    """The example programs, statically linked, so that they run in an otherwise empty root file system."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    # Users without privileges run them too.
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-programs-"))
    path.chmod(0o755)
    for name in ("kdbus-client", "kdbus-service"):
        command = ["cc", "-static", "-O1", "-I", ROOT / "kdbusfs/include", EXAMPLES / f"{name}.c", "-o", path / name]
        assert run(*command).returncode == 0, "the examples cannot be linked statically"
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["checkout", "wheel"])
def shell(request: pytest.FixtureRequest, programs: Path) -> Iterator[Shell]:
    home = request.getfixturevalue("wheel_environment") if request.param == "wheel" else Path(sys.prefix)
    made = Shell(programs, home / "bin")
    try:
        yield made
    finally:
        made.close()


def test_the_page_has_what_it_should() -> None:
    assert [block.manager for block in blocks()] == ["", "", "", "", "nspawn", "lxc", "bwrap", "init", ""]
    assert [block.output is not None for block in blocks()] == [False, True, True, True, *[False] * 4, True]


def test_all_that_needs_no_manager(shell: Shell) -> None:
    """NS-6, FS-29: in the order of the page, one shell for all."""
    for block in blocks():
        if not block.manager:
            assert shell.run(block.script) == (block.output or ""), block.script


def make_box(shell: Shell, program: Path) -> None:
    """A root file system with one program in it."""
    shell.run(
        f"""
        mount -t tmpfs -o mode=755 none /var/lib && mkdir -p {BOX} /var/lib/lxc
        for name in bin dev etc proc run sys tmp usr var run/kdbus; do mkdir -p {BOX}/$name; done
        touch {BOX}/etc/os-release; cp {program} {BOX}/bin
        """
    )


@pytest.mark.parametrize("manager", ["nspawn", "lxc", "bwrap"])
def test_container_managers(shell: Shell, programs: Path, manager: str) -> None:
    """Each manager that is installed: with descriptors, in a container with the manager's seccomp filter."""
    program = {"nspawn": "systemd-nspawn", "lxc": "lxc-execute", "bwrap": "bwrap"}[manager]
    if shutil.which(program) is None:
        pytest.skip(f"no {program}")
    first, (block,) = blocks()[0], [block for block in blocks() if block.manager == manager]
    make_box(shell, programs / "kdbus-client")
    shell.run(first.script)
    script = block.script
    if not os.path.exists("/run/systemd/system"):
        script = script.replace("systemd-nspawn", "systemd-nspawn --register=no --keep-unit")
    said = shell.run(script)
    assert f'client:  came through the pipe: "{block.script.rsplit(chr(34), 2)[1].upper()}"\n' in said, said


def test_a_container_whose_init_makes_a_bus(shell: Shell, programs: Path) -> None:
    """With a program in the place of systemd that does with the domain what that does."""
    program = programs / "last_program"
    source = ROOT / "tests/support/last_program.c"
    command = ["cc", "-static", "-O1", "-pthread", "-I", ROOT / "kdbusfs/include", source, "-o", program]
    assert run(*command).returncode == 0, "the program cannot be linked statically"
    make_box(shell, program)
    (block,) = [block for block in blocks() if block.manager == "init"]
    said = shell.run(block.script.replace("/sbin/init kdbus=1", "/bin/last_program check /sys/fs/kdbus"))
    assert said == "All of it works.\n"
