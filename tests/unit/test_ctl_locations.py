"""Which bus is meant, from the mount table and the options."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbusfs.ctl import locations
from kdbusfs.ctl.failure import EXIT_DENIED, EXIT_NO_MOUNT, EXIT_NOTHING, EXIT_USAGE, Failure
from kdbusfs.ctl.locations import Mounted, all_buses, check_domain, domains, find_bus, only_domain, parse_mounts

UID = os.geteuid()

TABLE = r"""
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:50 / /run/kdbusfs rw,nosuid - fuse.kdbusfs test rw,user_id=0
31 22 0:51 / /mnt/with\040space\134 rw shared:2 master:3 - fuse.kdbusfs test rw
32 22 0:50 / /srv/again rw - fuse.kdbusfs test rw
33 22 0:50 /1000-work /srv/work rw - fuse.kdbusfs test rw
34 22 0:50 /1000-work/bus /srv/endpoint rw - fuse.kdbusfs test rw
35 22 0:52 / /hidden rw - fuse.kdbusfs test rw
36 22 0:53 / /hidden rw - tmpfs none rw
""".lstrip()


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that looks like a domain with two buses, as the only one that is mounted."""
    path = tmp_path / "domain"
    (path / ".kdbusfs").mkdir(parents=True)
    (path / "control").touch()
    for bus in (f"{UID}-work", "77-other"):
        (path / bus).mkdir()
        (path / bus / "bus").touch()
    (path / f"{UID}-work" / f"{UID}-narrow").touch()
    entries = [Mounted(str(path), "0:1", "/", locations.MOUNT_TYPE)]
    monkeypatch.setattr(locations, "mounts", lambda: list(entries))
    yield path


def fails(code: int, *arguments: str | None) -> str:
    with pytest.raises(Failure) as caught:
        find_bus(*arguments)
    assert caught.value.exit_code == code, caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_mount_table_gives_visible_mounts_with_their_names() -> None:
    entries = [entry for entry in parse_mounts(TABLE) if entry.kind == locations.MOUNT_TYPE]
    paths = [entry.path for entry in entries]
    assert paths == ["/run/kdbusfs", "/mnt/with space\\", "/srv/again", "/srv/work", "/srv/endpoint"]
    assert entries[3].root == "/1000-work"


def test_mounts_that_other_users_serve_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fusermount lets any user mount a file system of any type, which may hang or lie."""
    table = tmp_path / "mountinfo"
    lines = [f"3{n} 22 0:5{n} / /mnt/{n} rw - fuse.kdbusfs x rw,user_id={n},group_id=0\n" for n in (0, UID, 77777)]
    table.write_text("".join(lines))
    monkeypatch.setattr(locations, "MOUNT_TABLE", str(table))
    assert {entry.owner for entry in locations.mounts()} == {0, UID}


def test_a_domain_counts_once() -> None:
    assert domains(parse_mounts(TABLE)[1:3]) == ["/mnt/with space\\", "/run/kdbusfs"]
    assert "/srv/again" not in domains(parse_mounts(TABLE))


def test_bind_mounted_buses_and_endpoints_are_found() -> None:
    entries = [entry for entry in parse_mounts(TABLE) if entry.root != "/"]
    assert [(place.name, place.directory, place.endpoint) for place in all_buses(entries)] == [
        ("1000-work", "/srv/work", "/srv/work/bus"),
        ("1000-work", None, "/srv/endpoint"),
    ]


def test_the_real_mount_table_can_be_read() -> None:
    assert all(entry.kind == locations.MOUNT_TYPE for entry in locations.mounts())


def test_a_bus_by_name(domain: Path) -> None:
    for name in (f"{UID}-work", "work"):
        assert find_bus(None, name, None).endpoint == str(domain / f"{UID}-work/bus")
        assert find_bus(str(domain), name, None).endpoint == str(domain / f"{UID}-work/bus")
    assert find_bus(None, "other", None).name == "77-other"
    assert "'nothing'" in fails(EXIT_NOTHING, None, "nothing", None)


def test_the_own_bus_of_a_name_comes_first(domain: Path) -> None:
    (domain / "77-work").mkdir()
    assert find_bus(None, "work", None).name == f"{UID}-work"
    (domain / "78-other").mkdir()
    message = fails(EXIT_USAGE, None, "other", None)
    assert "77-other" in message
    assert "78-other" in message


def test_a_bus_by_path(domain: Path) -> None:
    work = domain / f"{UID}-work"
    for path in (work, work / "bus", f"{work}/"):
        place = find_bus(None, str(path), None)
        assert (place.name, place.endpoint, place.directory) == (f"{UID}-work", str(work / "bus"), str(work))
    assert fails(EXIT_NOTHING, None, str(domain / "none/bus"), None)
    assert "--mount" in fails(EXIT_USAGE, None, str(domain), None)


def test_an_endpoint_by_name(domain: Path) -> None:
    for name in ("narrow", f"{UID}-narrow"):
        assert find_bus(None, "work", name).endpoint == str(domain / f"{UID}-work/{UID}-narrow")
    fails(EXIT_NOTHING, None, "work", "wide")
    fails(EXIT_NOTHING, None, "work", "../77-other/bus")
    fails(EXIT_USAGE, None, str(domain / f"{UID}-work/bus"), "narrow")


def test_without_a_name_the_only_bus_that_may_be_entered(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = fails(EXIT_USAGE, None, None, None)
    assert f"{UID}-work" in message
    assert "--bus" in message
    monkeypatch.setattr(locations, "may_use", lambda path: "77-other" in path)
    assert find_bus(None, None, None).name == "77-other"
    monkeypatch.setattr(locations, "may_use", lambda path: False)
    fails(EXIT_DENIED, None, None, None)


def test_a_domain_without_a_bus(domain: Path) -> None:
    for bus in (f"{UID}-work", "77-other"):
        (domain / bus).rename(domain.parent / bus)
    assert "make-bus" in fails(EXIT_NOTHING, None, None, None)
    assert "make-bus" in fails(EXIT_NOTHING, str(domain), None, None)


def test_many_buses_are_not_all_named(domain: Path) -> None:
    for number in range(30):
        (domain / f"{number + 100}-same").mkdir()
    assert "22 more" in fails(EXIT_USAGE, None, "same", None)


def test_what_is_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(Failure) as caught:
            check_domain(str(path))
        assert caught.value.exit_code == EXIT_NO_MOUNT
        assert str(path) in caught.value.message
    monkeypatch.setattr(locations, "mounts", list)
    assert fails(EXIT_NO_MOUNT, None, None, None).startswith("no kdbusfs is mounted")
    assert fails(EXIT_NO_MOUNT, None, "work", None)


def test_several_mounts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "mounts", lambda: [e for e in parse_mounts(TABLE) if e.kind == locations.MOUNT_TYPE])
    with pytest.raises(Failure) as caught:
        only_domain()
    assert caught.value.exit_code == EXIT_USAGE
    assert "/run/kdbusfs" in caught.value.message


def test_a_mount_without_its_daemon_says_what_to_do(domain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(path: str, *arguments: object, **options: object) -> os.stat_result:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(Failure) as caught:
        check_domain(str(domain))
    assert caught.value.exit_code == EXIT_NO_MOUNT
    assert "umount" in caught.value.message
