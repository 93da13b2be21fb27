"""Lines of /proc/PID/mountinfo, as proc(5) describes them."""

from __future__ import annotations

from typing import Final, NamedTuple

# The backslash last: what it becomes must not be read as the start of another one.
_ESCAPES: Final = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\"))


class MountEntry(NamedTuple):
    """One mount.

    device: of the file system, as "major:minor"; root: the part of the file system that is mounted, "/" for all of it;
    path: of the mount point; options: of the file system, separated by commas.
    """

    device: str
    root: str
    path: str
    type: str
    source: str
    options: str

    def option(self, name: str) -> str | None:
        """The value of option `name`; "" for one without a value, None if it is not set."""
        for option in self.options.split(","):
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None


def parse_line(line: str) -> MountEntry:
    """Parse one line; its line feed may be missing."""
    fields = line.rstrip("\n").split(" ")
    # Optional fields precede the dash.  Blanks in paths are escaped.
    kind, source, options = fields[fields.index("-", 6) + 1 :][:3]
    return MountEntry(fields[2], _unescape(fields[3]), _unescape(fields[4]), kind, _unescape(source), options)


def parse(table: str) -> list[MountEntry]:
    """All mounts of a mount table, in order: of several at one path the last is the visible one."""
    return [parse_line(line) for line in table.split("\n") if line]


def type_of(table: bytes, mount_id: bytes) -> bytes | None:
    """The type of the mount with this id; None if it is not listed.  Parses one line: a table may have thousands.

    table: perhaps cut off at its end.
    """
    start = 0 if table.startswith(mount_id + b" ") else table.find(b"\n" + mount_id + b" ") + 1
    if start == 0 and not table.startswith(mount_id + b" "):
        return None
    end = table.find(b"\n", start)
    line = table[start : end if end >= 0 else None].decode("utf-8", "surrogateescape")
    try:
        return parse_line(line).type.encode("utf-8", "surrogateescape")
    except ValueError:
        return None


def _unescape(text: str) -> str:
    for escape, character in _ESCAPES:
        text = text.replace(escape, character)
    return text
