"""mount(8) and its helpers: `mount -t fuse.kdbusfs`, `mount -t kdbusfs`, a line of fstab, umount."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs.fuse.mount import visible_mount
from tests.support.commands import (
    EXERCISE,
    KDBUSFS,
    ROOT,
    complaint,
    connection_of,
    covered,
    done,
    mounted,
    run,
    umount,
    wait_for_end,
)

pytestmark = pytest.mark.mount

HELPERS = ROOT / "mount-helpers"
TYPES = ("fuse.kdbusfs", "kdbusfs")
AUTOFS_IOC_READY, AUTOFS_IOC_CATATONIC = 0x9360, 0x9362  # linux/auto_fs.h


@pytest.fixture
def sbin(private_mounts: None) -> Iterator[Path]:
    """/sbin with links to our helpers, as for a program that pip has installed; mount(8) looks there."""
    with covered(Path("/usr/sbin")) as path:
        for helper in TYPES:
            (path / f"mount.{helper}").unlink(missing_ok=True)
            (path / f"mount.{helper}").symlink_to(HELPERS / f"mount.{helper}")
        if Path("/sbin").resolve() != path:
            pytest.skip("/sbin is not /usr/sbin here")
        yield path


@pytest.mark.parametrize("kind", TYPES)
def test_mount_and_umount(sbin: Path, place: Path, kind: str) -> None:
    assert done("mount", "-t", kind, "kdbusfs", place, cwd="/") == ""
    entry = visible_mount(str(place))
    assert entry is not None and (entry.type, entry.source) == ("fuse.kdbusfs", "kdbusfs")
    assert "all of it worked" in done(*EXERCISE, place)
    umount(place)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "options", ["defaults", "noauto,nofail,_netdev,user,x-systemd.automount,X-mount.mkdir,comment=of,owner,group,users"]
)
def test_a_line_of_fstab(sbin: Path, place: Path, kind: str, options: str) -> None:
    fstab = place / "fstab"
    (place / "domain").mkdir()
    fstab.write_text(f"kdbusfs {place}/domain {kind} {options},attach_flags_mask=7 0 0\n")
    done("mount", "--fstab", fstab, place / "domain", cwd="/")
    assert (place / "domain/.kdbusfs/parameters/attach_flags_mask").read_text() == "7\n"
    umount(place / "domain")


def test_verbose_says_what_was_mounted(sbin: Path, place: Path) -> None:
    said = done("mount", "-v", "-t", "fuse.kdbusfs", "kdbusfs", place, "-o", "fsname=shown", cwd="/")
    assert f"{place}: shown mounted as fuse.kdbusfs\n" in said
    umount(place)


def test_fake_checks_and_does_not_mount(sbin: Path, place: Path) -> None:
    said = done("mount", "-fv", "-t", "fuse.kdbusfs", "kdbusfs", place, cwd="/")
    assert f"{place}: kdbusfs would be mounted as fuse.kdbusfs\n" in said
    assert visible_mount(str(place)) is None
    code, said = complaint("mount", "-f", "-t", "fuse.kdbusfs", "kdbusfs", place, "-o", "knob")
    assert (code, said) == (1, "mount.fuse.kdbusfs: unknown mount option 'knob'; see kdbusfs --help")


def test_sloppy_ignores_unknown_options(sbin: Path, place: Path) -> None:
    done("mount", "-s", "-n", "-t", "fuse.kdbusfs", "kdbusfs", place, "-o", "knob,ro", cwd="/")
    assert f" {place} fuse.kdbusfs ro," in Path("/proc/mounts").read_text()
    umount(place)


def test_generic_fuse_helper_works_too(private_mounts: None, place: Path) -> None:
    """Without our helper, mount(8) calls mount.fuse, which looks for the program in PATH."""
    if not Path("/sbin/mount.fuse").exists():
        pytest.skip("no mount.fuse, which comes with fuse3")
    with covered(Path("/usr/local")) as local:
        (local / "bin/kdbusfs").unlink(missing_ok=True)
        (local / "bin/kdbusfs").symlink_to(ROOT / ".venv/bin/kdbusfs")
        done("/sbin/mount.fuse", "kdbusfs", place, "-t", "fuse.kdbusfs", "-o", "rw,dev,suid")
        assert "all of it worked" in done(*EXERCISE, place)
        umount(place)


def test_behind_an_automount(sbin: Path, place: Path) -> None:
    """Until mount(8) has ended, autofs admits only the process group of its daemon: this one."""
    if "\tautofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("no autofs")
    reading, writing = os.pipe()
    data = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    done("mount", "-i", "-t", "autofs", "none", place, "-o", data, pass_fds=[writing])
    os.close(writing)
    trigger = os.open(place, os.O_RDONLY)
    visitor = subprocess.Popen(["ls", str(place)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert select.select([reading], [], [], 20)[0], "nobody asks for a mount"
        (token,) = struct.unpack_from("8xI", os.read(reading, 4096))
        done("mount", "-t", "fuse.kdbusfs", "kdbusfs", place, cwd="/")
        fcntl.ioctl(trigger, AUTOFS_IOC_READY, token)
        assert visitor.communicate(timeout=120)[0] == "control\n"
        assert "all of it worked" in done(*EXERCISE, place, start_new_session=True)
        umount(place, under="autofs")
    finally:
        fcntl.ioctl(trigger, AUTOFS_IOC_CATATONIC, 0)
        visitor.kill()
        visitor.wait()
        os.close(trigger)
        os.close(reading)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ("setuid=1000", 1, "mount option 'setuid=1000' is not supported: the daemon reaches its clients as root"),
        ("loglevel=loud", 1, "loglevel=loud: must be one of error, warning, info, debug"),
        ("knob=3", 1, "unknown mount option 'knob=3'; see kdbusfs --help"),
        ("fd=9", 1, "fd=9: no such descriptor was handed to this program"),
    ],
)
def test_an_invalid_option(sbin: Path, place: Path, kind: str, options: str, code: int, said: str) -> None:
    ended, line = complaint("mount", "-t", kind, "kdbusfs", place, "-o", f"nofail,{options}")
    assert ended == code and line.startswith(f"mount.{kind}: {said}")


def test_remount_is_refused(sbin: Path, place: Path) -> None:
    done("mount", "-t", "fuse.kdbusfs", "kdbusfs", place, cwd="/")
    code, said = complaint("mount", "-o", "remount,ro", place)
    assert code == 1 and said.endswith("'remount' is not supported: umount the domain and mount it again")
    code, said = complaint("mount", "-t", "fuse.kdbusfs", "kdbusfs", place)
    assert code == 32 and said.endswith(f"is a kdbusfs mount already: umount '{place}' first")
    umount(place)


def test_ordinary_users_are_told_what_it_takes(sbin: Path, place: Path) -> None:
    code, said = complaint(
        "setpriv", "--bounding-set=-sys_admin", HELPERS / "mount.fuse.kdbusfs", "kdbusfs", place, "-o", "rw"
    )
    assert code == 1 and said.startswith("mount.fuse.kdbusfs: mounting takes CAP_SYS_ADMIN: run as root")


def test_a_path_that_cannot_be_a_mount_point(sbin: Path, place: Path) -> None:
    (place / "file").touch()
    for name, hint in (("none", "does not exist"), ("file", "is not a directory")):
        code, said = complaint(HELPERS / "mount.kdbusfs", "kdbusfs", place / name)
        assert code == 32 and said.startswith(f"mount.kdbusfs: mount point '{place / name}' {hint}")


def test_helper_has_help(private_mounts: None) -> None:
    said = done(HELPERS / "mount.kdbusfs", "--help")
    assert said.startswith("usage: mount.kdbusfs ") and all(f" -{letter}" in said for letter in "sfnvNot")


# How a helper finds the program.


def program(path: Path, name: str) -> None:
    """A program that prints its name and arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho {name} "$@"\n')
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("helper", "found"),
    [
        ("bin", "bin/kdbusfs"),
        ("sbin", "bin/kdbusfs"),
        ("share/kdbusfs/mount-helpers", "bin/kdbusfs"),
        ("mount-helpers", ".venv/bin/kdbusfs"),
    ],
)
def test_helper_finds_the_program_beside_itself(tmp_path: Path, helper: str, found: str) -> None:
    """In a virtual environment, a prefix, a wheel unpacked by pip, and a checkout; also through a link."""
    (tmp_path / "there" / helper).mkdir(parents=True)
    copy = tmp_path / "there" / helper / "mount.kdbusfs"
    shutil.copy(HELPERS / "mount.fuse.kdbusfs", copy)
    program(tmp_path / "there" / found, "this")
    program(tmp_path / "path/kdbusfs", "another")
    link = tmp_path / "mount.fuse.kdbusfs"
    link.symlink_to(copy)
    environment = {"PATH": f"/usr/bin:/bin:{tmp_path}/path"}
    said = "this --mount-helper {} source a b\n"
    assert done(copy, "source", "a b", env=environment) == said.format("mount.kdbusfs")
    assert done(link, "source", "a b", env=environment) == said.format("mount.fuse.kdbusfs")


