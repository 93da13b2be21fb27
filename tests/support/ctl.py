"""Runs kdbusctl as a process: to its end, or in the background."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Self

from tests.support.forked import forked

COMMAND = (sys.executable, "-m", "kdbusfs.ctl")
PATIENCE = 240.0  # seconds that a command may take


def environment(**more: str) -> dict[str, str]:
    """The environment without variables that affect kdbusctl, and with `more`.

    The workers of pytest-xdist have COLUMNS and LINES: readline sets them where it is imported, without a terminal too.
    """
    unwanted = ("KDBUS_BUS", "KDBUSFS_MOUNT", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    found = {key: value for key, value in os.environ.items() if key not in unwanted}
    return {**found, **more}


@dataclass(frozen=True)
class Ended:
    """The result of a command: its exit code and output."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def kdbusctl(*arguments: str, stdin: bytes = b"", **variables: str) -> Ended:
    """Run kdbusctl to its end; `variables` are added to the environment."""
    result = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env=environment(**variables),
    )
    return Ended(result.returncode, os.fsdecode(result.stdout), os.fsdecode(result.stderr))


def refused(code: int, said: str, *arguments: str, **variables: str) -> None:
    """Run kdbusctl, which must fail with `code` and one line that contains `said`."""
    check_refused(as_user(None, *arguments, **variables), code, said)


def check_refused(ended: Ended, code: int, said: str) -> None:
    """The same check for a command that has already run."""
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("kdbusctl: "), ended
    assert ended.err.count("\n") == 1, ended
    assert said in ended.err, ended


def as_user(uid: int | None, *arguments: str, **variables: str) -> Ended:
    """Run it in a forked child, perhaps as another user, who need not be able to read this package."""

    def play() -> Ended:
        os.environ.pop("KDBUS_BUS", None)
        os.environ.pop("KDBUSFS_MOUNT", None)
        os.environ.update(variables)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(arguments)
        return Ended(code, out.getvalue(), err.getvalue())

    from kdbusfs.ctl.main import run

    _import_everything()
    ended: Ended = forked(play, uid=uid)
    return ended


def _import_everything() -> None:
    from importlib import import_module

    from kdbusfs.ctl.main import SECTIONS

    for name in ("kdbusfs.client", "rich.table", "rich.text", "rich.tree", "rich.console"):
        import_module(name)
    for _, commands in SECTIONS:
        for command in commands:
            import_module(f"kdbusfs.ctl.commands.{command.replace('-', '_')}")


class Running:
    """A running kdbusctl; returns its lines as they come.  It ends with the `with` block."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**variables),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self._lines), (self.process.stderr, self._errors))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: queue.Queue[str]) -> None:
        for line in stream:
            lines.put(os.fsdecode(line).rstrip("\n"))

    def line(self, what: str = "a line") -> str:
        """The next line of its standard output."""
        return self._next(self._lines, what)

    def error(self, what: str = "a line of errors") -> str:
        """The next line of its standard error."""
        return self._next(self._errors, what)

    def _next(self, lines: queue.Queue[str], what: str) -> str:
        try:
            return lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"waited {PATIENCE:g} s for {what}") from None

    def record(self) -> Any:
        """The next line as JSON."""
        return json.loads(self.line("a record"))

    def interrupt(self) -> int:
        """Send Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def rest(self) -> tuple[list[str], list[str]]:
        """Wait for its end; returns the output that was not read yet."""
        return list(self._lines.queue), list(self._errors.queue)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
