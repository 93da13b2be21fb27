"""Process metadata of real processes, kind by kind."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from errno import EINVAL, ESRCH
from pathlib import Path
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import Creds, Pids
from kdbusfs.base.ports import ProcessMetadata
from kdbusfs.host.host import LinuxHost
from tests.operations.host_child import Child

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    host = LinuxHost()
    yield host
    host.close()


def collected(host: LinuxHost, tid: int, kinds: int = c.ATTACH_PROCESS) -> ProcessMetadata:
    metadata = ProcessMetadata()
    host.caller(tid).collect(metadata, kinds)
    assert metadata.collected == kinds
    return metadata


def inner_pid(child: Child) -> int:
    return int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())


def spawned(program: str | Path, arguments: list[str], **options: Any) -> int:
    """A process that has got through execve(2)."""
    process = os.posix_spawn(program, arguments, {}, **options)
    deadline = time.monotonic() + 240
    while not Path(f"/proc/{process}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.001)
    return process


def test_everything_of_an_ordinary_process(host: LinuxHost) -> None:
    """META-6 to META-14."""
    with Child("os.setgroups([9, 4])\n") as child:
        child.ask("1")
        metadata = collected(host, child.pid)
        own = host.namespaces.pid
        assert metadata.creds == Creds(*[0] * 8)
        assert metadata.pids == {own: Pids(child.pid, child.pid, os.getpid())}
        assert metadata.auxgroups == (4, 9)
        assert metadata.tid_comm == metadata.pid_comm == os.path.basename(sys.executable).encode()[:15]
        assert metadata.exe == PYTHON.encode()
        assert metadata.root == host.caller(os.getpid()).root
        assert metadata.cmdline == sys.executable.encode()
        assert metadata.cgroup.startswith(b"/")
        last_cap, *words = struct.unpack("<9I", metadata.caps)
        assert last_cap == int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        assert words[2:4] == words[4:6] != [0, 0]
        assert metadata.user_ns == host.namespaces.user
        always = c.ATTACH_PROCESS & ~(c.ATTACH_SECLABEL | c.ATTACH_AUDIT)
        assert metadata.valid & always == always


def test_only_what_is_asked_for_is_gathered_and_only_once(host: LinuxHost) -> None:
    metadata = ProcessMetadata()
    caller = host.caller(os.getpid())
    caller.collect(metadata, c.ATTACH_CREDS | c.ATTACH_TIMESTAMP | c.ATTACH_NAMES)
    assert metadata.collected == metadata.valid == c.ATTACH_CREDS
    assert metadata.cmdline == b"" and metadata.pids == {}
    metadata.creds = None
    caller.collect(metadata, c.ATTACH_CREDS | c.ATTACH_AUXGROUPS)
    assert metadata.creds is None
    assert metadata.valid == c.ATTACH_CREDS | c.ATTACH_AUXGROUPS


def test_kinds_that_this_host_may_lack(host: LinuxHost) -> None:
    """META-14: a label or audit ids exactly where the kernel has them."""
    metadata = collected(host, os.getpid())
    try:
        label = Path("/proc/self/attr/current").read_bytes().rstrip(b"\n\0")
    except OSError:
        label = b""
    for found in (metadata, collected(host, os.getpid())):
        assert found.seclabel == label
        assert bool(found.valid & c.ATTACH_SECLABEL) == bool(label)
    audit = Path("/proc/self/sessionid")
    assert bool(metadata.valid & c.ATTACH_AUDIT) == audit.exists()
    if audit.exists():
        assert metadata.sessionid == int(audit.read_text())
        assert metadata.loginuid == int(Path("/proc/self/loginuid").read_text())


def test_a_thread_has_its_own_number_and_name(host: LinuxHost) -> None:
    """META-7, META-9: odd names are told as they are."""
    text = """
def other():
    libc.prctl(15, b"a\\nb (c) \\xff")
    libc.syscall(117, 0, 77, 0)
    say(tid=tid())
    threading.Event().wait()
