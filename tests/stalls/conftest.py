"""Prints the table at the end, and refuses figures of a core that is not compiled."""

from __future__ import annotations

import pytest

from . import measure


@pytest.fixture(scope="session", autouse=True)
def compiled_core() -> None:
    assert measure.is_compiled(), "the core is not compiled: run make venv first"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if measure.found:
        terminalreporter.write_line(measure.write_table())
