"""The trial: it uses every mount once before that is ready, leaves nothing behind, and its failures are reported."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, make_bus
from kdbusfs.fuse.mount import MAX_READ, visible_mount
from tests.support import confine, userns
from tests.support.commands import EXERCISE, KDBUSFS, complaint, done, kernel_mount, run, umount, wait_for

if TYPE_CHECKING:
    from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

USER = 1000
TRIED = r"kdbusfs: DEBUG: a client of its own took \d+\.\d ms: all of it worked\n"
DEBUG = ("-o", "loglevel=debug")
CONFINED = (sys.executable, confine.__file__)
BOUNDED = ("setpriv", "--bounding-set=-all,+sys_admin,+sys_ptrace,+dac_read_search,+sys_nice", "--no-new-privs")


def patched(*statements: str) -> list[str]:
    """The command `kdbusfs`, with Python statements that run before it."""
    lines = ["import sys, time", *statements, "from kdbusfs import cli", "sys.exit(cli.main(sys.argv[1:]))"]
    return [sys.executable, "-c", "\n".join(lines)]


@contextmanager
def foreground(*command: object) -> Iterator[subprocess.Popen[str]]:
    """A daemon with -f whose domain exists; the end of the block ends it, unless it has ended."""
    words = [str(word) for word in command]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(words[words.index("s") + 1])
            yield process
        finally:
            process.kill()


# It leaves nothing behind.


def test_nothing_of_it_is_left(domain_mount: DomainMount) -> None:
    """Nothing visible to clients, no used ids, no resources of the daemon."""
    first = domain_mount.stats()
    kept = ("users", "waiting", "open_files", "open_directories", "deferred", "jobs", "faults")
    assert not any(first[name] for name in kept) and first["buses"] == []
    assert not any(first[name] for name in ("ioctls", "polls", "notifies", "interrupts", "lost", "pidfds"))
    assert first["nodes"] == 8, "only what is always there"
    assert os.listdir(domain_mount.path) == ["control"]
    tasks = Path(f"/proc/{domain_mount.pid}/task")
    assert not "".join((each / "children").read_text() for each in tasks.iterdir())
    assert not [each for each in tasks.iterdir() if (each / "comm").read_text().startswith("user-")]


def test_first_client_gets_the_first_numbers(domain_mount: DomainMount) -> None:
    """BUS-9, FS-11, META-22"""
    with (
        make_bus(domain_mount.path, "x") as bus,
        Connection(bus.path, attach_send=c.ATTACH_ALL, attach_recv=c.ATTACH_ALL) as one,
    ):
        assert (one.id, one.creator_info().id) == (1, 1)
        assert os.stat(Path(bus.path).parent).st_ino == 3
        one.send(one.id, b"x")
        timestamp = one.receive(5).metadata.timestamp
        assert timestamp is not None and timestamp.seqnum == 2, "after the notification of its own HELLO"


# It runs with every way of mounting.


def test_in_the_background(place: Path) -> None:
    ended = run(*KDBUSFS, "s", place, *DEBUG)
    assert ended.returncode == 0 and re.search(TRIED, ended.stderr), ended.stderr
    umount(place)


@pytest.mark.parametrize(
    "options",
    ["rw", "ro", f"mode=550,uid={USER},gid={USER}", f"mode=500,uid={USER},gid={USER}", "max_user_fds=1"],
)
@pytest.mark.parametrize("start", [(), BOUNDED], ids=["root", "bounded"])
def test_a_daemon_that_may_only_enter_directories(place: Path, start: tuple[str, ...], options: str) -> None:
    """The daemon of a unit may enter all directories, but not write to them."""
    ended = run(*start, *KDBUSFS, "s", place, *DEBUG, "-o", options)
    assert ended.returncode == 0 and re.search(TRIED, ended.stderr), ended.stderr
    umount(place)


def test_where_no_descriptors_may_be_sent(place: Path) -> None:
    assert done(*KDBUSFS, "s", place, "-o", "max_user_fds=0") == ""
    umount(place)


def test_behind_a_closed_directory(place: Path) -> None:
    inside = place / "closed/domain"
    inside.mkdir(parents=True)
    os.chown(inside.parent, USER, USER)
    inside.parent.chmod(0o700)
    ended = run(*BOUNDED, *KDBUSFS, "s", inside, *DEBUG)
    assert ended.returncode == 0 and re.search(TRIED, ended.stderr), ended.stderr
    umount(inside)


def test_that_it_may_not_enter_is_no_failure(place: Path) -> None:
    bounds = BOUNDED[1].replace(",+dac_read_search", "")
    ended = run("setpriv", bounds, *KDBUSFS, "s", place, "-o", f"mode=500,uid={USER},gid={USER}")
    assert ended.returncode == 0 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("kdbusfs: WARNING: without CAP_DAC_READ_SEARCH clients of other users can map")
    umount(place)


@pytest.mark.parametrize("is_mounted", [False, True])
def test_with_a_descriptor(place: Path, is_mounted: bool) -> None:
    with open("/dev/fuse", "r+b", buffering=0) as file:
        number = file.fileno()
        if is_mounted:
            kernel_mount(place, number, f",allow_other,default_permissions,max_read={MAX_READ}")
        ended = run(*KDBUSFS, "s", place, *DEBUG, "-o", f"fd={number}", pass_fds=[number])
    assert ended.returncode == 0 and re.search(TRIED, ended.stderr), ended.stderr
    umount(place)


@pytest.mark.parametrize("mode", ["single", "range", "same"])
def test_in_a_user_namespace(private_mounts: None, mode: str) -> None:
    if run(*userns.command("single", "true")).returncode != 0:
        pytest.skip("ordinary users may not make user namespaces here")
    script = '"$@" && umount -l /mnt'
    ended = run(*userns.command(mode, "sh", "-c", script, "sh", *KDBUSFS, "s", "/mnt", *DEBUG))
    assert ended.returncode == 0 and re.search(TRIED, ended.stderr), ended.stderr


# Its findings.


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("process_vm_readv=EPERM", "making a bus failed: process_vm_readv is refused (Operation not permitted): a sec"),
        ("process_vm_readv=ENOSYS", "making a bus failed: process_vm_readv is refused (Function not implemented): a s"),
    ],
)
def test_a_daemon_that_can_serve_nobody_does_not_start(place: Path, call: str, said: str, foreground: bool) -> None:
    options = ["-f"] if foreground else []
    code, line = complaint(*CONFINED, call, *KDBUSFS, "s", place, *options)
    assert code == 2 and line.startswith(f"kdbusfs: no client can be served: {said}"), line
    assert visible_mount(str(place)) is None


def test_yama_that_forbids_everything_is_named(place: Path) -> None:
    """A seccomp filter acts as Yama, which may not be built in; and a scope of 3 would stay until the next boot."""
    command = patched(
        "import dataclasses, kdbusfs.trial as trial",
        "seen = trial.confinement",
        "trial.confinement = lambda: dataclasses.replace(seen(), yama=3)",
    )
    code, line = complaint(*CONFINED, "process_vm_readv=EPERM", "ptrace=EPERM", *command, "s", place)
    assert code == 2 and "kernel.yama.ptrace_scope is 3, which forbids it to everybody; set it to 2 or less" in line


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("ptrace=EPERM", "clients get no descriptors and can write to their own pools: ptrace is refused"),
        ("pidfd_getfd=EPERM", "no client can send descriptors: pidfd_getfd is refused"),
    ],
)
def test_a_feature_that_clients_lack_is_a_warning(place: Path, call: str, said: str) -> None:
    ended = run(*CONFINED, call, *KDBUSFS, "s", place)
    assert ended.returncode == 0 and ended.stderr.startswith(f"kdbusfs: WARNING: {said}"), ended
    assert ended.stderr.count("\n") <= 2, ended
    with make_bus(place, "x") as bus, Connection(bus.path) as one:
        one.send(one.id, b"works")
        assert one.receive(5).data() == b"works"
    umount(place)


def test_a_client_that_gets_no_answer(place: Path) -> None:
    command = patched(
        "from kdbusfs import patience, rehearsal",
        "patience.STILL = 1",
        "rehearsal._Client._hello = lambda self, endpoint: time.sleep(100)",
    )
    code, line = complaint(*command, "s", place)
    pattern = r"waited \d+ s, the last \d+ s without progress, at the step 'HELLO'"
    assert code == 2 and re.fullmatch(rf"kdbusfs: a client of the daemon's own got no answer: {pattern}", line), line
    assert visible_mount(str(place)) is None


def test_a_client_that_dies(place: Path) -> None:
    command = patched(
        "import os; from kdbusfs import rehearsal", "rehearsal._Client._hello = lambda self, endpoint: os._exit(1)"
    )
    code, line = complaint(*command, "s", place)
    assert (code, line) == (2, "kdbusfs: no client can be served: HELLO failed: Input/output error")


def test_what_it_shows_is_compared(place: Path) -> None:
    """A pool with other content than was stored, as with a kernel whose passthrough is broken."""
    command = patched("from kdbusfs import rehearsal", "rehearsal._map = lambda fd, protection, map=rehearsal._map: (")
    command[-1] = command[-1].replace("(\nfrom", "map(fd, protection) + 4096\nfrom")
    code, line = complaint(*command, "s", place)
    assert (code, line) == (2, "kdbusfs: no client can be served: mapping a pool failed: Input/output error")


def test_a_signal_during_the_trial_ends_the_daemon_as_ever(place: Path) -> None:
    command = patched("from kdbusfs import rehearsal", "rehearsal._Client._hello = lambda self, fd: time.sleep(100)")
    with subprocess.Popen([*command, "s", str(place), "-f"], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(place)
            process.send_signal(signal.SIGTERM)
            assert process.wait(240) == 0 and process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert visible_mount(str(place)) is None


def test_others_are_served_meanwhile(place: Path) -> None:
    command = patched("from kdbusfs import rehearsal", "rehearsal._Client._hello = lambda self, fd: time.sleep(100)")
    with foreground(*command, "s", place, "-f"):
        assert "all of it worked" in done(*EXERCISE, place, USER)
        assert os.listdir(place) == ["control"]


# A mount that ends during its trial.


def test_a_mount_that_ends_during_its_trial_ends_cleanly(place: Path) -> None:
    """The trial ends before its resources are closed; here it has not begun when the mount is gone."""
    command = patched(
        "from kdbusfs.rehearsal import Rehearsal",
        "from kdbusfs.fuse.server import Wakeup",
        "def late(*a, perform=Rehearsal.perform, **k):",
        "    time.sleep(0.5)",
        "    return perform(*a, **k)",
        "def slowly(wakeup, close=Wakeup.close):",
        "    close(wakeup)",
        "    time.sleep(1)",
        "Rehearsal.perform, Wakeup.close = late, slowly",
    )
    with foreground(*command, "s", place, "-f") as process:
        umount(place)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(30)) == ("", 0)


# How long a start may take.


def test_a_start_that_makes_progress_is_waited_for(place: Path) -> None:
    """It uses cpu time for several times as long as it may make no progress."""
    command = patched(
        "from kdbusfs import patience, daemon",
        "patience.STILL = 1",
        "def slowly(*a, made=daemon.Daemon.__init__, end=time.process_time() + 3, **k):",
        "    while time.process_time() < end: pass",
        "    made(*a, **k)",
        "daemon.Daemon.__init__ = slowly",
    )
    assert done(*command, "s", place) == ""
    umount(place)


def test_a_start_that_stands_still_is_given_up_and_says_where(place: Path) -> None:
    command = patched(
        "from kdbusfs import patience, daemon",
        "patience.STILL = 1",
        "daemon.Daemon.__init__ = lambda *a: time.sleep(100)",
    )
    code, line = complaint(*command, "s", place)
    pattern = rf"kdbusfs: the mount at '{place}' does not answer: waited \d+ s, the last \d+ s without progress, "
    assert code == 32 and re.fullmatch(pattern + "at the step 'loading the program'", line), line


@pytest.mark.parametrize("megabytes", [40, 60, 75, 85, 110, 200])
def test_a_lack_of_memory_is_reported(place: Path, megabytes: int) -> None:
    """At every step: before the mount, in a thread that does not start, in the client of the trial.

    Parts that continue without memory may have logged before; the last line says why the start failed.  libfuse drops a
    request that it has no memory for, so its client waits for the answer.
    """
    ended = run("bash", "-c", f'ulimit -v {megabytes * 1000}; exec "$@"', "-", *KDBUSFS, "s", place)
    if ended.returncode:
        line = ended.stderr.splitlines()[-1]
        if ended.returncode == 32:
            assert re.match(f"kdbusfs: the mount at '{place}' does not answer: waited ", line)
        else:
            assert ended.returncode == 2, ended
            assert re.match("kdbusfs: (the daemon cannot start|no client can be served): ", line)
        assert visible_mount(str(place)) is None
    else:
        umount(place)
