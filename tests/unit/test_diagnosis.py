"""What a rehearsal saw becomes one line that says what does not work and what to do."""

from __future__ import annotations

import errno

import pytest

from kdbusfs.diagnosis import Verdict, restrictions, verdict
from kdbusfs.host.confinement import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    CAP_SYS_PTRACE,
    Confinement,
    container_options,
)
from kdbusfs.host.reach import Reach
from kdbusfs.rehearsal import Outcome, Step

NEEDED = (CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH)
ROOT = sum(1 << capability for capability in NEEDED)
FREE = Confinement(capabilities=ROOT)
UNABLE = Reach(errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM)


def judged(failed: dict[Step, int], found: Confinement = FREE, reached: Reach | None = None) -> Verdict:
    """`reached` None: nothing that asks for it may happen."""

    def try_reach() -> Reach:
        assert reached is not None, "tried what an errno tells by itself"
        return reached

    result = verdict(Outcome(failed), found, try_reach)
    for line in (result.fatal, *result.warnings):
        assert "\n" not in line and not line.endswith((".", ": ", " "))
    return result


def test_what_works_needs_no_words() -> None:
    assert judged({}) == Verdict()
    assert restrictions(FREE) == Verdict()


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (Confinement(ROOT, yama=3), "kernel.yama.ptrace_scope is 3, which forbids it to everybody; set it to 2 or"),
        (Confinement(ROOT, yama=3, seccomp=2, container=True), "kernel.yama.ptrace_scope is 3"),
        (Confinement(ROOT, seccomp=2), "a seccomp filter is in force; a unit of systemd must have no"),
        (Confinement(ROOT, seccomp=2, container=True), "start it with '--security-opt seccomp=unconfined'"),
        (
            Confinement(1 << CAP_SYS_ADMIN | 1 << CAP_DAC_OVERRIDE, seccomp=2, apparmor="c-default", container=True),
            "'--cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined'",
        ),
        (Confinement(ROOT, selinux="container_t", container=True), "start it with '--security-opt label=disable'"),
        (Confinement(ROOT, apparmor="a-profile"), "the AppArmor profile 'a-profile' is in force"),
        (Confinement(ROOT, selinux="a_t"), "SELinux is in force for 'a_t'; see 'ausearch"),
        (Confinement(1 << CAP_SYS_ADMIN), "it takes CAP_SYS_PTRACE: run as root"),
        (Confinement(ROOT, container=True), "a security module forbids it"),
    ],
)
def test_who_reaches_nobody_serves_nobody(found: Confinement, named: str) -> None:
    result = judged({Step.MAKE: errno.EPERM}, found, UNABLE)
    start = "no client can be served: making a bus failed: process_vm_readv is refused (Operation not permitted): "
    assert result.fatal.startswith(start) and named in result.fatal and not result.warnings


def test_a_call_that_the_kernel_was_built_without() -> None:
    result = judged({Step.MAKE: errno.ENOSYS}, FREE, Reach(memory=errno.ENOSYS))
    assert result.fatal == "no client can be served: making a bus failed: the kernel has no process_vm_readv"
    filtered = judged({Step.MAKE: errno.ENOSYS}, Confinement(ROOT, seccomp=2), Reach(memory=errno.ENOSYS))
    assert "a seccomp filter is in force" in filtered.fatal


def test_an_errno_that_nothing_explains() -> None:
    assert judged({Step.HELLO: errno.EIO}).fatal == "no client can be served: HELLO failed: Input/output error"
    assert judged({Step.MAKE: errno.EPERM}, FREE, Reach()).fatal.endswith("a bus failed: Operation not permitted")


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOSPC, errno.ENOBUFS, errno.EAGAIN])
def test_want_of_memory(error: int) -> None:
    assert "there is not enough memory, or a limit" in judged({Step.OPEN: error}).fatal
    strict = judged({Step.OPEN: error}, Confinement(ROOT, overcommit=2))
    assert "see CommitLimit and Committed_AS in /proc/meminfo, and vm.overcommit_memory, which is 2" in strict.fatal


def test_want_of_descriptors() -> None:
    assert "'ulimit -n', LimitNOFILE=" in judged({Step.OPEN: errno.ENFILE}).fatal
    (line,) = judged({Step.SEND: errno.EMFILE}).warnings
    assert line.startswith("no client can send descriptors: ") and "'ulimit -n'" in line


