"""A short run of the benchmark: it starts and ends its servers, and its clients receive what was sent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.figures import ROOT, Figures
from tests.bench.measures import BUSES, KDBUSFS, PINNED, SOCKETS

pytestmark = pytest.mark.mount

SECONDS = 300.0
MEASURES = ("call 8 B", "memfd 1 KiB", "oneway", "broadcast 10", "bus1 1 0 B", "bus1 100 0 B", "bus1 1 1 MiB")
LAST = {"last call 8 B": "time", "last commands": "RECV"}
"""The part of a measure that there has to be."""
WITH_SOCKETS = ("call 8 B", "oneway", "bus1 1 0 B", "bus1 100 0 B", "bus1 1 1 MiB")
BENCH = [sys.executable, "-m", "tests.bench.run", "--quick"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, unlike `tmp_path`: dbus-daemon allows 99 bytes for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="kdbusfs-") as path:
        yield Path(path)


def _environ(directory: Path) -> dict[str, str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("BENCH_", "KDBUSFS_BENCH"))}
    return {**environ, "TMPDIR": str(directory)}


def test_a_quick_run_measures_all_peers_that_can_be_had(directory: Path) -> None:
    output = directory / "bench.json"
    done = subprocess.run(
        [*BENCH, "--mode", "pinned", "--output", str(output), "--only", ",".join((*MEASURES, *LAST))],
        cwd=ROOT,
        env=_environ(directory),
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = Figures.read(output)
    assert figures.about["failed"] == []
    peers = [peer for peer in BUSES if peer not in figures.about["missing"]]
    assert KDBUSFS in peers
    for measure in MEASURES:
        expected = (KDBUSFS,) if measure.startswith("bus1") else peers
        for peer in (*expected, *((SOCKETS,) if measure in WITH_SOCKETS else ())):
            figure = figures.get(PINNED, measure, peer)
            assert figure is not None and figure > 0, (measure, peer)
    for measure, part in LAST.items():
        figure = figures.get(PINNED, measure, KDBUSFS, part)
        assert figure is not None and figure > 0, measure
    assert "call 8 B, last ABI against v3 (pinned)" in done.stdout
    # If no peer is installed there is nothing to compare with, and the report says so.
    assert ("call 8 B, against dbus" in done.stdout) == (len(peers) > 1)
    assert all(f"left out: {peer}: " in done.stdout for peer in figures.about["missing"])
    assert list(directory.iterdir()) == [output], "what a run makes goes with it"
    assert str(directory) not in Path("/proc/mounts").read_text()


def test_a_server_that_does_not_start_ends_the_run_with_its_reason(directory: Path) -> None:
    if shutil.which("dbus-daemon") is None or not Path("/usr/include/systemd/sd-bus.h").exists():
        pytest.skip("dbus-daemon or libsystemd-dev is not installed")
    far = directory / ("d" * 60) / ("d" * 40)
    far.mkdir(parents=True)
    done = subprocess.run(
        [*BENCH, "--mode", "pinned", "--only", "oneway", "--peers", "dbus-daemon", "--output", str(far / "bench.json")],
        cwd=ROOT,
        env=_environ(far),
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "dbus-daemon does not start: " in done.stderr and "too long" in done.stderr
    assert list(far.iterdir()) == [], "what a run makes goes with it"
