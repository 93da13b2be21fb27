"""kdbusctl wait: wait until a name has an owner, or has none any more."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import click

from kdbusfs.abi.v3 import constants as c

from ..arguments import NAME, Seconds
from ..context import Context, pass_context
from ..failure import EXIT_TIMEOUT, Failure, failing
from ..options import Command

if TYPE_CHECKING:
    from kdbusfs.client import Connection


@click.command("wait", cls=Command, short_help="Wait until a name has an owner.")
@click.argument("name", type=NAME)
@click.option("--gone", is_flag=True, help="Wait until nobody owns NAME.")
@click.option("--service", is_flag=True, help="Do not count an activator as an owner.")
@click.option(
    "--timeout",
    "-t",
    type=Seconds(0, 1e6),
    metavar="SECONDS",
    help="Give up after this time, and exit with 5. Default: never.",
)
@pass_context
def command(context: Context, name: str, gone: bool, service: bool, timeout: float | None) -> None:
    """Wait until NAME has an owner, and print the owner's id. Ends at once if it has one already.

    With --json, prints an object: name, id (null with --gone).
    """
    from kdbusfs.client import name_added_rule, name_changed_rule, name_removed_rule

    output = context.output
    end = None if timeout is None else time.monotonic() + timeout
    doing = f"waiting until {'nobody owns' if gone else 'somebody owns'} {name}"
    with context.connect() as connection, failing(f"wait for '{name}'"), output.progress(doing):
        # Subscribe before the lookup: otherwise a change between the two would be missed (a race).
        for cookie, rule in enumerate((name_added_rule, name_changed_rule, name_removed_rule), 1):
            connection.add_match(cookie, rule(name))
        while True:
            owner = _owner(connection, name, service)
            if (owner is None) == gone:
                break
            _wait_for_news(connection, end, name, gone)
    if output.json:
        output.document({"name": name, "id": owner})
    elif owner is not None:
        output.line(str(owner))


def _owner(connection: Connection, name: str, service: bool) -> int | None:
    """The id of the current owner."""
    try:
        info = connection.conn_info(name)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENXIO):
            return None
        raise
    return None if service and info.flags & c.HELLO_ACTIVATOR else info.id


def _wait_for_news(connection: Connection, end: float | None, name: str, gone: bool) -> None:
    from kdbusfs.client import Lost

    left = None if end is None else end - time.monotonic()
    if (left is not None and left <= 0) or not connection.wait(left):
        has = "still has an owner" if gone else "has no owner yet"
        raise Failure(f"time is up: '{name}' {has}", EXIT_TIMEOUT)
    try:
        while True:
            message = connection.recv()
            if message is None:
                return
            message.free()
    except Lost:
        return  # the lookup follows anyway