def test_clients_that_cannot_send_descriptors_can_still_talk() -> None:
    result = judged({Step.SEND: errno.EPERM}, Confinement(ROOT, seccomp=2), Reach(descriptors=errno.EPERM))
    assert not result.fatal
    assert result.warnings[0].startswith("no client can send descriptors: pidfd_getfd is refused")


def test_clients_that_get_no_descriptors_can_still_talk() -> None:
    both = {Step.PROTECT: errno.EACCES, Step.DESCRIPTOR: errno.EPERM}
    (line,) = judged(both, Confinement(ROOT, apparmor="p"), Reach(trace=errno.EACCES, seccomp=errno.EACCES)).warnings
    start = "clients get no descriptors and can write to their own pools: ptrace is refused (Permission denied): "
    assert line.startswith(start) and "profile 'p'" in line
    (line,) = judged(both, Confinement(ROOT, seccomp=2), Reach(seccomp=errno.EPERM)).warnings
    assert line.startswith("clients with a seccomp filter get no descriptors and can write to their own pools: ")
    (line,) = judged({Step.PROTECT: errno.EACCES}, FREE, Reach()).warnings
    assert line == "clients can write to their own pools: Permission denied"
    short = {Step.PROTECT: errno.EACCES, Step.DESCRIPTOR: errno.EAGAIN}
    (line,) = judged(short, FREE, Reach()).warnings
    assert line.startswith("clients get no descriptors and can write to their own pools: ") and "memory" in line


def test_a_domain_that_is_closed_to_its_daemon() -> None:
    """The restriction for want of the capability has been said already."""
    (line,) = judged({Step.ENTER: errno.EACCES}, FREE, Reach()).warnings
    assert line == "the domain was not tried: the daemon itself may not enter it (Permission denied)"
    assert judged({Step.ENTER: errno.EACCES}, Confinement(1 << CAP_SYS_ADMIN), Reach()) == Verdict()
    assert judged({Step.ENTER: errno.ENOTCONN}).fatal.endswith("Transport endpoint is not connected")


def test_a_client_that_gets_no_answer() -> None:
    stuck = Outcome({Step.HELLO: errno.ETIMEDOUT}, 40.0, "waited 40 s, the last 30 s without progress, at 'HELLO'")
    result = verdict(stuck, FREE, Reach)
    assert result.fatal == f"a client of the daemon's own got no answer: {stuck.stuck}"


def test_missing_capabilities() -> None:
    no_trace = Confinement(ROOT & ~(1 << CAP_SYS_PTRACE))
    (line,) = restrictions(no_trace).warnings
    assert line.startswith("without CAP_SYS_PTRACE only clients of the daemon's own user and group can be served that")
    no_search = Confinement(ROOT & ~(1 << CAP_DAC_READ_SEARCH))
    (line,) = restrictions(no_search).warnings
    assert line.startswith("without CAP_DAC_READ_SEARCH clients of other users can map")
    assert restrictions(Confinement(no_search.capabilities | 1 << CAP_DAC_OVERRIDE)) == Verdict()
    assert restrictions(Confinement(no_trace.capabilities, yama=0)) == restrictions(no_trace)


@pytest.mark.parametrize("scope", [1, 2, 3])
def test_yama_without_the_capability(scope: int) -> None:
    """A scope of 1 lets a process reach its own children, so the daemon's own client would show nothing."""
    result = restrictions(Confinement(1 << CAP_SYS_ADMIN, yama=scope))
    assert result.fatal.startswith(f"without CAP_SYS_PTRACE, and with kernel.yama.ptrace_scope {scope}, no client can")
    inside = restrictions(Confinement(1 << CAP_SYS_ADMIN, yama=scope, container=True))
    assert "start it with '--cap-add SYS_PTRACE --cap-add DAC_READ_SEARCH'" in inside.fatal


def test_options_of_a_container() -> None:
    assert container_options(FREE) == []
    names = ("SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH")
    assert container_options(Confinement()) == [f"--cap-add {name}" for name in names]
    assert container_options(Confinement(ROOT, device=False)) == ["--device /dev/fuse"]
