"""How long another user's calls take beside the scenarios: `python -m tests.stalls.beside [SCENARIO ...]`, as root.

Each gets a daemon of its own, in a mount namespace of its own.  User 4001 sends messages to himself on his own bus, one
after the other, before and while user 3500 does his worst on another bus; the slowest command of his counts.  That is
wall time, so the figures mean something only on an idle machine with compiled modules.  STALLS_SHARE=25 prepares a
quarter of the connections and names.  STALLS_REALTIME=1 is for a machine that is busy: the daemon and user 4001 run
before everything else while it is measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import select
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from kdbusfs.client import Connection, make_bus
from tests.conftest import DomainMount

from .measure import is_compiled
from .scenarios import SCENARIOS

ATTACKER = 3500
VICTIM = 4001
PREPARATION = 600.0  # seconds
PATIENCE = 300.0
QUIET = 0.5  # seconds without work of the daemon: the deed is over with all its effects
BASELINE = 3.0  # seconds
REALTIME = os.environ.get("STALLS_REALTIME") == "1"
PAUSE = 0.001  # seconds between two messages of the victim

_PHASE = struct.Struct("QQQ")  # messages; the slowest command, all commands in ns
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def fork(deed: Callable[[], object]) -> int:
    """A process that does it and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        deed()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


class Victim:
    """Somebody who measures his own calls.  Phases are counted apart."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount
        self._shared = mmap.mmap(-1, 4096)
        self._phase = 0
        self.pid = fork(self._live)

    def _live(self) -> NoReturn:
        become(VICTIM)
        kept = make_bus(self._mount, "victim")
        connection = Connection(kept.path, pool_size=1 << 16)
        while True:
            slowest = total = 0
            start = time.monotonic_ns()
            connection.send(connection.id, b"x" * 8)
            sent = time.monotonic_ns()
            message = connection.recv()
            received = time.monotonic_ns()
            assert message is not None
            message.free()
            freed = time.monotonic_ns()
            slowest = max(sent - start, received - sent, freed - received)
            total = freed - start
            at = 8 + _PHASE.size * struct.unpack_from("Q", self._shared)[0]
            count, worst, all_of_them = _PHASE.unpack_from(self._shared, at)
            _PHASE.pack_into(self._shared, at, count + 1, max(worst, slowest), all_of_them + total)
            time.sleep(PAUSE)

    def begin(self) -> None:
        """A new phase, once the call that is under way is over."""
        self._phase += 1
        struct.pack_into("Q", self._shared, 0, self._phase)

    def slowest(self) -> float:
        """The slowest command of this phase, in ms."""
        count, worst, _ = _PHASE.unpack_from(self._shared, 8 + _PHASE.size * self._phase)
        assert count, "the victim made no call"
        return int(worst) / 1e6

    def calls(self) -> int:
        return int(_PHASE.unpack_from(self._shared, 8 + _PHASE.size * self._phase)[0])


class Attacker:
    """A process that prepares a scenario, says so, and does it when it is told to."""

    def __init__(self, mount: Path, scenario: str) -> None:
        self._mount = mount
        self._scenario = scenario
        self._ready, self._say_ready = os.pipe()
        self._hear_go, self._go = os.pipe()
        self.pid = fork(self._live)
        os.close(self._say_ready)
        os.close(self._hear_go)

    def _live(self) -> None:
        become(ATTACKER)
        os.close(self._ready)
        os.close(self._go)
        bus = make_bus(self._mount, "attacker")
        deed = SCENARIOS[self._scenario](bus)
        os.write(self._say_ready, b"r")
        os.read(self._hear_go, 1)
        if deed is not None:
            deed()
            os.write(self._say_ready, b"d")
            os.read(self._hear_go, 1)
        os._exit(0)

    def _hear(self, patience: float) -> bytes:
        if not select.select([self._ready], [], [], patience)[0]:
            raise TimeoutError(f"{self._scenario}: nothing from the attacker in {patience:g} s")
        return os.read(self._ready, 1)

    def prepare(self) -> None:
        if not self._hear(PREPARATION):
            raise RuntimeError(f"{self._scenario}: the attacker ended")

    def attack(self) -> float:
        """Do it; in seconds."""
        start = time.monotonic()
        os.write(self._go, b"g")
        self._hear(PATIENCE)  # the answer, or the end of the process
        return time.monotonic() - start

    def end(self) -> None:
        os.close(self._go)
        os.waitpid(self.pid, 0)
        os.close(self._ready)


def run_first(*pids: int) -> None:
    """Let all threads that these processes have now run before those of everybody else."""
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(task), os.SCHED_FIFO, os.sched_param(1))


def cpu(pid: int) -> float:
    """Seconds of cpu that the process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def settle(domain: DomainMount, victim: Victim, patience: float = PATIENCE) -> None:
    """Wait until the daemon has nothing left to do but the victim's calls."""
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        calls, before = victim.calls(), cpu(domain.pid)
        time.sleep(QUIET)
        made = victim.calls() - calls
        # A call takes the daemon 0.1 ms, and some more on a busy machine.
        if cpu(domain.pid) - before <= 0.02 + made * 0.0005 and made and not domain.stats()["yielded"]:
            return
    raise TimeoutError(f"the daemon is still at work after {patience:g} s")


def measure(scenario: str) -> str:
    """A line of the table."""
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path)
    victim = attacker = None
    try:
        domain.wait_until_ready()
        victim = Victim(path)
        attacker = Attacker(path, scenario)
        attacker.prepare()
        settle(domain, victim)
        prepared = int(domain.stats()["longest_turn_us"]) / 1000
        if REALTIME:
            run_first(domain.pid, victim.pid)
        victim.begin()
        time.sleep(BASELINE)
        before = victim.slowest()
        used = cpu(domain.pid)
        victim.begin()
        took = attacker.attack()
        settle(domain, victim)
        beside = victim.slowest()
        used = cpu(domain.pid) - used
        longest = int(domain.stats()["longest_turn_us"]) / 1000
        return (
            f"{scenario:22} {before:8.1f} {beside:8.1f} {beside - before:8.1f} {longest:8.1f} {prepared:8.1f}"
            f" {used:8.2f} {took:8.2f}"
        )
    finally:
        if victim is not None:
            os.kill(victim.pid, 9)
            os.waitpid(victim.pid, 0)
        if attacker is not None:
            attacker.end()
        domain.clean_up()
        path.rmdir()


def main() -> int:
    if not is_compiled():
        print("the core is not compiled: run make venv first")
        return 1
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        print(f"no private mount namespace: {os.strerror(ctypes.get_errno())}")
        return 1
    _libc.mount(b"none", b"/sys/fs/fuse/connections", b"fusectl", 0, None)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("slowest command of another user, and longest turn, in ms; in s: cpu of the daemon, time of the deed")
    print(f"{'':22} {'before':>8} {'beside':>8} {'more':>8} {'turn':>8} {'earlier':>8} {'cpu':>8} {'deed':>8}")
    for name in sys.argv[1:] or SCENARIOS:
        print(measure(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
