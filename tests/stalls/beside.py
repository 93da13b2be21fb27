"""How long another user's calls take beside the scenarios: `python -m tests.stalls.beside [SCENARIO ...]`, as root.

Each gets a daemon of its own, in a mount namespace of its own.  User 4001 sends messages to himself on his own bus, one
after the other, before and while user 3500 does his worst on another bus; the slowest command of his counts: by wall
time, which means something only on an idle machine, and by the cpu time that the daemon spent until it was answered
(`work`), which does not depend on what else runs.  Both need compiled modules.  STALLS_SHARE=25 prepares a quarter of
the connections and names.
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

from . import bus1  # noqa: F401  # adds to SCENARIOS
from .measure import is_compiled
from .scenarios import SCENARIOS

ATTACKER = 3500
VICTIM = 4001
PREPARATION = 600.0  # seconds
PATIENCE = 300.0
QUIET = 0.5  # seconds without work of the daemon: the deed is over with all its effects
BASELINE = 3.0  # seconds
PAUSE = 0.001  # seconds between two messages of the victim

_PHASE = struct.Struct("QQQ")  # messages; in ns the slowest command, and the most cpu time of the daemon in one
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


def cpu_clock(pid: int) -> int:
    """The clock of all cpu time of a process: clock_getcpuclockid(3)."""
    return ~pid << 3 | 2


class Stopwatch:
    """The longest of several stretches: in ns of wall time, and of cpu time of the daemon."""

    def __init__(self, daemon: int) -> None:
        self._clock = cpu_clock(daemon)
        self._began = (0, 0)
        self.slowest = 0
        self.work = 0

    def begin(self) -> None:
        self._began = (time.monotonic_ns(), time.clock_gettime_ns(self._clock))

    def end(self) -> None:
        self.slowest = max(self.slowest, time.monotonic_ns() - self._began[0])
        self.work = max(self.work, time.clock_gettime_ns(self._clock) - self._began[1])


class Victim:
    """Somebody who measures his own calls.  Phases are counted apart."""

    def __init__(self, mount: Path, daemon: int) -> None:
        self._mount = mount
        self._daemon = daemon
        self._shared = mmap.mmap(-1, 4096)
        self._phase = 0
        self.pid = fork(self._live)

    def _live(self) -> NoReturn:
        # At once back from a call, or the work that the daemon does for others afterwards would count.
        with contextlib.suppress(PermissionError):  # in a control group that has no time for that
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        become(VICTIM)
        kept = make_bus(self._mount, "victim")
        connection = Connection(kept.path, pool_size=1 << 16)
        while True:
            watch = Stopwatch(self._daemon)
            watch.begin()
            connection.send(connection.id, b"x" * 8)
            watch.end()
            watch.begin()
            message = connection.recv()
            watch.end()
            assert message is not None
            watch.begin()
            message.free()
            watch.end()
            at = 8 + _PHASE.size * struct.unpack_from("Q", self._shared)[0]
            count, slowest, work = _PHASE.unpack_from(self._shared, at)
            _PHASE.pack_into(self._shared, at, count + 1, max(slowest, watch.slowest), max(work, watch.work))
            time.sleep(PAUSE)

    def begin(self) -> None:
        """A new phase, once the call that is under way is over."""
        self._phase += 1
        struct.pack_into("Q", self._shared, 0, self._phase)

    def worst(self) -> tuple[float, float]:
        """In ms, of this phase: the slowest command, and the most cpu time of the daemon in one."""
        count, slowest, work = _PHASE.unpack_from(self._shared, 8 + _PHASE.size * self._phase)
        assert count, "the victim made no call"
        return int(slowest) / 1e6, int(work) / 1e6

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
        victim = Victim(path, domain.pid)
        attacker = Attacker(path, scenario)
        attacker.prepare()
        settle(domain, victim)
        prepared = int(domain.stats()["longest_turn_us"]) / 1000
        victim.begin()
        time.sleep(BASELINE)
        before, work_before = victim.worst()
        used = cpu(domain.pid)
        victim.begin()
        took = attacker.attack()
        settle(domain, victim)
        beside, work = victim.worst()
        used = cpu(domain.pid) - used
        longest = int(domain.stats()["longest_turn_us"]) / 1000
        return (
            f"{scenario:22} {before:8.1f} {beside:8.1f} {work_before:8.1f} {work:8.1f} {longest:8.1f} {prepared:8.1f}"
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
    print("in ms: slowest command of another user, most cpu time of the daemon in one (work), longest turn;")
    print("in s: cpu of the daemon, time of the deed")
    heads = ("before", "beside", "work", "beside", "turn", "earlier", "cpu", "deed")
    print(" ".join([" " * 22, *(f"{head:>8}" for head in heads)]))
    for name in sys.argv[1:] or SCENARIOS:
        print(measure(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
