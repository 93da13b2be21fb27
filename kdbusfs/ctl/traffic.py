"""Statistics of connections from `.kdbusfs/connections`, and their rates."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .failure import EXIT_DENIED, EXIT_NO_MOUNT, Failure, exit_code_of, explain

if TYPE_CHECKING:
    from .locations import BusLocation

FILE: Final = ".kdbusfs/connections"
COUNTERS: Final = ("sent", "received", "sent_bytes", "received_bytes")
"""Monotonic counters."""

_READ: Final = 1 << 17


@dataclass(slots=True)
class Line:
    """A connection: its statistics (docs/architecture/inspection.md), and the rate of each counter per second."""

    stats: dict[str, Any]
    rates: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0.0))

    @property
    def key(self) -> tuple[str, int]:
        return self.stats["bus"], self.stats["id"]

    @property
    def messages(self) -> float:
        """Sent and received per second."""
        return self.rates["sent"] + self.rates["received"]

    @property
    def bytes(self) -> float:
        """Sent and received per second."""
        return self.rates["sent_bytes"] + self.rates["received_bytes"]

    def as_json(self) -> dict[str, Any]:
        rates = {f"{name}_per_second": round(rate, 3) for name, rate in self.rates.items()}
        return {**self.stats, **rates}


SORT_KEYS: Final[dict[str, tuple[Callable[[Line], Any], bool]]] = {
    "rate": (lambda line: (line.messages, line.stats["sent"] + line.stats["received"]), True),
    "bytes": (lambda line: (line.bytes, line.stats["sent_bytes"] + line.stats["received_bytes"]), True),
    "sent": (lambda line: line.stats["sent"], True),
    "received": (lambda line: line.stats["received"], True),
    "queue": (lambda line: (line.stats["queued"], line.stats["queued_bytes"]), True),
    "pool": (lambda line: line.stats["pool_used"], True),
    "lost": (lambda line: line.stats["lost"], True),
    "id": (lambda line: 0, False),
    "name": (lambda line: (not line.stats["names"], line.stats["names"]), False),
    "pid": (lambda line: line.stats["pid"] or 0, False),
    "user": (lambda line: line.stats["uid"], False),
}
"""Sort keys: the function, and whether the order is descending."""


def sort(lines: Iterable[Line], key: str, *, reverse: bool = False) -> list[Line]:
    """`lines` by one of SORT_KEYS; equal ones by bus and id."""
    value, descending = SORT_KEYS[key]
    return sorted(sorted(lines, key=lambda line: line.key), key=value, reverse=descending != reverse)


def read(domain: str, file: str = FILE, what: str = "connections") -> list[dict[str, Any]]:
    """The statistics of all connections of the domain at path `domain`, or of `what` is in another `file`.

    Raises Failure.
    """
    path = os.path.join(domain, file)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces: list[bytes] = []
            while piece := os.read(fd, _READ):
                pieces.append(piece)
        finally:
            os.close(fd)
    except OSError as error:
        raise _refused(domain, file, what, error) from error
    return [json.loads(line) for line in b"".join(pieces).splitlines()]


def families(location: BusLocation) -> dict[int, str]:
    """The ABI that each connection of a bus speaks, by id; nothing for who may not see that, as all but root."""
    if location.directory is None:
        return {}
    try:
        found = read(os.path.dirname(location.directory))
    except Failure:
        return {}
    return {stats["id"]: stats["family"] for stats in found if stats["bus"] == location.name}


def _refused(domain: str, file: str, what: str, error: OSError) -> Failure:
    code = exit_code_of(error)
    if code == EXIT_DENIED:
        return Failure(f"only root may see what the {what} of '{domain}' do", code)
    if code == EXIT_NO_MOUNT:
        return Failure(f"the daemon of '{domain}' has ended; 'umount {domain}' and mount it again", code)
    if error.errno == errno.ENOENT:
        return Failure(f"the kdbusfs at '{domain}' has no {file}: it is too old, or mounted without it", EXIT_NO_MOUNT)
    return Failure(f"cannot read '{domain}/{file}': {explain(error)}", code)


class Meter:
    """Samples the statistics.  buses: names to include; None: all."""

    def __init__(
        self,
        domain: str,
        buses: Sequence[str] | None = None,
        *,
        source: Callable[[str], list[dict[str, Any]]] = read,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.domain = domain
        self._buses = buses
        self._source = source
        self._clock = clock
        self._before: dict[tuple[str, int], dict[str, Any]] = {}
        self._read_at: float | None = None

    def measure(self) -> list[Line]:
        """Take a sample, with rates since the last call; for a new connection, since it was made.

        The first sample has rates of 0.  Raises Failure.
        """
        now = self._clock()
        found = self._source(self.domain)
        lines = [Line(stats) for stats in found if self._buses is None or stats["bus"] in self._buses]
        if self._read_at is not None and now > self._read_at:
            for line in lines:
                before = self._before.get(line.key)
                line.rates = {
                    name: (line.stats[name] - (before[name] if before is not None else 0)) / (now - self._read_at)
                    for name in COUNTERS
                }
        self._before = {line.key: line.stats for line in lines}
        self._read_at = now
        return lines
