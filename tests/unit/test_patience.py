"""Who makes progress is waited for; who makes none, or computes for ever, is given up."""

from __future__ import annotations

import os
import time

from kdbusfs.patience import BUSY, Patience, cpu_time_of


class Process:
    """A clock and the processor time of a process, both set by the test."""

    def __init__(self) -> None:
        self.now = self.cpu = 100.0
        self.patience = Patience(lambda: self.cpu, lambda: self.now)

    def is_given_up_after(self, seconds: float, cpu: float = 0) -> bool:
        """Both go on evenly; asked every quarter of a second."""
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            self.cpu += cpu / seconds / 4
            if self.patience.is_over:
                return True
        return False


def test_an_idle_process_is_given_up() -> None:
    process = Process()
    assert not process.is_given_up_after(29)
    assert process.is_given_up_after(1.5)
    assert str(process.patience) == "waited 30 s, the last 30 s without progress, at the step 'its start'"


def test_a_step_is_progress() -> None:
    process = Process()
    for name in ("one", "two", "three"):
        assert not process.is_given_up_after(29)
        process.patience.step(name)
    assert process.is_given_up_after(31)
    assert str(process.patience) == "waited 117 s, the last 30 s without progress, at the step 'three'"


def test_processor_time_is_progress() -> None:
    """A machine that is so busy that the process gets a hundredth of it."""
    process = Process()
    assert not process.is_given_up_after(600, cpu=6)
    assert process.is_given_up_after(31)


def test_an_endless_computation_is_given_up() -> None:
    process = Process()
    assert process.is_given_up_after(2 * BUSY, cpu=2 * BUSY)
    assert process.now <= 100 + BUSY + 1


def test_next_step_may_compute_as_long_again() -> None:
    process = Process()
    for name in ("one", "two"):
        assert not process.is_given_up_after(BUSY - 10, cpu=BUSY - 10)
        process.patience.step(name)


def test_a_process_that_has_ended_makes_no_progress() -> None:
    def gone() -> float:
        raise ProcessLookupError

    assert not Patience(gone).is_over
    assert Patience(gone, factor=0).is_over


def test_cpu_time_of_a_process() -> None:
    before = cpu_time_of(os.getpid())
    end = time.process_time() + 0.03
    while time.process_time() < end:
        pass
    assert cpu_time_of(os.getpid()) - before >= 0.02
