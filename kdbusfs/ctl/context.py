"""State that all commands share: the selected bus, connections to it, and the output."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from . import locations
from .failure import EXIT_NO_MOUNT, Failure, failing
from .output import Colour, Output

if TYPE_CHECKING:
    from kdbusfs.client import Connection

_ENTER_HINTS = {
    errno.EACCES: "no permission: its file belongs to somebody else, or the policy forbids it",
    errno.ENOTCONN: "the daemon of the mount has ended; umount it and mount it again",
    errno.EMFILE: "too many connections or open files of this user",
}

# Errors of HELLO on a file that is not an endpoint: another file system's, or the control file.
_NO_ENDPOINT = (errno.ENOTTY, errno.EINVAL, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass
class Context:
    """The common options, given before or after the name of the command.

    mount: path of a domain; bus: path or name; endpoint: name.  None: not given.
    """

    mount: str | None = None
    bus: str | None = None
    endpoint: str | None = None
    json: bool = False
    colour: Colour = "auto"
    _output: Output | None = field(default=None, repr=False)

    @property
    def output(self) -> Output:
        """The output, made at first use."""
        if self._output is None:
            self._output = Output(json=self.json, colour=self.colour)
        return self._output

    def domain(self) -> str:
        """The path of the selected mount.  Raises Failure."""
        return locations.only_domain() if self.mount is None else locations.check_domain(self.mount)

    def location(self) -> locations.BusLocation:
        """The location of the selected bus.  Raises Failure."""
        return locations.find_bus(self.mount, self.bus, self.endpoint)

    @property
    def has_choice(self) -> bool:
        """Whether kdbusctl has selected the bus among several mounts, so that its output should name it."""
        return self.mount is None and self.bus is None and len(locations.mounts()) > 1

    def connect(
        self, location: locations.BusLocation | None = None, *, hints: dict[int, str] | None = None, **arguments: Any
    ) -> Connection:
        """Connect to the selected bus, or to `location`.  Raises Failure.

        hints: explanations by errno of HELLO; arguments: those of Connection.
        """
        from kdbusfs.client import Connection

        location = self.location() if location is None else location
        arguments.setdefault("description", "kdbusctl")
        hints = {**_ENTER_HINTS, **(hints or {})}
        with failing(f"enter '{location.endpoint}'", hints):
            try:
                return Connection(location.endpoint, **arguments)
            except OSError as error:
                if error.errno in _NO_ENDPOINT and error.errno not in hints:
                    raise Failure(f"'{location.endpoint}' is not an endpoint of kdbusfs", EXIT_NO_MOUNT) from error
                raise


pass_context = click.make_pass_decorator(Context, ensure=True)
"""Decorator: passes the Context to a command as its first argument."""
