"""Threads of the daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kdbusfs.native._native import lib


def new_thread(name: str, target: Callable[..., object], *args: Any) -> threading.Thread:
    """A thread that runs `target`, not started yet.  The process does not wait for it to end.

    It runs with the precedence of the daemon, also where the reader starts it, which may be without at that moment.
    """

    def run() -> None:
        lib.kfs_precedence_again()
        target(*args)

    return threading.Thread(target=run, name=name, daemon=True)
