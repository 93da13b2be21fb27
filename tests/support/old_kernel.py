"""Runs daemons as if the kernel were an older one: `KDBUSFS_TEST_KERNEL=linux-6.1 pytest tests/mount`.

What that kernel lacks is taken away by a library that is preloaded (old_kernel.c): to pytest itself, where some tests
have the daemon's host, and to every daemon, but not to clients.  What older kernels do otherwise, beside lacking
something, is not shown by this.
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
"""What tests with the mark `old_kernels` run on as well, beside those that it names: it lacks most."""

VARIABLE = "KDBUSFS_TEST_KERNEL"
SOURCE = Path(__file__).with_suffix(".c")
_PRELOAD = "LD_PRELOAD"
_BUILT = "KDBUSFS_TEST_KERNEL_LIBRARY"


def build(directory: Path) -> Path:
    """The library, made in `directory`."""
    library = directory / "old_kernel.so"
    command = ["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    directory.chmod(0o755)
    return library


def enter(config: pytest.Config) -> None:
    """Start pytest once more with the library, if an older kernel is asked for and it runs without."""
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
    """Take away what `enter` has made."""
    library = os.environ.get(_BUILT)
    if library:
        Path(library).unlink()
        Path(library).parent.rmdir()


def under(kernel: str, library: Path) -> tuple[str, ...]:
    """What to put in front of a command that is to run as on `kernel`, "linux-6.1"."""
    return ("env", f"{_PRELOAD}={library}", f"{VARIABLE}={kernel}")


@cache
def prefix() -> tuple[str, ...]:
    """What to put in front of the command of every daemon; nothing where no older kernel is asked for."""
    library = os.environ.get(_BUILT)
    return under(os.environ[VARIABLE], Path(library)) if library else ()
