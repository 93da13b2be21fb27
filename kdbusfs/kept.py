"""A daemon that has a keeper (keeper.py): how the keeper is started, and what the two say to each other."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from kdbusfs import keeper
from kdbusfs.failure import EXIT_INTERNAL
from kdbusfs.host.mounting import unshare_descriptors
from kdbusfs.host.vault import Vault

if TYPE_CHECKING:
    from kdbusfs.fuse.mount import Mount

KEPT_FLAG = "--kept"
_PATIENCE = 10.0  # seconds

log = logging.getLogger("kdbusfs")


def become_keeper(
    fuse_fd: int, vault: Vault, announcer: int, mounted: Mount, words: list[str], *, in_background: bool, resumed: bool
) -> NoReturn:
    """Have this process be the keeper of a mount from now on.

    announcer: descriptor of the pipe to whoever waits for the mount, or -1; words: of the command line; resumed: there
    was a keeper before.  Raises OSError.
    """
    passed = [number for number in (fuse_fd, vault.fd, announcer) if number >= 0]
    for number in passed:
        os.set_inheritable(number, True)
    daemon = [sys.executable, "-P", "-m", "kdbusfs", KEPT_FLAG, mounted.path, *words]
    arguments = [sys.executable, "-I", "-S", keeper.__file__, str(fuse_fd), str(vault.fd), str(announcer)]
    arguments += ["background" if in_background else "foreground", "resumed" if resumed else "new"]
    sys.stdout.flush()
    os.execv(sys.executable, [*arguments, mounted.path, mounted.device, *daemon])


class Kept:
    """The daemon's end.  spec: the word that the keeper has put behind its command line.

    is_first: nobody has served the mount before; announcer: as in `become_keeper`.
    """

    def __init__(self, spec: str) -> None:
        role, *numbers = spec.split(",")
        self.is_first = role == keeper.FIRST
        self.fuse_fd, vault_fd, self.announcer, self._orders, self._reports, self._alive = map(int, numbers)
        for number in map(int, numbers):
            if number >= 0:
                os.set_inheritable(number, False)
        self.vault = Vault(vault_fd)
        self._is_ready = False
        self._turn = threading.Event()
        self._begin_attending()

    def _begin_attending(self) -> None:
        """Have a thread that dies with the process, whatever the others wait for, be the only one to hold `alive`.

        The kernel closes the descriptors of a table with the last thread that has it.
        """
        begun = threading.Event()
        failed: list[int] = []

        def attend() -> None:
            try:
                unshare_descriptors()
            except OSError as error:
                failed.append(error.errno or 0)
                begun.set()
                return
            first, second = sorted((self._orders, self._alive))
            os.closerange(0, first)
            os.closerange(first + 1, second)
            os.closerange(second + 1, os.sysconf("SC_OPEN_MAX"))
            begun.set()
            self._take_orders()

        threading.Thread(target=attend, name="kdbusfs-keeper", daemon=True).start()
        if not begun.wait(_PATIENCE) or failed:
            raise OSError(failed[0] if failed else 0, "no descriptors of its own for a thread")
        os.close(self._orders)
        os.close(self._alive)

    def _take_orders(self) -> None:
        while os.read(self._orders, 1) == keeper.GO:
            self._turn.set()
        # The keeper has ended.  Who waits for the first daemon gives that up by ending the keeper.
        if not self._is_ready:
            os._exit(EXIT_INTERNAL)
        log.warning("the keeper has ended: the mount ends with this daemon")
        threading.Event().wait()

    def wait_for_turn(self) -> None:
        """Everything is loaded: wait until the mount is to be served, or end with the keeper."""
        self._report(keeper.LOADED)
        self._turn.wait()

    def cannot_be_succeeded(self) -> None:
        """The kernel is too old: the mount ends with this daemon."""
        self._report(keeper.ALONE)

    def ready(self) -> None:
        """The mount is served."""
        self._is_ready = True
        self._report(keeper.READY)

    def _report(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._reports, what)
