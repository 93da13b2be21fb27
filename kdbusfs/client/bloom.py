"""Bloom filters, one way to make them.

The bus compares filters and masks and does not know what made their bits: the programs of a bus
have to agree.  This is what docs/examples does too: FNV-1a of the word, taken apart for double hashing.
"""

from __future__ import annotations

from collections.abc import Iterable


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def bloom_filter(words: Iterable[str | bytes], size: int, n_hash: int) -> bytes:
    """A filter of `size` bytes with `n_hash` bits set for each of `words`; as a mask: asks for all.

    No word takes more steps than there are bits: who makes a bus may ask for 2**64 - 1.
    """
    bits = size * 8
    field = bytearray(size)
    for word in words:
        value = _fnv1a(word.encode() if isinstance(word, str) else word)
        step = value >> 32 | 1
        for i in range(min(n_hash, bits)):
            bit = (value + i * step & 0xFFFFFFFFFFFFFFFF) % bits
            field[bit // 8] |= 1 << bit % 8
    return bytes(field)
