"""How long something that is waited for may take: as long as it makes progress."""

from __future__ import annotations

import time
from collections.abc import Callable

STILL = 30.0
"""Seconds without any progress after which it is given up."""

BUSY = 300.0
"""Seconds of processor time that one step may take: what computes for ever makes no progress either."""

_LEAST = 0.01  # seconds of processor time that count as progress


class Patience:
    """Waits for a process: a step that it reports is progress, and so is the processor time that it takes.

    cpu_time: gives that in seconds, or raises OSError for a process that is no more; factor: of STILL.
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
        """It has come to `name`."""
        self.at = name
        self._progress = self._clock()
        self._cpu = self._cpu_at_step = self._used()

    @property
    def is_over(self) -> bool:
        """Whether to give up.  To be asked several times in the while that it may stand still."""
        used = self._used()
        if used - self._cpu >= _LEAST:
            self._cpu = used
            self._progress = self._clock()
        return self._clock() - self._progress >= self._still or used - self._cpu_at_step >= BUSY

    @property
    def interval(self) -> float:
        """Seconds after which to ask next."""
        return min(1.0, self._still / 8)

    def __str__(self) -> str:
        """For how long it was waited for, and where it is."""
        now = self._clock()
        waited, still = now - self._began, now - self._progress
        return f"waited {waited:.0f} s, the last {still:.0f} s without progress, at the step '{self.at}'"

    def _used(self) -> float:
        try:
            return self._cpu_time()
        except OSError:
            return 0.0


def cpu_time_of(pid: int) -> float:
    """Processor time that a process has taken, in seconds.  Raises OSError."""
    # As clock_getcpuclockid(3) makes it.
    return time.clock_gettime(~pid << 3 | 2)
