"""The behaviours of the kdbus v3 specification by group and number: ids only, `SEND-1` to `SEND-49` and so on."""

from __future__ import annotations

from typing import Final

GROUPS: Final = {
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

IDS: Final = tuple(f"{group}-{number}" for group, count in GROUPS.items() for number in range(1, count + 1))
