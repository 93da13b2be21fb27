"""Builds in the checkout with make, as from a shell."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from .commands import ROOT, run

BUILD_PATIENCE = 900  # seconds; compiling takes a minute, and longer on a busy machine


@contextlib.contextmanager
def building() -> Iterator[None]:
    """A lock: only one worker of pytest-xdist builds in the checkout at a time."""
    with open(ROOT / "Makefile", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(*arguments: str) -> str:
    """Run make in the checkout, as from a shell."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = run("make", "-s", *arguments, cwd=ROOT, env=environment, timeout=BUILD_PATIENCE)
    assert ended.returncode == 0, ended
    return ended.stdout


def lend_dependencies(home: Path) -> None:
    """Make the packages of our virtual environment available in another, without downloading them."""
    site = next(home.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
