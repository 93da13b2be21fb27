"""POOL-3: memory that a client can write to is never that of a pool, and never reaches others."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Access, Connection, make_bus, raw
from tests.conftest import DomainMount
from tests.support import c_program, features
from tests.support.actors import Actors, Link, errno_of
from tests.support.forked import Fatal, forked

pytestmark = pytest.mark.mount

PAGE = os.sysconf("SC_PAGESIZE")
POOL = 16 * PAGE
PATIENT = 30.0  # seconds
BOTH = mmap.PROT_READ | mmap.PROT_WRITE
NAME = "org.example.Bank"
_libc = ctypes.CDLL(None, use_errno=True)


def own(domain: DomainMount, actors: Actors) -> str:
    """The path of a bus that exists during the test."""

    def owner(link: Link) -> None:
        with make_bus(domain.path, "written", access=c.MAKE_ACCESS_WORLD) as bus:
            link.say(bus.path)
            link.hear("the end", 3600)

    return str(actors(owner, name="bus owner").hear("its bus"))


def be_traced(link: Link, path: str) -> int:
    """Trace this process as strace and gdb do: then no other process can stop it."""
    assert _libc.ptrace(0, 0, 0, 0) == 0
    return os.open(path, os.O_RDWR)


def have_no_numbers_left(link: Link, path: str) -> int:
    fd = os.open(path, os.O_RDWR)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return fd


def outlive_the_mount_point(link: Link, path: str) -> int:
    """Remove the mount point, so that the daemon cannot reach its own mount by path."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    link.say("holds a directory")
    link.hear("the lazy umount")
    fd = os.open("bus", os.O_RDWR, dir_fd=directory)
    os.close(directory)
    return fd


KEEPERS: dict[str, Callable[[Link, str], int]] = {
    "traced": be_traced,
    "no numbers left": have_no_numbers_left,
    "unmounted": outlive_the_mount_point,
}


def see_it_end(domain: DomainMount, actors: Actors, how: str) -> None:
    """Without a mount point the daemon ends by itself with the last file (FS-29)."""
    if KEEPERS[how] is outlive_the_mount_point:
        actors.clean_up()
        assert domain.process.wait(PATIENT) == 0


