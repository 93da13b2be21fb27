"""Builds and runs the C programs of tests/hostile."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0  # seconds for a compiler, or the program
_OPTIONS = ("-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-I", str(ROOT / "kdbusfs/include"))


def run(name: str, *arguments: str, uid: int = 0) -> subprocess.CompletedProcess[str]:
    """Run tests/hostile/NAME.c as user `uid` without supplementary groups; returns the result."""
    with tempfile.TemporaryDirectory(prefix="kdbusfs-") as directory:
        Path(directory).chmod(0o755)
        program = Path(directory) / name
        source = ROOT / f"tests/hostile/{name}.c"
        subprocess.run(["cc", *_OPTIONS, "-o", str(program), str(source)], check=True, timeout=PATIENCE)
        command = [str(program), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, user=uid, extra_groups=[]
        )
