"""Commands and messages from bytes, with atheris: `python -m tests.fuzz.decode [libFuzzer options] CORPUS`.

Whatever the bytes are, decoding and judging them raises CommandError and nothing else, gives the same when done again,
and does not depend on what stands behind them.  A refused message leaves no file open and no charge.

Input: a byte that chooses what is decoded, a u16 that says how much of the rest is a command (the others are its
message), then those bytes.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["kdbusfs.abi", "kdbusfs.core", "kdbusfs.base"]):
    from kdbusfs.abi import commands as k
    from kdbusfs.abi.v3.commands import COMMANDS
    from kdbusfs.abi.v3.family import V3
    from kdbusfs.abi.v3.items import check_items, decode_items, parse_items
    from kdbusfs.base.account import Account
    from kdbusfs.base.call import Call
    from kdbusfs.base.errors import CommandError
    from kdbusfs.core.message import make_message

from struct import pack_into, unpack_from

from tests.support.fake_host import FakeCaller, FakeFile, FakeProcess, sealed_memfd

HEAD = 3
BLOOM = 64
FILES = 40
_family = V3()
_kinds = sorted(command.kind for command in COMMANDS.values())
_numbers = {command.kind: command.number for command in COMMANDS.values()}


class Words:
    """The fixed part of a command, as u64."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def __getitem__(self, index: int) -> int:
        value: int = unpack_from("<Q", self.data, 8 * index)[0]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        pack_into("<Q", self.data, 8 * index, value)

    def tobytes(self) -> bytes:
        return bytes(self.data)


def outcome_of_items(data: bytes, size: int) -> object:
    """What the items in the first `size` bytes are, or the errno."""
    try:
        check_items(data, 0, size)
    except CommandError as error:
        for decode in (parse_items, decode_items):
            try:
                decode(data, 0, size)
            except CommandError as again:
                assert again.errno == error.errno
            else:
                raise AssertionError("decoded what the check refuses") from error
        return error.errno
    raw = parse_items(data, 0, size)
    items = decode_items(data, 0, size)
    assert [len(payload) for _, payload in raw] == [item.size for item in items]
    return [(item.kind, item.size, item.text, item.numbers) for item in items]


def process_with_files() -> tuple[FakeProcess, list[FakeFile]]:
    process = FakeProcess()
    kinds = (FakeFile, lambda: sealed_memfd(4096), lambda: FakeFile(is_path=True), lambda: FakeFile(is_bus_file=True))
    files = [kinds[number % len(kinds)]() for number in range(FILES)]
    process.files.update(enumerate(files))
    return process, files


def outcome_of_command(kind: int, command: bytes, message: bytes | None) -> object:
    """What the command says, or the errno."""
    process, files = process_with_files()
    call = Call()
    call.number = _numbers[kind]
    call.address = process.place(command)
    call.data = command
    call.command = memoryview(bytearray(command))
    call.words = Words(command)
    call.caller = FakeCaller(process)
    call.message = message
    account = Account(1000, 1 << 30)
    try:
        if kind != k.SEND:
            return [(item.kind, item.text, item.numbers) for item in _family.decode(kind, call)]
        sent = _family.decode_send(call)
        made = make_message(sent, call.caller, 1, BLOOM, account)
    except CommandError as error:
        assert not any(file.open_count for file in files), "a refused message keeps files open"
        assert account.used == 0, "a refused message is charged"
        return error.errno
    parts = [(part.size, part.start, part.is_memfd) for part in made.parts]
    assert made.resources is not None
    made.resources.release()
    assert account.used == 0, "a message that is gone is still charged"
    assert not any(file.open_count for file in files), "a message that is gone keeps files open"
    return (made.flags, made.dst_id, made.dst_name, made.vectors, made.payload_size, made.bloom, parts)


def test_one(data: bytes) -> None:
    if len(data) < HEAD:
        return
    (split,) = unpack_from("<H", data, 1)
    body = data[HEAD:]
    if data[0] & 0x80:
        first = outcome_of_items(body, len(body))
        assert first == outcome_of_items(body + b"\x55" * 64, len(body)), "items depend on what is behind them"
        assert first == outcome_of_items(body + b"\xaa" * 64, len(body)), "items depend on what is behind them"
        return
    kind = _kinds[data[0] % len(_kinds)]
    if kind == k.SEND:
        command, message = body[:split], body[split:]
    else:
        command, message = body, None
    first = outcome_of_command(kind, command, message)
    assert first == outcome_of_command(kind, command, message), "decoded otherwise the second time"


def main() -> None:
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
