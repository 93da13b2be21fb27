"""A process in namespaces of its own that executes code for a test.

As a script: `peer.py FLAGS CREDENTIALS`; FLAGS are of unshare(2), CREDENTIALS "uid:gid" to take inside, or "-".
It reports when it is unshared, waits until its id maps are written, and then executes its input: one JSON string of
Python code for each line.  It answers with the JSON of the variable `result`, or of the exception.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

CLONE_NEWNS = 0x20000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_ROOT = Path(__file__).resolve().parents[2]


class PeerError(Exception):
    """An exception of the other process: type, errno if it has one, text."""

    def __init__(self, name: str, errno: int | None, text: str) -> None:
        super().__init__(name, errno, text)
        self.name = name
        self.errno = errno


class Peer:
    """A running peer.  uid_map, gid_map: rows of (inside, outside, length) for its own user namespace."""

    def __init__(
        self,
        flags: int = 0,
        ids: tuple[int, int] | None = None,
        uid_map: tuple[tuple[int, int, int], ...] = (),
        gid_map: tuple[tuple[int, int, int], ...] = (),
    ) -> None:
        credentials = "-" if ids is None else f"{ids[0]}:{ids[1]}"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(flags), credentials],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        try:
            self.pid: int = self._answer()
            for name, rows in (("uid_map", uid_map), ("gid_map", gid_map)):
                if rows:
                    text = "".join(f"{inside} {outside} {length}\n" for inside, outside, length in rows)
                    Path(f"/proc/{self.pid}/{name}").write_text(text)
            self._to.write(b"\n")
            self._to.flush()
            self._answer()
        except BaseException:
            self.close()
            raise

    def __call__(self, code: str) -> Any:
        """Run `code` there and return its variable `result`.  Raises PeerError."""
        self._to.write(json.dumps(code).encode() + b"\n")
        self._to.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._from.readline()
        assert line, "the peer has ended"
        kind, value = json.loads(line)
        if kind == "raised":
            raise PeerError(*value)
        return value

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it."""
        with contextlib.suppress(OSError):
            self._to.close()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(120)
        self._from.close()


def _main() -> None:
    flags, credentials = int(sys.argv[1]), sys.argv[2]
    libc = ctypes.CDLL(None, use_errno=True)
    # Import everything now: another user may not be able to read the files later.
    import traceback  # noqa: F401

    import kdbusfs.client
    from kdbusfs.abi.v3 import constants

    names: dict[str, Any] = {"c": constants, "os": os, "k": kdbusfs.client}
    exec("from kdbusfs.client import *\nfrom kdbusfs.client import raw", names)
    libc.prctl(1, signal.SIGKILL)
    if flags and libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if flags & CLONE_NEWPID:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        libc.prctl(1, signal.SIGKILL)
    outer = int(os.readlink("/proc/self"))
    print(json.dumps(["result", outer]), flush=True)
    sys.stdin.readline()
    if credentials != "-":
        uid, gid = map(int, credentials.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        libc.prctl(4, 1)  # dumpable, as a program that was started with these ids is
    print(json.dumps(["result", None]), flush=True)
    for line in sys.stdin:
        names["result"] = None
        try:
            exec(json.loads(line), names)
            answer = ["result", names["result"]]
        except Exception as fault:
            answer = ["raised", [type(fault).__name__, getattr(fault, "errno", None), str(fault)]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
