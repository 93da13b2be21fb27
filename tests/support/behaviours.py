"""The ids of all behaviours in the specifications, by group: `SEND-1` and so on."""

from __future__ import annotations

from typing import Final

V3_GROUPS: Final = {
    "FS": 33,
    "GEN": 21,
    "ITEM": 12,
    "BUS": 14,
    "EPM": 7,
    "EPU": 3,
    "PRIV": 2,
    "HELLO": 22,
    "BYE": 7,
    "UPD": 6,
    "INFO": 8,
    "CRE": 3,
    "SEND": 49,
    "BC": 4,
    "QUO": 6,
    "REP": 19,
    "SYNC": 5,
    "LAY": 21,
    "META": 22,
    "RECV": 19,
    "FREE": 5,
    "POOL": 13,
    "NAME": 21,
    "LIST": 10,
    "MATCH": 16,
    "NOTE": 12,
    "POL": 23,
    "CEP": 5,
    "MON": 8,
    "ACT": 11,
    "POLL": 6,
    "CLOSE": 6,
    "NS": 6,
    "MASK": 2,
    "LIM": 14,
    "SHUT": 5,
}

BUS1_GROUPS: Final = {
    "IDEA": 6,
    "FILE": 7,
    "GEN": 7,
    "NODE": 14,
    "PEER": 7,
    "HAND": 7,
    "SEND": 15,
    "ORD": 6,
    "RECV": 14,
    "CRED": 2,
    "LIM": 5,
    "POOL": 3,
    "FUSE": 9,
}
"""The groups of bus1, whose ids are `B1-SEND-1` and so on."""

LAST_GROUPS: Final = {"L": 128}
"""The groups of the last kdbus, for its differences from v3."""

GROUPS: Final = {**V3_GROUPS, **LAST_GROUPS}


def ids_of(groups: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{group}-{number}" for group, count in groups.items() for number in range(1, count + 1))


IDS: Final = ids_of(GROUPS)
BUS1_IDS: Final = tuple(f"B1-{group}-{each}" for group, count in BUS1_GROUPS.items() for each in range(1, count + 1))
