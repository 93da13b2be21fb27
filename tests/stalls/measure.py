"""Measures the longest stretch of a command of the core between two places where others can be served."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from kdbusfs.core import send
from tests.support.core_client import World

LIMIT_MS = 5.0
"""What a turn of the core may take, in ms of cpu."""
RESULTS = Path(os.environ.get("STALLS_RESULTS", "build/stalls.json"))

found: dict[str, tuple[float, float]] = {}
"""Longest stretch and whole command of each scenario, in ms of cpu."""


def is_compiled() -> bool:
    """Whether the core is what mypyc made of it; measured otherwise, the figures mean nothing."""
    return not send.__file__.endswith(".py")


def stretch(world: World, what: str, command: Callable[[], object], *, rounds: int = 3) -> None:
    """Carry out `command` several times, each with the same effect, and hold the shortest of the longest stretches.

    The machine is shared: a cache that somebody else has emptied is no fault of the core.
    """
    turn = world.host.turn
    best = whole = float("inf")
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        try:
            turn.watch()
            start = time.thread_time_ns()
            command()
            whole = min(whole, (time.thread_time_ns() - start) / 1e6)
            turn.stop()
        finally:
            gc.enable()
        best = min(best, turn.longest_ns / 1e6)
    report(what, best, whole)
    assert best <= LIMIT_MS, f"{what}: {best:.2f} ms of cpu in one turn"


def report(what: str, longest: float, whole: float) -> None:
    """Note a figure for the table at the end."""
    found[what] = (longest, whole)


def write_table() -> str:
    """The table of what was measured, the longest first; also written to RESULTS."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"{'cpu of one turn':>16} {'whole':>10}"]
    for what, (longest, whole) in sorted(found.items(), key=lambda item: -item[1][0]):
        lines.append(f"{longest:13.2f} ms {whole:7.1f} ms  {what}")
    return "\n".join(lines)
