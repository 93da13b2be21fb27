"""What a mount(2) that is refused means, by what is in force."""

from __future__ import annotations

import errno

import pytest

from kdbusfs.fuse.mount import refusal_hints
from kdbusfs.host.confinement import CAP_DAC_OVERRIDE, CAP_SYS_ADMIN, CAP_SYS_PTRACE, Confinement

ALL = 1 << CAP_SYS_ADMIN | 1 << CAP_SYS_PTRACE | 1 << CAP_DAC_OVERRIDE


@pytest.mark.parametrize(
    ("found", "denied", "no_right"),
    [
        (Confinement(ALL), "a security module refuses it, or a directory on the way", "it takes CAP_SYS_ADMIN in the"),
        (Confinement(ALL, seccomp=2), "a security module refuses it, or", "a seccomp filter is in force"),
        (Confinement(ALL, apparmor="p"), "the AppArmor profile 'p' is in force", "the AppArmor profile 'p' is in"),
        (Confinement(ALL, selinux="t"), "SELinux is in force for 't'", "SELinux is in force for 't'"),
    ],
)
def test_outside_of_containers(found: Confinement, denied: str, no_right: str) -> None:
    hints = refusal_hints(found)
    assert hints[errno.EACCES].startswith(denied) and hints[errno.EPERM].startswith(no_right)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_a_container_is_told_all_that_it_lacks(error: int) -> None:
    """As Docker and Podman start it with `--device /dev/fuse --cap-add SYS_ADMIN` where there is AppArmor."""
    lacking = Confinement(ALL & ~(1 << CAP_SYS_PTRACE), seccomp=2, apparmor="docker-default", container=True)
    options = "--cap-add SYS_PTRACE --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    assert refusal_hints(lacking)[error] == f"the container refuses; start it with '{options}'"


def test_a_container_that_lacks_nothing_known() -> None:
    hints = refusal_hints(Confinement(ALL, container=True))
    assert hints[errno.EACCES].startswith("a security module refuses it, or")
