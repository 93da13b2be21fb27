"""The tree as programs see it, over a real mount."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdbusfs.client import make_bus
from kdbusfs.fuse.mount import visible_mount

if TYPE_CHECKING:
    from tests.conftest import DomainMount
    from tests.support.footprint import Footprint

pytestmark = pytest.mark.mount

NOBODY = 65534


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def as_nobody(call: Callable[[], object]) -> int:
    """The errno of `call` in a child without privileges; 0 if it succeeds."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            call()
            code = 0
        except OSError as fault:
            code = fault.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fresh_domain_holds_control_alone(domain_mount: DomainMount) -> None:
    """FS-1, FS-4, FS-5, FS-9, FS-11"""
    root = os.stat(domain_mount.path)
    assert (root.st_mode, root.st_uid, root.st_gid) == (stat.S_IFDIR | 0o555, 0, 0)
    assert (root.st_ino, root.st_nlink, root.st_size, root.st_blocks) == (1, 2, 0, 0)
    assert os.listdir(domain_mount.path) == ["control"]
    control = os.stat(domain_mount.path / "control")
    assert control.st_mode == stat.S_IFREG | 0o666
    assert (control.st_ino, control.st_nlink, control.st_size) == (2, 1, 0)


def test_the_mount_table_names_it(domain_mount: DomainMount) -> None:
    """FS-2"""
    entry = visible_mount(str(domain_mount.path))
    assert entry is not None and entry.type == "fuse.kdbusfs"


def test_open_takes_any_flags(domain_mount: DomainMount) -> None:
    """FS-18"""
    control = domain_mount.path / "control"
    for flags in (
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC,
        os.O_RDWR | os.O_TRUNC,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_APPEND,
    ):
        os.close(os.open(control, flags))


def test_read_write_and_fsync_are_refused(domain_mount: DomainMount) -> None:
    """FS-16"""
    fd = os.open(domain_mount.path / "control", os.O_RDWR)
    try:
        refused(errno.EINVAL, os.read, fd, 10)
        refused(errno.EINVAL, os.write, fd, b"x")
        refused(errno.EINVAL, os.fsync, fd)
    finally:
        os.close(fd)


def test_nothing_can_be_made_or_removed(domain_mount: DomainMount) -> None:
    """FS-14"""
    path = domain_mount.path
    refused(errno.EACCES, os.open, path / "x", os.O_RDWR | os.O_CREAT)
    refused(errno.EPERM, os.mkdir, path / "x")
    refused(errno.EEXIST, os.mkdir, path / "control")
    refused(errno.EPERM, os.mkfifo, path / "x")
    refused(errno.EPERM, os.symlink, "x", path / "x")
    refused(errno.EPERM, os.link, path / "control", path / "x")
    refused(errno.EPERM, os.unlink, path / "control")
    refused(errno.EPERM, os.rename, path / "control", path / "x")
    for call in (
        lambda: os.open(path / "x", os.O_RDWR | os.O_CREAT),
        lambda: os.mkdir(path / "x"),
        lambda: os.unlink(path / "control"),
        lambda: os.rename(path / "control", path / "x"),
    ):
        assert as_nobody(call) == errno.EACCES
    assert os.listdir(path) == ["control"]


def test_attributes_cannot_be_changed(domain_mount: DomainMount) -> None:
    """FS-15"""
    control = domain_mount.path / "control"
    refused(errno.EPERM, os.chmod, control, 0o600)
    refused(errno.EPERM, os.chown, control, 1, 1)
    refused(errno.EPERM, os.utime, control)
    refused(errno.EPERM, os.truncate, control, 10)


def test_there_are_no_extended_attributes(domain_mount: DomainMount) -> None:
    """FS-19"""
    control = domain_mount.path / "control"
    refused(errno.EOPNOTSUPP, os.getxattr, control, "user.x")
    refused(errno.EOPNOTSUPP, os.setxattr, control, "user.x", b"y")
    refused(errno.EOPNOTSUPP, os.removexattr, control, "user.x")


