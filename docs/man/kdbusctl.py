"""Writes the part of kdbusctl(1) that kdbusctl knows best itself: its commands, options and exit codes.

    kdbusctl.py FILE        reStructuredText, which kdbusctl.1.rst includes
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from kdbusfs.ctl.failure import EXIT_CODES
from kdbusfs.ctl.main import SECTIONS, cli
from kdbusfs.ctl.options import common_options


def escaped(text: str) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\*`_|<>])", r"\\\1", text)


def prose(text: str) -> Iterator[str]:
    """A help text: paragraphs, and as they are those that click is told by \\b not to fill."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.rstrip() for line in paragraph.splitlines()]
        if lines[0] == "\b":
            yield from ("::", "", *("   " + line for line in lines[1:]), "")
        else:
            yield from (escaped(" ".join(line.strip() for line in lines)), "")


def definitions(records: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Terms, and what they mean."""
    for term, meaning in records:
        yield from (f"**{escaped(term)}**", f"   {escaped(meaning)}", "")


def options(parameters: Iterable[click.Parameter], context: click.Context) -> list[tuple[str, str]]:
    """Names and values of options, and what they do."""
    shown = [each.get_help_record(context) for each in parameters if isinstance(each, click.Option)]
    return [record for record in shown if record is not None]


def commands() -> Iterator[str]:
    """Every command, by section."""
    elsewhere = {"--help", *(name for option in common_options() for name in option.opts)}
    group = context_of_group()
    for title, members in SECTIONS:
        heading = f"{title} commands"
        yield from (heading, "-" * len(heading), "")
        for name, summary in members.items():
            command = cli.get_command(group, name)
            assert command is not None
            context = click.Context(command, info_name=name, parent=group)
            usage = " ".join(command.collect_usage_pieces(context))
            yield f"**kdbusctl {name}** {escaped(usage)}"
            own = [each for each in command.get_params(context) if not elsewhere.intersection(each.opts)]
            body = [*prose(command.help or summary), *definitions(options(own, context))]
            if command.epilog:
                body += prose(command.epilog)
            yield from ("   " + line if line else "" for line in body)


def context_of_group() -> click.Context:
    return click.Context(cli, info_name="kdbusctl", **cli.context_settings)


def page() -> Iterator[str]:
    """All of it."""
    context = context_of_group()
    yield from ("OPTIONS", "=======", "")
    yield from ("These may stand before or after the command.", "")
    yield from definitions(options(cli.get_params(context), context))
    yield from ("COMMANDS", "========", "")
    yield from commands()
    yield from ("EXIT CODES", "==========", "")
    for code, meaning in EXIT_CODES:
        yield from (f"{code}", f"   {escaped(meaning)}.", "")


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(page()) + "\n")


if __name__ == "__main__":
    main()
