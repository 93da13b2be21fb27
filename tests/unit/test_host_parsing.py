"""Texts of /proc as `kdbusfs.host` reads them."""

from __future__ import annotations

import struct
from random import Random
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbusfs.base import mountinfo
from kdbusfs.base.identity import NO_ID, Creds
from kdbusfs.host.credentials import (
    Status,
    parse_argument_area,
    parse_cgroup,
    strip_root,
)
from kdbusfs.host.namespaces import Extent, IdMap, parse_id_map

STATUS = b"""Name:\ta\\nGroups:\t9
Umask:\t0022
State:\tS (sleeping)
Tgid:\t41
Ngid:\t0
Pid:\t42
PPid:\t7
TracerPid:\t0
Uid:\t1000\t1001\t1002\t1003
Gid:\t2000\t2001\t2002\t2003
FDSize:\t64
Groups:\t4 24 2000 
NStgid:\t41\t3
NSpid:\t42\t4
CapInh:\t0000000000000000
CapPrm:\t000001fffeffffff
CapEff:\t0000000000008001
CapBnd:\tffffffffffffffff
CapAmb:\t0000000000000000
Seccomp:\t2
"""  # noqa: W291


def test_status_fields() -> None:
    status = Status(STATUS)
    assert status.ids() == Creds(1000, 1001, 1002, 1003, 2000, 2001, 2002, 2003)
    assert status.groups() == (4, 24, 2000)
    assert status.numbers(b"NSpid") == (42, 4)
    assert status.seccomp() == 2
    assert status.field(b"Missing") is None


def test_a_thread_without_groups_has_an_empty_list() -> None:
    assert Status(STATUS.replace(b"4 24 2000 ", b" ")).groups() == ()


def test_caps_are_cut_at_last_cap() -> None:
    """META-13: last_cap, then inheritable, permitted, effective, bounding in 32-bit words, low word first."""
    assert Status(STATUS).caps(40) == struct.pack(
        "<9I", 40, 0, 0, 0xFEFFFFFF, 0x1FF, 0x8001, 0, 0xFFFFFFFF, 0x1FF
    )


@pytest.mark.parametrize("name", [b"x", b"a) S 1 (b", b") ) )"])
def test_argument_area_whatever_the_command_is_called(name: bytes) -> None:
    fields = [b"S"] + [b"%d" % n for n in range(4, 53)]
    assert parse_argument_area(b"9 (" + name + b") " + b" ".join(fields) + b"\n") == (48, 49)


def test_argument_area_of_a_short_text() -> None:
    assert parse_argument_area(b"9 (x) S 1 2") == (0, 0)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0::/\n", b"/"),
        (b"0::/user.slice/a:b\n", b"/user.slice/a:b"),
        (b"9:name=systemd:/s\n1:cpu:/first\n0::/two\n", b"/first"),
        (b"10:cpu:/ten\n2:name=systemd:/two\n", b"/two"),
        (b"", None),
    ],
)
def test_cgroup_of_the_hierarchy_mounted_first(text: bytes, path: bytes | None) -> None:
    """META-12."""
    assert parse_cgroup(text) == path


@pytest.mark.parametrize(
    ("path", "root", "seen"),
    [
        (b"/usr/bin/a", b"/", b"/usr/bin/a"),
        (b"/jail/usr/bin/a", b"/jail", b"/usr/bin/a"),
        (b"/jailor/a", b"/jail", b"/jailor/a"),
        (b"/jail/a (deleted)", b"/jail", b"/a (deleted)"),
    ],
)
def test_paths_are_seen_from_the_root(path: bytes, root: bytes, seen: bytes) -> None:
    """META-10."""
    assert strip_root(path, root) == seen


MOUNTS = (
    b"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    b"122 27 0:50 / /run/kdbus\\040x rw - fuse.kdbusfs kdbusfs rw\n"
    b"7 27 0:51 / /a rw shared:3 master:1 - fuse.sshfs h: rw"
)


@pytest.mark.parametrize(
    ("mount", "kind"),
    [(b"22", b"proc"), (b"122", b"fuse.kdbusfs"), (b"7", b"fuse.sshfs"), (b"2", None), (b"27", None)],
)
def test_type_of_a_mount(mount: bytes, kind: bytes | None) -> None:
    assert mountinfo.type_of(MOUNTS, mount) == kind


