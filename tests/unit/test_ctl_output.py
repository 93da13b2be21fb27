"""What people and programs get to see."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
from collections.abc import Callable
from typing import Any

import pytest

from kdbusfs.client import Descriptor, Message, ReceivedMemfd, Zero, sealed_memfd
from kdbusfs.ctl import describe, payload
from kdbusfs.ctl.failure import Failure
from kdbusfs.ctl.output import Output
from tests.unit.test_ctl_escape import HOSTILE

ROWS = [("org.example.Echo", "1", "a"), ("[red]x[/red]", "23", HOSTILE), (":smile:", "4", "")]


def on_terminal(show: Callable[[], Any], *, width: int = 80, environment: dict[str, str] | None = None) -> str:
    """What `show` writes to a terminal of `width` columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.environ.pop("NO_COLOR", None)
            os.environ.update({"TERM": "xterm-256color", "COLUMNS": str(width), **(environment or {})})
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has put something else there
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            show()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(0)
    text = b""
    try:
        while select.select([terminal], [], [], 30)[0]:
            text += os.read(terminal, 4096)
    except OSError:
        pass  # EIO: the other end is closed
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return text.decode()


def assert_harmless(text: str) -> None:
    """No sequence but those that set colours and attributes."""
    assert "\x1b]" not in text
    assert "\x9b" not in text
    assert "\x07" not in text
    assert "‮" not in text
    assert "\x1b[31m" not in text


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_table_that_is_piped_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    Output().table(("NAME", "ID"), [("b", "1"), ("a", long)], right=("ID",))
    assert capsys.readouterr().out == f"NAME  {'ID':>300}\nb     {'1':>300}\na     {long}\n"


def test_a_table_without_rows_has_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("NAME", "ID"), [])
    assert capsys.readouterr().out == "NAME  ID\n"


def test_strangers_neither_control_the_terminal_nor_the_markup() -> None:
    def show() -> None:
        output = Output()
        output.table(("NAME", "ID", "TEXT"), ROWS, right=("ID",), last_gives_way=True)
        output.line(HOSTILE)
        output.line(HOSTILE, style="bold")
        output.fields([("Label", "[red]y[/red]" + HOSTILE)])
        output.note(HOSTILE)
        output.show("[red]z[/red]")

    text = on_terminal(show, width=200)
    assert_harmless(text)
    for literal in ("[red]x[/red]", ":smile:", "[red]y[/red]", "[red]z[/red]", "\\x1b[31mred"):
        assert literal in text
    assert "\x1b[1m" in text  # the terminal does get what is ours


def test_a_table_fits_the_terminal_and_the_last_column_gives_way() -> None:
    rows = [("org.example.Echo", "1", "y" * 200)]
    text = on_terminal(lambda: Output().table(("NAME", "ID", "COMMAND"), rows, last_gives_way=True), width=60)
    lines = text.replace("\r", "").splitlines()
    assert len(lines) == 2
    assert "org.example.Echo" in lines[1]
    assert lines[1].rstrip().endswith("…")


def test_no_color_and_never_leave_colours_out() -> None:
    def show(colour: Any) -> Callable[[], None]:
        return lambda: Output(colour=colour).line("text", style="red")

    assert "\x1b[31m" in on_terminal(show("auto"))
    assert "\x1b[31m" not in on_terminal(show("auto"), environment={"NO_COLOR": "1"})
    assert "\x1b[31m" not in on_terminal(show("never"))


def test_colours_can_be_had_in_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    Output(colour="auto").line("text", style="red")
    assert capsys.readouterr().out == "text\n"
    Output(colour="always").line("text", style="red")
    assert "\x1b[" in capsys.readouterr().out


def test_json_documents_and_records(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=True).document([{"a": HOSTILE}])
    Output(json=True).record({"b": 1})
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)[0]["a"].startswith("\x1b[31m")
    assert json.loads(second) == {"b": 1}


def test_progress_shows_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Output().progress("waiting"):
        pass
    assert capsys.readouterr() == ("", "")


def test_progress_appears_on_a_terminal_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbusfs.ctl import progress

    def show(seconds: float) -> Callable[[], None]:
        import time

        def run() -> None:
            with Output().progress(f"waiting for [red]x[/red] {HOSTILE}"):
                time.sleep(seconds)

        return run

    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    text = on_terminal(show(0.6), width=200)
    assert "waiting for [red]x[/red]" in text
    assert text.index("\x1b[?25h") < text.rindex("waiting for")  # the cursor is there all the time
    assert_harmless(text)
    monkeypatch.setattr(progress, "PATIENCE", 30.0)
    assert on_terminal(show(0.1)) == ""


# Payload.


