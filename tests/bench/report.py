"""The figures of a run as text: tables, and how they stand against what is aimed at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .figures import Figures
from .measures import (
    BROKER,
    BUS1,
    BYSTANDERS,
    COMMANDS,
    DAEMON,
    DEFAULT,
    FLOOR,
    GROWTH,
    KDBUSFS,
    KIB,
    LAST_CALLS,
    MEMFDS,
    METADATA,
    MODES,
    PINNED,
    RECEIVERS,
    SOCKETS,
    VECTORS,
    WAITING,
    size_name,
)

BEGIN, END = "<!-- made by make bench-docs: begin -->", "<!-- made by make bench-docs: end -->"

_NAMES = {PINNED: "all on one cpu", DEFAULT: "default scheduling"}
_COLUMNS = (KDBUSFS, BROKER, DAEMON, SOCKETS)
_MS = 1000.0

Place = tuple[str, ...]
"""Measure, peer, part, kind: the arguments of Figures.get after the mode."""


# --- what is aimed at ---------------------------------------------------------------------------------


class Target(NamedTuple):
    """A ratio that should not be above `limit`: of `over` to the smallest of `under`."""

    what: str
    mode: str
    over: Place
    under: tuple[Place, ...]
    limit: float

    def measured(self, figures: Figures) -> float | None:
        """None unless all of it was measured."""
        ratios = [figures.ratio(self.mode, self.over, under) for under in self.under]
        if not ratios or any(ratio is None for ratio in ratios):
            return None
        return max(ratio for ratio in ratios if ratio is not None)


def _against(what: str, measure: str, peer: str, limit: float) -> Target:
    return Target(f"{what}, against {peer}", PINNED, (measure, KDBUSFS), ((measure, peer),), limit)


_CALLS = {8: (2.5, 1.8), 32 * KIB: (1.7, 1.0), 256 * KIB: (0.75, 0.22), 2 * KIB * KIB: (0.40, 0.15)}

TARGETS = (
    *(
        _against(f"call {size_name(size)}", f"call {size_name(size)}", peer, limit)
        for size, limits in _CALLS.items()
        for peer, limit in zip((BROKER, DAEMON), limits, strict=True)
    ),
    Target("memfd 256 MiB, against memfd 1 KiB", PINNED, ("memfd 256 MiB", KDBUSFS), (("memfd 1 KiB", KDBUSFS),), 1.5),
    _against("message without reply, 256 B", "oneway", BROKER, 1.5),
    _against("broadcast to 100, a delivery", "broadcast 100", BROKER, 1.5),
    Target(
        "call 8 B with 1000 connections, against 2",
        PINNED,
        ("growth connections", KDBUSFS, "1000"),
        (("growth connections", KDBUSFS, "2"),),
        1.1,
    ),
    *(
        Target(f"{what}, last ABI against v3", PINNED, (f"last {what}", KDBUSFS), ((what, KDBUSFS),), 1.15)
        for what in (*(f"call {size_name(size)}" for size in LAST_CALLS), "oneway")
    ),
    Target(
        "call 8 B, against the better of the two",
        DEFAULT,
        ("call 8 B", KDBUSFS),
        (("call 8 B", BROKER), ("call 8 B", DAEMON)),
        1.3,
    ),
    Target(
        f"mean call 8 B beside 2 busy loops, against {BROKER}",
        DEFAULT,
        ("busy", KDBUSFS, "time", "mean"),
        (("busy", BROKER, "time", "mean"),),
        3.0,
    ),
)


def targets(figures: Figures) -> list[str]:
    """A line for each target; of a run of some measures only those that it can tell about."""
    lines = [f"{'what is aimed at':62} {'ratio':>7} {'at most':>8}"]
    for target in TARGETS:
        ratio = target.measured(figures)
        what = f"{target.what} ({target.mode})"
        if ratio is None and figures.about["partial"]:
            continue
        if ratio is None:
            lines.append(f"{what:62} {'-':>7} {target.limit:8.2f}  not measured")
        else:
            lines.append(f"{what:62} {ratio:7.2f} {target.limit:8.2f}  {'ok' if ratio <= target.limit else 'over'}")
    return lines if len(lines) > 1 else []


# --- tables -------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table of peers, and where its figures are."""

    what: str
    measure: str
    part: str = "time"
    scale: float = 1.0  # of the unit of that row in us


