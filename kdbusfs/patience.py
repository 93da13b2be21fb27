"""Timeouts by progress: a wait goes on as long as the other process makes progress."""

from __future__ import annotations

import time
from collections.abc import Callable

STILL = 30.0
"""Seconds without progress after which the wait is given up."""

BUSY = 300.0
"""Seconds of cpu time that one step may take: an endless loop is not progress."""

_LEAST = 0.01  # seconds of cpu time that count as progress


class Patience:
    """Timeout for a process.  Progress is a step that it reports, or cpu time that it uses.

    cpu_time: returns its cpu time in seconds, or raises OSError if the process is gone; factor: multiplies STILL.
    """

    def __init__(
        self, cpu_time: Callable[[], float], clock: Callable[[], float] = time.monotonic, factor: float = 1.0
    ) -> None:
        self._cpu_time = cpu_time
        self._still = factor * STILL
        self._clock = clock
        self._began = self._progress = clock()
        self._cpu = self._cpu_at_step = self._used()
        self.at = "its start"

    def step(self, name: str) -> None:
        """The process has reached step `name`."""
        self.at = name
        self._progress = self._clock()
        self._cpu = self._cpu_at_step = self._used()

    @property
    def is_over(self) -> bool:
        """Whether to give up.  Must be called several times within the allowed time without progress."""
        used = self._used()
        if used - self._cpu >= _LEAST:
            self._cpu = used
            self._progress = self._clock()
        return self._clock() - self._progress >= self._still or used - self._cpu_at_step >= BUSY

    @property
    def interval(self) -> float:
        """Seconds after which to check again."""
        return min(1.0, self._still / 8)

    def __str__(self) -> str:
        """Text for the log: how long the wait took, and the step."""
        now = self._clock()
        waited, still = now - self._began, now - self._progress
        return f"waited {waited:.0f} s, the last {still:.0f} s without progress, at the step '{self.at}'"

    def _used(self) -> float:
        try:
            return self._cpu_time()
        except OSError:
            return 0.0


def cpu_time_of(pid: int) -> float:
    """The cpu time of a process, in seconds.  Raises OSError."""
    # The clock id as clock_getcpuclockid(3) computes it.
    return time.clock_gettime(~pid << 3 | 2)
