"""`make bench`: what kdbusfs costs, beside dbus-broker, dbus-daemon and plain sockets in the same run.

Every measure is made once a round by all peers in turn, with everything pinned to one cpu and under default
scheduling, by servers of their own for each.  Prints tables; all figures go to build/bench.json, or to
build/bench-partial.json if the run was a quick one or of some measures only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import peers as servers
from .figures import OUTPUT, PARTIAL_OUTPUT, Figures
from .measures import (
    BESIDE_LOOPS,
    DEFAULT,
    FLOOR,
    FRESH,
    KIB,
    MODES,
    PINNED,
    SOCKETS,
    Measure,
    chosen,
)
from .report import report

PATIENCE = 60.0  # seconds for one measurement, beyond which it has failed
BUDGET = 540.0  # seconds: no further round is begun that would not end by then
ROUNDS = 5
BUSY_LOOPS = 2
HELD_CONNECTIONS = 500
HELD_MESSAGES = 1024

Parts = dict[str, dict[str, float]]


class Bench:
    """Servers that run, and what is measured with them."""

    def __init__(self, directory: Path, names: tuple[str, ...], modes: tuple[str, ...]) -> None:
        self._directory = directory
        every = os.sched_getaffinity(0)
        self._cpus = {PINNED: {max(every)}, DEFAULT: every}
        self._launched = 0
        self._running: dict[tuple[str, str], servers.Peer] = {}
        try:
            for mode in modes:
                for name in names:
                    self._running[mode, name] = self._launch(name, mode)
        except BaseException:
            self.close()
            raise

    def _launch(self, name: str, mode: str) -> servers.Peer:
        self._launched += 1
        return servers.launch(name, self._directory / str(self._launched), self._cpus[mode])

    def close(self) -> None:
        for peer in self._running.values():
            peer.close()

    def measure(self, measure: Measure, mode: str, name: str) -> Parts:
        """Raises RuntimeError or subprocess.TimeoutExpired if it fails."""
        if measure.how == FRESH:
            return self._measure_fresh(measure, mode, name)
        peer = self._running[mode, name]
        if measure.how == BESIDE_LOOPS:
            with self._busy_loops(mode):
                return self._run(measure, mode, peer)
        return self._run(measure, mode, peer)

    def _run(self, measure: Measure, mode: str, peer: servers.Peer) -> Parts:
        done = subprocess.run(
            self._command(measure, peer, str(measure.operations), str(measure.seconds)),
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            preexec_fn=servers.before_exec(self._cpus[mode]),
            check=False,
            env={**os.environ, **({"BENCH_SERVER": str(peer.pid)} if peer.pid is not None else {})},
        )
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}")
        parts: Parts = json.loads(done.stdout)
        return parts

    @staticmethod
    def _command(measure: Measure, peer: servers.Peer, *rest: str) -> list[str]:
        program = servers.PROGRAMS / measure.program if measure.program else peer.program
        scenario = measure.scenario
        if peer.name == SOCKETS and scenario[:2] == ("call", "vec"):
            scenario = ("call", *scenario[2:])
        return [str(program), peer.where, *scenario, *rest]

    @contextlib.contextmanager
    def _busy_loops(self, mode: str) -> Iterator[None]:
        prepare = servers.before_exec(self._cpus[mode])
        loops = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=prepare) for _ in range(BUSY_LOOPS)
        ]
        try:
            time.sleep(0.2)
            yield
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()

    def _measure_fresh(self, measure: Measure, mode: str, name: str) -> Parts:
        """From the start of a server to the first answer; then what it needs of memory."""
        begin = time.monotonic()
        peer = self._launch(name, mode)
        try:
            first = self._run(measure, mode, peer)["first"]["at"] / 1e6
            parts = {"first call": {"median": (first - begin) * 1e6}, "memory": {"server": float(peer.memory())}}
            parts["memory"]["connection"] = self._held(peer, mode, "connections", HELD_CONNECTIONS)
            parts["memory"]["message"] = self._held(peer, mode, "queued", HELD_MESSAGES)
            return parts
        finally:
            peer.close()

    def _held(self, peer: servers.Peer, mode: str, what: str, count: int) -> float:
        """Bytes of the server's for each of `count` connections or messages."""
        command = [str(peer.program), peer.where, "hold", what, str(count), str(PATIENCE)]
        prepare = servers.before_exec(self._cpus[mode])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=prepare) as client:
            assert client.stdin is not None and client.stdout is not None
            if not client.stdout.readline():
                raise RuntimeError("no connections")
            time.sleep(0.05)
            before = peer.memory()
            client.stdin.write(b"\n")
            client.stdin.flush()
            if not client.stdout.readline():
                raise RuntimeError(f"too few {what}")
            time.sleep(0.05)
            return (peer.memory() - before) / count


