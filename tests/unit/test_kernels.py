"""The parts of `make test-kernels` that need no machine: which package is meant, what output says, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels import results
from tests.kernels.packages import MissingError, choose, parse_wanted
from tests.kernels.results import Outcome, Result

NAMES = [
    "linux-image-5.10.0-9-amd64",
    "linux-image-5.10.0-46-amd64",
    "linux-image-5.10.0-47-arm64",
    "linux-image-6.1-amd64",
    "linux-image-6.1.0-57-amd64",
    "linux-image-6.1.0-57-amd64-dbg",
    "linux-image-6.1.0-58-rt-amd64",
    "linux-image-6.12.9+deb13-amd64",
    "linux-image-6.12.118+deb13-amd64",
    "linux-image-6.12.118+deb13.1-amd64",
    "linux-image-6.12.118+deb13-cloud-amd64",
    "linux-image-amd64",
]


@pytest.mark.parametrize(
    ("version", "architecture", "release"),
    [
        ("5.10", "amd64", "5.10.0-46-amd64"),
        ("5.10", "arm64", "5.10.0-47-arm64"),
        ("6.1", "amd64", "6.1.0-57-amd64"),
        ("6.12", "amd64", "6.12.118+deb13.1-amd64"),
        ("6.12.9", "amd64", "6.12.9+deb13-amd64"),
        ("newest", "amd64", "6.12.118+deb13.1-amd64"),
    ],
)
def test_a_version_means_its_newest_plain_package(version: str, architecture: str, release: str) -> None:
    assert choose(version, architecture, NAMES) == release


def test_a_version_without_a_package_is_named() -> None:
    with pytest.raises(MissingError, match=r"Linux 6\.2 for amd64"):
        choose("6.2", "amd64", NAMES)


@pytest.mark.parametrize("word", ["", "6", "6.1-mips", "latest", "6.1.x"])
def test_words_that_are_no_kernel_are_refused(word: str) -> None:
    with pytest.raises(MissingError, match="not a kernel"):
        parse_wanted(word)


def test_words_have_an_architecture() -> None:
    assert parse_wanted("6.1") == ("6.1", "amd64")
    assert parse_wanted("newest-arm64") == ("newest", "arm64")


SELFTESTS = """\
bus-make             ok
sync-reply           FAILED   Testing sync-reply (synchronous replies) .. ERROR
    Assertion 'r == 0' failed at test-sync.c:93, test_wait()
