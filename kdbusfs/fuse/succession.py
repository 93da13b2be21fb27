"""Takes over a mount whose daemon was killed: what its successor does before it reads the first request."""

from __future__ import annotations

import errno
import logging
import os
import select
from typing import Protocol

from ..host.vault import Vault
from ..native._native import lib
from .protocol import poll_notice, resend_notice

_PATIENCE = 10_000  # milliseconds
_ANSWER_MAX = 4096

log = logging.getLogger(__name__)


class Mount(Protocol):
    """What has to know which flags the kernel was granted."""

    def resume(self, granted: int) -> None: ...


class Succession:
    """fuse_fd: of the mount; vault: what its former daemon has left."""

    def __init__(self, fuse_fd: int, vault: Vault) -> None:
        self._fuse_fd = fuse_fd
        self._vault = vault

    def is_possible(self) -> bool:
        """Whether the kernel can give a successor what was read and not answered (Linux 6.9).

        To be called before the first request is read: then the question has no effect.
        """
        try:
            os.write(self._fuse_fd, resend_notice())
        except OSError:
            return False
        return True

    def initialise(self, tree_fd: int, mount: Mount) -> None:
        """The kernel has asked for INIT, and does not ask again: have pyfuse3 believe that it just does.

        tree_fd: our end of the socket pair to pyfuse3, which must be serving.  Raises OSError.
        """
        kept = self._vault.init
        if kept is None:
            return  # its predecessor had not come so far: the request comes again
        request, granted = kept
        os.write(tree_fd, request)
        poll = select.poll()
        poll.register(tree_fd, select.POLLIN)
        if not poll.poll(_PATIENCE) or not os.read(tree_fd, _ANSWER_MAX):
            raise OSError(errno.ETIMEDOUT, "the tree does not answer INIT")
        mount.resume(granted)

    def take_over(self) -> None:
        """Let go of what the kernel keeps for the former daemon, and have it ask again what that has not answered.

        Files that were open then are lost: their commands give ECONNRESET, and who polls them is woken.  Everything is
        asked for again before the first read, or what is read here would come twice.
        """
        closed = 0
        for backing_id in self._vault.backings.left():
            lib.kfs_backing_close(self._fuse_fd, backing_id)
            closed += 1
        woken = 0
        for handle in self._vault.poll_handles():
            os.write(self._fuse_fd, poll_notice(handle))
            woken += 1
        os.write(self._fuse_fd, resend_notice())
        log.info("took the mount over: closed %d backing ids, woke the pollers of %d files", closed, woken)
