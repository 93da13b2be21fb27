"""The log of errors that no client should be able to cause."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)


class ErrorLog:
    """Logs unexpected exceptions, each source line at most once a minute.

    count: of all of them.
    """

    INTERVAL: Final = 60.0  # s
    MAX_PLACES: Final = 256

    __slots__ = ("_clock", "_seen", "count")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, int], float] = {}
        self.count = 0

    def report(self, what: str) -> None:
        """Log the exception that is being handled."""
        self.count += 1
        trace = sys.exc_info()[2]
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno) if trace is not None else ("", 0)
        now = self._clock()
        last = self._seen.get(place)
        if last is None and len(self._seen) >= self.MAX_PLACES:
            return
        if last is None or now - last >= self.INTERVAL:
            self._seen[place] = now
            log.error("%s", what, exc_info=True)
