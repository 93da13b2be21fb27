"""The command `kdbusfs-sysview`: a view of /sys in which /sys/fs/kdbus is a domain.

Old programs have that path built in, and sysfs allows no mkdir.  So /sys/fs is covered by a tmpfs with bind mounts of
all its entries and of the domain, and /sys/module by one with `kdbus/parameters`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NoReturn

from kdbusfs.failure import EXIT_MOUNT, EXIT_OK, EXIT_USAGE, exit_code_of
from kdbusfs.fuse.mount import has_privilege, visible_mount
from kdbusfs.fuse.mount_error import MountError, MountFailure
from kdbusfs.host import mounting

MARK = "kdbusfs-sysview"
"""Source of the covering tmpfs in the mount table."""
FS, MODULE = TARGETS = ("/sys/fs", "/sys/module")
NAME = "kdbus"
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

_COVER_FLAGS = mounting.MS_NOSUID | mounting.MS_NODEV | mounting.MS_NOEXEC
_READ_ONLY_FLAGS = _COVER_FLAGS | mounting.MS_REMOUNT | mounting.MS_BIND | mounting.MS_RDONLY

_EPILOG = """\
COMMAND runs in a mount namespace of its own, where
  /sys/fs/kdbus                    is the domain at MOUNTPOINT
  /sys/module/kdbus/parameters     has its attach_flags_mask
and everything else below /sys/fs and /sys/module is unchanged. It runs with the caller's ids; its
exit code is returned. With --system all processes get that view, until --undo. Without /sys/module,
as in some containers, the view has no parameters.

It needs CAP_SYS_ADMIN: as root, or in a user namespace of your own ('unshare -Urm'). Directories that
appear in /sys/fs or /sys/module later, when a module is loaded, are not visible in an existing view.

