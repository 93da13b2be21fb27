"""One short run of the benchmark: that it starts and ends its servers, and that its clients get what was sent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.figures import ROOT, Figures
from tests.bench.measures import BUSES, KDBUSFS, PINNED, SOCKETS

pytestmark = pytest.mark.mount

SECONDS = 300.0


def test_a_quick_run_measures_all_peers_that_can_be_had(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("BENCH_", "KDBUSFS_BENCH"))}
    environ["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.bench.run", "--quick", "--mode", "pinned", "--output", str(output)]
    done = subprocess.run(
        [*command, "--only", "call 8 B,memfd 1 KiB,oneway,broadcast 10"],
        cwd=ROOT,
        env=environ,
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
    for measure in ("call 8 B", "memfd 1 KiB", "oneway", "broadcast 10"):
        for peer in (*peers, *((SOCKETS,) if measure in ("call 8 B", "oneway") else ())):
            figure = figures.get(PINNED, measure, peer)
            assert figure is not None and figure > 0, (measure, peer)
    # There is nothing to compare with where neither of the others is installed, and the report says so.
    assert ("what is aimed at" in done.stdout) == (len(peers) > 1)
    assert all(f"left out: {peer}: " in done.stdout for peer in figures.about["missing"])
    assert list(tmp_path.iterdir()) == [output], "what a run makes goes with it"
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
