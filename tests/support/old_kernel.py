"""Runs daemons as if the kernel were an older one: `KDBUSFS_TEST_KERNEL=linux-6.1 pytest tests/mount`.

A preloaded library (old_kernel.c) removes the features that this kernel lacks: from pytest itself, where some tests
use the daemon's host, and from every daemon, but not from clients.  Other differences of older kernels are not
emulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

OLDEST = "linux-5.10"
"""The kernel for tests with the mark `old_kernels` that name none: it lacks most."""

VARIABLE = "KDBUSFS_TEST_KERNEL"
SOURCE = Path(__file__).with_suffix(".c")
_PRELOAD = "LD_PRELOAD"
_BUILT = "KDBUSFS_TEST_KERNEL_LIBRARY"


def build(directory: Path) -> Path:
    """Build the library in `directory`; returns its path."""
    library = directory / "old_kernel.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    directory.chmod(0o755)
    return library


def enter(config: pytest.Config) -> None:
    """Start pytest again with the library, if an older kernel is requested and the library is not loaded."""
    if not os.environ.get(VARIABLE):
        return
    if not os.environ.get(_BUILT):
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        library = build(Path(tempfile.mkdtemp(prefix="kdbusfs-old-")))
        variables = {**os.environ, _PRELOAD: str(library), _BUILT: str(library)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)
    os.environ.pop(_PRELOAD, None)  # of this process alone


def leave() -> None:
    """Remove the files that `enter` has made."""
    library = os.environ.get(_BUILT)
    if library:
        Path(library).unlink()
        Path(library).parent.rmdir()


def under(kernel: str, library: Path) -> tuple[str, ...]:
    """The prefix of a command that makes it run as on `kernel`, such as "linux-6.1"."""
    return ("env", f"{_PRELOAD}={library}", f"{VARIABLE}={kernel}")


@cache
def prefix() -> tuple[str, ...]:
    """The prefix of the command of every daemon; empty if no older kernel is requested."""
    library = os.environ.get(_BUILT)
    return under(os.environ[VARIABLE], Path(library)) if library else ()
