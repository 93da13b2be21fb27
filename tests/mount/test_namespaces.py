"""Clients in separate namespaces, on a domain that root mounted in the initial ones."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, make_bus, user, world

from ..conftest import DomainMount
from ..support import features
from ..support.peer import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    Peer,
    PeerError,
)

OVERFLOW = 65534
FIRST, COUNT = 100_000, 1000  # the ids outside for ids 0 to 999 of a container
CONTAINER = {"uid_map": ((0, FIRST, COUNT),), "gid_map": ((0, FIRST, COUNT),), "flags": CLONE_NEWUSER}
NAME = "org.example.Service"

pytestmark = pytest.mark.mount


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    """A bus of root that every user may enter, in a domain that hides no metadata; all may talk to NAME."""
    (domain_mount.path / ".kdbusfs/parameters/attach_flags_mask").write_text("0xffffffffffffffff")
    anybody = [world(c.POLICY_TALK)]
    with (
        make_bus(domain_mount.path, "ns", access=c.MAKE_ACCESS_WORLD) as made,
        Connection(made.path, flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=anybody),
    ):
        yield made


@pytest.fixture
def outside(bus: BusOwner) -> Iterator[Connection]:
    """A connection of root, with the name that all may talk to."""
    with Connection(bus.path, attach_recv=c.ATTACH_ANY) as made:
        made.acquire(NAME)
        yield made


def container(uid: int = 0, gid: int = 0, flags: int = 0) -> Peer:
    """A process in its own user namespace, with these ids there."""
    return Peer(CLONE_NEWUSER | flags, (uid, gid), CONTAINER["uid_map"], CONTAINER["gid_map"])  # type: ignore[arg-type]


def refused(peer: Peer, code: str) -> int | None:
    """The errno that `code` gets there."""
    with pytest.raises(PeerError) as caught:
        peer(code)
    return caught.value.errno


def connect(peer: Peer, bus: BusOwner, more: str = "") -> int:
    """Make the connection `conn` there; returns its id."""
    number: int = peer(f"conn = Connection({bus.path!r}, attach_recv=c.ATTACH_ANY {more}); result = conn.id")
    return number


def receive(peer: Peer, kind: str) -> object:
    """The metadata of the next message there."""
    return peer(f"with conn.receive(120) as m:\n  v = m.metadata.{kind}\n  result = v and list(v)")


def test_credentials_are_translated_for_their_reader(bus: BusOwner, outside: Connection) -> None:
    """META-6, META-20, NS-1: ids are those of the reader's user namespace; unmapped ids are the overflow id."""
    with container(7, 8) as inside:
        number = connect(inside, bus)
        inside(f"conn.send({NAME!r}, b'x')")
        with outside.receive(120) as message:
            assert message.metadata.creds == (FIRST + 7,) * 4 + (FIRST + 8,) * 4
        outside.send(number, b"x")
        assert receive(inside, "creds") == [OVERFLOW] * 8
        inside(f"conn.send({number}, b'x')")
        assert receive(inside, "creds") == [7] * 4 + [8] * 4
        with Peer(ids=(FIRST + 3, FIRST + COUNT)) as third:
            third(f"conn = Connection({bus.path!r})")
            info = inside(f"result = list(conn.conn_info({third('result = conn.id')}, c.ATTACH_CREDS).metadata.creds)")
            assert info == [3] * 4 + [OVERFLOW] * 4


def test_auxiliary_groups_are_translated_for_their_reader(bus: BusOwner, outside: Connection) -> None:
    """META-8, META-20."""
    with container() as inside:
        inside("os.setgroups([5, 9])")
        number = connect(inside, bus)
        inside(f"conn.send({NAME!r}, b'x'); conn.send({number}, b'x')")
        with outside.receive(120) as message:
            assert list(message.metadata.auxgroups or ()) == [FIRST + 5, FIRST + 9]
        assert receive(inside, "auxgroups") == [5, 9]


