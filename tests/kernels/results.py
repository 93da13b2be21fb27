"""What the trials found: read from what programs print, kept as JSON, shown as the table of docs/kernels.md."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COLUMNS = 100
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/kernels.md"
BEGIN = "<!-- the table: written by make kernels-docs -->"
END = "<!-- the end of the table -->"

PATIENT = "again, with longer waits:"
"""The line between the self-tests and what failed of them, run again."""

_SELFTEST = re.compile(r"^([a-z][a-z-]*) +(ok|skip|FAILED|HUNG)(?: +(.*))?$")
_TEST = re.compile(r"^(tests/\S+?\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b(?: \((.*?)\))?")


@dataclass
class Outcome:
    """What came of one trial: names of what passed, and reasons by name for the rest."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    complete: bool = False  # whether the trial came to its end
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """How many were tried, those that were skipped included."""
        return len(self.passed) + len(self.failed) + len(self.skipped)


@dataclass
class Result:
    """All that was found with one kernel."""

    wanted: str  # the word of KERNELS
    release: str  # as uname -r prints it
    machine: str  # as uname -m prints it
    accelerator: str
    slowness: float = 1.0  # how many times as long the machine takes for the same work as the host
    commit: str = ""
    trials: dict[str, Outcome] = field(default_factory=dict)
    microseconds: dict[str, float] = field(default_factory=dict)  # of a call, by its name

    def save(self, directory: Path) -> None:
        """Write it below `directory`, by the kernel's release."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.release}.json").write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def load(path: Path) -> Result:
    """What `save` has written."""
    found: dict[str, Any] = json.loads(path.read_text())
    trials = {name: Outcome(**outcome) for name, outcome in found.pop("trials").items()}
    return Result(**found, trials=trials)


def parse_selftests(output: str) -> Outcome:
    """From what the tool that runs kdbus' self-tests prints, up to PATIENT; `complete` is not known from that."""
    outcome = Outcome()
    for line in output.splitlines():
        if line == PATIENT:
            break
        match = _SELFTEST.match(line)
        if match is None:
            continue
        name, verdict, reason = match[1], match[2], (match[3] or "").strip()
        if verdict == "ok":
            outcome.passed.append(name)
        elif verdict == "skip":
            outcome.skipped[name] = reason
        else:
            outcome.failed[name] = f"{verdict}: {reason}" if reason else verdict
    return outcome


def note_patience(outcome: Outcome, output: str, factor: int) -> None:
    """Add to the reasons of self-tests what came of them with waits that are `factor` times as long."""
    again = parse_selftests(output.partition(f"\n{PATIENT}\n")[2])
    for name in outcome.failed:
        if name in again.passed:
            outcome.failed[name] += f"; passes with its waits {factor} times as long"
        elif name in again.failed:
            outcome.failed[name] += f"; with its waits {factor} times as long: {again.failed[name]}"


def parse_pytest(output: str) -> Outcome:
    """From what `pytest -v -rfE` prints; a test that passed and failed to clean up counts as failed."""
    verdicts: dict[str, tuple[str, str]] = {}
    reasons: dict[str, str] = {}
    outcome = Outcome()
    for line in output.splitlines():
        match = _TEST.match(line)
        if match is not None:
            name, verdict, reason = match[1], match[2], match[3] or ""
            if verdict == "ERROR" or name not in verdicts:
                verdicts[name] = (verdict, reason)
            continue
        summary = re.match(r"^(?:FAILED|ERROR) (tests/\S+?\.py::.+?) - (.*)$", line)
        if summary is not None:
            reasons[summary[1]] = summary[2]
        if re.match(r"^=+ .*\b(passed|failed|skipped|error|errors|deselected)\b.* in [\d.]+s", line):
            outcome.complete = True
    for name, (verdict, reason) in verdicts.items():
        if verdict in ("PASSED", "XFAIL"):
            outcome.passed.append(name)
        elif verdict == "SKIPPED":
            outcome.skipped[name] = reason
        else:
            outcome.failed[name] = reasons.get(name, verdict)
    return outcome


def parse_hellos(output: str) -> Outcome:
    """From what tests.kernels.hellos prints: a line for each HELLO."""
    outcome = Outcome()
    for line in output.splitlines():
        match = re.match(r"^(hello \d+): (.*)$", line)
        if match is not None and match[2] == "read-only":
            outcome.passed.append(match[1])
        elif match is not None:
            outcome.failed[match[1]] = match[2]
        outcome.complete = outcome.complete or line == "hellos: done"
    return outcome


def parse_calls(output: str) -> dict[str, float]:
    """Microseconds by name, from what tests.kernels.calls prints."""
    return {match[1]: float(match[2]) for match in re.finditer(r"^(call .*): ([\d.]+)$", output, re.MULTILINE)}


def merge_second_run(first: Outcome, second: Outcome) -> Outcome:
    """What failed at first and passed when it was run again by itself has passed."""
    again = [name for name in first.failed if name in second.passed]
    failed = {name: reason for name, reason in first.failed.items() if name not in again}
    failed.update({name: reason for name, reason in second.failed.items() if name in failed})
    return dataclasses.replace(
        first, passed=[*first.passed, *again], failed=failed, seconds=first.seconds + second.seconds
    )


def table(results: list[Result], baseline: str = "") -> str:
    """Markdown: a row for each kernel, then the names of what failed.

    Calls are given as ratios to those of the kernel whose word is `baseline`, where both were measured.
    """
    base = next((each.microseconds for each in results if each.wanted == baseline), {})
    rows = ["| kernel | slower by | demo | self-tests | operations | mount | 8 B call | 256 KiB call |", "|---|" * 8]
    rows[1] = "|" + "---|" * 8
    for result in results:
        cells = [f"{result.release} ({result.machine})", f"{result.slowness:.0f}"]
        cells += [_cell(result.trials.get(name)) for name in ("demo", "selftests", "operations", "mount")]
        cells += [_ratio(result.microseconds, base, name) for name in ("call 8 B", "call 256 KiB")]
        rows.append(f"| {' | '.join(cells)} |")
    failures = []
    for result in results:
        for trial, outcome in result.trials.items():
            for name, reason in outcome.failed.items():
                failures += textwrap.wrap(
                    f"- {result.release}, {trial}: `{name}`: {_short(reason)}",
                    _COLUMNS,
                    subsequent_indent="  ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
    return "\n".join([*rows, "", "What failed:" if failures else "Nothing failed.", "", *failures]).rstrip() + "\n"


def write_document(results: list[Result], baseline: str, document: Path = DOCUMENT) -> None:
    """Put the table into docs/kernels.md, between its marks."""
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} has lost the marks of its table")
    document.write_text(f"{before}{BEGIN}\n\n{table(results, baseline)}\n{END}{after}")


def version_key(release: str) -> tuple[int, ...]:
    """Sorts releases as uname -r prints them."""
    return tuple(int(number) for number in re.findall(r"\d+", release))


def summary(outcome: Outcome) -> str:
    """How many passed of those that could run."""
    text = f"{len(outcome.passed)} of {outcome.total - len(outcome.skipped)}"
    if outcome.skipped:
        text += f", {len(outcome.skipped)} skipped"
    return text if outcome.complete else f"{text}, cut short"


def _cell(outcome: Outcome | None) -> str:
    return "-" if outcome is None else summary(outcome)


def _ratio(measured: dict[str, float], base: dict[str, float], name: str) -> str:
    if name not in measured:
        return "-"
    if name not in base:
        return f"{measured[name]:.0f} us"
    return f"{measured[name] / base[name]:.2f}"


def _short(reason: str) -> str:
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= 160 else f"{text[:157]}..."
