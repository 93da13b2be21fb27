"""A sign of life on the terminal for what takes longer than a second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

PATIENCE = 1.0
"""Seconds that pass before anything is shown."""


@contextmanager
def spinner(console: Console, doing: str) -> Iterator[None]:
    """Show `doing` with a moving mark, from `PATIENCE` on until the block ends; nothing of it stays."""
    status = Status(Text(doing), console=console)

    def start() -> None:
        status.start()
        console.show_cursor(True)  # Ctrl-C may end the process at once, and must not leave the terminal without one

    timer = threading.Timer(PATIENCE, start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
