"""The command: `kdbusfs SOURCE MOUNTPOINT [-o OPTION,...] [-f]`, and what the helpers of mount(8) pass on to it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from kdbusfs.arguments import HELPER_FLAG, parse_helper, parser
from kdbusfs.fuse.mount import (
    EXIT_INTERNAL,
    EXIT_MOUNT,
    EXIT_OK,
    EXIT_USAGE,
    Mount,
    MountError,
    check_mountpoint,
    check_privilege,
    find_mounted,
    is_connected,
    is_mounted,
    mount,
    open_device,
    restrictions,
    take_device,
    unmount,
    visible_mount,
)
from kdbusfs.options import CONTROL_MODES, MountOptions, OptionError, parse
from kdbusfs.service import Manager
from kdbusfs.surroundings import memory_total, protect_from_oom

if TYPE_CHECKING:
    from kdbusfs.fuse.nodes import Access
    from kdbusfs.fuse.server import Server

_START_PATIENCE = 30.0  # seconds until the mount must answer
_UNMOUNT_PATIENCE = 5.0  # seconds that umount2(2) may take before the server ends all the same
_MAX_FILES = 1 << 20
_NICE = -10
_SLICE_NS = 100_000  # the least that the kernel takes

log = logging.getLogger("kdbusfs")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = "kdbusfs"
    if len(words) > 1 and words[0] == HELPER_FLAG:
        name = words[1]
        given = parse_helper(name, words[2:])
    else:
        given = parser().parse_args(words)
    try:
        return _mount(given)
    except OptionError as fault:
        return _complain(EXIT_USAGE, str(fault), name)
    except MountError as fault:
        return _complain(fault.exit_code, str(fault), name)


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
        code = _start(given.source, path, options)
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


def run_daemon(source: str, path: str, options: MountOptions, announce: int = -1) -> int:
    """Mount a domain at `path`, a real path, and serve it until it is unmounted or a signal arrives.

    `announce` is a pipe that gets a byte once the mount answers; the process has left its terminal then.
    Gives the exit code.  Raises MountError.
    """
    manager = Manager.of_this_process(in_foreground=announce < 0)

    def ready() -> None:
        log.info("a domain is mounted at %s", path)
        manager.ready()
        if announce >= 0:
            _leave_terminal(options.loglevel)
            with contextlib.suppress(OSError):
                os.write(announce, b"+")
            os.close(announce)

    _log_to_stderr(options.loglevel)
    for text in restrictions():
        log.warning(text)
    _raise_file_limit()
    _take_precedence()
    protect_from_oom()
    fuse_fd = open_device() if options.fd is None else take_device(options.fd)
    daemon = Daemon(fuse_fd, path, options, ready, manager.stopping)
    try:
        if options.fd is not None and is_connected(fuse_fd):
            daemon.mounted = find_mounted(fuse_fd, path)
        else:
            daemon.mounted = mount(fuse_fd, options.fsname or source, path, options.flags, options.subtype)
        code = daemon.serve()
    finally:
        daemon.close()
    if daemon.has_stuck_readers:
        # An orderly exit could wait for threads that only the end of the process can end.
        logging.shutdown()
        os._exit(code)
    return code


class Daemon:
    """Everything that serves one mount, put together: from the descriptor of /dev/fuse to the core.

    on_ready, on_stopping: are called when the mount answers, and when a signal is about to end it.
    """

    def __init__(
        self,
        fuse_fd: int,
        path: str,
        options: MountOptions,
        on_ready: Callable[[], None],
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
        from kdbusfs.host.files import MAX_PER_USER
        from kdbusfs.host.heap import Heap
        from kdbusfs.host.host import LinuxHost
        from kdbusfs.host.installer import Installer, Job
        from kdbusfs.host.store_memory import Storer

        self.mounted: Mount | None = None
        self._on_stopping = on_stopping
        self._ending: threading.Thread | None = None
        self._ended = contextlib.ExitStack()
        self._ended.callback(os.close, fuse_fd)
        faults = Faults()
        wakeup = Wakeup()
        self._ended.callback(wakeup.close)
        storer = Storer(fuse_fd, wakeup.event_fd)
        self._ended.callback(storer.close)
        installer = Installer(fuse_fd, wakeup.event_fd, storer=storer)
        self._ended.callback(installer.close)
        host = LinuxHost(
            fuse_fd,
            wakeup.event_fd,
            installer,
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
            return {**requests.stats(), "memory": memory.used, "memory_limit": memory.limit}

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
        amendments = Amendments(tree, files.open_answer, passthrough=True, on_init=on_ready)

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
            on_release=Heap(lambda: domain.users.memory.used).look,
        )

    def serve(self) -> int:
        """Serve the mount to its end; gives the exit code."""
        from kdbusfs.fuse.ownership import signals_blocked

        assert self.mounted is not None
        major, minor = (int(number) for number in self.mounted.device.split(":"))
        self._host.set_own_device(os.makedev(major, minor))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        with signals_blocked():
            self._session.start()
        served = self._server.run()
        if self._ending is not None:
            # It still wakes the server when it is through, so nothing may be closed before.
            self._ending.join(2 * _UNMOUNT_PATIENCE)
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
            if self.mounted is not None and not unmount(self.mounted, _UNMOUNT_PATIENCE):
                log.error("%s cannot be unmounted", self.mounted.path)

    def _on_signal(self, number: int, frame: object) -> None:
        # Unmounting waits for the reader, and no signal handler should wait.
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, name="kdbusfs-end", daemon=True)
            self._ending.start()

    def _end(self) -> None:
        assert self.mounted is not None
        self._on_stopping()
        unmount(self.mounted, _UNMOUNT_PATIENCE)
        self._server.stop()


def _start(source: str, path: str, options: MountOptions) -> int:
    """Run the server in a process of its own, and return when the mount answers.

    The server tells so: to look for oneself could take for ever.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _serve_in_child(source, path, options, reading, writing)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], _START_PATIENCE)
    if ready and not os.read(reading, 1):
        # The child has said why.
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or EXIT_INTERNAL
    if ready:
        return EXIT_OK
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _take_away(path, options.subtype)
    return _complain(EXIT_MOUNT, f"the mount at '{path}' does not answer")


def _serve_in_child(source: str, path: str, options: MountOptions, reading: int, writing: int) -> NoReturn:
    """The life of the server's process."""
    code = EXIT_INTERNAL
    try:
        os.close(reading)
        code = run_daemon(source, path, options, writing)
    except MountError as fault:
        code = _complain(fault.exit_code, str(fault))
    except BaseException:
        log.exception("unexpected end")
    finally:
        logging.shutdown()
        os._exit(code)


def _take_away(path: str, subtype: str) -> None:
    """Detach what a server that was killed has left behind."""
    entry = visible_mount(path)
    if entry is not None and entry.type == f"fuse.{subtype}":
        unmount(Mount(path, entry.device), _UNMOUNT_PATIENCE)


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


def _complain(exit_code: int, message: str, name: str = "kdbusfs") -> int:
    # One line, whatever was in a path.
    print(f"{name}: {message}".replace("\n", "\\n"), file=sys.stderr)
    return exit_code
