"""For commands that hold a resource until Ctrl-C, SIGTERM, or until their COMMAND ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeVar

import click

from .failure import EXIT_FAILED, EXIT_OK, Failure, explain

EXIT_NOT_FOUND = 127
"""As in shells."""

_END_PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL for COMMAND
_CHECK_EVERY = 2.0  # seconds

_Function = TypeVar("_Function", bound=Callable[..., Any])


def command_argument(function: _Function) -> _Function:
    """The argument `-- COMMAND ...`."""
    return click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ...]")(function)


class Hold:
    """Context manager that turns signals into events: SIGINT and SIGTERM stop, SIGHUP reloads.

    running: whether COMMAND runs; exit_code: its exit code once it has ended (128 + n for signal n), else 0;
    stopped: whether SIGINT or SIGTERM was received; reload: whether SIGHUP was received since the last wait.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.running = False
        self.exit_code = EXIT_OK
        self.stopped = False
        self.reload = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Hold:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_fd = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in self._SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self.running:
            self._process.terminate()
            try:
                self._process.wait(_END_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        for fd in (self._reading, self._writing, self._pidfd):
            if fd >= 0:
                os.close(fd)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
            return
        self.stopped = True
        if number == signal.SIGTERM and self._process is not None and self.running:
            self._process.terminate()  # the terminal sends SIGINT to COMMAND too

    def start(self, command: Sequence[str], **environment: str) -> None:
        """Start COMMAND with `environment` added.  Raises Failure."""
        try:
            self._process = subprocess.Popen(command, env={**os.environ, **environment})
        except OSError as error:
            code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_FAILED
            raise Failure(f"cannot run '{command[0]}': {explain(error)}", code) from error
        self.running = True
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = os.pidfd_open(self._process.pid)

    def wait(self, *files: int, timeout: float | None = None) -> list[int]:
        """Block until one of `files` is readable or broken, a signal, the end of COMMAND, or `timeout` seconds.

        Returns the ready files; other events are in the attributes.
        """
        poller = select.poll()
        for fd in (*files, self._reading):
            poller.register(fd, select.POLLIN)
        if self.running:
            poller.register(self._pidfd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(None if timeout is None else timeout * 1000)]
        if self._reading in ready:
            os.read(self._reading, 4096)
        if self.running and self._pidfd in ready and self._process is not None:
            code = self._process.wait()
            self.exit_code = code if code >= 0 else 128 - code
            self.running = False
        return [fd for fd in ready if fd in files]

    def until_end(self, *, check: Callable[[], None] | None = None, reload: Callable[[], None] | None = None) -> int:
        """Block until SIGINT or SIGTERM, or until COMMAND ends if one was started.  Returns the exit code.

        check: called every 2 s, raises Failure if the held resource is gone; reload: called at SIGHUP.
        """
        has_command = self.running
        while self.running or not (self.stopped or has_command):
            self.wait(timeout=None if check is None else _CHECK_EVERY)
            if self.reload and reload is not None:
                reload()
            self.reload = False
            if check is not None and not self.stopped:
                check()
        return self.exit_code