@pytest.mark.old_kernels
def test_process_ids_are_translated_for_their_reader(bus: BusOwner, outside: Connection) -> None:
    """META-7, META-20: a pid is that of the reader's pid namespace; 0 if it has none there."""
    with Peer(CLONE_NEWPID) as inside:
        number = connect(inside, bus)
        assert inside("result = os.getpid()") == 1
        inside(f"conn.send({NAME!r}, b'x')")
        with outside.receive(120) as message:
            pids = message.metadata.pids
            assert pids is not None and (pids.pid, pids.tid) == (inside.pid, inside.pid) and pids.ppid > 1
        outside.send(number, b"x")
        assert receive(inside, "pids") == [0, 0, 0]
        inside(f"conn.send({number}, b'x')")
        assert receive(inside, "pids") == [1, 1, 0]
        assert inside("result = list(conn.conn_info(conn.id, c.ATTACH_PIDS).metadata.pids)") == [1, 1, 0]
        info = outside.conn_info(number, c.ATTACH_PIDS).metadata.pids
        assert info is not None and info.pid == inside.pid


def test_capabilities_are_told_only_within_a_user_namespace(bus: BusOwner, outside: Connection) -> None:
    """META-13."""
    with container() as inside:
        number = connect(inside, bus)
        inside(f"conn.send({NAME!r}, b'x'); conn.send({number}, b'x')")
        with outside.receive(120) as message:
            assert message.metadata.caps is None
            assert message.metadata.creds is not None
        caps = receive(inside, "caps")
        assert isinstance(caps, list) and caps[0] >= 40 and caps[4] != 0
        outside.send(number, b"x")
        assert receive(inside, "caps") is None
        outside.send(outside.id, b"x")
        with outside.receive(120) as message:
            assert message.metadata.caps is not None


def test_executable_is_told_only_within_a_root(bus: BusOwner, outside: Connection, tmp_path: Path) -> None:
    """META-10, NS-6: the path is meaningful only with a common root, so not in another mount namespace."""
    for flags, change in (
        (0, ""),
        (0, f"os.chroot({str(tmp_path)!r}); os.chdir('/')"),
        (CLONE_NEWNS, ""),
    ):
        with Peer(flags) as inside:
            connect(inside, bus)
            inside(change)
            inside(f"conn.send({NAME!r}, b'x')")
            with outside.receive(120) as message:
                assert (message.metadata.exe is not None) == (not flags and not change)
                assert message.metadata.creds is not None


def test_root_of_a_container_is_an_ordinary_user(bus: BusOwner) -> None:
    """NS-3, PRIV-1: neither privileged nor allowed to talk, whatever its capabilities are inside."""
    with Connection(bus.path) as outside, container() as inside:
        for special in ("HELLO_POLICY_HOLDER", "HELLO_ACTIVATOR"):
            assert refused(inside, f"Connection({bus.path!r}, flags=c.{special}, name={NAME!r})") == errno.EPERM
        assert refused(inside, f"Connection({bus.path!r}, flags=c.HELLO_MONITOR)") == errno.EPERM
        assert refused(inside, f"make_endpoint({bus.path!r}, 'x', prefix=False)") == errno.EPERM
        connect(inside, bus)
        assert refused(inside, f"conn.send({outside.id}, b'x')") == errno.EPERM


@pytest.fixture
def busy_bus(domain_mount: DomainMount) -> Iterator[tuple[Peer, str]]:
    """A bus of an ordinary user, uid and gid 1000, that every user may enter."""
    with Peer(ids=(1000, 1000)) as owner:
        path = owner(f"b = make_bus({str(domain_mount.path)!r}, 'b', access=c.MAKE_ACCESS_WORLD); result = b.path")
        yield owner, path


def test_cap_ipc_owner_counts_in_the_namespace_of_the_domain(busy_bus: tuple[Peer, str]) -> None:
    """NS-2, PRIV-1: uid 0 of the initial namespace is privileged by its capability, not by its number."""
    _, path = busy_bus
    special = f"k.Connection({path!r}, flags=c.HELLO_POLICY_HOLDER, name={NAME!r}).close()"
    with Peer() as root:
        root(special)
    same_ids = ((0, 0, 1),)
    with Peer(CLONE_NEWUSER, None, same_ids, same_ids) as root:
        assert root("result = [os.getuid(), int(open('/proc/self/status').read().split('CapEff:')[1].split()[0], 16)]")[
            1
        ]
        assert refused(root, special) == errno.EPERM


