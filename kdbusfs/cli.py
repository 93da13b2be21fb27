"""The command: `kdbusfs SOURCE MOUNTPOINT [-o OPTION,...] [-f]`, and what the helpers of mount(8) pass on to it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import logging.handlers
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kdbusfs.arguments import CHECK_FLAG, HELPER_FLAG, check_parser, parse_helper, parser
from kdbusfs.diagnosis import Verdict, restrictions, shortage
from kdbusfs.failure import EXIT_INTERNAL, EXIT_OK, EXIT_SYSTEM, EXIT_USAGE, MountError
from kdbusfs.fuse.mount import (
    UNMOUNT_PATIENCE,
    Mount,
    check_mountpoint,
    check_privilege,
    find_mounted,
    is_connected,
    is_mounted,
    mount,
    open_device,
    take_device,
    unmount,
)
from kdbusfs.host.confinement import confinement
from kdbusfs.options import CONTROL_MODES, MountOptions, OptionError, parse
from kdbusfs.rehearsal import Rehearsal
from kdbusfs.service import Manager
from kdbusfs.starter import Announcer, complain, start
from kdbusfs.surroundings import memory_total, protect_from_oom

if TYPE_CHECKING:
    from kdbusfs.fuse.nodes import Access
    from kdbusfs.fuse.server import Server

_MAX_FILES = 1 << 20
_NICE = -10
_SIGNS_OF_SHORTAGE = ("can't start new thread", "Cannot allocate memory")
_SLICE_NS = 100_000  # the least that the kernel takes

log = logging.getLogger("kdbusfs")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = "kdbusfs"
    if CHECK_FLAG in words:
        from kdbusfs.check import check

        return check(as_json=check_parser().parse_args(words).json)
    if len(words) > 1 and words[0] == HELPER_FLAG:
        name = words[1]
        given = parse_helper(name, words[2:])
    else:
        given = parser().parse_args(words)
    try:
        return _mount(given)
    except OptionError as fault:
        return complain(EXIT_USAGE, str(fault), name)
    except MountError as fault:
        return complain(fault.exit_code, str(fault), name)


def _mount(given: argparse.Namespace) -> int:
    """Do what the command line asks for.  Raises OptionError, MountError."""
    options = parse(given.options, given.sloppy)
    check_privilege()
    if options.fd is not None and is_connected(take_device(options.fd)):
        path = find_mounted(options.fd, given.mountpoint).path
    else:
        path = check_mountpoint(given.mountpoint, options.subtype)
    _check_ids(options)
    if given.foreground:
        return run_daemon(given.source, path, options)
    if given.fake:
        os.close(open_device() if options.fd is None else options.fd)
        code = EXIT_OK
    else:
        code = start(lambda announcer: run_daemon(given.source, path, options, announcer), path, options.subtype)
    if given.verbose and code == EXIT_OK:
        done = "would be mounted" if given.fake else "mounted"
        print(f"{given.mountpoint}: {options.fsname or given.source} {done} as fuse.{options.subtype}")
    return code


def _check_ids(options: MountOptions) -> None:
    """Raises MountError for an owner that this user namespace has no place for."""
    from kdbusfs.host.namespaces import parse_id_map

    for name, number in (("uid", options.uid), ("gid", options.gid)):
        if number is not None:
            with open(f"/proc/self/{name}_map", "rb") as file:
                if parse_id_map(file.read()).to_outside(number) is None:
                    raise MountError(EXIT_USAGE, f"{name}={number} does not exist in this user namespace")


def run_daemon(source: str, path: str, options: MountOptions, announcer: Announcer | None = None) -> int:
    """Mount a domain at `path`, a real path, and serve it until it is unmounted or a signal arrives.

    `announcer` leads to a process that waits until the mount answers; this one has left its terminal then.
    Gives the exit code.  Raises MountError.
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
    _warn(restrictions(confinement()))
    try:
        with contextlib.closing(Rehearsal()) as client:
            _raise_file_limit()
            _take_precedence()
            protect_from_oom()
            announcer.step("opening /dev/fuse")
            fuse_fd = open_device() if options.fd is None else take_device(options.fd)
            announcer.step("loading the program")
            daemon = Daemon(fuse_fd, path, options, client, manager.stopping)
            daemon.on_step, daemon.on_ready = announcer.step, ready
            code = _serve(daemon, source, path, options)
    except (OSError, MemoryError, RuntimeError, ImportError) as fault:
        raise _want(fault) from None
    if daemon.has_stuck_readers:
        # An orderly exit could wait for threads that only the end of the process can end.
        logging.shutdown()
        os._exit(code)
    return code


