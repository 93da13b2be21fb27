"""Listing a bus while connections come and go, and where some may not be seen."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import Creds, Info, Metadata, NameInfo, Pids
from kdbusfs.ctl.survey import Entry, Peer, entry_json, survey

ALL = ("owned", "activatable", "queued", "unique")
ME = 99


class Bus:
    """A connection to a bus of `records`; ids in `errors` cannot be asked for, those in `gone` are not listed then."""

    id = ME

    def __init__(self) -> None:
        self.records: dict[int, list[NameInfo]] = {
            c.NAME_LIST_NAMES: [NameInfo(2, 0, "org.b.B", 0), NameInfo(1, 0, "org.a.A", c.NAME_QUEUE)],
            c.NAME_LIST_ACTIVATORS: [
                NameInfo(5, c.HELLO_ACTIVATOR, "org.c.C", c.NAME_ACTIVATOR),
                NameInfo(2, 0, "org.b.B", 0),
            ],
            c.NAME_LIST_QUEUED: [NameInfo(3, 0, "org.a.A", 0)],
            c.NAME_LIST_UNIQUE: [NameInfo(n, c.HELLO_MONITOR if n == 6 else 0, None, 0) for n in (1, 2, 3, 4, 6, ME)],
        }
        self.errors: dict[int, int] = {}
        self.gone: set[int] = set()
        self._asked = False

    def list_names(self, flags: int) -> list[NameInfo]:
        return [record for record in self.records[flags] if not (self._asked and record.id in self.gone)]

    def conn_info(self, who: int, flags: int) -> Info:
        self._asked = True
        if who in self.errors:
            raise OSError(self.errors[who], "")
        metadata = Metadata(pids=Pids(os.getpid(), 1, 1), creds=Creds(*[os.geteuid()] * 8), description=f"peer-{who}")
        return Info(who, 0, None, [], metadata)


def seen(bus: Bus, *states: Any) -> list[tuple[str | None, str, int]]:
    return [(entry.name, entry.state, entry.peer.id) for entry in survey(bus, states or ALL)]  # type: ignore[arg-type]


def test_everything_in_order_without_oneself() -> None:
    assert seen(Bus()) == [
        ("org.a.A", "owned", 1),
        ("org.a.A", "queued", 3),
        ("org.b.B", "owned", 2),
        ("org.c.C", "activatable", 5),
        (None, "unique", 4),
        (None, "unique", 6),
    ]


def test_only_what_is_asked_for() -> None:
    assert seen(Bus(), "queued") == [("org.a.A", "queued", 3)]
    assert seen(Bus(), "unique") == [(None, "unique", 3), (None, "unique", 4), (None, "unique", 6)]
    assert seen(Bus(), "activatable") == [("org.c.C", "activatable", 5)]


def test_connections_that_end_meanwhile_are_left_out() -> None:
    bus = Bus()
    bus.errors = {1: errno.ENXIO, 4: errno.ENXIO}
    bus.gone = {1, 4}
    assert {number for _, _, number in seen(bus)} == {2, 3, 5, 6}


def test_hidden_connections_have_no_details() -> None:
    bus = Bus()
    bus.errors = {1: errno.ENXIO, 4: errno.EPERM, 5: errno.ENXIO}
    entries = survey(bus, ALL)  # type: ignore[arg-type]
    assert len(entries) == 6
    hidden = [entry for entry in entries if entry.peer.info is None]
    assert {entry.peer.id for entry in hidden} == {1, 4, 5}
    for entry in hidden:
        found = entry_json(entry)
        assert found["visible"] is False
        assert (found["pid"], found["user"], found["command"], found["description"]) == (None,) * 4
        assert entry.peer.command_text == "-"


def test_other_errors_are_not_hidden() -> None:
    bus = Bus()
    bus.errors = {1: errno.ENOBUFS}
    with pytest.raises(OSError) as caught:
        seen(bus)
    assert caught.value.errno == errno.ENOBUFS


def test_kinds_of_connections_have_names() -> None:
    entries = {entry.peer.id: entry for entry in survey(Bus(), ALL)}  # type: ignore[arg-type]
    assert entries[6].state_text == "monitor"
    assert entries[4].state_text == "-"
    assert entries[3].state_text == "queued"


def test_the_command_is_that_of_the_bus_before_that_of_proc() -> None:
    info = Info(1, 0, None, [], Metadata(pids=Pids(os.getpid(), 1, 1), pid_comm="said", cmdline="/bin/said"))
    assert Peer(1, 0, info).command() == ("said", "/bin/said", "bus")
    info.metadata.pid_comm = info.metadata.cmdline = None
    comm, line, source = Peer(1, 0, info).command()
    assert source == "proc"
    assert comm
    assert line
    found = entry_json(Entry(None, "unique", 0, Peer(1, 0, info)))
    assert found["command_source"] == "proc"
    assert found["visible"] is True


def test_a_pid_that_cannot_be_seen_is_none() -> None:
    info = Info(1, 0, None, [], Metadata(pids=Pids(0, 0, 0)))
    assert Peer(1, 0, info).pid is None
    assert Peer(1, 0, info).command() == (None, None, None)