policy-ns            skip   Testing policy-ns: SKIPPED
chat                 HUNG
benchmark-nomemfds   ok
"""


def test_self_tests_are_counted_with_their_reasons() -> None:
    outcome = results.parse_selftests(SELFTESTS)
    assert outcome.passed == ["bus-make", "benchmark-nomemfds"]
    assert list(outcome.skipped) == ["policy-ns"]
    assert outcome.failed == {
        "sync-reply": "FAILED: Testing sync-reply (synchronous replies) .. ERROR",
        "chat": "HUNG",
    }
    assert outcome.total == 5


def test_what_passes_with_longer_waits_is_said() -> None:
    output = f"{SELFTESTS}{results.PATIENT}\nsync-reply           ok\nchat                 HUNG   waits\n1 passed\n"
    outcome = results.parse_selftests(output)
    results.note_patience(outcome, output, 20)
    longer = "with its waits 20 times as long"
    assert outcome.passed == ["bus-make", "benchmark-nomemfds"]
    assert outcome.failed == {
        "sync-reply": f"FAILED: Testing sync-reply (synchronous replies) .. ERROR; passes {longer}",
        "chat": f"HUNG; {longer}: HUNG: waits",
    }


PYTEST = """\
tests/operations/test_a.py::test_one PASSED                              [ 10%]
tests/operations/test_a.py::test_two[a b] FAILED                         [ 20%]
tests/operations/test_a.py::test_three SKIPPED (no passthrough)          [ 30%]
tests/mount/test_b.py::test_four PASSED                                  [ 40%]
tests/mount/test_b.py::test_four ERROR                                   [ 40%]
"""
PYTEST_END = """\
=========================== short test summary info ============================
FAILED tests/operations/test_a.py::test_two[a b] - AssertionError: waited 60 s - in vain
ERROR tests/mount/test_b.py::test_four - assert (3, '') == (0, '')
======= 1 failed, 2 passed, 1 skipped, 1 error in 100.00s (0:01:40) ========
"""


def test_tests_are_counted_with_their_reasons() -> None:
    outcome = results.parse_pytest(PYTEST + PYTEST_END)
    assert outcome.passed == ["tests/operations/test_a.py::test_one"]
    assert outcome.skipped == {"tests/operations/test_a.py::test_three": "no passthrough"}
    assert outcome.failed == {
        "tests/operations/test_a.py::test_two[a b]": "AssertionError: waited 60 s - in vain",
        "tests/mount/test_b.py::test_four": "assert (3, '') == (0, '')",
    }
    assert outcome.complete


def test_tests_that_were_cut_short_say_so() -> None:
    outcome = results.parse_pytest(PYTEST)
    assert not outcome.complete
    assert results.table([Result("6.1", "6.1.0", "x86_64", "tcg", trials={"mount": outcome})]).count("cut short") == 1


def test_what_passes_when_run_again_has_passed() -> None:
    first = Outcome(["a"], {"b": "slow", "c": "first reason", "d": "not run again"}, complete=True, seconds=5.0)
    merged = results.merge_second_run(first, Outcome(["b"], {"c": "second reason"}, seconds=1.0))
    assert merged.passed == ["a", "b"]
    assert merged.failed == {"c": "second reason", "d": "not run again"}
    assert (merged.complete, merged.seconds) == (True, 6.0)


def test_hellos_are_counted() -> None:
    outcome = results.parse_hellos("hello 1: read-only\nhello 2: not swapped: writable\nhellos: done\n")
    assert (outcome.passed, outcome.failed) == (["hello 1"], {"hello 2": "not swapped: writable"})
    assert outcome.complete


def test_calls_are_read_from_their_lines() -> None:
    assert results.parse_calls("call 8 B: 120.5\ncall 256 KiB: 1000\n") == {"call 8 B": 120.5, "call 256 KiB": 1000.0}
    assert results.parse_calls("Traceback: call me\n") == {}


def test_the_table_has_a_row_for_each_kernel() -> None:
    old = Result("6.1", "6.1.0-57-amd64", "x86_64", "tcg", 20.4, microseconds={"call 8 B": 3000.0})
    old.trials = {
        "demo": Outcome(["demo"], complete=True),
        "selftests": Outcome(["a", "b"], {"c": "HUNG"}, {"d": "no namespaces"}, complete=True),
    }
    new = Result("6.18", "6.18.15", "x86_64", "tcg", 20.0, microseconds={"call 8 B": 2000.0})
    lines = results.table([old, new], baseline="6.18").splitlines()
    assert lines[2] == (
        "| 6.1.0-57-amd64 (x86_64) | 20 | 1 of 1 | 2 of 3, 1 skipped | - | - | 1.50 | - |"
    )
    assert lines[3].startswith("| 6.18.15 (x86_64) | 20 | - |")
    assert "- 6.1.0-57-amd64, selftests: `c`: HUNG" in lines


def test_results_are_saved_and_loaded(tmp_path: Path) -> None:
    result = Result("6.1", "6.1.0-57-amd64", "x86_64", "tcg", trials={"demo": Outcome(["demo"], complete=True)})
    result.save(tmp_path)
    assert results.load(tmp_path / "6.1.0-57-amd64.json") == result


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "kernels.md"
    document.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.write_document([], "", document)
    text = document.read_text()
    assert text.startswith(f"before\n{results.BEGIN}\n") and text.endswith(f"{results.END}\nafter\n")
    assert "old" not in text and "| kernel |" in text
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        results.write_document([], "", document)