def measure_all(figures: Figures, measures: list[Measure], rounds: int) -> None:
    """All rounds that fit."""
    names = tuple(dict.fromkeys(peer for measure in measures for peer in measure.peers))
    modes = tuple(mode for mode in MODES if any(mode in measure.modes for measure in measures))
    directory = Path(tempfile.mkdtemp(prefix="kdbusfs-bench-"))
    begin = time.monotonic()
    bench = None
    try:
        bench = Bench(directory, names, modes)
        for number in range(rounds):
            round_begin = time.monotonic()
            for measure in measures:
                if number < measure.rounds:
                    _turn(bench, figures, measure)
            figures.about["rounds"] = number + 1
            now = time.monotonic()
            if now - begin + (now - round_begin) > BUDGET:
                break
    finally:
        if bench is not None:
            bench.close()
        shutil.rmtree(directory, ignore_errors=True)
        figures.about["seconds"] = round(time.monotonic() - begin)
        print(file=sys.stderr)


def _turn(bench: Bench, figures: Figures, measure: Measure) -> None:
    print(".", end="", flush=True, file=sys.stderr)
    for mode in measure.modes:
        for peer in measure.peers:
            try:
                figures.add(mode, measure.name, peer, bench.measure(measure, mode, peer))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                figures.about["failed"].append(f"{measure.name}, {peer}, {mode}: {error}")


def _words(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if word not in known:
            raise SystemExit(f"{what} {word!r} is none of: {', '.join(known)}")
    return words or known


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else "")
    environ = os.environ.get
    parser.add_argument("--quick", action="store_true", default=environ("BENCH_QUICK", "") not in ("", "0"))
    parser.add_argument("--only", default=environ("BENCH_ONLY", ""), help="names of measures, or their beginnings")
    parser.add_argument("--mode", default=environ("BENCH_MODE", ""), help="pinned or default; both if empty")
    parser.add_argument("--peers", default=environ("BENCH_PEERS", ""), help="kdbusfs,dbus-broker,dbus-daemon,sockets")
    parser.add_argument("--rounds", type=int, default=int(environ("BENCH_ROUNDS", "0")))
    parser.add_argument("--output", type=Path, help=f"instead of {OUTPUT.name} and {PARTIAL_OUTPUT.name}")
    return parser.parse_args()


def main() -> int:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        print("the benchmark mounts file systems: it needs root and /dev/fuse", file=sys.stderr)
        return 1
    if "KDBUSFS_BENCH" not in os.environ:
        # Nothing that is mounted here is seen elsewhere, or stays.
        os.environ["KDBUSFS_BENCH"] = "1"
        command = ["unshare", "-m", "--propagation", "private", sys.executable, "-m", "tests.bench.run"]
        os.execvp(command[0], [*command, *sys.argv[1:]])
    arguments = _arguments()
    modes = _words(arguments.mode, MODES, "mode")
    versions, missing = servers.available(servers.build())
    known = tuple(versions)
    wanted = _words(arguments.peers, (*known, *missing), "peer")
    if arguments.peers:
        wanted = (*wanted, FLOOR)
    measures = chosen(arguments.only, modes, tuple(peer for peer in known if peer in wanted), arguments.quick)
    if not measures:
        print("nothing to measure; the names are in tests/bench/measures.py", file=sys.stderr)
        return 1
    about: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cpus, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // KIB**3} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "peers": {name: version for name, version in versions.items() if version},
        "missing": missing,
        "quick": arguments.quick,
        "partial": bool(arguments.only or arguments.mode or arguments.peers),
        "rounds": 0,
        "seconds": 0,
        "failed": [],
    }
    servers.raise_file_limit()
    figures = Figures(about)
    try:
        measure_all(figures, measures, arguments.rounds or (1 if arguments.quick else ROUNDS))
    except KeyboardInterrupt:
        print("stopped; these are the figures so far", file=sys.stderr)
        about["partial"] = True
    print(report(figures))
    figures.write(arguments.output or (PARTIAL_OUTPUT if about["partial"] or arguments.quick else OUTPUT))
    return 1 if about["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
