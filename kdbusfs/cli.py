"""The command `kdbusfs SOURCE MOUNTPOINT [-o OPTION,...] [-f]`, also for the helpers of mount(8)."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import logging.handlers
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from kdbusfs.arguments import CHECK_FLAG, HELPER_FLAG, check_parser, parse_helper, parser
from kdbusfs.diagnosis import restrictions, shortage, warn
from kdbusfs.failure import EXIT_OK, EXIT_USAGE, exit_code_of
from kdbusfs.fuse.mount import (
    UNMOUNT_PATIENCE,
    Mount,
    check_mountpoint,
    check_privilege,
    find_mounted,
    is_connected,
    mount,
    open_device,
    take_device,
    unmount,
)
from kdbusfs.fuse.mount_error import MountError, MountFailure
from kdbusfs.host.confinement import Confinement, confinement
from kdbusfs.host.vault import Vault, VaultError
from kdbusfs.keeper import FUSE_NAME, VAULT_NAME
from kdbusfs.kept import KEPT_FLAG, Kept, become_keeper
from kdbusfs.options import MountOptions, OptionError, parse
from kdbusfs.rehearsal import Rehearsal
from kdbusfs.service import Manager, kept_descriptors
from kdbusfs.starter import Announcer, complain, start
from kdbusfs.surroundings import protect_from_oom

if TYPE_CHECKING:
    from kdbusfs.daemon import Daemon

_MAX_FILES = 1 << 20
_NICE = -10
_SIGNS_OF_SHORTAGE = ("can't start new thread", "Cannot allocate memory")
_SLICE_NS = 100_000  # the minimum of the kernel

log = logging.getLogger("kdbusfs")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script.  Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = "kdbusfs"
    kept = path = None
    if words[:1] == [KEPT_FLAG]:
        # As the keeper calls it: the path of the mount, the words that it was made with, and those for Kept.
        _, path, *words, spec = words
        kept = Kept(spec)
    if CHECK_FLAG in words:
        from kdbusfs.check import check

        return check(as_json=check_parser().parse_args(words).json)
    if len(words) > 1 and words[0] == HELPER_FLAG:
        name = words[1]
        given = parse_helper(name, words[2:])
    else:
        given = parser().parse_args(words)
    try:
        if kept is not None and path is not None:
            return run_kept(kept, given.source, path, parse(given.options, given.sloppy), not given.foreground)
        return _mount(given, words)
    except OptionError as fault:
        return complain(EXIT_USAGE, str(fault), name)
    except MountError as fault:
        return complain(exit_code_of(fault), str(fault), name)


def _mount(given: argparse.Namespace, words: list[str]) -> int:
    """Carry out the command line, `words`.  Raises OptionError, MountError."""
    options = parse(given.options, given.sloppy)
    check_privilege()
    if options.keep and given.foreground:
        resume(given.mountpoint, words, options)
    if options.fd is not None and is_connected(take_device(options.fd)):
        path = find_mounted(options.fd, given.mountpoint).path
    else:
        path = check_mountpoint(given.mountpoint, options.subtype)
    _check_ids(options)

    def run(announcer: Announcer | None = None) -> int:
        if options.keep:
            keep(given.source, path, options, words, announcer)
        return run_daemon(given.source, path, options, announcer)

    if given.foreground:
        return run()
    if given.fake:
        os.close(open_device() if options.fd is None else options.fd)
        code = EXIT_OK
    else:
        code = start(run, path, options.subtype)
    if given.verbose and code == EXIT_OK:
        done = "would be mounted" if given.fake else "mounted"
        print(f"{given.mountpoint}: {options.fsname or given.source} {done} as fuse.{options.subtype}")
    return code


def _check_ids(options: MountOptions) -> None:
    """Raises MountError for an owner that is not mapped in this user namespace."""
    from kdbusfs.host.namespaces import parse_id_map

    for name, number in (("uid", options.uid), ("gid", options.gid)):
        if number is not None:
            with open(f"/proc/self/{name}_map", "rb") as file:
                if parse_id_map(file.read()).to_outside(number) is None:
                    raise MountError(MountFailure.USAGE, f"{name}={number} does not exist in this user namespace")


def run_daemon(source: str, path: str, options: MountOptions, announcer: Announcer | None = None) -> int:
    """Mount a domain at `path`, a real path, and serve it until it is unmounted or a signal arrives.

    announcer: reports to a process that waits until the mount answers; this process detaches from its terminal then.
    Returns the exit code.  Raises MountError.
    """
    announcer = announcer or Announcer()
    manager = Manager.of_this_process(in_foreground=not announcer.is_waited_for)

    def ready() -> None:
        log.info("a domain is mounted at %s", path)
        manager.ready()
        if announcer.is_waited_for:
            _leave_terminal(options.loglevel)
        announcer.ready()

    _log_to_stderr(options.loglevel)
    # Now: later there may be no memory to read it.
    found = confinement()
    warn(restrictions(found))
    with _explained(found), contextlib.closing(Rehearsal()) as client:
        _prepare_process()
        announcer.step("opening /dev/fuse")
        fuse_fd = open_device() if options.fd is None else take_device(options.fd)
        announcer.step("loading the program")
        # Only here: neither --help nor the process that waits for the mount needs these modules.
        from kdbusfs.daemon import Daemon

        daemon = Daemon(fuse_fd, path, options, client, manager.stopping)
        daemon.on_step, daemon.on_ready = announcer.step, ready
        code = _serve(daemon, source, path, options, may_be_mounted=options.fd is not None)
    return _end(daemon, code)


def keep(source: str, path: str, options: MountOptions, words: list[str], announcer: Announcer | None) -> NoReturn:
    """Mount a domain at `path`, a real path, and be the keeper of the daemons that serve it.  Raises MountError.

    words: of the command line.
    """
    _log_to_stderr(options.loglevel)
    found = confinement()
    with _explained(found):
        _raise_file_limit()
        protect_from_oom()
        fuse_fd = open_device() if options.fd is None else take_device(options.fd)
        mounted = _mounted(fuse_fd, source, path, options, may_be_mounted=options.fd is not None)
        pipe = -1 if announcer is None else announcer.pipe
        try:
            become_keeper(fuse_fd, Vault.create(), pipe, mounted, words, in_background=pipe >= 0, resumed=False)
        except BaseException:
            unmount(mounted, UNMOUNT_PATIENCE)
            raise
    raise AssertionError


def resume(mountpoint: str, words: list[str], options: MountOptions) -> None:
    """Be the keeper of a mount that another keeper had, if the service manager has its descriptors.

    Returns if it has not, or if they are of no use.
    """
    kept = kept_descriptors()
    fuse_fd, vault_fd = (kept.pop(name, -1) for name in (FUSE_NAME, VAULT_NAME))
    for number in kept.values():
        os.close(number)
    if fuse_fd < 0 or vault_fd < 0:
        return
    _log_to_stderr(options.loglevel)
    mounted = None
    try:
        if is_connected(fuse_fd):
            mounted = find_mounted(fuse_fd, mountpoint)
            become_keeper(fuse_fd, Vault(vault_fd), -1, mounted, words, in_background=False, resumed=True)
    except (MountError, VaultError, OSError) as fault:
        log.error("the mount that was kept cannot be served: %s", fault)
    os.close(fuse_fd)
    os.close(vault_fd)
    if mounted is not None:
        unmount(mounted, UNMOUNT_PATIENCE)


def run_kept(kept: Kept, source: str, path: str, options: MountOptions, in_background: bool) -> int:
    """Serve the mount of a keeper when it is this daemon's turn, until it is unmounted.

    Gives the exit code.  Raises MountError.
    """
    announcer = Announcer(kept.announcer)

    def ready() -> None:
        log.info("a domain is mounted at %s", path)
        if kept.is_first and in_background:
            _leave_terminal(options.loglevel)
        kept.ready()
        announcer.ready()

    announcer.begin()
    if in_background and not kept.is_first:
        _leave_terminal(options.loglevel)
    else:
        _log_to_stderr(options.loglevel)
    found = confinement()
    with _explained(found), contextlib.ExitStack() as ended:
        client = None
        if kept.is_first:
            warn(restrictions(found))
            client = ended.enter_context(contextlib.closing(Rehearsal()))
        announcer.step("loading the program")
        from kdbusfs.daemon import Daemon

        kept.wait_for_turn()
        if not is_connected(kept.fuse_fd):
            return EXIT_OK  # unmounted while nobody served it
        _prepare_process()
        daemon = Daemon(kept.fuse_fd, path, options, client, lambda: None, kept.vault)
        daemon.on_step, daemon.on_ready = announcer.step, ready
        if kept.is_first and not daemon.can_be_succeeded:
            log.warning("the mount cannot outlive its daemon: that takes Linux 6.9")
            kept.cannot_be_succeeded()
        code = _serve(daemon, source, path, options, may_be_mounted=True)
    return _end(daemon, code)


def _end(daemon: Daemon, code: int) -> int:
    """The exit code, or the end of this process."""
    if daemon.has_stuck_readers:
        # An orderly exit could wait for stuck threads, which only the end of the process ends.
        logging.shutdown()
        os._exit(code)
    return code


def _mounted(fuse_fd: int, source: str, path: str, options: MountOptions, may_be_mounted: bool) -> Mount:
    """Mount a domain, or find it mounted.  Raises MountError.

    may_be_mounted: False if this process has opened `fuse_fd` itself.
    """
    if may_be_mounted and is_connected(fuse_fd):
        return find_mounted(fuse_fd, path)
    return mount(fuse_fd, options.fsname or source, path, options.flags, options.subtype)


def _serve(daemon: Daemon, source: str, path: str, options: MountOptions, may_be_mounted: bool) -> int:
    """Mount a domain, or use an existing mount, and serve it to its end.  Returns the exit code.  Raises MountError."""
    try:
        daemon.on_step("mounting")
        daemon.mounted = _mounted(daemon.fuse_fd, source, path, options, may_be_mounted)
        daemon.on_step("the first request of the kernel")
        return daemon.serve()
    finally:
        daemon.close()


@contextlib.contextmanager
def _explained(found: Confinement) -> Iterator[None]:
    """Raises MountError for a lack of memory, threads or descriptors, and any other error as it is."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError) as fault:
        raise _as_shortage(fault, found) from None


