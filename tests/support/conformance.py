"""Writes docs/conformance.md: every behaviour with its tests or deviation; the same for bus1.

A test covers a behaviour if its name begins with the id (`test_send_17_...`, `test_match_12_lim_9_...`) or its
docstring names it (`SEND-17`, `REP-14 to REP-18`).
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .behaviours import BUS1_GROUPS, BUS1_IDS, GROUPS, IDS, LAST_GROUPS, V3_GROUPS, ids_of

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/conformance.md"
BUS1_DOCUMENT = ROOT / "docs/conformance-bus1.md"
DEVIATIONS = ROOT / "docs/deviations.md"
TESTS = ROOT / "tests"

_COLUMNS = 100
_GROUP = "|".join([*(f"B1-{group}" for group in BUS1_GROUPS), *GROUPS])
_MENTION = re.compile(rf"\b({_GROUP})-(\d+)(?: to (?:({_GROUP})-)?(\d+)\b)?")
_PREFIX = re.compile(rf"_({_GROUP.lower().replace('-', '_')})((?:_\d+)+)(?=_|$)")


@dataclass(frozen=True)
class Holder:
    """A test function: its file, relative to the project, and its name with that of its class."""

    file: str
    name: str


@dataclass
class Account:
    """The tests and deviations of each id; `unknown` has ids that do not exist, with the place that names them."""

    tests: dict[str, list[Holder]] = field(default_factory=dict)
    deviations: dict[str, int] = field(default_factory=dict)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The ids of kdbus without a test or deviation."""
        return self.missing_of(IDS)

    def missing_of(self, ids: tuple[str, ...]) -> list[str]:
        return [each for each in ids if each not in self.tests and each not in self.deviations]


def mentioned(text: str) -> Iterator[str]:
    """The ids in prose; ranges are expanded."""
    for group, first, other_group, last in _MENTION.findall(text):
        if not last or (other_group and other_group != group):
            yield f"{group}-{first}"
            if last:
                yield f"{other_group}-{last}"
            continue
        for number in range(int(first), int(last) + 1):
            yield f"{group}-{number}"


def named(function: str) -> Iterator[str]:
    """The ids that the name of a test begins with."""
    at = len("test")
    while match := _PREFIX.match(function, at):
        for number in match[2].split("_")[1:]:
            yield f"{match[1].upper().replace('_', '-')}-{number}"
        at = match.end()


def test_functions(source: str) -> Iterator[tuple[str, str, str]]:
    """(name, name with its class, docstring) of every test in a module."""
    for node in ast.parse(source).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        where = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in inside:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test"):
                yield each.name, where + each.name, ast.get_docstring(each) or ""


def take_account() -> Account:
    """Read the tests and the deviations."""
    account = Account()
    known = {*IDS, *BUS1_IDS}
    for path in sorted(TESTS.rglob("test_*.py")):
        file = str(path.relative_to(ROOT))
        for function, name, doc in test_functions(path.read_text()):
            for each in dict.fromkeys((*named(function), *mentioned(doc))):
                if each in known:
                    account.tests.setdefault(each, []).append(Holder(file, name))
                else:
                    account.unknown.append((each, f"{file}: {name}"))
    for number, line in enumerate(DEVIATIONS.read_text().splitlines(), 1):
        for each in mentioned(_subject(line)):
            if each in known:
                account.deviations[each] = number
            else:
                account.unknown.append((each, f"docs/deviations.md:{number}"))
    return account


def _subject(line: str) -> str:
    """The subject of a line of the deviations: the bold beginning of a list entry, or the first cell of a table row."""
    if line.startswith("- **"):
        return line.split("**")[1]
    return line.split("|")[1] if line.startswith("| ") else ""


def _tests(tests: list[Holder]) -> str:
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.file.removeprefix("tests/"), []).append(f"`{test.name}`")
    return "; ".join(f"[{file}](../tests/{file}): {', '.join(names)}" for file, names in files.items())


def _count(account: Account, whose: str, ids: tuple[str, ...]) -> list[str]:
    tested, both, alone = _counts(account, ids)
    return textwrap.wrap(
        f"{whose} has {len(ids)} behaviours. {tested} are held by tests; {alone} only by an entry of"
        f" [deviations.md](deviations.md), {len(ids) - tested - alone} by neither. {both} have both: the tests hold"
        " what the entry says.",
        _COLUMNS,
    )


def document(account: Account) -> str:
    """The text of docs/conformance.md."""
    lines = [
        "# What of kdbus is there",
        "",
        *_count(account, "The specification of kdbus v3", ids_of(V3_GROUPS)),
        "",
        *_count(account, "That of the last kdbus, where it differs,", ids_of(LAST_GROUPS)),
        "",
        "`make conformance` makes this page from the names and docstrings of the tests and from the",
        "entries of the deviations; a test fails when it is older than they are, or when a behaviour has",
        "neither.",
    ]
    for group, count in GROUPS.items():
        lines += ["", f"## {group}", "", *_entries(account, group, count)]
    return "\n".join(lines) + "\n"


def bus1_document(account: Account) -> str:
    """The text of docs/conformance-bus1.md."""
    held, both, alone = _counts(account, BUS1_IDS)
    missing = account.missing_of(BUS1_IDS)
    lines = [
        "# What of bus1 is there",
        "",
        *textwrap.wrap(
            f"bus1, as of the RFC of October 2016, has {len(BUS1_IDS)} behaviours. {held} are held by tests; {alone}"
            f" only by an entry of [deviations.md](deviations.md), {len(missing)} by neither. {both} have both.",
            _COLUMNS,
        ),
        "",
        "`make conformance` makes this page as it makes [conformance.md](conformance.md).",
    ]
    for group, count in BUS1_GROUPS.items():
        lines += ["", f"## {group}", "", *_entries(account, f"B1-{group}", count)]
    return "\n".join(lines) + "\n"


def _counts(account: Account, ids: tuple[str, ...]) -> tuple[int, int, int]:
    """The number of ids with tests, with tests and deviations, with deviations alone."""
    held = sum(each in account.tests for each in ids)
    both = sum(each in account.tests and each in account.deviations for each in ids)
    return held, both, sum(each not in account.tests and each in account.deviations for each in ids)


def _entries(account: Account, group: str, count: int) -> Iterator[str]:
    for each in (f"{group}-{number}" for number in range(1, count + 1)):
        tests = _tests(account.tests.get(each, []))
        deviation = "see [deviations.md](deviations.md)" if each in account.deviations else ""
        entry = f"- **{each}**: {'; '.join(filter(None, (deviation, tests))) or 'open'}"
        yield from textwrap.wrap(
            entry, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )


def main() -> int:
    account = take_account()
    DOCUMENT.write_text(document(account))
    BUS1_DOCUMENT.write_text(bus1_document(account))
    for each, where in account.unknown:
        print(f"{where}: there is no {each}", file=sys.stderr)
    if account.missing:
        print(f"neither test nor deviation: {', '.join(account.missing)}", file=sys.stderr)
    return 1 if account.missing or account.unknown else 0


if __name__ == "__main__":
    sys.exit(main())
