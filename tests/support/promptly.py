"""Asserts that an action does not block, on machines with any load."""

from __future__ import annotations

import time
from collections.abc import Callable

ATTEMPTS = 10


def seconds(action: Callable[[], object]) -> float:
    """The duration of `action`, in seconds."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def promptly(play: Callable[[], float], limit: float) -> None:
    """Repeat `play`, which returns a duration in seconds, until that is below `limit`.

    Blocking code delays every attempt, load on the machine only some.  AssertionError if no attempt was fast enough.
    """
    took: list[float] = []
    while not took or took[-1] >= limit:
        assert len(took) < ATTEMPTS, f"each attempt took {limit:g} s or more: {took}"
        took.append(play())
