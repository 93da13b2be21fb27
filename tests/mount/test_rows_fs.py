"""FS: the tree as the kernel shows it, and the lifetime of its entries."""

from __future__ import annotations

import errno
import mmap
import os
import select
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import BusOwner, Connection, encode, make_bus, make_endpoint, raw
from tests.conftest import DomainMount
from tests.support import features
from tests.support.forked import Fatal, forked

pytestmark = pytest.mark.mount

NOBODY = 65534
PAGE = os.sysconf("SC_PAGESIZE")


def refused(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **named)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def hello(fd: int) -> int:
    """The errno of a plain HELLO."""
    command = encode.command(c.CMD_HELLO, 0, 0, 0, c.ATTACH_ANY, 0, 0, 0, PAGE)
    return raw.raw_ioctl(fd, c.CMD_HELLO, command)[0]


def polled(fd: int) -> int:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLOUT)
    events = poller.poll(0)
    return events[0][1] if events else 0


@pytest.fixture
def bus(domain_mount: DomainMount) -> Iterator[BusOwner]:
    with make_bus(domain_mount.path, "test") as owner:
        yield owner


@pytest.fixture
def second_mount(private_mounts: None) -> Iterator[DomainMount]:
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path)
    try:
        domain.wait_until_ready()
        yield domain
        assert domain.stop() == 0
    finally:
        domain.clean_up()
        path.rmdir()


def test_fs_1_fs_11_mask_2_two_domains_share_nothing(domain_mount: DomainMount, second_mount: DomainMount) -> None:
    with make_bus(domain_mount.path, "same") as here:
        assert not os.path.exists(second_mount.path / here.name)
        with make_bus(second_mount.path, "same") as there:
            assert os.stat(here.directory).st_ino == os.stat(there.directory).st_ino
            assert os.stat(here.directory).st_dev != os.stat(there.directory).st_dev
            with Connection(here.path) as one, Connection(there.path) as other:
                assert one.id128 != other.id128
                assert one.id == other.id == 1
                one.acquire("org.example.Name")
                other.acquire("org.example.Name")
                one.add_match(1)
                other.send(c.DST_ID_BROADCAST, b"", bloom=bytes(64))
                one.send(one.id, b"own")
                with one.receive(120) as message:
                    assert message.data() == b"own"
        with Connection(here.path) as later:
            assert later.id == 2
    mask = ".kdbusfs/parameters/attach_flags_mask"
    (domain_mount.path / mask).write_text("1")
    assert (second_mount.path / mask).read_text() == f"{0x281F}\n"


def test_fs_1_the_end_of_one_domain_is_not_that_of_the_other(
    domain_mount: DomainMount, second_mount: DomainMount
) -> None:
    with make_bus(domain_mount.path, "here") as here, Connection(here.path) as connection:
        assert second_mount.stop() == 0
        connection.send(connection.id, b"still there")
        with connection.receive(120) as message:
            assert message.data() == b"still there"


@pytest.mark.parametrize(
    ("access", "directory", "endpoint"),
    [
        (0, 0o500, 0o600),
        (c.MAKE_ACCESS_GROUP, 0o550, 0o660),
        (c.MAKE_ACCESS_WORLD, 0o555, 0o666),
        (c.MAKE_ACCESS_WORLD | c.MAKE_ACCESS_GROUP, 0o555, 0o666),
    ],
)
def test_fs_6_fs_7_fs_8_modes_follow_the_access_flags(
    domain_mount: DomainMount, access: int, directory: int, endpoint: int
) -> None:
    with make_bus(domain_mount.path, "open", access=access) as owner:
        assert os.stat(owner.directory).st_mode == stat.S_IFDIR | directory
        assert os.stat(owner.path).st_mode == stat.S_IFREG | endpoint
        with make_endpoint(owner, "plain") as plain, make_endpoint(owner, "custom", access=access) as custom:
            assert os.stat(plain.path).st_mode == stat.S_IFREG | 0o600
            assert os.stat(custom.path).st_mode == stat.S_IFREG | endpoint


