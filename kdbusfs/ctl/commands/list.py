"""kdbusctl list: the names and connections of a bus."""

from __future__ import annotations

import click

from ..context import Context, pass_context
from ..failure import failing
from ..options import Command
from ..survey import State, entry_json, survey

_COLUMNS = ("NAME", "ID", "STATE", "PID", "USER", "DESCRIPTION", "COMMAND")


@click.command("list", cls=Command, short_help="List the names and connections of a bus.")
@click.option("--acquired", is_flag=True, help="Names that somebody owns.")
@click.option("--activatable", is_flag=True, help="Names that an activator stands behind, taken over or not.")
@click.option("--queued", is_flag=True, help="Who waits for which name.")
@click.option(
    "--unique", is_flag=True, help="Connections that own no name; with --queued, only those that wait for none."
)
@pass_context
def command(context: Context, acquired: bool, activatable: bool, queued: bool, unique: bool) -> None:
    """List the names and connections of a bus, but not that of kdbusctl itself.

    Without an option that chooses, all of them. Names come first, in order of the alphabet, then connections
    without a name by their ids. "-" stands for what a connection does not show, or what may not be seen.

    STATE is owned, activatable or queued for a name; for a connection without one what kind of connection
    it is: monitor or policy-holder.

    COMMAND is what the bus passes on about the connection. By default it does not (attach_flags_mask), and it
    is that of the process with this PID in /proc then, unless that belongs to another user. A process may hand
    its connection to another one, or end and leave its number to a third.

    With --json an array of objects: name, state, name_flags, id, visible (whether the bus tells about it), flags,
    pid, uid, user, comm, command, command_source ("bus" or "proc"), description; null for what is not known.
    """
    choices: tuple[tuple[bool, State], ...] = (
        (acquired, "owned"),
        (activatable, "activatable"),
        (queued, "queued"),
        (unique, "unique"),
    )
    chosen = [state for wanted, state in choices if wanted] or [state for _, state in choices]
    output = context.output
    with context.connect() as connection, failing("list the bus"), output.progress("asking the bus"):
        entries = survey(connection, chosen)
    if output.json:
        output.document([entry_json(entry) for entry in entries])
        return
    rows = [
        (
            entry.name or "-",
            str(entry.peer.id),
            entry.state_text,
            str(entry.peer.pid or "-"),
            entry.peer.user or "-",
            entry.peer.description or "-",
            entry.peer.command_text,
        )
        for entry in entries
    ]
    output.table(_COLUMNS, rows, right=("ID", "PID"), last_gives_way=True)
    hidden = len({entry.peer.id for entry in entries if entry.peer.info is None})
    if hidden:
        output.note(f"{hidden} connections may not be seen through this endpoint")
