"""Little-endian numbers in bytes."""

from __future__ import annotations

from struct import Struct
from typing import Final

from librt.strings import read_i32_le, read_i64_le
from mypy_extensions import i64

U64: Final = Struct("<Q")
I64: Final = Struct("<q")
I32: Final = Struct("<i")


def u32(data: bytes, at: i64) -> int:
    """The u32 at `at`.  Raises IndexError."""
    value: int = read_i32_le(data, at)
    return value & 0xFFFFFFFF


def u64(data: bytes, at: i64) -> int:
    """The u64 at `at`.  Compiled it is a load, where Struct makes a tuple of objects.  Raises IndexError."""
    value: int = read_i64_le(data, at)
    return value if value >= 0 else value + (1 << 64)


def signed(value: int) -> int:
    """The i64 with the bits of a u64: what `write_i64_le` takes, which is several times as fast as Struct."""
    return value if value < 1 << 63 else value - (1 << 64)


def align8(size: int) -> int:
    """`size` rounded up to a multiple of 8."""
    return (size + 7) & ~7