ROWS = (
    *(Row(f"call {size_name(size)}", f"call {size_name(size)}") for size in VECTORS),
    *(Row(f"call with a memfd of {size_name(size)}", f"memfd {size_name(size)}") for size in MEMFDS),
    *(Row(f"call 8 B, service waits by {what}", f"waiting {way}") for what, way in WAITING.items()),
    Row("message without reply, 256 B", "oneway"),
    Row("message from one of 8 senders, 256 B", "senders"),
    *(Row(f"broadcast to {n}, a delivery", f"broadcast {n}") for n in RECEIVERS),
    Row("the same to 10 with 256 matches each", "matches 256"),
    *(Row(f"broadcast beside {n} who do not match", f"nonmatching {n}") for n in BYSTANDERS),
    *(
        Row(f"call 8 B, {level} {'queued messages' if kind == 'queued' else kind}", f"growth {kind}", str(level))
        for kind, levels in GROWTH.items()
        for level in levels
    ),
    Row("connect", "connect", "connect"),
    Row("disconnect", "connect", "disconnect"),
    *(
        Row(f"bus1: {size_name(size)} to {n}, received", f"bus1 {n} {size_name(size)}")
        for n, size in BUS1
    ),
    Row("start to first call, ms", "start", "first call", _MS),
    Row("call 8 B beside 2 busy loops", "busy"),
)


def _pair(figures: Figures, mode: str, row: Row, peer: str) -> str:
    """Median and 90 % point; a row of spaces where nothing was measured."""
    cells = []
    for kind in ("median", "p90"):
        value = figures.get(mode, row.measure, peer, row.part, kind)
        cells.append(f"{value / row.scale:9.2f}" if value is not None else " " * 9)
    return "".join(cells)


def _ratio(figures: Figures, mode: str, row: Row, peer: str) -> str:
    ratio = figures.ratio(mode, (row.measure, KDBUSFS, row.part), (row.measure, peer, row.part))
    return f"{ratio:8.2f}" if ratio is not None else " " * 8


def peers_table(figures: Figures, mode: str) -> Iterator[str]:
    """All that more than one peer does: us, and ratios of medians."""
    head = f"{_NAMES[mode]}, us".ljust(40) + "".join(f"{name:>18}" for name in _COLUMNS)
    yield f"{head}      kdbusfs against"
    yield " " * 40 + f"{'median':>9}{'90 %':>9}" * len(_COLUMNS) + f"{'broker':>8}{'daemon':>8}{'sockets':>8}"
    for row in ROWS:
        cells = [_pair(figures, mode, row, peer) for peer in _COLUMNS]
        if any(cell.strip() for cell in cells):
            ratios = "".join(_ratio(figures, mode, row, peer) for peer in _COLUMNS[1:])
            yield f"{row.what:40}{''.join(cells)}{ratios}".rstrip()


def rates(figures: Figures, mode: str) -> Iterator[str]:
    """Messages a second."""
    for what, measure in (("one sender, messages a second", "oneway"), ("8 senders, messages a second", "senders")):
        times = [figures.get(mode, measure, peer) for peer in _COLUMNS]
        if any(times):
            yield what.ljust(40) + "".join(f"{1e6 / time:9.0f}{'':9}" if time else " " * 18 for time in times).rstrip()


def own_table(figures: Figures, mode: str) -> Iterator[str]:
    """What only kdbusfs does, some of it beside a server in C that does nothing."""
    for what, measure, part, other in (
        ("no-op ioctl (FREE of a wrong offset)", "noop", "time", "noop"),
        ("poll", "poll", "time", "poll"),
        *((f"{command}, 256 B, in one process", "commands", command, "noop") for command in COMMANDS),
        *((f"{command}, 256 B, last ABI", "last commands", command, "noop") for command in COMMANDS),
        *((f"call {size_name(size)}, last ABI", f"last call {size_name(size)}", "time", None) for size in LAST_CALLS),
        ("message without reply, 256 B, last ABI", "last oneway", "time", None),
        ("open and close of an endpoint", "open", "time", None),
        *((f"call 8 B, metadata: {name}", f"metadata {name}", "time", None) for name in METADATA),
    ):
        median, p90 = (figures.get(mode, measure, KDBUSFS, part, kind) for kind in ("median", "p90"))
        if median is None or p90 is None:
            continue
        floor = figures.get(mode, "floor", FLOOR, other) if other else None
        against = f"   {median / floor:.2f} of a server in C ({floor:.2f})" if floor else ""
        yield f"{what:40}{median:9.2f}{p90:9.2f}{against}"


