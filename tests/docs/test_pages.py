"""The manual pages are well-formed, and name everything that there is."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kdbusfs import arguments, failure, options, sysview
from kdbusfs.ctl.failure import EXIT_CODES
from kdbusfs.ctl.main import cli
from tests.support import documents
from tests.support.documents import ROOT

HEADER = (ROOT / "kdbusfs/include/kdbus.h").read_text()
PAGES = sorted((ROOT / "docs/man").glob("*.rst"))
INTERFACE = "docs/man/kdbusfs.7.rst"
BUS1_HEADER = (ROOT / "kdbusfs/include/bus1.h").read_text()
BUS1 = "docs/man/bus1.7.rst"
ARCHITECTURE = "docs/architecture/"
ARCHITECTURE_PAGES = [name for name in documents.documents() if ARCHITECTURE in name]
PATIENCE = 600.0  # seconds; the tests of the core take twenty on an idle machine

_needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")


def source(page: str) -> str:
    """The text of a page with the files that it includes."""
    documents.generate()
    path = ROOT / page
    text = path.read_text()
    return re.sub(
        r"^\.\. include:: (\S+)$", lambda found: (path.parent / found[1]).read_text(), text, flags=re.MULTILINE
    )


def make_man(directory: Path) -> None:
    """What `make man` does, with another place for the result."""
    documents.generate()
    for page in PAGES:
        command = [sys.executable, "-m", "docutils", "--writer=manpage", "--halt=2", str(page)]
        command.append(str(directory / page.name.removesuffix(".rst")))
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@_needs_groff
def test_pages_are_made_without_a_warning(tmp_path: Path) -> None:
    """docutils and groff have nothing to say about any of them, at the width of a terminal and wider"""
    make_man(tmp_path)
    assert PAGES
    for page in tmp_path.iterdir():
        for width in ("78n", "120n"):
            command = ["groff", "-man", "-t", "-ww", "-z", "-K", "utf8", "-T", "utf8", f"-rLL={width}", str(page)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert (done.returncode, done.stderr) == (0, ""), page.name


def constants(header: str = HEADER, prefix: str = "KDBUS") -> set[str]:
    """What kdbus.h, or another header, defines for programs."""
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = set(re.findall(rf"^#define ({prefix}_\w+)", code, re.MULTILINE))
    found |= set(re.findall(rf"^\s+(_?{prefix}_\w+)(?:\s*=|,)", code, re.MULTILINE))
    # Where ranges of numbers begin.
    internal = {name for name in found if name.endswith("_BASE") or "NULL" in name}
    return found - internal - {f"{prefix}_IOCTL_MAGIC"}


def test_every_constant_is_described() -> None:
    """Every command, item and flag of kdbus.h is in kdbusfs(7), and nothing that is not there"""
    named = set(re.findall(r"\b_?KDBUS_[A-Z0-9_]+[A-Z0-9]\b(?!_?\.\.\.)", source(INTERFACE)))
    assert len(constants()) > 90
    assert constants() - named == set()
    assert named - constants() == set()


def test_every_constant_of_bus1_is_described() -> None:
    """Every command and flag of bus1.h is in bus1(7), and nothing that is not there"""
    named = set(re.findall(r"\bBUS1_[A-Z0-9_]+[A-Z0-9]\b", source(BUS1)))
    known = constants(BUS1_HEADER, "BUS1")
    assert len(known) == 29
    assert known - named == set()
    assert named - known == set()


def test_every_command_is_in_an_example() -> None:
    """All sixteen, and of bus1 those that a program needs"""
    programs = "".join(path.read_text() for path in (ROOT / "docs/man/examples").iterdir())
    commands = {name for name in constants(BUS1_HEADER, "BUS1") if name.startswith("BUS1_CMD_")}
    assert len(commands) == 9
    assert {name.removeprefix("BUS1_CMD_") for name in commands if name not in programs} == {
        *("PEER_QUERY", "PEER_RESET", "PEER_DISCONNECT"),
    }
    commands = {name for name in constants() if name.startswith("KDBUS_CMD_")}
    assert len(commands) == 16
    assert {name for name in commands if name not in programs} == set()


@pytest.mark.parametrize(("page", "code", "count"), [(INTERFACE, HEADER, 21), (BUS1, BUS1_HEADER, 5)])
def test_structures_are_those_of_the_header(page: str, code: str, count: int) -> None:
    """Member by member, in their order"""

    def bare(code: str) -> str:
        return " ".join(re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL).split())

    header = bare(code)
    shown = [block.text for block in documents.blocks(page) if block.language == "c" and not block.file_name]
    structures = [found for text in shown for found in re.split(r"\n(?=struct )", text) if found.startswith("struct ")]
    assert len(structures) >= count
    for structure in structures:
        assert bare(structure) in header, structure


def described_errors() -> tuple[set[str], dict[str, set[str]]]:
    """Those of all commands, and those of each."""
    text = (ROOT / INTERFACE).read_text()
    general, _, rest = text.partition("COMMANDS IN GENERAL\n")[2].partition("\nITEMS\n")
    sections = re.findall(r"\nKDBUS_CMD_(\w+)\n-+\n(.*?)(?=\nKDBUS_CMD_\w+\n-+\n|\nMESSAGES\n)", rest, re.DOTALL)
    return errors_in(general), {name: errors_in(section) for name, section in sections}


def described_errors_of_bus1() -> tuple[set[str], dict[str, set[str]]]:
    """The same of bus1(7), where two commands may share a section."""
    text = (ROOT / BUS1).read_text().partition("\nCOMMANDS\n")[2].partition("\nNOTIFICATIONS\n====")[0]
    general, *sections = re.split(r"\n(?=BUS1_CMD_[^\n]*\n-+\n)", text)
    found: dict[str, set[str]] = {}
    for section in sections:
        for name in section.partition("\n")[0].split(", "):
            found[name.removeprefix("BUS1_CMD_")] = errors_in(section)
    return errors_in(general), found


def errors_in(text: str) -> set[str]:
    return set(re.findall(r"\*\*(E[A-Z0-9]+)\*\*", text))


def answers_of(tests: str, directory: Path) -> dict[str, set[str]]:
    """What commands fail with in those tests of a core."""
    answers = directory / "errnos"
    # Compiled classes cannot be watched, so these are the sources themselves.
    unneeded = shutil.ignore_patterns(".git", ".venv", "build", "*.cpython-*.so", "kdbusfs__mypyc*", "__pycache__")
    shutil.copytree(ROOT, directory / "pure", ignore=unneeded)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.errno_recorder", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, tests],
        cwd=directory / "pure",
        env={**os.environ, "KDBUSFS_ERRNOS": str(answers)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return {name: set(found) for name, found in json.loads(answers.read_text()).items()}


def test_every_error_is_described(tmp_path: Path) -> None:
    """What the tests of the core get for answers is what kdbusfs(7) says, command by command, in both directions"""
    general, by_command = described_errors()
    assert len(by_command) == 16
    seen = answers_of("tests/unit/core", tmp_path)
    assert set(seen) == set(by_command)
    undescribed = {name: seen[name] - by_command[name] - general for name in seen}
    # The thread that gave the command is dead, and so there is nobody to tell.
    undescribed["HELLO"].discard("ESRCH")
    assert {name: found for name, found in undescribed.items() if found} == {}
    unseen = {name: found - seen[name] for name, found in by_command.items()}
    # The race of two commands that make something of a descriptor is tested with HELLO.
    unseen["ENDPOINT_MAKE"].discard("EBADFD")
    assert {name: found for name, found in unseen.items() if found} == {}


def test_every_error_of_bus1_is_described(tmp_path: Path) -> None:
    """The same for bus1(7)"""
    general, by_command = described_errors_of_bus1()
    assert len(by_command) == 9
    seen = answers_of("tests/unit/bus1", tmp_path)
    undescribed = {name: seen[name] - by_command[name] - general for name in seen}
    assert {name: found for name, found in undescribed.items() if found} == {}
    unseen = {name: found - seen.get(name, set()) - general for name, found in by_command.items()}
    # What the installer says comes later.
    unseen["RECV"] -= {"EMFILE", "EPERM"}
    assert {name: found for name, found in unseen.items() if found} == {}


def exit_codes(page: str) -> set[int]:
    """Those that a page describes."""
    section = source(page).partition("\nEXIT CODES\n")[2]
    return {int(number) for number in re.findall(r"^(\d+)$", section, re.MULTILINE)}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


DAEMON = "docs/man/kdbusfs.8.rst"


def test_every_option_of_the_daemon_is_described() -> None:
    """Those of the command line, and every mount option that is known, without effect, or refused"""
    text = source(DAEMON)
    names = {*options._FLAGS, *options._WITHOUT_EFFECT, *options._PREFIXES_WITHOUT_EFFECT}
    names |= {f"{name}=" for name in options._VALUES}
    missing = {name for name in names if not re.search(rf"\*\*{re.escape(name)}(\.\.\.)?\*\*", text)}
    missing |= {name for name in options._REFUSED if not re.search(rf"\*\*{name}=?\*\*", text)}
    missing |= {option for option in options_of(arguments.parser()) if f"**{option}**" not in text}
    assert missing == set()
    for name, value in options.MountOptions.__dataclass_fields__.items():
        shown = f"**{name}**" if value.type == "bool" else f"**{name}=**"
        assert name == "flags" or shown in text, (name, value)


def test_every_exit_code_of_the_daemon_is_described() -> None:
    """In kdbusfs(8) and by --help"""
    codes = {value for name, value in vars(failure).items() if name.startswith("EXIT_")}
    assert exit_codes(DAEMON) == codes
    shown = re.findall(r"^  (\d+) ", arguments.parser().epilog or "", re.MULTILINE)
    assert {int(code) for code in shown} == codes


def test_every_option_of_the_helpers_is_described() -> None:
    """In mount.fuse.kdbusfs(8)"""
    text = source("docs/man/mount.fuse.kdbusfs.8.rst")
    missing = {name for name in options_of(arguments.helper_parser("mount.fuse.kdbusfs")) if f"**{name}" not in text}
    assert missing == set()


def test_every_option_and_exit_code_of_the_view_is_described() -> None:
    """In kdbusfs-sysview(8)"""
    page = "docs/man/kdbusfs-sysview.8.rst"
    assert {name for name in options_of(sysview._parser()) if f"**{name}**" not in source(page)} == set()
    codes = {failure.EXIT_OK, failure.EXIT_USAGE, failure.EXIT_MOUNT}
    assert exit_codes(page) == codes | {sysview.EXIT_NOT_EXECUTABLE, sysview.EXIT_NOT_FOUND}


def commands_of(command: click.Command, name: str, above: click.Context | None = None) -> dict[str, set[str]]:
    """Every command of a click program, with the options that it takes."""
    context = click.Context(command, info_name=name, parent=above)
    found = {context.command_path: {text for each in command.params for text in each.opts if text.startswith("-")}}
    if isinstance(command, click.Group):
        for member in command.list_commands(context):
            inner = command.get_command(context, member)
            assert inner is not None
            found |= commands_of(inner, member, context)
    return found


def test_every_command_of_kdbusctl_is_described() -> None:
    """With all its options, in kdbusctl(1); and every exit code"""
    page = source("docs/man/kdbusctl.1.rst").replace("\\", "")
    found = commands_of(cli, "kdbusctl")
    assert len(found) > 10
    general, *sections = re.split(r"^\*\*(?=kdbusctl [a-z0-9-]+\*\*)", page, flags=re.MULTILINE)
    by_command = {section.partition("*")[0]: section for section in sections}
    assert set(by_command) == set(found) - {"kdbusctl"}
    for command, names in found.items():
        described = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", general + by_command.get(command, "")))
        assert names - described == set(), command
    assert exit_codes("docs/man/kdbusctl.1.rst") == {code for code, _ in EXIT_CODES}


def test_the_readme_leads_to_every_page_once() -> None:
    """A newcomer finds everything from there"""
    links = re.findall(r"(?<!!)\[[^]]*\]\((docs/[^)#]*|[A-Z]+\.md)\)", (ROOT / "README.md").read_text())
    pages = {name for name in documents.documents() if name != "README.md" and ARCHITECTURE not in name}
    assert sorted(links) == sorted(pages | {"docs/conformance.md", "docs/examples"})


def test_the_design_leads_to_every_page_of_the_architecture() -> None:
    links = re.findall(r"\]\((architecture/[^)#]*)", (ROOT / "docs/design.md").read_text())
    pages = {path.name for path in (ROOT / "docs/architecture").glob("*.md")}
    assert len(pages) > 8
    assert {f"architecture/{name}" for name in pages} - set(links) == set()


def sources_named(text: str) -> set[str]:
    """Files that a page names in code spans, below the package or the checkout."""
    return set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|c|h|md|service))`", text))


@pytest.mark.parametrize("document", ["docs/design.md", "docs/glossary.md", *ARCHITECTURE_PAGES])
def test_the_source_files_that_a_page_names_exist(document: str) -> None:
    """A reader who follows the page finds the place"""
    text = (ROOT / document).read_text()
    names = {name for name in sources_named(text) if "NAME" not in name}
    missing = {name for name in names if not (ROOT / "kdbusfs" / name).exists() and not (ROOT / name).exists()}
    assert missing == set()


_WRAPPED = [*(name for name in documents.documents() if name.endswith(".md")), "docs/conformance.md"]


@pytest.mark.parametrize("document", _WRAPPED)
def test_lines_are_not_longer_than_100_columns(document: str) -> None:
    """But for output in code blocks, which cannot be broken, and lines that are one link or picture"""
    long, in_block = [], False
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        in_block ^= line.lstrip().startswith("```")
        if len(line) > 100 and not in_block and not re.fullmatch(r"\s*!?\[[^]]*\]\([^)]*\)", line):
            long.append(number)
    assert long == []


@pytest.mark.parametrize("document", [name for name in documents.documents() if name.endswith(".md")])
def test_links_lead_somewhere(document: str) -> None:
    """Files, and headings in them"""
    base = (ROOT / document).parent
    for target, _, heading in re.findall(r"\]\(([^)#\s]*)(#?)([^)\s]*)\)", (ROOT / document).read_text()):
        if "://" in target:
            continue
        path = base / target if target else ROOT / document
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in anchors, f"{target}#{heading}"


@pytest.mark.parametrize("document", documents.documents())
def test_commands_in_the_text_exist(document: str) -> None:
    """`kdbusctl COMMAND --option` in a sentence is as true as one in a block"""
    found = commands_of(cli, "kdbusctl")
    for words in re.findall(r"`kdbusctl ([^`]*)`", (ROOT / document).read_text()):
        name = f"kdbusctl {words.split()[0]}"
        assert name in found, words
        own = words.partition(" -- ")[0]
        for option in re.findall(r"(?<=\s)--[a-z-]+", own):
            assert option in found[name] | found["kdbusctl"], words
