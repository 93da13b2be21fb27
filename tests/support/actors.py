"""Clients in child processes: functions that exchange values with the test, and are always ended."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

PATIENCE = 240.0  # seconds until a client must have done what the test waits for
_HEAD = struct.Struct("<I")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Link:
    """A connection to another process for values and descriptors."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel

    def say(self, value: Any = None) -> None:
        """Send a value."""
        data = pickle.dumps(value)
        self._socket.sendall(_HEAD.pack(len(data)) + data)

    def hear(self, what: str = "the other side", timeout: float = PATIENCE) -> Any:
        """The next value.  AssertionError after `timeout` seconds, EOFError at the end."""
        end = time.monotonic() + timeout
        (size,) = _HEAD.unpack(self._exactly(_HEAD.size, what, end, timeout))
        return pickle.loads(self._exactly(size, what, end, timeout))

    def _exactly(self, size: int, what: str, end: float, timeout: float) -> bytes:
        data = b""
        while len(data) < size:
            if not select.select([self._socket], [], [], max(end - time.monotonic(), 0))[0]:
                raise AssertionError(f"waited {timeout:g} s for {what}")
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def say_fd(self, fd: int) -> None:
        """Send a descriptor."""
        socket.send_fds(self._socket, [b"!"], [fd])

    def hear_fd(self, what: str = "a descriptor", timeout: float = PATIENCE) -> int:
        """The next value, which must be a descriptor."""
        if not select.select([self._socket], [], [], timeout)[0]:
            raise AssertionError(f"waited {timeout:g} s for {what}")
        return int(socket.recv_fds(self._socket, 1, 1)[1][0])

    def close(self) -> None:
        self._socket.close()


class Actor:
    """A child process that runs `play(link)`, as seen by the test."""

    def __init__(self, play: Callable[[Link], Any], uid: int | None, name: str) -> None:
        ours, theirs = socket.socketpair()
        self.name = name
        self.link = Link(ours)
        with warnings.catch_warnings():
            # The only other thread of the test process sleeps for ever: nothing can be torn.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _live(play, Link(theirs), uid)
        theirs.close()
        self.status: int | None = None
        self._pidfd = os.pidfd_open(self.pid)

    def say(self, value: Any = None) -> None:
        """Send it a value."""
        self.link.say(value)

    def hear(self, what: str, timeout: float = PATIENCE) -> Any:
        """The next value that it sends; AssertionError with its traceback if it failed instead."""
        try:
            kind, value = self.link.hear(f"{what} of {self.name}", timeout)
        except (EOFError, ConnectionResetError):
            self.wait()
            raise AssertionError(f"{self.name} ended with {self.status} before {what}") from None
        if kind == "failed":
            raise AssertionError(f"{self.name} failed before {what}:\n{value}")
        return value

    def result(self, timeout: float = PATIENCE) -> Any:
        """The return value of its function, after the process has ended."""
        value = self.hear("its result", timeout)
        self.wait(timeout)
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still exists."""
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        if self.status is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                where = _where(self.pid)
                raise AssertionError(f"waited {timeout:g} s for the end of {self.name} {where}")
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def has_ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it is there."""
        return self.wait() if self.status is not None or select.select([self._pidfd], [], [], 0)[0] else None

    def clean_up(self) -> None:
        """End it, whatever its state."""
        try:
            if self.status is None:
                self.kill()
                self.wait()
        finally:
            os.close(self._pidfd)
            self.link.close()


class _Told(Link):
    """The child's end of the link.  It marks values that are sent, to distinguish them from failures."""

    def say(self, value: Any = None) -> None:
        super().say(("said", value))


def _where(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/wchan") as wchan, open(f"/proc/{pid}/syscall") as call:
            return f"(in {wchan.read()}, {call.read().strip()})"
    except OSError:
        return ""


def _live(play: Callable[[Link], Any], link: Link, uid: int | None) -> NoReturn:
    code = 1
    told = _Told(link._socket)
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if uid is not None:
            become(uid)
        told.say(play(told))
        code = 0
    except BaseException:
        try:
            link.say(("failed", traceback.format_exc()))
        except OSError:
            traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def become(uid: int) -> None:
    """Become that user permanently, without privileges."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # which a change of user forgets


class Actors:
    """The clients of one test."""

    def __init__(self) -> None:
        self._all: list[Actor] = []

    def __call__(self, play: Callable[[Link], Any], *, uid: int | None = None, name: str = "") -> Actor:
        """Run `play(link)` in a child."""
        actor = Actor(play, uid, name or f"client {len(self._all) + 1} ({play.__name__})")
        self._all.append(actor)
        return actor

    def run(self, play: Callable[[], Any], *, uid: int | None = None, timeout: float = PATIENCE) -> Any:
        """Run `play()` in a child; returns its result."""
        actor = Actor(lambda link: play(), uid, getattr(play, "__name__", "client"))
        try:
            return actor.result(timeout)
        finally:
            actor.clean_up()

    def clean_up(self) -> None:
        while self._all:
            self._all.pop().clean_up()


def until(what: str, condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait until `condition()` is true; returns its value.  AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s for {what}, found {found!r}")
        time.sleep(0.01)


def errno_of(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> int:
    """The errno of the OSError that `call` raises; 0 if it raises none."""
    try:
        call(*arguments, **keywords)
    except OSError as fault:
        return fault.errno or -1
    return 0

