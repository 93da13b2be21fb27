"""Notifications to a service manager, and descriptors that it has kept: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket

_VARIABLE = "NOTIFY_SOCKET"
_FIRST_DESCRIPTOR = 3


def kept_descriptors() -> dict[str, int]:
    """The descriptors that the service manager hands to this process, by name; they are in no order."""
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count = os.environ.pop("LISTEN_FDS", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or count != str(len(names)):
        return {}
    found = {name: number for number, name in enumerate(names, _FIRST_DESCRIPTOR)}
    for number in found.values():
        os.set_inheritable(number, False)
    return found


class Manager:
    """The service manager that started this process, if it wants notifications (Type=notify)."""

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        # A leading @ denotes the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of_this_process(cls, in_foreground: bool) -> Manager:
        """Take NOTIFY_SOCKET from the environment, and remove it there.

        A background daemon sends nothing: the service manager started mount(8) or a script, not this process.
        """
        address = os.environ.pop(_VARIABLE, "")
        return cls(address if in_foreground else "")

    def ready(self) -> None:
        """Notify that the mount is ready."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Notify that the domain is being unmounted."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        """Send without blocking; errors are ignored, because a missing listener must not stop the daemon."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
                out.sendto(state.encode(), self._address)
        except OSError:
            pass
