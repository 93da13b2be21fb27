"""A mount with a keeper, whose daemons a test kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import DomainMount

PATIENCE = 240.0  # seconds


class KeptMount(DomainMount):
    """A domain mounted with `-o keep`; `process` is the keeper."""

    def __init__(self, path: Path, *options: str) -> None:
        super().__init__(path, "keep", *options)

    @property
    def daemons(self) -> list[int]:
        """The present daemon, then the spare one: the keeper's children in the order of their start."""
        numbers = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        found = []
        for number in map(int, numbers):
            fields = _stat(number)
            if fields and fields[0] not in "ZX":
                found.append((int(fields[19]), number))
        return [number for _, number in sorted(found)]

    def wait_for_spare(self) -> None:
        """Return when another daemon waits, with everything loaded: it has used no cpu for a while."""
        limit = time.monotonic() + PATIENCE
        used = -1
        while True:
            daemons = self.daemons
            fields = _stat(daemons[1]) if len(daemons) > 1 else []
            before, used = used, int(fields[11]) + int(fields[12]) if fields else -1
            if used > 0 and used == before and fields[0] == "S":
                return
            assert time.monotonic() < limit, f"waited {PATIENCE:g} s for a spare daemon"
            time.sleep(0.2)

    def kill(self) -> int:
        """Kill the daemon; gives its pid."""
        pid = self.daemons[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def outage(self) -> float:
        """Kill the daemon; gives the seconds until its successor has answered an open, made by another process."""
        program = f"""import os, time
input()
begun = time.monotonic()
os.read(os.open({str(self.path / ".kdbusfs/stats")!r}, os.O_RDONLY), 1)
print(time.monotonic() - begun)"""
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as probe:
            time.sleep(0.2)
            self.kill()
            return float(probe.communicate("\n", timeout=PATIENCE)[0])

    def waiting(self) -> int:
        """How many requests the kernel has that nobody has answered."""
        assert self._mount is not None
        return int(Path(f"/sys/fs/fuse/connections/{self._mount.connection}/waiting").read_text())


def _stat(pid: int) -> list[str]:
    """The fields of proc(5) behind the name: state first, start time at 19; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
