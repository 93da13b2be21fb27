"""`kdbusfs-sysview`: /sys/fs/kdbus and /sys/module/kdbus for programs that have these paths built in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs.client import make_bus
from kdbusfs.fuse.mount import mount_table, visible_mount
from kdbusfs.sysview import MARK, TARGETS
from tests.support import userns
from tests.support.commands import KDBUSFS, ROOT, complaint, done, run, umount, wait_for

pytestmark = pytest.mark.mount

SYSVIEW = (sys.executable, "-m", "kdbusfs.sysview")
OLD_PROGRAMS = Path(os.environ.get("KDBUSFS_SELFTESTS", ROOT.parent / "shared/tools/selftests"))

# Everything below the directories, except what changes by itself: path, type, target of a link.
_LIST = """
import os, stat, sys
for top in sys.argv[1:]:
    for at in (top, *(os.path.join(top, name) for name in sorted(os.listdir(top)))):
        if at.rpartition("/")[2] == "kdbus":
            continue
        found = os.lstat(at)
        link = os.readlink(at) if stat.S_ISLNK(found.st_mode) else ""
        names = sorted(os.listdir(at)) if at != top and stat.S_ISDIR(found.st_mode) else ""
        print(at, oct(found.st_mode), found.st_ino if at != top else "", link, names)
