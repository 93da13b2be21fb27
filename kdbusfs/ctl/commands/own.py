"""kdbusctl own: own a name, or hold it as an activator, and report events."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import click

from kdbusfs.abi.v3 import constants as c

from ..arguments import NAME
from ..context import Context, pass_context
from ..describe import proc_command
from ..escape import escape_bytes
from ..failure import EXIT_FAILED, EXIT_NOTHING, EXIT_OK, EXIT_USAGE, Failure, failing
from ..hold import Hold, command_argument
from ..options import Command
from ..payload import LARGEST, payload_json, pieces, size_of

if TYPE_CHECKING:
    from kdbusfs.client import Connection, Message, Part, ReceivedPart

_SHOWN = 200  # bytes of a payload on a line


@click.command("own", cls=Command, short_help="Own a name until Ctrl-C, and report events.")
@click.argument("name", type=NAME)
@command_argument
@click.option("--replace", is_flag=True, help="Replace the owner, if it allows that.")
@click.option("--allow-replacement", is_flag=True, help="Allow others to replace this owner.")
@click.option("--queue", is_flag=True, help="Wait for the name while another connection owns it.")
@click.option("--activator", is_flag=True, help="Hold the name as an activator until a service takes it.")
@click.option("--echo", is_flag=True, help="Answer each request with its own payload.")
@pass_context
def command(
    context: Context,
    name: str,
    command: tuple[str, ...],
    replace: bool,
    allow_replacement: bool,
    queue: bool,
    activator: bool,
    echo: bool,
) -> int:
    """Acquire NAME and own it until Ctrl-C or SIGTERM. Exits with 1 if it is owned already and --queue is not given.

    Prints a line for each event: acquired, queued, lost, and each received message. Messages are dropped, or answered
    with --echo. If the name is lost, kdbusctl exits with 1, unless it waits for the name (--queue).

    With COMMAND: run it once the name is acquired, and exit with its exit code. Events go to standard error then.

    With --activator: hold NAME as an activator, as the bus' creator or root. Messages wait until a service acquires
    NAME, and then move to it. COMMAND is that service: it is started when a message waits. If it ends without having
    acquired NAME, kdbusctl exits with 1.

    COMMAND finds the path of the endpoint in the environment variable KDBUS_BUS.

    With --json, prints one object per line: event ("acquired", "queued", "lost", "message", "missed", "started",
    "ended"), name, id; a message also has source, cookie, expects_reply, payload (its first 64 MiB); missed has count;
    ended has exit_code.
    """
    if activator and (replace or allow_replacement or queue or echo):
        raise Failure("--activator excludes --replace, --allow-replacement, --queue and --echo", EXIT_USAGE)
    if activator:
        return _Activator(context, name, command).run()
    flags = (
        (c.NAME_REPLACE_EXISTING if replace else 0)
        | (c.NAME_ALLOW_REPLACEMENT if allow_replacement else 0)
        | (c.NAME_QUEUE if queue else 0)
    )
    return _Owner(context, name, command, flags, echo).run()


class _EventPrinter:
    """Prints events of a name as lines or as JSON."""

    def __init__(self, context: Context, name: str, *, to_stderr: bool) -> None:
        """to_stderr: whether standard output belongs to COMMAND."""
        self._output = context.output
        self._name = name
        self._to_stderr = to_stderr

    def print(self, event: str, text: str, **details: Any) -> None:
        if self._output.json:
            self._output.record({"event": event, "name": self._name, **details})
        elif self._to_stderr:
            self._output.note(text)
        else:
            self._output.line(text)


class _Owner:
    """Owns a name as an ordinary connection."""

    def __init__(self, context: Context, name: str, command: tuple[str, ...], flags: int, echo: bool) -> None:
        self._context = context
        self._name = name
        self._command = command
        self._flags = flags
        self._echo = echo
        self._owned = False
        self._events = _EventPrinter(context, name, to_stderr=bool(command))

    def run(self) -> int:
        from kdbusfs.client import name_changed_rule, name_removed_rule

        location = self._context.location()
        with Hold() as hold, self._context.connect(location) as connection:
            for cookie, rule in enumerate((name_changed_rule, name_removed_rule), 1):
                connection.add_match(cookie, rule(self._name))
            self._acquire(connection)
            started = False
            while not (hold.stopped and not hold.running):
                if self._owned and self._command and not started:
                    started = True
                    hold.start(self._command, KDBUS_BUS=location.endpoint)
                if hold.wait(connection.fileno()):
                    self._read(connection)
                if started and not hold.running:
                    return hold.exit_code
                if not self._owned and not self._flags & c.NAME_QUEUE and not hold.running:
                    return EXIT_FAILED
        return hold.exit_code

    def _acquire(self, connection: Connection) -> None:
        with failing(f"own '{self._name}'", {errno.EPERM: "the policy does not allow it"}):
            try:
                flags = connection.acquire(self._name, flags=self._flags)
            except FileExistsError as error:
                advice = "" if self._flags & c.NAME_REPLACE_EXISTING else ", --replace takes it over if that is allowed"
                owner = _who_owns(connection, self._name)
                raise Failure(f"cannot own '{self._name}': {owner}; --queue waits for it{advice}") from error
        if flags & c.NAME_IN_QUEUE:
            text = f"queued for {self._name}: {_who_owns(connection, self._name)}"
            self._events.print("queued", text, id=connection.id)
        else:
            self._acquired(connection)

    def _acquired(self, connection: Connection) -> None:
        self._owned = True
        self._events.print("acquired", f"acquired {self._name} as connection {connection.id}", id=connection.id)

    def _read(self, connection: Connection) -> None:
        """Receive and process all queued messages."""
        from kdbusfs.client import Lost

        while True:
            try:
                message = connection.recv()
            except Lost as lost:
                text = f"{lost.count} notifications were lost"
                self._events.print("missed", text, id=connection.id, count=lost.count)
                continue
            except ConnectionError as error:
                raise Failure("the bus has ended", EXIT_NOTHING) from error
            if message is None:
                return
            with message:
                if message.src_id == c.SRC_ID_KERNEL:
                    self._on_change(connection, message)
                else:
                    self._on_message(connection, message)

    def _on_change(self, connection: Connection, message: Message) -> None:
        from kdbusfs.client import NameChange

        change = message.notification
        if not isinstance(change, NameChange) or change.name != self._name:
            return
        if change.new_id == connection.id:
            self._acquired(connection)
        elif change.old_id == connection.id:
            self._owned = False
            by = f" to connection {change.new_id}" if change.new_id else ""
            self._events.print("lost", f"lost {self._name}{by}", id=connection.id)

    def _on_message(self, connection: Connection, message: Message) -> None:
        size = size_of(message)
        json = self._context.json
        try:
            data = b"".join(pieces(message, LARGEST if json else _SHOWN))
        except Failure:
            data = b""
        kind = "request" if message.expects_reply else "message"
        text = f"{kind} from connection {message.src_id}, {size} bytes: {escape_bytes(data)}"
        self._events.print(
            "message",
            text + ("..." if size > _SHOWN else ""),
            id=connection.id,
            source=message.src_id,
            cookie=message.cookie,
            expects_reply=message.expects_reply,
            payload={**payload_json(data), "size": size} if json else None,
        )
        if self._echo and message.expects_reply:
            try:
                connection.reply(message, [_same(part) for part in message.payload])
            except OSError:
                pass  # the requester has ended, or timed out


def _same(part: ReceivedPart) -> Part:
    """Received parts as parts to send; a memfd is passed on, not copied."""
    from kdbusfs.client import Memfd, ReceivedMemfd

    return Memfd(part.file, part.start, part.size) if isinstance(part, ReceivedMemfd) else part


class _Activator:
    """Owns a name as an activator, and starts the service."""

    def __init__(self, context: Context, name: str, command: tuple[str, ...]) -> None:
        self._context = context
        self._name = name
        self._command = command
        self._events = _EventPrinter(context, name, to_stderr=bool(command))

    def run(self) -> int:
        location = self._context.location()
        hints = {
            errno.EPERM: "only who made the bus and root may be an activator, and by its default endpoint",
            errno.EEXIST: "the name has an activator or a policy holder already",
        }
        with (
            Hold() as hold,
            self._context.connect(location, hints=hints, flags=c.HELLO_ACTIVATOR, name=self._name) as activator,
            failing(f"be the activator of '{self._name}'"),
        ):
            self._events.print("acquired", f"acquired {self._name} as activator {activator.id}", id=activator.id)
            while not (hold.stopped and not hold.running):
                # While the service runs, queued messages are for it.
                files = () if hold.running or not self._command else (activator.fileno(),)
                was_running = hold.running
                waiting = hold.wait(*files, timeout=None if files else 2.0)
                if waiting and not hold.stopped:
                    activator.wait(0)  # raises if the bus has ended
                    hold.start(self._command, KDBUS_BUS=location.endpoint)
                    self._events.print("started", f"started '{self._command[0]}': a message waits", id=activator.id)
                elif was_running and not hold.running:
                    self._ended(activator, hold)
        return EXIT_OK

    def _ended(self, activator: Connection, hold: Hold) -> None:
        code = hold.exit_code
        self._events.print("ended", f"'{self._command[0]}' has ended with {code}", id=activator.id, exit_code=code)
        if not hold.stopped and activator.wait(0):
            raise Failure(f"'{self._command[0]}' has ended and has left messages for '{self._name}' waiting")


def _who_owns(connection: Connection, name: str) -> str:
    """Description of the owner of a name."""
    try:
        info = connection.conn_info(name, c.ATTACH_PIDS)
    except OSError:
        return "somebody else owns it"
    pid = info.metadata.pids.pid if info.metadata.pids is not None else 0
    found = proc_command(pid, None) if pid else None
    process = f", process {pid}" + (f" ({found[0]})" if found else "") if pid else ""
    return f"connection {info.id} owns it{process}"