def test_names_of_buses_have_the_uid_of_the_domain(domain_mount: DomainMount) -> None:
    """BUS-5, NS-2: the prefix is the uid as the domain's user namespace has it."""
    root = str(domain_mount.path)
    with container(7) as inside:
        assert refused(inside, f"make_bus({root!r}, '7-x', prefix=False)") == errno.EINVAL
        assert refused(inside, f"make_bus({root!r}, '0-x', prefix=False)") == errno.EINVAL
        inside(f"bus = make_bus({root!r}, '{FIRST + 7}-x', prefix=False)")
        assert os.stat(f"{root}/{FIRST + 7}-x").st_uid == FIRST + 7
        assert inside("result = os.stat(bus.path).st_uid") == 7
        inside(f"endpoint = make_endpoint(bus, '{FIRST + 7}-e', prefix=False)")
        assert refused(inside, "make_endpoint(bus, '7-e', prefix=False)") == errno.EINVAL
        # The owner of a bus is privileged by its uid, in any namespace.
        inside(f"Connection(bus.path, flags=c.HELLO_POLICY_HOLDER, name={NAME!r}).close()")


def test_users_are_accounted_by_their_global_uid(domain_mount: DomainMount) -> None:
    """NS-5, BUS-7: two namespaces with the same user share its sixteen buses."""
    root = str(domain_mount.path)
    make = f"buses = [make_bus({root!r}, f'{FIRST + 7}-%s{{i}}', prefix=False) for i in range(8)]"
    with container(7) as one, container(7) as other, container(8) as neighbour:
        one(make % "a")
        other(make % "b")
        for peer in (one, other):
            assert refused(peer, f"make_bus({root!r}, '{FIRST + 7}-c', prefix=False)") == errno.EMFILE
        neighbour(f"bus = make_bus({root!r}, '{FIRST + 8}-c', prefix=False)")


def test_policies_have_the_ids_of_their_uploader(domain_mount: DomainMount) -> None:
    """NS-4, POL-2: an id that the caller's namespace does not map is refused."""
    root = str(domain_mount.path)
    with container(7) as owner, Peer(ids=(FIRST + 9, 1)) as meant, Peer(ids=(9, 1)) as namesake:
        path = owner(
            f"bus = make_bus({root!r}, '{FIRST + 7}-x', prefix=False, access=c.MAKE_ACCESS_WORLD); result = bus.path"
        )
        holder = f"Connection(bus.path, flags=c.HELLO_POLICY_HOLDER, name={NAME!r}, policy=[%s])"
        for unmapped in (f"user({COUNT}, c.POLICY_TALK)", f"group({COUNT}, c.POLICY_TALK)"):
            assert refused(owner, holder % unmapped) == errno.EINVAL
        owner("holder = " + holder % "user(9, c.POLICY_TALK)")
        owner(f"conn = Connection(bus.path); conn.acquire({NAME!r})")
        for peer in (meant, namesake):
            peer(f"conn = Connection({path!r})")
        meant(f"conn.send({NAME!r}, b'from the one who is meant')")
        assert refused(namesake, f"conn.send({NAME!r}, b'x')") == errno.EPERM
        assert owner("with conn.receive(120) as m: result = m.data().decode()") == "from the one who is meant"


