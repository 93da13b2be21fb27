"""Helpers to run commands, and to wait for background daemons."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.fuse.mount import Mount, visible_mount
from tests.support import old_kernel

ROOT = Path(__file__).resolve().parents[2]
KDBUSFS = (*old_kernel.prefix(), sys.executable, "-m", "kdbusfs")
_libc = ctypes.CDLL(None, use_errno=True)
EXERCISE = (sys.executable, str(ROOT / "tests/support/exercise.py"))


def run(*command: object, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, for four minutes at most; returns the result."""
    merged = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 240, "check": False}
    return subprocess.run([str(word) for word in command], **{**merged, **keywords})


def done(*command: object, **keywords: Any) -> str:
    """Run a command that must succeed without output on stderr; returns its stdout."""
    ended = run(*command, **keywords)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def complaint(*command: object, **keywords: Any) -> tuple[int, str]:
    """Run a command that must fail with exactly one line on stderr; returns its exit code and that line."""
    ended = run(*command, **keywords)
    assert ended.returncode != 0 and ended.stdout == "" and ended.stderr.count("\n") == 1, ended
    return ended.returncode, ended.stderr.rstrip("\n")


def mounted(path: Path) -> Mount:
    """The domain at `path`."""
    entry = visible_mount(str(path))
    assert entry is not None and entry.type.startswith("fuse."), f"no domain at {path}"
    return Mount(entry.path, entry.device)


def connection_of(mount: Mount) -> Path:
    """The directory of the FUSE connection of a mount in sysfs, which exists as long as the connection."""
    return Path("/sys/fs/fuse/connections", str(mount.connection))


def wait_for(path: Path | str) -> None:
    """Wait until a domain answers at `path`.  A child process checks, which can be killed if it hangs."""
    done("sh", "-c", 'until [ -e "$1" ]; do sleep 0.01; done', "sh", f"{path}/control", timeout=120)


def wait_for_end(mount: Mount, patience: float = 120.0) -> None:
    """Wait until a background daemon has released its mount; AssertionError if it does not."""
    limit = time.monotonic() + patience
    while connection_of(mount).exists():
        assert time.monotonic() < limit, f"waited {patience:g} s for the daemon of {mount.path} to end"
        time.sleep(0.01)


def umount(path: Path, under: str | None = None) -> None:
    """Unmount the domain at `path` with umount(8), and wait for its daemon's end; `under`: the entries there."""
    mount = mounted(path)
    done("umount", path)
    entry = visible_mount(str(path))
    assert (entry and entry.type) == under
    wait_for_end(mount)


def access(path: Path) -> tuple[int, int, int]:
    """Owner, group and permissions."""
    found = os.stat(path)
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@contextlib.contextmanager
def covered(path: Path) -> Iterator[Path]:
    """Cover a directory of the system, so that changes of the test are gone afterwards."""
    with tempfile.TemporaryDirectory() as aside:
        done("mount", "-t", "tmpfs", "none", aside)
        try:
            upper, work = Path(aside, "upper"), Path(aside, "work")
            upper.mkdir()
            work.mkdir()
            layers = f"lowerdir={path},upperdir={upper},workdir={work}"
            ended = run("mount", "-t", "overlay", "none", path, "-o", layers)
            if ended.returncode != 0:
                pytest.skip(f"no overlayfs to write to {path} with: {ended.stderr}")
            try:
                yield path
            finally:
                done("umount", "-l", path)
        finally:
            done("umount", "-l", aside)


def kernel_mount(path: Path, fuse_fd: int, more: str) -> None:
    """Mount as a container manager does before it starts the daemon."""
    data = f"fd={fuse_fd},rootmode=40000,user_id=0,group_id=0{more}".encode()
    assert _libc.mount(b"early", bytes(path), b"fuse.kdbusfs", 6, data) == 0, os.strerror(ctypes.get_errno())
