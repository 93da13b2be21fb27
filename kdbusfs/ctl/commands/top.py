"""kdbusctl top: the traffic of the connections of a domain, as a live table."""

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
from ..follow import FollowState, stopped_by_signals
from ..locations import check_domain
from ..options import Command
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
_FRAME: Final = 4  # lines of the screen beside the connections
_NAP: Final = 0.1  # seconds within which a signal is noticed


def amount(value: float) -> str:
    """A number of bytes in at most five characters: 999, 1.2K, 340K, 5.0M."""
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
    """A rate per second: 0, 0.5, 12, 3400."""
    return "0" if not value else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def cells(line: Line) -> list[str]:
    """A line of the table, not escaped."""
    stats = line.stats
    name, *others = stats["names"] or [stats["description"] or "-"]
    role = "".join(f" ({HELLO_FLAGS[flag]})" for flag in HELLO_FLAGS if stats["flags"] & flag & _SPECIAL)
    if stats["family"] != "v3":
        role += f" [{stats['family']}]"
    return [
        stats["bus"],
        str(stats["id"]),
        name + (f"+{len(others)}" if others else "") + role,
        str(stats["pid"] or "-"),
        user_name(stats["uid"]),
        stats["comm"] or "-",
        rate(line.rates["sent"]),
        rate(line.rates["received"]),
        amount(line.bytes),
        str(stats["sent"]),
        str(stats["received"]),
        amount(stats["sent_bytes"] + stats["received_bytes"]),
        str(stats["queued"]),
        amount(stats["queued_bytes"]),
        f"{100 * stats['pool_used'] / stats['pool_size']:.0f}%",
        str(stats["lost"]),
    ]


def headline(domain: str, lines: Sequence[Line], interval: float) -> str:
    """Totals in one line.  Messages are counted at their senders; notifications are not counted."""
    buses = len({line.stats["bus"] for line in lines})
    sent = sum(line.rates["sent"] for line in lines)
    size = sum(line.rates["sent_bytes"] for line in lines)
    queued = sum(line.stats["queued"] for line in lines)
    lost = sum(line.stats["lost"] for line in lines)
    return (
        f"{domain}  {len(lines)} connection{'s'[: len(lines) != 1]} on {buses} bus{'es' if buses != 1 else ''}, "
        f"{rate(sent)} messages/s, {amount(size)} bytes/s, {queued} queued, {lost} lost  "
        f"({time.strftime('%H:%M:%S')}, every {interval:g} s)"
    )


@dataclass(slots=True)
class View:
    """The sort key and order of the table."""

    key: str
    reverse: bool

    def press(self, key: str) -> bool:
        """Process a key press.  Returns whether it asks to quit."""
        keys = list(SORT_KEYS)
        if key == "s":
            self.key = keys[(keys.index(self.key) + 1) % len(keys)]
        elif key == "S":
            self.key = keys[keys.index(self.key) - 1]
        elif key == "r":
            self.reverse = not self.reverse
        return key in ("q", "Q", "\x1b", "\x04")


def screen(domain: str, lines: Sequence[Line], view: View, interval: float, rows: int) -> RenderableType:
    """Render the screen, `rows` high."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    several = len({line.stats["bus"] for line in lines}) > 1
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
        if line.stats["queued"]:
            styles[12] = "yellow"
        if line.stats["lost"]:
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
Show the traffic of each connection of a domain, as a table that is updated every few seconds.

\b
  SENT/s RECV/s BYTES/s   messages and bytes per second since the last update
  SENT RECEIVED BYTES     totals since HELLO
  QUEUE QUEUED            queued messages, and their bytes of payload
  POOL                    bytes of the pool in use
  LOST                    messages lost because the queue or the pool was full

A broadcast counts once at its sender, and at each receiver; notifications count at their receivers. BYTES are payload
in vectors and memfds, sent and received. PID and COMMAND are as of HELLO. [last] behind a name: the connection speaks
the last ABI of kdbus, of August 2015.

On a terminal: q quits, s and S change the sort key, r reverses the order. Otherwise, and with --once, tables are
printed one below the other.

With --json, prints one object per line instead of a table: "realtime_ns", "domain" (its path), "interval" (seconds),
and "connections", with all statistics of each (bus, endpoint, id, family, flags, uid, pid, comm,
description, names, sent, sent_bytes, received, received_bytes, queued, queued_bytes, lost, requests, owed, matches,
pool_size, pool_used, pool_slices), and the rates of its counters, such as "sent_per_second".

With --bus, shows only the connections of that bus. Needs root, because it shows connections of all users.
"""


@click.command("top", cls=Command, help=_HELP, short_help="Show the traffic of a domain's connections as a table.")
@click.option(
    "-i",
    "--interval",
    type=Seconds(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Update interval, which rates are averaged over.",
)
@click.option(
    "-s",
    "--sort",
    "key",
    type=click.Choice(list(SORT_KEYS)),
    default="rate",
    show_default=True,
    help="Sort key: counters descend, names and ids ascend.",
)
@click.option("-r", "--reverse", is_flag=True, help="Reverse the order.")
@click.option("--once", is_flag=True, help="Measure for one interval, print the table, and end.")
@click.option("-c", "--count", type=click.IntRange(1), metavar="N", help="End after N updates.")
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Show at most N connections.")
@pass_context
def command(
    context: Context, interval: float, key: str, reverse: bool, once: bool, count: int | None, rows: int | None
) -> int:
    domain, buses = _where(context)
    output = context.output
    view = View(key, reverse)
    meter = Meter(domain, buses)
    meter.measure()
    state = FollowState()
    with stopped_by_signals(state):
        if sys.stdout.isatty() and sys.stdin.isatty() and not (once or output.json):
            _live(output, meter, view, interval, count, rows, state)
            return EXIT_OK
        left = 1 if once else count
        while left != 0 and _nap(interval, state):
            lines = sort(meter.measure(), view.key, reverse=view.reverse)
            _print(output, meter.domain, lines[:rows], lines, interval, final=once)
            left = None if left is None else left - 1
    return EXIT_OK


def _where(context: Context) -> tuple[str, list[str] | None]:
    """The selected domain, and the names of its buses to show, or None for all.  Raises Failure."""
    if context.bus is None:
        return context.domain(), None
    location = context.location()
    if location.directory is None:
        raise Failure(f"'{location.endpoint}' is not below its domain; select the domain with --mount", EXIT_USAGE)
    return check_domain(os.path.dirname(os.path.abspath(location.directory))), [location.name]


def _nap(seconds: float, state: FollowState) -> bool:
    """Sleep.  Returns False as soon as a signal asks for the end."""
    end = time.monotonic() + seconds
    while not state.is_stopped:
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
    """Within the block, standard input is unbuffered and does not echo."""
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
    state: FollowState,
) -> None:
    from rich.live import Live

    console = output.console
    lines = meter.measure()
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + min(interval, 0.5)  # show the first rates soon
        times = 0
        while not state.is_stopped:
            height = min(console.height, rows + _FRAME if rows is not None else console.height)
            live.update(screen(meter.domain, lines, view, interval, height), refresh=True)
            if count is not None and times >= count:
                return
            while (left := due - time.monotonic()) > 0 and not state.is_stopped:
                if select.select([keys], [], [], min(left, _NAP))[0]:
                    pressed = os.read(keys, 64).decode(errors="replace")
                    if not pressed or any(view.press(key) for key in pressed):
                        return
                    break
            else:
                due = time.monotonic() + interval
                lines = meter.measure()
                times += 1
