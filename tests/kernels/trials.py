"""What is tried with each kernel."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.mount.test_selftests import TESTS

from . import results
from .disks import INSIDE, PATIENT_SCRATCH, SELFTESTS, SELFTESTS_SCRATCH, WAITS_FACTOR
from .machine import Ended, Machine
from .results import Outcome

# Seconds on a machine that is as fast as this one; they are scaled by how slow the machine is.
DEMO_LIMIT = 60.0
SELFTEST_LIMIT = 10.0
PATIENT_LIMIT = 30.0  # for a self-test that has failed, with longer waits
WITHOUT_WAITS = ("race-byebye-match",)  # 10,000 rounds take that long
FEW = 4  # that many may fail
BENCHMARK_LIMIT = 3.0  # they never end by themselves
TESTS_LIMIT = 900.0
CALLS_LIMIT = 60.0
MOST_SLOWNESS = 12.0  # what limits are scaled by at most
HELLOS = 20
CALLS = 100  # of each size

_LOOP = "import time; t = time.process_time(); sum(i * i for i in range(1000000)); print(time.process_time() - t)"
_BUSY = f"python3 -c '{_LOOP}'"


class Trials:
    """Runs the trials in `machine`; what programs print goes to files below `logs`."""

    def __init__(self, machine: Machine, logs: Path, slowness: float, selection: str = "") -> None:
        self._machine = machine
        self._logs = logs
        self._scale = max(1.0, min(slowness, MOST_SLOWNESS))
        self._selection = selection
        logs.mkdir(parents=True, exist_ok=True)

    def names(self) -> dict[str, Callable[[], Outcome]]:
        """The trials by name, in the order in which they are made."""
        return {
            "demo": self.demo,
            "selftests": self.selftests,
            "operations": lambda: self.tests("operations"),
            "mount": lambda: self.tests("mount"),
            "hellos": self.hellos,
        }

    def _run(self, name: str, script: str, limit: float) -> Ended:
        # The machine ends what takes too long; this side waits somewhat longer.
        seconds = limit * self._scale
        command = f"cd {INSIDE} && timeout -k 10 {seconds:.0f} sh -c {shlex.quote(script)}"
        return self._machine.run(command, patience=seconds + 120.0, log=self._logs / f"{name}.log")

    def demo(self) -> Outcome:
        """`make demo`: it ends with exit code 0."""
        ended = self._run("demo", "make demo", DEMO_LIMIT)
        last = (ended.output.strip().splitlines() or [""])[-1]
        if ended.code == 0:
            return Outcome(["demo"], complete=True, seconds=ended.seconds)
        return Outcome(failed={"demo": f"exit code {ended.code}: {last}"}, complete=True, seconds=ended.seconds)

    def selftests(self) -> Outcome:
        """kdbus' own tests, each with a time limit; what fails is run again with longer waits within the tests."""
        benchmarks = [name for name in TESTS if name.startswith("benchmark")]
        others = [name for name in TESTS if name not in benchmarks]
        run = f"TMPDIR={SELFTESTS_SCRATCH} python3 {SELFTESTS} /mnt/selftests --verbose"
        patient = run.replace(SELFTESTS_SCRATCH, PATIENT_SCRATCH)
        script = f"""
            mkdir -p /mnt/selftests
            .venv/bin/kdbusfs kernels /mnt/selftests -f >/run/daemon.log 2>&1 &
            tries=0
            until [ -e /mnt/selftests/control ] || [ $tries -ge {SELFTEST_LIMIT * self._scale:.0f} ]; do
                sleep 1; tries=$((tries + 1))
            done
            {run} --timeout {SELFTEST_LIMIT * self._scale:.0f} {" ".join(others)} | tee /run/first
            {run} --timeout {BENCHMARK_LIMIT * self._scale:.0f} {" ".join(benchmarks)}
            failed=$(sed -nE 's/^([a-z][a-z-]*) +(FAILED|HUNG).*/\\1/p' /run/first |
                grep -vxE '{"|".join(WITHOUT_WAITS)}')
            echo {results.PATIENT}
            [ -z "$failed" ] || {patient} --timeout {PATIENT_LIMIT * self._scale:.0f} $failed
            umount /mnt/selftests; cat /run/daemon.log"""
        ended = self._run("selftests", script, SELFTEST_LIMIT * len(TESTS) + PATIENT_LIMIT * FEW)
        outcome = results.parse_selftests(ended.output)
        results.note_patience(outcome, ended.output, WAITS_FACTOR)
        outcome.complete = outcome.total == len(TESTS)
        outcome.seconds = ended.seconds
        return outcome

    def tests(self, directory: str) -> Outcome:
        """Tests of the project; what fails is run again by itself."""
        deselect = "--deselect tests/mount/test_selftests.py"
        select = f"-k {shlex.quote(self._selection)}" if self._selection else ""
        pytest = ".venv/bin/python -m pytest -v -rfE --tb=short -p no:cacheprovider"
        ended = self._run(directory, f"{pytest} {deselect} {select} tests/{directory}", TESTS_LIMIT)
        outcome = results.parse_pytest(ended.output)
        outcome.seconds = ended.seconds
        if outcome.failed:
            (self._logs / "failed").write_text("\n".join(outcome.failed))
            files = " ".join(map(shlex.quote, outcome.failed))
            again = self._run(f"{directory}-again", f"{pytest} {files}", TESTS_LIMIT)
            outcome = results.merge_second_run(outcome, results.parse_pytest(again.output))
        return outcome

    def hellos(self) -> Outcome:
        """After how many of some HELLOs the client's descriptor is a read-only one, as it has to be (POOL-3)."""
        ended = self._run("hellos", f".venv/bin/python -m tests.kernels.hellos {HELLOS}", DEMO_LIMIT)
        outcome = results.parse_hellos(ended.output)
        outcome.seconds = ended.seconds
        return outcome

    def calls(self) -> dict[str, float]:
        """Microseconds of calls by what is called, all on one cpu."""
        ended = self._run("calls", f".venv/bin/python -m tests.kernels.calls {CALLS}", CALLS_LIMIT)
        return results.parse_calls(ended.output)


def slowness(machine: Machine) -> float:
    """How many times as long the machine takes for the same work as this one, by cpu time."""
    inside = machine.run(_BUSY, patience=300.0)
    outside = subprocess.run(["python3", "-c", _LOOP], capture_output=True, text=True, timeout=60, check=True)
    return float(inside.output) / float(outside.stdout)


def clock() -> str:
    """The time of day, for lines that tell what goes on."""
    return time.strftime("%H:%M:%S")