threading.Thread(target=other, daemon=True).start()
"""
    with Child(text) as child:
        tid = child.hear()["tid"]
        metadata = collected(host, tid)
        assert metadata.tid_comm == b"a\nb (c) \xff"
        assert metadata.pid_comm == os.path.basename(sys.executable).encode()[:15]
        assert metadata.pids == {host.namespaces.pid: Pids(child.pid, tid, os.getpid())}
        assert metadata.creds is not None and metadata.creds.euid == 77
        assert metadata.cmdline == sys.executable.encode()
        assert metadata.exe == PYTHON.encode()


def test_numbers_in_a_child_pid_namespace(host: LinuxHost) -> None:
    """META-7, META-20: each namespace has its own numbers, 0 where the parent is not visible."""
    text = """
import subprocess
sub = subprocess.Popen(["sleep", "60"])
say(sub=sub.pid)
"""
    with Child(text, prefix=("unshare", "-p", "-f", "--kill-child")) as child:
        assert child.hear()["sub"] == 2
        inner = inner_pid(child)
        sub = int(Path(f"/proc/{inner}/task/{inner}/children").read_text())
        own, there = host.namespaces.pid, host.caller(inner).pid_ns
        assert collected(host, inner, c.ATTACH_PIDS).pids == {
            own: Pids(inner, inner, child.pid),
            there: Pids(1, 1, 0),
        }
        assert collected(host, sub, c.ATTACH_PIDS).pids == {own: Pids(sub, sub, inner), there: Pids(2, 2, 1)}


def test_a_thread_in_a_child_pid_namespace(host: LinuxHost) -> None:
    """META-7: the thread has a number of its own there too."""
    text = """
def other():
    say(tid=tid())
    threading.Event().wait()
threading.Thread(target=other, daemon=True).start()
"""
    with Child(text, prefix=("unshare", "-p", "-f", "--kill-child")) as child:
        assert child.hear()["tid"] == 2
        inner = inner_pid(child)
        (thread,) = [int(each) for each in os.listdir(f"/proc/{inner}/task") if int(each) != inner]
        own, there = host.namespaces.pid, host.caller(inner).pid_ns
        assert collected(host, thread, c.ATTACH_PIDS).pids == {
            own: Pids(inner, thread, child.pid),
            there: Pids(1, 2, 0),
        }


def test_numbers_in_nested_pid_namespaces(host: LinuxHost) -> None:
    prefix = ("unshare", "-p", "-f", "--kill-child", "unshare", "-p", "-f", "--kill-child")
    with Child(prefix=prefix) as child:
        child.ask("1")
        middle = inner_pid(child)
        inner = int(Path(f"/proc/{middle}/task/{middle}/children").read_text())
        pids = collected(host, inner, c.ATTACH_PIDS).pids
        own, outer_ns, inner_ns = host.namespaces.pid, host.caller(middle).pid_ns, host.caller(inner).pid_ns
        assert pids == {own: Pids(inner, inner, middle), outer_ns: Pids(2, 2, 1), inner_ns: Pids(1, 1, 0)}


def test_capabilities_carry_their_user_namespace(host: LinuxHost) -> None:
    """META-13."""
    with Child(prefix=("unshare", "-Ur")) as child:
        child.ask("1")
        metadata = collected(host, child.pid, c.ATTACH_CAPS)
        assert metadata.user_ns == host.caller(child.pid).user_ns != host.namespaces.user


def test_a_program_that_was_deleted(host: LinuxHost, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    process = spawned(program, ["a b", "60"])
    try:
        assert collected(host, process, c.ATTACH_EXE).exe == str(program).encode()
        program.unlink()
        metadata = collected(host, process, c.ATTACH_EXE | c.ATTACH_CMDLINE)
        assert metadata.exe == f"{program} (deleted)".encode()
        assert metadata.cmdline == b"a b"
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)


def test_the_program_is_seen_from_its_own_root(host: LinuxHost) -> None:
    """META-10."""
    with Child("os.chroot('/usr')\n") as child:
        child.ask("1")
        jailed = collected(host, child.pid, c.ATTACH_EXE)
        assert jailed.root == host.caller(child.pid).root != host.caller(os.getpid()).root
        expected = PYTHON.removeprefix("/usr") if PYTHON.startswith("/usr/") else PYTHON
        assert jailed.exe == expected.encode()
    with Child(f"os.chroot({os.path.dirname(PYTHON)!r})\n") as child:
        child.ask("1")
        assert collected(host, child.pid, c.ATTACH_EXE).exe == b"/" + os.path.basename(PYTHON).encode()


def test_a_program_whose_path_is_too_long_is_left_out(host: LinuxHost, tmp_path: Path) -> None:
    """META-10: in kdbus it fails the receiver's RECV."""
    name = "d" * 255
    directory = os.open(tmp_path, os.O_PATH)
    for _ in range(17):
        os.mkdir(name, dir_fd=directory)
        inner = os.open(name, os.O_PATH, dir_fd=directory)
        os.close(directory)
        directory = inner
    shutil.copy("/bin/cat", f"/proc/self/fd/{directory}/cat")
    process = spawned(f"/proc/self/fd/{directory}/cat", ["cat"], file_actions=[(os.POSIX_SPAWN_DUP2, os.pipe()[0], 0)])
    try:
        assert collected(host, process).valid & (c.ATTACH_EXE | c.ATTACH_CMDLINE) == c.ATTACH_CMDLINE
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(directory)
        shutil.rmtree(tmp_path / name)


