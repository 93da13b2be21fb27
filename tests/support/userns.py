"""Mounts a domain in a user namespace by a user who is not root outside.

As a script, run by root: `userns.py MODE COMMAND...` gives an ordinary user a /dev/fuse that he may open (as udev
would), access to Python and this package, and runs COMMAND as him in his own user namespace.  MODE `single` maps his
id to 0, as `unshare -Urm` does; `range` maps as many ids as a container has; `same` maps his id to itself and passes
the namespace's capabilities on; `none` makes no namespace, and `root` stays root.  Everything happens in a mount
namespace that ends with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import sys
import sysconfig
import tempfile
from pathlib import Path

USER = 1000
FIRST, COUNT = 200_000, 65536

_ROOT = Path(__file__).resolve().parents[2]
_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def command(mode: str, *rest: str) -> list[str]:
    """The command that runs `rest` inside."""
    return [sys.executable, str(Path(__file__).resolve()), mode, *rest]


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def _mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    texts = (source.encode(), target.encode(), kind.encode())
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), data.encode()), f"mount at {target}")


def _private_device() -> None:
    directory = tempfile.mkdtemp()
    _mount("none", directory, "tmpfs", data="mode=755")
    device = os.path.join(directory, "fuse")
    os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
    os.chmod(device, 0o666)
    _mount(device, "/dev/fuse", flags=_MS_BIND)
    _check(_libc.umount2(directory.encode(), 2), "umount")
    os.rmdir(directory)


def _open_the_way(paths: list[str]) -> None:
    """Cover directories in the path that only root may enter by directories that contain only the next component."""
    steps: dict[str, set[str]] = {}
    for path in paths:
        at = Path(path)
        for parent in reversed(at.parents):
            if not os.stat(parent).st_mode & stat.S_IXOTH:
                steps.setdefault(str(parent), set()).add(at.relative_to(parent).parts[0])
    for directory in sorted(steps):
        old = os.open(directory, os.O_PATH)
        _mount("none", directory, "tmpfs", data="mode=755")
        for name in steps[directory]:
            source, target = f"/proc/self/fd/{old}/{name}", os.path.join(directory, name)
            if stat.S_ISDIR(os.stat(source).st_mode):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT))
            _mount(source, target, flags=_MS_BIND | _MS_REC)
        os.close(old)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _keep_capabilities() -> None:
    """Make all capabilities ambient, so that they survive execve(2) by a user other than 0."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    version, bits = 0x20080522, (1 << (last + 1)) - 1
    header = (ctypes.c_uint32 * 2)(version, 0)
    data = (ctypes.c_uint32 * 6)(*(bits & 0xFFFFFFFF,) * 3, *(bits >> 32,) * 3)
    _check(_libc.capset(header, data), "capset")
    for capability in range(last + 1):
        _check(_libc.prctl(47, 2, capability, 0, 0), "ambient")


def _enter(mode: str) -> None:
    if mode in ("single", "same"):
        inside = 0 if mode == "single" else USER
        _become(USER)
        _libc.prctl(4, 1)  # dumpable: its files in /proc belong to its user again
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{inside} {USER} 1")
        Path("/proc/self/gid_map").write_text(f"{inside} {USER} 1")
        if mode == "same":
            _keep_capabilities()
    elif mode == "range":
        ours, theirs = os.pipe(), os.pipe()
        pid = os.getpid()
        if os.fork() == 0:
            os.read(ours[0], 1)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{name}").write_text(f"0 {FIRST} {COUNT}")
            os.write(theirs[1], b"+")
            os._exit(0)
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        os.write(ours[1], b"+")
        os.read(theirs[0], 1)
        os.wait()
        for fd in (*ours, *theirs):
            os.close(fd)
        _become(0)
    elif mode != "root":
        _become(USER)


def _main() -> None:
    mode, *rest = sys.argv[1:]
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
    _private_device()
    _open_the_way(
        [os.path.realpath(sys.executable), os.path.abspath(sys.executable), sysconfig.get_path("stdlib"), str(_ROOT)]
        + [entry for entry in sys.path if os.path.isdir(entry)]
    )
    _enter(mode)
    os.chdir("/")
    _libc.prctl(1, signal.SIGKILL)
    os.environ["PYTHONPATH"] = str(_ROOT)
    os.environ["HOME"] = "/"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.execvp(rest[0], rest)


if __name__ == "__main__":
    _main()
