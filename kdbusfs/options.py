"""The text of `-o` to mount options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_SYNCHRONOUS = 1 << 4
MS_DIRSYNC = 1 << 7
MS_NOATIME = 1 << 10
MS_NODIRATIME = 1 << 11
MS_SILENT = 1 << 15
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

LOG_LEVELS = ("error", "warning", "info", "debug")

# Option -> flags of mount(2) that it sets, flags that it clears.
_FLAGS: dict[str, tuple[int, int]] = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "atime": (0, MS_NOATIME),
    "noatime": (MS_NOATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "silent": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
}

# What mount(8) and systemd say to each other about a line of fstab, and what holds for every mount anyway.
_WITHOUT_EFFECT = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev"),
        *("user", "users", "nouser", "owner", "noowner", "group", "nogroup"),
        *("allow_other", "default_permissions"),
    }
)
_PREFIXES_WITHOUT_EFFECT = ("x-", "X-", "user=", "comment=")


class OptionError(ValueError):
    """A mount option that is unknown, or that has a value which makes no sense; the text says which."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What a mount is made with.

    flags: MS_* of mount(2); fsname: what the mount table shows as source, None: the SOURCE argument;
    subtype: its type is "fuse." + subtype; attach_flags_mask: the first value of that parameter, None: the
    built-in one; loglevel: one of LOG_LEVELS.
    """

    flags: int = MS_NOSUID | MS_NODEV | MS_NOEXEC
    fsname: str | None = None
    subtype: str = "kdbusfs"
    attach_flags_mask: int | None = None
    loglevel: str = "warning"


def parse(texts: Iterable[str]) -> MountOptions:
    """Mount options from the arguments of any number of `-o`; later ones win.  Raises OptionError.

    `ro` is passed to the kernel like any other flag: opens for writing then fail with EROFS, while a
    descriptor that was opened for reading takes every command.
    """
    options = MountOptions()
    for text in texts:
        for option in text.split(","):
            if option:
                options = _with(options, option)
    return options


def _with(options: MountOptions, option: str) -> MountOptions:
    """`options` and one more."""
    if option in _FLAGS:
        to_set, to_clear = _FLAGS[option]
        return replace(options, flags=options.flags & ~to_clear | to_set)
    if option in _WITHOUT_EFFECT or option.startswith(_PREFIXES_WITHOUT_EFFECT):
        return options
    name, equals, value = option.partition("=")
    if name not in ("fsname", "subtype", "attach_flags_mask", "loglevel"):
        raise OptionError(f"unknown mount option '{option}'")
    if not equals or not value:
        raise OptionError(f"mount option '{name}' needs a value: {name}=...")
    if name == "fsname":
        return replace(options, fsname=value)
    if name == "subtype":
        return replace(options, subtype=value)
    if name == "loglevel":
        if value not in LOG_LEVELS:
            raise OptionError(f"loglevel={value}: must be one of {', '.join(LOG_LEVELS)}")
        return replace(options, loglevel=value)
    return replace(options, attach_flags_mask=_u64(name, value))


def _u64(name: str, value: str) -> int:
    base = 16 if value[:2] in ("0x", "0X") else 10
    try:
        number = int(value, base) if value.isascii() and value.isalnum() else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise OptionError(f"{name}={value}: must be a number of 64 bits, decimal or 0x...")
    return number
