"""The daemon of one mount: connects the parts from the descriptor of /dev/fuse to the core."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable

from kdbusfs.bus1.limits import Maxima
from kdbusfs.bus1.world import World
from kdbusfs.core.domain import Domain
from kdbusfs.diagnosis import warn
from kdbusfs.failure import EXIT_INTERNAL, EXIT_OK
from kdbusfs.fuse.channel import Amendments, Channel
from kdbusfs.fuse.error_log import ErrorLog
from kdbusfs.fuse.files import MAX_PER_USER as MAX_OPEN
from kdbusfs.fuse.files import OpenFiles
from kdbusfs.fuse.mount import UNMOUNT_PATIENCE, Mount, is_mounted, unmount
from kdbusfs.fuse.nodes import Access, NodeIds
from kdbusfs.fuse.ownership import signals_blocked
from kdbusfs.fuse.protocol import prune_notices
from kdbusfs.fuse.requests import Requests, SharedState
from kdbusfs.fuse.responder import ClientFiles
from kdbusfs.fuse.server import Server, Wakeup
from kdbusfs.fuse.session import TreeSession
from kdbusfs.fuse.succession import Succession
from kdbusfs.fuse.tree import Tree
from kdbusfs.host.caller import LinuxCaller
from kdbusfs.host.closer import Closer
from kdbusfs.host.files import MAX_PER_USER
from kdbusfs.host.garbage import Collector
from kdbusfs.host.heap import Heap
from kdbusfs.host.host import LinuxHost
from kdbusfs.host.installer import Installer
from kdbusfs.host.store_memory import Storer
from kdbusfs.host.threads import new_thread
from kdbusfs.host.user_threads import Pool
from kdbusfs.host.vault import Vault
from kdbusfs.options import CONTROL_MODES, Bus1, MountOptions
from kdbusfs.rehearsal import Rehearsal
from kdbusfs.surroundings import memory_total
from kdbusfs.trial import Trial

log = logging.getLogger("kdbusfs")

TRIAL_PATIENCE = 10.0
"""Seconds that a trial may take to end after its mount; `Rehearsal.close` takes at most one of them."""


class Parts:
    """The objects that serve one mount, and `ended`, which releases them in reverse order.

    path: of the mount point; client: tests the mount before it is ready, None where that was done by another daemon;
    vault: what that one has left, and what this one leaves to its successor; None if there is to be none.
    """

    def __init__(
        self, fuse_fd: int, path: str, options: MountOptions, client: Rehearsal | None, vault: Vault | None
    ) -> None:
        self._fuse_fd = fuse_fd
        self.vault = vault
        self._path = path
        self.ended = contextlib.ExitStack()
        self.ended.callback(os.close, fuse_fd)
        self.errors = ErrorLog()
        self._make_helpers()
        self.host = self._make_host(options)
        self.domain = self._make_domain(options)
        self.peers = self._make_peers(options)
        self.tree = self._make_tree(options)
        self.host.descriptors.find_handle = self.tree.handle_of
        self.session = TreeSession(self.tree)
        self.ended.callback(self.session.stop)
        self.channel = Channel(fuse_fd, self.session.fd, self.wakeup.event_fd)
        self.ended.callback(self.channel.close)
        self.succession = None if vault is None else Succession(fuse_fd, vault)
        self.collector = Collector(lambda: self.channel.counters()["requests"])
        self.ended.callback(self.collector.close)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.files = self.tree.files = OpenFiles(self.channel, min(MAX_OPEN, limit // 4))
        self.requests = self._make_requests()
        may_send = options.max_user_fds != 0
        self.trial = None
        if client is not None:
            self.trial = Trial(client, self.tree, self.domain, self.installer, self.pool, self.channel, may_send)
        self.amendments = Amendments(self.tree, self.files.open_answer, passthrough=True, on_init=self._initialised)
        self.server = self._make_server()

    def _make_helpers(self) -> None:
        """Make the helper threads of the reader."""
        self.wakeup = Wakeup()
        self.ended.callback(self.wakeup.close)
        self.storer = Storer(self._fuse_fd, self.wakeup.event_fd)
        self.ended.callback(self.storer.close)
        self.pool = Pool()
        self.installer = Installer(self.pool, self._fuse_fd, self.wakeup.event_fd, storer=self.storer)
        self.ended.callback(self.pool.close)

    def _make_host(self, options: MountOptions) -> LinuxHost:
        limit = MAX_PER_USER if options.max_user_fds is None else options.max_user_fds
        backings = None if self.vault is None else self.vault.backings
        host = LinuxHost(self._fuse_fd, self.wakeup.event_fd, Closer(self.pool), limit, backings)
        self.ended.callback(host.close)
        return host

    def _make_domain(self, options: MountOptions) -> Domain:
        total = memory_total()
        domain = Domain(self.host, options.max_user_memory or total // 2, total)
        if options.attach_flags_mask is not None:
            domain.attach_flags_mask = options.attach_flags_mask
        return domain

    def _make_peers(self, options: MountOptions) -> World:
        """Make bus1, which shares accounts, ends and turns with the domain."""
        domain = self.domain
        users = domain.users
        maxima = Maxima(
            options.bus1_max_slices,
            options.bus1_max_handles,
            options.bus1_max_inflight_bytes,
            options.bus1_max_inflight_fds,
        )
        return World(
            domain.turn, lambda uid: users.get(uid).account, users.forget_if_idle, domain.ends, domain.changed, maxima
        )

    def _make_tree(self, options: MountOptions) -> Tree:
        owner = self.host.namespaces.owner
        vault = self.vault
        return Tree(
            self.domain,
            self.host,
            self.installer,
            self.host.clock.realtime,
            self.errors.report,
            self._stats,
            owner,
            _access(options, owner),
            self._prune,
            self.domain.turn.spend,
            peers=self.peers if options.bus1 is not Bus1.NONE else None,
            lists_peers=options.bus1 is Bus1.LISTED,
            ids=None if vault is None else NodeIds(vault.nodeids, vault.reserve_nodeids),
            epoch=0 if vault is None else vault.epoch,
        )

    def _make_requests(self) -> Requests:
        client_files = ClientFiles(self.installer, self.tree, self.storer, self._swap_path)
        shared = SharedState(self.files, self.domain, self._make_caller, client_files, self.errors)
        return Requests(self.channel, shared)

    def _make_server(self) -> Server:
        return Server(
            self.channel,
            self.amendments,
            self.requests,
            self.domain,
            self.wakeup,
            self.tree,
            errors=self.errors,
            on_event=(self._cancel,),
            on_tree=self.collector.notice,
            on_shutdown=self.peers.shut_down,
            on_release=Heap(lambda: self.domain.users.memory.used).look,
        )

    def _initialised(self, request: bytes, granted: int) -> None:
        if self.vault is not None:
            self.vault.keep_init(request, granted)
        if self.trial is not None:
            self.trial.begin()

    def resume(self) -> None:
        """The session serves: begin, or go on, with a mount that is to outlive this daemon.  Before the first read."""
        if self.vault is None or self.succession is None:
            return
        if self.vault.epoch:
            self.succession.initialise(self.session.fd, self.amendments)
            self.succession.take_over()
        self.vault.begin()
        self.channel.keep(self.vault.kept())

    def _make_caller(self) -> LinuxCaller:
        return self.host.caller(os.getpid())

    def _swap_path(self, fh: int) -> str:
        return f"{self._path}/.conn-{fh}"

    def _stats(self) -> dict[str, object]:
        memory = self.domain.users.memory
        return {
            **self.requests.stats(),
            **self.collector.statistics(),
            "bus1": self.peers.counts(),
            "memory": memory.used,
            "memory_limit": memory.limit,
            "blocks": sys.getallocatedblocks(),
        }

    def _prune(self, nodeids: list[int]) -> bool:
        """Ask the kernel to forget node ids.  Returns whether it can."""
        try:
            for notice in prune_notices(nodeids):
                os.write(self._fuse_fd, notice)
        except OSError:  # EINVAL of a kernel without FUSE_NOTIFY_PRUNE
            return False
        return True

    def _cancel(self) -> None:
        for token in self.host.cancelled():
            self.domain.cancelled(token)


class Daemon:
    """Serves one mount, from its first request to its end.

    client, vault: as for `Parts`; on_stopping: called when a signal is about to end the mount.
    on_step, on_ready: called when a step of the start begins, and when the mount has been tested.
    """

    on_step: Callable[[str], None] = staticmethod(lambda name: None)
    on_ready: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        fuse_fd: int,
        path: str,
        options: MountOptions,
        client: Rehearsal | None,
        on_stopping: Callable[[], None],
        vault: Vault | None = None,
    ) -> None:
        self.mounted: Mount | None = None
        self.fuse_fd = fuse_fd
        self._on_stopping = on_stopping
        self._failure: Exception | None = None
        self._is_ready = False
        self._is_successor = vault is not None and vault.epoch > 0
        self._ending: threading.Thread | None = None
        self._parts = Parts(fuse_fd, path, options, client, vault)

    def serve(self) -> int:
        """Serve the mount to its end.  Returns the exit code.  Raises the error that ended it before it was ready."""
        assert self.mounted is not None
        major, minor = (int(number) for number in self.mounted.device.split(":"))
        self._parts.host.set_own_device(os.makedev(major, minor))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        with signals_blocked():
            self._parts.session.start()
            self._parts.resume()
            trial = self._parts.trial
            if trial is None:
                self._begin()
            else:
                trying = new_thread("kdbusfs-trial", self._try, trial)
                trying.start()
        served = self._parts.server.run()
        if trial is not None:
            # It uses the channel and the installer, so they may not be closed before it has ended.
            trial.give_up()
            trying.join(TRIAL_PATIENCE)
        if self._ending is not None:
            # It still wakes the server when it is through, so nothing may be closed before.
            self._ending.join(2 * UNMOUNT_PATIENCE)
        if self._failure is not None:
            raise self._failure
        if served and (self._ending is not None or not is_mounted(self.mounted)):
            return EXIT_OK
        if not self._is_ready and self._parts.session.failure is not None:
            raise self._parts.session.failure
        log.error("the connection to the kernel has ended, %s is not served any more", self.mounted.path)
        return EXIT_INTERNAL

    @property
    def has_stuck_readers(self) -> bool:
        """Whether reader threads are still stuck in clients' memory; known after `serve`."""
        return self._parts.server.has_stuck_readers

    def close(self) -> None:
        """Unmount, and end everything.  A successor that was never ready leaves the mount to the next one."""
        with self._parts.ended:
            if self._is_successor and not self._is_ready:
                return
            if self.mounted is not None and not unmount(self.mounted, UNMOUNT_PATIENCE):
                log.error("%s cannot be unmounted", self.mounted.path)

    @property
    def can_be_succeeded(self) -> bool:
        """Whether the kernel lets another daemon go on with the mount; to be asked before `serve`."""
        succession = self._parts.succession
        return succession is not None and succession.is_possible()

    def _begin(self) -> None:
        self._parts.collector.begin()
        self._is_ready = True
        self.on_ready()

    def _try(self, trial: Trial) -> None:
        """Have the client test the mount, then report readiness; or end the mount if that fails."""
        assert self.mounted is not None
        try:
            found = trial.run(self.mounted.path, self.on_step)
            if self._ending is None and is_mounted(self.mounted):
                warn(found)
                self._begin()
        except Exception as fault:
            self._failure = fault
            # Not in another thread: there may be no memory for one.
            self._ending = threading.current_thread()
            self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        # Unmounting waits for the reader, which a signal handler must not do.
        if self._ending is None:
            self._ending = threading.Thread(target=self._end, name="kdbusfs-end", daemon=True)
            self._ending.start()

    def _end(self) -> None:
        assert self.mounted is not None
        if self._failure is None:
            self._on_stopping()
        unmount(self.mounted, UNMOUNT_PATIENCE)
        self._parts.server.stop()


def _access(options: MountOptions, owner: tuple[int, int]) -> Access:
    """The permissions of the root directory and of `control`, which `owner` has by default."""
    return Access(
        owner[0] if options.uid is None else options.uid,
        owner[1] if options.gid is None else options.gid,
        options.mode,
        CONTROL_MODES[options.mode],
    )
