"""kdbusctl make-endpoint: make a custom endpoint with a policy of its own and hold it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import click

from kdbusfs.abi.v3 import constants as c

from .. import policy_file
from ..context import Context, pass_context
from ..failure import EXIT_USAGE, Failure, exit_code_of, explain, failing
from ..hold import Hold, command_argument
from ..options import Command

if TYPE_CHECKING:
    from kdbusfs.client import Policy

_HINTS = {
    errno.EEXIST: "the bus has an endpoint of that name already",
    errno.EPERM: "only who made the bus and root may, and by its default endpoint",
    errno.EACCES: "no permission to open the bus",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EINVAL: "the bus refuses that name or policy",
}


@click.command(
    "make-endpoint",
    cls=Command,
    short_help="Make a custom endpoint with a policy and hold it until Ctrl-C.",
    epilog=policy_file.HELP,
)
@click.argument("name")
@command_argument
@click.option(
    "--policy",
    "-p",
    "file",
    metavar="FILE",
    type=click.Path(),
    help="The policy of the endpoint. Without it, nothing is allowed.",
)
@click.option("--world", is_flag=True, help="Let all users open the endpoint.")
@click.option("--group", is_flag=True, help="Let your group open the endpoint.")
@pass_context
def command(context: Context, name: str, command: tuple[str, ...], file: str | None, world: bool, group: bool) -> int:
    """Make an endpoint of the selected bus, print its path, and hold it until Ctrl-C or SIGTERM.

    Connections through it may do what both the policy in FILE and the bus allow. Endpoint names begin with the user's
    id: NAME becomes UID-NAME, unless it has that prefix. The endpoint ends with kdbusctl.

    SIGHUP makes kdbusctl read FILE again; if it has mistakes, they are reported, and the old policy stays.

    With COMMAND: hold it while COMMAND runs, and exit with its exit code. COMMAND finds the path in KDBUS_BUS; it is
    not printed then.

    With --json, prints an object at once: name, path.
    """
    from kdbusfs.client import make_endpoint

    policy = _policy(file)
    location = context.location()
    if context.endpoint is not None:
        raise Failure("endpoints are made by the default endpoint of a bus; leave --endpoint out", EXIT_USAGE)
    access = (c.MAKE_ACCESS_WORLD if world else 0) | (c.MAKE_ACCESS_GROUP if group else 0)
    with failing(f"make endpoint '{name}' of '{location.endpoint}'", _HINTS):
        prefix = not name.startswith(f"{os.geteuid()}-")
        owner = make_endpoint(location.endpoint, name, access=access, policy=policy, prefix=prefix)

    def reload() -> None:
        try:
            with failing("update the policy", _HINTS):
                owner.update(_policy(file))
            context.output.note(f"read '{file}' again")
        except Failure as failure:
            context.output.note(f"{failure.message}; the policy stays as it was")

    def check() -> None:
        try:
            os.stat(owner.path)
        except OSError as error:
            raise Failure(f"endpoint '{owner.path}' is gone: {explain(error)}", exit_code_of(error)) from error

    with owner, Hold() as hold:
        if command:
            hold.start(command, KDBUS_BUS=owner.path)
        elif context.output.json:
            context.output.record({"name": owner.name, "path": owner.path})
        else:
            context.output.line(owner.path)
        return hold.until_end(check=check, reload=None if file is None else reload)


def _policy(file: str | None) -> Policy:
    return [] if file is None else [(entry.name, entry.rights) for entry in policy_file.load(file)]
