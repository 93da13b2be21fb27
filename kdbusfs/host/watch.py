"""Watches the CANCEL_FDs of blocked SENDs in a thread of its own.

poll(2) calls into the file system of a file, and a FUSE server may never answer.  So only files that the kernel itself
polls are accepted: pipes, sockets, character devices, and anonymous inodes except epoll, which polls other files, and
signalfd, which reports signals of the polling process.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from errno import EBADF, EINVAL
from typing import Any, Final

from kdbusfs.base.errors import CommandError

from .files import LinuxFile
from .threads import new_thread

_IDLE: Final = 1.0  # seconds
_SAFE_TYPES: Final = frozenset((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR))
_SAFE_ANONYMOUS: Final = frozenset(
    f"anon_inode:[{name}]" for name in ("eventfd", "timerfd", "pidfd")
) | {"anon_inode:inotify"}


class LinuxWatch:
    """ports.Cancellation: one watched descriptor and the token that is reported for it."""

    __slots__ = ("_watcher", "file", "token")

    def __init__(self, watcher: Watcher, file: LinuxFile, token: Any) -> None:
        self._watcher = watcher
        self.file = file
        self.token = token

    def close(self) -> None:
        """Stop watching and release the descriptor."""
        if self.file.fd >= 0:
            self._watcher.remove(self)
            self.file.close()


class Watcher:
    """The watched descriptors.  `event_fd` is signalled when `drain` has tokens.

    Only the reader may call the methods.  The thread starts with the first watch, and ends after a second without any.
    """

    __slots__ = ("_closed", "_epoll", "_event_fd", "_lock", "_ready", "_thread", "_wake", "_watches")

    def __init__(self, event_fd: int) -> None:
        self._event_fd = event_fd
        self._epoll: select.epoll | None = None
        self._wake = -1
        self._lock = threading.Lock()  # guards `_epoll`, `_wake` and `_thread`, which the thread clears when it ends
        self._closed = False
        self._thread: threading.Thread | None = None
        self._watches: dict[int, LinuxWatch] = {}
        self._ready: deque[int] = deque()

    def add(self, file: LinuxFile, token: Any) -> LinuxWatch:
        """Watch `file` and take ownership of it.

        Raises CommandError without taking the file: EINVAL if it cannot or must not be polled, EBADF for an O_PATH
        descriptor.
        """
        if file.is_path:
            raise CommandError(EBADF, "O_PATH descriptor")
        if not _is_safe(file):
            raise CommandError(EINVAL, "file that cannot be watched")
        with self._lock:
            epoll = self._start()
            try:
                # Edge-triggered: a hang-up would be reported forever, and does not cancel (SYNC-1).
                epoll.register(file.fd, select.EPOLLIN | select.EPOLLET)
            except OSError:
                raise CommandError(EINVAL, "file that cannot be polled") from None
            watch = LinuxWatch(self, file, token)
            self._watches[file.fd] = watch
            return watch

    def remove(self, watch: LinuxWatch) -> None:
        """Remove `watch`; call it before its descriptor is closed."""
        with self._lock:
            if self._watches.pop(watch.file.fd, None) is None or self._epoll is None:
                return
            self._epoll.unregister(watch.file.fd)
            if not self._watches:
                os.eventfd_write(self._wake, 1)

    def drain(self) -> list[Any]:
        """Tokens of descriptors that became readable since the last call."""
        tokens: list[Any] = []
        while self._ready:
            fd = self._ready.popleft()
            watch = self._watches.get(fd)
            if watch is None:
                continue
            # A race: the descriptor may have been closed and its number reused since the event.
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if any(events & select.POLLIN for _, events in poll.poll(0)):
                tokens.append(watch.token)
        return tokens

    def close(self) -> None:
        """Stop the thread."""
        with self._lock:
            self._closed = True
            thread = self._thread
            if thread is not None:
                os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()

    def _start(self) -> select.epoll:
        """The epoll, with its thread running.  Call with the lock held."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = new_thread("kdbusfs-watch", self._wait, self._epoll, self._wake)
            self._thread.start()
        return self._epoll

    def _wait(self, epoll: select.epoll, wake: int) -> None:
        while True:
            events = epoll.poll(None if self._watches else _IDLE)
            ready = [fd for fd, _ in events if fd != wake]
            if len(ready) < len(events):
                os.eventfd_read(wake)
            if ready:
                self._ready.extend(ready)
                os.eventfd_write(self._event_fd, 1)
            with self._lock:
                if self._closed or (not events and not self._watches):
                    epoll.close()
                    os.close(wake)
                    self._epoll = self._thread = None
                    return


def _is_safe(file: LinuxFile) -> bool:
    if stat.S_IFMT(file.facts.mode) in _SAFE_TYPES:
        return True
    return os.readlink(f"/proc/self/fd/{file.fd}") in _SAFE_ANONYMOUS