def writable(fd: int) -> Iterator[memoryview]:
    """All writable maps of the whole pool that `fd` allows."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        yield raw.map_memory(fd, POOL, protection=BOTH)


def fatal(play: Callable[[], object]) -> int:
    """The signal that ends a child in which `play` runs; 0 if none does."""
    try:
        forked(play)
    except Fatal as end:
        return end.number
    return 0


def test_pool_3_nothing_from_before_hello_is_the_pool(domain_mount: DomainMount, actors: Actors) -> None:
    """Duplicates and maps from before HELLO show an empty file, before and after a message; the duplicates still belong
    to the connection (HELLO)."""
    path = own(domain_mount, actors)

    def play() -> None:
        fd = os.open(path, os.O_RDWR)
        duplicate = os.dup(fd)
        early = raw.map_memory(fd, POOL, protection=BOTH)
        private = raw.map_memory(fd, POOL, protection=BOTH, flags=mmap.MAP_PRIVATE)
        with Connection(fd, pool_size=POOL) as connection:
            assert os.fstat(connection.fd).st_size == (0 if features.has_passthrough() else POOL)  # docs/deviations.md
            for text in (b"one", b"two"):
                late = raw.map_memory(duplicate, POOL, protection=BOTH)
                for view in (early, late, private):
                    for at in (0, 2 * PAGE, POOL - 1):
                        assert fatal(lambda view=view, at=at: view[at]) == signal.SIGBUS  # type: ignore[misc]
                        assert fatal(lambda view=view, at=at: view.__setitem__(at, 65)) == signal.SIGBUS  # type: ignore[misc]
                    address, _ = raw.pin(view)
                    assert _libc.madvise(ctypes.c_void_p(address), POOL, 9) != 0, "MADV_REMOVE"
                connection.send(connection.id, text)
                assert select.select([duplicate], [], [], PATIENT)[0]
                with connection.receive(PATIENT) as message:
                    assert message.data() == text
            for change in (
                lambda: os.ftruncate(duplicate, POOL),
                lambda: os.posix_fallocate(duplicate, 0, POOL),
                lambda: os.pwrite(duplicate, b"x", 0),
                lambda: os.copy_file_range(os.open("/proc/self/exe", os.O_RDONLY), duplicate, PAGE, 0, 0),
            ):
                assert errno_of(change) in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV)
            assert errno_of(raw.map_memory, connection.fd, POOL, protection=BOTH) == errno.EACCES

    actors.run(play)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("uid", [0, 61000], ids=["root", "a user"])
def test_pool_3_no_way_of_writing_reaches_it(
    domain_mount: DomainMount, actors: Actors, uid: int
) -> None:
    """Neither by descriptors for reading nor by files opened before; tests/hostile/pool_maps.c tries all ways"""
    path = own(domain_mount, actors)
    done = c_program.run("pool_maps", path, uid=uid)
    assert done.returncode == 0 and "nothing wrote to the pool" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("uid", [0, 61000], ids=["root", "a user"])
def test_hello_10_said_elsewhere_or_closed_meanwhile(domain_mount: DomainMount, actors: Actors, uid: int) -> None:
    """HELLO-10, CLOSE-1: HELLO by another process, by a child of vfork, and while a sibling closes the descriptor; the
    program tests/hostile/hello_elsewhere.c checks the results"""
    done = c_program.run("hello_elsewhere", own(domain_mount, actors), uid=uid)
    assert done.returncode == 0 and "all as it should be" in done.stdout, done.stdout + done.stderr


@pytest.mark.old_kernels
@pytest.mark.parametrize("how", KEEPERS)
def test_pool_3_a_client_that_keeps_its_file_changes_only_its_own_view(
    domain_mount: DomainMount, actors: Actors, how: str
) -> None:
    """RECV-13: the client sees its pool nevertheless, which is correct unless it writes there"""
    path = own(domain_mount, actors)

    def play(link: Link) -> None:
        fd = KEEPERS[how](link, path)
        early = raw.map_memory(fd, POOL, protection=BOTH)
        with Connection(fd, pool_size=POOL) as connection:
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            assert os.fstat(fd).st_size == POOL
            for number in range(40):
                text = b"%d to myself" % number * 300
                connection.send(connection.id, text)
                with connection.receive(PATIENT) as message:
                    assert message.data() == text
                if number == 20:
                    for view in (early, *writable(fd)):
                        view[:] = b"A" * POOL

    client = actors(play)
    if KEEPERS[how] is outlive_the_mount_point:
        client.hear("its directory")
        subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)
        client.say()
    client.result()
    see_it_end(domain_mount, actors, how)


@pytest.mark.parametrize("how", KEEPERS)
def test_act_4_a_message_that_waits_for_its_service_is_not_changed_by_the_activator(
    domain_mount: DomainMount, actors: Actors, how: str
) -> None:
    """ACT-4, POOL-7: whatever files and maps the activator has"""
    path = own(domain_mount, actors)
    text = b"pay 1 to bob; ok" * 500

    def activate(link: Link) -> None:
        policy = [Access(c.POLICY_ACCESS_WORLD, 0, c.POLICY_TALK)]
        fd = KEEPERS[how](link, path)
        views = [raw.map_memory(fd, POOL, protection=BOTH)]
        with Connection(fd, pool_size=POOL, flags=c.HELLO_ACTIVATOR, name=NAME, policy=policy):
            views += writable(fd)
            link.say("ready")
            link.hear("that the message is there")
            for view in views:
                view[:] = b"A" * POOL
            link.say("forged")
            link.hear("the end")

    activator = actors(activate)
    opened = path
    if KEEPERS[how] is outlive_the_mount_point:
        activator.hear("its directory")
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        opened = f"/proc/{os.getpid()}/fd/{directory}/bus"
        subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)
        activator.say()
    activator.hear("its connection")

    def play() -> None:
        with Connection(opened, pool_size=POOL) as sender, Connection(opened, pool_size=POOL) as service:
            sender.send(NAME, text)
            activator.say()
            activator.hear("its forgery")
            service.acquire(NAME)
            with service.receive(PATIENT) as message:
                assert (message.src_id, message.data()) == (sender.id, text)

    actors.run(play)
    activator.say()
    activator.result()
    if opened != path:
        os.close(directory)
    see_it_end(domain_mount, actors, how)


def test_fs_33_no_client_sees_the_data_of_another_in_the_same_inode(
    domain_mount: DomainMount, actors: Actors, tmp_path: Path
) -> None:
    """A bind-mounted endpoint file has one inode for all: only a traced client itself sees the copies of its pool"""
    path = own(domain_mount, actors)
    bound = tmp_path / "endpoint"
    bound.touch()
    subprocess.run(["mount", "--bind", path, str(bound)], check=True, timeout=120)
    secret = b"a secret of the traced client" * 200

    def traced(link: Link) -> None:
        with Connection(be_traced(link, str(bound)), pool_size=POOL) as connection:
            connection.send(connection.id, secret)
            with connection.receive(PATIENT) as message:
                assert message.data() == secret
                link.say("received")
                link.hear("the end")

    def busy() -> None:
        assert errno_of(os.open, bound, os.O_RDWR) == errno.EBUSY

    def look() -> None:
        fd = os.open(bound, os.O_RDWR)
        assert os.fstat(fd).st_size == 0
        view = raw.map_memory(fd, POOL, protection=BOTH)
        for at in range(0, POOL, PAGE):
            assert fatal(lambda at=at: view[at]) == signal.SIGBUS  # type: ignore[misc]
        with Connection(fd, pool_size=POOL) as connection:
            assert secret[:10] not in bytes(connection.pool)

    try:
        client = actors(traced)
        client.hear("its message")
        actors.run(busy)
        client.say()
        client.result()
        actors.run(look)
    finally:
        subprocess.run(["umount", "-l", str(bound)], check=True, timeout=120)
