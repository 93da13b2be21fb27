"""`make bench`: what kdbusfs costs, beside what FUSE and plain sockets cost in the same run.

Everything is measured in rounds that take turns, pinned to one cpu and under default scheduling, with a daemon
of its own for each.  Prints a table; all figures go to build/bench.json.  BENCH_QUICK=1: one short round, to see
that it works.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests/bench"
BUILD = ROOT / "build"
MEASURE = BUILD / "bench/measure"
FLOOR = BUILD / "bench/floor"

QUICK = os.environ.get("BENCH_QUICK", "") not in ("", "0")
ROUNDS = 1 if QUICK else 3
BUDGET = 165.0  # seconds: no further round is begun that would not end by then
PATIENCE = 60.0  # seconds for one measurement
IDLE_CONNECTIONS = 500
PINNED, DEFAULT = "pinned", "default"
MODES = (PINNED, DEFAULT)

KIB, MIB = 1 << 10, 1 << 20
MOUNT, FLOOR_FILE = "@mount", "@floor"

Figures = dict[str, dict[str, float]]


class Measure(NamedTuple):
    """One run of the program: `arguments` without the count, which is the number of operations."""

    name: str
    arguments: tuple[str, ...]
    count: int


def _size(size: int) -> str:
    if size >= MIB:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size >= KIB else f"{size} B"


VECTORS = {8: 15000, 4 * KIB: 15000, 32 * KIB: 15000, 256 * KIB: 4000, 2 * MIB: 1000}
"""Calls for each payload: long runs where the scheduler matters, short ones where the copy takes the time."""

MEMFDS = {KIB: 3000, MIB: 3000, 256 * MIB: 3000}
RECEIVERS = {1: 4000, 10: 1000, 100: 150}

MEASURES = (
    Measure("floor", ("floor", FLOOR_FILE), 15000),
    Measure("noop", ("noop", MOUNT), 15000),
    Measure("poll", ("poll", MOUNT), 15000),
    *(
        measure
        for size, count in VECTORS.items()
        for measure in (
            Measure(f"call vec {size}", ("call", MOUNT, "vec", str(size)), count),
            Measure(f"socket {size}", ("socket", str(size)), count),
        )
    ),
    *(Measure(f"call memfd {size}", ("call", MOUNT, "memfd", str(size)), count) for size, count in MEMFDS.items()),
    Measure("oneway", ("oneway", MOUNT, "256"), 16000),
    *(Measure(f"broadcast {n}", ("broadcast", MOUNT, str(n)), count) for n, count in RECEIVERS.items()),
    Measure("copy", ("copy", MOUNT), 200),
    Measure("connect", ("connect", MOUNT), 600),
)


class Target:
    """A domain and the floor, both served by processes of their own that may run on `cpus`."""

    def __init__(self, mode: str, directory: Path, cpus: set[int]) -> None:
        self.cpus = cpus
        self.mount = directory / mode
        self._floor = directory / f"{mode}-floor"
        self.mount.mkdir()
        self._floor.mkdir()
        command = [sys.executable, "-m", "kdbusfs", "bench", str(self.mount), "-f"]
        self.daemon = subprocess.Popen(command, cwd=ROOT, preexec_fn=self.pin)
        self._server = subprocess.Popen([FLOOR, str(self._floor)], preexec_fn=self.pin)
        _wait_for(self.mount / "control", self.daemon)
        _wait_for(self._floor / "file", self._server)

    def pin(self) -> None:
        os.sched_setaffinity(0, self.cpus)

    def run(self, measure: Measure) -> Figures:
        """Raises AssertionError with what the program says."""
        count = max(measure.count // 20, 60) if QUICK else measure.count
        places = {MOUNT: str(self.mount), FLOOR_FILE: str(self._floor / "file")}
        command = [str(MEASURE), *(places.get(each, each) for each in measure.arguments), str(count)]
        before = self.cpu_time()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, preexec_fn=self.pin, check=False
        )
        assert done.returncode == 0, f"{command} ends with {done.returncode}"
        figures: Figures = json.loads(done.stdout)
        figures["daemon"] = {"cpu": (self.cpu_time() - before) / count}
        return figures

    def cpu_time(self) -> float:
        """us that all threads of the daemon have run."""
        tasks = Path(f"/proc/{self.daemon.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1000

    def memory(self) -> int:
        """Bytes of the daemon's own."""
        status = Path(f"/proc/{self.daemon.pid}/status").read_text()
        return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("RssAnon"))

    def memory_of_connection(self) -> float:
        """Bytes of the daemon's for each connection that does nothing."""
        before = self.memory()
        command = [str(MEASURE), "idle", str(self.mount), str(IDLE_CONNECTIONS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clients:
            assert clients.stdout is not None
            assert clients.stdout.readline(), "connections fail"
            return (self.memory() - before) / IDLE_CONNECTIONS

    def close(self) -> None:
        self.daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(10)
        for path in (self.mount, self._floor):
            subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)
        for process in (self.daemon, self._server):
            if process.poll() is None:
                process.kill()
            process.wait(10)


def _wait_for(path: Path, server: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < limit:
        # Another process looks, which can be left behind if it is not answered.
        if subprocess.run(["test", "-e", path], check=False, timeout=10).returncode == 0:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} does not appear")


@contextlib.contextmanager
def targets() -> Iterator[dict[str, Target]]:
    """One target a mode."""
    cpus = os.sched_getaffinity(0)
    opened: dict[str, Target] = {}
    directory = Path(tempfile.mkdtemp(prefix="kdbusfs-bench-"))
    try:
        for mode in MODES:
            opened[mode] = Target(mode, directory, {max(cpus)} if mode == PINNED else cpus)
        yield opened
    finally:
        for target in opened.values():
            target.close()
        shutil.rmtree(directory, ignore_errors=True)


class Results:
    """Figures of all rounds; what is asked for is the median over the rounds."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, str, str, str], list[float]] = {}

    def add(self, mode: str, name: str, figures: Figures) -> None:
        for part, values in figures.items():
            for kind, value in values.items():
                self._rounds.setdefault((mode, name, part, kind), []).append(value)

    def get(self, mode: str, name: str, part: str = "time", kind: str = "median") -> float:
        return statistics.median(self._rounds[mode, name, part, kind])

    def as_json(self) -> dict[str, object]:
        return {
            " / ".join(key): {"median": statistics.median(all_), "rounds": all_} for key, all_ in self._rounds.items()
        }


def measure_all() -> tuple[Results, int]:
    """All rounds that fit; how many those were."""
    results = Results()
    begin = time.monotonic()
    rounds = 0
    with targets() as opened:
        while rounds < ROUNDS:
            round_begin = time.monotonic()
            for measure in MEASURES:
                for mode in MODES:
                    results.add(mode, measure.name, opened[mode].run(measure))
                print(".", end="", flush=True, file=sys.stderr)
            rounds += 1
            now = time.monotonic()
            if now - begin + (now - round_begin) > BUDGET:
                break
        results.add(PINNED, "memory", {"connection": {"bytes": opened[PINNED].memory_of_connection()}})
    print(file=sys.stderr)
    return results, rounds


Row = tuple[str, float, float, float | None, str]
"""What, median, 90 % point, what it is compared with, and the name of that."""


def rows(results: Results, mode: str) -> list[Row]:
    """The table of one mode, in us."""

    def both(name: str, part: str = "time") -> tuple[float, float]:
        return results.get(mode, name, part), results.get(mode, name, part, "p90")

    floor = results.get(mode, "floor", "noop")
    table: list[Row] = [
        ("no-op ioctl, C server", *both("floor", "noop"), None, ""),
        ("no-op ioctl (FREE of a wrong offset)", *both("noop"), floor, "C server"),
        ("poll, C server", *both("floor", "poll"), None, ""),
        ("poll", *both("poll"), results.get(mode, "floor", "poll"), "C server"),
    ]
    for size in VECTORS:
        table.append((f"call {_size(size)}, socket pair", *both(f"socket {size}"), None, ""))
        table.append(
            (f"call {_size(size)}", *both(f"call vec {size}"), results.get(mode, f"socket {size}"), "socket pair")
        )
    small = results.get(mode, f"call memfd {min(MEMFDS)}")
    for size in MEMFDS:
        against = (small, f"{_size(min(MEMFDS))} memfd") if size > min(MEMFDS) else (None, "")
        table.append((f"call with a memfd of {_size(size)}", *both(f"call memfd {size}"), *against))
    table.append(("message without reply, 256 B", *both("oneway"), None, ""))
    one = results.get(mode, "broadcast 1")
    for count in RECEIVERS:
        against = (one, "1 receiver") if count > 1 else (None, "")
        table.append((f"broadcast to {count}, a delivery", *both(f"broadcast {count}"), *against))
    opened = results.get(mode, "connect", "open_close")
    table.append(("open and close", *both("connect", "open_close"), None, ""))
    table.append(("open, HELLO, FREE, close", *both("connect", "open_hello_free_close"), opened, "open and close"))
    return table


def copies(results: Results, mode: str) -> list[str]:
    """How often the bytes of a message are copied, by the slope of its time over its size."""
    time_of = {
        name: results.get(mode, "copy", name) for name in ("send_1_mib", "send_2_mib", "readv_1_mib", "readv_2_mib")
    }
    sent = time_of["send_2_mib"] - time_of["send_1_mib"]
    read = time_of["readv_2_mib"] - time_of["readv_1_mib"]
    copied = results.get(mode, "copy", "memcpy_2_mib") / 2
    return [
        f"SEND: {sent:.1f} us for each further MiB; one process_vm_readv {read:.1f}, one memcpy {copied:.1f}",
        f"ratio to one process_vm_readv {sent / read:.2f}, to one memcpy {sent / copied:.2f}",
    ]


def report(results: Results, rounds: int) -> str:
    """All that a person wants to know."""
    lines = []
    for mode in MODES:
        place = "all on one cpu" if mode == PINNED else "default scheduling"
        lines += [f"{place}, us" + " " * 60, f"{'':40} {'median':>9} {'90 %':>9}  ratio"]
        lines[-2] = lines[-2].rstrip()
        for what, median, p90, against, name in rows(results, mode):
            ratio = f"{median / against:5.2f} of {name}" if against else ""
            lines.append(f"{what:40} {median:9.2f} {p90:9.2f}  {ratio}".rstrip())
        lines += ["", *copies(results, mode), ""]
    cpu = results.get(PINNED, "call vec 8", "daemon", "cpu")
    second = 1e6 / results.get(PINNED, "oneway")
    memory = results.get(PINNED, "memory", "connection", "bytes")
    lines.append(f"cpu time of the daemon a call of 8 B: {cpu:.1f} us; messages without reply a second: {second:.0f}")
    lines.append(f"memory of the daemon a connection: {memory / KIB:.1f} KiB; rounds: {rounds}")
    return "\n".join(lines)


def build() -> None:
    """The C programs."""
    MEASURE.parent.mkdir(parents=True, exist_ok=True)
    for program in (MEASURE, FLOOR):
        source = SOURCES / f"{program.name}.c"
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Wextra", f"-I{ROOT}/kdbusfs/include", "-o", program, source], check=True
        )


def main() -> int:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        print("the benchmark mounts file systems: it needs root and /dev/fuse", file=sys.stderr)
        return 1
    if "KDBUSFS_BENCH" not in os.environ:
        # Nothing that is mounted here is seen elsewhere, or stays.
        os.environ["KDBUSFS_BENCH"] = "1"
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])
    build()
    results, rounds = measure_all()
    print(report(results, rounds))
    data = {"rounds": rounds, "quick": QUICK, "figures": results.as_json()}
    (BUILD / "bench.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
