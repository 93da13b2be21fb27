"""The systemd units: the daemon needs exactly what they give it, and the hardening that they omit would break it."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.fuse.mount import visible_mount
from tests.support import confine
from tests.support.commands import EXERCISE, KDBUSFS, ROOT, done, run, wait_for

pytestmark = pytest.mark.mount

UNITS = ROOT / "mount-helpers/systemd"
CONFINED = (sys.executable, confine.__file__)
USER = 1000
NAMES = ["sys_admin", "sys_ptrace", "dac_read_search", "sys_nice"]
# A domain whose root directory only its owner may enter, and root with DAC_READ_SEARCH.
CLOSED = f"mode=500,uid={USER},gid={USER},attach_flags_mask={c.ATTACH_ALL:#x}"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def bounded(names: list[str]) -> list[str]:
    """The prefix of a command that limits it to these capabilities."""
    return ["setpriv", "--bounding-set=" + ",".join(["-all", *(f"+{name}" for name in names)]), "--no-new-privs"]


@contextmanager
def daemon(*command: object, warns: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground whose domain exists; it ends with the block.

    It prints nothing, except expected warnings about what it lacks.
    """
    words = [str(word) for word in command]
    place = words[words.index("s") + 1]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        try:
            wait_for(place)
            yield process
            process.terminate()
            assert process.wait(120) == 0
            assert process.stderr is not None
            warned = process.stderr.read().decode()
        finally:
            process.kill()
    start = f"kdbusfs: WARNING: {warns}" if warns else ""
    assert warned.startswith(start) and warned.count("\n") == bool(warns), warned
    assert visible_mount(place) is None


@pytest.mark.parametrize(("name", "section"), [("kdbusfs.service", "Service"), ("run-kdbusfs.mount", "Mount")])
def test_units_name_the_same_capabilities(name: str, section: str) -> None:
    found = unit(name)[section]["CapabilityBoundingSet"]
    assert found.split() == [f"CAP_{name.upper()}" for name in NAMES]


@pytest.mark.parametrize(("name", "section"), [("kdbusfs.service", "Service"), ("run-kdbusfs.mount", "Mount")])
def test_units_have_nothing_that_hides_the_mount_or_confines_by_seccomp(name: str, section: str) -> None:
    settings = unit(name)[section]
    harmful = ("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "TemporaryFileSystem", "Root")
    seccomp = ("SystemCall", "Restrict", "MemoryDeny", "LockPersonality", "DynamicUser", "MountFlags")
    allowed = ("Restart", "RestartSec")
    assert not [key for key in settings if key.startswith((*harmful, *seccomp)) and key not in allowed]
    assert int(settings["OOMScoreAdjust"]) < 0 and int(settings["LimitNOFILE"]) >= 1 << 20


def test_those_capabilities_are_enough(place: Path) -> None:
    """For clients of root and of users, with all metadata, in a domain that root may not enter."""
    with daemon(*bounded(NAMES), *KDBUSFS, "s", place, "-f", "-o", CLOSED) as process:
        for user in (0, USER):
            assert "all of it worked" in done(*EXERCISE, place, user)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) < 0


def test_those_capabilities_are_enough_for_clients_in_containers(place: Path) -> None:
    with daemon(*bounded(NAMES), *KDBUSFS, "s", place, "-f", "-o", f"attach_flags_mask={c.ATTACH_ALL:#x}"):
        container = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net")
        assert "all of it worked" in done(*container, *EXERCISE, place)


def test_without_ptrace_no_client_can_be_served(place: Path) -> None:
    names = [name for name in NAMES if name != "sys_ptrace"]
    with daemon(*bounded(names), *KDBUSFS, "s", place, "-f", warns="without CAP_SYS_PTRACE only clients"):
        ended = run(*EXERCISE, place, USER)
        assert ended.returncode != 0 and "PermissionError" in ended.stderr


def test_without_dac_read_search_pools_are_not_protected(place: Path) -> None:
    names = [name for name in NAMES if name != "dac_read_search"]
    with daemon(*bounded(names), *KDBUSFS, "s", place, "-f", warns="without CAP_DAC_READ_SEARCH clients"):
        ended = run(*EXERCISE, place, USER)
        assert ended.returncode != 0 and "its pool could be mapped writable" in ended.stderr


def test_without_nice_it_is_an_ordinary_process(place: Path) -> None:
    names = [name for name in NAMES if name != "sys_nice"]
    with daemon(*bounded(names), *KDBUSFS, "s", place, "-f") as process:
        assert "all of it worked" in done(*EXERCISE, place, USER)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 0


@pytest.mark.parametrize("user", [0, USER])
def test_a_daemon_under_seccomp_cannot_hand_descriptors_to_clients_under_seccomp(place: Path, user: int) -> None:
    """RECV-13: PTRACE_O_SUSPEND_SECCOMP requires a tracer without a filter."""
    with daemon(*KDBUSFS, "s", place, "-f"):
        assert "all of it worked" in done(*CONFINED, *EXERCISE, place, user)
    warns = "clients with a seccomp filter get no descriptors and can write to their own pools: the daemon has one too"
    with daemon(*CONFINED, *KDBUSFS, "s", place, "-f", warns=warns):
        assert "all of it worked" in done(*EXERCISE, place, user)
        ended = run(*CONFINED, *EXERCISE, place, user)
        assert ended.returncode != 0 and "its pool could be mapped writable" in ended.stderr


def test_what_the_service_does_after_the_end_clears_the_mount_of_a_dead_daemon(place: Path) -> None:
    """Where it was stopped; one that was killed is to be served again."""
    line = unit("kdbusfs.service")["Service"]["ExecStopPost"].removeprefix("-").replace("/run/kdbusfs", str(place))
    assert str(place) in line
    command = shlex.split(line.replace("$$", "$"))
    with subprocess.Popen([*KDBUSFS, "s", str(place), "-f"]) as process:
        wait_for(place)
        with open(place / "control") as kept, subprocess.Popen(["sleep", "60"], stdin=kept) as client:
            process.kill()
            process.wait(120)
            assert visible_mount(str(place)) is not None
            done(*command, env={**os.environ, "SERVICE_RESULT": "signal"})
            assert visible_mount(str(place)) is not None
            done(*command, env={**os.environ, "SERVICE_RESULT": "success"})
            client.kill()
    assert visible_mount(str(place)) is None
    # systemd runs it after every end.
    assert run(*command, env={**os.environ, "SERVICE_RESULT": "success"}).stdout == ""


def test_mount_unit_by_mount_with_those_capabilities(place: Path) -> None:
    """As systemd does for run-kdbusfs.mount: mount(8) and umount(8) with only the rights of the unit."""
    helper = ROOT / "mount-helpers/mount.fuse.kdbusfs"
    done(*bounded(NAMES), helper, "kdbusfs", place, "-o", "rw")
    assert "all of it worked" in done(*EXERCISE, place, USER)
    done(*bounded(NAMES), "umount", place, "-c")
    assert visible_mount(str(place)) is None


def test_units_are_valid(tmp_path: Path) -> None:
    """Unmodified, with program names without paths; test_install.py checks them with paths."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze, which comes with systemd")
    for source in UNITS.iterdir():
        text = source.read_text().replace("=kdbusfs-sysview ", "=true ").replace("=kdbusfs ", "=true ")
        (tmp_path / source.name).write_text(text)
    assert done("systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())) == ""