def _serve(daemon: Daemon, source: str, path: str, options: MountOptions) -> int:
    """Mount a domain, or find it mounted, and serve it to its end.  Gives the exit code.  Raises MountError."""
    try:
        daemon.on_step("mounting")
        if options.fd is not None and is_connected(daemon.fuse_fd):
            daemon.mounted = find_mounted(daemon.fuse_fd, path)
        else:
            name = options.fsname or source
            daemon.mounted = mount(daemon.fuse_fd, name, path, options.flags, options.subtype)
        daemon.on_step("the first request of the kernel")
        return daemon.serve()
    finally:
        daemon.close()


def _warn(found: Verdict) -> None:
    """Log what some clients have to do without.  Raises MountError where none can be served."""
    if found.fatal:
        raise MountError(EXIT_SYSTEM, found.fatal)
    for text in found.warnings:
        log.warning("%s", text)


def _want(fault: Exception) -> Exception:
    """What a fault means that a want of memory, threads or descriptors may be behind; itself where none is."""
    number = fault.errno or 0 if isinstance(fault, OSError) else 0
    if isinstance(fault, MemoryError) or any(sign in str(fault) for sign in _SIGNS_OF_SHORTAGE):
        number = errno.ENOMEM
    if number not in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        return fault
    return MountError(EXIT_SYSTEM, f"the daemon cannot start: {shortage(number, confinement())}")


