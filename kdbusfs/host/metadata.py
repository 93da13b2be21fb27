"""Process metadata of a thread, collected from /proc (META-3 to META-14).

Only /proc/TID/cmdline can block on a client: it takes the lock of the process' memory map, so the reader can be
preempted there (fuse.ownership).  readlink(2) in /proc asks no file system.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, EFAULT, EINVAL, ENAMETOOLONG, ENOENT, EPERM, ESRCH
from typing import TYPE_CHECKING

from kdbusfs.abi import constants as c
from kdbusfs.base.errors import CommandError
from kdbusfs.base.identity import Pids
from kdbusfs.base.ports import ProcessMetadata

from .credentials import Status, parse_argument_area, parse_cgroup, strip_root
from .proc import link, read, setting

if TYPE_CHECKING:
    from .caller import LinuxCaller

MAX_ARGUMENT = 131072  # bytes; the kernel's limit of one argument string
MAX_STATUS = 1 << 20  # bytes; 65536 groups take 720 KB
MAX_TEXT = 65536
_PARENT_TRIES = 3


def collect(caller: LinuxCaller, metadata: ProcessMetadata, kinds: int) -> None:
    """Add those process kinds of `kinds` to `metadata` that it has not collected yet.

    Kinds that the thread lacks, or that are hidden from the daemon, are omitted (META-21).
    Raises CommandError: ESRCH when the thread is gone; EINVAL, EFAULT for an argument area without a string
    (HELLO-12).
    """
    wanted = kinds & ~metadata.collected & c.ATTACH_PROCESS
    if not wanted:
        return
    for kind, gather in _COLLECTORS:
        if wanted & kind:
            if gather(caller, metadata):
                metadata.valid |= kind
            metadata.collected |= kind


def status_of(tid: int) -> Status:
    """/proc/TID/status.  Raises CommandError(ESRCH)."""
    return Status(read(tid, b"status", MAX_STATUS, at_once=True))


def pids_in(caller: LinuxCaller) -> dict[int, Pids]:
    """The thread's pid, tid and ppid by pid namespace.  Raises CommandError(ESRCH)."""
    namespaces = caller.namespaces
    own = caller.pids()
    chain = namespaces.pid_chain(caller.tid)
    if len(chain) == 1:
        return {chain[0]: own}
    status = caller.status()
    groups = status.numbers(b"NStgid")
    threads = status.numbers(b"NSpid")
    parents = _parent_numbers(caller.tid, own.ppid)
    # A parent may be in an ancestor namespace; then it has no id in the inner ones.
    parents += (0,) * (len(chain) - len(parents))
    return {ns: Pids(*numbers) for ns, *numbers in zip(chain, groups, threads, parents, strict=False)}


def _parent_numbers(tid: int, parent: int) -> tuple[int, ...]:
    """The ids of thread group `parent`, from the daemon's pid namespace inwards."""
    for _ in range(_PARENT_TRIES):
        if parent <= 0:
            return ()
        try:
            numbers = status_of(parent).numbers(b"NStgid")
        except CommandError:
            numbers = ()
        # If the thread still has that parent, the id was not reused meanwhile.
        now = int(status_of(tid).field(b"PPid") or b"0")
        if now == parent:
            return numbers
        parent = now
    return ()


def numbers_of(pid: int, chain: tuple[int, ...]) -> dict[int, int]:
    """The ids of process `pid` (in the daemon's namespace) by the pid namespaces of `chain`."""
    return dict(zip(chain, status_of(pid).numbers(b"NSpid"), strict=False))


def executable(caller: LinuxCaller) -> bytes | None:
    """The path of the program as seen from the thread's root (META-10); None if it is not visible."""
    try:
        path = link(caller.tid, b"exe")
        if caller.root == caller.own_root:
            return path
        return strip_root(path, link(caller.tid, b"root"))
    except CommandError as error:
        # In kdbus a path that is too long fails the receiver's RECV; a sender must not be able to do
        # that.
        if error.errno in (ENOENT, EACCES, EPERM, ENAMETOOLONG):
            return None
        raise


