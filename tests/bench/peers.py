"""The servers that `make bench` measures, each a process of its own: kdbusfs, two D-Bus brokers, the floors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .figures import ROOT
from .measures import BROKER, DAEMON, FLOOR, KDBUSFS, SOCKETS

SOURCES = ROOT / "tests/bench"
PROGRAMS = ROOT / "build/bench"

_START_PATIENCE = 20.0  # seconds
_END_PATIENCE = 10.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

# What is compiled: the program, its sources and what else the compiler is told.
_PROGRAMS: dict[str, tuple[str, ...]] = {
    "kdbus": ("scenarios.c", "kdbus.c"),
    "dbus": ("scenarios.c", "dbus.c", "-lsystemd"),
    "raw": ("raw.c",),
    "bus1": ("bus1.c",),
    "kdbus-last": ("scenarios.c", "kdbus.c", "-DBENCH_LAST"),
    "raw-last": ("raw.c", "-DBENCH_LAST"),
    "floor": ("floor.c",),
    "broker": ("broker.c", "-lsystemd"),
}

# Everything is allowed, and no limit is in the way: much like the session bus that comes with dbus-daemon.
_LIMITS = (
    "max_incoming_bytes",
    "max_outgoing_bytes",
    "max_message_size",
    "max_completed_connections",
    "max_incomplete_connections",
    "max_connections_per_user",
    "max_names_per_connection",
    "max_match_rules_per_connection",
    "max_replies_per_connection",
)
_DAEMON_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <auth>EXTERNAL</auth>
  <listen>unix:path={socket}</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
  {limits}
</busconfig>
"""


def build() -> dict[str, str]:
    """Compile what is not up to date; give the programs that cannot be for lack of sd-bus, with the reason."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for program, parts in _PROGRAMS.items():
        files = [str(SOURCES / part) if part.endswith(".c") else part for part in parts]
        done = _compile(PROGRAMS / program, files)
        if done is None or done.returncode == 0:
            continue
        if "systemd/sd-bus.h" not in done.stderr:
            raise RuntimeError(f"{' '.join(done.args)}\n{done.stderr}")
        failed[program] = "libsystemd-dev is not installed"
    return failed


def _compile(program: Path, files: list[str]) -> subprocess.CompletedProcess[str] | None:
    """None if there is nothing to do.  Another run may use the old program meanwhile."""
    sources = [*SOURCES.glob("*.[ch]"), *(ROOT / "kdbusfs/include").glob("*.h")]
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return None
    fresh = program.with_suffix(f".{os.getpid()}")
    command = ["cc", "-O2", "-Wall", "-Wextra", f"-I{ROOT}/kdbusfs/include", "-o", str(fresh), *files]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        fresh.replace(program)
    return done


def raise_file_limit() -> None:
    """A thousand connections are as many descriptors, here and in the servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def before_exec(cpus: set[int]) -> Callable[[], None]:
    """For a process that may run on `cpus` only and that ends with this one."""

    def prepare() -> None:
        os.sched_setaffinity(0, cpus)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return prepare


class Peer:
    """A server that runs.

    program: what measures it; where: how that finds it; pid: the process whose cpu time and memory count, None for
    sockets, which have no server.
    """

    def __init__(self, name: str, program: str, where: str) -> None:
        self.name = name
        self.program = PROGRAMS / program
        self.where = where
        self.pid: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._mount: Path | None = None
        self._complaints: Path | None = None

    def start(
        self, command: list[str], cpus: set[int], mount: Path | None = None, complaints: Path | None = None
    ) -> None:
        """`complaints`: where its stderr goes, unless it shares this one's."""
        with contextlib.ExitStack() as files:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                preexec_fn=before_exec(cpus),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=None if complaints is None else files.enter_context(complaints.open("w")),
                text=True,
                process_group=0,  # Ctrl-C is for the benchmark, which then ends its servers in order
            )
        self._complaints = complaints
        self.pid = self._process.pid
        self._mount = mount

    def first_line(self) -> str:
        """What the server says when it is ready."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            reason = self._complaints.read_text().strip() if self._complaints is not None else ""
            raise RuntimeError(f"{self.name} does not start" + (f": {reason}" if reason else ""))
        return line

    def memory(self) -> int:
        """Bytes of its own: neither files, nor pools, nor what lies in sockets."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))

    def close(self) -> None:
        """End the server.  Its mount goes even if it does not want to."""
        process = self._process
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_PATIENCE)
        if self._mount is not None:
            subprocess.run(["umount", "-l", self._mount], check=False, stderr=subprocess.DEVNULL)
        if process.poll() is None:
            process.kill()
            process.wait(_END_PATIENCE)
        assert process.stdout is not None
        process.stdout.close()


def launch(name: str, directory: Path, cpus: set[int]) -> Peer:
    """Start a server below `directory`, which is new and its own.  It may not answer yet: what measures it waits."""
    directory.mkdir()
    socket = directory / "socket"
    if name == KDBUSFS:
        peer = Peer(name, "kdbus", str(directory))
        command = [sys.executable, "-m", "kdbusfs", "bench", str(directory), "-f", "-o", "attach_flags_mask=0x3fff"]
        peer.start(command, cpus, mount=directory)
    elif name == BROKER:
        peer = Peer(name, "dbus", str(socket))
        peer.start([str(PROGRAMS / "broker"), str(socket)], cpus)
        peer.pid = int(peer.first_line())
    elif name == DAEMON:
        config = directory / "config.xml"
        limits = "\n  ".join(f'<limit name="{limit}">1000000000</limit>' for limit in _LIMITS)
        config.write_text(_DAEMON_CONFIG.format(socket=socket, limits=limits))
        peer = Peer(name, "dbus", str(socket))
        # It complains where even root may not open as many files as it would like to.
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"]
        peer.start(command, cpus, complaints=directory / "complaints")
        peer.first_line()
    elif name == FLOOR:
        peer = Peer(name, "raw", str(directory / "file"))
        peer.start([str(PROGRAMS / "floor"), str(directory)], cpus, mount=directory)
        _wait_for(directory / "file")
    else:
        peer = Peer(name, "raw", "-")
    return peer


def _wait_for(path: Path) -> None:
    limit = time.monotonic() + _START_PATIENCE
    while time.monotonic() < limit:
        # Another process looks, which can be left behind if it is not answered.
        if subprocess.run(["test", "-e", path], check=False, timeout=_START_PATIENCE).returncode == 0:
            return
        time.sleep(0.02)
    raise RuntimeError(f"{path} does not appear")


def available(failed: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The peers that can be had with their versions, and those that cannot with the reason."""
    versions = {KDBUSFS: _version([sys.executable, "-m", "kdbusfs"]), SOCKETS: "", FLOOR: ""}
    missing: dict[str, str] = {}
    for name in (BROKER, DAEMON):
        if shutil.which(name) is None:
            missing[name] = f"{name} is not installed"
        elif failed:
            missing[name] = next(iter(failed.values()))
        else:
            versions[name] = _version([name])
    return versions, missing


def _version(command: list[str]) -> str:
    done = subprocess.run([*command, "--version"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[0].split()[-1]
