"""What `make bench` measures: one line for each row of its tables."""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from kdbusfs.abi.v3.constants import ATTACH_ALL
from kdbusfs.core.metadata import DEFAULT_MASK

PINNED, DEFAULT = "pinned", "default"
MODES = (PINNED, DEFAULT)

KDBUSFS, BROKER, DAEMON, SOCKETS, FLOOR = "kdbusfs", "dbus-broker", "dbus-daemon", "sockets", "C server"
BUSES = (KDBUSFS, BROKER, DAEMON)
ALL = (*BUSES, SOCKETS)

KIB, MIB = 1 << 10, 1 << 20
MESSAGE = 256  # bytes of a message without reply

PLAIN, BESIDE_LOOPS, FRESH = "plain", "beside loops", "fresh daemon"
"""How a measure is run: just so, beside two busy loops of nice 0, or with a daemon that begins and ends with it."""

MANY, FEW = 99, 2
"""Rounds: as many as there are, and for what takes long to set up."""


class Measure(NamedTuple):
    """`scenario` is what `scenarios.c` (or `raw.c` or `bus1.c`, by `program`) is called with; `operations` or
    `seconds`, whichever ends first; no more than `rounds` times.
    """

    name: str
    scenario: tuple[str, ...]
    operations: int
    peers: tuple[str, ...] = BUSES
    modes: tuple[str, ...] = MODES
    program: str = ""
    how: str = PLAIN
    seconds: float = 4.0
    rounds: int = MANY

    def shortened(self) -> Measure:
        """The same for a run that only shows that all works; what takes long to set up, in one mode."""
        return self._replace(
            operations=min(self.operations, max(self.operations // 50, 64)),
            modes=self.modes[:1] if self.rounds <= FEW else self.modes,
            seconds=0.2,
            rounds=1,
        )


def size_name(size: int) -> str:
    """For people: 8 B, 4 KiB, 2 MiB."""
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} B"


VECTORS = {8: 15000, 4 * KIB: 6000, 32 * KIB: 6000, 256 * KIB: 2000, 2 * MIB: 500}
"""Calls for each payload: long runs where the scheduler matters, short ones where the copy takes the time."""

LAST_CALLS = (8, 32 * KIB)
"""Of those the ones that are made in the last ABI as well."""

MEMFDS = {KIB: 1500, MIB: 1500, 256 * MIB: 1500}
RECEIVERS = {1: 3000, 10: 800, 100: 150, 1000: 20}
BYSTANDERS = {1: 2000, 10: 2000, 100: 2000, 1000: 500}
BUS1 = {(1, 0): 8000, (100, 0): 150, (1, 8): 8000, (1, 4 * KIB): 6000, (1, 64 * KIB): 2000, (1, MIB): 300}
"""Rounds for receivers and bytes."""
COMMANDS = ("SEND", "RECV", "FREE", "RECV of nothing")
WAITING = {"epoll": "level", "epoll, EPOLLET": "edge", "poll(2)": "poll"}
METADATA = {"none": 0, "default set": DEFAULT_MASK, "all": ATTACH_ALL}
GROWTH = {
    "connections": (2, 100, 1000),
    "names": (10, 10000),
    "matches": (1, 256),
    "queued": (0, 256),
}


def _call(size: int, by: str = "vec") -> tuple[str, ...]:
    return ("call", by, str(size))


MEASURES = (
    Measure("floor", ("floor",), 15000, (FLOOR,), program="raw"),
    Measure("noop", ("noop",), 15000, (KDBUSFS,), program="raw"),
    Measure("poll", ("poll",), 15000, (KDBUSFS,), program="raw"),
    Measure("commands", ("commands",), 8000, (KDBUSFS,), program="raw"),
    Measure("last commands", ("commands",), 8000, (KDBUSFS,), program="raw-last"),
    *(Measure(f"call {size_name(size)}", _call(size), count, ALL, seconds=8.0) for size, count in VECTORS.items()),
    *(
        Measure(f"last call {size_name(n)}", _call(n), VECTORS[n], (KDBUSFS,), program="kdbus-last", seconds=8.0)
        for n in LAST_CALLS
    ),
    *(Measure(f"memfd {size_name(size)}", _call(size, "memfd"), count) for size, count in MEMFDS.items()),
    Measure("oneway", ("oneway", str(MESSAGE)), 16000, ALL),
    Measure("last oneway", ("oneway", str(MESSAGE)), 16000, (KDBUSFS,), program="kdbus-last"),
    Measure("senders", ("senders", "8", str(MESSAGE)), 16000),
    *(
        Measure(f"broadcast {n}", ("broadcast", str(n)), count, rounds=FEW if n >= 1000 else MANY)
        for n, count in RECEIVERS.items()
    ),
    Measure("matches 256", ("broadcast", "10", "256"), 800, modes=(PINNED,)),
    *(
        Measure(f"nonmatching {n}", ("nonmatching", str(n)), count, modes=(PINNED,), rounds=FEW if n >= 1000 else MANY)
        for n, count in BYSTANDERS.items()
    ),
    *(Measure(f"waiting {way}", (*_call(8), "0", way), 3000, modes=(PINNED,)) for way in WAITING.values()),
    *(
        Measure(f"metadata {name}", (*_call(8), hex(flags)), 3000, (KDBUSFS,), (PINNED,))
        for name, flags in METADATA.items()
    ),
    *(
        Measure(f"growth {kind}", ("growth", kind, *map(str, levels)), 3000, modes=(PINNED,), seconds=3.0)
        for kind, levels in GROWTH.items()
    ),
    Measure("copy", ("copy",), 150, (KDBUSFS,), program="raw"),
    Measure("open", ("open",), 600, (KDBUSFS,), program="raw"),
    Measure("connect", ("connect",), 600),
    *(
        Measure(f"bus1 {n} {size_name(size)}", (str(n), str(size)), count, (KDBUSFS, SOCKETS), program="bus1")
        for (n, size), count in BUS1.items()
    ),
    Measure("start", _call(8), 1, how=FRESH, rounds=FEW),
    Measure("busy", _call(8), 3000, modes=(DEFAULT,), how=BESIDE_LOOPS, seconds=5.0),
)


def chosen(only: str, modes: tuple[str, ...], peers: tuple[str, ...], quick: bool) -> list[Measure]:
    """Those whose name begins with, or matches, one of the words between commas in `only`; all if that is empty, but
    for the largest broadcasts where it is to be quick.
    """
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    found = []
    for measure in MEASURES:
        name = measure.name.lower()
        if words and not any(name.startswith(word) or fnmatch.fnmatchcase(name, word) for word in words):
            continue
        if quick and not words and measure.rounds == FEW and measure.how == PLAIN:
            continue
        wanted = measure._replace(
            modes=tuple(mode for mode in measure.modes if mode in modes),
            peers=tuple(peer for peer in measure.peers if peer in peers),
        )
        if wanted.modes and wanted.peers:
            found.append(wanted.shortened() if quick else wanted)
    return found
