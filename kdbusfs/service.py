"""What a service manager is told about the daemon: sd_notify(3)."""

from __future__ import annotations

import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


class Manager:
    """The service manager that started this process, if one did and wants to hear of it (Type=notify)."""

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        # A leading @ stands for the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of_this_process(cls, in_foreground: bool) -> Manager:
        """What the environment says, which then says it no more.

        A daemon in the background is not what a manager has started, but mount(8) or a script that was: silent.
        """
        address = os.environ.pop(_VARIABLE, "")
        return cls(address if in_foreground else "")

    def ready(self) -> None:
        """The mount answers."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """The domain is being unmounted."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        """Never waits, and never fails: the domain is served also where nobody listens."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
                out.sendto(state.encode(), self._address)
        except OSError:
            pass
