"""kdbusctl top: rates, order and the table."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from kdbusfs.abi.v3 import constants as c
from kdbusfs.ctl.commands import top
from kdbusfs.ctl.failure import EXIT_DENIED, EXIT_NO_MOUNT, Failure
from kdbusfs.ctl.traffic import FILE, SORT_KEYS, Line, Meter, read, sort


def stats(id: int, **more: Any) -> dict[str, Any]:
    return {
        "bus": "0-demo",
        "endpoint": "bus",
        "id": id,
        "flags": 1,
        "uid": 0,
        "family": "v3",
        "pid": 100 + id,
        "comm": "program",
        "description": "",
        "names": [],
        "sent": 0,
        "sent_bytes": 0,
        "received": 0,
        "received_bytes": 0,
        "queued": 0,
        "queued_bytes": 0,
        "lost": 0,
        "requests": 0,
        "owed": 0,
        "matches": 0,
        "pool_size": 1 << 20,
        "pool_used": 0,
        "pool_slices": 0,
        **more,
    }


class Clockwork:
    """A domain whose stats and time are set by the test."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[dict[str, Any]] = []

    def meter(self, buses: list[str] | None = None) -> Meter:
        return Meter("/domain", buses, source=lambda _: self.lines, clock=lambda: self.now)


def test_rates_are_growth_over_the_time_that_passed() -> None:
    world = Clockwork()
    meter = world.meter()
    world.lines = [stats(1, sent=10, sent_bytes=1000)]
    (line,) = meter.measure()
    assert line.messages == line.bytes == 0
    world.now += 4
    world.lines = [stats(1, sent=30, sent_bytes=3000, received=2, received_bytes=8), stats(2, received=8)]
    old, new = meter.measure()
    assert old.rates == {"sent": 5, "received": 0.5, "sent_bytes": 500, "received_bytes": 2}
    assert new.rates["received"] == 2, "a connection that was made meanwhile"
    assert old.as_json()["sent"] == 30 and old.as_json()["sent_bytes_per_second"] == 500


def test_the_same_id_on_another_bus_is_another_connection() -> None:
    world = Clockwork()
    meter = world.meter()
    world.lines = [stats(1, sent=10), stats(1, bus="0-other", sent=100)]
    meter.measure()
    world.now += 1
    assert [line.rates["sent"] for line in meter.measure()] == [0, 0]
    assert [line.stats["bus"] for line in world.meter(["0-other"]).measure()] == ["0-other"]


def test_sorting() -> None:
    lines = [
        Line(stats(1, sent=5, names=["b.b"], pool_used=7)),
        Line(stats(2, sent=9, queued=1, lost=2, uid=5)),
        Line(stats(3, names=["a.a"], received=50, sent_bytes=9, pid=None)),
    ]
    order = {key: [line.stats["id"] for line in sort(lines, key)] for key in SORT_KEYS}
    assert order == {
        "rate": [3, 2, 1],
        "bytes": [3, 1, 2],
        "sent": [2, 1, 3],
        "received": [3, 1, 2],
        "queue": [2, 1, 3],
        "pool": [1, 2, 3],
        "lost": [2, 1, 3],
        "id": [1, 2, 3],
        "name": [3, 1, 2],
        "pid": [3, 1, 2],
        "user": [1, 3, 2],
    }
    assert [line.stats["id"] for line in sort(lines, "sent", reverse=True)] == [3, 1, 2]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (1024, "1.0K"), (348160, "340K"), (1 << 20, "1.0M"), (1 << 60, "1024P")],
)
def test_amounts(value: int, text: str) -> None:
    assert top.amount(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (0.04, "0.0"), (0.5, "0.5"), (9.99, "10"), (3456.7, "3457")])
def test_rates_in_short(value: float, text: str) -> None:
    assert top.rate(value) == text


def test_the_columns_of_a_line() -> None:
    line = Line(
        stats(7, names=["a.b", "a.c"], flags=c.HELLO_ACTIVATOR, sent=3, sent_bytes=2000, pool_used=1 << 19, lost=4)
    )
    cells = dict(zip(top._COLUMNS, top.cells(line), strict=True))
    assert cells["NAME"] == "a.b+1 (activator)"
    assert (cells["ID"], cells["PID"], cells["USER"], cells["COMMAND"]) == ("7", "107", "root", "program")
    assert (cells["SENT"], cells["BYTES"], cells["POOL"], cells["LOST"]) == ("3", "2.0K", "50%", "4")
    bare = dict(zip(top._COLUMNS, top.cells(Line(stats(1, pid=None, description="thing", comm=""))), strict=True))
    assert (bare["NAME"], bare["PID"], bare["COMMAND"]) == ("thing", "-", "-")


def drawn(lines: list[Line], *, width: int = 140, rows: int = 10) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, legacy_windows=False)
    console.print(top.screen("/domain", lines, top.View("rate", False), 2.0, rows))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.mark.parametrize("width", [40, 80, 140, 250])
def test_the_screen_never_outgrows_the_terminal(width: int) -> None:
    lines = [Line(stats(id, names=["org.example." + "x" * 200])) for id in range(1, 1001)]
    shown = drawn(lines, width=width, rows=24)
    assert len(shown) == 24 and all(len(line) <= width for line in shown)
    if width >= 140:
        assert "980 more" in shown[-1] and "1000 connections on 1 bus" in shown[0]


def test_nothing_of_a_client_is_taken_for_markup_or_for_a_command() -> None:
    shown = "\n".join(drawn([Line(stats(1, comm="\x1b[2J\udcff", names=["[red]x[/red]"]))]))
    assert "\x1b" not in shown and "\\x1b[2J\\xff" in shown and "[red]x[/red]" in shown


def test_buses_are_named_where_there_are_several() -> None:
    one = [Line(stats(1))]
    assert "BUS" not in drawn(one)[2] and "BUS" in drawn([*one, Line(stats(1, bus="0-b"))])[2]


def test_keys() -> None:
    view = top.View("rate", False)
    assert not view.press("s") and view.key == "bytes"
    assert not view.press("S") and not view.press("S") and view.key == "user"
    assert not view.press("r") and view.reverse
    assert not view.press("x") and view.press("q") and view.press("\x1b")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "no"), EXIT_DENIED, "only root may"),
        (FileNotFoundError(2, "no"), EXIT_NO_MOUNT, "too old"),
        (OSError(107, "no"), EXIT_NO_MOUNT, "has ended"),
        (OSError(5, "Input/output error"), 1, "cannot read"),
    ],
)
def test_why_the_figures_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, error: OSError, code: int, said: str
) -> None:
    def refuse(*arguments: object) -> int:
        raise error

    monkeypatch.setattr("kdbusfs.ctl.traffic.os.open", refuse)
    with pytest.raises(Failure, match=said) as caught:
        read("/domain")
    assert caught.value.exit_code == code


def test_lines_may_be_cut_by_reads(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdbusfs.ctl.traffic._READ", 7)
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("".join(json.dumps(stats(id)) + "\n" for id in range(20)))
    assert [each["id"] for each in read(str(tmp_path))] == list(range(20))


def test_a_connection_of_another_family_is_marked() -> None:
    world = Clockwork()
    world.lines = [stats(1, names=["a.b"]), stats(2, names=["a.c"], family="last")]
    assert [top.cells(line)[2] for line in world.meter().measure()] == ["a.b", "a.c [last]"]
