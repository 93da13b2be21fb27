"""The report of `make bench`: that it shows what was measured, and divides the right figures.  Nothing about speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.figures import Figures
from tests.bench.measures import ALL, BROKER, DAEMON, DEFAULT, FLOOR, KDBUSFS, MEASURES, MODES, PINNED, SOCKETS, chosen
from tests.bench.report import BEGIN, END, ROWS, TARGETS, replace_section, report

ABOUT = {
    "machine": "2 cpus, 4 GiB",
    "kernel": "6.9",
    "python": "3.11",
    "date": "2025-01-31",
    "peers": {KDBUSFS: "1"},
    "missing": {BROKER: "is not installed"},
    "quick": False,
    "partial": False,
    "rounds": 3,
    "seconds": 9,
    "failed": ["oneway, kdbusfs, pinned: exit code 1"],
}


@pytest.fixture
def figures() -> Figures:
    return Figures({**ABOUT})


def add(figures: Figures, mode: str, measure: str, peer: str, *medians: float) -> None:
    for median in medians:
        figures.add(mode, measure, peer, {"time": {"median": median, "p90": 2 * median, "mean": 3 * median}})


def line_of(text: str, beginning: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_the_median_over_the_rounds_is_shown_with_ratios_of_medians(figures: Figures) -> None:
    add(figures, PINNED, "call 8 B", KDBUSFS, 90.0, 30.0, 40.0)
    add(figures, PINNED, "call 8 B", BROKER, 16.0)
    add(figures, PINNED, "call 8 B", SOCKETS, 4.0)
    assert line_of(report(figures), "call 8 B ").split()[3:] == [
        "40.00",
        "80.00",
        "16.00",
        "32.00",
        "4.00",
        "8.00",
        "2.50",
        "10.00",
    ]


def test_a_target_is_met_at_its_limit_and_over_above_it(figures: Figures) -> None:
    add(figures, PINNED, "call 8 B", KDBUSFS, 50.0)
    add(figures, PINNED, "call 8 B", BROKER, 20.0)
    add(figures, PINNED, "call 8 B", DAEMON, 25.0)
    text = report(figures)
    assert line_of(text, "call 8 B, against dbus-broker").split()[-3:] == ["2.50", "2.50", "ok"]
    assert line_of(text, "call 8 B, against dbus-daemon").split()[-3:] == ["2.00", "1.80", "over"]
    assert line_of(text, "broadcast to 100, a delivery, against").endswith("not measured")


def test_a_run_of_some_measures_shows_only_their_targets(figures: Figures) -> None:
    figures.about["partial"] = True
    assert "what is aimed at" not in report(figures)
    add(figures, PINNED, "oneway", KDBUSFS, 30.0)
    add(figures, PINNED, "oneway", BROKER, 20.0)
    text = report(figures)
    assert line_of(text, "message without reply, 256 B, against").split()[-3:] == ["1.50", "1.50", "ok"]
    assert "not measured" not in text


def test_the_better_of_two_peers_is_the_one_that_counts(figures: Figures) -> None:
    add(figures, DEFAULT, "call 8 B", KDBUSFS, 100.0)
    add(figures, DEFAULT, "call 8 B", BROKER, 80.0)
    what = "call 8 B, against the better of the two (default)"
    assert line_of(report(figures), what).endswith("not measured")
    add(figures, DEFAULT, "call 8 B", DAEMON, 50.0)
    assert line_of(report(figures), what).split()[-3:] == ["2.00", "1.30", "over"]


def test_busy_loops_are_compared_by_means(figures: Figures) -> None:
    figures.add(DEFAULT, "busy", KDBUSFS, {"time": {"median": 1.0, "mean": 90.0}})
    figures.add(DEFAULT, "busy", BROKER, {"time": {"median": 1.0, "mean": 45.0}})
    assert line_of(report(figures), "mean call 8 B beside 2 busy loops").split()[-3:] == ["2.00", "3.00", "ok"]


def test_what_is_missing_or_failed_is_named(figures: Figures) -> None:
    text = report(figures)
    assert "left out: dbus-broker: is not installed" in text
    assert "FAILED: oneway, kdbusfs, pinned: exit code 1" in text


def test_every_target_and_row_names_something_that_is_measured() -> None:
    known = {measure.name: measure for measure in MEASURES}
    for target in TARGETS:
        for measure, peer, *_ in (target.over, *target.under):
            assert peer in known[measure].peers and target.mode in known[measure].modes, target.what
    assert {row.measure for row in ROWS} <= set(known)
    assert len(known) == len(MEASURES)


def test_what_is_measured_can_be_chosen() -> None:
    assert [measure.name for measure in chosen("call 8 B,oneway", MODES, ALL, quick=False)] == ["call 8 B", "oneway"]
    assert next(measure.name for measure in chosen("*MiB", (PINNED,), ALL, quick=False)) == "call 2 MiB"
    assert [measure.peers for measure in chosen("oneway", MODES, (SOCKETS, FLOOR), quick=True)] == [(SOCKETS,)]
    assert chosen("metadata", (DEFAULT,), ALL, quick=False) == []
    assert len(chosen("", MODES, (*ALL, FLOOR), quick=False)) == len(MEASURES)
    assert {measure.name for measure in MEASURES} - {
        measure.name for measure in chosen("", MODES, (*ALL, FLOOR), quick=True)
    } == {"broadcast 1000", "nonmatching 1000"}


def test_figures_are_read_as_they_were_written(figures: Figures, tmp_path: Path) -> None:
    add(figures, PINNED, "oneway", KDBUSFS, 4.0, 6.0)
    figures.write(tmp_path / "new/bench.json")
    again = Figures.read(tmp_path / "new/bench.json")
    assert again.about == figures.about
    assert again.get(PINNED, "oneway", KDBUSFS) == 5.0
    assert again.get(PINNED, "oneway", BROKER) is None
    assert report(again) == report(figures)


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_section(page, ["", "new"]) == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no line"):
        replace_section("before", [])
