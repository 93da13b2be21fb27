"""Every command line, Python and C program of the documents is run, and prints what is shown."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.docs.conftest import Programs
from tests.support import account, documents
from tests.support.console import READY_PATIENCE, Console, ConsoleError
from tests.support.documents import Block, Command

pytestmark = pytest.mark.mount

_DOCUMENTS = documents.documents()
_COMMAND_LIKE = re.compile(r"\s*(\$ |(kdbusfs|kdbusctl|mount|umount|make|busctl|dbus-send|dbus-monitor) [\w./-])")


def _with_code() -> list[str]:
    run = ("c", "console", "python")
    return [name for name in _DOCUMENTS if any(block.language in run for block in documents.blocks(name))]


def _is_run(document: str, block: Block, programs: Programs) -> bool:
    reason = block.mark(documents.NOT_RUN)
    if reason is None and block.mark(documents.CHECKOUT) is not None and not programs.is_checkout:
        reason = "with installed programs: it needs a checkout"
    if reason is not None:
        account.not_run[f"{document}:{block.line}"] = reason
    return reason is None


def _count(what: str) -> None:
    account.add({what: 1}, {})


@pytest.mark.parametrize("document", _with_code())
def test_the_commands_of_a_document_work(
    document: str, programs: Programs, console: Console, workspace: Path
) -> None:
    """Block after block in one shell; the Python of the document together at the end."""
    blocks = [block for block in documents.blocks(document) if _is_run(document, block, programs)]
    for block in blocks:
        if block.file_name:
            (workspace / block.file_name).write_text(block.text)
            _count("C files")
    own_domain = any(block.mark(documents.KEEPS_RUNNING) is not None for block in blocks)
    own_domain = own_domain or documents.WITHOUT_DOMAIN in documents.marks(document)
    if not own_domain:
        console.mount_domain()
    for block in blocks:
        if block.language == "console":
            _type_in(document, block, console)
    _run_python([block for block in blocks if block.language == "python"], console, workspace)
    console.interrupt()
    if not own_domain:
        console.unmount_domain()
    console.check_unmounted()


def _type_in(document: str, block: Block, console: Console) -> None:
    ready = block.mark(documents.KEEPS_RUNNING)
    for command in documents.commands(block):
        _count("commands")
        try:
            if ready is not None:
                console.run_until_the_end(command.text, ready.removesuffix(" exists"))
            elif command.text.rstrip().endswith("&"):
                _expect_of_job(console.run_job(command.text), command)
            else:
                _expect(console.run(command.text), command)
        except ConsoleError as error:
            raise ConsoleError(f"{document}:{command.line}: {error}") from None


def _expect(output: str, command: Command) -> None:
    if command.expected is None:
        return
    output = output.rstrip("\n") + "\n"
    if not documents.output_pattern(command.expected).fullmatch(output):
        raise ConsoleError(f"$ {command.text}\nshown:\n{command.expected}\nprinted:\n{output}")


def _expect_of_job(log: Path, command: Command) -> None:
    """What a background job shows has to come in time; what it prints later is its own affair."""
    if command.expected is None:
        return
    pattern = documents.output_pattern(command.expected)
    limit = time.monotonic() + READY_PATIENCE
    while not pattern.match(log.read_text()):
        if time.monotonic() > limit:
            raise ConsoleError(f"$ {command.text}\nshown:\n{command.expected}\nprinted:\n{log.read_text()}")
        time.sleep(0.05)


def _run_python(blocks: Iterable[Block], console: Console, workspace: Path) -> None:
    """One block after the other in one process; prints with a comment that gives a value print that value."""
    source = "\n".join(block.text for block in blocks)
    if not source:
        return
    _count("Python scripts")
    (workspace / "document.py").write_text(source)
    output = console.run("python -W error document.py").splitlines()
    for line in source.splitlines():
        expected = _expected_value(line)
        if expected is not None:
            assert any(found.startswith(expected) for found in output), f"{line.strip()} did not: {output}"


def _expected_value(line: str) -> str | None:
    """What the comment behind a print says that it prints, where that is all there is to it."""
    match = re.match(r"print\((?:.*)\)\s+# ((?:True|b'[^']*'|\[b'[^']*'\]|\d+)(?=$|[:,]))", line.strip())
    return match[1] if match else None


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_block_says_what_it_is(document: str) -> None:
    """So that no command hides from the tests: fenced, of a known language, and commands only in console blocks"""
    for block in documents.blocks(document):
        where = f"{document}:{block.line}"
        assert block.language in documents.LANGUAGES, f"{where}: not a fenced block of {documents.LANGUAGES}"
        if block.language == "console":
            assert documents.commands(block), where
        elif block.language == "sh":
            assert _test_of(document) is not None, f"{where}: nothing runs it"
        elif block.language not in ("c", "python"):
            hidden = [line for line in block.text.splitlines() if _COMMAND_LIKE.match(line)]
            assert not hidden, f"{where}: a command outside of a console block"
        for mark in block.marks:
            known = mark.startswith((documents.NOT_RUN, documents.KEEPS_RUNNING, documents.RUN_BY))
            assert known or mark in (documents.CHECKOUT, documents.WITHOUT_DOMAIN), f"{where}: {mark}"


def _test_of(document: str) -> Path | None:
    """The test that runs the `sh` blocks of a document, if one says that it does."""
    for mark in documents.marks(document):
        test = documents.ROOT / mark.removeprefix(documents.RUN_BY)
        if mark.startswith(documents.RUN_BY) and document in test.read_text():
            return test
    return None
