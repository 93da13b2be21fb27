"""The unmodified self-tests of kdbus on a mount, if the tool that runs them exists."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

_BESIDE = Path(__file__).parents[2].parent / "shared/tools/selftests"
TOOL = Path(os.environ.get("KDBUSFS_SELFTESTS", _BESIDE))
PATIENCE = 300.0  # seconds for one test: the longest takes 30 on an idle machine
BENCHMARK = 8.0  # seconds after which a benchmark, which never ends by itself, is killed
BUILD_PATIENCE = 300.0

# One test prints random bytes that it has received, and the tool decodes output as text.  So the tool runs in an
# interpreter with a lenient encoding.
_LENIENT = """
import runpy, subprocess, sys

class Lenient(subprocess.Popen):
    def __init__(self, *arguments, **keywords):
        if keywords.get("text"):
            keywords.setdefault("errors", "replace")
        super().__init__(*arguments, **keywords)

subprocess.Popen = Lenient
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

TESTS = [
    "bus-make", "hello", "byebye", "chat", "daemon", "fd-passing", "endpoint", "monitor", "name-basics",
    "name-conflict", "name-queue", "message-basic", "message-prio", "message-quota", "timeout", "sync-byebye",
    "sync-reply", "message-free", "connection-info", "connection-update", "writable-pool", "policy",
    "policy-priv", "policy-ns", "metadata-ns", "match-id-add", "match-id-remove", "match-replace",
    "match-name-add", "match-name-remove", "match-name-change", "match-bloom", "activator", "benchmark",
    "benchmark-nomemfds", "race-byebye", "race-byebye-match", "attach-flags",
]

Run = Callable[[str, float], str]


@pytest.fixture(scope="module")
def run(private_mounts: None) -> Iterator[Run]:
    """Run one self-test in a domain that all of them share; returns the tool's last lines."""
    if not TOOL.exists():
        pytest.skip(f"the tool that runs the self-tests is not there: {TOOL}")
    # Not below pytest's directory, which other users may not enter: some tests become another user.
    path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
    path.chmod(0o755)
    domain = DomainMount(path)
    try:
        domain.wait_until_ready()

        def one(test: str, timeout: float) -> str:
            arguments = [str(path), "--timeout", str(timeout), "--verbose", test]
            done = subprocess.run(
                [sys.executable, "-c", _LENIENT, str(TOOL), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=BUILD_PATIENCE + timeout,
            )
            return done.stdout + done.stderr

        yield one
        assert domain.stop() == 0
        assert domain.log() == ""
    finally:
        domain.clean_up()
        path.rmdir()


@pytest.mark.parametrize("test", TESTS)
def test_selftest(run: Run, test: str) -> None:
    # A benchmark must have printed something before its end, which takes longer on a busy machine.
    for timeout in (BENCHMARK, 3 * BENCHMARK) if test.startswith("benchmark") else (PATIENCE,):
        output = run(test, timeout)
        if output.splitlines()[-1] == "1 passed, 0 failed, 0 skipped":
            return
    pytest.fail(output)
