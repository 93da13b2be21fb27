"""`kdbusfs --check`: its report is true, and its exit code is that of a start."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from kdbusfs.fuse.mount import mount_table
from tests.support import confine, features, userns
from tests.support.commands import KDBUSFS, done, run

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("private_mounts")]

CONFINED = (sys.executable, confine.__file__)


def checked(*start: object) -> tuple[int, dict[str, Any]]:
    """The exit code, and the parsed report."""
    ended = run(*start, *KDBUSFS, "--check", "--json")
    assert ended.stderr == "", ended
    report: dict[str, Any] = json.loads(ended.stdout)
    assert report["exit_code"] == ended.returncode and report["works"] == (ended.returncode == 0)
    return ended.returncode, report


def works(report: dict[str, Any]) -> dict[str, bool | None]:
    return {feature["name"]: feature["works"] for feature in report["features"]}


def test_what_the_machine_has() -> None:
    before = mount_table()
    code, report = checked()
    assert code == 0 and report["said"] == []
    found = works(report)
    assert found["pidfds of threads"] == features.has_thread_pidfds()
    assert found["FUSE passthrough"] == features.has_passthrough()
    assert None not in found.values()
    assert mount_table() == before


def test_the_table_says_the_same() -> None:
    ended = run(*KDBUSFS, "--check")
    assert (ended.returncode, ended.stderr) == (0, "")
    _, report = checked()
    lines = ended.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["kernel", report["kernel"]]
    for feature in report["features"]:
        (line,) = (line for line in lines if line.startswith(feature["name"] + " "))
        assert ("yes" in line.split()) == feature["works"] and (feature["without"] in line) != feature["works"]
    assert lines[-1].endswith("was mounted and used") and lines[-1].startswith("a domain")


def test_a_machine_that_refuses_all() -> None:
    code, report = checked(*CONFINED, "process_vm_readv=EPERM")
    assert code == 2 and report["said"][0].startswith("no client can be served: making a bus failed: process_vm_readv")
    assert report["security"]["seccomp"].startswith("a filter")
    table = run(*CONFINED, "process_vm_readv=EPERM", *KDBUSFS, "--check").stdout.splitlines()
    assert table[-2].split() == ["a", "domain", "no", "cannot", "be", "mounted", "here"]
    assert table[-1].strip() == report["said"][0]


def test_a_machine_that_refuses_some() -> None:
    code, report = checked(*CONFINED, "ptrace=EPERM")
    assert code == 0 and "clients get no descriptors and can write to their own pools" in report["said"][0]


def test_without_privilege() -> None:
    code, report = checked("setpriv", "--bounding-set=-sys_admin,-sys_ptrace")
    assert code == 1 and report["said"][0].startswith("mounting takes CAP_SYS_ADMIN")
    assert not report["capabilities"]["CAP_SYS_ADMIN"] and works(report)["FUSE passthrough"] is None
    assert "without CAP_SYS_PTRACE" in report["restrictions"][0]


def test_where_mount_is_refused() -> None:
    code, report = checked(*CONFINED, "mount=EACCES")
    assert code == 32 and "cannot mount at" in report["said"][0] and "Permission denied" in report["said"][0]


def test_in_a_user_namespace() -> None:
    if run(*userns.command("single", "true")).returncode != 0:
        pytest.skip("ordinary users may not make user namespaces here")
    code, report = checked(*userns.command("single"))
    assert code == 0 and report["said"] == []
    assert works(report)["FUSE passthrough"] is False and report["security"]["user namespace"].startswith("not")


def test_help() -> None:
    assert "--json" in done(*KDBUSFS, "--check", "--help")
    ended = run(*KDBUSFS, "--check", "more")
    assert ended.returncode == 1 and "unrecognized arguments: more" in ended.stderr
