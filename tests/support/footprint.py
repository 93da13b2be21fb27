"""Snapshots of the resources of a daemon, to show that they are released."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import features
from tests.support.gauges import GAUGES

if TYPE_CHECKING:
    from tests.conftest import DomainMount

_PIDFD = "anon_inode:[pidfd]"


class Footprint:
    """The counts of a domain that has come to rest; `settles` waits until they are there again.

    threads: whether its workers have to have ended too, which they do after a second without work;
    slack: MiB that the daemon's memory may have grown by: the allocator keeps some of what was freed.
    """

    def __init__(self, domain: DomainMount) -> None:
        self._domain = domain
        self._before = self._now()
        self._resident = resident(domain.pid)
        # The thread that copies pools where the kernel has no passthrough starts with the first pool, and stays.
        self._may_stay = 0 if features.has_passthrough() else 1
        idle = {"buses": [], "open_files": 0, "deferred": 0, "jobs": 0, "faults": 0, "waiting": 0}
        self.is_idle = all(self._before[key] == value for key, value in idle.items())

    def _now(self) -> dict[str, Any]:
        stats = self._domain.stats()
        found = {key: stats[key] for key in GAUGES}
        # One spare reader stays, or two, each with a file that tells how long it waited for a cpu.
        kinds = [each for each in descriptors(self._domain.pid) if not each.endswith("/schedstat")]
        # A reader keeps a pidfd that it opened for its last command until its next one (`LinuxCaller.reset`).
        kept = kinds.count(_PIDFD)
        found["too many pidfds"] = max(0, kept - stats["spares"] - 1)
        found["descriptors"] = sorted(each for each in kinds if each != _PIDFD)
        found["threads"] = len(os.listdir(f"/proc/{self._domain.pid}/task")) - stats["spares"]
        return found

    def settles(self, timeout: float = 240.0, slack: int = 64, threads: bool = True) -> None:
        """AssertionError with what differs if the counts are not back after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            now = self._now()
            if not threads or now["threads"] == self._before["threads"] + self._may_stay:
                now["threads"] = self._before["threads"]
            if now == self._before:
                break
            if time.monotonic() > end:
                differing = {key: (self._before[key], now[key]) for key in now if now[key] != self._before[key]}
                raise AssertionError(f"after {timeout:g} s not back at the start: {differing}")
            time.sleep(0.02)
        grown = resident(self._domain.pid) - self._resident
        assert grown < slack << 20, f"the daemon has grown by {grown >> 10} KiB"


def descriptors(pid: int) -> list[str]:
    """The kinds of the open descriptors of a process, without variable numbers."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(re.sub(r"\[\d+\]", "", os.readlink(entry)))
        except FileNotFoundError:
            continue
    return found


def resident(pid: int) -> int:
    """Bytes of private memory of a process, without shared pools."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) << 10
