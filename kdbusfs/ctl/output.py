"""Output of kdbusctl: tables, trees and text, or JSON.  Never prints a control character of a client.

On a terminal, output has colours and tables fit its width.  Otherwise nothing is truncated, and the same state gives
the same bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .escape import escape, jsonable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Colour = Literal["auto", "always", "never"]

_WIDE = 1 << 16  # columns if the output is not a terminal
_LEAST = 12  # minimum width of a truncated column


class Output:
    """Output of a command.  json: print JSON; colour: "auto" asks the terminal and NO_COLOR."""

    def __init__(self, *, json: bool = False, colour: Colour = "auto") -> None:
        self.json = json
        self.colour = colour

    # For people.

    @cached_property
    def console(self) -> Console:
        """Standard output."""
        return self._console(stderr=False)

    @cached_property
    def errors(self) -> Console:
        """Standard error."""
        return self._console(stderr=True)

    def _console(self, *, stderr: bool) -> Console:
        # Imported late: that takes longer than most commands.
        from rich.console import Console

        stream = sys.stderr if stderr else sys.stdout
        return Console(
            stderr=stderr,
            markup=False,
            highlight=False,
            emoji=False,
            soft_wrap=False,
            width=None if stream.isatty() else _WIDE,
            force_terminal=True if self.colour == "always" else None,
            no_color=True if self.colour == "never" else None,
            legacy_windows=False,
        )

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line of text, escaped."""
        if style is None or not (sys.stdout.isatty() or self.colour == "always"):
            sys.stdout.write(escape(text) + "\n")
            sys.stdout.flush()
            return
        from rich.text import Text

        self.console.print(Text(escape(text), style=style), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Print an object of rich.  Its text must be escaped already, and be in Text objects."""
        self.console.print(renderable)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        right: Sequence[str] = (),
        last_gives_way: bool = False,
    ) -> None:
        """A table.  right: columns that are aligned right.

        last_gives_way: on a narrow terminal, truncate the last column first.
        """
        lines = [[escape(cell) for cell in row] for row in rows]
        if not sys.stdout.isatty() and self.colour != "always":
            self._plain_table(columns, lines, right)
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(
                Text(column), justify="right" if column in right else "left", no_wrap=True, overflow="ellipsis"
            )
        if last_gives_way:
            others = [
                max(map(len, cells)) + 2 for cells in zip(columns[:-1], *[line[:-1] for line in lines], strict=True)
            ]
            table.columns[-1].max_width = max(_LEAST, self.console.width - sum(others) - 2)
        for line in lines:
            table.add_row(*[Text(cell) for cell in line])
        self.show(table)

    def _plain_table(self, columns: Sequence[str], lines: list[list[str]], right: Sequence[str]) -> None:
        widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
        for line in ([*columns], *lines):
            cells = [
                cell.rjust(width) if column in right else cell.ljust(width)
                for column, cell, width in zip(columns, line, widths, strict=True)
            ]
            sys.stdout.write("  ".join(cells).rstrip() + "\n")

    def fields(self, lines: Sequence[tuple[str, str]]) -> None:
        """Lines of label and text."""
        width = max(len(label) for label, _ in lines)
        bold = sys.stdout.isatty() or self.colour == "always"
        for label, text in lines:
            if not bold:
                sys.stdout.write(f"{label + ':':<{width + 1}} {escape(text)}\n")
                continue
            from rich.text import Text

            self.console.print(Text.assemble((f"{label + ':':<{width + 1}} ", "bold"), escape(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """A note on standard error, escaped."""
        sys.stderr.write(f"kdbusctl: {escape(text)}\n")
        sys.stderr.flush()

    @contextmanager
    def progress(self, doing: str) -> Iterator[None]:
        """Show a spinner on standard error, if that is a terminal and the block takes longer than a second."""
        if not sys.stderr.isatty():
            yield
            return
        from .progress import spinner

        with spinner(self.errors, escape(doing)):
            yield

    # For programs.

    def document(self, value: Any) -> None:
        """Print one JSON value: the whole output of the command."""
        indent = 2 if sys.stdout.isatty() else None
        sys.stdout.write(to_json(value, indent=indent) + "\n")
        sys.stdout.flush()

    def record(self, value: Any) -> None:
        """Print one JSON value as a line and flush: for commands that run on."""
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON in ASCII, without control characters; bytes that are not UTF-8 appear in strings as \\xNN."""
    return json.dumps(jsonable(value), indent=indent).replace("\x7f", "\\u007f")


def local_time(realtime_ns: int) -> str:
    """A time of CLOCK_REALTIME in local time, to the microsecond."""
    seconds, rest = divmod(realtime_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"