def test_faked_ids_have_to_be_mapped(domain_mount: DomainMount) -> None:
    """HELLO-11 in a namespace: pretended pids belong to the privileged caller's namespace."""
    with make_bus(domain_mount.path, "x", access=c.MAKE_ACCESS_WORLD) as made, Peer(CLONE_NEWPID) as inside:
        pids = "__import__('struct').pack('=QQQ', %d, %d, 0)"
        item = f"items=[(c.ITEM_PIDS, {pids % (1, 1)})]"
        hello = f"conn = Connection({made.path!r}, {item}); result = conn.id"
        if not features.tells_foreign_pids():  # docs/deviations.md
            with pytest.raises(PeerError) as refused:
                inside(hello)
            assert refused.value.errno == errno.EINVAL
            return
        number = inside(hello)
        with Connection(made.path) as outside:
            found = outside.conn_info(number, c.ATTACH_PIDS).metadata.pids
            assert found is not None and found.pid == inside.pid


def test_network_and_ipc_namespaces_do_not_matter(bus: BusOwner, outside: Connection) -> None:
    """NS-6: messages, memfds, descriptors and calls work."""
    flags = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWPID
    with Peer(flags) as inside:
        number = connect(inside, bus)
        reading, writing = os.pipe()
        outside.send(number, [b"head", bytes(100_000)], fds=[writing])
        os.close(writing)
        inside("m = conn.receive(120); os.write(m.fds[0].fileno(), b'through'); m.free()")
        assert os.read(reading, 10) == b"through"
        os.close(reading)
        inside(f"large = sealed_memfd(b'y' * 9000); conn.send({NAME!r}, [Memfd(large)])")
        with outside.receive(120) as message:
            assert message.data() == b"y" * 9000


@pytest.mark.old_kernels
def test_descriptors_reach_a_container(domain_mount: DomainMount) -> None:
    """LAY-16 with a receiver in its own user and pid namespaces; its map cannot be made writable (POOL-3)."""
    root = str(domain_mount.path)
    with container(flags=CLONE_NEWPID | CLONE_NEWNET) as inside, Peer(ids=(FIRST, FIRST)) as outside:
        path = inside(f"bus = make_bus({root!r}, '{FIRST}-x', prefix=False); result = bus.path")
        number = inside("conn = Connection(bus.path); result = conn.id")
        outside(f"conn = Connection({path!r}); r, w = os.pipe(); conn.send({number}, b'x', fds=[w]); os.close(w)")
        flags = inside(
            "m = conn.receive(120); result = m.return_flags; os.write(m.fds[0].fileno(), b'hello'); m.free()"
        )
        assert flags == 0
        assert outside("result = os.read(r, 9).decode()") == "hello"
        assert refused(inside, "raw.map_memory(conn.fd, 4096, protection=3)") == errno.EACCES


@contextlib.contextmanager
def bound(path: str) -> Iterator[str]:
    """A bind mount of the file at `path`."""
    directory = tempfile.mkdtemp(prefix="kdbusfs-bind-")
    os.chmod(directory, 0o755)
    target = Path(directory, "endpoint")
    target.touch()
    os.system(f"mount --bind {path} {target}")
    try:
        yield str(target)
    finally:
        os.system(f"umount {target}")
        shutil.rmtree(directory)


def test_bind_mounted_endpoint_serves_containers(domain_mount: DomainMount) -> None:
    """FS-1, FS-33: each open of the one inode of a bind-mounted endpoint has its own pool."""
    root = str(domain_mount.path)
    with make_bus(root, "x", access=c.MAKE_ACCESS_WORLD) as made, bound(made.path) as path:
        holder = Connection(made.path, flags=c.HELLO_POLICY_HOLDER, name=NAME, policy=[user(FIRST, c.POLICY_TALK)])
        with holder, Connection(path) as service, container() as one, container(1) as other:
            service.acquire(NAME)
            one(f"conn = Connection({path!r})")
            other(f"conn = Connection({path!r})")
            one(f"conn.send({NAME!r}, b'from one')")
            assert refused(other, f"conn.send({NAME!r}, b'from other')") == errno.EPERM
            with service.receive(120) as message:
                assert message.data() == b"from one"
            service.send(int(one("result = conn.id")), b"to one")
            service.send(int(other("result = conn.id")), b"to other")
            for peer, text in ((one, "to one"), (other, "to other")):
                assert peer("with conn.receive(120) as m: result = m.data().decode()") == text
