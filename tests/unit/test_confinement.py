"""What is read from /proc and /sys about capabilities, security modules, seccomp and containers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbusfs.host.confinement import CAP_SYS_ADMIN, CAP_SYS_PTRACE, Confinement, allowing, confinement


class System:
    """A /proc and a /sys of a machine without any of it, to be written to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n")
        self.write("proc/self/uid_map", "         0          0 4294967295\n")
        self.write("proc/sys/vm/overcommit_memory", "0\n")
        self.write("dev/fuse", "")
        self.set_pid_namespace(4026531836)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def set_pid_namespace(self, number: int) -> None:
        path = self.root / "proc/self/ns/pid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(f"pid:[{number}]")

    def found(self) -> Confinement:
        return confinement(self.root)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.delenv("container", raising=False)
    return System(tmp_path)


def test_a_free_machine(system: System) -> None:
    assert system.found() == Confinement(capabilities=(1 << 41) - 1, overcommit=0)


def test_capabilities_and_seccomp(system: System) -> None:
    system.write("proc/self/status", "Name:\tx: y\nCapEff:\t0000000000200000\nSeccomp:\t2\n")
    found = system.found()
    assert found.has(CAP_SYS_ADMIN) and not found.has(CAP_SYS_PTRACE) and found.seccomp == 2


def test_the_device(system: System) -> None:
    (system.root / "dev/fuse").unlink()
    assert not system.found().device


def test_yama_and_overcommit(system: System) -> None:
    system.write("proc/sys/kernel/yama/ptrace_scope", "3\n")
    system.write("proc/sys/vm/overcommit_memory", "2\n")
    assert (system.found().yama, system.found().overcommit) == (3, 2)


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("unconfined\n", None),
        ("containers-default-0.50.1 (enforce)\n", "containers-default-0.50.1"),
        ("docker-default (complain)", None),
        ("a profile (kill)\0", "a profile"),
        ("", None),
    ],
)
@pytest.mark.parametrize("file", ["apparmor/current", "current"])
def test_apparmor(system: System, file: str, text: str, profile: str | None) -> None:
    (system.root / "sys/module/apparmor").mkdir(parents=True)
    system.write(f"proc/self/attr/{file}", text)
    assert system.found().apparmor == profile


def test_context_of_another_module_is_none_of_apparmor(system: System) -> None:
    system.write("proc/self/attr/current", "system_u:system_r:unconfined_t:s0\0")
    assert system.found().apparmor is None and system.found().selinux is None
    system.write("sys/fs/selinux/enforce", "0")
    assert system.found().selinux is None
    system.write("sys/fs/selinux/enforce", "1")
    assert system.found().selinux == "system_u:system_r:unconfined_t:s0"


def test_selinux_in_a_container_that_hides_whether_it_enforces(system: System) -> None:
    """As Podman's and Docker's do: /sys/fs/selinux is an empty directory there."""
    system.write("proc/self/attr/current", "system_u:system_r:container_t:s0:c1,c2\0")
    system.write("proc/filesystems", "nodev\tsysfs\nnodev\tselinuxfs\n\text4\n")
    assert system.found().selinux is None
    system.write("run/.containerenv", "")
    system.set_pid_namespace(4026532222)
    found = system.found()
    assert found.selinux == "system_u:system_r:container_t:s0:c1,c2"
    assert allowing(found, "") == "the container refuses; start it with '--security-opt label=disable'"
    system.write("sys/fs/selinux/enforce", "0")
    assert system.found().selinux is None
    (system.root / "sys/fs/selinux/enforce").unlink()
    system.write("proc/filesystems", "nodev\tsysfs\n\text4\n")
    assert system.found().selinux is None


def test_a_container_that_selinux_does_not_separate_needs_no_option_for_it(system: System) -> None:
    found = Confinement((1 << 41) - 1, selinux="system_u:system_r:spc_t:s0", container=True)
    assert allowing(found, "something else") == "something else"


@pytest.mark.parametrize("mark", ["run/.containerenv", ".dockerenv", "run/systemd/container"])
def test_container(system: System, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose root was an image has the mark, too; a container has its own numbers of processes."""
    system.set_pid_namespace(4026532222)
    assert not system.found().container
    system.write(mark, "")
    assert system.found().container
    system.set_pid_namespace(4026531836)
    assert not system.found().container
    system.set_pid_namespace(4026532222)
    (system.root / mark).unlink()
    monkeypatch.setenv("container", "podman")
    assert system.found().container


@pytest.mark.parametrize("text", ["0 1000 1", "0 0 1000", "1000 0 4294967295"])
def test_user_namespace(system: System, text: str) -> None:
    assert not system.found().user_namespace
    system.write("proc/self/uid_map", text)
    assert system.found().user_namespace
