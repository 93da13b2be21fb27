"""A mount with a keeper goes on when its daemon is killed (docs/architecture/restart.md)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.client import Connection, make_bus
from kdbusfs.fuse.mount import visible_mount
from tests.support import old_kernel
from tests.support.actors import Actors
from tests.support.commands import KDBUSFS, done, mounted, wait_for_end
from tests.support.gauges import GAUGES
from tests.support.kept import PATIENCE, KeptMount
from tests.support.kill_storm import LOST, Storm

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(
        bool(old_kernel.prefix()) or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 9),
        reason="only Linux 6.9 gives a successor what was not answered",
    ),
]

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def domain_mount(private_mounts: None) -> Iterator[KeptMount]:
    """A domain with a keeper, which must end with 0 at SIGTERM."""
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = KeptMount(path)
    try:
        domain.wait_until_ready()
        yield domain
        assert domain.stop() == 0
        assert visible_mount(str(path)) is None
        assert "Traceback" not in domain.log()
    finally:
        domain.clean_up()
        path.rmdir()


def rests(domain: KeptMount) -> dict[str, object]:
    """The gauges, as soon as nobody waits for the daemon."""
    limit = time.monotonic() + PATIENCE
    while domain.waiting():
        assert time.monotonic() < limit, f"{domain.waiting()} requests wait"
        time.sleep(0.05)
    stats = domain.stats()
    return {name: stats[name] for name in GAUGES}


def test_what_was_open_is_reset_and_the_mount_goes_on(domain_mount: KeptMount, actors: Actors) -> None:
    """In another process: the daemon looks into those of its clients."""
    path = domain_mount.path

    def play() -> dict[str, object]:
        found: dict[str, object] = {}
        bus = make_bus(path, "x")
        mine = Connection(bus.path)
        mine.send(mine.id, b"still here")
        message = mine.receive(60)
        stats = os.open(path / ".kdbusfs/stats", os.O_RDONLY)
        directory = os.open(path, os.O_RDONLY)
        domain_mount.kill()
        found["poll"] = dict(select_on(mine.fileno())) == {mine.fileno(): select.POLLHUP | select.POLLERR}
        found["map"] = message.data()
        commands: dict[str, Callable[[], object]] = {
            "send": lambda: mine.send(mine.id, b"x"),
            "read": lambda: os.read(stats, 10),
            "list": lambda: os.listdir(directory),
            "path": lambda: Connection(bus.path),
        }
        for name, ask in commands.items():
            try:
                ask()
            except OSError as error:
                found[name] = errno.errorcode[error.errno or 0]
        for each in (mine, bus):
            each.close()
        with make_bus(path, "x") as again, Connection(again.path) as me:
            me.send(me.id, b"hello")
            found["again"] = me.receive(60).data()
        os.close(stats)
        os.close(directory)
        return found

    def select_on(fd: int) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return poll.poll()

    before = rests(domain_mount)
    assert actors.run(play) == {
        "poll": True,
        "map": b"still here",
        "send": "ECONNRESET",
        "read": "ESTALE",
        "list": "ESTALE",
        "path": "ENOENT",
        "again": b"hello",
    }
    assert rests(domain_mount) == before


def test_clients_that_are_blocked_when_daemons_are_killed_are_answered(
    domain_mount: KeptMount, actors: Actors
) -> None:
    """Those that come and go all the while find every descriptor that they get, and nothing is left."""
    before = rests(domain_mount)
    told = Storm(domain_mount, actors).run(5)
    assert set(told) <= {"right", "none", "cut off", *map(errno.errorcode.__getitem__, LOST)}
    assert told["right"]
    actors.clean_up()
    assert rests(domain_mount) == before


def test_a_daemon_that_is_killed_before_a_spare_one_waits_has_a_successor(domain_mount: KeptMount) -> None:
    domain_mount.wait_for_spare()
    for _ in range(2):
        assert domain_mount.outage() > 0
        time.sleep(0.2)  # a daemon that ends sooner has not started


def test_umount_ends_the_keeper_while_nobody_serves(domain_mount: KeptMount) -> None:
    domain_mount.wait_for_spare()
    spare = domain_mount.daemons[1]
    os.kill(spare, signal.SIGSTOP)
    domain_mount.kill()
    try:
        # umount(8) would look at the mount first.
        assert _libc.umount2(os.fsencode(domain_mount.path), 0) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.kill(spare, signal.SIGCONT)
    assert domain_mount.process.wait(PATIENCE) == 0


START_WITH = """import os, sys
for number, kept in enumerate(map(int, sys.argv[1:3]), 13):
    os.dup2(kept, number)
os.dup2(13, 3)
os.dup2(14, 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="kdbusfs-vault:kdbusfs-fuse")
os.execv(sys.argv[3], sys.argv[3:])
"""


def test_the_next_keeper_goes_on_with_what_the_service_manager_has_kept(domain_mount: KeptMount) -> None:
    before = mounted(domain_mount.path)
    manager = os.pidfd_open(domain_mount.pid)
    kept = {}
    for entry in os.scandir(f"/proc/{domain_mount.pid}/fd"):
        kept[os.readlink(entry.path).removesuffix(" (deleted)")] = int(entry.name)
    numbers = [pidfd_getfd(manager, kept[name]) for name in ("/memfd:kdbusfs-vault", "/dev/fuse")]
    daemons = domain_mount.daemons
    domain_mount.process.kill()
    for pid in daemons:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    command = [sys.executable, "-c", START_WITH, *map(str, numbers), *KDBUSFS, "test", str(domain_mount.path), "-f"]
    domain_mount.process.wait()
    domain_mount.process = subprocess.Popen([*command, "-o", "keep"], pass_fds=numbers)
    domain_mount.pid = domain_mount.process.pid
    for number in (*numbers, manager):
        os.close(number)
    # What the kernel has cached would be there at once.
    done("cat", domain_mount.path / ".kdbusfs/stats")
    assert mounted(domain_mount.path) == before


def pidfd_getfd(pidfd: int, number: int) -> int:
    found: int = _libc.syscall(438, pidfd, number, 0)
    assert found >= 0, os.strerror(ctypes.get_errno())
    return found


def test_in_the_background_it_leaves_nothing_behind(place: Path) -> None:
    assert done(*KDBUSFS, "source", place, "-o", "keep") == ""
    mount = mounted(place)
    done("umount", place)
    wait_for_end(mount)
    assert visible_mount(str(place)) is None
