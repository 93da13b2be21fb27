"""kdbusctl make-bus: make a bus and hold it."""

from __future__ import annotations

import errno
import os

import click

from kdbusfs.abi.v3 import constants as c

from ..arguments import ATTACH
from ..context import Context, pass_context
from ..failure import EXIT_USAGE, Failure, exit_code_of, explain, failing
from ..hold import Hold, command_argument
from ..options import Command

_HINTS = {
    errno.EEXIST: "there is a bus of that name already",
    errno.EMFILE: "you have 16 buses in this domain already",
    errno.EACCES: "no permission to open its control file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EINVAL: "that is not a valid bus name for this user",
}


@click.command("make-bus", cls=Command, short_help="Make a bus and hold it until Ctrl-C.")
@click.argument("name")
@command_argument
@click.option("--world", is_flag=True, help="Let all users enter the bus.")
@click.option("--group", is_flag=True, help="Let your group enter the bus.")
@click.option(
    "--bloom-size",
    type=click.IntRange(8, 4096),
    default=64,
    show_default=True,
    metavar="BYTES",
    help="Size of the bloom filters, a multiple of 8.",
)
@click.option(
    "--bloom-hashes",
    type=click.IntRange(1, (1 << 64) - 1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of bits that a word sets.",
)
@click.option(
    "--require",
    type=ATTACH,
    metavar="KINDS",
    help="Metadata that connections must agree to send, such as creds,pids; or all.",
)
@click.option(
    "--creator-shows",
    type=ATTACH,
    metavar="KINDS",
    help="Metadata of this process that 'status --creator' may show; by default creds,pids.",
)
@pass_context
def command(
    context: Context,
    name: str,
    command: tuple[str, ...],
    world: bool,
    group: bool,
    bloom_size: int,
    bloom_hashes: int,
    require: int | None,
    creator_shows: int | None,
) -> int:
    """Make a bus in the selected domain, print the path of its endpoint, and hold it until Ctrl-C or SIGTERM.

    Bus names begin with the user's id: NAME becomes UID-NAME, unless it has that prefix. The bus ends with kdbusctl.

    With COMMAND: hold it while COMMAND runs, and exit with its exit code. COMMAND finds the path in KDBUS_BUS; it is
    not printed then.

    With --json, prints an object at once: name, path.
    """
    from kdbusfs.client import make_bus

    if bloom_size % 8:
        raise Failure(f"--bloom-size {bloom_size} is not a multiple of 8", EXIT_USAGE)
    domain = context.domain()
    access = (c.MAKE_ACCESS_WORLD if world else 0) | (c.MAKE_ACCESS_GROUP if group else 0)
    shows = c.ATTACH_CREDS | c.ATTACH_PIDS if creator_shows is None else creator_shows
    with failing(f"make bus '{name}' in '{domain}'", _HINTS):
        owner = make_bus(
            domain,
            name,
            bloom=(bloom_size, bloom_hashes),
            access=access,
            attach_recv=require,
            attach_send=shows,
            prefix=not name.startswith(f"{os.geteuid()}-"),
        )
    with owner, Hold() as hold:
        return _hold(context, hold, owner.name, owner.path, command)


def _hold(context: Context, hold: Hold, name: str, path: str, command: tuple[str, ...]) -> int:
    if command:
        hold.start(command, KDBUS_BUS=path)
    elif context.output.json:
        context.output.record({"name": name, "path": path})
    else:
        context.output.line(path)

    def check() -> None:
        try:
            os.stat(path)
        except OSError as error:
            raise Failure(f"bus '{path}' is gone: {explain(error)}", exit_code_of(error)) from error

    return hold.until_end(check=check)
