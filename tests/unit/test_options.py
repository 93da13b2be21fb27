"""The text of -o."""

from __future__ import annotations

import re

import pytest

from kdbusfs import options
from kdbusfs.arguments import parse_helper, parser
from kdbusfs.options import MountOptions, OptionError, parse

DEFAULT_FLAGS = options.MS_NOSUID | options.MS_NODEV | options.MS_NOEXEC


def test_nothing_given_is_the_default() -> None:
    assert parse([]) == MountOptions()
    assert parse(["", ",,"]) == MountOptions()
    assert MountOptions().flags == DEFAULT_FLAGS


def test_the_last_of_keep_and_nokeep_counts() -> None:
    assert not parse([]).keep
    assert parse(["keep"]).keep and parse(["nokeep", "keep"]).keep
    assert not parse(["keep,nokeep"]).keep


@pytest.mark.parametrize(
    "text",
    [
        "defaults",
        "rw",
        "nosuid,nodev,noexec",
        "auto,noauto,nofail,_netdev",
        "user,users,nouser,user=1000,owner,noowner,group,nogroup",
        "x-systemd.automount,x-systemd.requires=dbus.service,X-mount.mkdir",
        "comment=systemd.automount",
        "allow_other,default_permissions",
    ],
)
def test_what_mount_passes_on_from_fstab_is_accepted(text: str) -> None:
    assert parse([text]) == MountOptions()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("ro", DEFAULT_FLAGS | options.MS_RDONLY),
        ("ro,rw", DEFAULT_FLAGS),
        ("rw,ro", DEFAULT_FLAGS | options.MS_RDONLY),
        ("exec", DEFAULT_FLAGS & ~options.MS_NOEXEC),
        ("suid,dev", options.MS_NOEXEC),
        ("suid,nosuid", DEFAULT_FLAGS),
        ("noatime", DEFAULT_FLAGS | options.MS_NOATIME),
    ],
)
def test_flags_go_to_the_kernel_and_later_ones_win(text: str, flags: int) -> None:
    assert parse([text]).flags == flags
    assert parse(text.split(",")).flags == flags


def test_names() -> None:
    assert parse(["fsname=dom=1,subtype=kdbus2"]) == MountOptions(fsname="dom=1", subtype="kdbus2")


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10271", 10271), ("0x1F", 31), ("0xffffffffffffffff", (1 << 64) - 1)]
)
def test_attach_flags_mask_is_decimal_or_hex(text: str, value: int) -> None:
    assert parse([f"attach_flags_mask={text}"]).attach_flags_mask == value


@pytest.mark.parametrize("text", ["-1", "1_0", " 1", "0x", "abc", "0x10000000000000000", "1.5", "\u0661"])
def test_attach_flags_mask_refuses_what_is_no_number_of_64_bits(text: str) -> None:
    with pytest.raises(OptionError, match="attach_flags_mask"):
        parse([f"attach_flags_mask={text}"])


@pytest.mark.parametrize("level", options.LOG_LEVELS)
def test_log_levels(level: str) -> None:
    assert parse([f"loglevel={level}"]).loglevel == level


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uid=0,gid=4294967294", MountOptions(uid=0, gid=4294967294)),
        ("mode=555", MountOptions()),
        ("mode=0550", MountOptions(mode=0o550)),
        ("mode=500", MountOptions(mode=0o500)),
        ("max_user_memory=1048576", MountOptions(max_user_memory=1 << 20)),
        ("max_user_memory=1024K", MountOptions(max_user_memory=1 << 20)),
        ("max_user_memory=3M", MountOptions(max_user_memory=3 << 20)),
        ("max_user_memory=2G", MountOptions(max_user_memory=2 << 30)),
        ("max_user_memory=1T", MountOptions(max_user_memory=1 << 40)),
        ("max_user_fds=0", MountOptions(max_user_fds=0)),
        ("max_user_fds=20", MountOptions(max_user_fds=20)),
        ("fd=3", MountOptions(fd=3)),
        ("fd=3,fd=17", MountOptions(fd=17)),
    ],
)
def test_owner_limits_and_descriptor(text: str, expected: MountOptions) -> None:
    assert parse([text]) == expected


