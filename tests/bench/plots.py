"""`make bench-docs`: the plots and the tables of docs/performance.md, from the last full run of `make bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from .figures import OUTPUT, ROOT, Figures
from .measures import (
    ALL,
    BROKER,
    BUSES,
    BYSTANDERS,
    DAEMON,
    DEFAULT,
    GROWTH,
    KDBUSFS,
    MEMFDS,
    METADATA,
    MODES,
    PINNED,
    RECEIVERS,
    SOCKETS,
    VECTORS,
    size_name,
)
from .report import TARGETS, replace_section, report

PAGE = ROOT / "docs/performance.md"
PLOTS = ROOT / "docs/performance"

_COLOURS = {KDBUSFS: "#c1272d", BROKER: "#1f5fa8", DAEMON: "#3a8f4d", SOCKETS: "#777777"}
_TITLES = {PINNED: "all on one cpu", DEFAULT: "default scheduling"}
_RESOLUTION = 100  # dots per inch

Axes = Any
"""matplotlib has types, but not everywhere where this is checked."""


def _lines(
    axes: Axes, figures: Figures, mode: str, measures: dict[int, str], peers: Iterable[str], part: str = "time"
) -> None:
    """A line for each peer through the medians, shaded up to the 90 % points."""
    for peer in peers:
        points = [
            (x, median, p90)
            for x, measure in measures.items()
            if (median := figures.get(mode, measure, peer, part)) is not None
            and (p90 := figures.get(mode, measure, peer, part, "p90")) is not None
        ]
        if points:
            xs, medians, p90s = zip(*points, strict=True)
            axes.plot(xs, medians, marker="o", markersize=3, color=_COLOURS[peer], label=peer)
            axes.fill_between(xs, medians, p90s, color=_COLOURS[peer], alpha=0.15, linewidth=0)


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, which="major", alpha=0.3)


def _sizes(axes: Axes, sizes: Iterable[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(sizes), [size_name(size) for size in sizes], rotation=30, fontsize=8)


def calls(figures: Figures) -> Axes:
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, mode in zip(panels, MODES, strict=True):
        _lines(axes, figures, mode, {size: f"call {size_name(size)}" for size in VECTORS}, ALL)
        _sizes(axes, VECTORS)
        _finish(axes, f"call and reply, {_TITLES[mode]}", "payload by vector", "us")
    panels[0].legend(fontsize=8)
    return figure


def memfds(figures: Figures) -> Axes:
    figure, axes = plt.subplots(figsize=(4.8, 3.6))
    _lines(axes, figures, PINNED, {size: f"memfd {size_name(size)}" for size in MEMFDS}, BUSES)
    _sizes(axes, MEMFDS)
    _finish(axes, "call with a memfd, all on one cpu", "payload", "us")
    axes.legend(fontsize=8)
    return figure


def messages(figures: Figures) -> Axes:
    figure, axes = plt.subplots(figsize=(6, 3.6))
    groups = (("one sender", "oneway"), ("8 senders, one receiver", "senders"))
    for index, peer in enumerate(BUSES):
        times = [figures.get(PINNED, measure, peer) for _, measure in groups]
        rates = [1e6 / time if time else 0.0 for time in times]
        bars = axes.bar([x + index * 0.27 for x in range(len(groups))], rates, 0.25, color=_COLOURS[peer], label=peer)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], fontsize=7)
    axes.set_xticks([x + 0.27 for x in range(len(groups))], [name for name, _ in groups])
    _finish(axes, "messages of 256 B a second, all on one cpu", "", "messages / s")
    axes.legend(fontsize=8)
    return figure


def broadcasts(figures: Figures) -> Axes:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    _lines(left, figures, PINNED, {n: f"broadcast {n}" for n in RECEIVERS}, BUSES)
    _finish(left, "a delivery of a broadcast", "receivers that match", "us")
    _lines(right, figures, PINNED, {n: f"nonmatching {n}" for n in BYSTANDERS}, BUSES)
    _finish(right, "a broadcast to one", "others that do not match", "us")
    for axes, counts in ((left, RECEIVERS), (right, BYSTANDERS)):
        axes.set_xscale("log")
        axes.set_xticks(list(counts), [f"{n:,}" for n in counts])
        axes.set_ylim(bottom=0)
    left.legend(fontsize=8)
    return figure


def growth(figures: Figures) -> Axes:
    figure, panels = plt.subplots(1, len(GROWTH), figsize=(11, 3.2), sharey=True)
    for axes, (kind, levels) in zip(panels, GROWTH.items(), strict=True):
        for index, peer in enumerate(BUSES):
            times = [figures.get(PINNED, f"growth {kind}", peer, str(level)) or 0.0 for level in levels]
            axes.bar([x + index * 0.27 for x in range(len(levels))], times, 0.25, color=_COLOURS[peer], label=peer)
        axes.set_xticks([x + 0.27 for x in range(len(levels))], [f"{level:,}" for level in levels])
        _finish(axes, "call 8 B", "queued messages" if kind == "queued" else kind, "us" if axes is panels[0] else "")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def metadata(figures: Figures) -> Axes:
    figure, axes = plt.subplots(figsize=(4.8, 2.6))
    names = list(METADATA)
    times = [figures.get(PINNED, f"metadata {name}", KDBUSFS) or 0.0 for name in names]
    bars = axes.barh(names[::-1], times[::-1], color=_COLOURS[KDBUSFS])
    axes.bar_label(bars, [f"{time:.0f}" for time in times[::-1]], fontsize=8)
    _finish(axes, "call 8 B, metadata with each message", "us", "")
    return figure


def aims(figures: Figures) -> Axes:
    """How far each ratio is from what is aimed at."""
    found = [(target, ratio) for target in TARGETS if (ratio := target.measured(figures)) is not None][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(found) + 1))
    shares = [ratio / target.limit for target, ratio in found]
    colours = ["#3a8f4d" if share <= 1 else "#c1272d" for share in shares]
    bars = axes.barh([target.what for target, _ in found], shares, color=colours)
    axes.bar_label(bars, [f"{ratio:.2f} of {target.limit:g}" for target, ratio in found], fontsize=8, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(right=max(shares, default=1) * 1.25)
    _finish(axes, "", "measured ratio, as a share of the one aimed at", "")
    return figure


DRAWINGS: tuple[tuple[Callable[[Figures], Axes], str], ...] = (
    (aims, "Ratios of medians, as a share of what is aimed at"),
    (calls, "Time of a call and its reply over the size of the payload"),
    (memfds, "Time of a call with a memfd over its size"),
    (messages, "Messages without reply a second"),
    (broadcasts, "Broadcasts: a delivery, and what those cost who do not match"),
    (growth, "Time of a call beside many connections, names, matches and queued messages"),
    (metadata, "Time of a call with metadata"),
)


def draw(figures: Figures, directory: Path) -> list[str]:
    """Write a PNG for each drawing; give the lines that show them."""
    directory.mkdir(parents=True, exist_ok=True)
    shown = []
    for drawing, caption in DRAWINGS:
        figure = drawing(figures)
        path = directory / f"{drawing.__name__}.png"
        figure.tight_layout()
        # Without the date and the version, so that the same figures make the same file.
        figure.savefig(path, dpi=_RESOLUTION, metadata={"Software": None})
        plt.close(figure)
        shown += ["", f"![{caption}]({directory.name}/{path.name})"]
    return shown


def main() -> int:
    if not OUTPUT.exists():
        print("there is no run yet: make bench", file=sys.stderr)
        return 1
    figures = Figures.read(OUTPUT)
    if figures.about["failed"]:
        print("something failed in the last run: make bench", file=sys.stderr)
        return 1
    shown = draw(figures, PLOTS)
    lines = ["", *shown[1:], "", "```text", report(figures), "```", ""]
    PAGE.write_text(replace_section(PAGE.read_text(), lines))
    print(f"{PAGE.relative_to(ROOT)} and {PLOTS.relative_to(ROOT)}/ show the run of {figures.about['date']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
