"""Escapes untrusted text for a terminal: names, comm, cmdline, payload and descriptions may contain anything."""

from __future__ import annotations

import os
import re
from typing import Any

# Controls (C0, DEL, C1), what changes the direction of text or is invisible, line separators, lone surrogates
# (which stand for bytes that are no UTF-8), private and unassigned planes at the end.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff\ud800-\udfff"
    "\U000e0000-\U0010ffff]"
)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escape(text: str) -> str:
    r"""`text` on one line, with everything that a terminal could interpret as \xNN, \uNNNN or \UNNNNNNNN."""
    return _UNSAFE.sub(_escaped, text)


def escape_lines(text: str) -> str:
    """The same for text of several lines: line feeds and tabs stay."""
    return re.sub(r"[^\n\t]+", lambda match: escape(match[0]), text)


def payload_text(data: bytes) -> str | None:
    """Payload as text, or None if it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def escape_bytes(data: bytes) -> str:
    r"""Payload on one line: text if it is UTF-8, \xNN for other bytes."""
    return escape(os.fsdecode(data))


def jsonable(value: Any) -> Any:
    r"""`value` with strings that every JSON parser accepts: bytes that are not UTF-8 become \xNN text."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", _escaped, value)
    if isinstance(value, dict):
        return {jsonable(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