class Daemon:
    """Everything that serves one mount, put together: from the descriptor of /dev/fuse to the core.

    client: tries the mount before it is ready; on_stopping: is called when a signal is about to end the mount.
    on_step, on_ready: are called when a step of the start begins, and when the mount has shown that it works.
    """

    on_step: Callable[[str], None] = staticmethod(lambda name: None)
    on_ready: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        fuse_fd: int,
        path: str,
        options: MountOptions,
        client: Rehearsal,
        on_stopping: Callable[[], None],
    ) -> None:
        # Only here: neither --help nor the process that waits for the mount needs what these bring along.
        from kdbusfs.core.domain import Domain
        from kdbusfs.fuse.channel import Amendments, Channel
        from kdbusfs.fuse.files import MAX_PER_USER as MAX_OPEN
        from kdbusfs.fuse.files import OpenFiles
        from kdbusfs.fuse.protocol import prune_notices
        from kdbusfs.fuse.requests import Faults, Requests
        from kdbusfs.fuse.server import Server, Wakeup
        from kdbusfs.fuse.session import TreeSession
        from kdbusfs.fuse.tree import Tree
        from kdbusfs.host.closer import Closer
        from kdbusfs.host.files import MAX_PER_USER
        from kdbusfs.host.garbage import Collector
        from kdbusfs.host.heap import Heap
        from kdbusfs.host.host import LinuxHost
        from kdbusfs.host.installer import Installer
        from kdbusfs.host.job import Job
        from kdbusfs.host.store_memory import Storer
        from kdbusfs.host.user_threads import Pool
        from kdbusfs.trial import Trial

        self.mounted: Mount | None = None
        self.fuse_fd = fuse_fd
        self._on_stopping = on_stopping
        self._failure: Exception | None = None
        self._ending: threading.Thread | None = None
        self._ended = contextlib.ExitStack()
        self._ended.callback(os.close, fuse_fd)
        faults = Faults()
        wakeup = Wakeup()
        self._ended.callback(wakeup.close)
        storer = Storer(fuse_fd, wakeup.event_fd)
        self._ended.callback(storer.close)
        pool = Pool()
        installer = Installer(pool, fuse_fd, wakeup.event_fd, storer=storer)
        self._ended.callback(pool.close)
        host = LinuxHost(
            fuse_fd,
            wakeup.event_fd,
            Closer(pool),
            max_descriptors=MAX_PER_USER if options.max_user_fds is None else options.max_user_fds,
        )
        self._ended.callback(host.close)
        self._host = host
        total = memory_total()
        domain = Domain(host, options.max_user_memory or total // 2, total)
        if options.attach_flags_mask is not None:
            domain.attach_flags_mask = options.attach_flags_mask

        def stats() -> dict[str, object]:
            memory = domain.users.memory
            return {
                **requests.stats(),
                **self._collector.figures(),
                "memory": memory.used,
                "memory_limit": memory.limit,
                "blocks": sys.getallocatedblocks(),
            }

        owner = host.namespaces.owner
        access = _access(options, owner)

        def prune(nodeids: list[int]) -> bool:
            try:
                for notice in prune_notices(nodeids):
                    os.write(fuse_fd, notice)
            except OSError:  # EINVAL of a kernel that does not know it
                return False
            return True

        spend = domain.turn.spend
        tree = Tree(domain, host, installer, host.clock.realtime, faults.report, stats, owner, access, prune, spend)
        self._session = TreeSession(tree)
        self._ended.callback(self._session.stop)
        channel = Channel(fuse_fd, self._session.fd, wakeup.event_fd)
        self._ended.callback(channel.close)
        self._collector = Collector(lambda: channel.counters()["requests"])
        self._ended.callback(self._collector.close)
        files = tree.files = OpenFiles(channel, min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        requests = Requests(
            channel,
            files,
            domain,
            lambda: host.caller(os.getpid()),
            installer=installer,
            make_job=Job,
            swap_path=lambda fh: f"{path}/.conn-{fh}",
            node_of=tree.node_of,
            only_node_of=tree.only_node_of,
            storer=storer,
            faults=faults,
        )
        self._trial = Trial(client, tree, domain, installer, pool, channel, options.max_user_fds != 0)
        amendments = Amendments(tree, files.open_answer, passthrough=True, on_init=self._trial.begin)

        def cancel() -> None:
            for token in host.cancelled():
                domain.cancelled(token)

        self._server: Server = Server(
            channel,
            amendments,
            requests,
            domain,
            wakeup,
            tree,
            faults=faults,
            on_event=(cancel,),
            on_tree=self._collector.notice,
            on_release=Heap(lambda: domain.users.memory.used).look,
        )

    def serve(self) -> int:
        """Serve the mount to its end; gives the exit code."""
        from kdbusfs.fuse.ownership import signals_blocked
        from kdbusfs.host.threads import new_thread

        assert self.mounted is not None
        major, minor = (int(number) for number in self.mounted.device.split(":"))
        self._host.set_own_device(os.makedev(major, minor))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        with signals_blocked():
            self._session.start()
            new_thread("kdbusfs-trial", self._try).start()
        served = self._server.run()
        if self._ending is not None:
            # It still wakes the server when it is through, so nothing may be closed before.
            self._ending.join(2 * UNMOUNT_PATIENCE)
        if self._failure is not None:
            raise self._failure
        if served and (self._ending is not None or not is_mounted(self.mounted)):
            return EXIT_OK
        log.error("the connection to the kernel has ended, %s is not served any more", self.mounted.path)
        return EXIT_INTERNAL

    @property
    def has_stuck_readers(self) -> bool:
        """Whether a client still holds up a thread that read its memory; known after `serve`."""
        return self._server.has_stuck_readers

    def close(self) -> None:
        """Take the mount away and end everything."""
        with self._ended:
            if self.mounted is not None and not unmount(self.mounted, UNMOUNT_PATIENCE):
                log.error("%s cannot be unmounted", self.mounted.path)

    def _try(self) -> None:
        """Have the client try the mount, and say that it is ready; or end it again."""
        assert self.mounted is not None
        try:
            found = self._trial.run(self.mounted.path, self.on_step)
            if self._ending is None and is_mounted(self.mounted):
                _warn(found)
                self._collector.begin()
                self.on_ready()
        except Exception as fault:
            self._failure = fault
            # Not by another thread, which there may be no memory for.
            self._ending = threading.current_thread()
            self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        # Unmounting waits for the reader, and no signal handler should wait.
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, name="kdbusfs-end", daemon=True)
            self._ending.start()

    def _end(self) -> None:
        assert self.mounted is not None
        if self._failure is None:
            self._on_stopping()
        unmount(self.mounted, UNMOUNT_PATIENCE)
        self._server.stop()


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="kdbusfs: %(levelname)s: %(message)s", force=True)


def _leave_terminal(level: str) -> None:
    """Let go of the directory and the terminal that the command was given in; log to syslog from here on.

    Not before the mount is made: systemd's automount lets only its own process group through to the mount point.
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


def _take_precedence() -> None:
    """Run before ordinary programs, and for short at a time: a call of a client waits for several wake-ups of ours, and
    on a busy machine every one of them would wait its turn.  Without the right to it things are slower, no more.
    """
    from kdbusfs.native._native import lib

    lib.kfs_precedence(_NICE, _SLICE_NS)


def _access(options: MountOptions, owner: tuple[int, int]) -> Access:
    """Of the root directory and `control`, which are `owner`'s by default."""
    from kdbusfs.fuse.nodes import Access

    return Access(
        owner[0] if options.uid is None else options.uid,
        owner[1] if options.gid is None else options.gid,
        options.mode,
        CONTROL_MODES[options.mode],
    )


def _raise_file_limit() -> None:
    """Every open of a client costs the server a descriptor, every passed one another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_MAX_FILES, hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
            return