def test_payload_comes_from_one_place(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"00 ff\n")
    assert payload.read(None, None, False) == b""
    assert payload.read("text\udcff", None, False) == b"text\xff"
    assert payload.read(None, str(file), False) == b"00 ff\n"
    assert payload.read(None, str(file), True) == b"\x00\xff"
    for arguments in (("x", "y", False), ("0g", None, True), (None, str(tmp_path / "none"), False)):
        with pytest.raises(Failure):
            payload.read(*arguments)


class Sent(Message):
    """A message with this payload and nothing else."""

    def __init__(self, *parts: bytes | Zero | ReceivedMemfd) -> None:
        self.payload = [memoryview(part) if isinstance(part, bytes) else part for part in parts]


def test_payload_of_several_parts_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "_PIECE", 4)
    with sealed_memfd(b"0123456789") as memfd:
        message = Sent(b"abcde", Zero(2), ReceivedMemfd(memfd, 1, 8))
        assert payload.size_of(message) == 15
        whole = [b"abcd", b"e", b"\0\0", b"1234", b"5678"]
        assert list(payload.pieces(message)) == whole
        assert payload.data_of(message) == b"".join(whole)
        for limit in range(17):
            assert b"".join(payload.pieces(message, limit)) == b"".join(whole)[:limit]


def test_a_memfd_larger_than_memory_is_not_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    memfd = Descriptor(os.memfd_create("large", os.MFD_CLOEXEC))
    with memfd:
        os.ftruncate(memfd.fd, 1 << 40)
        message = Sent(b"x", ReceivedMemfd(memfd, 0, 1 << 40))
        assert b"".join(payload.pieces(message, 5)) == b"x\0\0\0\0"
        with pytest.raises(Failure, match="--raw"):
            payload.data_of(message)
        with pytest.raises(Failure, match="--raw"):
            payload.show(Output(), message, "hex")


def test_a_memfd_that_did_not_come_through() -> None:
    for part in (ReceivedMemfd(Descriptor(-24), 0, 5), ReceivedMemfd(sealed_memfd(b"abc"), 0, 5)):
        with part.file, pytest.raises(Failure, match="incomplete"):
            payload.data_of(Sent(part))


def test_payload_is_dumped_in_hexadecimal() -> None:
    assert list(payload.hex_dump(bytes(range(0x3D, 0x4F)))) == [
        "00000000  3d 3e 3f 40 41 42 43 44 45 46 47 48 49 4a 4b 4c  |=>?@ABCDEFGHIJKL|",
        f"00000010  {'4d 4e':<47}  |MN|",
    ]
    assert list(payload.hex_dump(b"")) == []
    assert next(payload.hex_dump(b"\x1b\xff\n")).endswith("|...|")


def test_a_terminal_gets_payload_in_a_form_that_it_can_show() -> None:
    assert on_terminal(lambda: payload.show(Output(), Sent(b"two\nlines"))) == "two\r\nlines\r\n"
    hostile = on_terminal(lambda: payload.show(Output(), Sent(HOSTILE.encode(errors="replace"))))
    assert hostile.startswith("00000000  1b 5b")
    assert_harmless(hostile)
    text = on_terminal(lambda: payload.show(Output(), Sent(b"\x1b]0;x\x07\xff"), "text"))
    assert text == "\\x1b]0;x\\x07\\xff\r\n"


def test_a_pipe_gets_payload_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    payload.show(Output(), Sent(b"\x00\xff\x1b"))
    assert capfdbinary.readouterr().out == b"\x00\xff\x1b"


def test_payload_as_json() -> None:
    assert payload.payload_json(b"\xff") == {"size": 1, "base64": "/w==", "text": None}
    assert payload.payload_json("é".encode())["text"] == "é"


# Words for numbers.


def test_unknown_flags_are_not_swallowed() -> None:
    assert describe.flag_names(0b1001 | 1 << 40, describe.HELLO_FLAGS) == ["accept-fd", "monitor", "0x10000000000"]
    assert describe.flag_names(0, describe.NAME_FLAGS) == []


def test_users_without_a_name_are_numbers() -> None:
    assert describe.user_name(0) == "root"
    assert describe.user_name(4_000_000_000) == "4000000000"
    assert describe.user_name(0xFFFFFFFF) == "-"


def test_a_process_of_somebody_else_is_not_taken_for_the_one_that_is_gone() -> None:
    found = describe.proc_command(os.getpid(), None)
    assert found is not None
    assert "python" in found[1] or "pytest" in found[1]
    if os.geteuid() != 0:
        assert describe.proc_command(os.getpid(), os.geteuid() + 1) is None
    assert describe.proc_command(1 << 30, None) is None


def test_capabilities_have_names() -> None:
    assert describe.capability_names(0b11, 40) == ["chown", "dac_override"]
    assert describe.capability_names((1 << 41) - 1, 40) == ["all"]
    assert describe.capability_names(1 << 50, 50) == ["cap_50"]
    assert len(describe._CAPABILITIES.split()) == 41
