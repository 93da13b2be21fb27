"""Arguments of kdbusctl: names, connections, kinds of metadata; with completion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from kdbusfs.abi.names import is_valid_name
from kdbusfs.abi.v3 import constants as c

from . import complete
from .describe import ATTACH_FLAGS

if TYPE_CHECKING:
    _NameBase = click.ParamType[str]
    _EndBase = click.ParamType[int | str]
    _AttachBase = click.ParamType[int]
else:
    _NameBase = _EndBase = _AttachBase = click.ParamType  # no generic class before click 8.4

_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TIME = re.compile(rf"([0-9]+\.?[0-9]*|\.[0-9]+) ?({'|'.join(_UNITS)})", re.ASCII)
_ID = re.compile(r"(?:#|:1\.)?([0-9]{1,999})", re.ASCII)


def is_name(text: str, *, wildcard: bool = False) -> bool:
    """Whether `text` is a well-known name (NAME-1), or with `wildcard` also one like a.b.* (NAME-2)."""
    return text.isascii() and is_valid_name(text.encode(), wildcard=wildcard)


class NameType(_NameBase):
    """A well-known name."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_name(value):
            self.fail(f"'{value}' is not a well-known name like org.example.Name", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete.names(ctx, incomplete)


class EndType(_EndBase):
    """A connection: its id, also as #7 or :1.7, or a name that it owns."""

    name = "NAME|ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int):
            return value
        number = _ID.fullmatch(value)
        if number:
            found = int(number[1])
            if not 0 < found < (1 << 64) - 1:
                self.fail(f"{value} is not a connection id: ids start at 1", param, ctx)
            return found
        if not is_name(value):
            self.fail(f"'{value}' is neither an id nor a name like org.example.Name", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete.names(ctx, incomplete) + complete.ids(ctx, incomplete)


class Seconds(click.FloatRange):
    """A time in seconds, or with a unit: 500ms, 90s, 2min, 1.5h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number, unit = value, 1.0
        if isinstance(value, str):
            found = _TIME.fullmatch(value.strip())
            if found is None:
                self.fail(f"'{value}' is not a number of seconds, and no time like 500ms, 90s or 2min", param, ctx)
            number, unit = found[1], _UNITS[found[2]]
        return float(super().convert(float(number) * unit, param, ctx))


class AttachType(_AttachBase):
    """Kinds of metadata, separated by commas."""

    name = "KINDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        bits = {name: bit for bit, name in ATTACH_FLAGS.items()} | {"all": c.ATTACH_ALL, "none": 0}
        found = 0
        for word in str(value).split(","):
            if word not in bits:
                self.fail(f"unknown kind of metadata '{word}'; known are {', '.join(bits)}", param, ctx)
            found |= bits[word]
        return found


NAME = NameType()
END = EndType()
ATTACH = AttachType()