"""


@pytest.fixture
def domain(place: Path) -> Path:
    """A domain, with a mask that differs from the default."""
    done(*KDBUSFS, "s", place, "-o", "attach_flags_mask=23")
    return place


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that has only the path /sys/fs/kdbus."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("sysview") / "client"
    source = ROOT / "tests/support/sysview_client.c"
    subprocess.run(["cc", "-Wall", "-I", ROOT / "kdbusfs/include", source, "-o", program], check=True, timeout=120)
    return program


@pytest.fixture
def system_view(domain: Path) -> Iterator[Path]:
    """The view for the whole mount namespace, which only the tests use."""
    assert done(*SYSVIEW, "--system", domain) == ""
    try:
        yield domain
    finally:
        run(*SYSVIEW, "--undo")


def left_over() -> list[str]:
    return [entry.path for entry in mount_table() if MARK in entry.source or MARK in entry.path]


def test_a_program_with_the_old_path(domain: Path, client: Path) -> None:
    """MASK-1: at its old place, effective at once, and writable for root."""
    assert done(*SYSVIEW, domain, "--", client) == "to myself, mask 23, then 3\n"
    assert (domain / ".kdbusfs/parameters/attach_flags_mask").read_text() == "3\n"
    assert left_over() == [] and not Path("/sys/fs/kdbus").exists()
    umount(domain)


def test_the_command_keeps_its_ids_and_gives_its_status(domain: Path, client: Path) -> None:
    # Run a copy that other users can reach.
    program = domain.parent / f"{domain.name}-client"
    shutil.copy(client, program)
    try:
        assert done(*SYSVIEW, domain, "setpriv", "--reuid=1000", "--clear-groups", program) == "to myself, mask 23\n"
    finally:
        program.unlink()
    assert run(*SYSVIEW, domain, "sh", "-c", "exit 7").returncode == 7
    assert run(*SYSVIEW, domain, "--", "sh", "-c", "kill -9 $$").returncode == -9
    assert done(*SYSVIEW, domain, "printf", "%s,", "--", "-x", "--undo") == "--,-x,--undo,"


def test_everything_else_is_still_there(domain: Path) -> None:
    """Types, links, contents and what is mounted there, such as cgroup."""
    before = done(sys.executable, "-c", _LIST, *TARGETS)
    assert done(*SYSVIEW, domain, sys.executable, "-c", _LIST, *TARGETS) == before
    below = [entry for entry in mount_table() if entry.path.startswith("/sys/fs/")]
    inside = done(*SYSVIEW, domain, "cat", "/proc/self/mountinfo")
    for entry in below:
        assert f" {entry.device} " in inside and f" {entry.path} " in inside, entry


def test_nothing_can_be_made_in_the_view(domain: Path) -> None:
    for target in TARGETS:
        ended = run(*SYSVIEW, domain, "mkdir", f"{target}/another")
        assert ended.returncode == 1 and "Read-only file system" in ended.stderr
    script = 'stat -c "%a %u %g" "$@"'
    modes = done(*SYSVIEW, domain, "sh", "-c", script, "sh", "/sys/fs/kdbus", "/sys/module/kdbus")
    assert modes == "555 0 0\n755 0 0\n"


def test_links_and_files_are_kept(domain: Path, place: Path) -> None:
    """Not every machine has links or files at these places of sysfs, so the test adds them."""
    script = f"""
        set -e
        mkdir /dev/shm/$$ && cd /dev/shm/$$ && mkdir -m 711 directory && echo text > file && ln -s file link
        mount --bind . /sys/fs
        {" ".join(SYSVIEW)} {domain} sh -c 'cd /sys/fs; cat link; readlink link; stat -c %F:%a directory file; ls'
        rm -r /dev/shm/$$
    """
    lines = done("unshare", "-m", "sh", "-c", script, cwd=ROOT).splitlines()
    assert lines == ["text", "file", "directory:711", "regular file:644", "directory", "file", "kdbus", "link"]


def test_a_container_that_has_no_modules_in_its_sysfs(domain: Path) -> None:
    script = f"""
        set -e
        mount -t tmpfs none /sys && mkdir -p /sys/fs/cgroup
        {" ".join(SYSVIEW)} {domain} sh -c 'ls /sys /sys/fs/kdbus'
        umount /sys; mount -t tmpfs none /sys
        {" ".join(SYSVIEW)} {domain} true 2>&1 || echo $?
    """
    lines = done("unshare", "-m", "sh", "-c", script, cwd=ROOT).splitlines()
    assert lines[:4] == ["/sys:", "fs", "", "/sys/fs/kdbus:"]
    assert lines[4:] == [
        "control",
        "kdbusfs-sysview: the view cannot be made: /sys/fs: No such file or directory",
        "32",
    ]


def test_a_view_of_another_domain_inside_a_view(system_view: Path, place: Path) -> None:
    other = Path(f"{place}-other")
    other.mkdir()
    try:
        done(*KDBUSFS, "s", other)
        with make_bus(other, "there"):
            assert "there" in done(*SYSVIEW, other, "ls", "/sys/fs/kdbus")
            assert "there" not in done("ls", "/sys/fs/kdbus")
        umount(other)
    finally:
        other.rmdir()


def test_the_whole_system(domain: Path, client: Path) -> None:
    before = done(sys.executable, "-c", _LIST, *TARGETS)
    mounts = len(mount_table())
    assert done(*SYSVIEW, "--system", domain) == ""
    try:
        assert done(client) == "to myself, mask 23, then 3\n"
        assert done(sys.executable, "-c", _LIST, *TARGETS) == before
        assert stat.S_IMODE(os.stat("/sys/fs").st_mode) == 0o755
        code, said = complaint(*SYSVIEW, "--system", domain)
        assert (code, said) == (32, "kdbusfs-sysview: /sys/fs is such a view already: kdbusfs-sysview --undo")
    finally:
        ended = run(*SYSVIEW, "--undo")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert left_over() == [] and len(mount_table()) == mounts
    assert done(sys.executable, "-c", _LIST, *TARGETS) == before
    code, said = complaint(*SYSVIEW, "--undo")
    assert (code, said) == (32, "kdbusfs-sysview: there is no view to remove")
    umount(domain)


def test_undo_leaves_what_is_mounted_below_alone(domain: Path) -> None:
    """Also with shared mounts, as systemd makes them: an unmount in the view does not propagate."""
    script = f"""
        set -e
        mount --make-rshared /
        mount -t tmpfs shared /sys/fs/fuse/connections
        mkdir /sys/fs/fuse/connections/deep; mount -t tmpfs deeper /sys/fs/fuse/connections/deep
        {" ".join(SYSVIEW)} --system {domain}
        {" ".join(SYSVIEW)} --undo
        grep -c -e shared -e deeper /proc/self/mounts
    """
    assert done("unshare", "-m", "sh", "-c", script, cwd=ROOT) == "2\n"


def test_a_failure_leaves_nothing(domain: Path) -> None:
    script = f"""
        mount -t tmpfs none /sys/module
        umount -l /sys/module
        for place in /tmp /var/tmp /usr/tmp; do mount --rbind $place $place; mount -o remount,bind,ro $place; done
        TMPDIR=/tmp {" ".join(SYSVIEW)} --system {domain}; echo $?
        grep -c {MARK} /proc/self/mounts
    """
    ended = run("unshare", "-m", "sh", "-c", script, cwd="/sys")
    assert ended.stdout == "32\n0\n", ended
    assert [line for line in ended.stderr.splitlines() if line.startswith("kdbusfs-sysview: ")], ended


def test_in_a_user_namespace(private_mounts: None) -> None:
    """Without root outside: a user's own domain at /sys/fs/kdbus."""
    kdbusfs, view = " ".join(KDBUSFS), " ".join(SYSVIEW)
    script = f"""
        set -e
        mount -t tmpfs none /mnt
        {kdbusfs} s /mnt
        trap "umount -l /mnt" EXIT
        {view} /mnt ls /sys/fs/kdbus /sys/fs
    """
    ended = run(*userns.command("single", "sh", "-c", script))
    if "user namespace" in ended.stderr or "unshare" in ended.stderr:
        pytest.skip("ordinary users may not make user namespaces here")
    assert (ended.returncode, ended.stderr) == (0, "")
    everything, _, ours = ended.stdout.partition("/sys/fs/kdbus:\n")
    assert ours == "control\n"
    assert everything.split() == ["/sys/fs:", *sorted([*os.listdir("/sys/fs"), "kdbus"])]


