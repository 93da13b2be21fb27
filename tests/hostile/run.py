"""Runs the programs beside it, each against a new domain: `python -m tests.hostile.run [NAME ...]`, for `make hostile`.

As root, in a mount namespace of its own (`unshare -m`).  A Python program gets the mount and HOSTILE_ARGUMENTS, a C
program an endpoint of a bus that is open to all.  A line for each: PASS or FAIL.  A program passes if it says so, ends
in time, leaves the figures of the mount as they were, and the daemon then ends with exit code 0 without a word.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdbusfs.abi.v3 import constants as c
from kdbusfs.client import make_bus
from tests.conftest import DomainMount
from tests.support.gauges import GAUGES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = float(os.environ.get("HOSTILE_SECONDS", "300"))
ARGUMENTS = os.environ.get("HOSTILE_ARGUMENTS", "64").split()
SETTLE = 20.0  # seconds until what clients have left is gone


def command(program: Path, domain: DomainMount, scratch: Path) -> list[str]:
    if program.suffix == ".py":
        return [sys.executable, "-m", f"tests.hostile.{program.stem}", str(domain.path), *ARGUMENTS]
    binary = scratch / program.stem
    include = ROOT / "kdbusfs/include"
    subprocess.run(["cc", "-O2", "-pthread", f"-I{include}", "-o", binary, program], check=True, timeout=120)
    return [str(binary), str(domain.path / f"{os.geteuid()}-hostile" / "bus")]


def gauges(domain: DomainMount) -> dict[str, object]:
    stats = domain.stats()
    found = {name: stats[name] for name in GAUGES}
    return {name: len(value) if isinstance(value, list | dict) else value for name, value in found.items()}


def settles(domain: DomainMount, before: dict[str, object]) -> dict[str, object]:
    """What differs from `before` after a while."""
    limit = time.monotonic() + SETTLE
    while (after := gauges(domain)) != before and time.monotonic() < limit:
        time.sleep(0.1)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def fault(program: Path, domain: DomainMount, scratch: Path) -> str:
    """What was wrong with the run, or nothing."""
    domain.wait_until_ready()
    fresh = gauges(domain)
    with make_bus(domain.path, "hostile", access=c.MAKE_ACCESS_WORLD):
        try:
            ended = subprocess.run(command(program, domain, scratch), cwd=ROOT, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"not ended in {PATIENCE:g} s"
    if ended.returncode:
        return f"exit code {ended.returncode}"
    changed = settles(domain, fresh)
    if changed:
        return f"the figures before and after: {changed}"
    code = domain.stop()
    return f"the daemon ended with {code} and said: {domain.log()}" if code or domain.log() else ""


def main() -> int:
    names = sys.argv[1:]
    programs = sorted(HERE.glob("*.c")) + sorted(HERE.glob("*.py"))
    programs = [each for each in programs if each.stem not in ("__init__", "run")]
    programs = [each for each in programs if not names or each.stem in names]
    failed = not programs
    with tempfile.TemporaryDirectory(prefix="kdbusfs-") as scratch:
        for program in programs:
            path = Path(tempfile.mkdtemp(prefix="kdbusfs-"))
            path.chmod(0o755)
            domain = DomainMount(path)
            try:
                what = fault(program, domain, Path(scratch))
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                what = repr(error)
            finally:
                domain.clean_up()
                path.rmdir()
            print(f"FAIL {program.name}: {what}" if what else f"PASS {program.name}", flush=True)
            failed |= bool(what)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