@pytest.mark.parametrize("left", range(1, 30))
def test_type_of_a_mount_in_a_table_that_is_cut_off(left: int) -> None:
    """Of a large table only the beginning is read: what is not whole is not known."""
    assert mountinfo.type_of(MOUNTS[:-left], b"7") in (None, b"fuse.sshfs")
    assert mountinfo.type_of(MOUNTS[:-left], b"122") == b"fuse.kdbusfs"


def test_options_of_a_mount() -> None:
    entry = mountinfo.parse_line("7 27 0:51 /b /a\\040\\134040 rw - fuse h\\043: rw,user_id=1000,allow_other\n")
    assert entry == ("0:51", "/b", "/a \\040", "fuse", "h#:", "rw,user_id=1000,allow_other")
    assert (entry.option("user_id"), entry.option("allow_other"), entry.option("user")) == ("1000", "", None)


def test_ids_are_mapped_by_extents() -> None:
    ids = parse_id_map(b"         0     100000      65536\n     65536       1000          1\n")
    assert list(ids) == [Extent(0, 100000, 65536), Extent(65536, 1000, 1)]
    assert ids.to_outside(0) == 100000
    assert ids.to_outside(65535) == 165535
    assert ids.to_outside(65536) == 1000
    assert ids.to_outside(65537) is None
    assert ids.to_inside(99999) is None
    assert ids.to_inside(165536) is None
    assert ids.to_inside(1000) == 65536


def test_extents_that_the_daemon_cannot_see_map_nothing() -> None:
    assert not parse_id_map(b"0 4294967295 10\n")
    assert IdMap(()).to_inside(0) is None
    assert IdMap(()).to_outside(0) is None
    assert IdMap(()).all_to_inside(pack("<2I", 7, NO_ID), 9) == pack("<2I", 9, NO_ID)


@given(st.integers(0, 1 << 31), st.integers(0, 1 << 31), st.integers(1, 1 << 30), st.integers(0, NO_ID))
def test_mapping_there_and_back(inside: int, outside: int, length: int, value: int) -> None:
    ids = IdMap((Extent(inside, outside, length),))
    there = ids.to_outside(value)
    assert (there is not None) == (inside <= value < inside + length)
    if there is not None:
        assert ids.to_inside(there) == value


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=12), st.randoms(use_true_random=False))
def test_many_extents_are_those_that_a_walk_finds(rows: list[tuple[int, int]], chance: Random) -> None:
    """META-8: one by one, and many at once."""
    extents: list[Extent] = []
    inside = 0
    order = list(range(len(rows)))
    chance.shuffle(order)
    for number, (length, gap) in enumerate(rows):
        inside += gap
        extents.append(Extent(inside, 1000 + 10 * order[number], length))
        inside += length
    chance.shuffle(extents)
    ids = IdMap(extents)

    def walk(outside: int) -> int | None:
        for extent in extents:
            if extent.outside <= outside < extent.outside + extent.length:
                return extent.inside + outside - extent.outside
        return None

    globals_ = [*range(990, 1130), NO_ID]
    assert [ids.to_inside(each) for each in globals_] == [walk(each) for each in globals_]
    expected = [NO_ID if each == NO_ID else 65534 if walk(each) is None else walk(each) for each in globals_]
    assert ids.all_to_inside(pack("<141I", *globals_), 65534) == pack("<141I", *expected)
    for each in range(inside + 3):
        there = ids.to_outside(each)
        assert (walk(there) == each) if there is not None else each not in map(walk, range(1000, 1130))


@pytest.mark.parametrize("count", [0, 1, 3, 65536])
def test_supplementary_groups(count: int) -> None:
    """META-8: in the order of the kernel, as many as a thread can have."""
    groups = tuple(range(4294967295, 4294967295 - 7 * count, -7))
    text = "Name:\tx\nGroups:\t" + "".join(f"{group} " for group in groups) + "\nNStgid:\t1\n"
    assert Status(text.encode()).groups() == groups