def test_selftests_with_their_built_in_paths(domain: Path) -> None:
    """The self-tests of kdbus, without --root and --module."""
    program = Path(f"/tmp/kdbus-selftests-{os.getuid()}/tools/testing/selftests/kdbus/kdbus-test")
    if not OLD_PROGRAMS.exists():
        pytest.skip(f"the tool that builds the self-tests is not there: {OLD_PROGRAMS}")
    if not program.exists():
        run(OLD_PROGRAMS, domain, "hello", timeout=300)
    for test in ("bus-make", "metadata-ns", "attach-flags", "policy-ns"):
        ended = run(*SYSVIEW, domain, program, "--test", test)
        assert ended.returncode == 0 and ": OK" in ended.stdout, ended


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "MOUNTPOINT is missing; see kdbusfs-sysview --help"),
        (["{}"], 1, "a COMMAND is needed, or --system; see kdbusfs-sysview --help"),
        (["{}", "--"], 1, "a COMMAND is needed, or --system; see kdbusfs-sysview --help"),
        (["--system"], 1, "MOUNTPOINT is missing; see kdbusfs-sysview --help"),
        (["--system", "{}", "true"], 1, "--system takes no COMMAND; see kdbusfs-sysview --help"),
        (["--undo", "{}"], 1, "--undo takes nothing else; see kdbusfs-sysview --help"),
        (["--undo", "--system"], 1, "--undo takes nothing else; see kdbusfs-sysview --help"),
        (["--knob", "{}", "true"], 1, "unrecognized arguments: --knob; see kdbusfs-sysview --help"),
        (["/usr", "true"], 32, "'/usr' is not a kdbusfs domain: No such file or directory"),
        (["{}/control", "true"], 32, "'{}/control' is not a kdbusfs domain: Not a directory"),
        (["{}/none", "true"], 32, "'{}/none' is not a kdbusfs domain: No such file or directory"),
        (["{}", "no-such-program"], 127, "cannot execute 'no-such-program': No such file or directory"),
        (["{}", "/etc/passwd"], 126, "cannot execute '/etc/passwd': Permission denied"),
    ],
)
def test_wrong_use(domain: Path, arguments: list[str], code: int, said: str) -> None:
    words = [word.replace("{}", str(domain)) for word in arguments]
    assert complaint(*SYSVIEW, *words) == (code, f"kdbusfs-sysview: {said.replace('{}', str(domain))}")
    assert left_over() == []


def test_without_privilege(domain: Path) -> None:
    code, said = complaint("setpriv", "--bounding-set=-sys_admin", *SYSVIEW, domain, "true")
    assert code == 1 and said.startswith("kdbusfs-sysview: needs CAP_SYS_ADMIN: run as root")


def test_the_domain_of_a_daemon_that_is_gone(place: Path) -> None:
    with subprocess.Popen([*KDBUSFS, "s", str(place), "-f"]) as daemon:
        wait_for(place)
        daemon.kill()
    code, said = complaint(*SYSVIEW, place, "true")
    assert code == 32 and said.endswith("Transport endpoint is not connected: its daemon has ended")
    entry = visible_mount(str(place))
    assert entry is not None


def test_help_is_printed(private_mounts: None) -> None:
    said = done(*SYSVIEW, "--help")
    assert all(word in said for word in ("MOUNTPOINT [--] COMMAND", "--system", "--undo", " 32 ", " 126 ", " 127 "))
