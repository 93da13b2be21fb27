"""Temporary control groups for a test, in either version of the interface."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")
_PATIENCE = 240.0  # seconds


class Group:
    """A control group below `home`; `is_v2`: of the unified hierarchy."""

    def __init__(self, path: Path, home: Path, is_v2: bool) -> None:
        self.path = path
        self.home = home
        self.is_v2 = is_v2

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move this process in, so that its new children are in the group."""
        self.add(os.getpid())
        try:
            yield
        finally:
            self.dismiss(os.getpid())

    def dismiss(self, pid: int) -> None:
        """Move the process back to the parent group."""
        (self.home / "cgroup.procs").write_text(str(pid))

    def add(self, pid: int) -> None:
        """Move the process in, with all its threads."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def freeze(self, freezes: bool) -> None:
        """Freeze or thaw a group with `freezer`."""
        if self.is_v2:
            self.write("cgroup.freeze", int(freezes))
        else:
            self.write("freezer.state", "FROZEN" if freezes else "THAWED")

    @property
    def is_frozen(self) -> bool:
        """Whether all its tasks are frozen."""
        if self.is_v2:
            return "frozen 1" in self.read("cgroup.events")
        return self.read("freezer.state") == "FROZEN"

    def read(self, name: str) -> str:
        return (self.path / name).read_text().strip()

    def write(self, name: str, value: object) -> None:
        (self.path / name).write_text(str(value))


def _home(controller: str) -> tuple[Path, bool]:
    """The directory in which a group with `controller` can be made."""
    v1 = _ROOT / controller
    if (v1 / "cgroup.procs").exists():
        return v1, False
    for root in (_ROOT, _ROOT / "unified"):
        with contextlib.suppress(OSError):
            if controller == "freezer" and (root / "cgroup.controllers").exists():
                return root, True  # every group has it
            if controller in (root / "cgroup.controllers").read_text().split():
                (root / "cgroup.subtree_control").write_text(f"+{controller}")
                return root, True
    pytest.skip(f"no control groups with {controller}")


@contextlib.contextmanager
def group(controller: str) -> Iterator[Group]:
    """A new group with `controller`, which must be empty at the end.  Skips the test if it cannot be made."""
    home, is_v2 = _home(controller)
    try:
        path = Path(tempfile.mkdtemp(prefix="kdbusfs-test-", dir=home))
    except OSError as fault:
        pytest.skip(f"no control group can be made: {fault}")
    try:
        yield Group(path, home, is_v2)
    finally:
        limit = time.monotonic() + _PATIENCE
        while True:
            try:
                os.rmdir(path)
                break
            except OSError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.05)