def _prepare_process() -> None:
    _raise_file_limit()
    _boost_scheduling()
    protect_from_oom()


def _as_shortage(fault: Exception, found: Confinement) -> Exception:
    """The error to report if memory, threads or descriptors have run out; otherwise `fault` itself."""
    number = fault.errno or 0 if isinstance(fault, OSError) else 0
    if isinstance(fault, MemoryError) or any(sign in str(fault) for sign in _SIGNS_OF_SHORTAGE):
        number = errno.ENOMEM
    if number not in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        return fault
    fault.__traceback__ = None  # its frames hold memory, which the message needs
    return MountError(MountFailure.SYSTEM, f"the daemon cannot start: {shortage(number, found)}")


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="kdbusfs: %(levelname)s: %(message)s", force=True)


def _leave_terminal(level: str) -> None:
    """Leave the working directory and the terminal; log to syslog from now on.

    Not before the domain is mounted: systemd's automount lets only its own process group access the mount point.
    """
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [logging.NullHandler()]
    with contextlib.suppress(OSError):
        handlers = [logging.handlers.SysLogHandler("/dev/log", facility="daemon")]
    logging.basicConfig(
        level=level.upper(),
        format=f"kdbusfs[{os.getpid()}]: %(levelname)s: %(message)s",
        handlers=handlers,
        force=True,
    )


def _boost_scheduling() -> None:
    """Run before ordinary programs, with short slices: a client's call takes several wake-ups of the daemon, which
    would each wait on a busy machine.  Without the privilege calls take longer.
    """
    from kdbusfs.native._native import lib

    lib.kfs_boost(_NICE, _SLICE_NS)


def _raise_file_limit() -> None:
    """Raise the limit of open files: every open file of a client needs a descriptor here, and every passed one another.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_MAX_FILES, hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
            return
