"""From the results of a rehearsal and the restrictions in force to messages: what does not work, and the remedy."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EACCES, EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, ENOSYS, ENOTTY, EPERM, ESRCH

from kdbusfs.fuse.mount_error import MountError, MountFailure
from kdbusfs.host.confinement import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_SYS_PTRACE,
    YAMA_DESCENDANTS,
    YAMA_NOBODY,
    Confinement,
    allowing,
)
from kdbusfs.host.reach import Reach
from kdbusfs.rehearsal import Outcome, Step

log = logging.getLogger("kdbusfs")

_SHORTAGE = frozenset((ENOMEM, ENOSPC, ENOBUFS, EAGAIN))
_REFUSAL = frozenset((EPERM, EACCES, ENOSYS, ENOTTY, ESRCH))  # an ioctl turns ENOSYS into ENOTTY
_OVERCOMMIT_STRICT = 2
_HIDDEN = frozenset((EACCES, EPERM))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusion.

    fatal: why no client can be served, if so; warnings: the features that some clients lack.
    """

    fatal: str = ""
    warnings: list[str] = field(default_factory=list)


def restrictions(found: Confinement) -> Verdict:
    """What a daemon that may mount cannot do for lack of capabilities, as far as clients notice."""
    warnings = []
    if not found.has(CAP_SYS_PTRACE):
        if (found.yama or 0) >= YAMA_DESCENDANTS:
            return Verdict(
                f"without CAP_SYS_PTRACE, and with kernel.yama.ptrace_scope {found.yama}, no client can be served: "
                + allowing(found, "run as root, or add CAP_SYS_PTRACE to the unit's CapabilityBoundingSet=")
            )
        warnings.append(
            "without CAP_SYS_PTRACE only clients of the daemon's own user and group can be served that have no"
            " capability which it lacks"
        )
    if not found.has(CAP_DAC_READ_SEARCH) and not found.has(CAP_DAC_OVERRIDE):
        warnings.append("without CAP_DAC_READ_SEARCH clients of other users can map their pools writable")
    return Verdict(warnings=warnings)


def verdict(outcome: Outcome, found: Confinement, try_reach: Callable[[], Reach]) -> Verdict:
    """The meaning of a rehearsal's results.  `try_reach` is called at most once, where it tells more."""
    if outcome.stuck:
        return Verdict(f"a client of the daemon's own got no answer: {outcome.stuck}")
    warnings: list[str] = []
    reached: Reach | None = None
    for step, error in outcome.failed.items():
        if reached is None and (error in _REFUSAL or step in (Step.PROTECT, Step.DESCRIPTOR)):
            reached = try_reach()
        if step is Step.ENTER and error in _HIDDEN:
            if found.has(CAP_DAC_READ_SEARCH) or found.has(CAP_DAC_OVERRIDE):
                warnings.append(f"the domain was not tried: the daemon itself may not enter it ({os.strerror(error)})")
        elif step is Step.SEND and error in (EMFILE, ENFILE):
            warnings.append(f"no client can send descriptors: {shortage(error, found)}")
        elif step is Step.SEND and reached is not None and reached.descriptors:
            warnings.append("no client can send descriptors: " + refusal("pidfd_getfd", reached.descriptors, found))
        elif step not in (Step.PROTECT, Step.DESCRIPTOR):
            return Verdict(f"no client can be served: {step.text} failed: {_cause(error, found, reached)}")
    warnings += _installation(outcome, found, reached)
    return Verdict(warnings=warnings)


def shortage(error: int, found: Confinement) -> str:
    """The message for a resource that the system lacks, with the remedy."""
    text = os.strerror(error)
    if error in (EMFILE, ENFILE):
        return f"{text}: raise the limit of open files ('ulimit -n', LimitNOFILE=)"
    if found.overcommit == _OVERCOMMIT_STRICT:
        return (
            f"{text}: there is not enough memory that may be committed; see CommitLimit and Committed_AS in"
            " /proc/meminfo, and vm.overcommit_memory, which is 2"
        )
    return f"{text}: there is not enough memory, or a limit of memory or threads is too low"


def refusal(call: str, error: int, found: Confinement) -> str:
    """The module that may have refused system call `call`, and how to allow it."""
    what = f"{call} is refused ({os.strerror(error)})"
    if error == ENOSYS and not found.seccomp:
        return f"the kernel has no {call}"
    if found.yama is not None and found.yama >= YAMA_NOBODY and error in _HIDDEN:
        return (
            f"{what}: kernel.yama.ptrace_scope is {found.yama}, which forbids it to everybody; set it to 2 or less"
            " in /etc/sysctl.d, and boot"
        )
    return f"{what}: " + allowing(found, _outside(found))


def _outside(found: Confinement) -> str:
    """The same where no container manager is known."""
    if found.seccomp:
        return "a seccomp filter is in force; a unit of systemd must have no SystemCallFilter= and the like"
    if found.apparmor is not None:
        return f"the AppArmor profile '{found.apparmor}' is in force; it has to allow 'capability sys_ptrace, ptrace,'"
    if found.selinux is not None:
        return f"SELinux is in force for '{found.selinux}'; see 'ausearch -m avc -ts recent'"
    if not found.has(CAP_SYS_PTRACE):
        return "it takes CAP_SYS_PTRACE: run as root"
    return "a security module forbids it"


def _cause(error: int, found: Confinement, reached: Reach | None) -> str:
    if reached is not None and error in _REFUSAL:
        for call, refused in (
            ("process_vm_readv", reached.memory),
            ("pidfd_getfd", reached.descriptors),
            ("ptrace", reached.trace),
        ):
            if refused:
                return refusal(call, refused, found)
    if error in _SHORTAGE or error in (EMFILE, ENFILE):
        return shortage(error, found)
    return os.strerror(error)


def _installation(outcome: Outcome, found: Confinement, reached: Reach | None) -> list[str]:
    """The consequence if nothing could be installed in the client."""
    lost = []
    if Step.DESCRIPTOR in outcome.failed:
        lost.append("get no descriptors")
    if Step.PROTECT in outcome.failed:
        lost.append("can write to their own pools")
    if not lost:
        return []
    what = " and ".join(lost)
    if reached is not None and reached.trace:
        return [f"clients {what}: {refusal('ptrace', reached.trace, found)}"]
    if reached is not None and reached.seccomp and found.seccomp:
        because = "the daemon has one too, and may not suspend theirs"
        return [f"clients with a seccomp filter {what}: {because}; {allowing(found, _outside(found))}"]
    error = outcome.failed.get(Step.DESCRIPTOR, EACCES)
    return [f"clients {what}: {shortage(error, found) if error in _SHORTAGE else os.strerror(error)}"]


def warn(found: Verdict) -> None:
    """Log the features that some clients lack.  Raises MountError if no client can be served."""
    if found.fatal:
        raise MountError(MountFailure.SYSTEM, found.fatal)
    for text in found.warnings:
        log.warning("%s", text)
