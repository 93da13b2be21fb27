"""Holding something until a signal comes or a command ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from kdbusfs.ctl.failure import Failure
from kdbusfs.ctl.hold import Hold

PATIENCE = 240.0  # seconds


@pytest.fixture
def hold() -> Iterator[Hold]:
    with Hold() as held:
        yield held


def later(number: int) -> None:
    """Send a signal to this process once it waits."""
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_way_to_end(hold: Hold, number: int) -> None:
    later(number)
    assert hold.until_end() == 0


def test_the_exit_code_of_the_command(hold: Hold) -> None:
    hold.start(["sh", "-c", 'exit "$CODE"'], CODE="7")
    assert hold.until_end() == 7


def test_a_signal_that_ends_the_command(hold: Hold) -> None:
    hold.start(["sh", "-c", "kill -KILL $$"])
    assert hold.until_end() == 128 + signal.SIGKILL


def test_sigterm_is_passed_on_and_the_command_waited_for(hold: Hold) -> None:
    reading, writing = os.pipe()
    hold.start(
        ["sh", "-c", f"trap 'exit 5' TERM; echo >/proc/{os.getpid()}/fd/{writing}; while :; do sleep 0.01; done"]
    )
    os.read(reading, 1)
    later(signal.SIGTERM)
    assert hold.until_end() == 5
    os.close(reading)
    os.close(writing)


def test_a_command_that_is_not_there(hold: Hold) -> None:
    with pytest.raises(Failure) as caught:
        hold.start(["/nonexistent/command"])
    assert caught.value.exit_code == 127
    assert not hold.running


def test_files_wake_it(hold: Hold) -> None:
    reading, writing = os.pipe()
    assert hold.wait(reading, timeout=0) == []
    os.write(writing, b"x")
    assert hold.wait(reading, timeout=PATIENCE) == [reading]
    os.close(reading)
    os.close(writing)


def test_sighup_reads_again_and_check_ends(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbusfs.ctl import hold as module

    calls: list[str] = []

    def check() -> None:
        if "reload" in calls:
            raise Failure("gone")

    monkeypatch.setattr(module, "_CHECK_EVERY", 0.05)
    later(signal.SIGHUP)
    with pytest.raises(Failure, match="gone"):
        hold.until_end(check=check, reload=lambda: calls.append("reload"))
    assert calls == ["reload"]


def test_nothing_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd")), [signal.getsignal(number) for number in Hold._SIGNALS]
    start = time.monotonic()
    with Hold() as hold:
        hold.start(["sleep", "1000"])
        pid = hold._process.pid  # type: ignore[union-attr]
    assert time.monotonic() - start < PATIENCE
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert before == (len(os.listdir("/proc/self/fd")), [signal.getsignal(number) for number in Hold._SIGNALS])
