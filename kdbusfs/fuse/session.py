"""pyfuse3's session: a thread that serves the tree over a socket pair instead of /dev/fuse.

libfuse takes "/dev/fd/N" for a mount point that is mounted already and speaks the FUSE protocol on descriptor N; a
SOCK_SEQPACKET pair keeps the boundaries of its messages. pyfuse3 has one session per process.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import pyfuse3
import trio

from ..host.threads import new_thread

_BUFFER = 4 << 20  # bytes: above the largest FUSE message, 1 MiB of data and its header
_PATIENCE = 10.0  # seconds
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the socket module has no names for them
_SO_RCVBUFFORCE = 33

log = logging.getLogger(__name__)


class TreeSession:
    """Serves `operations` on a thread of its own, from `start` to `stop`.

    When that thread ends for another reason it closes its end, so that a reader of `fd` sees the end of the stream
    instead of waiting for ever; `failure` is the reason.
    """

    def __init__(self, operations: pyfuse3.Operations) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            _enlarge(end)
        self._ours = ours
        self.failure: Exception | None = None
        # libfuse owns the descriptor, and closes it with the session.
        try:
            pyfuse3.init(operations, f"/dev/fd/{theirs.fileno()}", set())
        except BaseException:
            ours.close()
            theirs.close()
            raise
        theirs.detach()
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready = threading.Event()
        self._thread = new_thread("kdbusfs-tree", self._run)

    @property
    def fd(self) -> int:
        """The descriptor for requests and answers."""
        return self._ours.fileno()

    @property
    def is_serving(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start serving.  Raises RuntimeError if that takes more than _PATIENCE seconds."""
        self._thread.start()
        if not self._ready.wait(_PATIENCE) or self._token is None:
            raise RuntimeError("the thread that serves the tree did not start")

    def stop(self) -> None:
        """End the thread and the session; close `fd`."""
        if self._thread.ident is None:
            pyfuse3.close(unmount=False)
        elif self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(pyfuse3.terminate)
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                log.warning("the thread that serves the tree does not end")
        self._ours.close()

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as fault:
            self.failure = _cause(fault)
            log.exception("the tree is not served any more")
        finally:
            pyfuse3.close(unmount=False)
            self._ready.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ready.set()
        await pyfuse3.main()


def _cause(fault: BaseException) -> Exception | None:
    """The error that trio has wrapped in groups of one."""
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault if isinstance(fault, Exception) else None


def _enlarge(end: socket.socket) -> None:
    """Set both buffers of a socket to hold the largest message, beyond the system's limits if allowed."""
    for forced, ordinary in (
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
    ):
        try:
            end.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, ordinary, _BUFFER)