@pytest.mark.parametrize("mode", options.CONTROL_MODES)
def test_control_may_be_opened_by_those_who_may_enter(mode: int) -> None:
    """FS-4, FS-5: with one class of users after the other less."""
    control = options.CONTROL_MODES[mode]
    assert [bool(mode & bit) for bit in (0o100, 0o010, 0o001)] == [bool(control & bit) for bit in (0o200, 0o020, 0o002)]


@pytest.mark.parametrize(
    "text",
    [
        *("uid=-1", "uid=root", "uid=4294967295", "gid=0x10", "gid=1.5"),
        *("mode=755", "mode=0", "mode=511", "mode=5555", "mode=0o555", "mode=999", "mode=rx"),
        *("max_user_memory=K", "max_user_memory=1023K", "max_user_memory=-1", "max_user_memory=1m"),
        *("max_user_memory=1MB", "max_user_memory=8388608T", "max_user_memory=0", "max_user_memory=1.5G"),
        *("max_user_fds=-1", "max_user_fds=all", "max_user_fds=2147483648"),
        *("fd=0", "fd=2", "fd=-1", "fd=x", "fd=2147483648"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(OptionError, match=f"^{text}: must be "):
        parse([text])


@pytest.mark.parametrize("text", ["setuid=1000", "setuid", "drop_privileges", "remount", "remount,ro"])
def test_what_cannot_be_done_is_refused_with_what_to_do_instead(text: str) -> None:
    for sloppy in (False, True):
        with pytest.raises(OptionError, match="is not supported: "):
            parse([text], sloppy)


def test_sloppy_passes_over_unknown_options_alone() -> None:
    assert parse(["rw,frobnicate,knob=3,ro"], sloppy=True).flags == DEFAULT_FLAGS | options.MS_RDONLY
    with pytest.raises(OptionError, match="loglevel"):
        parse(["loglevel=loud"], sloppy=True)


@pytest.mark.parametrize("name", options._VALUES)
def test_a_value_is_needed(name: str) -> None:
    for text in (name, f"{name}="):
        with pytest.raises(OptionError, match=f"'{name}' needs a value"):
            parse([text])


@pytest.mark.parametrize("name", [*options._VALUES, "ro", "nosuid", "noexec", "user", "nofail", "x-"])
def test_help_has_the_option(name: str) -> None:
    assert re.search(rf"^  (.* )?{name}(=|\*| )", parser().format_help(), re.M)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rw,frobnicate,ro", "frobnicate"),
        ("rw=1", "rw=1"),
        ("RO", "RO"),
        ("loglevel=loud", "loglevel=loud"),
        ("loglevel", "loglevel"),
        ("fsname=", "fsname"),
    ],
)
def test_an_error_names_the_option(text: str, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parse([text])


def test_helper_takes_what_mount_gives() -> None:
    given = parse_helper(
        "mount.fuse.kdbusfs", ["source", "/there", "-s", "-f", "-n", "-v", "-o", "rw,nofail", "-t", "fuse.bus"]
    )
    assert (given.source, given.mountpoint, given.sloppy, given.fake, given.verbose) == (
        "source",
        "/there",
        *[True] * 3,
    )
    assert given.foreground is False
    assert parse(given.options) == MountOptions(subtype="bus")
    assert parse(parse_helper("mount.kdbusfs", ["s", "d", "-sfnv"]).options) == MountOptions()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "SOURCE, MOUNTPOINT"),
        (["source"], "MOUNTPOINT"),
        (["source", "/there", "-x"], "-x"),
        (["source", "/there", "-o"], "-o"),
        (["source", "/there", "-N", "/proc/1/ns/mnt"], "-N is not supported"),
        (["source", "/there", "-t", "ext4"], "'ext4'"),
        (["source", "/there", "-t", "fuse.a,b"], "'fuse.a,b'"),
    ],
)
def test_helper_says_in_one_line_what_is_wrong(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_helper("mount.kdbusfs", arguments)
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (1, 1)
    assert said.startswith("mount.kdbusfs: ") and named in said
