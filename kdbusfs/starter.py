"""The process that starts a daemon in the background and waits until its mount answers."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from kdbusfs.failure import EXIT_INTERNAL, EXIT_MOUNT, EXIT_OK, exit_code_of
from kdbusfs.fuse.mount import UNMOUNT_PATIENCE, Mount, unmount, visible_mount
from kdbusfs.fuse.mount_error import MountError
from kdbusfs.patience import Patience, cpu_time_of

_READY = "+"
_PROCESS = "@"

log = logging.getLogger("kdbusfs")


class Announcer:
    """The daemon's end of a pipe to the process that started it: reports each step of the start as a line.

    Without a descriptor, nothing is reported.
    """

    def __init__(self, pipe: int = -1) -> None:
        self._pipe = pipe

    @property
    def pipe(self) -> int:
        """The descriptor, or -1."""
        return self._pipe

    @property
    def is_waited_for(self) -> bool:
        """Whether a process waits."""
        return self._pipe >= 0

    def begin(self) -> None:
        """This process is the daemon: its cpu time counts from now on."""
        self._write(f"{_PROCESS}{os.getpid()}")

    def step(self, name: str) -> None:
        """The daemon begins step `name`."""
        self._write(name)

    def ready(self) -> None:
        """The mount is ready: end the wait."""
        self._write(_READY)
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _write(self, line: str) -> None:
        if self._pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._pipe, f"{line}\n".encode())


def start(run: Callable[[Announcer], int], path: str, subtype: str) -> int:
    """Have `run` serve in a process of its own, and return when the mount at `path` answers.  Returns the exit code.

    The server reports readiness: an access to the mount could block for ever.  It is waited for as long as it makes
    progress.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _serve(run, Announcer(writing))
    os.close(writing)
    # A daemon that gives its own client up does so before, with a better message.
    working = pid

    def measure(another: int) -> None:
        nonlocal working
        working = another

    patience = Patience(lambda: cpu_time_of(working), factor=1.5)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        told = _await(pipe.fileno(), patience, measure)
    if told is not None:
        # The end of a child has been reported by the child.
        return EXIT_OK if told else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or EXIT_INTERNAL
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _take_away(path, subtype)
    return complain(EXIT_MOUNT, f"the mount at '{path}' does not answer: {patience}")


def _await(pipe: int, patience: Patience, measure: Callable[[int], None]) -> bool | None:
    """True: the daemon is ready; False: it has ended; None: it was given up.

    measure: is told which process' cpu time shows progress, if it is not the one that was started.
    """
    text = ""
    while True:
        if select.select([pipe], [], [], patience.interval)[0]:
            data = os.read(pipe, 4096)
            if not data:
                return False
            *lines, text = (text + data.decode()).split("\n")
            for line in lines:
                if line == _READY:
                    return True
                if line.startswith(_PROCESS):
                    measure(int(line.removeprefix(_PROCESS)))
                    continue
                patience.step(line)
        elif patience.is_over:
            return None


def _serve(run: Callable[[Announcer], int], announcer: Announcer) -> NoReturn:
    """Run the server's process."""
    code = EXIT_INTERNAL
    try:
        code = run(announcer)
    except MountError as fault:
        code = complain(exit_code_of(fault), str(fault))
    except BaseException:
        log.exception("unexpected end")
    finally:
        logging.shutdown()
        os._exit(code)


def _take_away(path: str, subtype: str) -> None:
    """Detach the mount of a server that was killed."""
    entry = visible_mount(path)
    if entry is not None and entry.type == f"fuse.{subtype}":
        unmount(Mount(path, entry.device), UNMOUNT_PATIENCE)


def complain(exit_code: int, message: str, name: str = "kdbusfs") -> int:
    """Print the error as one line, with control characters of paths escaped.  Returns the exit code."""
    print(f"{name}: {message}".replace("\n", "\\n"), file=sys.stderr)
    return exit_code
