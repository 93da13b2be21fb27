"""What control groups leave to the daemon, read from trees that look like theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdbusfs import surroundings
from kdbusfs.surroundings import memory_total

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
MACHINE = PAGE * os.sysconf("SC_PHYS_PAGES")
OWN = 16 * MIB


def expected(limit: int) -> int:
    return (limit - OWN) * 3 // 4


class Tree:
    """A directory that looks like /proc, and one like a hierarchy of control groups."""

    def __init__(self, path: Path) -> None:
        self.proc = path / "proc"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/statm").write_text(f"99999 {OWN // PAGE} 1 1 0 1 0\n")
        (self.proc / "self/cgroup").write_text("")
        self.mounts = ""
        self.groups = path / "groups of it"
        self.groups.mkdir()

    def belongs(self, *lines: str) -> None:
        (self.proc / "self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def mounted(self, kind: str, root: str = "/", options: str = "rw") -> None:
        point = str(self.groups).replace(" ", "\\040")
        self.mounts += f"31 23 0:27 {root} {point} rw,nosuid shared:9 - {kind} cgroup {options}\n"
        (self.proc / "self/mountinfo").write_text(self.mounts)

    def limit(self, path: str, name: str, value: object) -> None:
        directory = self.groups / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{value}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_control_groups_it_is_the_machines_memory(tree: Tree) -> None:
    assert memory_total(tree.proc) == expected(MACHINE)


def test_the_limit_of_the_own_group_counts(tree: Tree) -> None:
    tree.belongs("0::/system.slice/kdbusfs.service")
    tree.mounted("cgroup2")
    tree.limit("system.slice/kdbusfs.service", "memory.max", 120 * MIB)
    tree.limit("system.slice", "memory.max", "max")
    assert memory_total(tree.proc) == expected(120 * MIB)


def test_so_do_those_above_it(tree: Tree) -> None:
    tree.belongs("0::/a/b")
    tree.mounted("cgroup2")
    tree.limit("a/b", "memory.max", 300 * MIB)
    tree.limit("a", "memory.max", 200 * MIB)
    tree.limit("other", "memory.max", 20 * MIB)
    assert memory_total(tree.proc) == expected(200 * MIB)


def test_beyond_memory_high_the_daemon_would_be_slowed_down(tree: Tree) -> None:
    tree.belongs("0::/a")
    tree.mounted("cgroup2")
    tree.limit("a", "memory.max", "max")
    tree.limit("a", "memory.high", 100 * MIB)
    assert memory_total(tree.proc) == expected(100 * MIB)


def test_version_1(tree: Tree) -> None:
    tree.belongs("8:pids:/p", "4:cpu,memory:/m/n", "0::/")
    tree.mounted("cgroup", options="rw,memory,cpu")
    tree.mounted("cgroup2", root="/elsewhere")
    tree.limit("m/n", "memory.limit_in_bytes", 9223372036854771712)
    tree.limit("m", "memory.limit_in_bytes", 64 * MIB)
    tree.limit("p", "memory.limit_in_bytes", 1)
    assert memory_total(tree.proc) == expected(64 * MIB)


def test_in_a_container_the_mount_begins_at_its_group(tree: Tree) -> None:
    tree.belongs("0::/machine/one/init")
    tree.mounted("cgroup2", root="/machine/one")
    tree.limit("init", "memory.max", "max")
    tree.limit(".", "memory.max", 256 * MIB)
    assert memory_total(tree.proc) == expected(256 * MIB)


def test_a_group_outside_of_the_mount_is_not_looked_for_below_it(tree: Tree) -> None:
    tree.belongs("0::/../other")
    tree.mounted("cgroup2")
    tree.limit(".", "memory.max", 256 * MIB)
    assert memory_total(tree.proc) == expected(256 * MIB)


def test_something_is_left_where_the_daemon_is_almost_too_big_already(tree: Tree) -> None:
    tree.belongs("0::/a")
    tree.mounted("cgroup2")
    tree.limit("a", "memory.max", OWN)
    assert memory_total(tree.proc) == OWN // 8 * 3 // 4


def test_the_score_is_only_lowered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "oom_score_adj"
    monkeypatch.setattr(surroundings, "OOM_SCORE_FILE", file)
    for before, after in (("0", "-900"), ("500", "-900"), ("-1000", "-1000")):
        file.write_text(f"{before}\n")
        surroundings.protect_from_oom()
        assert file.read_text().strip() == after
    file.unlink()
    surroundings.protect_from_oom()
