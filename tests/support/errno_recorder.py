"""A plugin for pytest (`-p tests.support.errno_recorder`): records every errno that the core returns.

Writes a JSON object to the file KDBUSFS_ERRNOS: the names of errno for each command.
The clock of turns stands still: the code is not compiled, so the time limits of turns do not apply.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from kdbusfs.abi.v3.commands import COMMANDS
from kdbusfs.abi.v3.constants import CMD_BYEBYE
from kdbusfs.base.call import ERESTARTSYS
from kdbusfs.bus1 import abi as bus1
from kdbusfs.bus1.file import PeerFile
from kdbusfs.core.domain import Domain
from kdbusfs.core.handle import ControlHandle, EndpointHandle
from tests.support import fake_host

NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", ERESTARTSYS: "EINTR"}
BUS1 = {getattr(bus1, name): name.removeprefix("CMD_") for name in vars(bus1) if name.startswith("CMD_")}
seen: dict[str, set[str]] = {}


def note(number: int, result: int) -> None:
    """Record the result of a command."""
    name = "BYEBYE" if number == CMD_BYEBYE else COMMANDS[number].name if number in COMMANDS else BUS1.get(number)
    if name is not None and result < 0:
        seen.setdefault(name, set()).add(NAMES[-result])


def _watch(handle: Any) -> None:
    inner: Callable[..., int] = handle.ioctl

    def ioctl(self: object, call: Any) -> int:
        result = inner(self, call)
        note(call.number, result)
        return result

    handle.ioctl = ioctl


class _Completed(list):  # type: ignore[type-arg]
    """The domain's list of completed deferred calls, which records their results."""

    def append(self, call: Any) -> None:
        note(call.number, call.result)
        super().append(call)


def pytest_configure() -> None:
    """Patch the core, also in modules that have already imported parts of it."""
    for handle in (ControlHandle, EndpointHandle, PeerFile):
        _watch(handle)
    inner = Domain.__init__

    def initialize(self: Any, *arguments: Any, **options: Any) -> None:
        inner(self, *arguments, **options)
        self.completed = _Completed()

    Domain.__init__ = initialize  # type: ignore[method-assign]
    fake_host.thread_time_ns = lambda: 0  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session) -> None:
    with open(os.environ["KDBUSFS_ERRNOS"], "w") as file:
        json.dump({name: sorted(found) for name, found in seen.items()}, file)
