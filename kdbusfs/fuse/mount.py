"""Mounting and unmounting a domain, with errors that say what to do about them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import threading
from dataclasses import dataclass

from kdbusfs.base import mountinfo
from kdbusfs.base.mountinfo import MountEntry
from kdbusfs.fuse.mount_error import MountError, MountFailure
from kdbusfs.host import mounting
from kdbusfs.host.confinement import CAP_SYS_ADMIN, Confinement, allowing, confinement

DEVICE = "/dev/fuse"
MAX_READ = 128 << 10
"""Bytes in one READ: the answer has to go through a socket whose buffer only root can enlarge."""
_STAT_PATIENCE = 1.0
"""Seconds that a mount may take to show whether its daemon has ended."""
UNMOUNT_PATIENCE = 5.0
"""Seconds that umount2(2) may take."""
_DEVICE_NUMBER = os.makedev(10, 229)

_MISSING_DEVICE = (
    f"load the module with 'modprobe fuse', make the node with 'mknod {DEVICE} c 10 229',"
    f" or start the container with '--device {DEVICE}'"
)
_DEVICE_HINTS = {
    errno.ENOENT: _MISSING_DEVICE,
    errno.ENODEV: "the kernel has no FUSE: load it with 'modprobe fuse'",
    errno.ENXIO: "the kernel has no FUSE: load it with 'modprobe fuse'",
    errno.EACCES: "it may be root's alone: run as root, or have its mode be 0666, as udev makes it",
    errno.EPERM: f"the container refuses; start it with '--device {DEVICE}'",
}
_MOUNT_HINTS = {
    errno.ENODEV: "the kernel has no FUSE: load it with 'modprobe fuse'",
    errno.ENOENT: "the mount point has gone",
    errno.ENOTCONN: "the mount of the descriptor given with fd= has gone: open /dev/fuse anew",
    errno.EINVAL: "the kernel does not take these options; a descriptor given with fd= must have been opened in this"
    " user namespace, and not have been mounted before",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of this daemon; `connection` is its number below /sys/fs/fuse/connections."""

    path: str
    device: str

    @property
    def connection(self) -> int:
        return int(self.device.partition(":")[2])


def mount_table() -> list[MountEntry]:
    """The mounts of this process' namespace, in order; the last one at a path is the visible one."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return mountinfo.parse(table.read())


def visible_mount(path: str) -> MountEntry | None:
    """The mount exactly at `path`, absolute and without links.  Never accesses the file system there."""
    found = None
    for entry in mount_table():
        if entry.path == path:
            found = entry
    return found


def has_privilege() -> bool:
    """Whether this process may mount."""
    return confinement().has(CAP_SYS_ADMIN)


def check_privilege() -> None:
    """Check whether this process can mount and serve.  Raises MountError."""
    found = confinement()
    if not found.has(CAP_SYS_ADMIN):
        how = allowing(found, "run as root, or in a user namespace of your own ('unshare -Urm')")
        raise MountError(MountFailure.USAGE, f"mounting takes CAP_SYS_ADMIN: {how}")
    if os.readlink("/proc/self") != str(os.getpid()):
        raise MountError(
            MountFailure.SYSTEM,
            "/proc shows another pid namespace than this process': mount one of its own ('unshare --mount-proc')",
        )


def check_mountpoint(path: str, subtype: str) -> str:
    """The real path of a directory that a domain can be mounted on.  Raises MountError."""
    absolute = os.path.abspath(path)
    # The table first: an access to a mount whose server is stuck would block.
    _refuse_mounted(absolute, subtype)
    real = os.path.realpath(absolute)
    if real != absolute:
        _refuse_mounted(real, subtype)
    try:
        found = os.stat(real)
    except FileNotFoundError:
        raise MountError(MountFailure.REFUSED, f"mount point '{path}' does not exist: mkdir -p '{path}'") from None
    except OSError as fault:
        hint = f": umount -l '{path}' first" if fault.errno == errno.ENOTCONN else ""
        raise MountError(MountFailure.REFUSED, f"mount point '{path}': {fault.strerror}{hint}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise MountError(MountFailure.REFUSED, f"mount point '{path}' is not a directory")
    return real


def open_device() -> int:
    """Open /dev/fuse for one mount.  Raises MountError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as fault:
        text = _with_hint(f"cannot open {DEVICE}", fault.errno or 0, _DEVICE_HINTS)
        raise MountError(MountFailure.SYSTEM, text) from None


