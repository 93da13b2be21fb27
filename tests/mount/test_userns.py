"""A domain that an ordinary user mounts in his own user namespace; clients read copies of pools there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support import userns

pytestmark = pytest.mark.mount

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
SCENES = str(Path(userns.__file__).with_name("userns_scenes.py"))
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ESHUTDOWN)


def run(mode: str, *rest: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside; its processes end with its mount namespace."""
    return subprocess.run(
        userns.command(mode, *rest), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False
    )


@pytest.fixture(scope="module", autouse=True)
def user_namespaces() -> None:
    """Skip if users may not make user namespaces."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("giving an ordinary user a /dev/fuse takes root and /dev/fuse")
    if run("single", "true").returncode != 0:
        pytest.skip("ordinary users may not make user namespaces here")


def play(scene: str, mode: str = "single") -> dict[str, Any]:
    """The result of a scene of userns_scenes.py, whose daemon must have ended cleanly and without output."""
    done = run(mode, sys.executable, SCENES, scene)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (result.pop("exit"), done.stderr) == (-9 if scene == "killed" else 0, "")
    return result


def test_nodes_belong_to_the_root_of_the_namespace() -> None:
    """FS-3, FS-4, FS-5, FS-6."""
    assert play("attributes") == {".": [0, 0, "0o40555"], "control": [0, 0, "0o100666"], "0-x": [0, 0, "0o40500"]}


def test_namespace_without_root_has_nodes_of_its_mounter() -> None:
    """FS-4: `control` can be opened for writing even if id 0 is not mapped."""
    result = play("unmapped", "same")
    assert result == {"own": userns.USER, ".": userns.USER, "control": userns.USER, f"{userns.USER}-x": userns.USER}


@pytest.mark.parametrize("mode", ["single", "range"])
def test_all_that_pools_hold_arrives(mode: str) -> None:
    """FS-3: messages of all sizes, memfds, descriptors, calls, lists, infos and signals; a map cannot be writable."""
    expected = {"creds": [0] * 8, "size": 16 << 20, "writable": errno.EACCES, "whole": True}
    assert play("exchange", mode) == expected


def test_map_keeps_its_connection() -> None:
    """CLOSE-1 without passthrough: the connection ends with the last close and the last munmap, or with BYEBYE."""
    assert play("mapped") == {"kept": 1, "left": 0, "after BYEBYE": 0, "readable": True}


def test_dropped_copies_are_brought_again() -> None:
    """A client that drops and reads pages while they are stored sees no stale data, and delays no other."""
    result = play("eviction")
    assert result["messages"] >= 20 and result["slowest"] < 60


def test_client_that_cannot_be_stopped_sees_its_pool() -> None:
    """A traced client keeps the file that it opened, and gets no descriptors (RECV-14)."""
    assert play("traced") == {"out": [f"to myself {1 << 20}", "1 -1", ""], "error": ""}


def test_ids_are_those_of_the_namespace() -> None:
    """BUS-5, PRIV-1, NS-2, NS-3: with the mounter's namespace instead of the initial one."""
    assert play("users", "range") == {
        "wrong prefix": errno.EINVAL,
        "owner": [7, 8],
        "privileged": [0, errno.EPERM, 0],
        "below": [errno.EPERM, errno.EINVAL, 0],
        "root below": errno.EPERM,
        "creds": [9] * 8,
    }


@pytest.mark.parametrize("scene", ["killed", "stopped"])
def test_daemon_ends_under_load(scene: str) -> None:
    """A store that waits for the reader does not keep the process from ending."""
    assert play(scene)["errno"] in GONE


def test_clients_that_use_everything_are_killed() -> None:
    """CLOSE-1, SYNC-5: as with passthrough, they leave no resource, and others do not notice"""
    assert play("together", "range") == {"left": 0}


def test_examples_run() -> None:
    """Unmodified programs in C."""
    subprocess.run(["make", "-s", "-C", str(EXAMPLES)], check=True, timeout=120)
    assert play("demo") == {"status": 0, "last": "All of it was seen.", "errors": ""}


def test_a_user_who_may_not_mount_gets_an_error() -> None:
    """The error says what is required, without a traceback."""
    done = run("none", sys.executable, "-m", "kdbusfs", "test", "/mnt", "-f")
    assert done.returncode == 1
    assert done.stderr.startswith("kdbusfs: mounting takes CAP_SYS_ADMIN") and done.stderr.count("\n") == 1
