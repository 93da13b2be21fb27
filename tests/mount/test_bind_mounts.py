"""A domain seen through bind mounts and namespaces, and how it ends."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Connection, make_bus
from tests.conftest import DomainMount
from tests.support.actors import Actors, Link, errno_of, until
from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

POOL = 1 << 16
PATIENT = 240.0  # seconds
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x1000_0000, 0x2000_0000, 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def own(domain: DomainMount, actors: Actors) -> str:
    """The path of a bus that exists during the test."""

    def owner(link: Link) -> None:
        with make_bus(domain.path, "bound") as bus:
            link.say(bus.path)
            link.hear("the end", 3600)

    return str(actors(owner, name="bus owner").hear("its bus"))


def mounted(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=120)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for bind mounts, which are removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="bound-"))
    path.chmod(0o755)
    yield path
    for entry in path.iterdir():
        subprocess.run(["umount", "-l", str(entry)], stderr=subprocess.DEVNULL, timeout=120, check=False)
        entry.rmdir() if entry.is_dir() else entry.unlink()
    path.rmdir()


def test_an_endpoint_bound_elsewhere(
    domain_mount: DomainMount, actors: Actors, footprint: Footprint, place: Path
) -> None:
    """FS-1: two clients at a time by the second path, each with its own pool (FS-33), and one by the first"""
    path = own(domain_mount, actors)
    bound = place / "endpoint"
    bound.touch()
    mounted("--bind", path, str(bound))

    def play() -> None:
        with (
            Connection(bound, pool_size=POOL) as one,
            Connection(bound, pool_size=POOL) as two,
            Connection(path, pool_size=POOL) as third,
        ):
            for sender, receiver in ((one, two), (two, one), (third, one), (two, third)):
                text = b"%d to %d" % (sender.id, receiver.id)
                sender.send(receiver.id, text)
                with receiver.receive(PATIENT) as message:
                    assert message.data() == text
            assert bytes(one.pool) != bytes(two.pool)

    actors.run(play)
    subprocess.run(["umount", str(bound)], check=True, timeout=120)
    actors.clean_up()
    footprint.settles()


@pytest.mark.parametrize("users", [False, True], ids=["root", "user namespace"])
def test_a_bus_bound_into_namespaces(
    domain_mount: DomainMount, actors: Actors, footprint: Footprint, place: Path, users: bool
) -> None:
    """NS-1, META-6, META-7, META-20: clients inside and outside see each other by the ids of their own namespaces"""
    path = own(domain_mount, actors)
    bound = place / "bus"
    bound.mkdir()

    def outside(link: Link) -> None:
        with Connection(path, pool_size=POOL, attach_recv=c.ATTACH_ANY) as service:
            link.say((service.id, os.getpid()))
            inner = link.hear("who is inside")
            with service.receive(PATIENT) as message:
                pids, creds = message.metadata.pids, message.metadata.creds
                assert pids is not None and creds is not None
                assert (pids.pid, creds.uid) == (inner, 0)
                service.send(message.src_id, b"answer")

    service = actors(outside, name="outside")
    service_id, service_pid = service.hear("its id")

    def inside(link: Link) -> None:
        assert _libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) == 0
        mounted("--make-rprivate", "/")
        mounted("--bind", os.path.dirname(path), str(bound))
        if users:
            # uid 0 outside is 1000 inside.
            _become_mapped()
        assert _libc.unshare(_CLONE_NEWPID) == 0
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert os.getpid() == 1
                with Connection(bound / "bus", pool_size=POOL, attach_recv=c.ATTACH_ANY) as client:
                    client.send(service_id, b"question")
                    with client.receive(PATIENT) as message:
                        pids, creds = message.metadata.pids, message.metadata.creds
                        assert pids is not None and creds is not None
                        assert pids.pid == 0, "a process outside has no number inside"
                        assert creds.uid == (1000 if users else 0)
                    client.send(client.id, b"self")
                    with client.receive(PATIENT) as message:
                        assert message.metadata.pids is not None and message.metadata.pids.pid == 1
                code = 0
            finally:
                if code:
                    import traceback

                    traceback.print_exc()
                os._exit(code)
        link.say(pid)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    client = actors(inside, name="inside")
    # fork(2) returns the pid in the namespace of the parent, the outer one.
    service.say(client.hear("its child"))
    client.result()
    service.result()
    assert service_pid == service.pid
    actors.clean_up()
    footprint.settles()


def _become_mapped() -> None:
    """Enter a user namespace in which uid 0 of the outer one is 1000, with the maps written from outside."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{name}").write_text("1000 0 1\n")
        os._exit(0)
    os.close(reading)
    assert _libc.unshare(_CLONE_NEWUSER) == 0
    os.write(writing, b"x")
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_two_domains_share_nothing(domain_mount: DomainMount, actors: Actors, footprint: Footprint) -> None:
    """FS-1, SEND-16: names and ids are equal; an endpoint of the other domain is recognised nevertheless"""
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    other = DomainMount(path)
    try:
        other.wait_until_ready()

        def play() -> None:
            with (
                make_bus(domain_mount.path, "same") as one,
                make_bus(path, "same") as two,
                Connection(one, pool_size=POOL) as here,
                Connection(two, pool_size=POOL) as there,
            ):
                assert here.id == there.id == 1
                assert here.id128 != there.id128
                here.acquire("org.example.Only")
                assert there.list_names() == []
                there.send(1, b"to myself")
                assert here.recv() is None
                assert errno_of(here.send, 1, fds=[there]) == errno.EOPNOTSUPP

        actors.run(play)
        assert other.stop() == 0
        assert other.log() == ""
    finally:
        other.clean_up()
        path.rmdir()
    footprint.settles()


def test_umount_is_refused_while_files_are_open_and_a_lazy_one_is_not(
    domain_mount: DomainMount, actors: Actors
) -> None:
    """FS-29: everything works until the last close, which ends the daemon"""
    path = own(domain_mount, actors)

    def talk(link: Link) -> None:
        with Connection(path, pool_size=POOL) as one, Connection(path, pool_size=POOL) as two:
            link.say("up")
            link.hear("the lazy umount")
            for sender, receiver in ((one, two), (two, one)):
                sender.send(receiver.id, b"still", fds=[0])
                with receiver.receive(PATIENT) as message:
                    assert message.data() == b"still" and message.return_flags == 0

    client = actors(talk)
    client.hear("its connections")
    command = ["umount", str(domain_mount.path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 32 and "busy" in refused.stderr
    subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)
    client.say()
    client.result()
    assert domain_mount.process.poll() is None
    actors.clean_up()
    assert domain_mount.process.wait(120) == 0


def test_the_end_of_the_daemon_ends_blocked_calls(domain_mount: DomainMount, actors: Actors) -> None:
    """FS-29, SHUT-2"""
    path = own(domain_mount, actors)

    def wait(link: Link) -> tuple[int, int]:
        with Connection(path, pool_size=POOL) as client, Connection(path, pool_size=POOL) as silent:
            blocked = errno_of(client.call, silent.id, b"?", timeout=600)
            until("the connection to end", lambda: errno_of(client.list_names) == errno.ENOTCONN)
            return blocked, errno_of(silent.list_names)

    client = actors(wait)
    until("a blocked call", lambda: domain_mount.stats()["deferred"] == 1)
    began = time.monotonic()
    assert domain_mount.stop() == 0
    blocked, after = client.result()
    assert time.monotonic() - began < PATIENT
    assert blocked in (errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN)
    assert after == errno.ENOTCONN
