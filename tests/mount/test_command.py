"""The command `kdbusfs`: its options, its errors of one line each, and its messages to a service manager."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs import __version__
from kdbusfs.client import Connection, make_bus
from kdbusfs.fuse.mount import MAX_READ, visible_mount
from kdbusfs.options import CONTROL_MODES
from tests.support import userns
from tests.support.commands import (
    EXERCISE,
    KDBUSFS,
    access,
    complaint,
    connection_of,
    done,
    kernel_mount,
    mounted,
    run,
    umount,
    wait_for,
)

pytestmark = pytest.mark.mount

USER = 1000


@pytest.fixture
def fuse_fd() -> Iterator[int]:
    """An open /dev/fuse, which a daemon can inherit."""
    number = os.open("/dev/fuse", os.O_RDWR)
    try:
        yield number
    finally:
        with contextlib.suppress(OSError):
            os.close(number)


# Mounting and options.


def test_it_returns_when_the_mount_answers_and_ends_with_the_mount(place: Path) -> None:
    assert done(*KDBUSFS, "source", place, "-o", "fsname=shown,subtype=other,ro") == ""
    entry = visible_mount(str(place))
    assert entry is not None and entry.type == "fuse.other"
    line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {place} " in line)
    assert line.startswith(f"shown {place} fuse.other ro,nosuid,nodev,noexec,")
    with pytest.raises(OSError) as caught:
        make_bus(place, "x")
    assert caught.value.errno == errno.EROFS
    umount(place)


def test_sigterm_unmounts(place: Path) -> None:
    with subprocess.Popen([*KDBUSFS, "s", str(place), "-f"]) as daemon:
        try:
            wait_for(place)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(120) == 0
        finally:
            daemon.kill()
    assert visible_mount(str(place)) is None


@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_owner_and_mode_say_who_may_enter_and_make_buses(place: Path, mode: int) -> None:
    """FS-4, FS-5: as in kdbus by default; restricted as KDBUS_MAKE_ACCESS_* once restricted a domain."""
    done(*KDBUSFS, "s", place, "-o", f"uid={USER},gid={USER + 1},mode={mode:o}")
    assert access(place) == (USER, USER + 1, mode)
    assert access(place / "control") == (USER, USER + 1, CONTROL_MODES[mode])
    assert access(place / ".kdbusfs") == (0, 0, 0o555)
    assert access(place / ".kdbusfs/parameters/attach_flags_mask") == (0, 0, 0o644)
    for user in (0, USER):
        assert "all of it worked" in done(*EXERCISE, place, user)
    stranger = run(*EXERCISE, place, USER + 7)
    assert ("all of it worked" in stranger.stdout) == (mode == 0o555), stranger
    member = run("setpriv", f"--reuid={USER + 7}", f"--regid={USER + 1}", "--clear-groups", *EXERCISE, place)
    assert ("all of it worked" in member.stdout) == (mode != 0o500), member
    umount(place)


def test_max_user_memory_bounds_what_a_user_makes_the_daemon_hold(place: Path) -> None:
    done(*KDBUSFS, "s", place, "-o", "max_user_memory=1M")
    with make_bus(place, "x") as bus, Connection(bus.path) as one, Connection(bus.path) as other:
        one.send(other.id, bytes(700 << 10))
        with pytest.raises(OSError) as caught:
            one.send(other.id, bytes(700 << 10))
        assert caught.value.errno == errno.ENOBUFS
        other.receive(120).free()
    umount(place)


@pytest.mark.parametrize("limit", [0, 3])
def test_max_user_fds_bounds_descriptors_on_their_way(place: Path, limit: int) -> None:
    done(*KDBUSFS, "s", place, "-o", f"max_user_fds={limit}")
    with make_bus(place, "x") as bus, Connection(bus.path) as one, Connection(bus.path) as other:
        for _ in range(limit):
            one.send(other.id, b"x", fds=[2])
        with pytest.raises(OSError) as caught:
            one.send(other.id, b"x", fds=[2])
        assert caught.value.errno == errno.EMFILE
        one.send(other.id, b"no descriptors")
    umount(place)


def test_attach_flags_mask_is_the_parameters_first_value(place: Path) -> None:
    """MASK-1"""
    done(*KDBUSFS, "s", place, "-o", "attach_flags_mask=0x1f")
    assert (place / ".kdbusfs/parameters/attach_flags_mask").read_text() == "31\n"
    umount(place)


def test_version_and_help_are_printed(private_mounts: None) -> None:
    assert done(*KDBUSFS, "--version") == f"kdbusfs {__version__}\n"
    text = done(*KDBUSFS, "--help")
    assert max(len(line) for line in text.splitlines()) < 110


# A descriptor that the caller has opened.


def test_fd_is_mounted_when_it_is_not_yet(place: Path, fuse_fd: int) -> None:
    done(*KDBUSFS, "s", place, "-o", f"fd={fuse_fd}", pass_fds=[fuse_fd])
    os.close(fuse_fd)
    assert "all of it worked" in done(*EXERCISE, place, USER)
    umount(place)


@pytest.mark.parametrize("foreground", [False, True])
def test_fd_is_served_where_it_is_mounted(place: Path, fuse_fd: int, foreground: bool) -> None:
    """As a container manager mounts it before it starts the daemon."""
    kernel_mount(place, fuse_fd, f",allow_other,default_permissions,max_read={MAX_READ}")
    command = [*KDBUSFS, "s", str(place), "-o", f"fd={fuse_fd}", *(["-f"] if foreground else [])]
    with subprocess.Popen(command, pass_fds=[fuse_fd]) as daemon:
        try:
            os.close(fuse_fd)
            assert "all of it worked" in done(*EXERCISE, place, USER)
            umount(place)
            assert daemon.wait(120) == 0
        finally:
            daemon.kill()


@pytest.mark.parametrize(
    "options",
    [
        f",allow_other,max_read={MAX_READ}",
        f",default_permissions,max_read={MAX_READ}",
        ",allow_other,default_permissions",
        f",allow_other,default_permissions,max_read={2 * MAX_READ}",
    ],
)
def test_fd_whose_mount_cannot_be_served_is_refused(place: Path, fuse_fd: int, options: str) -> None:
    kernel_mount(place, fuse_fd, options)
    code, said = complaint(*KDBUSFS, "s", place, "-o", f"fd={fuse_fd}", pass_fds=[fuse_fd])
    assert code == 32 and said.endswith(f"mount it with allow_other,default_permissions,max_read={MAX_READ}")


def test_fd_that_is_mounted_elsewhere_is_refused(place: Path, fuse_fd: int) -> None:
    (place / "here").mkdir()
    (place / "there").mkdir()
    kernel_mount(place / "there", fuse_fd, f",allow_other,default_permissions,max_read={MAX_READ}")
    code, said = complaint(*KDBUSFS, "s", place / "here", "-o", f"fd={fuse_fd}", pass_fds=[fuse_fd])
    assert code == 32 and "is mounted, but not at" in said
    done(*KDBUSFS, "s", place / "here")
    if "fuse_connection" in Path(f"/proc/self/fdinfo/{fuse_fd}").read_text():
        code, said = complaint(*KDBUSFS, "s", place / "here", "-o", f"fd={fuse_fd}", pass_fds=[fuse_fd])
        assert code == 32 and "is mounted elsewhere than at" in said
    umount(place / "here")


def test_fd_whose_mount_has_gone_is_refused(place: Path, fuse_fd: int) -> None:
    kernel_mount(place, fuse_fd, ",allow_other")
    (connection_of(mounted(place)) / "abort").write_text("1")
    done("umount", "-l", place)
    code, said = complaint(*KDBUSFS, "s", place, "-o", f"fd={fuse_fd}", pass_fds=[fuse_fd])
    assert code == 32 and ("open /dev/fuse anew" in said or "not have been mounted before" in said)


def test_fd_must_be_dev_fuse_for_reading_and_writing(place: Path) -> None:
    with open("/dev/null", "r+b") as null, open("/dev/fuse", "rb") as reading:
        for file in (null, reading):
            number = file.fileno()
            code, said = complaint(*KDBUSFS, "s", place, "-o", f"fd={number}", pass_fds=[number])
            assert (code, said) == (1, f"kdbusfs: fd={number} is not /dev/fuse, opened for reading and writing")
    code, said = complaint(*KDBUSFS, "s", place, "-o", "fd=77")
    assert (code, said) == (1, "kdbusfs: fd=77: no such descriptor was handed to this program")


# Wrong usage.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s", "{}/none"], "mount point '{}/none' does not exist: mkdir -p '{}/none'"),
        (["s", "{}/file"], "mount point '{}/file' is not a directory"),
        (["s", "{}/file/below"], "mount point '{}/file/below': Not a directory"),
        (["s", "{}/loop"], "mount point '{}/loop': Too many levels of symbolic links"),
        (["s", "{}/no\nne"], "mount point '{}/no\\nne' does not exist: mkdir -p '{}/no\\nne'"),
    ],
)
def test_a_path_that_cannot_be_a_mount_point(place: Path, arguments: list[str], said: str) -> None:
    (place / "file").touch()
    (place / "loop").symlink_to("loop")
    words = [word.replace("{}", str(place)) for word in arguments]
    assert complaint(*KDBUSFS, *words) == (32, "kdbusfs: " + said.replace("{}", str(place)))


def test_a_mount_point_that_is_one_already(place: Path) -> None:
    done(*KDBUSFS, "s", place)
    (Path(f"{place}-link")).symlink_to(place)
    try:
        for path in (place, f"{place}/.", f"{place}-link"):
            code, said = complaint(*KDBUSFS, "s", path)
            assert (code, said) == (32, f"kdbusfs: '{place}' is a kdbusfs mount already: umount '{place}' first")
    finally:
        os.unlink(f"{place}-link")
    umount(place)


def test_a_mount_whose_daemon_is_gone(place: Path) -> None:
    with subprocess.Popen([*KDBUSFS, "s", str(place), "-f"]) as daemon:
        wait_for(place)
        daemon.kill()
    code, said = complaint(*KDBUSFS, "s", place)
    assert (code, said) == (32, f"kdbusfs: '{place}' is a kdbusfs mount whose daemon has ended: umount '{place}' first")
    done("umount", place)
    done(*KDBUSFS, "s", place)
    umount(place)


def test_a_mount_point_on_a_file_system_that_is_gone(place: Path, fuse_fd: int) -> None:
    kernel_mount(place, fuse_fd, ",allow_other")
    os.close(fuse_fd)
    code, said = complaint(*KDBUSFS, "s", place, "-o", "subtype=another")
    assert code == 32 and said.endswith(f"Transport endpoint is not connected: umount -l '{place}' first")


def test_a_mount_that_does_not_answer(place: Path, fuse_fd: int) -> None:
    """The kernel waits for the answer to a FUSE_INIT that another process has read."""
    kernel_mount(place, fuse_fd, f",allow_other,default_permissions,max_read={MAX_READ}")
    os.read(fuse_fd, 1 << 16)
    impatient = "import sys; from kdbusfs import cli, patience; patience.STILL = 1; sys.exit(cli.main(sys.argv[1:]))"
    command = (sys.executable, "-c", impatient, "s", place, "-o", f"fd={fuse_fd}")
    code, said = complaint(*command, pass_fds=[fuse_fd])
    pattern = r"waited (\d+) s, the last \d+ s without progress, at the step 'the first request of the kernel'"
    assert code == 32 and re.fullmatch(rf"kdbusfs: the mount at '{place}' does not answer: {pattern}", said), said
    assert visible_mount(str(place)) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: SOURCE, MOUNTPOINT; see kdbusfs --help"),
        (["s"], "the following arguments are required: MOUNTPOINT; see kdbusfs --help"),
        (["s", "/mnt", "-x"], "unrecognized arguments: -x; see kdbusfs --help"),
        (["s", "/mnt", "-o"], "argument -o: expected one argument; see kdbusfs --help"),
        (["s", "/mnt", "-o", "rw,knob=1"], "unknown mount option 'knob=1'; see kdbusfs --help"),
        (["s", "/mnt", "-o", "uid"], "mount option 'uid' needs a value: uid=..."),
    ],
)
def test_wrong_arguments(private_mounts: None, arguments: list[str], said: str) -> None:
    assert complaint(*KDBUSFS, *arguments) == (1, f"kdbusfs: {said}")


@pytest.mark.parametrize(
    ("trouble", "code", "named"),
    [
        ("mount --bind /dev/null /dev/fuse", 32, "cannot mount at"),
        ("mount -t tmpfs none /dev", 2, "mknod /dev/fuse c 10 229"),
        ("mount -t tmpfs none /dev && touch /dev/fuse && mount -o remount,nodev /dev", 32, "cannot mount at"),
        ("mount -t tmpfs -o nodev none /dev && mknod /dev/fuse c 10 229", 2, "be 0666, as udev makes it"),
    ],
)
def test_without_a_device(place: Path, trouble: str, code: int, named: str) -> None:
    command = f'{trouble}; exec "$@"'
    ended, said = complaint("unshare", "-m", "sh", "-c", command, "sh", *KDBUSFS, "s", place)
    assert ended == code and named in said


def test_without_privilege(place: Path) -> None:
    code, said = complaint("setpriv", "--bounding-set=-sys_admin", *KDBUSFS, "s", place)
    assert code == 1 and said.startswith("kdbusfs: mounting takes CAP_SYS_ADMIN: run as root")


def test_with_the_proc_of_others(place: Path) -> None:
    code, said = complaint("unshare", "--pid", "--fork", *KDBUSFS, "s", place)
    assert code == 2 and said.startswith("kdbusfs: /proc shows another pid namespace")


def test_an_owner_that_the_user_namespace_has_not(private_mounts: None) -> None:
    for option in ("uid=5", "gid=5"):
        ended = run(*userns.command("single", *KDBUSFS, "s", "/mnt", "-o", option))
        assert (ended.returncode, ended.stderr) == (1, f"kdbusfs: {option} does not exist in this user namespace\n")


# Messages to a service manager.


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_a_service_manager_hears_of_beginning_and_end(place: Path, kind: str) -> None:
    """sd_notify(3): READY=1 when the mount answers, STOPPING=1 when it is about to go."""
    where = "/domain"
    (place / where[1:]).mkdir()
    address = f"\0kdbusfs-test-{os.getpid()}" if kind == "abstract" else str(place / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(120)
        environment = {**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@")}
        command = [*KDBUSFS, "s", f"{place}{where}", "-f"]
        with subprocess.Popen(command, env=environment) as daemon:
            try:
                assert manager.recv(100) == b"READY=1"
                done("stat", f"{place}{where}/control", timeout=120)
                assert b"NOTIFY_SOCKET" in Path(f"/proc/{daemon.pid}/environ").read_bytes()
                daemon.send_signal(signal.SIGTERM)
                assert manager.recv(100) == b"STOPPING=1"
                assert daemon.wait(120) == 0
            finally:
                daemon.kill()


def test_a_daemon_in_the_background_tells_no_service_manager(place: Path) -> None:
    """The manager may wait for another service, which has run mount(8)."""
    (place / "domain").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.setblocking(False)
        done(*KDBUSFS, "s", place / "domain", env={**os.environ, "NOTIFY_SOCKET": str(place / "notify")})
        umount(place / "domain")
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_a_service_manager_that_does_not_listen_is_no_trouble(place: Path) -> None:
    command = [*KDBUSFS, "s", str(place), "-f", "-o", "loglevel=info"]
    environment = {**os.environ, "NOTIFY_SOCKET": "/none"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as daemon:
        try:
            assert daemon.stderr is not None
            # The mount answers earlier, but the trial keeps the daemon busy until it is over.
            assert select.select([daemon.stderr], [], [], 120)[0], "waited 120 s for the mount to be ready"
            assert daemon.stderr.readline() == f"kdbusfs: INFO: a domain is mounted at {place}\n".encode()
            umount(place)
            assert daemon.wait(120) == 0
        finally:
            daemon.kill()
