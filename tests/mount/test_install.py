"""`make install`, `make uninstall` and the wheel, used outside of the checkout."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs import __version__
from tests.support.checkout import building, lend_dependencies, make
from tests.support.commands import EXERCISE, ROOT, complaint, covered, done, run, umount

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(shutil.which("make") is None or shutil.which("cc") is None, reason="no C compiler or no make"),
]

HOME = "usr/local/lib/kdbusfs"
INSTALLED = [
    "sbin/mount.fuse.kdbusfs",
    "sbin/mount.kdbusfs",
    "usr/local/bin/kdbusctl",
    "usr/local/bin/kdbusfs",
    "usr/local/bin/kdbusfs-sysview",
    "usr/local/lib/systemd/system/kdbusfs-sysview.service",
    "usr/local/lib/systemd/system/kdbusfs.service",
    "usr/local/lib/systemd/system/run-kdbusfs.automount",
    "usr/local/lib/systemd/system/run-kdbusfs.mount",
    "usr/local/share/bash-completion/completions/kdbusctl",
    "usr/local/share/fish/vendor_completions.d/kdbusctl.fish",
    "usr/local/share/zsh/site-functions/_kdbusctl",
]


def commands() -> Iterator[list[str]]:
    """The command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace").split("\0")


@pytest.fixture(scope="module")
def stage(private_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `make install` puts below DESTDIR."""
    path = tmp_path_factory.mktemp("stage")
    with building():
        make("install", f"DESTDIR={path}", "PIP_FLAGS=--no-deps")
    lend_dependencies(path / HOME)
    return path


@pytest.fixture
def installed(stage: Path) -> Iterator[None]:
    """The system with the staged files installed."""
    with covered(Path("/usr/local")) as local, covered(Path("/usr/sbin")) as sbin:
        for source, target in ((stage / "usr/local", local), (stage / "sbin", sbin)):
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        yield


def test_what_is_installed(stage: Path) -> None:
    found = [
        str(at.relative_to(stage))
        for at in sorted(stage.rglob("*"))
        if not at.is_dir() and not at.is_relative_to(stage / HOME)
    ]
    optional = [name for name in found if "/share/man/" in name]
    assert sorted(set(found) - set(optional)) == INSTALLED
    pages = {path.name.removesuffix(".rst") for path in (ROOT / "docs/man").glob("*.rst")}
    assert pages == {name.rpartition("/")[2] for name in found if "/share/man/" in name}


def test_nothing_that_is_installed_knows_where_it_was_staged(stage: Path) -> None:
    ended = run("grep", "-rlI", stage, stage)
    assert (ended.returncode, ended.stdout) == (1, "")
    compiled = run("grep", "-rl", "--include=*.pyc", stage, stage)
    assert (compiled.returncode, compiled.stdout) == (1, "")


def test_units_and_helpers_name_the_installed_program(stage: Path) -> None:
    for unit in ("kdbusfs", "kdbusfs-sysview"):
        text = (stage / f"usr/local/lib/systemd/system/{unit}.service").read_text()
        assert f"\nExecStart=/usr/local/bin/{unit} " in text and "Exec" + "Start=kdbusfs" not in text
    assert f"\ninstalled=/{HOME}/bin/kdbusfs\n" in (stage / "sbin/mount.fuse.kdbusfs").read_text()
    assert os.readlink(stage / "sbin/mount.kdbusfs") == "mount.fuse.kdbusfs"
    assert stat.S_IMODE((stage / "sbin/mount.fuse.kdbusfs").stat().st_mode) == 0o755


def test_installed_it_mounts_and_serves(installed: None, place: Path) -> None:
    """mount(8) finds its helpers, the helpers find the program, and the program its own Python."""
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    assert done("kdbusfs", "--version", cwd="/", env=clean) == f"kdbusfs {__version__}\n"
    for kind in ("fuse.kdbusfs", "kdbusfs"):
        done("mount", "-t", kind, "kdbusfs", place, cwd="/", env=clean)
        assert "all of it worked" in done(f"/{HOME}/bin/python", EXERCISE[1], place, cwd="/", env=clean)
        assert "control" in done("kdbusfs-sysview", place, "ls", "/sys/fs/kdbus", cwd="/", env=clean)
        umount(place)


def test_installed_units_are_valid(installed: None) -> None:
    """systemd-analyze reports nothing, also about the commands."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze, which comes with systemd")
    units = [f"/{name}" for name in INSTALLED if "/systemd/" in name]
    assert done("systemd-analyze", "verify", "--man=no", *units) == ""


