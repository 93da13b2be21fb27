"""What strangers say does not command the terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest

from kdbusfs.ctl.escape import escape, escape_bytes, escape_lines, jsonable, payload_text
from kdbusfs.ctl.output import to_json

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \r\n\t\x00\x7f\x9b1m‮evil⁦​ \ud800\udc80\udcff\U000e0041\ufeff"


def test_everything_that_controls_is_escaped() -> None:
    text = escape(HOSTILE)
    assert text.startswith("\\x1b[31mred\\x1b]0;title\\x07 \\x0d\\x0a\\x09\\x00\\x7f\\x9b1m\\u202eevil")
    assert text.isprintable()


def test_no_character_that_controls_gets_through() -> None:
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(code) not in _HARMLESS:
            assert escape(chr(code)) != chr(code), hex(code)


# Marks of scripts that are written with them; they neither hide nor turn anything.
_HARMLESS = {
    *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)),
    *map(chr, (*range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B))),
}


def test_ordinary_text_stays() -> None:
    for text in ("org.example.Echo", "größe, 漢字, עברית, [bold]x[/bold] :smile: \\"):
        assert escape(text) == text


def test_bytes_that_are_no_utf8_are_shown_as_bytes() -> None:
    assert escape_bytes(b"a\xff\xc3\xa9\x1b") == "a\\xffé\\x1b"
    assert payload_text(b"\xff") is None
    assert payload_text("é".encode()) == "é"


def test_lines_and_tabs_of_a_text_stay() -> None:
    assert escape_lines("a\tb\n\x1bc\r\n") == "a\tb\n\\x1bc\\x0d\n"


def test_json_is_ascii_and_every_parser_takes_it() -> None:
    text = to_json({"a": [HOSTILE], HOSTILE: 1})
    assert text.isascii()
    assert text.isprintable()
    found = json.loads(text)
    assert "\\xff" in found["a"][0]
    json.dumps(found, ensure_ascii=False).encode()  # no lone surrogate is left


@pytest.mark.parametrize("value", [1, None, True, 1.5, "x", [], {}])
def test_other_values_stay_as_they_are_in_json(value: object) -> None:
    assert jsonable(value) == value