def test_the_root_of_another_mount_namespace_is_another_one(host: LinuxHost) -> None:
    with Child(prefix=("unshare", "-m")) as child:
        child.ask("1")
        metadata = collected(host, child.pid, c.ATTACH_EXE)
        assert metadata.root != host.caller(os.getpid()).root
        assert metadata.exe == PYTHON.encode()


@pytest.mark.parametrize("length", [1, 4094, 4095, 4096, 5000, 100000])
@pytest.mark.parametrize("arguments", [[], ["60", "x"]])
def test_the_first_argument_whatever_its_length(host: LinuxHost, length: int, arguments: list[str]) -> None:
    """META-11."""
    process = spawned(PYTHON, ["p" * length, "-c", "import time; time.sleep(60)", *arguments])
    try:
        assert collected(host, process, c.ATTACH_CMDLINE).cmdline == b"p" * length
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)


def test_an_only_argument(host: LinuxHost) -> None:
    process = spawned("/bin/cat", ["only"], file_actions=[(os.POSIX_SPAWN_DUP2, os.pipe()[0], 0)])
    try:
        assert collected(host, process, c.ATTACH_CMDLINE).cmdline == b"only"
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)


def test_a_title_across_the_end_of_the_arguments_is_einval(host: LinuxHost) -> None:
    """HELLO-12: the argument area has no end of string."""
    text = """
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = int(stat[45]), int(stat[46])
ctypes.memset(start, ord("t"), end - start + 1)
"""
    with Child(text) as child:
        child.ask("1")
        with pytest.raises(CommandError) as info:
            collected(host, child.pid, c.ATTACH_CMDLINE)
        assert info.value.errno == EINVAL


def test_a_thread_that_vanished_is_esrch(host: LinuxHost) -> None:
    child = Child()
    child.ask("1")
    child.end()
    for bit in range(14):
        kind = 1 << bit
        if kind & c.ATTACH_PROCESS & ~c.ATTACH_EXE:
            with pytest.raises(CommandError) as info:
                host.caller(child.pid).collect(ProcessMetadata(), kind)
            assert info.value.errno == ESRCH, kind


def test_many_groups(host: LinuxHost) -> None:
    with Child("os.setgroups(range(100000, 140000))\n") as child:
        child.ask("1")
        assert collected(host, child.pid, c.ATTACH_AUXGROUPS).auxgroups == tuple(range(100000, 140000))
