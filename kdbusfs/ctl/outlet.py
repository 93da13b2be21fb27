"""Writing to a file or a terminal that may be slow, without waiting for it."""

from __future__ import annotations

import os
import queue
import threading
from typing import Final

STANDARD_OUTPUT: Final = 1

_BUFFER: Final = 32 << 20  # bytes


class Outlet:
    """Writes to descriptor `fd` in a thread of its own.  `write` never waits; `is_full` says that it lags behind."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pending: list[bytes] = []
        self._handed = 0
        self._written = 0
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Add `data` to what `flush` hands over."""
        self._pending.append(data)

    def flush(self) -> None:
        """Hand over what was written.  Raises OSError when it turned out that nothing can be written any more."""
        if self._error is not None:
            raise self._error
        if self._pending:
            chunk = b"".join(self._pending)
            self._pending.clear()
            self._handed += len(chunk)
            self._chunks.put(chunk)

    @property
    def bytes(self) -> int:
        """How much was written or handed over."""
        return self._handed

    @property
    def is_full(self) -> bool:
        """Whether there is much that was not written yet."""
        return self._handed - self._written > _BUFFER

    def finish(self) -> None:
        """Return when everything is written.  Raises OSError."""
        self.flush()
        self._chunks.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            chunk = self._chunks.get()
            if chunk is None:
                return
            view = memoryview(chunk)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as error:
                self._error = error
                return
            self._written += len(chunk)
