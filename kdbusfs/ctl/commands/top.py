"""kdbusctl top: what the connections of a domain do, as a live table."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from kdbusfs.abi.v3 import constants as c

from ..arguments import Seconds
from ..context import Context, pass_context
from ..describe import HELLO_FLAGS, user_name
from ..escape import escape
from ..failure import EXIT_OK, EXIT_USAGE, Failure
from ..follow import Course, stopped_by_signals
from ..options import Command
from ..places import check_domain
from ..traffic import SORT_KEYS, Line, Meter, sort

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..output import Output

_COLUMNS: Final = (
    *("BUS", "ID", "NAME", "PID", "USER", "COMMAND"),
    *("SENT/s", "RECV/s", "BYTES/s", "SENT", "RECEIVED", "BYTES", "QUEUE", "QUEUED", "POOL", "LOST"),
)
_RIGHT: Final = ("ID", "PID", *_COLUMNS[6:])
_SPECIAL: Final = c.HELLO_SPECIAL
_FRAME: Final = 4  # lines of a screen that show no connection
_NAP: Final = 0.1  # seconds until a signal is noticed at the latest


def amount(value: float) -> str:
    """A number of bytes in at most five letters: 999, 1.2K, 340K, 5.0M."""
    if value < 1000:
        return f"{value:.0f}"
    for unit in "KMGTP":
        value /= 1024
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 1000 or unit == "P":
            return f"{value:.0f}{unit}"
    raise AssertionError


def rate(value: float) -> str:
    """A number a second: 0, 0.5, 12, 3400."""
    return "0" if not value else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def cells(line: Line) -> list[str]:
    """A line of the table, not escaped."""
    figures = line.figures
    name, *others = figures["names"] or [figures["description"] or "-"]
    role = "".join(f" ({HELLO_FLAGS[flag]})" for flag in HELLO_FLAGS if figures["flags"] & flag & _SPECIAL)
    return [
        figures["bus"],
        str(figures["id"]),
        name + (f"+{len(others)}" if others else "") + role,
        str(figures["pid"] or "-"),
        user_name(figures["uid"]),
        figures["comm"] or "-",
        rate(line.rates["sent"]),
        rate(line.rates["received"]),
        amount(line.bytes),
        str(figures["sent"]),
        str(figures["received"]),
        amount(figures["sent_bytes"] + figures["received_bytes"]),
        str(figures["queued"]),
        amount(figures["queued_bytes"]),
        f"{100 * figures['pool_used'] / figures['pool_size']:.0f}%",
        str(figures["lost"]),
    ]


def headline(domain: str, lines: Sequence[Line], interval: float) -> str:
    """All of it in one line; messages are counted where they are sent, and those of the bus nowhere."""
    buses = len({line.figures["bus"] for line in lines})
    sent = sum(line.rates["sent"] for line in lines)
    size = sum(line.rates["sent_bytes"] for line in lines)
    queued = sum(line.figures["queued"] for line in lines)
    lost = sum(line.figures["lost"] for line in lines)
    return (
        f"{domain}  {len(lines)} connection{'s'[: len(lines) != 1]} on {buses} bus{'es' if buses != 1 else ''}, "
        f"{rate(sent)} messages/s, {amount(size)} bytes/s, {queued} queued, {lost} lost  "
        f"({time.strftime('%H:%M:%S')}, every {interval:g} s)"
    )


@dataclass(slots=True)
class View:
    """What is shown: sorted by which key, and in which direction."""

    key: str
    reverse: bool

    def press(self, key: str) -> bool:
        """A key was pressed; whether it was the one that ends."""
        keys = list(SORT_KEYS)
        if key == "s":
            self.key = keys[(keys.index(self.key) + 1) % len(keys)]
        elif key == "S":
            self.key = keys[keys.index(self.key) - 1]
        elif key == "r":
            self.reverse = not self.reverse
        return key in ("q", "Q", "\x1b", "\x04")


def screen(domain: str, lines: Sequence[Line], view: View, interval: float, rows: int) -> RenderableType:
    """The whole screen, `rows` high."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    several = len({line.figures["bus"] for line in lines}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold reverse", padding=(0, 1, 0, 0), expand=True)
    for column in _COLUMNS if several else _COLUMNS[1:]:
        flexible = column in ("NAME", "COMMAND", "BUS")
        table.add_column(
            Text(column),
            justify="right" if column in _RIGHT else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=3 if column == "NAME" else 1 if flexible else None,
            min_width=4 if flexible else len(column),
        )
    shown = sort(lines, view.key, reverse=view.reverse)[: max(rows - _FRAME, 1)]
    for line in shown:
        texts = [escape(cell) for cell in cells(line)]
        styles = ["" for _ in texts]
        if line.messages:
            styles[1:3] = ["bold", "bold"]
            styles[6:9] = ["green", "cyan", ""]
        if line.figures["queued"]:
            styles[12] = "yellow"
        if line.figures["lost"]:
            styles[15] = "bold red"
        row = [Text(text, style=style) for text, style in zip(texts, styles, strict=True)]
        table.add_row(*(row if several else row[1:]))
    hidden = len(lines) - len(shown)
    foot = f"sorted by {view.key}{', reversed' if view.reverse else ''}  q quit  s S sort  r reverse"
    return Group(
        Text(escape(headline(domain, lines, interval)), style="bold", no_wrap=True, overflow="ellipsis"),
        Text(),
        table,
        Text(foot + (f"  {hidden} more" if hidden else ""), style="dim", no_wrap=True, overflow="ellipsis"),
    )


