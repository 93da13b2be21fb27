"""Fixtures for the tests of the documents."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.console import Console
from tests.support.documents import ROOT

_NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "bin")
)


@dataclass(frozen=True)
class Programs:
    """Programs under test: the directories of them and of mount(8)'s helpers; whether they are a checkout's."""

    directory: Path
    helpers: Path
    is_checkout: bool


@pytest.fixture(params=["checkout", "wheel"])
def programs(request: pytest.FixtureRequest, private_mounts: None) -> Programs:
    """Each set of programs that the documents have to hold for."""
    if request.param == "wheel":
        home = request.getfixturevalue("wheel_environment")
        return Programs(home / "bin", home / "share/kdbusfs/mount-helpers", False)
    return Programs(Path(sys.executable).parent, ROOT / "mount-helpers", True)


@pytest.fixture
def workspace(programs: Programs, tmp_path: Path) -> Path:
    """Where the commands are given: a copy of the checkout, or for installed programs an empty directory."""
    directory = tmp_path / "workspace"
    if programs.is_checkout:
        shutil.copytree(ROOT, directory, ignore=_NOT_COPIED)
        (directory / ".venv").symlink_to(sys.prefix)
    else:
        directory.mkdir()
    os.chmod(tmp_path, 0o755)
    return directory


@pytest.fixture
def console(programs: Programs, workspace: Path, tmp_path: Path) -> Iterator[Console]:
    """A shell for one document; everything it has started ends with the test."""
    shell = Console(programs.directory, programs.helpers, workspace, tmp_path)
    try:
        yield shell
    finally:
        shell.close()