def _creds(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.creds = caller.ids()
    return True


def _pids(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.pids = pids_in(caller)
    return True


def _auxgroups(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.auxgroups = caller.groups()
    return True


def _tid_comm(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.tid_comm = _comm(caller.tid)
    return True


def _pid_comm(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.pid_comm = _comm(caller.pids().pid)
    return True


def _comm(tid: int) -> bytes:
    return read(tid, b"comm", 64).removesuffix(b"\n")


def _exe(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    root = caller.root
    path = executable(caller) if root is not None else None
    if path is None:
        return False
    metadata.exe = path
    metadata.root = root
    return True


def _cmdline(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    text = read(caller.tid, b"cmdline", 4096, partial=True)
    end = text.find(0)
    if end < 0 and len(text) == 4096:
        text = read(caller.tid, b"cmdline", MAX_ARGUMENT, partial=True)
        end = text.find(0)
    if len(text) == end + 1:
        # At most one string.  The kernel follows a title that was written across the end of the argument
        # area; kdbus does not (HELLO-12).
        area_start, area_end = parse_argument_area(read(caller.tid, b"stat", 4096))
        if not text and not area_end:
            return False
        if not text:
            raise CommandError(EFAULT, "argument area is not readable")
        if area_end and len(text) > area_end - area_start:
            raise CommandError(EINVAL, "argument area is not terminated")
    elif end < 0:
        raise CommandError(EINVAL, "argument area is not terminated")
    metadata.cmdline = text[:end]
    return True


def _cgroup(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    try:
        path = parse_cgroup(read(caller.tid, b"cgroup", MAX_TEXT))
    except CommandError as error:
        # The file is missing without cgroups; if the thread is gone, status raises.
        if error.errno != ESRCH:
            raise
        caller.status()
        return False
    metadata.cgroup = path or b"/"
    return True


def _caps(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    metadata.caps = caller.status().caps(setting("kernel/cap_last_cap"))
    metadata.user_ns = caller.user_ns
    metadata.caps_euid = caller.ids().euid
    return True


def security_label(caller: LinuxCaller) -> bytes | None:
    """The label of the thread; None where no security module provides one.  Raises CommandError(ESRCH)."""
    if not caller.namespaces.has_labels:
        return None
    try:
        label = read(caller.tid, b"attr/current", 4096).rstrip(b"\n\0")
    except CommandError as error:
        if error.errno == ESRCH:
            caller.status()
        # No security module provides a label (META-14).
        elif error.errno == EINVAL:
            caller.namespaces.has_labels = False
        return None
    return label


def _seclabel(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    label = security_label(caller)
    if label is not None:
        metadata.seclabel = label
    return bool(label)


def _audit(caller: LinuxCaller, metadata: ProcessMetadata) -> bool:
    try:
        metadata.sessionid = int(read(caller.tid, b"sessionid", 32))
        metadata.loginuid = int(read(caller.tid, b"loginuid", 32))
    except CommandError as error:
        # A kernel without auditing has no such files.
        if error.errno != ESRCH:
            raise
        caller.status()
        return False
    return True


_Collector = Callable[["LinuxCaller", ProcessMetadata], bool]
_COLLECTORS: tuple[tuple[int, _Collector], ...] = (
    (c.ATTACH_CREDS, _creds),
    (c.ATTACH_PIDS, _pids),
    (c.ATTACH_AUXGROUPS, _auxgroups),
    (c.ATTACH_TID_COMM, _tid_comm),
    (c.ATTACH_PID_COMM, _pid_comm),
    (c.ATTACH_EXE, _exe),
    (c.ATTACH_CMDLINE, _cmdline),
    (c.ATTACH_CGROUP, _cgroup),
    (c.ATTACH_CAPS, _caps),
    (c.ATTACH_SECLABEL, _seclabel),
    (c.ATTACH_AUDIT, _audit),
)