def test_helper_finds_the_program_where_it_was_installed_or_in_path(tmp_path: Path) -> None:
    copy = tmp_path / "mount.kdbusfs"
    shutil.copy(HELPERS / "mount.fuse.kdbusfs", copy)
    program(tmp_path / "path/kdbusfs", "another")
    environment = {"PATH": f"/usr/bin:/bin:{tmp_path}/path"}
    assert done(copy, env=environment) == "another --mount-helper mount.kdbusfs\n"
    program(tmp_path / "in stalled", "this")
    copy.write_text(copy.read_text().replace("\ninstalled=\n", f"\ninstalled='{tmp_path}/in stalled'\n"))
    assert done(copy, env=environment) == "this --mount-helper mount.kdbusfs\n"


def test_helper_without_a_program_says_so(tmp_path: Path) -> None:
    copy = tmp_path / "mount.kdbusfs"
    shutil.copy(HELPERS / "mount.fuse.kdbusfs", copy)
    code, said = complaint(copy, "source", "dir", env={"PATH": "/usr/bin:/bin"})
    assert code == 2 and said.startswith("mount.kdbusfs: the program kdbusfs is not found: ")


def test_umount_lets_users_go_on(place: Path) -> None:
    """FS-29: `umount -l` does not affect users inside; the daemon ends after the last of them."""
    done(*KDBUSFS, "s", place)
    mount = mounted(place)
    with subprocess.Popen(["sleep", "60"], cwd=place) as inside:
        try:
            busy = run("umount", place)
            assert busy.returncode == 32 and "busy" in busy.stderr
            done("umount", "-l", place)
            assert (Path(f"/proc/{inside.pid}/cwd") / "control").exists() and connection_of(mount).exists()
        finally:
            inside.kill()
    wait_for_end(mount)
