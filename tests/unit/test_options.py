"""The text of -o."""

from __future__ import annotations

import pytest

from kdbusfs import options
from kdbusfs.options import MountOptions, OptionError, parse

DEFAULT_FLAGS = options.MS_NOSUID | options.MS_NODEV | options.MS_NOEXEC


def test_nothing_given_is_the_default() -> None:
    assert parse([]) == MountOptions()
    assert parse(["", ",,"]) == MountOptions()
    assert MountOptions().flags == DEFAULT_FLAGS


@pytest.mark.parametrize(
    "text",
    [
        "defaults",
        "rw",
        "nosuid,nodev,noexec",
        "auto,noauto,nofail,_netdev",
        "user,users,nouser,user=1000",
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
