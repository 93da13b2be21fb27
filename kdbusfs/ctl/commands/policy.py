"""kdbusctl policy: check a policy file, and hold its policy on a bus."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from kdbusfs.abi.v3 import constants as c

from .. import policy_file
from ..arguments import NAME
from ..context import Context, pass_context
from ..failure import EXIT_NOTHING, EXIT_USAGE, Failure, failing
from ..hold import Hold, command_argument
from ..options import Command

if TYPE_CHECKING:
    from kdbusfs.client import Connection

_HINTS = {
    errno.EEXIST: "another policy holder or an activator has a policy for that name already",
    errno.EPERM: "only who made the bus and root may, and by its default endpoint",
    errno.EINVAL: "the bus refuses that policy",
}


@click.command(
    "policy", cls=Command, short_help="Check a policy file, and hold its policy on a bus.", epilog=policy_file.HELP
)
@click.argument("file", type=click.Path())
@command_argument
@click.option("--hold", is_flag=True, help="Upload the policy to the selected bus, and hold it until Ctrl-C.")
@click.option("--may", "question", type=(NAME, str), metavar="NAME USER", help="Print the access of USER to NAME.")
@pass_context
def command(context: Context, file: str, command: tuple[str, ...], hold: bool, question: tuple[str, str] | None) -> int:
    """Check a policy file and print a line for each right. For a file with mistakes, the exit code is 2.

    With --may: print the highest right of USER to NAME by this file alone: own, talk, see or nothing; for nothing, the
    exit code is 3. Root and the creator of the bus have all rights, and all users may talk to their own processes.

    With --hold: open a policy holder on the bus for each name, and keep them until Ctrl-C or SIGTERM. A name can have
    one policy holder or activator. SIGHUP makes kdbusctl read FILE again; if it has mistakes, they are reported, and
    the old policy stays. With COMMAND: hold it while COMMAND runs, and exit with its exit code.

    With --json, prints an array of objects: name, rights (access, kind, id, who); with --may an object: name, user,
    may.
    """
    entries = policy_file.load(file)
    if command and not hold:
        raise Failure("COMMAND needs --hold", EXIT_USAGE)
    if question is not None:
        return _answer(context, entries, *question)
    if hold:
        return _hold(context, file, entries, command)
    _show(context, entries)
    return 0


def _show(context: Context, entries: list[policy_file.NamePolicy]) -> None:
    output = context.output
    if output.json:
        output.document(
            [{"name": entry.name, "rights": list(map(policy_file.right_json, entry.rights))} for entry in entries]
        )
        return
    rows: list[tuple[str, str, str]] = []
    for entry in entries:
        rights = [policy_file.right_json(right) for right in entry.rights]
        rows += [(entry.name, right["access"], right["who"]) for right in rights] or [(entry.name, "-", "nobody")]
    output.table(("NAME", "ACCESS", "WHO"), rows)


def _answer(context: Context, entries: list[policy_file.NamePolicy], name: str, user: str) -> int:
    may = policy_file.what_may(entries, name, policy_file.user_id(user))
    if context.output.json:
        context.output.document({"name": name, "user": user, "may": may})
    else:
        context.output.line(may or "nothing")
    return 0 if may else EXIT_NOTHING


class _Holders:
    """Policy holder connections, one for each name."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._location = context.location()
        self._held: dict[str, Connection] = {}

    def check(self) -> None:
        """Raises Failure if the bus has ended."""
        for holder in self._held.values():
            try:
                holder.wait(0)
            except ConnectionError as error:
                raise Failure("the bus has ended", EXIT_NOTHING) from error

    def set(self, entries: list[policy_file.NamePolicy]) -> None:
        """Replace the policies.  Raises Failure; changes made by then are kept."""
        wanted = {entry.name: entry.rights for entry in entries}
        for name in self._held.keys() - wanted.keys():
            self._held.pop(name).close()
        for name, rights in wanted.items():
            with failing(f"hold the policy of '{name}' on '{self._location.endpoint}'", _HINTS):
                if name in self._held:
                    self._held[name].update(name=name, policy=rights)
                else:
                    self._held[name] = self._context.connect(
                        self._location,
                        flags=c.HELLO_POLICY_HOLDER,
                        name=name,
                        policy=rights,
                        hints=_HINTS,
                        pool_size=1 << 16,
                    )

    def close(self) -> None:
        for holder in self._held.values():
            holder.close()


def _hold(context: Context, file: str, entries: list[policy_file.NamePolicy], command: tuple[str, ...]) -> int:
    holders = _Holders(context)

    def reload() -> None:
        try:
            holders.set(policy_file.load(file))
            context.output.note(f"read '{file}' again")
        except Failure as failure:
            context.output.note(failure.message)

    with ExitStack() as stack:
        stack.callback(holders.close)
        hold = stack.enter_context(Hold())
        holders.set(entries)
        if command:
            hold.start(command)
        else:
            held = [entry.name for entry in entries]
            if context.output.json:
                context.output.record({"held": held})
            else:
                context.output.line(f"holding the policy of {len(held)} names")
        return hold.until_end(check=holders.check, reload=reload)
