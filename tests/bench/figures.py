"""The figures of a run, as build/bench.json has them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build/bench.json"
PARTIAL_OUTPUT = ROOT / "build/bench-partial.json"
"""Of a full run, and of any other."""


class Figures:
    """mode -> measure -> peer -> part -> kind -> one value for each round.

    `about` says where, with what and how it was measured.  What is asked for is the median over the rounds; durations
    are in us, memory in bytes.
    """

    def __init__(self, about: dict[str, Any], values: dict[str, Any] | None = None) -> None:
        self.about = about
        self._values: dict[str, Any] = values if values is not None else {}

    def add(self, mode: str, measure: str, peer: str, figures: dict[str, dict[str, float]]) -> None:
        """One round of one measure."""
        parts = self._values.setdefault(mode, {}).setdefault(measure, {}).setdefault(peer, {})
        for part, kinds in figures.items():
            for kind, value in kinds.items():
                parts.setdefault(part, {}).setdefault(kind, []).append(value)

    def get(self, mode: str, measure: str, peer: str, part: str = "time", kind: str = "median") -> float | None:
        """None where that was not measured."""
        found: Any = self._values
        for key in (mode, measure, peer, part, kind):
            found = found.get(key)
            if found is None:
                return None
        return float(statistics.median(found))

    def ratio(self, mode: str, over: tuple[str, ...], under: tuple[str, ...]) -> float | None:
        """Of two that are named by the other arguments of `get`."""
        above, below = self.get(mode, *over), self.get(mode, *under)
        return above / below if above is not None and below else None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"about": self.about, "figures": self._values}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Figures:
        data = json.loads(path.read_text())
        return cls(data["about"], data["figures"])
