"""A spinner on the terminal for what takes longer than a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

PATIENCE = 1.0
"""Seconds before the spinner appears."""


@contextmanager
def spinner(console: Console, doing: str) -> Iterator[None]:
    """Show `doing` with a spinner, from `PATIENCE` seconds on until the block ends."""
    status = Status(Text(doing), console=console)

    def start() -> None:
        status.start()
        console.show_cursor(True)  # Ctrl-C may kill the process, which must not leave the cursor hidden

    timer = threading.Timer(PATIENCE, start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