exit codes:
  0    --system or --undo succeeded
  1    wrong usage, or no privilege
  32   no domain at MOUNTPOINT, or the view cannot be made or removed
  126  COMMAND cannot be executed
  127  COMMAND is not found
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.  Returns the exit code, or executes the command."""
    parser = _parser()
    given = parser.parse_args(arguments)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if given.undo and (given.system or given.mountpoint or command):
        parser.error("--undo takes nothing else")
    if not given.undo and given.mountpoint is None:
        parser.error("MOUNTPOINT is missing")
    if not given.undo and given.system == bool(command):
        parser.error("a COMMAND is needed, or --system" if not command else "--system takes no COMMAND")
    try:
        if not has_privilege():
            how = "run as root, or in a user namespace ('unshare -Urm')"
            raise MountError(MountFailure.USAGE, f"needs CAP_SYS_ADMIN: {how}")
        if given.undo:
            undo()
        elif given.system:
            for target in TARGETS:
                if _is_view(target):
                    raise MountError(MountFailure.REFUSED, f"{target} is such a view already: kdbusfs-sysview --undo")
            make(given.mountpoint)
        else:
            _leave_namespace()
            make(given.mountpoint)
            return _become(command)
        return EXIT_OK
    except MountError as fault:
        return _complain(exit_code_of(fault), str(fault))
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        return _complain(EXIT_MOUNT, f"the view cannot be made: {where}{fault.strerror}")


def make(domain: str) -> None:
    """Make the view of the domain at path `domain` in this mount namespace.  Raises MountError, OSError.

    It appears atomically: it is built elsewhere and moved into place.
    """
    domain = _check_domain(domain)
    with _staging() as staging:
        fs = _build(os.path.join(staging, "fs"), FS)
        _bind(domain, _new_directory(fs, NAME))
        covers = [(FS, fs)]
        # /sys of a container is often incomplete.
        if os.path.isdir(MODULE):
            module = _build(os.path.join(staging, "module"), MODULE)
            _new_directory(module, NAME)
            _bind(f"{domain}/.kdbusfs/parameters", _new_directory(module, f"{NAME}/parameters"))
            covers.append((MODULE, module))
        for _, cover in covers:
            # As read-only as sysfs.
            mounting.mount("none", cover, flags=_READ_ONLY_FLAGS)
        with contextlib.ExitStack() as moved:
            for target, cover in covers:
                mounting.mount(cover, target, flags=mounting.MS_MOVE)
                moved.callback(_uncover, target)
            moved.pop_all()


def undo() -> None:
    """Remove the view from this mount namespace.  Raises MountError if there is none."""
    found = [target for target in TARGETS if _is_view(target)]
    if not found:
        raise MountError(MountFailure.REFUSED, "there is no view to remove")
    for target in found:
        _uncover(target)


def _uncover(target: str) -> None:
    mounting.detach(target)


def _is_view(target: str) -> bool:
    entry = visible_mount(target)
    return entry is not None and entry.source == MARK


def _check_domain(path: str) -> str:
    """The absolute path of the domain at `path`.  Raises MountError if it is not one."""
    try:
        control = os.stat(f"{path}/control")
        parameters = os.stat(f"{path}/.kdbusfs/parameters/attach_flags_mask")
    except OSError as fault:
        hint = ": its daemon has ended" if fault.errno == errno.ENOTCONN else ""
        raise MountError(MountFailure.REFUSED, f"'{path}' is not a kdbusfs domain: {fault.strerror}{hint}") from None
    if not stat.S_ISREG(control.st_mode) or control.st_dev != parameters.st_dev:
        raise MountError(MountFailure.REFUSED, f"'{path}' is not a kdbusfs domain")
    return os.path.abspath(path)


@contextlib.contextmanager
def _staging() -> Iterator[str]:
    """A directory for mounts that are private to this namespace."""
    path = tempfile.mkdtemp(prefix=f"{MARK}-")
    try:
        # Mounts below a shared mount would propagate, and could not be moved.
        mounting.mount("none", path, "tmpfs", data="mode=700")
        mounting.mount("none", path, flags=mounting.MS_PRIVATE)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                mounting.detach(path)
    finally:
        os.rmdir(path)


def _build(cover: str, target: str) -> str:
    """Mount a tmpfs at `cover` with bind mounts of all entries of `target`, except those that the view replaces."""
    os.mkdir(cover)
    old = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounting.mount(MARK, cover, "tmpfs", _COVER_FLAGS, f"mode={stat.S_IMODE(os.fstat(old).st_mode):o}")
        for name in os.listdir(old):
            if name != NAME:
                with contextlib.suppress(FileNotFoundError):
                    _show(f"/proc/self/fd/{old}/{name}", os.path.join(cover, name))
    finally:
        os.close(old)
    return cover


def _show(source: str, target: str) -> None:
    """Bind-mount `source` at `target`, with its submounts."""
    found = os.lstat(source)
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source), target)
        return
    if stat.S_ISDIR(found.st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
    _bind(source, target)


def _bind(source: str, target: str) -> None:
    """Bind-mount `source` as a slave: mounts propagate to the copy, but unmounting the copy does not propagate back."""
    mounting.mount(source, target, flags=mounting.MS_BIND | mounting.MS_REC)
    mounting.mount("none", target, flags=mounting.MS_REC | mounting.MS_SLAVE)


def _new_directory(cover: str, name: str) -> str:
    path = os.path.join(cover, name)
    os.mkdir(path)
    os.chmod(path, 0o755)
    return path


def _leave_namespace() -> None:
    """Enter a new mount namespace that still receives later mounts from outside."""
    mounting.enter_new_mount_namespace()
    mounting.mount("none", "/", flags=mounting.MS_REC | mounting.MS_SLAVE)


def _become(command: list[str]) -> int:
    """Execute `command`; returns the exit code if that fails."""
    try:
        os.execvp(command[0], command)
    except OSError as fault:
        code = EXIT_NOT_FOUND if fault.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE
        return _complain(code, f"cannot execute '{command[0]}': {fault.strerror}")


def _complain(exit_code: int, message: str) -> int:
    print(f"kdbusfs-sysview: {message}".replace("\n", "\\n"), file=sys.stderr)
    return exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kdbusfs-sysview",
        usage="kdbusfs-sysview MOUNTPOINT [--] COMMAND [ARGUMENT...]\n"
        "       kdbusfs-sysview --system MOUNTPOINT\n"
        "       kdbusfs-sysview --undo",
        description="Show a domain at /sys/fs/kdbus, to a command or to the whole system.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--system", action="store_true", help="make the view for everybody")
    parser.add_argument("--undo", action="store_true", help="take the view of --system away")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?", help="where a domain is mounted")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="what to run, and its arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