def test_fs_6_fs_7_fs_8_the_owner_is_the_effective_user_of_the_maker(domain_mount: DomainMount) -> None:
    def owners() -> list[tuple[int, int]]:
        os.setresgid(-1, 1001, -1)
        os.setresuid(-1, 1000, -1)
        with make_bus(domain_mount.path, "mine", access=c.MAKE_ACCESS_WORLD) as owner:
            os.setresuid(-1, 0, -1)
            os.setresgid(-1, 0, -1)
            with make_endpoint(owner, "roots") as endpoint:
                found = [os.stat(owner.directory), os.stat(owner.path), os.stat(endpoint.path)]
                return [(each.st_uid, each.st_gid) for each in found]

    assert forked(owners) == [(1000, 1001), (1000, 1001), (0, 0)]


def test_fs_7_fs_8_fs_32_others_are_refused_by_the_modes_alone(domain_mount: DomainMount) -> None:
    with make_bus(domain_mount.path, "closed") as closed, make_bus(
        domain_mount.path, "open", access=c.MAKE_ACCESS_WORLD
    ) as opened, make_endpoint(opened, "closed") as endpoint:

        def look() -> None:
            refused(errno.EACCES, os.listdir, closed.directory)
            refused(errno.EACCES, os.stat, closed.path)
            refused(errno.EACCES, os.open, closed.path, os.O_RDWR)
            assert sorted(os.listdir(opened.directory)) == sorted(["bus", endpoint.name])
            assert os.stat(endpoint.path).st_mode == stat.S_IFREG | 0o600
            refused(errno.EACCES, os.open, endpoint.path, os.O_RDWR)
            os.close(os.open(opened.path, os.O_RDWR))

        forked(look, uid=NOBODY)


def test_fs_9_fs_10_link_counts_sizes_and_times(domain_mount: DomainMount, bus: BusOwner) -> None:
    for path, links in ((domain_mount.path, 2), (bus.directory, 2), (bus.path, 1)):
        found = os.stat(path)
        assert (found.st_nlink, found.st_size, found.st_blocks, found.st_blksize) == (links, 0, 0, PAGE)
        assert found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns
        assert abs(found.st_mtime - time.time()) < 60


def test_fs_11_fs_12_listings_have_types_and_inode_numbers(domain_mount: DomainMount, bus: BusOwner) -> None:
    with make_endpoint(bus, "custom") as endpoint:
        for path, kind in ((domain_mount.path, stat.S_IFDIR), (bus.directory, stat.S_IFREG)):
            with os.scandir(path) as entries:
                found = {entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries}
            for name, (number, is_directory) in found.items():
                assert number == os.stat(os.path.join(path, name)).st_ino
                assert is_directory == (kind == stat.S_IFDIR and name == bus.name)
        assert set(found) == {"bus", endpoint.name}
        numbers = [os.stat(each).st_ino for each in (bus.directory, bus.path, endpoint.path)]
        assert numbers == [3, 4, 5], "the smallest free ones"


def test_fs_16_read_and_write_are_einval(bus: BusOwner) -> None:
    fd = os.open(bus.path, os.O_RDWR)
    try:
        if features.has_passthrough():
            refused(errno.EINVAL, os.read, fd, 10)
        else:
            assert os.read(fd, 10) == b""  # docs/deviations.md
        refused(errno.EINVAL, os.write, fd, b"x")
    finally:
        os.close(fd)
    with Connection(bus.path) as connection:
        if features.has_passthrough():
            refused(errno.EINVAL, os.read, connection.fd, 10)
        else:
            assert len(os.read(connection.fd, 10)) == 10  # docs/deviations.md
        refused(errno.EBADF, os.write, connection.fd, b"x")  # docs/deviations.md
    directory = os.open(bus.directory, os.O_RDONLY)
    try:
        refused(errno.EISDIR, os.read, directory, 10)
    finally:
        os.close(directory)