def floors(figures: Figures, mode: str) -> Iterator[str]:
    """What the requests alone cost that something needs, by a server that does nothing but answer."""
    ioctl, poll = figures.get(mode, "floor", FLOOR, "noop"), figures.get(mode, "floor", FLOOR, "poll")
    if ioctl is None or poll is None:
        return
    for what, measure, ioctls, polls in (
        ("a call 8 B", "call 8 B", 5, 2),
        ("a message without reply", "oneway", 3, 0),
        ("a delivery to one of 100", "broadcast 100", 2, 2),
    ):
        least = ioctls * ioctl + polls * poll
        broker = figures.get(mode, measure, BROKER)
        against = f", {least / broker:.2f} of {BROKER}" if broker else ""
        yield f"{ioctls} ioctls and {polls} polls of the server in C, as {what} needs: {least:.1f} us{against}"


def copies(figures: Figures, mode: str) -> Iterator[str]:
    """How often the bytes of a message are copied, by the slope of its time over its size."""
    parts = ("send 1 MiB", "send 2 MiB", "readv 1 MiB", "readv 2 MiB", "memcpy 2 MiB")
    found = [figures.get(mode, "copy", KDBUSFS, part) for part in parts]
    times = [value for value in found if value is not None]
    if len(times) < len(parts):
        return
    sent, read, copied = times[1] - times[0], times[3] - times[2], times[4] / 2
    yield f"SEND: {sent:.1f} us for each further MiB; one process_vm_readv {read:.1f}, one memcpy {copied:.1f}"


def wakeups(figures: Figures, mode: str) -> Iterator[str]:
    """How often those are woken whom a broadcast does not concern."""
    found = []
    for peer in _COLUMNS:
        counts = [figures.get(mode, f"nonmatching {n}", peer, "others", "wakeups") for n in BYSTANDERS]
        known = [count for count in counts if count is not None]
        if known:
            found.append(f"{peer} {max(known):.2f}")
    if found:
        yield f"wake-ups of those who do not match, at most, a broadcast: {', '.join(found)}"


def daemon_table(figures: Figures, mode: str) -> Iterator[str]:
    """Cpu time and memory of the servers."""
    rows = (
        ("cpu time of a call 8 B, us", ("call 8 B", "server", "cpu"), 1.0),
        ("cpu time of a message 256 B, us", ("oneway", "server", "cpu"), 1.0),
        ("cpu time of a delivery to 100, us", ("broadcast 100", "server", "cpu"), 1.0),
        ("memory of an idle server, KiB", ("start", "memory", "server"), KIB),
        ("memory of a connection, KiB", ("start", "memory", "connection"), KIB),
        ("memory of a queued message, KiB", ("start", "memory", "message"), KIB),
    )
    lines = []
    for what, (measure, part, kind), scale in rows:
        values = [figures.get(mode, measure, peer, part, kind) for peer in _COLUMNS[:3]]
        if any(value is not None for value in values):
            cells = "".join(f"{value / scale:18.2f}" if value is not None else " " * 18 for value in values)
            lines.append(f"{what:40}{cells}".rstrip())
    if lines:
        yield "the server".ljust(40) + "".join(f"{name:>18}" for name in _COLUMNS[:3])
        yield from lines


def about(figures: Figures) -> Iterator[str]:
    """Where, with what, how often; what is not there."""
    facts = figures.about
    peers = ", ".join(f"{name} {version}" for name, version in facts["peers"].items())
    yield f"Linux {facts['kernel']}, {facts['machine']}, Python {facts['python']}; {peers}"
    rounds = f"{facts['rounds']} round{'' if facts['rounds'] == 1 else 's'} in {facts['seconds']} s"
    yield f"{rounds}{'; a quick run: these are no figures to compare' if facts['quick'] else ''}"
    yield from (f"left out: {name}: {reason}" for name, reason in facts["missing"].items())
    yield from (f"FAILED: {what}" for what in facts["failed"])


def report(figures: Figures) -> str:
    """All that a person wants to know."""
    lines: list[str] = []
    for mode in MODES:
        tables = (peers_table, rates, own_table, floors, copies, wakeups, daemon_table)
        parts = [list(table(figures, mode)) for table in tables]
        if len(parts[0]) > 2 or any(parts[1:]):
            for part in parts:
                lines += part
            lines.append("")
    lines += [*(aims := targets(figures)), *([""] if aims else []), *about(figures)]
    return "\n".join(lines)


def replace_section(page: str, lines: Iterable[str]) -> str:
    """What stands between the marks becomes `lines`.  Raises ValueError if the page has no such marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no line {BEGIN} and {END} after it")
    return "\n".join((before + begin, *lines, end + after))
