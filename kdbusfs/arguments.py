"""Command lines: of `kdbusfs`, and of the helpers that mount(8) calls."""

from __future__ import annotations

import argparse
from typing import NoReturn

from kdbusfs import __version__
from kdbusfs.failure import EXIT_USAGE

HELPER_FLAG = "--mount-helper"
CHECK_FLAG = "--check"

_EPILOG = """\
mount options:
  attach_flags_mask=N  metadata that receivers may get at most, decimal or 0x... (can be changed
                       later in MOUNTPOINT/.kdbusfs/parameters/attach_flags_mask)
  uid=N gid=N          owner of the root directory and of 'control', default 0; a bus is owned by
                       its creator
  mode=MODE            access to the domain and right to make buses: 0555 all users (default),
                       0550 owner and group, 0500 owner; 'control' is 0666, 0660 or 0600
  max_user_memory=SIZE memory that connections of one user may use in the daemon, in bytes or with
                       suffix K, M, G or T; default 3/8 of the memory available to the daemon
  max_user_fds=N       descriptors that one user may have in flight in messages, default 16384; at
                       most 3/8 of the daemon's limit of open files
  keep, nokeep         the mount outlives a daemon that is killed, or not (default)
  nobus1, bus1=listed  no file 'bus1' in the root; list it (default: found by name, not listed)
  bus1_max_slices=N, bus1_max_handles=N, bus1_max_inflight_bytes=N, bus1_max_inflight_fds=N
                       what one user may have in bus1: default 16384, 65536, 16777216, 4096
  loglevel=LEVEL       error, warning (default), info or debug
  fsname=NAME          the source in the mount table
  subtype=TYPE         the type in the mount table is fuse.TYPE, default kdbusfs
  fd=N                 use descriptor N of /dev/fuse, opened by the caller, and mounted at MOUNTPOINT
                       or not; the caller closes its own copy
  ro nosuid noexec ... generic options of mount(8); nosuid, nodev and noexec are set unless suid, dev
                       or exec is given
  user nofail x-* ...  options for mount(8) and systemd only: accepted, without effect

exit codes:
  0   the domain is mounted; with -f: it was unmounted, or a signal ended the daemon
  1   wrong usage, or no privilege to mount
  2   the system does not allow to serve a domain: /dev/fuse cannot be opened, an operation of
      the trial client was refused, or there is not enough memory
  4   internal error, or the connection to the kernel was aborted
  32  the domain could not be mounted

SIGTERM and SIGINT unmount the domain and end the daemon. The log goes to stderr with -f, else to syslog.
With -f, the service manager (NOTIFY_SOCKET) is notified when the mount is ready, and when it is unmounted.
"""

_HELPER_EPILOG = """\
mount options and exit codes are those of kdbusfs, see kdbusfs --help.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of `kdbusfs`."""
    made = _Parser(
        prog="kdbusfs",
        description="Mount a fresh kdbus domain: a kernel-bus file system for unmodified programs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(made)
    made.add_argument("-f", dest="foreground", action="store_true", help="stay in the foreground")
    made.add_argument("--version", action="version", version=f"kdbusfs {__version__}")
    # Parsed before the others, because it takes no SOURCE and MOUNTPOINT.
    made.add_argument(CHECK_FLAG, action="store_true", help="say what this machine has for a domain")
    made.set_defaults(sloppy=False, fake=False, verbose=False)
    return made


def check_parser() -> argparse.ArgumentParser:
    """The parser of `kdbusfs --check`."""
    made = _Parser(
        prog="kdbusfs",
        description="Say what this machine has for a domain, what follows from that, and whether one works.",
        epilog="The exit code is the one that mounting a domain has here: 0 if that works, see kdbusfs --help.",
        allow_abbrev=False,
    )
    made.add_argument(CHECK_FLAG, action="store_true", required=True, help="do so")
    made.add_argument("--json", action="store_true", help="as JSON instead of a table")
    return made


def helper_parser(name: str) -> argparse.ArgumentParser:
    """The parser of `mount.fuse.kdbusfs` and `mount.kdbusfs`, as mount(8) specifies it for helpers."""
    made = _Parser(
        prog=name,
        description="Mount a fresh kdbus domain for mount(8).",
        epilog=_HELPER_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common(made)
    made.add_argument("-s", dest="sloppy", action="store_true", help="pass over unknown mount options")
    made.add_argument("-f", dest="fake", action="store_true", help="check everything, and do not mount")
    made.add_argument("-n", action="store_true", help="no entry in /etc/mtab: there never is one")
    made.add_argument("-v", dest="verbose", action="store_true", help="say what was mounted")
    made.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="is not supported")
    made.add_argument("-t", dest="type", metavar="TYPE", help="fuse.SUBTYPE: the same as -o subtype=SUBTYPE")
    made.set_defaults(foreground=False)
    return made


def parse_helper(name: str, arguments: list[str]) -> argparse.Namespace:
    """Translate the arguments of mount helper `name` to those of `parser`."""
    parser = helper_parser(name)
    given = parser.parse_args(arguments)
    if given.namespace is not None:
        parser.error("-N is not supported: use 'nsenter --mount=NAMESPACE mount ...'")
    if given.type is not None:
        kind, _, subtype = given.type.partition(".")
        if kind != "fuse" or "," in subtype:
            parser.error(f"the type must be fuse.kdbusfs, not '{given.type}'")
        if subtype:
            # First, so that an explicit subtype= overrides it.
            given.options.insert(0, f"subtype={subtype}")
    return given


def _add_common(made: argparse.ArgumentParser) -> None:
    made.add_argument("source", metavar="SOURCE", help="a name for the mount table, such as 'kdbusfs'")
    made.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    made.add_argument(
        "-o",
        dest="options",
        metavar="OPTION,...",
        action="append",
        default=[],
        help="mount options, see below; may be given more than once",
    )
