"""The test of a mount before its daemon is ready: the client of `rehearsal.py`, and the domain that serves it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from errno import EMFILE
from typing import TYPE_CHECKING

from kdbusfs.core.domain import Domain
from kdbusfs.diagnosis import Verdict, verdict
from kdbusfs.fuse.tree import Guest
from kdbusfs.host.confinement import confinement
from kdbusfs.host.reach import reach
from kdbusfs.rehearsal import Rehearsal, Step

if TYPE_CHECKING:
    from kdbusfs.fuse.channel import Channel
    from kdbusfs.fuse.tree import Tree
    from kdbusfs.host.installer import Installer
    from kdbusfs.host.user_threads import Pool

log = logging.getLogger("kdbusfs")


class Trial:
    """The trial of the mount that `tree` and `channel` serve.  It leaves no trace when `run` returns.

    The client uses a domain of its own, which shares only the reader's work lists with `domain`.
    sends_descriptors: whether users may send any.
    """

    def __init__(
        self,
        client: Rehearsal,
        tree: Tree,
        domain: Domain,
        installer: Installer,
        pool: Pool,
        channel: Channel,
        sends_descriptors: bool,
    ) -> None:
        self._sends_descriptors = sends_descriptors
        self._client = client
        self._tree = tree
        self._installer = installer
        self._pool = pool
        self._channel = channel
        self._begun = threading.Event()
        self._beside = Domain(domain.host)
        self._beside.changed = domain.changed
        self._beside.completed = domain.completed

    def begin(self) -> None:
        """INIT is answered: the mount can be used from now on."""
        self._begun.set()

    def give_up(self) -> None:
        """The mount has ended: make `run`, in another thread, return soon."""
        self._begun.set()
        self._client.give_up()

    def run(self, path: str, on_step: Callable[[str], None]) -> Verdict:
        """Wait for the mount at `path`, then run the client.  Not for a thread that serves the mount (deadlock)."""
        self._begun.wait()
        client = self._client
        self._tree.guest = Guest(client.pid, self._beside)
        try:
            outcome = client.perform(path, lambda step: on_step(f"a client of its own, {step.text}"))
            failed = ", ".join(f"{step.text}: {os.strerror(error)}" for step, error in outcome.failed.items())
            log.debug("a client of its own took %.1f ms: %s", outcome.seconds * 1000, failed or "all of it worked")
            if not self._sends_descriptors and outcome.failed.get(Step.SEND) == EMFILE:
                del outcome.failed[Step.SEND]
            return verdict(outcome, confinement(), lambda: reach(client.pid))
        finally:
            client.close()
            self._tree.guest = None
            self._installer.forget_name(client.bus_name.encode())
            self._pool.rest()
            self._channel.reset_counters()
