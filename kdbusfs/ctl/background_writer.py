"""Non-blocking output: a thread writes to a file or terminal that may be slow."""

from __future__ import annotations

import os
import queue
import threading
from typing import Final

STANDARD_OUTPUT: Final = 1

_BUFFER: Final = 32 << 20  # bytes


class BackgroundWriter:
    """Writes to descriptor `fd` in a thread of its own.  `write` never blocks; check `is_full` first."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pending: list[bytes] = []
        self._handed = 0
        self._written = 0
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Buffer `data` until `flush`."""
        self._pending.append(data)

    def flush(self) -> None:
        """Queue the buffered data for the thread.  Raises OSError if an earlier write failed."""
        if self._error is not None:
            raise self._error
        if self._pending:
            chunk = b"".join(self._pending)
            self._pending.clear()
            self._handed += len(chunk)
            self._chunks.put(chunk)

    @property
    def bytes(self) -> int:
        """Bytes queued so far, written or not."""
        return self._handed

    @property
    def is_full(self) -> bool:
        """Whether more than 32 MiB wait to be written."""
        return self._handed - self._written > _BUFFER

    def finish(self) -> None:
        """Block until everything is written.  Raises OSError."""
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
