"""The code blocks of the documents, and the comments that mark them (docs/hacking.md has the convention)."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).parents[2]

LANGUAGES = ("c", "console", "ini", "json", "python", "sh", "text")
NOT_RUN = "not run: "
CHECKOUT = "in the checkout"
KEEPS_RUNNING = "keeps running; ready when "
RUN_BY = "the sh blocks are run by "
WITHOUT_DOMAIN = "begins without a domain"

_DOCUTILS = {"syntax_highlight": "none", "halt_level": 2, "report_level": 2, "_disable_config": True}


@dataclass(frozen=True)
class Block:
    """A block of code: its language, text and first line in the document, and the comments right before it."""

    language: str
    text: str
    line: int
    marks: tuple[str, ...] = ()

    def mark(self, prefix: str) -> str | None:
        """The rest of the comment that begins with `prefix`; None if there is none."""
        for mark in self.marks:
            if mark.startswith(prefix):
                return mark[len(prefix) :]
        return None

    @property
    def file_name(self) -> str | None:
        """The name to write a C file to, if its first line has one."""
        match = re.match(r"/\* ([\w-]+\.[ch]): ", self.text) if self.language == "c" else None
        return match[1] if match else None


@dataclass(frozen=True)
class Command:
    """A command of a console block, and its output in the document, or None."""

    text: str
    expected: str | None
    line: int


def documents() -> list[str]:
    """All documents, relative to the checkout, except docs/conformance.md, which is generated and has no code."""
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/architecture/*.md"), *ROOT.glob("docs/man/*.rst")]
    names = sorted(str(path.relative_to(ROOT)) for path in pages if path.name != "conformance.md")
    return ["README.md", "CONTRIBUTING.md", "NEWS.md", *names]


def blocks(document: str) -> list[Block]:
    """The code blocks of a document, in order."""
    path = ROOT / document
    return _restructured(path) if path.suffix == ".rst" else _markdown(path.read_text())


def marks(document: str) -> tuple[str, ...]:
    """All comments of the document."""
    text = (ROOT / document).read_text()
    found = re.findall(r"^<!-- (.*?) -->$|^\.\. ([a-z][^:\n]*(?::(?!:).*)?)$", text, re.MULTILINE)
    return tuple(markdown or restructured for markdown, restructured in found)


def commands(block: Block) -> list[Command]:
    """The commands of a console block: lines that begin with `$ `; they go on after a backslash and in lines with `> `.

    What follows is their output.
    """
    found: list[Command] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        assert lines[at].startswith("$ "), f"line {block.line + at}: output without a command: {lines[at]!r}"
        first = at
        text = lines[at][2:]
        while text.endswith("\\"):
            at += 1
            text += "\n" + lines[at]
        at += 1
        while at < len(lines) and lines[at].startswith("> "):
            text += "\n" + lines[at][2:]
            at += 1
        shown: list[str] = []
        while at < len(lines) and not lines[at].startswith("$ "):
            shown.append(lines[at])
            at += 1
        while shown and not shown[-1]:
            shown.pop()
        found.append(Command(text, "\n".join(shown) if shown else None, block.line + first))
    return found


def output_pattern(expected: str) -> re.Pattern[str]:
    """`...` stands for anything within a line, and for any number of lines where it is a line."""
    parts = []
    for line in expected.split("\n"):
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*?".join(re.escape(part.rstrip()) for part in line.split("...")) + r"[ \t]*\n")
    return re.compile("".join(parts))


def _markdown(text: str) -> list[Block]:
    found: list[Block] = []
    said: list[str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        comment = re.fullmatch(r"<!-- (.*) -->", line)
        fence = re.fullmatch(r"```(\w*)(?: \w+)?", line)
        if comment:
            said.append(comment[1])
        elif fence:
            end = lines.index("```", at + 1)
            found.append(Block(fence[1], "\n".join(lines[at + 1 : end]) + "\n", at + 2, tuple(said)))
            at = end
            said = []
        elif line.startswith(("    ", "\t")) and not lines[at - 1].strip():
            # A continued paragraph of a list looks like that too; the documents have none.
            found.append(Block("", line, at + 1, tuple(said)))
        elif line.strip():
            said = []
        at += 1
    return found


@cache
def generate() -> None:
    """Generate files that pages include."""
    script = ROOT / "docs/man/kdbusctl.py"
    subprocess.run([sys.executable, str(script), str(ROOT / "build/man/kdbusctl.rst")], check=True, timeout=120)


def doctree(path: Path) -> nodes.document:
    """Parse a reStructuredText file; warnings are errors."""
    generate()
    tree: nodes.document = publish_doctree(path.read_text(), source_path=str(path), settings_overrides=_DOCUTILS)
    return tree


def _restructured(path: Path) -> list[Block]:
    found: list[Block] = []
    for block in doctree(path).findall(nodes.literal_block):
        said: list[str] = []
        siblings = block.parent.children
        for before in reversed(siblings[: siblings.index(block)]):
            if not isinstance(before, nodes.comment):
                break
            said.append(before.astext())
        classes = [name for name in block["classes"] if name != "code"]
        language = classes[0] if classes else "text"
        found.append(Block(language, block.astext().rstrip("\n") + "\n", block.line or 0, tuple(reversed(said))))
    return found
