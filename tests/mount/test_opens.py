"""Many processes open one endpoint at the same moment: each gets its own file (FS-33)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import DomainMount

pytestmark = pytest.mark.mount

OPENERS = 12
ROUNDS = 300
SCRIPT = """
import os, sys
from kdbusfs.client import Connection
path = sys.argv[1]
for round in range(int(sys.argv[2])):
    os.close(os.open(path, os.O_RDWR))
    if round % 10 == 0:
        Connection(path, pool_size=1 << 16).close()
"""


def test_fs_33_all_who_open_an_endpoint_at_once_succeed(domain_mount: DomainMount) -> None:
    """FS-33: if an open meets another on its inode, the kernel retries it once; the retry must succeed."""
    make = (
        "import sys; from kdbusfs.client import make_bus\n"
        "with make_bus(sys.argv[1], 'opens') as bus: print(bus.path, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", make, str(domain_mount.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    openers: list[subprocess.Popen[str]] = []
    try:
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        for _ in range(OPENERS):
            command = [sys.executable, "-c", SCRIPT, path, str(ROUNDS)]
            openers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        for opener in openers:
            _, errors = opener.communicate(timeout=120)
            assert (opener.returncode, errors) == (0, "")
    finally:
        for process in openers:
            if process.poll() is None:
                process.kill()
                process.wait(120)
        owner.communicate(timeout=120)