def test_statfs_counts_nothing(domain_mount: DomainMount) -> None:
    """FS-20"""
    found = os.statvfs(domain_mount.path)
    assert (found.f_bsize, found.f_namemax) == (os.sysconf("SC_PAGESIZE"), 255)
    assert (found.f_blocks, found.f_bfree, found.f_files, found.f_ffree) == (0, 0, 0, 0)


def test_the_mask_is_root_s_to_write_and_everybody_s_to_read(domain_mount: DomainMount) -> None:
    """MASK-1"""
    mask = domain_mount.path / ".kdbusfs/parameters/attach_flags_mask"
    mask.write_text("0x1f\n")
    assert mask.read_text() == "31\n"
    refused(errno.EINVAL, mask.write_text, "many")
    assert mask.read_text() == "31\n"
    assert as_nobody(lambda: os.read(os.open(mask, os.O_RDONLY), 10)) == 0
    assert as_nobody(lambda: os.open(mask, os.O_WRONLY)) == errno.EACCES
    assert as_nobody(lambda: os.open(domain_mount.path / ".kdbusfs/stats", os.O_RDONLY)) == errno.EACCES


def test_opening_and_closing_leaves_nothing_behind(domain_mount: DomainMount, footprint: Footprint) -> None:
    for _ in range(1000):
        os.close(os.open(domain_mount.path / "control", os.O_RDWR))
    footprint.settles(threads=False)


def test_removed_names_are_not_kept_for_ever(domain_mount: DomainMount) -> None:
    for number in range(1200):
        with make_bus(domain_mount.path, f"{number}") as owner:
            os.close(os.open(owner.path, os.O_RDWR))
    stats = domain_mount.stats()
    if stats["prunes"] is False:
        pytest.skip("the kernel cannot be asked to forget names")
    assert stats["prunes"] is True
    assert stats["nodes"] < 2000


def test_umount_ends_the_daemon_cleanly(domain_mount: DomainMount) -> None:
    subprocess.run(["umount", str(domain_mount.path)], check=True, timeout=120)
    assert domain_mount.process.wait(120) == 0


def test_a_signal_ends_the_daemon_while_files_are_open(domain_mount: DomainMount) -> None:
    """FS-29: clients with open files get an error, and do not hang"""
    fd = os.open(domain_mount.path / "control", os.O_RDWR)
    try:
        domain_mount.process.send_signal(signal.SIGINT)
        assert domain_mount.process.wait(120) == 0
        assert visible_mount(str(domain_mount.path)) is None
        with pytest.raises(OSError):
            os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):  # ENOTCONN if the kernel sends FLUSH at every close: docs/deviations.md
            os.close(fd)


def test_an_aborted_connection_is_an_error(domain_mount: DomainMount) -> None:
    domain_mount.abort()
    assert domain_mount.process.wait(120) == 4
    assert visible_mount(str(domain_mount.path)) is None
    assert "connection to the kernel has ended" in domain_mount.log()
    domain_mount.expect(4)


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdbusfs", *arguments], capture_output=True, text=True, timeout=120
        )

    def test_it_returns_when_the_mount_answers(self, private_mounts: None, tmp_path: Path) -> None:
        done = self.run("test", str(tmp_path), "-o", "rw,nofail,fsname=some domain")
        try:
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert os.listdir(tmp_path) == ["control"]
            again = self.run("test", str(tmp_path))
            assert again.returncode == 32 and "already" in again.stderr
        finally:
            subprocess.run(["umount", "-l", str(tmp_path)], check=True, timeout=120)

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            ((), 1, "SOURCE"),
            (("test", "/etc/passwd"), 32, "not a directory"),
            (("test", "/nonexistent/directory"), 32, "mkdir -p"),
            (("test", "/tmp", "-o", "frobnicate"), 1, "frobnicate"),
        ],
    )
    def test_errors_are_reported(
        self, private_mounts: None, arguments: tuple[str, ...], code: int, said: str
    ) -> None:
        done = self.run(*arguments)
        assert done.returncode == code
        assert said in done.stderr
        assert done.stderr.count("\n") == 1

    def test_version_and_help(self) -> None:
        assert self.run("--version").stdout.startswith("kdbusfs ")
        text = self.run("--help").stdout
        for word in ("SOURCE", "MOUNTPOINT", "attach_flags_mask", "exit codes", "32"):
            assert word in text