def take_device(number: int) -> int:
    """Check that descriptor `number`, inherited from the caller, can be used for a mount.  Raises MountError."""
    try:
        found = os.fstat(number)
        access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        fcntl.fcntl(number, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    except OSError:
        raise MountError(MountFailure.USAGE, f"fd={number}: no such descriptor was handed to this program") from None
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _DEVICE_NUMBER or access != os.O_RDWR:
        raise MountError(MountFailure.USAGE, f"fd={number} is not {DEVICE}, opened for reading and writing")
    return number


def is_connected(fuse_fd: int) -> bool:
    """Whether a descriptor of /dev/fuse has a mount that is not aborted."""
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def find_mounted(fuse_fd: int, path: str) -> Mount:
    """The mount at `path`, made by another program with `fuse_fd`.

    Raises MountError if it is another mount, or lacks the options that `mount` uses.
    """
    real = os.path.abspath(path)
    entry = visible_mount(real)
    if entry is None or entry.type.partition(".")[0] != "fuse":
        text = f"fd={fuse_fd} is mounted, but not at '{path}': give the path of its mount"
        raise MountError(MountFailure.REFUSED, text)
    with open(f"/proc/self/fdinfo/{fuse_fd}", encoding="utf-8") as info:
        facts = dict(line.split(":", 1) for line in info if ":" in line)
    # Only newer kernels report it.
    connection = facts.get("fuse_connection", "").strip()
    if connection and connection != entry.device.partition(":")[2]:
        text = f"fd={fuse_fd} is mounted elsewhere than at '{path}': give the path of its mount"
        raise MountError(MountFailure.REFUSED, text)
    reads = entry.option("max_read")
    needed = ("allow_other", "default_permissions")
    if reads is None or int(reads) > MAX_READ or any(entry.option(name) is None for name in needed):
        options = ",".join((*needed, f"max_read={MAX_READ}"))
        raise MountError(MountFailure.REFUSED, f"the mount at '{path}' cannot be served: mount it with {options}")
    return Mount(real, entry.device)


def mount(fuse_fd: int, source: str, path: str, flags: int, subtype: str) -> Mount:
    """Mount at `path`, a real path, what `fuse_fd` will serve.  Raises MountError.

    Every user may access it, and the kernel checks permissions by the modes of the files (allow_other,
    default_permissions).
    """
    data = (
        f"fd={fuse_fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        f",allow_other,default_permissions,max_read={MAX_READ}"
    )
    try:
        mounting.mount(source, path, f"fuse.{subtype}", flags, data)
    except OSError as fault:
        hints = {**_MOUNT_HINTS, **refusal_hints(confinement())}
        text = _with_hint(f"cannot mount at '{path}'", fault.errno or 0, hints)
        raise MountError(MountFailure.REFUSED, text) from None
    entry = visible_mount(path)
    if entry is None:
        raise MountError(MountFailure.REFUSED, f"the mount at '{path}' went away at once")
    return Mount(path, entry.device)


def refusal_hints(found: Confinement) -> dict[int, str]:
    """Reasons for which mount(2) fails under this confinement, and the remedies, by errno."""
    no_right = "it takes CAP_SYS_ADMIN in the user namespace of the mount namespace: run as root"
    denied = "a security module refuses it, or a directory on the way may not be entered any more"
    if found.apparmor is not None:
        no_right = denied = (
            f"the AppArmor profile '{found.apparmor}' is in force; it has to allow 'mount fstype=fuse.kdbusfs,'"
        )
    elif found.selinux is not None:
        no_right = denied = f"SELinux is in force for '{found.selinux}'; see 'ausearch -m avc -ts recent'"
    elif found.seccomp:
        no_right = "a seccomp filter is in force; a unit of systemd must have no SystemCallFilter= and the like"
    return {errno.EPERM: allowing(found, no_right), errno.EACCES: allowing(found, denied)}


def unmount(mounted: Mount, patience: float) -> bool:
    """Detach the mount if it is still at its path; open files keep it until the server ends.

    umount2(2) runs in a thread of its own, and is waited for `patience` seconds: the caller may be the thread that has
    to answer its requests.  Returns whether the path is free of the mount.
    """
    if not is_mounted(mounted):
        return True
    worker = threading.Thread(target=_detach, args=(mounted.path,), name="kdbusfs-umount", daemon=True)
    try:
        worker.start()
    except RuntimeError:
        # No memory for a thread.  A lazy umount is not known to block.
        _detach(mounted.path)
    else:
        worker.join(patience)
    return not is_mounted(mounted)


def is_mounted(mounted: Mount) -> bool:
    """Whether the mount is the visible one at its path."""
    entry = visible_mount(mounted.path)
    return entry is not None and entry.device == mounted.device


def _detach(path: str) -> None:
    with contextlib.suppress(OSError):  # is_mounted() is asked afterwards
        mounting.detach(path)


def _refuse_mounted(path: str, subtype: str) -> None:
    entry = visible_mount(path)
    if entry is not None and entry.type == f"fuse.{subtype}":
        state = "whose daemon has ended" if _has_ended(path) else "already"
        raise MountError(MountFailure.REFUSED, f"'{path}' is a {subtype} mount {state}: umount '{path}' first")


def _has_ended(path: str) -> bool:
    """Whether no daemon serves the mount at `path`.  In a child: one that is stuck would block this process."""
    child = os.fork()
    if child == 0:
        try:
            os.statvfs(path)  # unlike attributes, not cached
            os._exit(0)
        except OSError as fault:
            os._exit(int(fault.errno == errno.ENOTCONN))
    pidfd = os.pidfd_open(child)
    try:
        if not select.select([pidfd], [], [], _STAT_PATIENCE)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return False
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def _with_hint(what: str, number: int, hints: dict[int, str]) -> str:
    text = f"{what}: {os.strerror(number)}"
    return f"{text}; {hints[number]}" if number in hints else text
