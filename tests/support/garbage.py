"""Finds reference cycles: objects of the program that only the cyclic collector would free."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator


class Garbage:
    """Cyclic garbage of a stretch: how many objects of each class of the program, known when the stretch is over."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()


@contextlib.contextmanager
def watched(package: str = "kdbusfs") -> Iterator[Garbage]:
    """Disable collection, and report the unreachable objects of `package` at the end."""
    garbage = Garbage()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield garbage
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for each in gc.garbage:
            name = f"{type(each).__module__}.{type(each).__qualname__}"
            if name.startswith(f"{package}."):
                garbage.found[name] += 1
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        if was_enabled:
            gc.enable()
