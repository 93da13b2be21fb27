"""One way to compute bloom filters: FNV-1a of each word, split for double hashing, as in docs/examples.

The bus only compares bits of filters and masks.  All programs of a bus have to compute them in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable


def _fnv1a(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def bloom_filter(words: Iterable[str | bytes], size: int, n_hash: int) -> bytes:
    """A filter of `size` bytes with `n_hash` bits set for each word.  Used as a mask, it requires all words.

    The loop is bounded by the number of bits, because the maker of a bus may choose an `n_hash` of 2**64 - 1.
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
