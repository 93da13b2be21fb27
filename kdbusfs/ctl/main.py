"""kdbusctl: the command group, whose commands are imported on use, and the mapping of errors to exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click

from kdbusfs import __version__

from .context import Context
from .escape import escape
from .failure import EXIT_CODES, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Failure, exit_code_of, explain
from .options import common_options

SECTIONS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    (
        "Look",
        {
            "tree": "Show domains, buses, endpoints and connections as a tree.",
            "list": "List the names and connections of a bus.",
            "status": "Show the metadata of a connection or of the bus.",
            "wait": "Wait until a name has an owner.",
            "bus1": "Show the peers of bus1, their nodes, handles and queues.",
        },
    ),
    (
        "Watch",
        {
            "monitor": "Show the messages of a bus.",
            "capture": "Write the messages of a bus to a file for Wireshark.",
            "top": "Show the traffic of a domain's connections as a table.",
        },
    ),
    (
        "Talk",
        {
            "call": "Send a request and print the reply.",
            "send": "Send a message without waiting for a reply.",
            "emit": "Broadcast a signal.",
        },
    ),
    (
        "Hold",
        {
            "own": "Own a name until Ctrl-C, and report events.",
            "make-bus": "Make a bus and hold it until Ctrl-C.",
            "make-endpoint": "Make a custom endpoint with a policy and hold it until Ctrl-C.",
            "policy": "Check a policy file, and hold its policy on a bus.",
        },
    ),
    (
        "Other",
        {
            "completion": "Print a script that makes a shell complete kdbusctl.",
        },
    ),
)
"""The commands by section: name and short help.  The module is commands/NAME.py, with '-' as '_'."""

_TABLE: Final = {name: help for _, commands in SECTIONS for name, help in commands.items()}

_HELP = """\
Look into kdbus buses, talk to their connections, and hold names, buses and endpoints.

\b
How a bus is selected:
  --bus /PATH    the directory of a bus, or one of its endpoint files
  --bus NAME     the bus with that name, such as 1000-work; or work: your
                 own bus of that name, else the only one of any user
  neither        the environment variable KDBUS_BUS, in the same way, else
                 the only bus that you may enter

Names are searched in the domain given with --mount (or KDBUSFS_MOUNT), else in all mounts of type fuse.kdbusfs that
root or you serve. If several buses match, kdbusctl lists them and exits with 2.

The options below may stand before or after the name of a command. Text that other programs choose, such as process
names and payload, is printed with its control characters escaped: \\xNN, \\uNNNN. In a pipe nothing is truncated or
coloured, and the same state of the bus gives the same output. In JSON strings, bytes that are not UTF-8 appear as
\\xNN. Notes and errors go to standard error.
"""


class Commands(click.Group):
    """Imports a command when it is used, so that --help and completion stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_TABLE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _TABLE:
            return None
        module = import_module(f".commands.{cmd_name.replace('-', '_')}", __package__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS:
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES])


@click.group(
    cls=Commands,
    params=common_options(),
    no_args_is_help=False,  # a script without a command is an error
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="kdbusctl %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    context.ensure_object(Context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.  Returns the exit code."""
    # End silently when the reader of a pipe has ended, as other tools do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Python's handler runs only after the system call returns; a stuck daemon may never answer it.  Commands that
    # have to clean up install handlers of their own.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _complain(f"cannot write: {explain(error)}", EXIT_FAILED)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.  Returns the exit code; prints an error as one line on standard error."""
    try:
        result: Any = cli.main(
            args=None if arguments is None else list(arguments), prog_name="kdbusctl", standalone_mode=False
        )
        return result if isinstance(result, int) else EXIT_OK
    except Failure as failure:
        return _complain(failure.message, failure.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "kdbusctl"
        return _complain(f"{error.format_message().rstrip('.')}; see '{path} --help'", EXIT_USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except OSError as error:
        # An error that no command handles.
        reason = explain(error)
        return _complain(f"{error.filename}: {reason}" if error.filename else reason, exit_code_of(error))


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"kdbusctl: {escape(message)}\n")
    return code
