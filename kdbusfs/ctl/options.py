"""The common options, accepted before or after a command's name, and the class of all commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from . import complete
from .context import Context

_HELP = {
    "mount": "The domain mounted at PATH.",
    "bus": "The bus: a name, or the path of its directory or of one of its endpoints.",
    "endpoint": "Enter the bus through this endpoint instead of the default one.",
    "json": "Print JSON.",
    "colour": "Colours: on a terminal (auto, which also heeds NO_COLOR), always or never.",
}


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Store an option in the shared Context; one after the command's name takes precedence."""
    shared = context.ensure_object(Context)
    name = parameter.name or ""
    source = context.get_parameter_source(name)
    # click reads the environment on both sides of the command's name; an option on either side overrides it.
    if source is ParameterSource.COMMANDLINE or (source is ParameterSource.ENVIRONMENT and not getattr(shared, name)):
        setattr(shared, name, value)
    return value


def common_options() -> list[click.Option]:
    """Fresh copies of the common options, in the order of --help."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep, "is_eager": True}
    return [
        click.Option(
            ["--mount"],
            metavar="PATH",
            envvar="KDBUSFS_MOUNT",
            show_envvar=True,
            help=_HELP["mount"],
            shell_complete=complete.option(complete.mounts),
            **shared,
        ),
        click.Option(
            ["--bus"],
            metavar="BUS",
            envvar="KDBUS_BUS",
            show_envvar=True,
            help=_HELP["bus"],
            shell_complete=complete.option(complete.buses),
            **shared,
        ),
        click.Option(
            ["--endpoint"],
            metavar="NAME",
            help=_HELP["endpoint"],
            shell_complete=complete.option(complete.endpoints),
            **shared,
        ),
        click.Option(["--json"], is_flag=True, help=_HELP["json"], **shared),
        click.Option(
            ["--color", "--colour", "colour"],
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help=_HELP["colour"],
            **shared,
        ),
    ]


class Command(click.Command):
    """A command of kdbusctl: also accepts the common options, in a section of their own in --help."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.common = common_options()
        self.params += self.common

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: tuple[tuple[str, Callable[[click.Parameter], bool]], ...] = (
            ("Options", lambda parameter: parameter not in self.common),
            ("Common options", lambda parameter: parameter in self.common),
        )
        for title, belongs in groups:
            # Arguments are documented in the usage line and the text.
            options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
            records = [option.get_help_record(ctx) for option in options if belongs(option)]
            shown = [record for record in records if record is not None]
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)
