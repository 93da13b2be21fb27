"""Policy files: TOML that grants the rights to own a name, to talk to its owner, and to see it."""

from __future__ import annotations

import grp
import os
import pwd
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kdbusfs.abi.v3 import constants as c

from .arguments import is_name
from .describe import ACCESS, group_name, user_name
from .failure import EXIT_USAGE, Failure, explain

if TYPE_CHECKING:
    from kdbusfs.client import Access

HELP: Final = """\
Policy files are TOML, a table [[name]] for each name:

\b
  [[name]]
  name = "org.example.Echo"       # or "org.example.*": names with one more element
  own = ["user:root"]             # who may own it, talk to its owner, and see it
  talk = ["user:alice", "group:staff", "group:100"]
  see = ["world"]

Users and groups are names or numbers; world is everybody. The right to own a name includes talk, and talk includes
see. own, talk and see are optional; without an entry, access is denied. The policy of an exact name hides that of
"org.example.*".
"""

_KEYS: Final = {"own": c.POLICY_OWN, "talk": c.POLICY_TALK, "see": c.POLICY_SEE}
_MAX_ID: Final = 0xFFFFFFFE


class _Mistake(Exception):  # noqa: N818
    """A mistake in a policy file; the message lacks the file's name."""


@dataclass(frozen=True, slots=True)
class NamePolicy:
    """The rights to one name, in the order of the file, the highest first."""

    name: str
    rights: tuple[Access, ...]


def load(path: str) -> list[NamePolicy]:
    """Read a policy file.  Raises Failure with the mistake and its position."""
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise Failure(f"cannot read '{path}': {explain(error)}", EXIT_USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(f"'{path}' is not valid TOML: {error or 'nested too deep'}", EXIT_USAGE) from error
    try:
        return parse(data)
    except _Mistake as mistake:
        raise Failure(f"'{path}': {mistake}", EXIT_USAGE) from mistake


def parse(data: dict[str, Any]) -> list[NamePolicy]:
    """The policy of a file that was read."""
    unknown = sorted(data.keys() - {"name"})
    if unknown:
        raise _Mistake(f"unknown key '{unknown[0]}'; only tables [[name]] are known")
    tables = data.get("name", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise _Mistake("'name' must be an array of tables: [[name]]")
    found = [_name_policy(number, table) for number, table in enumerate(tables, 1)]
    seen: set[str] = set()
    for entry in found:
        if entry.name in seen:
            raise _Mistake(f"'{entry.name}' has two tables")
        seen.add(entry.name)
    return found


def _name_policy(number: int, table: dict[str, Any]) -> NamePolicy:
    name = table.get("name")
    if not isinstance(name, str):
        raise _Mistake(f'table {number} has no name = "..."')
    if not is_name(name, wildcard=True):
        raise _Mistake(f"table {number}: '{name}' is neither a name like org.example.Name nor one like org.example.*")
    unknown = sorted(table.keys() - {"name", *_KEYS})
    if unknown:
        raise _Mistake(f"'{name}': unknown key '{unknown[0]}'; known are name, {', '.join(_KEYS)}")
    rights: list[Access] = []
    for key, access in _KEYS.items():
        who = table.get(key, [])
        if not isinstance(who, list) or not all(isinstance(one, str) for one in who):
            raise _Mistake(f'\'{name}\': {key} must be a list of strings, such as ["user:root", "world"]')
        rights += [_right(name, key, one, access) for one in who]
    return NamePolicy(name, tuple(rights))


def _right(name: str, key: str, who: str, access: int) -> Access:
    from kdbusfs.client import group, user, world

    if who == "world":
        return world(access)
    kind, colon, text = who.partition(":")
    if not colon or kind not in ("user", "group") or not text:
        raise _Mistake(f"'{name}': {key}: '{who}' is none of user:NAME, group:NAME and world")
    if kind == "user":
        return user(_number(name, kind, text, lambda: pwd.getpwnam(text).pw_uid), access)
    return group(_number(name, kind, text, lambda: grp.getgrnam(text).gr_gid), access)


def _number(name: str, kind: str, text: str, look_up: Callable[[], int]) -> int:
    if text.isascii() and text.isdigit():
        number = int(text) if len(text) < 12 else _MAX_ID + 1
        if number > _MAX_ID:
            raise _Mistake(f"'{name}': there is no {kind} {text}")
        return number
    try:
        return look_up()
    except (KeyError, ValueError):
        raise _Mistake(f"'{name}': there is no {kind} '{text}' on this machine") from None


def right_text(right: Access) -> str:
    """A right as files have it: user:NAME, group:NAME, world."""
    if right.kind == c.POLICY_ACCESS_WORLD:
        return "world"
    if right.kind == c.POLICY_ACCESS_USER:
        return f"user:{user_name(right.id)}"
    return f"group:{group_name(right.id)}"


def right_json(right: Access) -> dict[str, Any]:
    """A right as JSON; id is null for world."""
    kinds = {c.POLICY_ACCESS_USER: "user", c.POLICY_ACCESS_GROUP: "group", c.POLICY_ACCESS_WORLD: "world"}
    return {
        "access": ACCESS[right.access],
        "kind": kinds[right.kind],
        "id": None if right.kind == c.POLICY_ACCESS_WORLD else right.id,
        "who": right_text(right),
    }


def what_may(entries: list[NamePolicy], name: str, uid: int) -> str | None:
    """The most that a user may do with `name`: "own", "talk", "see"; None: nothing.

    Looks for the table that holds for the name as the bus does (POL-3, POL-7), with the user's groups on this machine.
    """
    wildcard = f"{name.rpartition('.')[0]}.*"
    by_name = {entry.name: entry for entry in entries}
    entry = by_name.get(name) or by_name.get(wildcard)
    if entry is None:
        return None
    groups = _groups_of(uid)
    best = -1
    for right in entry.rights:
        fits = (
            right.kind == c.POLICY_ACCESS_WORLD
            or (right.kind == c.POLICY_ACCESS_USER and right.id == uid)
            or (right.kind == c.POLICY_ACCESS_GROUP and right.id in groups)
        )
        best = max(best, right.access) if fits else best
    return ACCESS.get(best)


def user_id(text: str) -> int:
    """A user given by name or number.  Raises Failure."""
    try:
        return _number("--may", "user", text, lambda: pwd.getpwnam(text).pw_uid)
    except _Mistake as mistake:
        raise Failure(str(mistake), EXIT_USAGE) from mistake


def _groups_of(uid: int) -> set[int]:
    try:
        user = pwd.getpwuid(uid)
        return set(os.getgrouplist(user.pw_name, user.pw_gid))
    except KeyError:
        return set()
