"""Threads of the daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kdbusfs.native._native import lib


def new_thread(name: str, target: Callable[..., object], *args: Any) -> threading.Thread:
    """A new daemon thread that runs `target`, not started yet.

    It has the scheduling boost of the daemon, even if the reader that starts it lacks it at that moment.
    """

    def run() -> None:
        lib.kfs_boost_again()
        target(*args)

    return threading.Thread(target=run, name=name, daemon=True)