def test_fs_17_lseek_succeeds(domain_mount: DomainMount, bus: BusOwner) -> None:
    for path in (domain_mount.path / "control", bus.path):
        fd = os.open(path, os.O_RDWR)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
        os.lseek(fd, 8, os.SEEK_SET)
        os.close(fd)
    with Connection(bus.path) as connection:
        os.lseek(connection.fd, 8, os.SEEK_SET)
        connection.send(connection.id, b"wherever the position is")
        with connection.receive(120) as message:
            assert message.data() == b"wherever the position is"


@pytest.mark.parametrize(
    "flags",
    [
        os.O_RDONLY,
        os.O_RDWR | os.O_NONBLOCK,
        os.O_RDONLY | os.O_CLOEXEC,
        os.O_RDWR | os.O_TRUNC | os.O_CREAT,
        os.O_WRONLY | os.O_APPEND | os.O_SYNC,
    ],
)
def test_fs_18_commands_work_whatever_the_open_flags(bus: BusOwner, flags: int) -> None:
    with Connection(os.open(bus.path, flags)) as connection:
        assert connection.recv() is None
        connection.send(connection.id, b"hello")
        with connection.receive(120) as message:
            assert message.data() == b"hello"


def test_fs_22_unknown_commands_on_control_are_enotty(domain_mount: DomainMount, bus: BusOwner) -> None:
    fresh = os.open(domain_mount.path / "control", os.O_RDWR)
    for fd in (fresh, bus.fd):
        for number in (c.CMD_HELLO, c.CMD_RECV, c.CMD_BYEBYE, 0x95F0, 0x5401):
            assert raw.raw_ioctl(fd, number, bytes(128))[0] == errno.ENOTTY
    os.close(fresh)


def test_fs_23_control_is_always_ready_and_a_map_of_it_shows_nothing(
    domain_mount: DomainMount, bus: BusOwner
) -> None:
    fresh = os.open(domain_mount.path / "control", os.O_RDWR)
    for fd in (fresh, bus.fd):
        assert polled(fd) == select.POLLIN | select.POLLOUT
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):  # docs/deviations.md
            if flags == mmap.MAP_SHARED and not features.has_passthrough():
                # The kernel has learned to map such files not long before passthrough.
                try:
                    view = raw.map_memory(fd, PAGE, flags=flags)
                except OSError as fault:
                    assert fault.errno == errno.ENODEV, "as in kdbus"
                    continue
            else:
                view = raw.map_memory(fd, PAGE, flags=flags)
            with pytest.raises(Fatal) as caught:
                forked(lambda view=view: view[0])  # type: ignore[misc]
            assert caught.value.number == signal.SIGBUS
    os.close(fresh)


def test_fs_13_fs_21_fs_24_fs_27_fs_28_fs_30_a_bus_goes_with_its_descriptor(domain_mount: DomainMount) -> None:
    owner = make_bus(domain_mount.path, "test")
    endpoint = make_endpoint(owner, "custom")
    connection = Connection(owner.path)
    guest = Connection(endpoint.path)
    fresh = os.open(owner.path, os.O_RDWR)
    found = os.open(owner.path, os.O_PATH)
    directory = os.open(owner.directory, os.O_RDONLY)
    assert sorted(os.listdir(directory)) == sorted([endpoint.name, "bus"])
    owner.close()
    with pytest.raises(FileNotFoundError):
        os.stat(owner.directory)
    assert owner.name not in os.listdir(domain_mount.path)
    assert os.listdir(directory) == []
    refused(errno.ENOENT, os.open, owner.path, os.O_RDWR)
    with pytest.raises(OSError) as caught:
        os.open(f"/proc/self/fd/{found}", os.O_RDWR)
    assert caught.value.errno in (errno.ESHUTDOWN, errno.ENOENT, errno.ESTALE)
    assert hello(fresh) == errno.ESHUTDOWN
    make = encode.command(c.CMD_ENDPOINT_MAKE, items=encode.string_item(c.ITEM_MAKE_NAME, "0-late"))
    assert raw.raw_ioctl(fresh, c.CMD_ENDPOINT_MAKE, make)[0] == errno.ESHUTDOWN
    for each in (connection, guest):
        refused(errno.ECONNRESET, each.recv)
        assert polled(each.fd) == select.POLLERR | select.POLLHUP
    endpoint.update()
    with make_bus(domain_mount.path, "test") as again:
        with Connection(again.path) as new:
            assert new.id == 1 and new.id128 != connection.id128
        assert os.listdir(directory) == [], "a directory of the old one stays empty"
    for fd in (fresh, found, directory):
        os.close(fd)
    endpoint.close()
    for each in (connection, guest):
        each.close()