def test_uninstall_leaves_nothing(stage: Path, tmp_path: Path) -> None:
    copy = tmp_path / "stage"
    shutil.copytree(stage, copy, symlinks=True)
    (copy / "usr/local/bin/another").touch()
    make("uninstall", f"DESTDIR={copy}")
    left = [str(at.relative_to(copy)) for at in sorted(copy.rglob("*")) if not at.is_dir()]
    assert left == ["usr/local/bin/another"]
    make("uninstall", f"DESTDIR={copy}")


def test_the_wheel_has_helpers_and_units(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2]: archive.getinfo(name) for name in archive.namelist()}
        everything = archive.namelist()
    shared = sorted(name for name in names if name.startswith("share/kdbusfs/"))
    helpers = [f"share/kdbusfs/mount-helpers/{name}" for name in ("mount.fuse.kdbusfs", "mount.kdbusfs")]
    units = [f"share/kdbusfs/systemd/{unit.name}" for unit in sorted((ROOT / "mount-helpers/systemd").iterdir())]
    assert shared == sorted([*helpers, *units])
    assert all(names[name].external_attr >> 16 & 0o111 for name in helpers)
    assert "kdbusfs/include/kdbus.h" in everything and "kdbusfs/py.typed" in everything
    assert not any(name.endswith((".c", ".o")) or name.startswith("tests") for name in everything)


def test_the_wheel_works_outside_of_the_checkout(wheel_environment: Path, place: Path) -> None:
    python = wheel_environment / "bin/python"
    clean = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    where = done(python, "-c", "import kdbusfs; print(kdbusfs.__file__)", cwd="/", env=clean)
    assert Path(where.strip()).is_relative_to(wheel_environment)
    done(wheel_environment / "bin/kdbusfs", "kdbusfs", place, cwd="/", env=clean)
    assert "all of it worked" in done(python, EXERCISE[1], place, cwd="/", env=clean)
    sysview = wheel_environment / "bin/kdbusfs-sysview"
    assert "control" in done(sysview, place, "ls", "/sys/fs/kdbus", cwd="/", env=clean)
    umount(place)


def test_helpers_of_the_wheel_find_the_virtual_environment(wheel_environment: Path, place: Path) -> None:
    """Links from /sbin work, as README.md says; a copy without a program beside it reports what is missing."""
    with covered(Path("/usr/sbin")) as sbin:
        for helper in ("mount.fuse.kdbusfs", "mount.kdbusfs"):
            (sbin / helper).unlink(missing_ok=True)
            (sbin / helper).symlink_to(wheel_environment / "share/kdbusfs/mount-helpers" / helper)
        for kind in ("fuse.kdbusfs", "kdbusfs"):
            done("mount", "-t", kind, "kdbusfs", place, cwd="/")
            (program,) = {words[1] for words in commands() if "--mount-helper" in words and str(place) in words}
            assert Path(program).resolve() == wheel_environment / "bin/kdbusfs"
            umount(place)
        shutil.copy(wheel_environment / "share/kdbusfs/mount-helpers/mount.fuse.kdbusfs", place / "lost")
        code, said = complaint(place / "lost", "a", "b", env={"PATH": "/usr/bin:/bin"})
        assert code == 2 and "is not found" in said