_HELP = """\
Show what each connection of a domain does, as a table that is renewed every few seconds.

\b
  SENT/s RECV/s BYTES/s   messages and bytes a second since the last time
  SENT RECEIVED BYTES     the same since the connection was made
  QUEUE QUEUED            messages that wait to be received, and bytes of payload
  POOL                    how much of the pool is in use
  LOST                    messages that found no room in the queue or the pool

A broadcast counts once where it is sent, and at everyone who receives it; messages of the bus itself count where they
are received. BYTES are of payload in vectors and memfds, sent and received. PID and COMMAND are those of HELLO.

On a terminal, q ends it, s and S choose what is sorted by, r reverses. Elsewhere, and with --once, tables are printed
one below the other.

With --json there is an object a line instead of each table: "realtime_ns", "domain" (its path), "interval" (seconds),
and "connections", with everything that the daemon tells of each (bus, endpoint, id, flags, uid, pid, comm, description,
names, sent, sent_bytes, received, received_bytes, queued, queued_bytes, lost, requests, owed, matches, pool_size,
pool_used, pool_slices), and the growth a second of the counters, such as "sent_per_second".

With --bus only the connections of that bus are shown. Only root may do that, as it tells of everybody's connections.
"""


@click.command("top", cls=Command, help=_HELP, short_help="Show what the connections of a domain do, as a live table.")
@click.option(
    "-i",
    "--interval",
    type=Seconds(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often it is renewed, and what rates are taken over.",
)
@click.option(
    "-s",
    "--sort",
    "key",
    type=click.Choice(list(SORT_KEYS)),
    default="rate",
    show_default=True,
    help="What is sorted by: most comes first, names and numbers of identity rise.",
)
@click.option("-r", "--reverse", is_flag=True, help="Sort the other way round.")
@click.option("--once", is_flag=True, help="Measure for one interval, print that, and end.")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N times.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Show N connections at most.")
@pass_context
def command(
    context: Context, interval: float, key: str, reverse: bool, once: bool, count: int | None, rows: int | None
) -> int:
    domain, buses = _where(context)
    output = context.output
    view = View(key, reverse)
    meter = Meter(domain, buses)
    meter.measure()
    course = Course()
    with stopped_by_signals(course):
        if sys.stdout.isatty() and sys.stdin.isatty() and not (once or output.json):
            _live(output, meter, view, interval, count, rows, course)
            return EXIT_OK
        left = 1 if once else count
        while left != 0 and _nap(interval, course):
            lines = sort(meter.measure(), view.key, reverse=view.reverse)
            _print(output, meter.domain, lines[:rows], lines, interval, final=once)
            left = None if left is None else left - 1
    return EXIT_OK


def _where(context: Context) -> tuple[str, list[str] | None]:
    """The domain that is meant, and the only bus of it.  Raises Failure."""
    if context.bus is None:
        return context.domain(), None
    place = context.place()
    if place.directory is None:
        raise Failure(f"'{place.endpoint}' is a lone endpoint; name its domain with --mount", EXIT_USAGE)
    return check_domain(os.path.dirname(os.path.abspath(place.directory))), [place.name]


def _nap(seconds: float, course: Course) -> bool:
    """Wait so long; whether nothing has asked for the end."""
    end = time.monotonic() + seconds
    while not course.is_stopped:
        left = end - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _NAP))
    return False


def _print(
    output: Output, domain: str, shown: Sequence[Line], lines: Sequence[Line], interval: float, *, final: bool
) -> None:
    if output.json:
        record: dict[str, Any] = {
            "realtime_ns": time.time_ns(),
            "domain": domain,
            "interval": interval,
            "connections": [line.as_json() for line in shown],
        }
        if final:
            output.document(record)
        else:
            output.record(record)
        return
    output.line(headline(domain, lines, interval), style="bold")
    output.table(_COLUMNS, [cells(line) for line in shown], right=_RIGHT)
    if not final:
        output.line()


@contextmanager
def _keys() -> Iterator[int]:
    """Standard input, giving every key at once and showing none."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _live(
    output: Output,
    meter: Meter,
    view: View,
    interval: float,
    count: int | None,
    rows: int | None,
    course: Course,
) -> None:
    from rich.live import Live

    console = output.console
    lines = meter.measure()
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + min(interval, 0.5)  # the first rates soon
        times = 0
        while not course.is_stopped:
            height = min(console.height, rows + _FRAME if rows is not None else console.height)
            live.update(screen(meter.domain, lines, view, interval, height), refresh=True)
            if count is not None and times >= count:
                return
            while (left := due - time.monotonic()) > 0 and not course.is_stopped:
                if select.select([keys], [], [], min(left, _NAP))[0]:
                    pressed = os.read(keys, 64).decode(errors="replace")
                    if not pressed or any(view.press(key) for key in pressed):
                        return
                    break
            else:
                due = time.monotonic() + interval
                lines = meter.measure()
                times += 1
