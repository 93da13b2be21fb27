"""What all commands share: which bus is meant, how to get in, and where the output goes."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from . import places
from .failure import EXIT_NO_MOUNT, Failure, failing
from .output import Colour, Output

if TYPE_CHECKING:
    from kdbusfs.client import Connection

_ENTER_HINTS = {
    errno.EACCES: "no permission: its file belongs to somebody else, or the policy forbids it",
    errno.ENOTCONN: "the daemon of the mount has ended; umount it and mount it again",
    errno.EMFILE: "too many connections or open files of this user",
}

# What files answer that are none of ours, and what the domain's control file does.
_NO_ENDPOINT = (errno.ENOTTY, errno.EINVAL, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass
class Context:
    """The common options as they were given, before or after the name of the command.

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
        """Where to write to."""
        if self._output is None:
            self._output = Output(json=self.json, colour=self.colour)
        return self._output

    def domain(self) -> str:
        """The path of the mount that is meant.  Raises Failure."""
        return places.only_domain() if self.mount is None else places.check_domain(self.mount)

    def place(self) -> places.BusPlace:
        """The bus that is meant.  Raises Failure."""
        return places.find_bus(self.mount, self.bus, self.endpoint)

    def connect(
        self, place: places.BusPlace | None = None, *, hints: dict[int, str] | None = None, **arguments: Any
    ) -> Connection:
        """A connection to the bus that is meant, or to `place`.  Raises Failure.

        hints: what an errno of HELLO means here; arguments: those of Connection.
        """
        from kdbusfs.client import Connection

        place = self.place() if place is None else place
        arguments.setdefault("description", "kdbusctl")
        hints = {**_ENTER_HINTS, **(hints or {})}
        with failing(f"enter '{place.endpoint}'", hints):
            try:
                return Connection(place.endpoint, **arguments)
            except OSError as error:
                if error.errno in _NO_ENDPOINT and error.errno not in hints:
                    raise Failure(f"'{place.endpoint}' is no endpoint of kdbusfs", EXIT_NO_MOUNT) from error
                raise


pass_context = click.make_pass_decorator(Context, ensure=True)
"""Decorates a command: its function gets the Context first."""
