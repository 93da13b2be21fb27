"""Starts daemons by fork(2) from a process that has imported them: imports take most of the cpu time of a start.

A worker of pytest has one server, started when the first daemon is needed, so that it inherits the worker's mount
namespace.  Tests of the start itself run the commands of the user instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_MESSAGE_MAX = 1 << 16
_ANSWER_PATIENCE = 120.0  # seconds


class Daemon:
    """A daemon that was forked, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal.  Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            poller = select.poll()  # select(2) takes no descriptors from 1024 on
            poller.register(self._pidfd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("kdbusfs", timeout or 0)
            self.returncode = self._server.reap(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Like Popen's: no signal is sent to a daemon that has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server, seen from the tests."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                preexec_fn=_die_with_parent,
            )
        self._ours.settimeout(_ANSWER_PATIENCE)

    def start(self, arguments: list[str], notify_socket: str, output: int) -> Daemon:
        """Start `kdbusfs ARGUMENTS`.  output: descriptor for what it prints."""
        request = json.dumps({"arguments": arguments, "notify_socket": notify_socket}).encode()
        socket.send_fds(self._ours, [request], [output])
        return Daemon(self, self._answer())

    def reap(self, pid: int) -> int:
        """The exit code of a daemon that has ended; call it once."""
        self._ours.send(json.dumps({"reap": pid}).encode())
        return self._answer()

    def _answer(self) -> int:
        return int(self._ours.recv(_MESSAGE_MAX))

    def close(self) -> None:
        """End the server."""
        self._ours.close()
        self._process.wait(_ANSWER_PATIENCE)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(requests: socket.socket) -> list[str] | None:
    """The life of the server.  Returns in each child, with the arguments of its daemon; None at the end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE_MAX, 1)
        if not message:
            return None
        request = json.loads(message)
        if "reap" in request:
            status = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
            requests.send(str(status).encode())
            continue
        pid = os.fork()
        if pid == 0:
            _die_with_parent()
            requests.close()
            for number in (1, 2):
                os.dup2(descriptors[0], number)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            os.environ["NOTIFY_SOCKET"] = request["notify_socket"]
            return list(request["arguments"])
        os.close(descriptors[0])
        requests.send(str(pid).encode())


def _main() -> NoReturn:
    from kdbusfs import cli, daemon  # noqa: F401 - imported for the daemons

    arguments = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(0 if arguments is None else cli.main(arguments))


if __name__ == "__main__":
    _main()