def test_fs_24_a_descriptor_that_was_passed_on_keeps_the_bus(bus: BusOwner) -> None:
    other = os.dup(bus.fd)
    bus.close()
    with Connection(bus.path):
        pass
    os.close(other)
    assert not os.path.exists(bus.directory)


def test_fs_25_shut_5_an_endpoint_goes_with_its_descriptor_and_the_bus_stays(bus: BusOwner) -> None:
    endpoint = make_endpoint(bus, "custom")
    with Connection(endpoint.path) as guest, Connection(bus.path) as other:
        endpoint.close()
        assert not os.path.exists(endpoint.path)
        refused(errno.ECONNRESET, guest.recv)
        other.send(other.id, b"hello")
        with other.receive(120) as message:
            assert message.data() == b"hello"
    with make_endpoint(bus, "custom") as again, Connection(again.path):
        pass


def test_fs_29_umount_is_refused_while_files_are_open_and_a_lazy_one_lets_them_work(
    domain_mount: DomainMount,
) -> None:
    with make_bus(domain_mount.path, "test") as bus, Connection(bus.path) as connection:
        done = subprocess.run(["umount", str(domain_mount.path)], capture_output=True, timeout=120)
        assert done.returncode != 0 and b"busy" in done.stderr
        subprocess.run(["umount", "-l", str(domain_mount.path)], check=True, timeout=120)
        assert not os.path.exists(bus.path)
        connection.acquire("org.example.Name")
        connection.send("org.example.Name", b"still there")
        with connection.receive(120) as message:
            assert message.data() == b"still there"
        assert domain_mount.process.poll() is None
    assert domain_mount.process.wait(120) == 0


def test_fs_31_fs_32_names_are_unique_in_their_directory_and_carry_the_uid(
    domain_mount: DomainMount, bus: BusOwner
) -> None:
    refused(errno.EEXIST, make_bus, domain_mount.path, "test")
    with make_endpoint(bus, "test") as endpoint:
        assert endpoint.name == bus.name
        refused(errno.EEXIST, make_endpoint, bus, "test")
        for name in ("control", "bus", "ep.apache", "1-foreign"):
            refused(errno.EINVAL, make_bus, domain_mount.path, name, prefix=False)
            refused(errno.EINVAL, make_endpoint, bus, name, prefix=False)
        assert sorted(os.listdir(bus.directory)) == sorted(["bus", endpoint.name]), "flat"


def test_fs_33_one_path_and_a_pool_for_each_open_file(bus: BusOwner) -> None:
    with Connection(bus.path, pool_size=PAGE) as one, Connection(bus.path, pool_size=4 * PAGE) as other:
        assert os.fstat(one.fd).st_ino == os.fstat(other.fd).st_ino == os.stat(bus.path).st_ino
        one.send(one.id, b"for one")
        one.send(other.id, b"for the other")
        with one.receive(120) as first, other.receive(120) as second:
            assert (first.data(), second.data()) == (b"for one", b"for the other")
            assert bytes(one.pool[: PAGE]) != bytes(other.pool[: PAGE])


